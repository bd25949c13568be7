// What is to be seen: boxes and the arcs between them, from the circuit and the state. Drawn by canvas, SVG and TikZ.
import { type Circuit, K, OTHER, V, headsOf, roleOf } from "./circuit";
import { type Box, HEIGHT, type Layout, type Place, layOut, placeKey } from "./layout";
import { type Selection, select } from "./selection";
import { GROUP, type State } from "./state";
import { shortened, visible } from "./text";

export type Curve = [x0: number, y0: number, x1: number, y1: number, x2: number, y2: number, x3: number, y3: number];
export interface Arc {
  src: Box; dst: Box; letter: number; position: number; side: number; edges: number[];
  /** The sum of the edges' scores; `relative`: the square root of its size over the largest one. */
  score: number; relative: number; curve: Curve;
}
export interface Link { from: Box; to: Box; curve: Curve }
export interface Node extends Box {
  role: string; pinned: boolean; name: string; into: Arc[]; out: Arc[]; strength: number;
}
export interface Scene {
  layout: Layout; nodes: Map<string, Node>; arcs: Arc[]; arcOfEdge: Map<number, Arc>; links: Link[];
  selection: Selection; inGroups: number; roles: string[]; largest: number;
}

const SLOTS = [-0.36, 0, 0.36, 0];
const MAX_LINKS = 400;

export function buildScene(circuit: Circuit, state: State, aspect: number): Scene {
  const selection = select(circuit, state);
  const unitOfNode = unitsOfNodes(circuit, state);
  const places = placesOf(circuit, state, selection, unitOfNode);
  const layout = layOut(circuit, state, [...places.values()], aspect);
  const nodes = new Map<string, Node>();
  for (const [key, box] of layout.boxes) {
    nodes.set(key, Object.assign(box, { role: box.kind === "group" ? "" : roleOf(circuit, box.unit), name: nameOf(box.unit),
                                        pinned: state.pinned.includes(box.unit), into: [], out: [], strength: 0 }));
  }
  const { arcs, inGroups } = arcsOf(circuit, selection.drawn, unitOfNode, nodes);
  let largest = 0;
  for (const arc of arcs) largest = Math.max(largest, Math.abs(arc.score) || 0);
  for (const arc of arcs) {
    arc.relative = circuit.scored ? Math.sqrt((Math.abs(arc.score) || 0) / (largest || 1)) : 0.4;
    arc.curve = curveOf(arc);
  }
  if (state.groups.length) arcs.sort((a, b) => a.relative - b.relative);
  else arcs.reverse(); // edges come strongest first
  const arcOfEdge = new Map<number, Arc>();
  for (const arc of arcs) {
    for (const edge of arc.edges) arcOfEdge.set(edge, arc);
    const src = nodes.get(arc.src.key)!, dst = nodes.get(arc.dst.key)!;
    src.out.push(arc);
    dst.into.push(arc);
    src.strength += Math.abs(arc.score) || 0;
    dst.strength += Math.abs(arc.score) || 0;
  }
  const roles = [...new Set([...nodes.values()].map(({ role }) => role).filter(Boolean))].sort();
  return { layout, nodes, arcs, arcOfEdge, links: linksOf(circuit, arcs, nodes), selection, inGroups, roles, largest };
}

export function nameOf(unit: string): string {
  return visible(unit.startsWith(GROUP) ? unit.slice(GROUP.length) : unit);
}

function unitsOfNodes(circuit: Circuit, state: State): string[] {
  const units = circuit.nodes.map(({ name }) => name);
  for (const group of state.groups) for (const member of group.members) {
    units[circuit.nodeIndex.get(member)!] = GROUP + group.name;
  }
  return units;
}

function placesOf(circuit: Circuit, state: State, selection: Selection, unitOfNode: string[]): Map<string, Place> {
  const places = new Map<string, Place>();
  const add = (node: number, position: number) => {
    const unit = unitOfNode[node], key = placeKey(circuit, unit, position);
    if (places.has(key)) return;
    const group = state.groups.find(({ name }) => GROUP + name === unit) ?? null;
    const own = state.labels[unit] ?? (group ? group.name : circuit.nodes[node].label);
    places.set(key, { unit, position, node: group ? null : circuit.nodes[node], group, label: shortened(visible(own), 22) });
  };
  const last = circuit.nPositions - 1;
  const hidden = new Set(state.hidden);
  if (!hidden.has(unitOfNode[0]) && circuit.nPositions === 1) add(0, 0);
  if (!hidden.has(unitOfNode[circuit.nodes.length - 1])) add(circuit.nodes.length - 1, last);
  for (const edge of selection.drawn) {
    add(circuit.src[edge], circuit.position[edge]);
    add(circuit.dst[edge], circuit.position[edge]);
  }
  const present = new Set([...places.values()].map(({ unit }) => unit));
  for (const unit of state.pinned) {
    const index = unitOfNode.findIndex((name) => name === unit);
    if (index >= 0 && !present.has(unit) && !hidden.has(unit)) add(index, last);
  }
  return places;
}

