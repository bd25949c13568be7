// Starts the page.
import { App } from "./app";
import { type PageData, decode } from "./circuit";

const data = JSON.parse(document.getElementById("data")!.textContent!) as PageData;
const app = new App(decode(data), data.state);
document.documentElement.dataset.ready = "true";
// What is drawn, in numbers, for scripts that drive the page.
Object.assign(window, { acdcSummary: () => app.summary() });
