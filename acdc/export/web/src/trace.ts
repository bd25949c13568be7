// Which way leads to a node and on from it: all drawn edges that do, and the strongest ones.
import { type Circuit, K, V } from "./circuit";
import { leadsTo } from "./selection";

export interface Trace {
  /** Edges on a way from or to the node; of these, the ones on the strongest way to some node. */
  edges: Set<number>; strongest: Set<number>;
  /** The strongest way from the input through the node to the logits, and the |score| of its weakest edge. */
  main: number[]; width: number;
  nBefore: number; nAfter: number;
}

/** `nodes`: one, or the members of a group; `position`: of its box, or -1 for any. */
export function trace(circuit: Circuit, edges: number[], nodes: Set<number>, position: number): Trace {
  const P = circuit.nPositions, n = circuit.nodes.length;
  const at = (p: number) => position < 0 || p === position;
  const bySrc = [...edges].sort((a, b) => circuit.src[a] - circuit.src[b]);
  const traced: Trace = { edges: new Set(), strongest: new Set(), main: [], width: Infinity, nBefore: 0, nAfter: 0 };
  const enters = (edge: number) => nodes.has(circuit.dst[edge])
    && (at(circuit.position[edge]) || (P > 1 && isCarried(circuit, edge)));

  // On from the node: the widest way to each output.
  const forward = new Float64Array(n * P).fill(-1);
  const before = new Int32Array(n * P).fill(-1);
  const carries = P > 1 && edges.some((e) => nodes.has(circuit.dst[e]) && at(circuit.position[e]) && isCarried(circuit, e));
  for (const node of nodes) {
    const kv = circuit.nodes[node].kind === "kv";
    for (let p = 0; p < P; p++) if (!kv && (carries || at(p))) forward[node * P + p] = Infinity;
  }
  for (const edge of edges) if (nodes.has(circuit.dst[edge]) && circuit.nodes[circuit.dst[edge]].kind === "kv") {
    for (const state of leadsTo(circuit, edge)) forward[state] = Infinity;
  }
  for (const edge of bySrc) {
    const width = Math.min(forward[circuit.src[edge] * P + circuit.position[edge]], circuit.strength[edge]);
    if (width < 0) continue;
    traced.edges.add(edge);
    for (const state of leadsTo(circuit, edge)) {
      if (width > forward[state]) { forward[state] = width; before[state] = edge; }
    }
  }
  traced.nAfter = traced.edges.size;
  for (let state = 0; state < n * P; state++) if (before[state] >= 0) traced.strongest.add(before[state]);

  // Back from it: the widest way from each output to what the node reads.
  const backward = new Float64Array(n * P).fill(-1);
  const after = new Int32Array(n * P).fill(-1);
  for (const edge of bySrc.reverse()) {
    let onward = enters(edge) ? Infinity : -1;
    if (onward < 0) for (const state of leadsTo(circuit, edge)) onward = Math.max(onward, backward[state]);
    const width = Math.min(onward, circuit.strength[edge]);
    if (width < 0) continue;
    if (!traced.edges.has(edge)) traced.nBefore++;
    traced.edges.add(edge);
    const from = circuit.src[edge] * P + circuit.position[edge];
    if (width > backward[from]) { backward[from] = width; after[from] = edge; }
  }
  for (let state = 0; state < n * P; state++) if (after[state] >= 0) traced.strongest.add(after[state]);
  findMain(circuit, traced, nodes, forward, before, backward, after, enters);
  return traced;
}

function findMain(circuit: Circuit, traced: Trace, nodes: Set<number>, forward: Float64Array, before: Int32Array,
                  backward: Float64Array, after: Int32Array, enters: (edge: number) => boolean): void {
  const P = circuit.nPositions, last = circuit.nodes.length - 1;
  const first = Array.from({ length: P }, (_, p) => p).reduce((a, b) => (backward[b] > backward[a] ? b : a), 0);
  const upstream: number[] = [];
  if (!nodes.has(0)) {
    let state = first;
    while (after[state] >= 0) {
      const edge = after[state];
      upstream.push(edge);
      traced.width = Math.min(traced.width, circuit.strength[edge]);
      if (enters(edge)) break;
      state = leadsTo(circuit, edge).reduce((a, b) => (backward[b] > backward[a] ? b : a));
    }
  }
  const downstream: number[] = [];
  if (!nodes.has(last)) {
    let state = last * P + P - 1;
    while (before[state] >= 0 && forward[state] < Infinity) {
      const edge = before[state];
      downstream.push(edge);
      traced.width = Math.min(traced.width, circuit.strength[edge]);
      state = circuit.src[edge] * P + circuit.position[edge];
    }
  }
  const joined = (nodes.has(0) || upstream.length) && (nodes.has(last) || downstream.length);
  traced.main = joined ? [...upstream, ...downstream.reverse()] : [];
  if (!joined) traced.width = 0;
}

function isCarried(circuit: Circuit, edge: number): boolean {
  return circuit.letter[edge] === K || circuit.letter[edge] === V;
}
