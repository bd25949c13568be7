// Draws arcs on a canvas: few strokes, each of many arcs that look the same.
import { type Palette, sideColours } from "./palette";
import type { Arc, Link, Scene } from "./scene";
import type { State } from "./state";

const STEPS = 20; // of width and depth, from the weakest arc to the strongest

export interface Style { colour: string; width: number; alpha: number; dashed: boolean }
export interface Transform { x: number; y: number; k: number }

/** How deep the weakest arcs are: the more there are, the less. */
export function faintest(nArcs: number): number {
  return Math.min(0.4, Math.max(0.05, 3.2 / Math.sqrt(nArcs + 1)));
}

export function styleOf(arc: Arc, state: State, colours: Palette, faint: number): Style {
  const relative = Math.round(arc.relative * STEPS) / STEPS;
  const colour = state.colour === "channel" ? colours.channels[arc.letter]
    : state.colour === "side" ? sideColours(colours)[arc.side] : arc.score < 0 ? colours.hurts : colours.helps;
  return { colour, width: 0.6 + 2.8 * relative, alpha: faint + (0.95 - faint) * relative ** 1.4, dashed: arc.score < 0 };
}

/** What is lit while all else is faded: the ways from and to a node, the strongest of them, the one strongest. */
export interface Lit { arcs: Set<Arc>; strongest: Set<Arc>; main: Set<Arc>; nodes: Set<string> }
export interface Styled { arc: Arc; style: Style }

/** Unlit arcs in the order in which they are drawn. */
export function plainArcs(scene: Scene, state: State, colours: Palette): Styled[] {
  const faint = faintest(scene.arcs.length);
  return scene.arcs.map((arc) => ({ arc, style: styleOf(arc, state, colours, faint) }));
}

/** Lit arcs, to be drawn over all others: the strongest ways last. */
export function litArcs(lit: Lit, state: State, colours: Palette): Styled[] {
  const faint = faintest(lit.arcs.size);
  const rank = (arc: Arc) => (lit.main.has(arc) ? 2 : lit.strongest.has(arc) ? 1 : 0);
  return [...lit.arcs].sort((a, b) => rank(a) - rank(b) || a.relative - b.relative).map((arc) => {
    const style = styleOf(arc, state, colours, faint);
    if (rank(arc) === 2) return { arc, style: { ...style, alpha: 1, width: style.width + 1.4 } };
    if (rank(arc) === 1) return { arc, style: { ...style, alpha: Math.max(0.5, style.alpha), width: style.width + 0.3 } };
    return { arc, style: { ...style, alpha: 0.6 * style.alpha } };
  });
}

/** Paths that look the same, to be stroked together. */
export interface Bucket { style: Style; path: Path2D }

export function bucketsOf(styled: Styled[]): Bucket[] {
  const buckets = new Map<string, Bucket>();
  for (const { arc, style } of styled) {
    const key = `${style.alpha} ${style.width} ${style.colour} ${style.dashed}`;
    let bucket = buckets.get(key);
    if (!bucket) buckets.set(key, (bucket = { style, path: new Path2D() }));
    const [x0, y0, x1, y1, x2, y2, x3, y3] = arc.curve;
    bucket.path.moveTo(x0, y0);
    bucket.path.bezierCurveTo(x1, y1, x2, y2, x3, y3);
  }
  return [...buckets.values()];
}

export function clear(canvas: HTMLCanvasElement, width: number, height: number): CanvasRenderingContext2D {
  const ratio = Math.min(2, devicePixelRatio || 1);
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const context = canvas.getContext("2d")!;
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, canvas.width, canvas.height);
  return context;
}

/** `fast`: without dashes, which take most of the time. */
export function drawBuckets(context: CanvasRenderingContext2D, buckets: Bucket[], at: Transform, fast = false): void {
  const ratio = Math.min(2, devicePixelRatio || 1);
  context.setTransform(ratio * at.k, 0, 0, ratio * at.k, ratio * at.x, ratio * at.y);
  for (const { style, path } of buckets) {
    context.strokeStyle = style.colour;
    context.globalAlpha = style.alpha;
    context.lineWidth = style.width;
    context.setLineDash(style.dashed && !fast ? [5, 3] : []);
    context.stroke(path);
  }
  context.globalAlpha = 1;
  context.setLineDash([]);
}

export function drawLinks(context: CanvasRenderingContext2D, links: Link[], colours: Palette): void {
  context.strokeStyle = colours.link;
  context.lineWidth = 1;
  context.setLineDash([1.5, 3]);
  context.beginPath();
  for (const { curve: [x0, y0, x1, y1, x2, y2, x3, y3] } of links) {
    context.moveTo(x0, y0);
    context.bezierCurveTo(x1, y1, x2, y2, x3, y3);
  }
  context.stroke();
  context.setLineDash([]);
}

/** The arc nearest to a point of the drawing, if one is within reach; the strongest of those that are about as near. */
export function arcAt(scene: Scene, x: number, y: number, reach: number): Arc | null {
  let best: Arc | null = null, least = reach;
  for (let i = scene.arcs.length - 1; i >= 0; i--) {
    const arc = scene.arcs[i];
    const [x0, y0, x1, y1, x2, y2, x3, y3] = arc.curve;
    if (x < Math.min(x0, x1, x2, x3) - reach || x > Math.max(x0, x1, x2, x3) + reach) continue;
    if (y < Math.min(y0, y1, y2, y3) - reach || y > Math.max(y0, y1, y2, y3) + reach) continue;
    let [px, py] = [x0, y0];
    for (let step = 1; step <= 24; step++) {
      const t = step / 24, s = 1 - t;
      const a = s * s * s, b = 3 * s * s * t, c = 3 * s * t * t, d = t * t * t;
      const qx = a * x0 + b * x1 + c * x2 + d * x3, qy = a * y0 + b * y1 + c * y2 + d * y3;
      const distance = toSegment(x, y, px, py, qx, qy);
      if (distance < least - 0.75) { least = distance; best = arc; }
      [px, py] = [qx, qy];
    }
  }
  return best;
}

function toSegment(x: number, y: number, ax: number, ay: number, bx: number, by: number): number {
  const dx = bx - ax, dy = by - ay;
  const along = Math.max(0, Math.min(1, ((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy || 1)));
  return Math.hypot(x - ax - along * dx, y - ay - along * dy);
}
