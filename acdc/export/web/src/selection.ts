// Which edges are the circuit, and which of them are drawn.
import { type Circuit, K, LETTERS, V, headsOf } from "./circuit";
import { SIDES, type State } from "./state";

/** More edges than these are not drawn: no eye tells them apart. */
export const MAX_DRAWN = 5000;

export interface Selection {
  /** Edges of the circuit on this page, strongest first; `nCircuit`: how many it has in all. */
  circuit: Uint32Array; nCircuit: number;
  /** Those that are drawn, and how many are not, by why. */
  drawn: number[]; offPage: number; byChannel: number; bySide: number; offPath: number; hiddenEnds: number; unpinned: number;
  overMost: number;
  /** |score| of the weakest edge of the circuit. */
  weakest: number;
}

export function circuitEdges(circuit: Circuit, state: State): Uint32Array {
  if (state.n === null || !circuit.scored) return circuit.keptEdges;
  return state.by === "magnitude" ? all(circuit).subarray(0, state.n) : circuit.positives.subarray(0, state.n);
}

export function mostEdges(circuit: Circuit, by: State["by"]): number {
  return by === "magnitude" ? circuit.ranked : circuit.rankedPositives;
}

const sequences = new WeakMap<Circuit, Uint32Array>();
function all(circuit: Circuit): Uint32Array {
  let sequence = sequences.get(circuit);
  if (!sequence) sequences.set(circuit, (sequence = Uint32Array.from({ length: circuit.ranked }, (_, i) => i)));
  return sequence;
}

export function select(circuit: Circuit, state: State): Selection {
  const edges = circuitEdges(circuit, state);
  const nCircuit = state.n === null ? circuit.kept : edges.length;
  const hidden = units(state.hidden, circuit, state);
  const pinned = units(state.pinned, circuit, state);
  const letters = LETTERS.map((letter) => state.channels.includes(letter || "m"));
  const useful = state.onPaths ? onPaths(circuit, edges) : null;
  const sides = [...SIDES].map((side) => state.sides.includes(side));
  const counts = { byChannel: 0, bySide: 0, offPath: 0, hiddenEnds: 0, unpinned: 0, overMost: 0 };
  const drawn: number[] = [];
  for (const edge of edges) {
    const src = circuit.src[edge], dst = circuit.dst[edge];
    if (hidden.has(src) || hidden.has(dst)) counts.hiddenEnds++;
    else if (!letters[circuit.letter[edge]]) counts.byChannel++;
    else if (circuit.diff && !sides[circuit.diff.side[edge]]) counts.bySide++;
    else if (useful && !useful.has(edge)) counts.offPath++;
    else if (state.onlyPinned && !(pinned.has(src) && pinned.has(dst))) counts.unpinned++;
    else if (drawn.length >= MAX_DRAWN && !(pinned.has(src) || pinned.has(dst))) counts.overMost++;
    else drawn.push(edge);
  }
  const weakest = edges.length ? circuit.strength[edges[edges.length - 1]] : 0;
  return { circuit: edges, nCircuit, drawn, offPage: nCircuit - edges.length, ...counts, weakest };
}

/** The nodes that names of nodes and groups stand for. */
export function units(names: string[], circuit: Circuit, state: State): Set<number> {
  const found = new Set<number>();
  for (const name of names) {
    const group = state.groups.find((candidate) => `group:${candidate.name}` === name);
    for (const node of group ? group.members : [name]) {
      const index = circuit.nodeIndex.get(node);
      if (index !== undefined) found.add(index);
    }
  }
  return found;
}

/** The edges on a path from the input to the logits; through a k or v, attention leads to any position. */
function onPaths(circuit: Circuit, edges: Uint32Array): Set<number> {
  const P = circuit.nPositions;
  const bySrc = [...edges].sort((a, b) => circuit.src[a] - circuit.src[b]);
  const fromInput = new Uint8Array(circuit.nodes.length * P);
  fromInput.fill(1, 0, P);
  for (const edge of bySrc) {
    if (!fromInput[circuit.src[edge] * P + circuit.position[edge]]) continue;
    for (const state of leadsTo(circuit, edge)) fromInput[state] = 1;
  }
  const toLogits = new Uint8Array(circuit.nodes.length * P);
  toLogits.fill(1, (circuit.nodes.length - 1) * P);
  const useful = new Set<number>();
  for (const edge of bySrc.reverse()) {
    const from = circuit.src[edge] * P + circuit.position[edge];
    if (!leadsTo(circuit, edge).some((state) => toLogits[state])) continue;
    toLogits[from] = 1;
    if (fromInput[from]) useful.add(edge);
  }
  return useful;
}

/** The outputs (node * positions + position) that change with what an edge carries. */
export function leadsTo(circuit: Circuit, edge: number): number[] {
  const P = circuit.nPositions;
  const dst = circuit.dst[edge], letter = circuit.letter[edge];
  const readers = circuit.nodes[dst].kind === "kv" ? headsOf(circuit, circuit.nodes[dst]) : [dst];
  const anywhere = (letter === K || letter === V) && P > 1;
  return readers.flatMap((reader) =>
    anywhere ? Array.from({ length: P }, (_, p) => reader * P + p) : [reader * P + circuit.position[edge]]);
}
