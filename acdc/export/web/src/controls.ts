// The controls at the left: which edges are the circuit, how it is drawn, and what was pinned, hidden and grouped.
import type { App } from "./app";
import { CHANNEL_NAMES } from "./app";
import { sideNames } from "./circuit";
import { curveChart, faithfulnessOf, isMeasured } from "./curve";
import { nameOf } from "./scene";
import { circuitEdges, mostEdges } from "./selection";
import { SIDES } from "./state";
import { button, count, el, percent, plural, significant, visible } from "./text";

const TICKS = 1000; // of a slider

export class Controls {
  readonly element = el("aside", { class: "controls", "aria-label": "Controls" });
  readonly search = el("input", { type: "search", placeholder: "Search nodes, edges, roles", "aria-label": "Search nodes, edges and roles", autocomplete: "off", spellcheck: "false" });
  private readonly results = el("ul", { class: "results", "aria-label": "Found" });
  private readonly size = el("input", { type: "range", min: 0, max: TICKS, step: 1, "aria-label": "Edges kept" });
  private readonly sizeNumber = el("input", { type: "number", min: 0, step: 1, "aria-label": "Edges kept, as a number" });
  private readonly threshold = el("input", { type: "range", min: 0, max: TICKS, step: 1, "aria-label": "Threshold of the score" });
  private readonly thresholdNumber = el("span", { class: "value" });
  private readonly saved = button("Saved circuit", () => this.app.change({ n: null }, ""));
  private readonly ranking = el("select", { "aria-label": "Ranking" });
  private readonly found = el("div", { class: "faithfulness", "aria-live": "off" });
  private readonly chart = el("div", { class: "chart" });
  private readonly channels = new Map<string, HTMLInputElement>();
  private readonly sides = new Map<string, HTMLInputElement>();
  private readonly flags = new Map<"onPaths" | "onlyPinned", HTMLInputElement>();
  private readonly choices = new Map<"layout" | "colour", HTMLSelectElement>();
  private readonly kept = el("div", { class: "lists" });
  private listed = "";
  private charted = "";

