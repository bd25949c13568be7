// The page as a whole: the state, what follows from it, and everything that changes it.
import { kindText } from "./boxes";
import { type Circuit, OTHER, edgeName, roleOf, sideNames } from "./circuit";
import { Controls, hiddenText } from "./controls";
import { ask, showShortcuts } from "./dialog";
import { bothScores } from "./difference";
import type { Lit } from "./draw";
import { applyPalette, isDark, palette, sideColours } from "./palette";
import { arcTitle, panelContent } from "./panel";
import { type View, toPng, toSvg, toTikz } from "./picture";
import { type Arc, type Scene, buildScene, nameOf } from "./scene";
import { Stage } from "./stage";
import { GROUP, type Group, History, type State, fromHash, fromRecord, initialState, toHash, toRecord, unitOf } from "./state";
import { trace } from "./trace";
import { button, el, plural, score, visible } from "./text";

export const CHANNEL_NAMES: [letter: string, name: string][] = [
  ["q", "into q"], ["k", "into k"], ["v", "into v"], ["m", "into MLP or logits"],
];
const MAX_FOUND = 30;

export class App {
  state: State;
  scene!: Scene;
  private readonly history = new History();
  private readonly stage: Stage;
  private readonly controls: Controls;
  private readonly panel = el("aside", { class: "panel", "aria-label": "Node" });
  private readonly note = el("p", { class: "note-line", id: "hidden-note" });
  private readonly status = el("div", { class: "status", role: "status", "aria-live": "polite" });
  private readonly tip = el("div", { class: "tip", hidden: true });
  private readonly legend = el("div", { class: "legend", "aria-hidden": "true" });
  private readonly undoButton = button("Undo", () => this.undo(), { title: "Ctrl+Z" });
  private readonly redoButton = button("Redo", () => this.redo(), { title: "Ctrl+Shift+Z" });
  private readonly themeButton = button("Theme", () => this.nextTheme(), { title: "Light or dark (t)" });
  private chosen = new Set<string>();
  private hovered: string | null = null;
  private focusable: string | null = null;
  private lit: Lit | null = null;
  private found = new Set<string>();
  private frame = 0;
  private hashTimer = 0;
  private panelTimer = 0;
  private themeTaken = "";
  private draggedFrom: State | null = null;
  private statusTimer = 0;

