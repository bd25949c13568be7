// What the reader has changed: one plain record that is undone, kept in the address, saved and read back.
import type { Circuit } from "./circuit";

export interface Group { name: string; members: string[] }
export interface State {
  /** The circuit: the first n edges by a ranking; null: the edges of the saved circuit. */
  by: "magnitude" | "signed"; n: number | null;
  channels: string; onPaths: boolean; onlyPinned: boolean;
  /** Of two circuits that are compared: which edges are shown, of both (b), of the first (1) or second (2) alone. */
  sides: string;
  layout: "fixed" | "compact"; colour: "channel" | "sign" | "side"; theme: "auto" | "light" | "dark";
  pinned: string[]; hidden: string[]; labels: Record<string, string>; groups: Group[];
  moved: Record<string, [number, number]>;
  selected: string | null;
  /** Shift right and down, and zoom; null: all of the circuit. */
  view: [number, number, number] | null;
}
export const GROUP = "group:";
export const SIDES = "b12";
const FORMAT = "acdc-view";
const CHOICES: Record<string, readonly string[]> = {
  by: ["magnitude", "signed"], layout: ["fixed", "compact"], colour: ["channel", "sign", "side"],
  theme: ["auto", "light", "dark"],
};
const MAX_TEXT = 200;

export function initialState(circuit: Circuit): State {
  const small = circuit.graph.layers <= 48 && circuit.graph.heads <= 16 && !circuit.graph.positions.length;
  return {
    by: savedAs(circuit)?.by ?? "magnitude", n: null, channels: "qkvm", onPaths: false, onlyPinned: false, sides: SIDES,
    layout: small ? "fixed" : "compact", colour: circuit.diff ? "side" : "channel", theme: "auto",
    pinned: [], hidden: [], labels: {}, groups: [], moved: {}, selected: null, view: null,
  };
}

/** The ranking whose first edges the saved circuit is, if it is one. */
export function savedAs(circuit: Circuit): { by: "magnitude" | "signed"; n: number } | null {
  const n = circuit.kept;
  if (!circuit.scored || n === 0 || n !== circuit.keptEdges.length) return null;
  if (n <= circuit.ranked && circuit.keptEdges[n - 1] === n - 1) return { by: "magnitude", n };
  const signed = n <= circuit.rankedPositives && circuit.keptEdges.every((e, i) => e === circuit.positives[i]);
  return signed ? { by: "signed", n } : null;
}

/** The state as a record without what is as at the start; what `acdc view --state` reads. */
export function toRecord(state: State, circuit: Circuit): Record<string, unknown> {
  const start = initialState(circuit) as unknown as Record<string, unknown>;
  const changed = Object.entries(state).filter(([key, value]) => JSON.stringify(value) !== JSON.stringify(start[key]));
  return { format: FORMAT, version: 1, ...Object.fromEntries(changed) };
}

/** The state that a record describes, and what in it could not be used. */
export function fromRecord(record: unknown, circuit: Circuit): { state: State; problems: string[] } {
  const state = initialState(circuit);
  const problems: string[] = [];
  if (!isObject(record) || record.format !== FORMAT || record.version !== 1) {
    return { state, problems: ["it is not a state of this page"] };
  }
  const groups = groupsOf(record.groups, circuit, problems);
  const isUnit = (unit: unknown): unit is string =>
    typeof unit === "string" && (circuit.nodeIndex.has(unit) || groups.some((group) => GROUP + group.name === unit));
  const isPlace = (place: unknown): place is string => typeof place === "string" && isUnit(unitOf(place, circuit));
  state.groups = groups;
  for (const [key, value] of Object.entries(record)) {
    const isOfDiff = key === "sides" || (key === "colour" && value === "side");
    if (isOfDiff && !circuit.diff) problems.push(`${key} was left out`);
    else if (key === "sides" && typeof value === "string" && /^[b12]*$/.test(value)) state.sides = value;
    else if (key in CHOICES && CHOICES[key].includes(value as string)) Object.assign(state, { [key]: value });
    else if ((key === "onPaths" || key === "onlyPinned") && typeof value === "boolean") state[key] = value;
    else if (key === "n" && (value === null || (Number.isInteger(value) && (value as number) >= 0))) {
      state.n = value === null || !circuit.scored ? null : Math.min(value as number, circuit.ranked);
    } else if (key === "channels" && typeof value === "string" && /^[qkvm]*$/.test(value)) state.channels = value;
    else if ((key === "pinned" || key === "hidden") && Array.isArray(value)) state[key] = unique(value.filter(isUnit));
    else if (key === "labels" && isObject(value)) {
      state.labels = Object.fromEntries(Object.entries(value).filter(([unit, text]) => isUnit(unit) && isText(text))) as
        Record<string, string>;
    } else if (key === "moved" && isObject(value)) {
      state.moved = Object.fromEntries(Object.entries(value).filter(([place, by]) => isPlace(place) && isNumbers(by, 2))) as
        Record<string, [number, number]>;
    } else if (key === "selected" && (value === null || isPlace(value))) state.selected = value;
    else if (key === "view" && isNumbers(value, 3) && value[2] > 0) state.view = value as [number, number, number];
    else if (!["format", "version", "groups"].includes(key)) problems.push(`${key} was left out`);
  }
  return { state, problems };
}

