// What is seen, as a file: SVG, PNG and TikZ of the same boxes and arcs, cut at the same edges.
import { type Lit, type Style, type Styled, type Transform, litArcs, plainArcs } from "./draw";
import { FONT, HEIGHT } from "./layout";
import type { Palette } from "./palette";
import type { Curve, Node, Scene } from "./scene";
import type { State } from "./state";
import { visible } from "./text";

export interface View {
  scene: Scene; state: State; colours: Palette; at: Transform; width: number; height: number; title: string; note: string;
  lit: Lit | null; legend: [text: string, style: Style | null][];
}
const FADED = 0.12, FADED_NODE = 0.3; // as in the stylesheet

function styledArcs(view: View): Styled[] {
  const { lit, scene, state, colours } = view;
  const plain = plainArcs(scene, state, colours);
  const all = lit === null ? plain : [
    ...plain.map(({ arc, style }) => ({ arc, style: { ...style, alpha: style.alpha * FADED } })),
    ...litArcs(lit, state, colours),
  ];
  return all.filter(({ arc }) => isSeen(arc.curve, view));
}

function corners(view: View): { left: number; top: number; right: number; bottom: number } {
  const { at, width, height } = view;
  return { left: -at.x / at.k, top: -at.y / at.k, right: (width - at.x) / at.k, bottom: (height - at.y) / at.k };
}

function isSeen([x0, y0, x1, y1, x2, y2, x3, y3]: Curve, view: View): boolean {
  const { left, top, right, bottom } = corners(view);
  return Math.max(x0, x1, x2, x3) >= left && Math.min(x0, x1, x2, x3) <= right
    && Math.max(y0, y1, y2, y3) >= top && Math.min(y0, y1, y2, y3) <= bottom;
}

function seenNodes(view: View): Node[] {
  const { left, top, right, bottom } = corners(view);
  return [...view.scene.nodes.values()].filter((node) => node.x + node.width / 2 >= left && node.x - node.width / 2 <= right
    && node.y + HEIGHT / 2 >= top && node.y - HEIGHT / 2 <= bottom);
}

function fillOf(node: Node, colours: Palette): string {
  const fills = { head: colours.head, kv: colours.kv, mlp: colours.mlp, group: colours.group, input: colours.end, logits: colours.end };
  return fills[node.kind];
}

/** The picture as SVG, in pixels of the screen. */
export function toSvg(view: View): string {
  const { at, width, height, colours, scene } = view;
  const parts: string[] = [];
  const rect = (x: number, y: number, w: number, h: number, more: string) =>
    `<rect x="${round(x)}" y="${round(y)}" width="${round(w)}" height="${round(h)}" ${more}/>`;
  for (const [i, band] of scene.layout.bands.entries()) {
    if (i % 2 === 0) {
      parts.push(rect(scene.layout.left + 30, band.top, scene.layout.right - scene.layout.left - 30, band.bottom - band.top,
                      `fill="${colours.band}"`));
    }
    parts.push(`<text x="-22" y="${round((band.top + band.bottom) / 2 + 3.5)}" text-anchor="end" font-size="10" fill="${colours.faint}">${band.layer}</text>`);
  }
  for (const column of scene.layout.columns.filter(({ name }) => name)) {
    if (column.left > 0) parts.push(`<path d="M${round(column.left)} 0V${round(scene.layout.bottom)}" stroke="${colours.line}"/>`);
    parts.push(`<text x="${round((column.left + column.right) / 2)}" y="${round(scene.layout.bottom + 8)}" text-anchor="middle" font-size="11" font-weight="600" fill="${colours.text}">${escaped(column.name)}</text>`);
  }
  if (scene.layout.ghosts.length) {
    const dots = scene.layout.ghosts.map(([x, y]) => `M${round(x)} ${round(y)}h0`).join("");
    parts.push(`<path d="${dots}" stroke="${colours.ghost}" stroke-width="3.5" stroke-linecap="round" fill="none"/>`);
  }
  for (const { curve } of scene.links) {
    parts.push(`<path d="${pathOf(curve)}" fill="none" stroke="${colours.link}" stroke-dasharray="1.5 3"${view.lit ? ` opacity="${FADED_NODE}"` : ""}/>`);
  }
  for (const { arc, style } of styledArcs(view)) {
    parts.push(`<path d="${pathOf(arc.curve)}" fill="none" stroke="${style.colour}" stroke-width="${round(style.width)}" stroke-opacity="${style.alpha.toFixed(3)}"${style.dashed ? ' stroke-dasharray="5 3"' : ""}/>`);
  }
  const strongest = Math.max(...[...scene.nodes.values()].map(({ strength }) => strength), 1e-300);
  for (const node of seenNodes(view)) {
    const { x, y, width: w } = node, end = node.kind === "input" || node.kind === "logits";
    const inner = [
      rect(x - w / 2, y - HEIGHT / 2, w, HEIGHT, `rx="5" fill="${fillOf(node, colours)}" stroke="${colours.nodeLine}" stroke-width="${node.kind === "group" ? 1.8 : 0.9}"`),
      `<text x="${round(x)}" y="${round(y + 4.2)}" text-anchor="middle" font-size="${FONT}" fill="${end ? colours.endText : colours.nodeText}">${escaped(node.label)}</text>`,
    ];
    const role = scene.roles.indexOf(node.role);
    if (role >= 0) inner.push(rect(x - w / 2 + 2.5, y - HEIGHT / 2 + 3, 3, HEIGHT - 6, `rx="1.5" fill="${colours.roles[role % 9]}"`));
    const share = Math.sqrt(node.strength / strongest);
    if (!end && share > 0.02) inner.push(rect(x - w / 2 + 6, y + HEIGHT / 2 - 2.6, (w - 12) * share, 1.6, `fill="${colours.faint}"`));
    if (node.pinned) inner.push(`<circle cx="${round(x + w / 2 - 1)}" cy="${round(y - HEIGHT / 2 + 1)}" r="3.2" fill="${colours.accent}"/>`);
    const dim = view.lit && !view.lit.nodes.has(node.key);
    parts.push(`<g data-node="${escaped(node.key)}"${dim ? ` opacity="${FADED_NODE}"` : ""}>${inner.join("")}</g>`);
  }
  const legend = legendSvg(view);
  return `<?xml version="1.0" encoding="UTF-8"?>
<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" font-family="system-ui, 'Helvetica Neue', Arial, sans-serif">
<title>${escaped(view.title)}</title><desc>${escaped(view.note)}</desc>
<rect width="${width}" height="${height}" fill="${colours.surface}"/>
<g transform="translate(${round(at.x)} ${round(at.y)}) scale(${at.k.toFixed(4)})">
${parts.join("\n")}
</g>
${legend}
</svg>
`;
}

