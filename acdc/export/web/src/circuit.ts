// The circuit on the page: what Python put there, decoded.

export type Kind = "input" | "head" | "kv" | "mlp" | "logits";
export const LETTERS = ["q", "k", "v", ""] as const;
export const [Q, K, V, OTHER] = [0, 1, 2, 3];

export interface NodeInfo { name: string; label: string; kind: Kind; layer: number; index: number }
export interface Annotation { kind: string; text?: string; value?: number; data?: Record<string, unknown> }
export interface Curve {
  by: "magnitude" | "signed"; metric: string; full: number; empty: number; prompts: number;
  points: [n: number, metric: number, faithfulness: number][];
}
interface GraphInfo {
  layers: number; heads: number; kvHeads: number; kv: "head" | "group"; parallel: boolean; positions: string[];
  edges: number;
}
interface EncodedEdges {
  count: number; ranked: number; tried: number; positive: number; kept: number; scored: boolean;
  total: number; totalKept: number;
  src: string; dst: string; letter: string; position: string; score: string; isKept: string;
}
/** Of two circuits: their names, overlaps as rows of texts, and of each edge who keeps it, both scores and places. */
interface EncodedDiff {
  names: [string, string]; overlap: string[][]; notes: string[];
  side: string; scores: [string, string]; places: [string, string];
}
export interface PageData {
  title: string; record: [string, string][]; graph: GraphInfo; edges: EncodedEdges; faithfulness: number | null;
  curves: Curve[]; annotations: Record<string, Annotation[]>; diff: EncodedDiff | null; state: unknown;
}
export const [BOTH, FIRST, SECOND] = [0, 1, 2];

/** `side`: whether both circuits keep an edge, the first alone or the second. A score that a circuit lacks is NaN. */
export interface Diff {
  names: [string, string]; overlap: string[][]; notes: string[];
  side: Uint8Array; scores: [Float64Array, Float64Array]; places: [Uint32Array, Uint32Array];
}

/** Edges are numbered strongest first; the first `ranked` are the strongest of all that were scored. */
export interface Circuit {
  title: string; record: [string, string][]; graph: GraphInfo; faithfulness: number | null; curves: Curve[];
  annotations: Map<string, Annotation[]>;
  nodes: NodeInfo[]; nodeIndex: Map<string, number>;
  nPositions: number;
  scored: boolean; nEdges: number; ranked: number; tried: number; positive: number; kept: number;
  total: number; totalKept: number;
  src: Uint32Array; dst: Uint32Array; letter: Uint8Array; position: Uint16Array; score: Float64Array;
  isKept: Uint8Array; strength: Float64Array;
  /** Numbers of the edges of positive score, strongest first; and how many of them rank exactly. */
  positives: Uint32Array; rankedPositives: number;
  /** Numbers of the kept edges on the page. */
  keptEdges: Uint32Array;
  /** Where the page compares two circuits: then the score is that of the circuit that it matters more to. */
  diff: Diff | null;
}

export function decode(data: PageData): Circuit {
  const { graph, edges } = data;
  const nodes = nodesOf(graph);
  const score = new Float64Array(bytes(edges.score));
  const isKept = new Uint8Array(bytes(edges.isKept));
  const all = Uint32Array.from({ length: edges.count }, (_, i) => i);
  const positives = all.filter((e) => score[e] > 0 && e < edges.ranked);
  return {
    title: data.title, record: data.record, graph, faithfulness: data.faithfulness, curves: data.curves,
    annotations: new Map(Object.entries(data.annotations)),
    nodes, nodeIndex: new Map(nodes.map((node, i) => [node.name, i])),
    nPositions: Math.max(1, graph.positions.length),
    scored: edges.scored, nEdges: edges.count, ranked: edges.ranked, tried: edges.tried, positive: edges.positive,
    kept: edges.kept, total: edges.total, totalKept: edges.totalKept,
    src: new Uint32Array(bytes(edges.src)), dst: new Uint32Array(bytes(edges.dst)),
    letter: new Uint8Array(bytes(edges.letter)), position: new Uint16Array(bytes(edges.position)),
    score, isKept, strength: score.map((value) => (Number.isNaN(value) ? 0 : Math.abs(value))),
    positives, rankedPositives: positives.length,
    keptEdges: all.filter((e) => isKept[e] === 1),
    diff: data.diff && {
      ...data.diff, side: new Uint8Array(bytes(data.diff.side)),
      scores: data.diff.scores.map((text) => new Float64Array(bytes(text))) as [Float64Array, Float64Array],
      places: data.diff.places.map((text) => new Uint32Array(bytes(text))) as [Uint32Array, Uint32Array],
    },
  };
}

/** In the order of `BOTH`, `FIRST`, `SECOND`. */
export function sideNames({ names: [first, second] }: Diff): [string, string, string] {
  return ["both", `${first} only`, `${second} only`];
}

/** In the order of Python's `_nodes`: the input; per layer KV nodes, heads and MLP; the logits. */
function nodesOf(graph: GraphInfo): NodeInfo[] {
  const nodes: NodeInfo[] = [{ name: "input", label: "input", kind: "input", layer: 0, index: 0 }];
  const groups = graph.kv === "group" ? graph.kvHeads : 0;
  for (let layer = 0; layer < graph.layers; layer++) {
    for (let index = 0; index < groups; index++) {
      nodes.push({ name: `a${layer}.g${index}`, label: `${layer}.g${index}`, kind: "kv", layer, index });
    }
    for (let index = 0; index < graph.heads; index++) {
      nodes.push({ name: `a${layer}.h${index}`, label: `${layer}.${index}`, kind: "head", layer, index });
    }
    nodes.push({ name: `m${layer}`, label: `m${layer}`, kind: "mlp", layer, index: 0 });
  }
  nodes.push({ name: "logits", label: "logits", kind: "logits", layer: graph.layers, index: 0 });
  return nodes;
}

function bytes(text: string): ArrayBuffer {
  const binary = atob(text);
  const array = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) array[i] = binary.charCodeAt(i);
  return array.buffer;
}

export function channelName(circuit: Circuit, node: number, letter: number): string {
  const name = circuit.nodes[node].name;
  return letter === OTHER ? name : `${name}<${LETTERS[letter]}>`;
}

export function edgeName(circuit: Circuit, edge: number): string {
  const at = circuit.graph.positions.length ? `@${circuit.graph.positions[circuit.position[edge]]}` : "";
  const { src, dst, letter } = circuit;
  return `${circuit.nodes[src[edge]].name}->${channelName(circuit, dst[edge], letter[edge])}${at}`;
}

export function roleOf(circuit: Circuit, node: string): string {
  return circuit.annotations.get(node)?.find((annotation) => annotation.kind === "role")?.text ?? "";
}

/** The query heads that read what a KV node reads. */
export function headsOf(circuit: Circuit, node: NodeInfo): number[] {
  const size = circuit.graph.heads / circuit.graph.kvHeads;
  return Array.from({ length: size }, (_, i) => circuit.nodeIndex.get(`a${node.layer}.h${node.index * size + i}`)!);
}
