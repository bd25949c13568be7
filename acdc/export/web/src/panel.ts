// The panel at the right: all about the chosen node, or about the circuit where none is chosen.
import { annotationSections } from "./annotations";
import type { App } from "./app";
import { kindText } from "./boxes";
import { LETTERS, channelName, edgeName } from "./circuit";
import { bothScores, edgeSection, overlapSection } from "./difference";
import { type Arc, type Node, nameOf } from "./scene";
import { GROUP } from "./state";
import { trace } from "./trace";
import { button, count, el, plural, score, significant, visible } from "./text";

const MAX_LISTED = 40, MAX_STRONGEST = 15;

export function panelContent(app: App): HTMLElement[] {
  const node = app.state.selected ? app.scene.nodes.get(app.state.selected) : undefined;
  return node ? nodeContent(app, node) : overview(app);
}

function nodeContent(app: App, node: Node): HTMLElement[] {
  const { state, circuit } = app;
  const label = state.labels[node.unit];
  const at = node.key.length > node.unit.length ? ` @ ${visible(node.key.slice(node.unit.length + 1))}` : "";
  const isGroup = node.kind === "group";
  const head = el("header", {},
    el("h2", {}, el("bdi", {}, label ? visible(label) : node.name), el("small", {}, (label ? ` ${node.name}` : "") + at)),
    el("p", { class: "hint" }, kindText(node)));
  const actions = el("div", { class: "buttons" },
    button(node.pinned ? "Unpin" : "Pin", () => app.togglePin(node.unit), { "aria-pressed": String(node.pinned) }),
    button("Hide", () => app.hide([node.unit])),
    button(isGroup ? "Rename" : "Relabel", () => void app.relabel(node.unit)),
    isGroup ? button("Ungroup", () => app.ungroup(node.unit)) : button("Group…", () => void app.group()),
    button("Close", () => app.choose(null)));
  const parts: HTMLElement[] = [head, actions];
  if (isGroup) parts.push(members(app, node));
  parts.push(mainPath(app, node));
  for (const index of node.nodes) {
    const notes = circuit.annotations.get(circuit.nodes[index].name);
    if (!notes) continue;
    if (isGroup) parts.push(el("h3", {}, circuit.nodes[index].name));
    parts.push(...annotationSections(notes));
  }
  parts.push(arcList(app, "Edges in", node.into, (arc) => arc.src), arcList(app, "Edges out", node.out, (arc) => arc.dst));
  return parts;
}

function members(app: App, node: Node): HTMLElement {
  const name = node.unit.slice(GROUP.length);
  const list = el("ul", { class: "chips" });
  for (const index of node.nodes) {
    const member = app.circuit.nodes[index].name;
    list.append(el("li", {}, member, button("×", () => app.leave(name, member), { "aria-label": `Take ${member} out of the group` })));
  }
  return el("section", {}, el("h3", {}, "Members"), list);
}

function mainPath(app: App, node: Node): HTMLElement {
  const { circuit } = app;
  const found = trace(circuit, app.scene.selection.drawn, new Set(node.nodes), circuit.nPositions > 1 ? node.position : -1);
  const section = el("section", { class: "path" }, el("h3", {}, "Strongest path through it"));
  if (!found.main.length) {
    section.append(el("p", { class: "hint" }, "No drawn path leads from the input through it to the logits."));
    return section;
  }
  const line = el("p", {});
  const step = (name: string) => {
    const plain = name.replace(/<.>$/, "");
    const box = [...app.scene.nodes.values()].find(({ nodes }) => nodes.includes(circuit.nodeIndex.get(plain)!));
    return box && box !== node ? button(name, () => app.choose(box.key), { class: "link" }) : el("b", {}, name);
  };
  line.append(step(circuit.nodes[circuit.src[found.main[0]]].name));
  for (const edge of found.main) {
    line.append(" → ", step(channelName(circuit, circuit.dst[edge], circuit.letter[edge])));
    if (circuit.nPositions > 1) line.append(el("small", {}, `@${visible(circuit.graph.positions[circuit.position[edge]])}`));
  }
  section.append(line);
  if (circuit.scored) section.append(el("p", { class: "hint" }, `weakest edge along it ${significant(found.width)}`));
  return section;
}