function legendSvg(view: View): string {
  const { colours, height } = view;
  let x = 14;
  const entries = view.legend.map(([text, style]) => {
    const line = style ? `<path d="M${x} ${height - 16}h22" stroke="${style.colour}" stroke-width="${round(style.width)}"${style.dashed ? ' stroke-dasharray="5 3"' : ""} fill="none"/>` : "";
    const made = `${line}<text x="${x + (style ? 28 : 0)}" y="${height - 12}" font-size="11" fill="${colours.soft}">${escaped(text)}</text>`;
    x += (style ? 28 : 0) + 6.2 * text.length + 20;
    return made;
  });
  return `<g>${entries.join("")}</g>`;
}

/** The same picture in pixels, `scale` to each of the screen's. */
export async function toPng(view: View, scale = 2): Promise<Blob> {
  const url = URL.createObjectURL(new Blob([toSvg(view)], { type: "image/svg+xml" }));
  try {
    const image = new Image();
    image.src = url;
    await image.decode();
    const canvas = document.createElement("canvas");
    canvas.width = view.width * scale;
    canvas.height = view.height * scale;
    canvas.getContext("2d")!.drawImage(image, 0, 0, canvas.width, canvas.height);
    return await new Promise((resolve, reject) => canvas.toBlob((blob) =>
      blob ? resolve(blob) : reject(new Error("the browser made no picture")), "image/png"));
  } finally {
    URL.revokeObjectURL(url);
  }
}

