// Where each box goes: layers upward, heads by index, MLPs in a lane at the right; a column a position.
import type { Circuit, NodeInfo } from "./circuit";
import type { Group, State } from "./state";

export const HEIGHT = 20, FONT = 12;
const GAP = 8, MARGIN = 30, LANE_GAP = 16, COLUMN_PAD = 12;
const MAX_A_ROW = 16, A_ROW_IN_COLUMN = 4;

export interface Box {
  /** The name of its node or group, with @position where positions are told apart. */
  key: string;
  unit: string; position: number; kind: NodeInfo["kind"] | "group"; nodes: number[];
  label: string; x: number; y: number; width: number;
}
export interface Column { name: string; left: number; right: number }
export interface Layout {
  boxes: Map<string, Box>; bands: { layer: number; top: number; bottom: number }[]; columns: Column[];
  ghosts: [x: number, y: number][]; left: number; right: number; top: number; bottom: number;
}
export interface Place { unit: string; position: number; node: NodeInfo | null; group: Group | null; label: string }

export function widthOf(label: string): number {
  return Math.max(38, 14 + 6.9 * [...label].length);
}

export function placeKey(circuit: Circuit, unit: string, position: number): string {
  return circuit.graph.positions.length ? `${unit}@${circuit.graph.positions[position]}` : unit;
}

/** `aspect`: width over height of where it is to be shown. */
export function layOut(circuit: Circuit, state: State, places: Place[], aspect: number): Layout {
  const layers = layersOf(circuit, state, places);
  const columns = circuit.graph.positions.length ? inColumns(circuit, places, layers) : inOne(circuit, state, places, layers);
  const { levels, top, rows } = columns;
  const pitch = Math.min(62, Math.max(29, 860 / (top + 1)));
  const height = pitch * top + 2 * MARGIN;
  const narrow = columns.width(1);
  const stretch = Math.min(2.4, Math.max(1, (height * aspect) / narrow));
  const total = columns.width(stretch);
  const y = (level: number) => height - MARGIN - pitch * level;
  const layout: Layout = { boxes: new Map(), bands: [], columns: columns.spans(stretch), ghosts: [],
                           left: -46, right: total + 10, top: 0, bottom: height };
  for (const place of places) {
    const { unit, position, node, group, label } = place;
    const key = placeKey(circuit, unit, position);
    const span = layout.columns[columns.columnOf(position)];
    const box: Box = { key, unit, position, kind: group ? "group" : node!.kind, label, x: 0, y: 0, width: widthOf(label),
                       nodes: group ? group.members.map((name) => circuit.nodeIndex.get(name)!)
                                    : [circuit.nodeIndex.get(node!.name)!] };
    if (group) continue;
    if (node!.kind === "input" || node!.kind === "logits") {
      box.x = (span.left + span.right) / 2;
      box.width = span.right - span.left - 2 * COLUMN_PAD;
      box.y = y(node!.kind === "input" ? 0 : top);
    } else {
      box.x = columns.across(node!, position, stretch);
      box.y = y(levels(node!, position));
    }
    layout.boxes.set(key, box);
  }
  for (const place of places) if (place.group) placeGroup(circuit, layout, place, columns, levels, y, stretch);
  for (const { layer, low, high } of rows) {
    layout.bands.push({ layer, top: y(high) - HEIGHT / 2 - 4, bottom: y(low) + HEIGHT / 2 + 4 });
  }
  if (!circuit.graph.positions.length && state.layout === "fixed") {
    for (const node of circuit.nodes) {
      if (node.kind === "input" || node.kind === "logits" || layout.boxes.has(node.name)) continue;
      layout.ghosts.push([columns.across(node, 0, stretch), y(levels(node, 0))]);
    }
  }
  for (const box of layout.boxes.values()) {
    const by = state.moved[box.key];
    if (by) { box.x += by[0]; box.y += by[1]; }
  }
  return layout;
}

interface Arrangement {
  levels: (node: NodeInfo, position: number) => number; top: number;
  rows: { layer: number; low: number; high: number }[];
  width: (stretch: number) => number; spans: (stretch: number) => Column[]; columnOf: (position: number) => number;
  across: (node: NodeInfo, position: number, stretch: number) => number;
}

function layersOf(circuit: Circuit, state: State, places: Place[]): number[] {
  if (state.layout === "fixed") return Array.from({ length: circuit.graph.layers }, (_, i) => i);
  const present = new Set<number>();
  for (const { node, group } of places) {
    const nodes = group ? group.members.map((name) => circuit.nodes[circuit.nodeIndex.get(name)!]) : [node!];
    for (const { kind, layer } of nodes) if (kind !== "input" && kind !== "logits") present.add(layer);
  }
  return [...present].sort((a, b) => a - b);
}

