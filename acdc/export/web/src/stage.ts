// Where the circuit is seen: arcs on canvases, boxes over them, pan and zoom, and what the pointer is at.
import { select } from "d3-selection";
import { type ZoomBehavior, zoom, zoomIdentity } from "d3-zoom";
import { Boxes } from "./boxes";
import { type Bucket, type Lit, type Transform, arcAt, bucketsOf, clear, drawBuckets, drawLinks, litArcs, plainArcs } from "./draw";
import { palette } from "./palette";
import type { Arc, Scene } from "./scene";
import type { State } from "./state";
import { el, svg, visible } from "./text";

export interface Events {
  hovered(key: string | null): void;
  clicked(key: string | null, add: boolean): void;
  moved(key: string, dx: number, dy: number, done: boolean): void;
  overArc(arc: Arc | null, x: number, y: number): void;
  looked(view: [number, number, number]): void;
}
const MANY = 1500; // arcs, of which dashes are left out while something moves
const REST = 140; // milliseconds without a change after which it is drawn in full

export class Stage {
  readonly element = el("div", { class: "stage" });
  readonly boxes: Boxes;
  at: Transform = { x: 0, y: 0, k: 1 };
  private readonly base = el("canvas", { class: "arcs", "aria-hidden": "true" });
  private readonly over = el("canvas", { class: "arcs lit", "aria-hidden": "true" });
  private readonly picture = svg("svg", { class: "boxes", role: "group", "aria-label": "Circuit: arrow keys lead from node to node" });
  private readonly back = svg("svg", { class: "back", "aria-hidden": "true" });
  private readonly world = svg("g");
  private readonly backWorld = svg("g");
  private readonly behaviour: ZoomBehavior<SVGSVGElement, unknown>;
  private scene: Scene | null = null;
  private state: State | null = null;
  private buckets: Bucket[] = [];
  private litBuckets: Bucket[] = [];
  private backDrawn = "";
  private gesture = false;
  private frame = 0;
  private settle = 0;

  constructor(private readonly events: Events) {
    this.back.append(this.backWorld);
    this.picture.append(this.world);
    this.element.append(this.back, this.base, this.over, this.picture);
    this.boxes = new Boxes(this.world);
    this.behaviour = zoom<SVGSVGElement, unknown>().scaleExtent([0.1, 8])
      .filter((event: Event) => event.type === "wheel" || !(event.target as Element).closest(".node"))
      .on("start", () => { this.gesture = true; })
      .on("zoom", (event) => this.zoomed(event.transform))
      .on("end", () => {
        this.gesture = false;
        this.schedule();
        this.events.looked([this.at.x, this.at.y, this.at.k]);
      });
    select(this.picture).call(this.behaviour).on("dblclick.zoom", null);
    this.listen();
  }

  width = 800;
  height = 600;
  /** To be called when it has been put on the page: asking for its size each time would lay out the page each time. */
  measure(): void {
    this.width = this.element.clientWidth || 800;
    this.height = this.element.clientHeight || 600;
  }

  get aspect(): number { return this.width / this.height; }

  show(scene: Scene, state: State, chosen: Set<string>, focusable: string | null): void {
    this.scene = scene;
    this.state = state;
    const colours = palette(state.theme);
    this.buckets = bucketsOf(plainArcs(scene, state, colours));
    this.boxes.update(scene, state, chosen, focusable);
    this.drawBack(scene);
    this.schedule();
  }

  light(lit: Lit | null): void {
    this.litBuckets = lit && this.state ? bucketsOf(litArcs(lit, this.state, palette(this.state.theme))) : [];
    this.element.classList.toggle("faded", lit !== null);
    this.boxes.light(lit && lit.nodes);
    this.schedule();
  }

  fit(): void {
    if (!this.scene) return;
    const { left, right, top, bottom } = this.scene.layout;
    const k = Math.min(1.6, (this.width - 24) / (right - left), (this.height - 64) / (bottom - top + 14));
    const x = (this.width - k * (left + right)) / 2, y = (this.height - 40 - k * (top + bottom + 14)) / 2;
    this.look([x, y, k]);
  }

  look([x, y, k]: [number, number, number]): void {
    select(this.picture).call(this.behaviour.transform, zoomIdentity.translate(x, y).scale(k));
  }

  zoomBy(factor: number): void { select(this.picture).call(this.behaviour.scaleBy, factor); }

  /** Moves the view so that a node is in it. */
  reveal(key: string): void {
    const node = this.scene?.nodes.get(key);
    if (!node) return;
    const x = this.at.x + this.at.k * node.x, y = this.at.y + this.at.k * node.y, margin = 40;
    const dx = x < margin ? margin - x : x > this.width - margin ? this.width - margin - x : 0;
    const dy = y < margin ? margin - y : y > this.height - margin ? this.height - margin - y : 0;
    if (dx || dy) this.look([this.at.x + dx, this.at.y + dy, this.at.k]);
  }

  focus(key: string): void {
    this.boxes.element(key)?.focus({ preventScroll: true });
    this.reveal(key);
  }