  constructor(private readonly app: App) {
    this.ranking.append(el("option", { value: "magnitude" }, "by |score|"), el("option", { value: "signed" }, "by score (helps only)"));
    this.ranking.addEventListener("change", () => app.change({ by: this.ranking.value as "magnitude" | "signed", n: this.currentSize() }, ""));
    this.size.addEventListener("input", () => app.change({ n: this.sizeAt(Number(this.size.value)) }, "size"));
    this.threshold.addEventListener("input", () => app.change({ n: this.sizeAbove(Number(this.threshold.value)) }, "size"));
    for (const slider of [this.size, this.threshold]) slider.addEventListener("change", () => app.settle());
    this.sizeNumber.addEventListener("change", () => {
      const n = Math.round(Number(this.sizeNumber.value));
      if (this.sizeNumber.value !== "" && Number.isFinite(n)) app.change({ n: this.clamped(n) }, "");
      else app.render();
    });
    this.search.addEventListener("input", () => app.search(this.search.value));
    this.search.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { this.search.value = ""; app.search(""); app.focusGraph(); }
      else if (event.key === "Enter" || event.key === "ArrowDown") {
        this.results.querySelector("button")?.focus();
        if (event.key === "Enter") this.results.querySelector("button")?.click();
        event.preventDefault();
      }
    });
    this.results.addEventListener("keydown", (event) => {
      const buttons = [...this.results.querySelectorAll("button")], at = buttons.indexOf(document.activeElement as HTMLButtonElement);
      if (event.key === "ArrowDown") buttons[at + 1]?.focus();
      else if (event.key === "ArrowUp") (buttons[at - 1] ?? this.search).focus();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    if (app.circuit.diff) this.saved.textContent = "All edges";
    this.build();
  }

  private build(): void {
    const { app } = this, { diff } = app.circuit;
    const sides = el("div", { class: "checks" });
    for (const [side, name] of diff ? sideNames(diff).entries() : []) {
      const box = el("input", { type: "checkbox", value: SIDES[side] });
      box.addEventListener("change", () => app.change({
        sides: [...SIDES].filter((other) => this.sides.get(other)!.checked).join(""),
      }, ""));
      this.sides.set(SIDES[side], box);
      sides.append(el("label", { class: "long" }, box, el("span", { class: `swatch of-side c${[3, 0, 1][side]}` }), el("bdi", {}, visible(name))));
    }
    const channels = el("div", { class: "checks" });
    for (const [letter, name] of CHANNEL_NAMES) {
      const box = el("input", { type: "checkbox", value: letter });
      box.addEventListener("change", () => app.change({
        channels: CHANNEL_NAMES.map(([other]) => other).filter((other) => this.channels.get(other)!.checked).join(""),
      }, ""));
      this.channels.set(letter, box);
      channels.append(el("label", {}, box, el("span", { class: `swatch of-channel c${"qkvm".indexOf(letter)}` }), name));
    }
    const flags = el("div", { class: "checks" });
    for (const [flag, name] of [["onPaths", "only on a path from input to logits"], ["onlyPinned", "only between pinned nodes"]] as const) {
      const box = el("input", { type: "checkbox", name: flag });
      box.addEventListener("change", () => app.change({ [flag]: box.checked }, ""));
      this.flags.set(flag, box);
      flags.append(el("label", { class: "long" }, box, name));
    }
    const choices = el("div", { class: "row" });
    for (const [choice, options] of [["layout", [["fixed", "all layers"], ["compact", "compact"]]],
                                     ["colour", [...(diff ? [["side", "circuit colours"]] : []), ["channel", "channel colours"], ["sign", "sign colours"]]]] as const) {
      const list = el("select", { "aria-label": choice === "layout" ? "Layout" : "Colour" });
      for (const [value, name] of options) list.append(el("option", { value }, name));
      list.addEventListener("change", () => app.change({ [choice]: list.value }, ""));
      this.choices.set(choice, list);
      choices.append(list);
    }
    this.element.append(
      el("section", { class: "search" }, this.search, this.results),
      el("section", {}, el("h2", {}, diff ? "Circuits" : "Circuit"),
         el("div", { class: "row" }, this.ranking, this.saved),
         el("label", { class: "slider" }, el("span", {}, diff ? "strongest edges of either" : "edges kept"), this.sizeNumber), this.size,
         el("label", { class: "slider" }, el("span", {}, diff ? "|score| over its circuit’s mean" : "|score| at least"), this.thresholdNumber), this.threshold,
         ...(diff ? [] : [this.found, this.chart])),
      el("section", {}, el("h2", {}, "Show"), sides, channels, flags, choices),
      this.kept,
    );
  }

  update(): void {
    const { state, circuit, scene } = this.app;
    const n = this.currentSize(), most = mostEdges(circuit, state.by);
    const sliders = circuit.scored && most > 0;
    for (const control of [this.size, this.threshold, this.sizeNumber, this.ranking]) control.disabled = !sliders;
    this.ranking.value = state.by;
    if (document.activeElement !== this.size || this.sizeAt(Number(this.size.value)) !== n) this.size.value = String(this.tickOf(n));
    this.size.setAttribute("aria-valuetext", plural(n, "edge"));
    this.sizeNumber.max = String(most);
    this.sizeNumber.value = String(n);
    const { weakest } = scene.selection;
    if (document.activeElement !== this.threshold) this.threshold.value = String(this.thresholdTick(weakest));
    this.threshold.setAttribute("aria-valuetext", significant(weakest));
    this.thresholdNumber.textContent = circuit.scored && n ? significant(weakest) : "–";
    this.saved.disabled = state.n === null;
    this.saved.setAttribute("aria-pressed", String(state.n === null));
    for (const [letter, box] of this.channels) box.checked = state.channels.includes(letter);
    this.element.classList.toggle("by-side", state.colour === "side");
    this.element.classList.toggle("by-channel", state.colour === "channel");
    for (const [side, box] of this.sides) box.checked = state.sides.includes(side);
    for (const [flag, box] of this.flags) box.checked = state[flag];
    for (const [choice, list] of this.choices) list.value = state[choice];
    this.showFaithfulness(n);
    this.showLists();
  }

  private showFaithfulness(n: number): void {
    const { state, circuit } = this.app;
    const { value, text } = faithfulnessOf(circuit, state, n);
    const said = value === null ? "–" : (isMeasured(circuit, state, n) ? "" : "≈ ") + value.toFixed(isMeasured(circuit, state, n) ? 3 : 2);
    this.found.replaceChildren(el("span", { class: "big" }, said), el("span", {}, "faithfulness", el("small", {}, text)));
    if (value !== null && value > 1.0005) this.found.append(el("small", { class: "warn" }, "above 1: it leaves out what works against the task"));
    const key = JSON.stringify([state.by, n]);
    if (this.charted === key) return;
    this.charted = key;
    this.chart.replaceChildren(...[curveChart(circuit, state, n, (size) => this.app.change({ n: this.clamped(size) }, ""))].filter((chart) => chart !== null));
  }

  private showLists(): void {
    const { app } = this, { state } = app;
    const key = JSON.stringify([state.groups, state.pinned, state.hidden]);
    if (this.listed === key) return;
    this.listed = key;
    const parts: HTMLElement[] = [];
    const add = (title: string, units: string[], symbol: string, what: string, act: (unit: string) => void) => {
      if (!units.length) return;
      const list = el("ul", { class: "chips" });
      for (const unit of units) {
        const name = nameOf(unit);
        list.append(el("li", {}, button(name, () => app.choose(app.keyOf(unit)), { class: "link" }),
                       button(symbol, () => act(unit), { "aria-label": `${what} ${name}`, title: what })));
      }
      parts.push(el("section", { "data-list": title.toLowerCase() }, el("h2", {}, title, el("small", {}, ` ${units.length}`)), list));
    };
    add("Groups", state.groups.map(({ name }) => `group:${name}`), "×", "Ungroup", (unit) => app.ungroup(unit));
    add("Pinned", state.pinned, "×", "Unpin", (unit) => app.togglePin(unit));
    add("Hidden", state.hidden, "+", "Show", (unit) => app.unhide([unit]));
    if (app.canGroupByRole()) {
      parts.push(el("section", {}, button("Group by role", () => app.groupByRole())));
    }
    this.kept.replaceChildren(...parts);
  }

  showResults(rows: { name: string; more: string; act: () => void }[], total: number): void {
    this.results.replaceChildren(...rows.map(({ name, more, act }) => {
      const row = button("", act);
      row.append(el("bdi", {}, name), el("small", {}, more));
      return el("li", {}, row);
    }));
    if (total > rows.length) this.results.append(el("li", { class: "hint" }, `${count(total - rows.length)} more`));
    if (this.search.value && !total) this.results.append(el("li", { class: "hint" }, "nothing found"));
  }

  step(direction: 1 | -1): void {
    const n = this.currentSize();
    const next = direction > 0 ? Math.max(n + 1, Math.round(n * 1.25)) : Math.min(n - 1, Math.round(n / 1.25));
    if (this.app.circuit.scored) this.app.change({ n: this.clamped(next) }, "size");
  }

  private currentSize(): number {
    const { state, circuit } = this.app;
    return state.n ?? (circuit.scored ? circuit.kept : circuitEdges(circuit, state).length);
  }

  private clamped(n: number): number {
    return Math.max(0, Math.min(n, mostEdges(this.app.circuit, this.app.state.by)));
  }

  /** Ticks go by the logarithm: as much room from 10 to 100 edges as from 1,000 to 10,000. */
  private sizeAt(tick: number): number {
    const most = mostEdges(this.app.circuit, this.app.state.by);
    return Math.max(0, Math.round(Math.expm1((tick / TICKS) * Math.log1p(most))));
  }

  private tickOf(n: number): number {
    const most = mostEdges(this.app.circuit, this.app.state.by);
    return Math.round((TICKS * Math.log1p(Math.min(n, most))) / Math.log1p(most || 1));
  }

  private range(): [low: number, high: number] {
    const { circuit, state } = this.app;
    const edges = state.by === "magnitude" ? null : circuit.positives;
    const most = mostEdges(circuit, state.by);
    const at = (i: number) => circuit.strength[edges ? edges[i] : i];
    let last = most - 1;
    while (last > 0 && at(last) <= 0) last--;
    return most ? [Math.max(at(last), at(0) * 1e-9), at(0)] : [1e-9, 1];
  }

  private thresholdTick(value: number): number {
    const [low, high] = this.range();
    return Math.round((TICKS * Math.log(Math.max(value, low) / low)) / (Math.log(high / low) || 1));
  }

  private sizeAbove(tick: number): number {
    const { circuit, state } = this.app;
    const [low, high] = this.range();
    const least = low * Math.exp((tick / TICKS) * Math.log(high / low)) * (1 - 1e-12);
    const edges = state.by === "magnitude" ? null : circuit.positives;
    let first = 0, last = mostEdges(circuit, state.by); // how many are at least so strong
    while (first < last) {
      const middle = (first + last) >> 1;
      if (circuit.strength[edges ? edges[middle] : middle] >= least) first = middle + 1;
      else last = middle;
    }
    return first;
  }
}

