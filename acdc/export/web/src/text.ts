// Text that came from a file, made safe to look at, and elements made without markup.

const UNSEEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}]/gu;

/** The text with what would not be seen, or would reorder what is, as its code. */
export function visible(text: string): string {
  return text.replace(UNSEEN, (char) => {
    if (char === "\n") return "↵";
    if (char === "\t") return "⇥";
    return `⟨U+${char.codePointAt(0)!.toString(16).toUpperCase().padStart(4, "0")}⟩`;
  });
}

/** A token with its spaces shown at both ends. */
export function token(text: string): string {
  return visible(text).replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length));
}

export function shortened(text: string, length: number): string {
  const chars = [...text];
  return chars.length <= length ? text : chars.slice(0, Math.max(1, length - 1)).join("") + "…";
}

const NUMBERS = new Intl.NumberFormat("en-US");

export function count(n: number): string {
  return n < 1000 ? String(n) : NUMBERS.format(n);
}

export function plural(n: number, one: string, many = `${one}s`): string {
  return `${count(n)} ${n === 1 ? one : many}`;
}

export function score(value: number): string {
  if (Number.isNaN(value)) return "not tried";
  return (value < 0 ? "−" : "+") + significant(Math.abs(value));
}

export function significant(value: number): string {
  if (value === 0) return "0";
  const text = value.toPrecision(3);
  return text.includes("e") ? Number(text).toExponential().replace("e-", "e−").replace("e+", "e") : String(Number(text));
}

export function percent(share: number): string {
  const value = 100 * share;
  return `${value >= 10 || value === 0 ? value.toFixed(1) : value.toPrecision(2)}%`;
}

type Attributes = Record<string, string | number | boolean | undefined>;
type Child = Node | string | null | undefined | false;

/** An HTML element; `text` children are text, never markup. */
export function el<K extends keyof HTMLElementTagNameMap>(
  name: K, attributes: Attributes = {}, ...children: Child[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(name);
  setAttributes(element, attributes);
  for (const child of children) if (child) element.append(child);
  return element;
}

export function svg<K extends keyof SVGElementTagNameMap>(
  name: K, attributes: Attributes = {}, ...children: Child[]
): SVGElementTagNameMap[K] {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  setAttributes(element, attributes);
  for (const child of children) if (child) element.append(child);
  return element;
}

function setAttributes(element: Element, attributes: Attributes): void {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === false) continue;
    element.setAttribute(name, value === true ? "" : String(value));
  }
}

export function button(label: string, action: () => void, attributes: Attributes = {}): HTMLButtonElement {
  const made = el("button", { type: "button", ...attributes }, label);
  made.addEventListener("click", action);
  return made;
}