  constructor(readonly circuit: Circuit, saved: unknown) {
    const fromAddress = fromHash(location.hash, circuit);
    const start = fromAddress ?? (saved ? fromRecord(saved, circuit) : null);
    this.state = start?.state ?? initialState(circuit);
    applyPalette(this.state.theme);
    this.stage = new Stage({
      hovered: (key) => this.hover(key),
      clicked: (key, add) => (key && add ? this.toggleChosen(key) : this.choose(key)),
      moved: (key, dx, dy, done) => this.move(key, dx, dy, done),
      overArc: (arc, x, y) => this.showTip(arc, x, y),
      looked: (view) => this.looked(view),
    });
    this.controls = new Controls(this);
    this.build();
    this.stage.measure();
    if (this.state.selected) this.chosen.add(this.state.selected);
    this.render();
    if (this.state.view) this.stage.look(this.state.view);
    else this.stage.fit();
    this.stage.draw();
    if (start?.problems.length) this.say(`Opened, but ${start.problems.join("; ")}.`);
    addEventListener("keydown", (event) => this.key(event));
    addEventListener("resize", () => this.refit());
    addEventListener("hashchange", () => this.readAddress());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.render());
    this.picturesOnPrint();
  }

  private build(): void {
    const files = el("input", { type: "file", accept: ".json,application/json", hidden: true, "aria-label": "State to open" });
    files.addEventListener("change", () => void this.open(files));
    const save = el("details", { class: "menu" }, el("summary", {}, "Save"));
    save.append(el("div", {},
      button("Picture, SVG", () => this.save("svg")), button("Picture, PNG", () => this.save("png")),
      button("Picture, TikZ", () => this.save("tikz")), button("State, JSON", () => this.save("state")),
      button("Copy address", () => void this.copyAddress())));
    save.addEventListener("click", (event) => { if ((event.target as Element).closest("div")) save.open = false; });
    const bar = el("header", { class: "bar" },
      el("h1", {}, el("bdi", {}, visible(this.circuit.title))),
      el("nav", { "aria-label": "Page" }, this.undoButton, this.redoButton, button("Fit", () => this.stage.fit(), { title: "0" }),
         save, button("Open state…", () => files.click()), files, this.themeButton,
         button("?", showShortcuts, { "aria-label": "Keyboard shortcuts" })));
    this.stage.element.append(this.legend, this.tip, this.status);
    const main = el("main", {}, this.stage.element, this.note);
    document.body.append(bar, this.controls.element, main, this.panel);
    document.title = visible(this.circuit.title);
  }

  /** Changes the state; changes of one name in a row are undone together. */
  change(part: Partial<State>, name: string): void {
    this.history.record(this.state, name);
    this.state = { ...this.state, ...part };
    this.later(name !== "");
  }

  settle(): void { this.history.settle(); }

  /** What is seen after the state has changed; at once, or, while a slider moves, once a frame. */
  render(moving = false): void {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    this.takePalette();
    this.scene = buildScene(this.circuit, this.state, this.stage.aspect);
    for (const key of [...this.chosen]) if (!this.scene.nodes.has(key)) this.chosen.delete(key);
    if (this.state.selected && !this.scene.nodes.has(this.state.selected)) this.state.selected = [...this.chosen].at(-1) ?? null;
    if (!this.focusable || !this.scene.nodes.has(this.focusable)) {
      this.focusable = this.state.selected ?? this.scene.nodes.keys().next().value ?? null;
    }
    this.stage.show(this.scene, this.state, this.chosen, this.focusable);
    this.relight();
    this.controls.update();
    clearTimeout(this.panelTimer);
    if (moving) this.panelTimer = window.setTimeout(() => this.showPanel(), 120);
    else this.showPanel();
    this.note.textContent = hiddenText(this);
    this.showLegend();
    this.undoButton.disabled = !this.history.canUndo;
    this.redoButton.disabled = !this.history.canRedo;
    this.themeButton.textContent = { auto: "Theme: auto", light: "Theme: light", dark: "Theme: dark" }[this.state.theme];
    this.markFound();
    this.saveAddress();
  }

  private later(moving = false): void {
    if (!this.frame) this.frame = requestAnimationFrame(() => { this.render(moving); this.stage.draw(moving); });
  }

  private showPanel(): void {
    this.panel.replaceChildren(...panelContent(this));
    this.panel.setAttribute("aria-label", this.state.selected ? `Node ${visible(this.state.selected)}` : "Circuit");
  }

  private takePalette(): void {
    const taken = `${this.state.theme} ${isDark(this.state.theme)}`;
    if (taken !== this.themeTaken) applyPalette(this.state.theme);
    this.themeTaken = taken;
  }

  // --- what is chosen and looked at

  keyOf(unit: string): string | null {
    return [...this.scene.nodes.values()].find((node) => node.unit === unit)?.key ?? null;
  }

  choose(key: string | null): void {
    this.chosen = new Set(key ? [key] : []);
    this.state = { ...this.state, selected: key };
    if (key) this.focusable = key;
    this.render();
    this.panel.scrollTop = 0;
    if (key) this.stage.focus(key);
  }

  toggleChosen(key: string): void {
    if (this.chosen.has(key)) this.chosen.delete(key);
    else this.chosen.add(key);
    this.state = { ...this.state, selected: [...this.chosen].at(-1) ?? null };
    this.focusable = key;
    this.render();
    this.say(`${plural(this.chosen.size, "node")} chosen. g groups them.`);
  }

  hover(key: string | null): void {
    if (key === this.hovered) return;
    this.hovered = key;
    this.relight();
  }

  lightArc(arc: Arc | null): void {
    if (!arc) { this.relight(); return; }
    const arcs = new Set([arc]);
    this.light({ arcs, strongest: arcs, main: arcs, nodes: new Set([arc.src.key, arc.dst.key]) });
  }

  private relight(): void {
    const keys = this.hovered && this.scene.nodes.has(this.hovered) ? [this.hovered] : [...this.chosen];
    const nodes = keys.map((key) => this.scene.nodes.get(key)!);
    if (!nodes.length) { this.light(null); return; }
    const position = this.circuit.nPositions > 1 && nodes.length === 1 ? nodes[0].position : -1;
    const found = trace(this.circuit, this.scene.selection.drawn, new Set(nodes.flatMap((node) => node.nodes)), position);
    const arcs = (edges: Iterable<number>) => {
      const set = new Set<Arc>();
      for (const edge of edges) { const arc = this.scene.arcOfEdge.get(edge); if (arc) set.add(arc); }
      return set;
    };
    const lit: Lit = { arcs: arcs(found.edges), strongest: arcs(found.strongest), main: arcs(found.main), nodes: new Set(keys) };
    for (const arc of lit.arcs) { lit.nodes.add(arc.src.key); lit.nodes.add(arc.dst.key); }
    this.light(lit);
  }

  private light(lit: Lit | null): void {
    this.lit = lit;
    this.stage.light(lit);
  }

  private showTip(arc: Arc | null, x: number, y: number): void {
    this.tip.hidden = !arc;
    if (!arc) return;
    this.tip.replaceChildren(el("b", {}, arcTitle(this, arc)),
                             el("span", {}, this.circuit.diff ? bothScores(this.circuit, arc) : this.circuit.scored ? score(arc.score) : ""));
    this.tip.style.left = `${Math.min(x + 14, this.stage.width - 240)}px`;
    this.tip.style.top = `${Math.max(6, y - 34)}px`;
  }

  private looked(view: [number, number, number]): void {
    this.state.view = view.map((value) => Math.round(value * 1000) / 1000) as [number, number, number];
    this.saveAddress();
  }

  private refit(): void {
    const before = this.scene.layout.right;
    this.stage.measure();
    this.render();
    if (before !== this.scene.layout.right || !this.state.view) this.stage.fit();
  }

  // --- nodes: pin, hide, relabel, group, move

  togglePin(unit: string): void {
    const pinned = this.state.pinned.includes(unit);
    this.change({ pinned: pinned ? this.state.pinned.filter((other) => other !== unit) : [...this.state.pinned, unit] }, "");
    this.say(`${nameOf(unit)} ${pinned ? "unpinned" : "pinned"}.`);
  }

  hide(names: string[]): void {
    this.change({ hidden: [...new Set([...this.state.hidden, ...names])] }, "");
    this.say(`${names.map(nameOf).join(", ")} hidden. Ctrl+Z brings back.`);
  }

  unhide(names: string[]): void {
    this.change({ hidden: this.state.hidden.filter((unit) => !names.includes(unit)) }, "");
  }

  async relabel(unit: string): Promise<void> {
    if (unit.startsWith(GROUP)) { await this.rename(unit.slice(GROUP.length)); return; }
    const text = await ask(`Label of ${nameOf(unit)}`, "Empty: its own name again.", this.state.labels[unit] ?? "");
    if (text === null) return;
    const { [unit]: _, ...others } = this.state.labels;
    this.change({ labels: text ? { ...others, [unit]: text } : others }, "");
  }

  private async rename(name: string): Promise<void> {
    const text = await ask(`Name of the group ${visible(name)}`, "", name);
    if (!text || text === name) return;
    if (this.state.groups.some((group) => group.name === text)) { this.say(`There is a group ${visible(text)} already.`); return; }
    const renamed = (unit: string) => {
      const { unit: own, at } = this.split(unit);
      return own === GROUP + name ? GROUP + text + at : unit;
    };
    const keys = <T>(record: Record<string, T>) => Object.fromEntries(Object.entries(record).map(([unit, value]) => [renamed(unit), value]));
    this.chosen = new Set([...this.chosen].map(renamed));
    this.change({
      groups: this.state.groups.map((group) => (group.name === name ? { ...group, name: text } : group)),
      pinned: this.state.pinned.map(renamed), hidden: this.state.hidden.map(renamed), labels: keys(this.state.labels),
      moved: keys(this.state.moved), selected: this.state.selected && renamed(this.state.selected),
    }, "");
  }

  private split(key: string): { unit: string; at: string } {
    const unit = unitOf(key, this.circuit);
    return { unit, at: key.slice(unit.length) };
  }

  /** The chosen nodes become one box. Groups among them are taken apart. */
  async group(): Promise<void> {
    const nodes = [...new Set([...this.chosen].flatMap((key) => this.scene.nodes.get(key)?.nodes ?? []))]
      .map((index) => this.circuit.nodes[index]).filter(({ kind }) => kind !== "input" && kind !== "logits");
    if (nodes.length < 2) { this.say("Choose two nodes or more first: Shift+click, or x on the keyboard."); return; }
    const roles = [...new Set(nodes.map(({ name }) => roleOf(this.circuit, name)))];
    const start = roles.length === 1 && roles[0] ? roles[0] : "";
    const name = await ask(`Group of ${nodes.length} nodes`, nodes.map(({ name: node }) => node).join(", "), start);
    if (name) this.makeGroups([{ name, members: nodes.map(({ name: node }) => node) }]);
  }

  private makeGroups(made: Group[]): void {
    const taken = new Set(made.flatMap(({ members }) => members));
    const others = this.state.groups.map((group) => ({ ...group, members: group.members.filter((node) => !taken.has(node)) }))
      .filter(({ members }) => members.length > 0);
    for (const group of made) {
      let name = group.name;
      for (let i = 2; others.some((other) => other.name === name); i++) name = `${group.name} ${i}`;
      others.push({ ...group, name });
    }
    const last = GROUP + others[others.length - 1].name;
    this.change(this.withoutLostGroups({ ...this.state, groups: others }), "");
    this.render();
    const key = this.keyOf(last);
    if (key && made.length === 1) this.choose(key);
  }

  ungroup(unit: string): void {
    this.change(this.withoutLostGroups({ ...this.state, groups: this.state.groups.filter(({ name }) => GROUP + name !== unit) }), "");
    this.say(`${nameOf(unit)} taken apart.`);
  }

  leave(name: string, node: string): void {
    const groups = this.state.groups.map((group) => group.name === name
      ? { ...group, members: group.members.filter((member) => member !== node) } : group).filter(({ members }) => members.length > 0);
    this.change(this.withoutLostGroups({ ...this.state, groups }), "");
  }

  /** Nothing is said any more of groups that are gone. */
  private withoutLostGroups(state: State): State {
    const isThere = (key: string) => {
      const { unit } = this.split(key);
      return !unit.startsWith(GROUP) || state.groups.some(({ name }) => GROUP + name === unit);
    };
    const keys = <T>(record: Record<string, T>) => Object.fromEntries(Object.entries(record).filter(([unit]) => isThere(unit)));
    return { ...state, pinned: state.pinned.filter(isThere), hidden: state.hidden.filter(isThere),
             labels: keys(state.labels), moved: keys(state.moved),
             selected: state.selected && isThere(state.selected) ? state.selected : null };
  }

  canGroupByRole(): boolean { return [...this.circuit.annotations.values()].flat().some(({ kind }) => kind === "role"); }

  groupByRole(): void {
    const byRole = new Map<string, string[]>();
    for (const { unit, kind } of this.scene.nodes.values()) {
      const role = kind === "head" || kind === "mlp" ? roleOf(this.circuit, unit).slice(0, 200) : "";
      if (role) byRole.set(role, [...new Set([...(byRole.get(role) ?? []), unit])]);
    }
    const groups = [...byRole].filter(([, members]) => members.length > 1).map(([name, members]) => ({ name, members }));
    if (groups.length) this.makeGroups(groups);
    else this.say("No role is shared by two nodes that are drawn.");
  }

  private move(key: string, dx: number, dy: number, done: boolean): void {
    this.draggedFrom ??= this.state;
    const [x, y] = this.draggedFrom.moved[key] ?? [0, 0];
    const moved = { ...this.state.moved, [key]: [Math.round(x + dx), Math.round(y + dy)] as [number, number] };
    if (done) {
      this.history.record(this.draggedFrom, "");
      this.draggedFrom = null;
    }
    this.state = { ...this.state, moved };
    this.later(!done);
  }

  // --- undo, theme, address, files

  undo(): void { this.step(this.history.undo(this.state), "Nothing to undo."); }
  redo(): void { this.step(this.history.redo(this.state), "Nothing to redo."); }

  private step(state: State | null, nothing: string): void {
    if (!state) { this.say(nothing); return; }
    this.state = state;
    this.chosen = new Set(state.selected ? [state.selected] : []);
    this.render();
    this.stage.draw();
  }

  private nextTheme(): void {
    const next = { auto: "light", light: "dark", dark: "auto" } as const;
    this.state = { ...this.state, theme: next[this.state.theme] };
    this.render();
  }

  private saveAddress(): void {
    clearTimeout(this.hashTimer);
    this.hashTimer = window.setTimeout(() => {
      const hash = toHash(this.state, this.circuit);
      if (hash !== location.hash) history.replaceState(null, "", location.href.split("#")[0] + (hash || "#"));
    }, 300);
  }

  private readAddress(): void {
    const read = fromHash(location.hash, this.circuit) ?? { state: initialState(this.circuit), problems: [] };
    if (toHash(read.state, this.circuit) !== toHash(this.state, this.circuit)) this.take(read, "the address");
  }

  private take({ state, problems }: { state: State; problems: string[] }, source: string): void {
    this.history.record(this.state, "");
    this.state = state;
    this.chosen = new Set(state.selected ? [state.selected] : []);
    this.render();
    if (state.view) this.stage.look(state.view);
    else this.stage.fit();
    this.say(problems.length ? `Opened from ${source}, but ${problems.join("; ")}.` : `Opened from ${source}.`);
  }

  private async open(files: HTMLInputElement): Promise<void> {
    const file = files.files?.[0];
    files.value = "";
    if (!file) return;
    try {
      const record: unknown = JSON.parse(await file.text());
      if ((record as { format?: unknown } | null)?.format !== "acdc-view") throw new SyntaxError("no state");
      this.take(fromRecord(record, this.circuit), visible(file.name));
    } catch (error) {
      if (!(error instanceof SyntaxError)) throw error;
      this.say(`${visible(file.name)} is not a state that this page saved.`);
    }
  }

  private async copyAddress(): Promise<void> {
    const address = location.href.split("#")[0] + toHash(this.state, this.circuit);
    try {
      await navigator.clipboard.writeText(address);
      this.say("Address copied: it opens this view.");
    } catch {
      this.say("The browser does not let pages copy; take the address from its bar.");
    }
  }

  private view(): View {
    const { colours, legend } = { colours: palette(this.state.theme), legend: this.legendEntries() };
    return { scene: this.scene, state: this.state, colours, at: this.stage.at, width: this.stage.width, lit: this.lit,
             height: this.stage.height, title: this.circuit.title, note: hiddenText(this), legend };
  }

  private save(kind: "svg" | "png" | "tikz" | "state"): void {
    if (kind === "png") {
      void toPng(this.view()).then((blob) => this.download(blob, "circuit.png"));
      return;
    }
    const [text, type, name] = {
      svg: () => [toSvg(this.view()), "image/svg+xml", "circuit-view.svg"],
      tikz: () => [toTikz(this.view()), "text/plain", "circuit-view.tex"],
      state: () => [`${JSON.stringify(toRecord(this.state, this.circuit), null, 1)}\n`, "application/json", "circuit-state.json"],
    }[kind]();
    this.download(new Blob([text], { type }), name);
  }

  private download(blob: Blob, name: string): void {
    const link = el("a", { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    this.say(`Saved as ${name}.`);
  }

  private picturesOnPrint(): void {
    addEventListener("beforeprint", () => this.stage.draw());
  }

  // --- search

  search(text: string): void {
    const sought = text.trim().toLowerCase();
    this.found = new Set();
    if (!sought) { this.controls.showResults([], 0); this.markFound(); return; }
    const has = (value: string) => value.toLowerCase().includes(sought);
    const rows: { name: string; more: string; act: () => void }[] = [];
    for (const node of this.scene.nodes.values()) {
      if (![node.unit, node.label, node.role, this.state.labels[node.unit] ?? "", kindText(node)].some(has)) continue;
      this.found.add(node.key);
      rows.push({ name: visible(node.key.replace(GROUP, "")), more: visible(this.state.labels[node.unit] ?? node.role ?? ""), act: () => this.choose(node.key) });
    }
    let total = rows.length;
    const absent = this.circuit.nodes.filter(({ name }) => !this.keyOf(name) && [name, roleOf(this.circuit, name)].some(has));
    total += absent.length;
    for (const { name } of absent.slice(0, MAX_FOUND)) {
      const grouped = this.state.groups.find(({ members }) => members.includes(name));
      const hidden = this.state.hidden.includes(name);
      rows.push({ name, more: grouped ? `in the group ${visible(grouped.name)}` : hidden ? "hidden; show it" : "not in the circuit; pin it",
                  act: () => (grouped ? this.choose(this.keyOf(GROUP + grouped.name)) : hidden ? this.unhide([name]) : this.togglePin(name)) });
    }
    if (/->|→|<|>/.test(sought) || rows.length < MAX_FOUND) {
      const plain = sought.replaceAll("→", "->").replaceAll(" ", "");
      const { drawn } = this.scene.selection;
      for (const edge of drawn) {
        if (plain.length < 2 || !edgeName(this.circuit, edge).toLowerCase().includes(plain)) continue;
        total += 1;
        const arc = this.scene.arcOfEdge.get(edge);
        if (rows.length < MAX_FOUND && arc) {
          rows.push({ name: visible(edgeName(this.circuit, edge)), more: this.circuit.scored ? score(this.circuit.score[edge]) : "",
                      act: () => { this.choose(arc.dst.key); this.lightArc(arc); } });
        }
      }
    }
    this.controls.showResults(rows.slice(0, MAX_FOUND), total);
    this.markFound();
  }

  private markFound(): void {
    for (const key of this.scene.nodes.keys()) this.stage.boxes.element(key)?.classList.toggle("found", this.found.has(key));
  }

  // --- keyboard

  focusGraph(): void { if (this.focusable) this.stage.focus(this.focusable); }

  private key(event: KeyboardEvent): void {
    const target = event.target as HTMLElement;
    const typing = target instanceof HTMLInputElement && target.type !== "range" && target.type !== "checkbox" || target instanceof HTMLSelectElement;
    if (document.querySelector("dialog[open]")) return;
    const command = event.ctrlKey || event.metaKey;
    if (command && !typing && ["z", "y"].includes(event.key.toLowerCase())) {
      if (event.key.toLowerCase() === "y" || event.shiftKey) this.redo();
      else this.undo();
      event.preventDefault();
      return;
    }
    if (command || event.altKey || typing) return;
    const node = target.closest?.<SVGGElement>(".node")?.dataset.node;
    if ((node !== undefined && this.nodeKey(event, node)) || this.pageKey(event, target)) event.preventDefault();
  }

  private nodeKey(event: KeyboardEvent, key: string): boolean {
    const node = this.scene.nodes.get(key);
    if (!node) return false;
    const many = this.chosen.has(key) && this.chosen.size > 1 ? [...this.chosen].map((other) => this.scene.nodes.get(other)!.unit) : [node.unit];
    switch (event.key) {
      case "ArrowUp": case "ArrowDown": case "ArrowLeft": case "ArrowRight": this.walk(key, event.key.slice(5)); return true;
      case "Enter": case " ": this.choose(this.state.selected === key && this.chosen.size === 1 ? null : key); this.focusKey(key); return true;
      case "x": this.toggleChosen(key); this.focusKey(key); return true;
      case "i": case "o": {
        const arcs = event.key === "i" ? node.into : node.out;
        const best = arcs.reduce<Arc | null>((a, b) => (!a || Math.abs(b.score) > Math.abs(a.score) ? b : a), null);
        if (best) this.focusKey(event.key === "i" ? best.src.key : best.dst.key);
        return true;
      }
      case "p": this.togglePin(node.unit); return true;
      case "h": {
        const next = [...this.scene.nodes.keys()].find((other) => !many.includes(unitOf(other, this.circuit))) ?? null;
        this.walkAway(key, next);
        this.hide(many);
        return true;
      }
      case "r": case "F2": void this.relabel(node.unit); return true;
      case "g": void this.group(); return true;
      case "u": if (node.kind === "group") this.ungroup(node.unit); return true;
      default: return false;
    }
  }

  private pageKey(event: KeyboardEvent, target: HTMLElement): boolean {
    switch (event.key) {
      case "?": showShortcuts(); return true;
      case "/": this.controls.search.focus(); return true;
      case "t": this.nextTheme(); return true;
      case "0": this.stage.fit(); return true;
      case "+": case "=": this.stage.zoomBy(1.25); return true;
      case "-": case "−": this.stage.zoomBy(0.8); return true;
      case "[": this.controls.step(-1); return true;
      case "]": this.controls.step(1); return true;
      case "s": this.change({ n: null }, ""); return true;
      case "g": void this.group(); return true;
      case "H": this.unhide(this.state.hidden); return true;
      case "Escape": this.hover(null); this.choose(null); return true;
      case "ArrowUp": case "ArrowDown": case "ArrowLeft": case "ArrowRight":
        if (target !== document.body) return false;
        this.focusGraph();
        return true;
      default: return false;
    }
  }

  private focusKey(key: string): void {
    this.focusable = key;
    this.stage.show(this.scene, this.state, this.chosen, key);
    this.stage.focus(key);
  }

  /** To the nearest node in a direction; what is a little aside counts as farther. */
  private walk(key: string, direction: string): void {
    const from = this.scene.nodes.get(key)!;
    let best: string | null = null, least = Infinity;
    for (const [other, { x, y }] of this.scene.nodes) {
      if (other === key) continue;
      const [ahead, aside] = { Up: [from.y - y, x - from.x], Down: [y - from.y, x - from.x], Left: [from.x - x, y - from.y],
                               Right: [x - from.x, y - from.y] }[direction]!;
      if (ahead < 4) continue;
      const cost = ahead + 2.5 * Math.abs(aside);
      if (cost < least) { least = cost; best = other; }
    }
    if (best) this.focusKey(best);
  }

  private walkAway(key: string, next: string | null): void {
    const near = this.scene.nodes.get(key)!;
    const arc = near.out.at(-1) ?? near.into.at(-1);
    const to = arc ? (arc.src.key === key ? arc.dst.key : arc.src.key) : next;
    if (to) this.focusKey(to);
  }

  // --- words

  say(text: string): void {
    this.status.textContent = text;
    this.status.classList.add("on");
    clearTimeout(this.statusTimer);
    this.statusTimer = window.setTimeout(() => this.status.classList.remove("on"), 4000);
  }

  private legendEntries(): View["legend"] {
    const colours = palette(this.state.theme), style = { width: 2.4, alpha: 1, dashed: false };
    const letters = new Set(this.scene.arcs.map(({ letter }) => letter));
    const sides = new Set(this.scene.arcs.map(({ side }) => side));
    const { diff } = this.circuit;
    const entries: View["legend"] = diff && this.state.colour === "side"
      ? sideNames(diff).map((name, side) => [visible(name), { ...style, colour: sideColours(colours)[side] }, side] as const)
        .filter(([, , side]) => sides.has(side)).map(([name, look]) => [name, look])
      : this.state.colour === "channel" ? CHANNEL_NAMES.map(([, name], letter) => [name, { ...style, colour: colours.channels[letter] }, letter] as const)
        .filter(([, , letter]) => letters.has(letter)).map(([name, look]) => [name, look])
      : [["helps", { ...style, colour: colours.helps }]];
    if (this.scene.arcs.some(({ score: value }) => value < 0)) {
      entries.push(["score < 0: it hurts", { ...style, colour: this.state.colour === "sign" ? colours.hurts : colours.channels[OTHER], dashed: true }]);
    }
    if (this.scene.links.length) entries.push([this.circuit.nPositions > 1 ? "attention can carry it" : "group and its heads", { ...style, width: 1, colour: colours.link, dashed: true }]);
    if (this.circuit.scored && this.scene.largest) entries.push([`strongest |score| ${this.scene.largest.toPrecision(2)}${diff ? " × its circuit’s mean" : ""}`, null]);
    return entries;
  }

  private showLegend(): void {
    const rows = this.legendEntries().map(([text, style]) => {
      const sample = el("span", { class: style?.dashed ? "sample dashed" : "sample" });
      if (style) sample.style.borderTop = `${style.width}px ${style.dashed ? "dashed" : "solid"} ${style.colour}`;
      return el("span", { class: "entry" }, style && sample, text);
    });
    const roles = this.scene.roles.slice(0, 9).map((role, i) => {
      const sample = el("span", { class: "role-sample" });
      sample.style.background = `var(--roles-${i})`;
      return el("span", { class: "entry" }, sample, visible(role));
    });
    this.legend.replaceChildren(...rows, ...roles);
  }

  /** What is drawn, in names and numbers, for scripts that drive the page. */
  summary(): Record<string, unknown> {
    const names = (arcs: Iterable<Arc>) => [...arcs].flatMap(({ edges }) => edges.map((edge) => edgeName(this.circuit, edge)));
    return {
      edges: names(this.scene.arcs), nodes: [...this.scene.nodes.keys()], nCircuit: this.scene.selection.nCircuit,
      arcs: this.scene.arcs.map((arc) => ({ src: arc.src.key, dst: arc.dst.key, letter: arc.letter, side: arc.side, score: arc.score, n: arc.edges.length, curve: arc.curve })),
      lit: this.lit && { edges: names(this.lit.arcs), main: names(this.lit.main), nodes: [...this.lit.nodes] },
      chosen: [...this.chosen], state: toRecord(this.state, this.circuit), view: [this.stage.at.x, this.stage.at.y, this.stage.at.k],
    };
  }
}
