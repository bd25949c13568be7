// Where the page compares two circuits: overlaps, and a table of edges with both scores.
import type { App } from "./app";
import { BOTH, type Circuit, type Diff, FIRST, SECOND, edgeName, sideNames } from "./circuit";
import type { Arc } from "./scene";
import { button, count, el, plural, score, visible } from "./text";

const MAX_ROWS = 100;

/** What the two circuits say of an arc: both scores, where it is of one edge. */
export function bothScores({ diff }: Circuit, { edges }: Arc): string {
  if (!diff) return "";
  if (edges.length > 1) return plural(edges.length, "edge");
  return diff.scores.map((scores) => score(scores[edges[0]])).join(" | ");
}

export function overlapSection({ names, overlap, notes }: Diff): HTMLElement {
  const table = el("table", { class: "numbers overlap", "data-table": "overlap" });
  ["", ...names, "both", "Jaccard", "by chance", "p"].forEach((title, i) => table.append(
    el("tr", {}, el("th", { scope: "row" }, visible(title)), ...overlap.map((level) => el(i ? "td" : "th", {}, visible(level[i]))))));
  return el("section", {}, el("h3", {}, "Overlap"), table,
            ...notes.map((note) => el("p", { class: "hint" }, visible(note))));
}

/** The edges of one side, or of all in the order in which their places differ, with both scores and places. */
export function edgeSection(app: App): HTMLElement {
  const diff = app.circuit.diff!;
  const table = el("table", { class: "numbers", "data-table": "edges" });
  const list = el("select", { "aria-label": "Edges in the table" });
  const kinds: [string, number[]][] = sideNames(diff).map((name, side) => [name, sideEdges(app.circuit, side)]);
  if (diff.places.every((places) => places.some((place) => place > 0))) kinds.push(["places changed most", movedMost(app.circuit)]);
  kinds.forEach(([name, edges], i) => list.append(el("option", { value: i }, visible(`${name} (${count(edges.length)})`))));
  const note = el("p", { class: "hint" });
  const fill = () => {
    const edges = kinds[Number(list.value)][1];
    table.replaceChildren(
      el("tr", {}, ...["Edge", ...diff.names.flatMap((name) => [name, "place"])].map((name) => el("th", { scope: "col" }, visible(name)))),
      ...edges.slice(0, MAX_ROWS).map((edge) => edgeRow(app, diff, edge)));
    note.textContent = edges.length > MAX_ROWS ? `The first ${count(MAX_ROWS)} of ${count(edges.length)}.` : "";
  };
  list.addEventListener("change", fill);
  fill();
  return el("section", {}, el("h3", {}, "Edges"), list, el("div", { class: "wide" }, table), note);
}

function sideEdges(circuit: Circuit, side: number): number[] {
  return [...circuit.keptEdges].filter((edge) => circuit.diff!.side[edge] === side);
}

/** By the ratio of the places. */
function movedMost(circuit: Circuit): number[] {
  const [first, second] = circuit.diff!.places;
  const by = (edge: number) => Math.abs(Math.log(first[edge] / second[edge]));
  return [...circuit.keptEdges].sort((a, b) => by(b) - by(a) || a - b);
}

function edgeRow(app: App, diff: Diff, edge: number): HTMLElement {
  const arc = app.scene.arcOfEdge.get(edge), name = visible(edgeName(app.circuit, edge));
  const cells = [FIRST, SECOND].flatMap((side) => {
    const place = diff.places[side - 1][edge];
    const isOut = diff.side[edge] !== BOTH && diff.side[edge] !== side;
    return [el("td", { class: isOut ? "out" : "" }, place ? score(diff.scores[side - 1][edge]) : "–"), el("td", {}, place ? count(place) : "–")];
  });
  const row = el("tr", { "data-edge": name }, el("td", {}, arc ? button(name, () => app.choose(arc.dst.key), { class: "link" }) : name), ...cells);
  row.addEventListener("pointerenter", () => { if (arc) app.lightArc(arc); });
  row.addEventListener("pointerleave", () => app.lightArc(null));
  return row;
}