function arcList(app: App, title: string, arcs: Arc[], end: (arc: Arc) => { key: string; unit: string }): HTMLElement {
  const sorted = [...arcs].sort((a, b) => Math.abs(b.score) - Math.abs(a.score));
  const list = el("ul", { class: "edges" });
  const most = Math.max(...sorted.map((arc) => Math.abs(arc.score)), 1e-300);
  const add = (part: Arc[]) => {
    for (const arc of part) list.append(arcRow(app, arc, end(arc), Math.abs(arc.score) / most));
  };
  add(sorted.slice(0, MAX_LISTED));
  const section = el("section", { "data-list": title }, el("h3", {}, title, el("small", {}, ` ${count(arcs.length)}`)), list);
  if (sorted.length > MAX_LISTED) {
    const more = button(`Show all ${count(sorted.length)}`, () => { add(sorted.slice(MAX_LISTED)); more.remove(); });
    section.append(more);
  }
  if (!sorted.length) section.append(el("p", { class: "hint" }, "none is drawn"));
  return section;
}

function arcRow(app: App, arc: Arc, other: { key: string; unit: string }, share: number): HTMLElement {
  const bar = el("span", { class: arc.score < 0 ? "bar hurts" : "bar" });
  bar.style.width = `${100 * share}%`;
  const row = button("", () => app.choose(other.key), { title: arcTitle(app, arc) });
  const merged = arc.edges.length > 1 ? ` (${plural(arc.edges.length, "edge")})` : "";
  row.append(bar, el("span", { class: `channel c${arc.letter}` }, LETTERS[arc.letter] || "·"),
             el("bdi", {}, nameOf(other.unit) + merged), roleTag(app, other.key) ?? "",
             el("span", { class: "value" }, app.circuit.diff ? bothScores(app.circuit, arc) : app.circuit.scored ? score(arc.score) : ""));
  row.addEventListener("pointerenter", () => app.lightArc(arc));
  row.addEventListener("pointerleave", () => app.lightArc(null));
  return el("li", {}, row);
}

export function arcTitle(app: App, arc: Arc): string {
  if (arc.edges.length === 1) return visible(edgeName(app.circuit, arc.edges[0]));
  return `${nameOf(arc.src.unit)} -> ${nameOf(arc.dst.unit)}, ${plural(arc.edges.length, "edge")}`;
}

function roleTag(app: App, key: string): HTMLElement | null {
  const node = app.scene.nodes.get(key);
  const text = node && (app.state.labels[node.unit] ?? node.role);
  return text ? el("small", { class: "role" }, visible(text)) : null;
}

function overview(app: App): HTMLElement[] {
  const { circuit, scene } = app;
  const facts = el("table", { class: "facts" });
  for (const [label, text] of circuit.record) {
    facts.append(el("tr", {}, el("th", {}, visible(label)), el("td", {}, el("bdi", {}, visible(text)))));
  }
  const nodes = el("ul", { class: "edges" });
  const strongest = [...scene.nodes.values()].filter(({ kind }) => kind !== "input" && kind !== "logits")
    .sort((a, b) => b.strength - a.strength || b.into.length + b.out.length - a.into.length - a.out.length);
  const most = Math.max(...strongest.map(({ strength }) => strength), 1e-300);
  for (const node of strongest.slice(0, MAX_STRONGEST)) {
    const bar = el("span", { class: "bar" });
    bar.style.width = `${(100 * node.strength) / most}%`;
    const row = button("", () => app.choose(node.key));
    row.append(bar, el("bdi", {}, visible(node.key.replace(GROUP, ""))), roleTag(app, node.key) ?? "",
               el("span", { class: "value" }, `${node.into.length} in, ${node.out.length} out`));
    nodes.append(el("li", {}, row));
  }
  const compared = circuit.diff ? [overlapSection(circuit.diff), edgeSection(app)] : [];
  const heading = `Strongest of ${plural(strongest.length, "node")}`;
  return [
    el("header", {}, el("h2", {}, circuit.diff ? "Two circuits" : "The circuit"),
       el("p", { class: "hint" }, "Point at a node to trace the paths to and from it; click it for all that is known of it.")),
    ...compared, el("section", {}, el("h3", {}, heading), nodes),
    facts.childElementCount ? el("section", {}, el("h3", {}, circuit.diff ? "What was compared" : "How it was found"), facts) : el("section"),
  ];
}
