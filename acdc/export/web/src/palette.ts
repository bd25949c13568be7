// Colours, for light and dark: the stylesheet's variables, the canvas and the exported pictures all take them here.

export interface Palette {
  page: string; surface: string; raised: string; line: string; strong: string; text: string; soft: string; faint: string;
  accent: string; accentText: string; focus: string; band: string; ghost: string;
  head: string; kv: string; mlp: string; end: string; endText: string; nodeLine: string; nodeText: string; group: string;
  /** Into q, k, v, and into an MLP or the logits: Okabe and Ito's, as in the figures for papers. */
  channels: [string, string, string, string];
  helps: string; hurts: string; link: string;
  /** Of roles, told apart with all common forms of colour blindness (Paul Tol's "muted" and "light"). */
  roles: string[];
}

const LIGHT: Palette = {
  page: "#f6f7f9", surface: "#ffffff", raised: "#ffffff", line: "#dfe3e8", strong: "#b8c0cb", text: "#1b2430",
  soft: "#556070", faint: "#667080", accent: "#1f5fbf", accentText: "#ffffff", focus: "#1f5fbf", band: "#f3f5f8",
  ghost: "#d3d9e1", head: "#ffffff", kv: "#fff1e6", mlp: "#e6e9ee", end: "#2b3442", endText: "#ffffff",
  nodeLine: "#4a5564", nodeText: "#10161f", group: "#eef3fb",
  channels: ["#0072B2", "#D55E00", "#009E73", "#5A5A5A"], helps: "#0072B2", hurts: "#D55E00", link: "#8a8f98",
  roles: ["#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499"],
};
const DARK: Palette = {
  page: "#0f1319", surface: "#151a22", raised: "#1b222c", line: "#2a323e", strong: "#465162", text: "#e6eaf0",
  soft: "#a5afbd", faint: "#8691a1", accent: "#7db2ff", accentText: "#0b1420", focus: "#9cc4ff", band: "#1a2029",
  ghost: "#333d4a", head: "#1e2631", kv: "#3a2a1d", mlp: "#2d3643", end: "#d9dfe8", endText: "#131820",
  nodeLine: "#8d99a9", nodeText: "#f0f3f7", group: "#1f2d42",
  channels: ["#56B4E9", "#F28E4B", "#2CC79A", "#A7AEB8"], helps: "#56B4E9", hurts: "#F28E4B", link: "#79828f",
  roles: ["#8E7FE0", "#88CCEE", "#44AA99", "#3FA85B", "#B5B54A", "#DDCC77", "#E08593", "#C85B93", "#CC7AC4"],
};

/** Of edges of both circuits, of the first alone and of the second, as in the figures of differences. */
export function sideColours({ channels: [blue, orange, , grey] }: Palette): [string, string, string] {
  return [grey, blue, orange];
}

export function isDark(theme: "auto" | "light" | "dark"): boolean {
  return theme === "dark" || (theme === "auto" && matchMedia("(prefers-color-scheme: dark)").matches);
}

export function palette(theme: "auto" | "light" | "dark"): Palette {
  return isDark(theme) ? DARK : LIGHT;
}

/** Makes the palette's colours the stylesheet's variables: `nodeLine` is `--node-line`. */
export function applyPalette(theme: "auto" | "light" | "dark"): void {
  const root = document.documentElement;
  root.style.colorScheme = isDark(theme) ? "dark" : "light";
  for (const [name, value] of Object.entries(palette(theme))) {
    const variable = `--${name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`;
    if (Array.isArray(value)) value.forEach((colour, i) => root.style.setProperty(`${variable}-${i}`, colour));
    else root.style.setProperty(variable, value as string);
  }
}
