"""Does circuit-tracer's page show what acdc writes: no error in the browser's console, every node and link there?

    acdc export circuits/mine --to attribution-graph --out mine.json
    pip download --no-deps circuit-tracer==0.5.0 && unzip circuit_tracer-*.whl -d circuit-tracer
    npm install d3@7 d3-jetpack@2.3.0 dagre@0.8.5 pako@2.1.0
    python benchmarks/peers/circuit_tracer_page.py mine.json circuit-tracer --libraries node_modules

It serves their page and the file on this machine, opens it in chromium (`pip install playwright`, and chromium on the
path), clicks a node, and saves a picture. Without `--libraries` the page loads them from the web. Only files that it
asks for and no graph needs (a reload client, a reader of arrays, the examples of features) may be missing.
"""

import argparse
import functools
import http.server
import json
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

ASSETS = ("circuit_tracer/frontend/assets", "frontend/assets", ".")
NOT_NEEDED = ("hotserver", "npy_v0", "favicon", "/features/")
LIBRARIES = {"d3": "d3/dist/d3.min.js", "dagre": "dagre/dist/dagre.min.js", "pako": "pako/dist/pako.min.js"}
# The page's own jetpack extends d3 7. npm's asks for d3 4, so it gets d3 7 with what that lacks of d3 4; and its charts
# get a method that draws their axes.
JETPACK = """(() => {
    const of = (run, require) => { const exports = {}; run(exports, {exports}, require); return exports; };
    const collection = of((exports, module, require) => { %s });
    const d3_4 = {...d3, ...collection, get event() { return window.event; }};
    const jetpack = of((exports, module, require) => { %s }, () => d3_4);
    const conventions = options => {
        const c = jetpack.conventions(options);
        c.drawAxis = svg => jetpack.drawAxis({...c, svg: svg ?? c.svg});
        return c;
    };
    Object.assign(d3, jetpack, {conventions});
})();"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A server of files that prints nothing."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        return


def site(graph: Path, source: Path, folder: Path) -> str:
    """Their page with the graph's data in `folder`; the graph's slug."""
    assets = next(source / name for name in ASSETS if (source / name / "index.html").is_file())
    shutil.copytree(assets, folder, dirs_exist_ok=True)
    data = json.loads(graph.read_text())
    slug = data["metadata"]["slug"]
    for name in ("data", "graph_data"):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / f"{slug}.json").write_text(json.dumps(data))
    (folder / "data" / "graph-metadata.json").write_text(json.dumps({"graphs": [data["metadata"]]}))
    return slug


def look(url: str, libraries: Path | None, picture: Path) -> tuple[list[str], dict[str, int]]:
    """What went wrong in the page, and how many nodes and links it holds; a picture of it is saved."""
    from playwright.sync_api import sync_playwright

    errors: list[str] = []
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1500, "height": 1000})
        page.on("pageerror", lambda error: errors.append(f"{error}\n{error.stack or ''}"[:600]))
        page.on("console", lambda said: errors.append(f"{said.text} {said.location.get('url', '')}")
                if said.type == "error" and not any(name in said.location.get("url", "") for name in NOT_NEEDED)
                else None)
        bodies = dict.fromkeys(NOT_NEEDED[:2], "") | (from_npm(libraries) if libraries else {})
        for name, body in bodies.items():
            page.route(f"**/{name}*.js", functools.partial(_answer, body))
        page.goto(url, wait_until="load")
        try:
            page.wait_for_selector(".link-graph .node", state="attached", timeout=10_000)
        except Exception as error:
            page.screenshot(path=str(picture))
            raise SystemExit("the page shows no node:\n" + "\n".join(errors)) from error
        page.wait_for_timeout(1000)
        page.locator(".link-graph .node").last.click(force=True)
        page.wait_for_timeout(1000)
        counts = page.evaluate("""() => ({nodes: d3.selectAll('.link-graph .node').data().length,
            links: new Set(d3.selectAll('.link-graph .node').data().flatMap(
                d => [...(d.sourceLinks ?? []), ...(d.targetLinks ?? [])])).size})""")
        page.screenshot(path=str(picture))
        browser.close()
    return errors, counts


def from_npm(folder: Path) -> dict[str, str]:
    """The libraries of the page, by the start of the file's name that it asks for."""
    jetpack = JETPACK % tuple((folder / name).read_text() for name in (
        "d3-collection/dist/d3-collection.min.js", "d3-jetpack/build/d3-jetpack.cjs"))
    return {name: (folder / file).read_text() for name, file in LIBRARIES.items()} | {"jetpack": jetpack}


def _answer(body: str, route: Any) -> None:
    route.fulfill(body=body, content_type="text/javascript")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("graph", type=Path)
    parser.add_argument("source", type=Path)
    parser.add_argument("--libraries", type=Path)
    parser.add_argument("--picture", type=Path, default=Path("page.png"))
    given = parser.parse_args()
    data = json.loads(given.graph.read_text())
    with tempfile.TemporaryDirectory() as name:
        slug = site(given.graph, given.source, Path(name))
        handler = functools.partial(Quiet, directory=name)
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            errors, counts = look(f"http://127.0.0.1:{server.server_port}/index.html?slug={slug}", given.libraries,
                                  given.picture)
            server.shutdown()
    print(f"{counts['nodes']} of {len(data['nodes'])} nodes and {counts['links']} of {len(data['links'])} links are "
          f"in the page; {len(errors)} errors; picture: {given.picture}")
    if errors or counts != {"nodes": len(data["nodes"]), "links": len(data["links"])}:
        raise SystemExit("\n".join(errors) or "the page does not hold what the file does")


if __name__ == "__main__":
    main()