/** One column: a row a layer (more, where heads are many), with KV nodes below their heads. */
function inOne(circuit: Circuit, state: State, places: Place[], layers: number[]): Arrangement {
  const { heads, kvHeads, kv, parallel } = circuit.graph;
  const fixed = state.layout === "fixed";
  const present = new Set(places.filter(({ node }) => node).map(({ node }) => node!.name));
  const level = new Map<string, number>(), slot = new Map<string, number>();
  const rows: Arrangement["rows"] = [];
  let at = 0;
  for (const layer of layers) {
    const low = at + 1;
    for (const [n, letter] of [[kv === "group" ? kvHeads : 0, "g"], [heads, "h"]] as const) {
      const names = Array.from({ length: n }, (_, i) => `a${layer}.${letter}${i}`);
      const shown = fixed ? names : names.filter((name) => present.has(name));
      const nRows = Math.ceil(shown.length / MAX_A_ROW);
      for (let row = 0; row < nRows; row++) {
        at += 1;
        const part = shown.slice(Math.floor((row * shown.length) / nRows), Math.floor(((row + 1) * shown.length) / nRows));
        spread(part.map((name) => [name, circuit.nodes[circuit.nodeIndex.get(name)!].index]), n).forEach((x, name) => {
          level.set(name, at);
          slot.set(name, x);
        });
      }
    }
    const mlp = fixed || present.has(`m${layer}`);
    if (at < low) at += 1;
    if (mlp) level.set(`m${layer}`, parallel ? at : at + 0.5);
    rows.push({ layer, low, high: mlp && !parallel ? at + 0.5 : at });
  }
  const area = (stretch: number) => stretch * Math.min(MAX_A_ROW, heads) * (40 + GAP);
  const lane = 44 + LANE_GAP;
  const width = (stretch: number) => area(stretch) + stretch * lane + 2 * COLUMN_PAD;
  return {
    levels: (node) => level.get(node.name) ?? levelNear(level, node, layers),
    top: at + 1 + (parallel ? 0 : 0.3), rows, width,
    spans: (stretch) => [{ name: "", left: 0, right: width(stretch) }], columnOf: () => 0,
    across: (node, _, stretch) => node.kind === "mlp"
      ? COLUMN_PAD + area(stretch) + (stretch * lane) / 2 + LANE_GAP / 2
      : COLUMN_PAD + area(stretch) * (slot.get(node.name) ?? (node.index + 0.5) / (node.kind === "kv" ? kvHeads : heads)),
  };
}

function levelNear(level: Map<string, number>, node: NodeInfo, layers: number[]): number {
  for (const name of [`m${node.layer}`, ...[...level.keys()].filter((key) => key.startsWith(`a${node.layer}.`))]) {
    if (level.has(name)) return level.get(name)!;
  }
  return 1 + layers.filter((layer) => layer < node.layer).length;
}

/** From 0 to 1: each where its index puts it among n, moved no more than keeps them a slot apart. */
function spread(row: [name: string, index: number][], n: number): Map<string, number> {
  const slot = 1 / Math.min(MAX_A_ROW, n);
  const x = row.map(([, index]) => (index + 0.5) / n);
  for (let i = 0; i < x.length; i++) x[i] = Math.max(x[i], i === 0 ? slot / 2 : x[i - 1] + slot);
  for (let i = x.length - 1; i >= 0; i--) x[i] = Math.min(x[i], i === x.length - 1 ? 1 - slot / 2 : x[i + 1] - slot);
  return new Map(row.map(([name], i) => [name, x[i]]));
}