  /** Draws now what would be drawn in the next frame; `moving`: fast, and in full once nothing moves any more. */
  draw(moving = false): void {
    cancelAnimationFrame(this.frame);
    clearTimeout(this.settle);
    this.frame = 0;
    if (!this.state) return;
    const fast = moving && (this.scene?.arcs.length ?? 0) > MANY;
    if (fast) this.settle = window.setTimeout(() => this.schedule(), REST);
    const colours = palette(this.state.theme);
    const context = clear(this.base, this.width, this.height);
    drawBuckets(context, this.buckets, this.at, fast);
    if (this.scene?.links.length) drawLinks(context, this.scene.links, colours);
    drawBuckets(clear(this.over, this.width, this.height), this.litBuckets, this.at);
  }

  private schedule(): void {
    if (!this.frame) this.frame = requestAnimationFrame(() => this.draw(this.gesture));
  }

  private zoomed(transform: Transform): void {
    this.at = { x: transform.x, y: transform.y, k: transform.k };
    const moved = `translate(${this.at.x} ${this.at.y}) scale(${this.at.k})`;
    this.world.setAttribute("transform", moved);
    this.backWorld.setAttribute("transform", moved);
    this.events.overArc(null, 0, 0);
    this.schedule();
  }

  /** Bands of layers, columns of positions, and dots where nodes are that the circuit leaves out. */
  private drawBack({ layout }: Scene): void {
    const { bands, columns, ghosts, left: from, right: to } = layout;
    const look = JSON.stringify([bands, columns, ghosts, from, to]);
    if (look === this.backDrawn) return;
    this.backDrawn = look;
    const parts: SVGElement[] = [];
    layout.bands.forEach(({ layer, top, bottom }, i) => {
      if (i % 2 === 0) {
        parts.push(svg("rect", { class: "band", x: layout.left + 30, y: top, width: layout.right - layout.left - 30, height: bottom - top }));
      }
      parts.push(svg("text", { class: "layer", x: -22, y: (top + bottom) / 2 + 3.5 }, String(layer)));
    });
    if (layout.bands.length) {
      const { top } = layout.bands[layout.bands.length - 1];
      parts.push(svg("text", { class: "layer", x: -22, y: top - 8 }, "layer"));
    }
    for (const { name, left, right } of layout.columns) {
      if (!name) continue;
      if (left > 0) parts.push(svg("path", { class: "between", d: `M${left} ${layout.top}V${layout.bottom}` }));
      parts.push(svg("text", { class: "column", x: (left + right) / 2, y: layout.bottom + 8 }, visible(name)));
    }
    const dots = layout.ghosts.map(([x, y]) => `M${x.toFixed(1)} ${y.toFixed(1)}h0`).join("");
    if (dots) parts.push(svg("path", { class: "ghosts", d: dots }));
    this.backWorld.replaceChildren(...parts);
  }

  private listen(): void {
    let held: { key: string; x: number; y: number; moved: boolean; pointer: number } | null = null;
    const keyOf = (event: Event) => (event.target as Element).closest<SVGGElement>(".node")?.dataset.node ?? null;
    this.picture.addEventListener("pointerover", (event) => { if (!held) this.events.hovered(keyOf(event)); });
    this.picture.addEventListener("pointerleave", () => { this.events.hovered(null); this.events.overArc(null, 0, 0); });
    this.picture.addEventListener("focusin", (event) => this.events.hovered(keyOf(event)));
    this.picture.addEventListener("focusout", () => this.events.hovered(null));
    this.picture.addEventListener("pointerdown", (event) => {
      const key = keyOf(event);
      if (key && event.button === 0) {
        held = { key, x: event.clientX, y: event.clientY, moved: false, pointer: event.pointerId };
      }
    });
    this.picture.addEventListener("pointermove", (event) => {
      if (held) {
        if (!held.moved && Math.hypot(event.clientX - held.x, event.clientY - held.y) < 4) return;
        if (!held.moved) this.picture.setPointerCapture(held.pointer);
        held.moved = true;
        this.events.moved(held.key, (event.clientX - held.x) / this.at.k, (event.clientY - held.y) / this.at.k, false);
        return;
      }
      const box = this.element.getBoundingClientRect();
      const x = event.clientX - box.left, y = event.clientY - box.top;
      const onNode = keyOf(event) !== null || this.gesture || !this.scene;
      const arc = onNode ? null : arcAt(this.scene!, (x - this.at.x) / this.at.k, (y - this.at.y) / this.at.k, 5 / this.at.k);
      this.events.overArc(arc, x, y);
    });
    const release = (event: PointerEvent) => {
      if (held?.moved) {
        this.events.moved(held.key, (event.clientX - held.x) / this.at.k, (event.clientY - held.y) / this.at.k, true);
        this.picture.releasePointerCapture(held.pointer);
      } else if (held && event.type === "pointerup") this.events.clicked(held.key, event.shiftKey || event.ctrlKey || event.metaKey);
      held = null;
    };
    this.picture.addEventListener("pointerup", release);
    this.picture.addEventListener("pointercancel", release);
    this.picture.addEventListener("click", (event) => {
      if (event.target === this.picture && !event.defaultPrevented) this.events.clicked(null, false);
    });
    new ResizeObserver(() => { this.measure(); this.schedule(); }).observe(this.element);
  }
}
