// Asks for a text, or tells the shortcuts, in a dialog over the page.
import { button, el } from "./text";

export function ask(title: string, hint: string, value: string): Promise<string | null> {
  const input = el("input", { type: "text", maxlength: 200, "aria-label": title, autocomplete: "off" });
  input.value = value;
  const form = el("form", { method: "dialog" }, el("h2", {}, title), el("p", { class: "hint" }, hint), input,
                  el("div", { class: "buttons" }, el("button", { type: "button", class: "cancel" }, "Cancel"),
                     el("button", { type: "submit", value: "ok", class: "primary" }, "OK")));
  const dialog = el("dialog", { "aria-label": title }, form);
  document.body.append(dialog);
  form.querySelector(".cancel")!.addEventListener("click", () => dialog.close(""));
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "ok" ? input.value.trim() : null);
    });
    dialog.showModal();
    input.select();
  });
}

export const SHORTCUTS: [keys: string, what: string][] = [
  ["Tab", "into the circuit; arrow keys go from node to node"],
  ["i  o", "along the strongest edge in, or out"],
  ["Enter", "open or close the node’s panel"],
  ["x", "add the node to those chosen, or take it away (also Shift+click)"],
  ["p", "pin: stays, with its edges, whatever the sliders say"],
  ["h", "hide; Shift+H shows all that is hidden"],
  ["r", "relabel"],
  ["g", "group the chosen nodes into a supernode; u takes a group apart"],
  ["/", "search"],
  ["[  ]", "fewer or more edges"],
  ["s", "back to the saved circuit"],
  ["+  −  0", "zoom in, out, fit"],
  ["Ctrl+Z", "undo; Ctrl+Shift+Z or Ctrl+Y redo"],
  ["t", "light, dark, or as the system has it"],
  ["Esc", "nothing chosen"],
  ["?", "this list"],
];

export function showShortcuts(): void {
  const list = el("dl", { class: "shortcuts" });
  for (const [keys, what] of SHORTCUTS) {
    const names = el("dt");
    for (const key of keys.split("  ")) names.append(el("kbd", {}, key));
    list.append(names, el("dd", {}, what));
  }
  const dialog = el("dialog", { "aria-label": "Keyboard shortcuts" }, el("h2", {}, "Keyboard"), list);
  dialog.append(el("div", { class: "buttons" }, button("Close", () => dialog.close(), { class: "primary" })));
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}
