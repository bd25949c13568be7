// Faithfulness by circuit size, beside the sliders: what was measured, and where the circuit on the page stands.
import { scaleLinear, scaleLog } from "d3-scale";
import type { Circuit, Curve } from "./circuit";
import type { State } from "./state";
import { count, svg } from "./text";

const WIDTH = 262, HEIGHT = 132, LEFT = 30, RIGHT = 8, TOP = 10, BOTTOM = 24;

/** What is known of the faithfulness of the circuit, as a number if it is one, and in words. */
export function faithfulnessOf(circuit: Circuit, state: State, n: number): { value: number | null; text: string } {
  if (state.n === null && circuit.faithfulness !== null) {
    return { value: circuit.faithfulness, text: "measured for this circuit" };
  }
  const curve = curveFor(circuit, state);
  if (!curve) return { value: null, text: "not measured: acdc discover writes the curve with the circuit" };
  const points = curve.points;
  const exact = points.find(([size]) => size === n);
  if (exact) return { value: exact[2], text: `measured on ${count(curve.prompts)} prompts` };
  const after = points.findIndex(([size]) => size > n);
  if (after === 0) return { value: null, text: `not measured below ${count(points[0][0])} edges` };
  if (after < 0) return { value: null, text: "not measured" };
  const [[n0, , f0], [n1, , f1]] = [points[after - 1], points[after]];
  const share = (Math.log(n) - Math.log(n0)) / (Math.log(n1) - Math.log(n0));
  return { value: f0 + share * (f1 - f0), text: `between ${f0.toFixed(2)} at ${count(n0)} and ${f1.toFixed(2)} at ${count(n1)}` };
}

export function isMeasured(circuit: Circuit, state: State, n: number): boolean {
  return (state.n === null && circuit.faithfulness !== null)
    || (curveFor(circuit, state)?.points.some(([size]) => size === n) ?? false);
}

function curveFor(circuit: Circuit, state: State): Curve | undefined {
  return circuit.curves.find(({ by, points }) => by === state.by && points.length > 0);
}

/** The chart; a click on a point chooses its size. */
export function curveChart(circuit: Circuit, state: State, n: number, choose: (n: number) => void): SVGSVGElement | null {
  const curves = circuit.curves.filter(({ points }) => points.some(([size]) => size > 0));
  if (!curves.length) return null;
  const own = curves.find(({ by }) => by === state.by) ?? curves[0];
  const sizes = curves.flatMap(({ points }) => points.map(([size]) => size)).filter((size) => size > 0);
  const x = scaleLog([Math.min(...sizes, Math.max(1, n)), Math.max(...sizes)], [LEFT, WIDTH - RIGHT]).clamp(true);
  const values = own.points.map(([, , f]) => f);
  const y = scaleLinear([Math.min(0, ...values), Math.max(1.1, ...values)], [HEIGHT - BOTTOM, TOP]).nice(4);
  const chart = svg("svg", { class: "curve", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "group", "aria-label": spoken(own) });
  for (const tick of y.ticks(4)) {
    chart.append(svg("path", { class: tick === 1 ? "grid one" : "grid", d: `M${LEFT} ${y(tick)}H${WIDTH - RIGHT}` }),
                 svg("text", { class: "tick", x: LEFT - 5, y: y(tick) + 3, "text-anchor": "end" }, String(tick)));
  }
  for (const power of [1, 10, 100, 1000, 10_000, 100_000, 1_000_000, 10_000_000]) {
    if (power < x.domain()[0] || power > x.domain()[1]) continue;
    const text = power >= 1e6 ? `${power / 1e6}M` : power >= 1000 ? `${power / 1000}k` : String(power);
    chart.append(svg("text", { class: "tick", x: x(power), y: HEIGHT - 10, "text-anchor": "middle" }, text));
  }
  chart.append(svg("text", { class: "tick", x: LEFT, y: HEIGHT, "text-anchor": "start" }, "edges kept"));
  for (const curve of [...curves.filter((other) => other !== own), own]) {
    const points = curve.points.filter(([size]) => size > 0).map(([size, , f]) => [x(size), y(f)]);
    const inside = points.map(([px, py]) => [px, Math.min(HEIGHT - BOTTOM, Math.max(TOP - 6, py))]);
    chart.append(svg("path", { class: curve === own ? "line" : "line other", d: `M${inside.map((p) => p.join(" ")).join("L")}` }));
  }
  const at = Math.max(x.domain()[0], n);
  chart.append(svg("path", { class: "marker", d: `M${x(at)} ${TOP}V${HEIGHT - BOTTOM}` }));
  for (const [size, , f] of own.points) {
    if (size <= 0) continue;
    const dot = svg("circle", { class: size === n ? "point here" : "point", cx: x(size), cy: y(f), r: size === n ? 4 : 3 },
                    svg("title", {}, `${count(size)} edges: f = ${f.toFixed(3)}`));
    dot.addEventListener("click", () => choose(size));
    chart.append(dot);
  }
  return chart;
}

function spoken(curve: Curve): string {
  const said = curve.points.map(([size, , f]) => `${f.toFixed(2)} at ${count(size)} edges`).join(", ");
  return `Faithfulness by circuit size, ranked by ${curve.by === "signed" ? "signed score" : "size of the score"}: ${said}`;
}