/** The picture as a TikZ document for pdflatex, 12 cm wide or 20 cm high at most. */
export function toTikz(view: View): string {
  const { left, top, right, bottom } = corners(view);
  const unit = Math.min(12 / (right - left), 20 / (bottom - top));
  const points = unit * 28.45; // per unit of the drawing
  const names = new Map<string, string>();
  const colour = (hex: string) => {
    if (!names.has(hex)) names.set(hex, `acdc${String.fromCharCode(65 + Math.floor(names.size / 26))}${String.fromCharCode(65 + (names.size % 26))}`);
    return names.get(hex)!;
  };
  const at = (x: number, y: number) => `(${((x - left) * unit).toFixed(3)},${((bottom - y) * unit).toFixed(3)})`;
  const size = (value: number) => `${Math.max(0.1, value * points).toFixed(2)}pt`;
  const font = (px: number) => `inner sep=0, font=\\sffamily, scale=${((px * points) / 10).toFixed(3)}`;
  const curve = ([x0, y0, x1, y1, x2, y2, x3, y3]: Curve) => `${at(x0, y0)} .. controls ${at(x1, y1)} and ${at(x2, y2)} .. ${at(x3, y3)}`;
  const lines: string[] = [];
  const { colours, scene } = view;
  for (const [i, band] of scene.layout.bands.entries()) {
    if (i % 2 === 0) lines.push(`\\fill[${colour(colours.band)}] ${at(scene.layout.left + 30, band.bottom)} rectangle ${at(scene.layout.right, band.top)};`);
    lines.push(`\\node[anchor=east, text=${colour(colours.faint)}, ${font(10)}] at ${at(-22, (band.top + band.bottom) / 2)} {${band.layer}};`);
  }
  for (const column of scene.layout.columns.filter(({ name }) => name)) {
    if (column.left > 0) lines.push(`\\draw[${colour(colours.line)}, line width=${size(1)}] ${at(column.left, 0)} -- ${at(column.left, scene.layout.bottom)};`);
    lines.push(`\\node[text=${colour(colours.text)}, ${font(11)}] at ${at((column.left + column.right) / 2, scene.layout.bottom + 4)} {${latex(column.name)}};`);
  }
  for (const [x, y] of scene.layout.ghosts) lines.push(`\\fill[${colour(colours.ghost)}] ${at(x, y)} circle[radius=${size(1.75)}];`);
  for (const link of scene.links) {
    lines.push(`\\draw[${colour(colours.link)}, line width=${size(1)}, densely dotted${view.lit ? `, opacity=${FADED_NODE}` : ""}] ${curve(link.curve)};`);
  }
  for (const { arc, style } of styledArcs(view)) {
    const dash = style.dashed ? `, dash pattern=on ${size(5)} off ${size(3)}` : "";
    lines.push(`\\draw[${colour(style.colour)}, line width=${size(style.width)}, opacity=${style.alpha.toFixed(3)}${dash}] ${curve(arc.curve)};`);
  }
  for (const node of seenNodes(view)) {
    const end = node.kind === "input" || node.kind === "logits";
    const dim = view.lit && !view.lit.nodes.has(node.key) ? `, opacity=${FADED_NODE}` : "";
    lines.push(`\\filldraw[draw=${colour(colours.nodeLine)}, fill=${colour(fillOf(node, colours))}, line width=${size(node.kind === "group" ? 1.8 : 0.9)}, `
      + `rounded corners=${size(5)}${dim}] ${at(node.x - node.width / 2, node.y + HEIGHT / 2)} rectangle ${at(node.x + node.width / 2, node.y - HEIGHT / 2)};`);
    lines.push(`\\node[text=${colour(end ? colours.endText : colours.nodeText)}, ${font(FONT)}${dim}] at ${at(node.x, node.y)} {${latex(node.label)}};`);
    const role = scene.roles.indexOf(node.role), x = node.x - node.width / 2 + 2.5;
    if (role >= 0) lines.push(`\\fill[${colour(colours.roles[role % 9])}${dim}] ${at(x, node.y + HEIGHT / 2 - 3)} rectangle ${at(x + 3, node.y - HEIGHT / 2 + 3)};`);
    if (node.pinned) lines.push(`\\fill[${colour(colours.accent)}] ${at(node.x + node.width / 2 - 1, node.y - HEIGHT / 2 + 1)} circle[radius=${size(3.2)}];`);
  }
  const definitions = [...names].map(([hex, name]) => `\\definecolor{${name}}{HTML}{${hex.slice(1).toUpperCase()}}`);
  return `% ${latexComment(view.title)}
% ${latexComment(view.note)}
\\documentclass{article}
\\usepackage{tikz}
\\usepackage[papersize={${((right - left) * unit + 0.2).toFixed(2)}cm,${((bottom - top) * unit + 0.2).toFixed(2)}cm}, margin=0.1cm]{geometry}
\\pagestyle{empty}
\\parindent0pt
\\topskip0pt
${definitions.join("\n")}
\\begin{document}
\\begin{tikzpicture}
\\clip ${at(left, bottom)} rectangle ${at(right, top)};
${lines.join("\n")}
\\end{tikzpicture}
\\end{document}
`;
}

const LATEX: Record<string, string> = {
  "\\": "\\textbackslash{}", "{": "\\{", "}": "\\}", "$": "\\$", "&": "\\&", "#": "\\#", "%": "\\%", "_": "\\_",
  "^": "\\textasciicircum{}", "~": "\\textasciitilde{}", "<": "\\textless{}", ">": "\\textgreater{}",
  "…": "\\ldots{}", "⟨": "\\textless{}", "⟩": "\\textgreater{}", "|": "\\textbar{}", "\"": "''",
};

/** Text that pdflatex sets as it is; what its fonts lack is a question mark. */
function latex(text: string): string {
  return [...visible(text)].map((char) => LATEX[char] ?? (/[ -~]/.test(char) ? char : "?")).join("");
}

function latexComment(text: string): string {
  return visible(text).replace(/[^ -~]/g, "?");
}

function pathOf(curve: Curve): string {
  const [x0, y0, x1, y1, x2, y2, x3, y3] = curve.map(round);
  return `M${x0} ${y0}C${x1} ${y1} ${x2} ${y2} ${x3} ${y3}`;
}

function escaped(text: string): string {
  return visible(text).replace(/[<>&"']/g, (char) => `&#${char.charCodeAt(0)};`);
}

function round(value: number): number { return Math.round(value * 100) / 100; }
