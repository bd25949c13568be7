// The nodes as elements of an SVG picture over the arcs: they can be focused, read out, clicked and dragged.
import { HEIGHT } from "./layout";
import type { Node, Scene } from "./scene";
import type { State } from "./state";
import { plural, significant, svg, visible } from "./text";

export class Boxes {
  private readonly elements = new Map<string, SVGGElement>();
  private readonly drawn = new WeakMap<SVGGElement, string>();

  constructor(private readonly layer: SVGGElement) {}

  element(key: string): SVGGElement | undefined { return this.elements.get(key); }

  /** `focusable`: the one node that the Tab key leads to; the arrow keys lead on from there. */
  update(scene: Scene, state: State, chosen: Set<string>, focusable: string | null): void {
    for (const [key, element] of this.elements) {
      if (!scene.nodes.has(key)) { element.remove(); this.elements.delete(key); }
    }
    const strongest = Math.max(...[...scene.nodes.values()].map(({ strength }) => strength), 1e-300);
    for (const [key, node] of scene.nodes) {
      let element = this.elements.get(key);
      if (!element) {
        element = svg("g", { class: "node", "data-node": key, role: "button" });
        this.elements.set(key, element);
        this.layer.append(element);
      }
      const share = Math.sqrt(node.strength / strongest);
      const look = JSON.stringify([node.label, node.kind, node.width, node.role, node.pinned, share.toFixed(2)]);
      if (this.drawn.get(element) !== look) {
        this.drawn.set(element, look);
        element.replaceChildren(...parts(node, share, scene.roles.indexOf(node.role)));
        element.setAttribute("class", `node ${node.kind}${node.pinned ? " pinned" : ""}`);
      }
      const moved = `translate(${node.x.toFixed(1)} ${node.y.toFixed(1)})`;
      if (element.getAttribute("transform") !== moved) element.setAttribute("transform", moved);
      for (const [name, value] of [["tabindex", key === focusable ? "0" : "-1"], ["aria-label", spoken(node, state)],
                                   ["aria-pressed", String(chosen.has(key))]]) {
        if (element.getAttribute(name) !== value) element.setAttribute(name, value);
      }
      element.classList.toggle("chosen", chosen.has(key));
    }
  }

  /** Fades the nodes that are not in `lit`; null: none. */
  light(lit: Set<string> | null): void {
    for (const [key, element] of this.elements) element.classList.toggle("dim", lit !== null && !lit.has(key));
  }
}

function parts(node: Node, share: number, role: number): SVGElement[] {
  const w = node.width, h = HEIGHT;
  const made: SVGElement[] = [
    svg("rect", { class: "box", x: -w / 2, y: -h / 2, width: w, height: h, rx: 5 }),
    svg("text", { class: "label", y: 4.2 }, node.label),
  ];
  if (role >= 0) {
    const stripe = svg("rect", { class: "stripe", x: -w / 2 + 2.5, y: -h / 2 + 3, width: 3, height: h - 6, rx: 1.5 });
    stripe.style.fill = `var(--roles-${role % 9})`;
    made.push(stripe);
  }
  if (node.kind !== "input" && node.kind !== "logits" && share > 0.02) {
    made.push(svg("rect", { class: "strength", x: -w / 2 + 6, y: h / 2 - 2.6, width: (w - 12) * share, height: 1.6 }));
  }
  if (node.pinned) made.push(svg("circle", { class: "pin", cx: w / 2 - 1, cy: -h / 2 + 1, r: 3.2 }));
  return made;
}

export function kindText(node: Node): string {
  const [layer, index] = node.unit.slice(1).split(/\.[hg]/);
  switch (node.kind) {
    case "head": return `head ${index} of layer ${layer}`;
    case "kv": return `key and value group ${index} of layer ${layer}`;
    case "mlp": return `MLP of layer ${layer}`;
    case "input": return "the embedded tokens";
    case "logits": return "the output";
    default: return `a group of ${plural(node.nodes.length, "node")}`;
  }
}

function spoken(node: Node, state: State): string {
  const label = state.labels[node.unit];
  const at = node.key.length > node.unit.length ? ` at ${visible(node.key.slice(node.unit.length + 1))}` : "";
  const said = [
    (label ? `${visible(label)}, ` : "") + node.name + at, kindText(node), node.role && `role ${visible(node.role)}`,
    `${plural(node.into.length, "edge")} in, ${node.out.length} out`,
    node.strength && `summed score ${significant(node.strength)}`, node.pinned && "pinned",
  ];
  return said.filter(Boolean).join("; ");
}
