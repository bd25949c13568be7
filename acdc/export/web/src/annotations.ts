// What is known of a node, in its panel: each kind of annotation in the way it is read best.
import type { Annotation } from "./circuit";
import { count, el, significant, token, visible } from "./text";

type Data = Record<string, unknown>;
const MAX_TOKENS = 48, MAX_ROWS = 12, MAX_EXAMPLES = 5;
const HEADINGS: Record<string, string> = {
  role: "Role", evidence: "Evidence", attention: "Attention", lens: "Lens", tokens: "Tokens", probe: "Probes",
  feature: "Features",
};
const ORDER = Object.keys(HEADINGS);

export function annotationSections(annotations: Annotation[]): HTMLElement[] {
  const kinds = [...new Set(annotations.map(({ kind }) => kind))].sort((a, b) => rank(a) - rank(b));
  return kinds.map((kind) => {
    const section = el("section", { class: "notes", "data-kind": kind }, el("h3", {}, HEADINGS[kind] ?? visible(kind)));
    for (const annotation of annotations.filter((other) => other.kind === kind)) section.append(shown(annotation));
    return section;
  });
}

function rank(kind: string): number {
  const at = ORDER.indexOf(kind);
  return at < 0 ? ORDER.length : at;
}

function shown({ kind, text, value, data = {} }: Annotation): HTMLElement {
  const box = el("div", { class: "note" });
  if (text || value !== undefined) {
    box.append(el("p", {}, text ? el("bdi", {}, visible(text)) : null,
                  value !== undefined ? el("span", { class: "value" }, probed(kind, value, data)) : null));
  }
  const rest = new Set(Object.keys(data));
  const take = (name: string) => { rest.delete(name); return data[name]; };
  if (kind === "attention" && isMatrix(data.weights) && isTexts(data.tokens)) {
    box.append(attention(take("tokens") as string[], take("weights") as number[][]));
  }
  if (kind === "probe") ["low", "high"].forEach((name) => { if (typeof data[name] === "number") rest.delete(name); });
  for (const [name, heading] of [["promotes", "promotes"], ["suppresses", "suppresses"]]) {
    if (isPairs(data[name])) box.append(tokenList(heading, take(name) as [string, number][]));
  }
  if (kind === "feature" && Array.isArray(data.examples)) {
    for (const example of (take("examples") as unknown[]).slice(0, MAX_EXAMPLES)) {
      const { tokens, activations } = (example ?? {}) as Data;
      if (isTexts(tokens) && isNumbers(activations)) box.append(exampleText(tokens, activations));
    }
  }
  const rows = [...rest].slice(0, MAX_ROWS).map((name) =>
    el("tr", {}, el("th", {}, visible(name)), el("td", {}, el("bdi", {}, said(data[name])))));
  if (rows.length) box.append(el("table", { class: "facts" }, ...rows));
  return box;
}

function probed(kind: string, value: number, data: Data): string {
  const interval = kind === "probe" && typeof data.low === "number" && typeof data.high === "number"
    ? ` (${significant(data.low)} to ${significant(data.high)})` : "";
  return (value < 0 ? "−" : "") + significant(Math.abs(value)) + interval;
}

/** Rows look at columns: as in a causal model, what is right of the diagonal is empty. */
function attention(tokens: string[], weights: number[][]): HTMLElement {
  const shownTokens = tokens.slice(0, MAX_TOKENS);
  const table = el("table", { class: "attention" });
  table.append(el("caption", {}, "from a token (row) to the ones it looks at (columns)"));
  const head = el("tr", {}, el("th"));
  for (const text of shownTokens) head.append(el("th", { class: "to", scope: "col" }, el("span", {}, token(text))));
  table.append(head);
  shownTokens.forEach((text, row) => {
    const line = el("tr", {}, el("th", { scope: "row" }, token(text)));
    shownTokens.forEach((other, column) => {
      const weight = weights[row]?.[column] ?? 0;
      const cell = el("td", { title: `${token(text)} to ${token(other)}: ${weight.toFixed(3)}` });
      cell.style.setProperty("--weight", String(Math.max(0, Math.min(1, weight))));
      line.append(cell);
    });
    table.append(line);
  });
  const more = tokens.length - shownTokens.length;
  return el("div", { class: "wide" }, table, more > 0 && el("p", { class: "hint" }, `${count(more)} more tokens are left out`));
}

function tokenList(heading: string, pairs: [string, number][]): HTMLElement {
  const most = Math.max(...pairs.map(([, value]) => Math.abs(value)), 1e-300);
  const list = el("ul", { class: "tokens" });
  for (const [text, value] of pairs.slice(0, MAX_ROWS)) {
    const bar = el("span", { class: "bar" });
    bar.style.width = `${(100 * Math.abs(value)) / most}%`;
    list.append(el("li", {}, bar, el("bdi", { class: "token" }, token(text)),
                   el("span", { class: "value" }, (value < 0 ? "−" : "") + significant(Math.abs(value)))));
  }
  return el("div", {}, el("h4", {}, heading), list);
}

function exampleText(tokens: string[], activations: number[]): HTMLElement {
  const most = Math.max(...activations.map(Math.abs), 1e-300);
  const line = el("p", { class: "example" });
  tokens.slice(0, 4 * MAX_TOKENS).forEach((text, i) => {
    const value = activations[i] ?? 0;
    const span = el("bdi", { title: significant(Math.abs(value)) }, visible(text));
    span.style.setProperty("--weight", String(Math.abs(value) / most));
    line.append(span);
  });
  return line;
}

function said(value: unknown): string {
  if (typeof value === "number") return (value < 0 ? "−" : "") + significant(Math.abs(value));
  const text = typeof value === "string" ? value : JSON.stringify(value) ?? "";
  return visible(text.length > 300 ? `${text.slice(0, 300)}…` : text);
}

function isTexts(value: unknown): value is string[] {
  return Array.isArray(value) && value.every((item) => typeof item === "string");
}
function isNumbers(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((item) => typeof item === "number");
}
function isMatrix(value: unknown): value is number[][] { return Array.isArray(value) && value.every(isNumbers); }
function isPairs(value: unknown): value is [string, number][] {
  return Array.isArray(value) && value.length > 0 && value.every((pair) =>
    Array.isArray(pair) && pair.length === 2 && typeof pair[0] === "string" && typeof pair[1] === "number");
}