export function hiddenText(app: App): string {
  const { circuit, scene, state } = app, { selection } = scene;
  const drawn = selection.drawn.length - scene.inGroups;
  const all = circuit.graph.edges;
  const parts = [`Drawn: ${count(drawn)} of ${circuit.diff ? `the ${plural(selection.nCircuit, "edge")} that either circuit keeps` : `the circuit’s ${plural(selection.nCircuit, "edge")}`}, of ${count(all)} in the model.`];
  const left = [
    [selection.overMost, "weaker than the strongest 5,000"], [selection.offPage, "not on this page"],
    [selection.bySide, "of circuits that are switched off"], [selection.byChannel, "of channels that are switched off"], [selection.hiddenEnds, "at hidden nodes"],
    [selection.offPath, "on no path from input to logits"], [selection.unpinned, "not between pinned nodes"],
    [scene.inGroups, "within groups"],
  ].filter(([n]) => n).map(([n, why]) => `${count(n as number)} ${why}`);
  if (left.length) parts.push(`Not drawn: ${left.join(", ")}.`);
  if (circuit.scored && circuit.total > 0 && !circuit.diff) {
    let sum = 0;
    for (const edge of selection.drawn) sum += circuit.strength[edge];
    parts.push(`It carries ${percent(sum / circuit.total)} of all |score|.`);
    const most = mostEdges(circuit, state.by), there = state.by === "magnitude" ? circuit.tried : circuit.positive;
    if (most < there) parts.push(`This page holds the ${count(most)} strongest of ${count(there)} scored edges; the sliders end there.`);
  }
  return visible(parts.join(" "));
}