/** A column a position that has places; in it, a layer's heads side by side in a few rows, its MLP at the right. */
function inColumns(circuit: Circuit, places: Place[], layers: number[]): Arrangement {
  const positions = [...new Set([...places.map(({ position }) => position), circuit.nPositions - 1])].sort((a, b) => a - b);
  const cell = (layer: number, position: number, mlp: boolean) => places
    .filter(({ node, position: at }) => node && at === position && node.layer === layer
      && (mlp ? node.kind === "mlp" : node.kind === "head" || node.kind === "kv"))
    .map(({ node }) => node!).sort((a, b) => (a.kind === b.kind ? a.index - b.index : a.kind === "kv" ? -1 : 1));
  const level = new Map<string, number>(), slot = new Map<string, [at: number, of: number]>();
  const rows: Arrangement["rows"] = [];
  const most = new Map(positions.map((position) => [position, 1]));
  let at = 0;
  for (const layer of layers) {
    let nRows = 1;
    for (const position of positions) {
      const heads = cell(layer, position, false);
      const inCell = Math.ceil(heads.length / A_ROW_IN_COLUMN);
      const each = Math.ceil(heads.length / Math.max(1, inCell));
      heads.forEach((node, i) => {
        const row = Math.floor(i / each), inRow = Math.min(each, heads.length - row * each);
        level.set(`${node.name} ${position}`, at + 1 + row);
        slot.set(`${node.name} ${position}`, [i - row * each, inRow]);
      });
      most.set(position, Math.max(most.get(position)!, each || 0));
      nRows = Math.max(nRows, inCell);
    }
    const mlp = positions.some((position) => cell(layer, position, true).length > 0);
    level.set(`m${layer}`, at + nRows + (circuit.graph.parallel ? 0 : 0.5));
    rows.push({ layer, low: at + 1, high: at + nRows + (mlp && !circuit.graph.parallel ? 0.5 : 0) });
    at += nRows;
  }
  const lane = new Map(positions.map((position) =>
    [position, places.some(({ node, position: p }) => p === position && node?.kind === "mlp") ? 44 : 0]));
  const inner = (position: number, stretch: number) => stretch * most.get(position)! * (40 + GAP);
  const widthOfColumn = (position: number, stretch: number) => Math.max(
    inner(position, stretch) + lane.get(position)! + 2 * COLUMN_PAD,
    2 * COLUMN_PAD + widthOf("logits"), 20 + 7 * Math.min(12, [...circuit.graph.positions[position]].length));
  const spans = (stretch: number) => {
    let left = 0;
    return positions.map((position) => {
      const span = { name: circuit.graph.positions[position], left, right: left + widthOfColumn(position, stretch) };
      left = span.right;
      return span;
    });
  };
  return {
    levels: (node, position) => node.kind === "mlp" ? level.get(`m${node.layer}`) ?? levelNear(level, node, layers)
      : level.get(`${node.name} ${position}`) ?? levelNear(level, node, layers),
    top: at + 1 + (circuit.graph.parallel ? 0 : 0.3), rows,
    width: (stretch) => spans(stretch).at(-1)!.right, spans,
    columnOf: (position) => positions.indexOf(position),
    across: (node, position, stretch) => {
      const span = spans(stretch)[positions.indexOf(position)];
      if (node.kind === "mlp") return span.right - COLUMN_PAD - 22;
      const [i, of] = slot.get(`${node.name} ${position}`) ?? [0, 1];
      const room = span.right - span.left - 2 * COLUMN_PAD - lane.get(position)!;
      return span.left + COLUMN_PAD + (room * (i + 0.5)) / of;
    },
  };
}

/** A group stands in the middle of where its members would, or as near as there is room. */
function placeGroup(circuit: Circuit, layout: Layout, place: Place, columns: Arrangement,
                    levels: Arrangement["levels"], y: (level: number) => number, stretch: number): void {
  const { unit, position, group, label } = place;
  const nodes = group!.members.map((name) => circuit.nodeIndex.get(name)!);
  const inner = nodes.map((node) => circuit.nodes[node]).filter(({ kind }) => kind !== "input" && kind !== "logits");
  const middle = (values: number[]) => values.reduce((a, b) => a + b, 0) / Math.max(1, values.length);
  const span = layout.columns[columns.columnOf(position)];
  const x0 = inner.length ? middle(inner.map((node) => columns.across(node, position, stretch))) : (span.left + span.right) / 2;
  const y0 = inner.length ? middle(inner.map((node) => y(levels(node, position)))) : y(nodes[0] === 0 ? 0 : columns.top);
  const width = widthOf(label) + 8;
  const isFree = (x: number, yy: number) => [...layout.boxes.values()].every((box) =>
    Math.abs(box.x - x) >= (box.width + width) / 2 + 4 || Math.abs(box.y - yy) >= HEIGHT + 4);
  let [x, yy] = [x0, y0];
  search: for (let ring = 0; ring < 40; ring++) {
    for (let step = 0; step < Math.max(1, 8 * ring); step++) {
      const angle = (2 * Math.PI * step) / Math.max(1, 8 * ring);
      const tryX = Math.min(span.right - width / 2 - 4, Math.max(span.left + width / 2 + 4, x0 + 9 * ring * Math.cos(angle)));
      const tryY = y0 + 5 * ring * Math.sin(angle);
      if (isFree(tryX, tryY)) { [x, yy] = [tryX, tryY]; break search; }
    }
  }
  const key = placeKey(circuit, unit, position);
  layout.boxes.set(key, { key, unit, position, kind: "group", nodes, label, x, y: yy, width });
}