function arcsOf(circuit: Circuit, drawn: number[], unitOfNode: string[], nodes: Map<string, Node>):
    { arcs: Arc[]; inGroups: number } {
  const arcs: Arc[] = [];
  const merged = new Map<string, Arc>();
  let inGroups = 0;
  for (const edge of drawn) {
    const from = unitOfNode[circuit.src[edge]], to = unitOfNode[circuit.dst[edge]];
    if (from === to) { inGroups++; continue; }
    const position = circuit.position[edge], letter = circuit.letter[edge];
    const src = nodes.get(placeKey(circuit, from, position))!, dst = nodes.get(placeKey(circuit, to, position))!;
    const value = circuit.score[edge], side = circuit.diff ? circuit.diff.side[edge] : 0;
    if (from.startsWith(GROUP) || to.startsWith(GROUP)) {
      const key = `${src.key}\n${dst.key}\n${letter} ${side}`;
      const arc = merged.get(key);
      if (arc) { arc.edges.push(edge); arc.score += Number.isNaN(value) ? 0 : value; continue; }
      merged.set(key, { src, dst, letter, position, side, edges: [edge], score: value, relative: 0, curve: NOWHERE });
      arcs.push(merged.get(key)!);
    } else arcs.push({ src, dst, letter, position, side, edges: [edge], score: value, relative: 0, curve: NOWHERE });
  }
  return { arcs, inGroups };
}
const NOWHERE: Curve = [0, 0, 0, 0, 0, 0, 0, 0];

/** Upward, from the top of src to where the channel enters dst; past other boxes, where the way is straight. */
function curveOf({ src, dst, letter }: Arc): Curve {
  const isBar = (box: Box) => box.kind === "input" || box.kind === "logits";
  const slot = dst.kind === "head" || dst.kind === "kv" || dst.kind === "group" ? SLOTS[letter] * dst.width : 0;
  const inside = (box: Box, x: number) => Math.min(box.x + box.width / 2 - 8, Math.max(box.x - box.width / 2 + 8, x));
  let x0 = isBar(src) ? inside(src, dst.x) : src.x + 0.3 * src.width * Math.tanh((dst.x - src.x) / 60);
  let x3 = isBar(dst) ? inside(dst, src.x) : dst.x + slot;
  const y0 = src.y - HEIGHT / 2, y3 = dst.y + HEIGHT / 2;
  const rise = y0 - y3, long = Math.abs(rise);
  if (rise <= 0) { // moved below its src by hand, or a group that leads back: around the side
    const bulge = 40 + long / 4;
    return [x0, y0, x0 + bulge, y0 - 40, x3 + bulge, y3 + 40, x3, y3];
  }
  const lift = 0.45 * rise;
  let bow = 0;
  if (src.kind === "mlp" && dst.kind === "mlp") { // along the lane at the right
    x0 = src.x + src.width / 2 - 3;
    x3 = dst.x + dst.width / 2 - 3;
    bow = 10 + 3.2 * Math.sqrt(long);
  } else if (Math.abs(x3 - x0) < 26 && long > 1.5 * HEIGHT) {
    const side = hash(src.key, dst.key) % 2 ? 1 : -1;
    bow = side * (26 + Math.min(16, long / 40));
    if (isBar(src)) x0 = inside(src, x0 + bow * 0.8);
    if (isBar(dst)) x3 = inside(dst, x3 + bow * 0.8);
  }
  return [x0, y0, x0 + bow, y0 - lift, x3 + bow, y3 + lift, x3, y3];
}

function hash(...texts: string[]): number {
  let value = 7;
  for (const text of texts) for (let i = 0; i < text.length; i++) value = (value * 31 + text.charCodeAt(i)) | 0;
  return Math.abs(value);
}

/** Without an edge: from a KV node to its heads, and, by attention, from where a head reads to where it is read. */
function linksOf(circuit: Circuit, arcs: Arc[], nodes: Map<string, Node>): Link[] {
  const pairs = new Map<string, [Node, Node]>();
  const add = (from: Node | undefined, to: Node | undefined) => {
    if (from && to && from !== to) pairs.set(`${from.key}\n${to.key}`, [from, to]);
  };
  const written = new Map<string, Set<number>>();
  for (const { src, position } of arcs) written.set(src.unit, (written.get(src.unit) ?? new Set()).add(position));
  for (const { dst, letter, position } of arcs) {
    if (letter === OTHER) continue;
    const from = nodes.get(dst.key)!;
    if (dst.kind === "kv") {
      for (const head of headsOf(circuit, circuit.nodes[dst.nodes[0]])) {
        const name = circuit.nodes[head].name;
        if (circuit.nPositions === 1) add(from, nodes.get(name));
        else for (const p of written.get(name) ?? []) add(from, nodes.get(placeKey(circuit, name, p)));
      }
    } else if (circuit.nPositions > 1 && (letter === K || letter === V)) {
      for (const p of written.get(dst.unit) ?? []) if (p !== position) add(from, nodes.get(placeKey(circuit, dst.unit, p)));
    }
  }
  if (pairs.size > MAX_LINKS) return [];
  return [...pairs.values()].map(([from, to]) => ({ from, to, curve: linkCurve(from, to) }));
}

function linkCurve(from: Box, to: Box): Curve {
  if (Math.abs(from.y - to.y) > HEIGHT) {
    return [from.x, from.y, from.x, (from.y + to.y) / 2, to.x, (from.y + to.y) / 2, to.x, to.y];
  }
  const side = to.x > from.x ? 1 : -1;
  const x0 = from.x + (side * from.width) / 2, x3 = to.x - (side * to.width) / 2;
  const bow = -6 - Math.min(10, Math.abs(x3 - x0) / 30);
  return [x0, from.y, x0 + (x3 - x0) * 0.3, from.y + bow, x0 + (x3 - x0) * 0.7, to.y + bow, x3, to.y];
}