/** The node or group of a place: what stands before @position. */
export function unitOf(place: string, circuit: Circuit): string {
  const at = place.lastIndexOf("@");
  return at > 0 && circuit.graph.positions.includes(place.slice(at + 1)) ? place.slice(0, at) : place;
}

function groupsOf(value: unknown, circuit: Circuit, problems: string[]): Group[] {
  if (!Array.isArray(value)) return [];
  const groups: Group[] = [];
  const taken = new Set<string>();
  for (const group of value) {
    if (!isObject(group) || !isText(group.name) || !Array.isArray(group.members)
        || groups.some((other) => other.name === group.name)) {
      problems.push("a group was left out");
      continue;
    }
    const members = group.members.filter((node): node is string => circuit.nodeIndex.has(node) && !taken.has(node));
    members.forEach((node) => taken.add(node));
    if (members.length) groups.push({ name: group.name, members });
  }
  return groups;
}

export function toHash(state: State, circuit: Circuit): string {
  const { format: _, version: __, ...changed } = toRecord(state, circuit);
  return Object.keys(changed).length ? `#${encodeURIComponent(JSON.stringify(changed))}` : "";
}

export function fromHash(hash: string, circuit: Circuit): { state: State; problems: string[] } | null {
  if (hash.length < 2) return null;
  try {
    return fromRecord({ ...JSON.parse(decodeURIComponent(hash.slice(1))), format: FORMAT, version: 1 }, circuit);
  } catch {
    return { state: initialState(circuit), problems: ["the address holds no state"] };
  }
}

/** What was done, to go back and forth in. What is looked at (view, selection, theme) is not part of it. */
export class History {
  private past: State[] = [];
  private future: State[] = [];
  private last = "";

  /** To be called with the state before a change; changes under one `name` in a row count as one. */
  record(before: State, name: string): void {
    if (name && name === this.last && this.past.length) return;
    this.past.push(structuredClone(before));
    if (this.past.length > 500) this.past.shift();
    this.future = [];
    this.last = name;
  }
  settle(): void { this.last = ""; }
  undo(now: State): State | null { return this.step(this.past, this.future, now); }
  redo(now: State): State | null { return this.step(this.future, this.past, now); }
  get canUndo(): boolean { return this.past.length > 0; }
  get canRedo(): boolean { return this.future.length > 0; }

  private step(from: State[], to: State[], now: State): State | null {
    const state = from.pop();
    if (!state) return null;
    to.push(structuredClone(now));
    this.last = "";
    return { ...state, view: now.view, theme: now.theme };
  }
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
function isText(value: unknown): value is string {
  return typeof value === "string" && value.length > 0 && value.length <= MAX_TEXT;
}
function isNumbers(value: unknown, n: number): value is number[] {
  return Array.isArray(value) && value.length === n && value.every((x) => typeof x === "number" && Number.isFinite(x));
}
function unique(values: string[]): string[] { return [...new Set(values)]; }
