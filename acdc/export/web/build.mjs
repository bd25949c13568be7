// Builds the bundle that acdc.export.page embeds, and collects the licences of what is in it.
import { build } from "esbuild";
import { readFile, writeFile, readdir } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const outdir = process.argv[2] ?? join(here, "bundle");
const result = await build({
  absWorkingDir: here,
  entryPoints: { page: "src/main.ts" },
  outdir,
  bundle: true,
  minify: true,
  format: "iife",
  target: "es2022",
  charset: "ascii",
  legalComments: "none",
  metafile: true,
});
await build({ absWorkingDir: here, entryPoints: { page: "src/page.css" }, outdir, minify: true, charset: "ascii" });

// What is between <script> and </script> ends at the first of these, wherever it stands.
const script = await readFile(join(outdir, "page.js"), "utf8");
if (/<\/script|<!--/i.test(script)) throw new Error("the bundle holds what would end its script element");

const used = new Set();
for (const path of Object.keys(result.metafile.inputs)) {
  const match = path.match(/^node_modules\/((?:@[^/]+\/)?[^/]+)\//);
  if (match) used.add(match[1]);
}
const licences = [];
for (const name of [...used].sort()) {
  const folder = join(here, "node_modules", name);
  const { version } = JSON.parse(await readFile(join(folder, "package.json"), "utf8"));
  const file = (await readdir(folder)).find((entry) => /^licen[cs]e/i.test(entry));
  const text = (await readFile(join(folder, file), "utf8")).trim();
  if (text.includes("--")) throw new Error(`the licence of ${name} would end the comment that it stands in`);
  licences.push(`${name} ${version}\n\n${text}\n`);
}
await writeFile(join(outdir, "LICENSES.txt"), licences.join(`\n${"=".repeat(72)}\n\n`));
