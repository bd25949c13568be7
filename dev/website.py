"""What the documentation site shows besides the pages in docs/: a hook of mkdocs.

- the reference: a page for each package, from the docstrings of its modules
- the tutorial notebook as a page
- files that live elsewhere in the repository: contributing, changes, measured results

Links from pages to such files are led to where the site has them; a link to source code, which the site does not have,
becomes plain text.
"""

import base64
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
ELSEWHERE = {"CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md", "SECURITY.md": "SECURITY.md",
             "benchmarks/results": "results"}
"""What is shown though it is not in docs/: its path in the repository, and on the site."""
NOTEBOOK = Path("docs/tutorial.ipynb")
NOT_PUBLIC = ("acdc/commands", "acdc/grid", "acdc/cli.py", "acdc/arguments.py")
LINK = re.compile(r"\[(?P<words>[^\]]*)\]\((?P<target>[^):#]+)(?P<heading>#[^)]*)?\)")
FENCE = re.compile(r"^(```.*?^```$)", re.M | re.S)


def on_config(config: Any) -> Any:
    """The navigation's entry `reference` becomes the list of the reference's pages."""
    for entry in config.nav:
        if isinstance(entry, dict) and entry.get("Reference") == "reference":
            entry["Reference"] = [{package: f"reference/{package}.md"} for package in packages()]
    return config


def on_files(files: Files, config: Any) -> Files:
    for package, modules in packages().items():
        text = "\n\n".join([f"# {package}", *(f"::: {module}" for module in modules)])
        files.append(File.generated(config, f"reference/{package}.md", content=text))
    for name, content in notebook_page(json.loads((ROOT / NOTEBOOK).read_text(encoding="utf-8"))).items():
        files.append(File.generated(config, name, content=content))
    for source, target in ELSEWHERE.items():
        inside = sorted(path for path in (ROOT / source).rglob("*") if path.is_file())
        for path in inside or [ROOT / source]:
            name = (Path(target) / path.relative_to(ROOT / source)).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    if page.file.abs_src_path is None:
        return markdown
    source, place = Path(page.file.abs_src_path).parent, Path(page.file.src_uri).parent
    parts = FENCE.split(markdown)
    return "".join(part if part.startswith("```") else LINK.sub(lambda link: led(link, source, place), part)
                   for part in parts)


def packages() -> dict[str, list[str]]:
    """The public packages, each with its modules that have something to show."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "acdc").rglob("*.py")):
        name = path.relative_to(ROOT)
        if path.stem != "__init__" and not name.as_posix().startswith(NOT_PUBLIC):
            found.setdefault(".".join(name.parent.parts), []).append(".".join(name.with_suffix("").parts))
    return found


def notebook_page(notebook: dict[str, Any]) -> dict[str, str | bytes]:
    """`tutorial.md` and its pictures: each cell, and under it what is stored as its output."""
    lines, pictures = [], {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        lines.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            if text := _text(output):
                lines.append(f"```text\n{text.rstrip()}\n```")
            for picture in _pictures(output):
                name = f"tutorial_{len(pictures) + 1}.png"
                pictures[name] = picture
                lines.append(f"![Figure {len(pictures)} of the tutorial]({name})")
    return {"tutorial.md": "\n\n".join(lines), **pictures}


def _text(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    return "".join(output.get("text", "") if "image/png" in data or not data else data.get("text/plain", ""))


def _pictures(output: dict[str, Any]) -> Iterator[bytes]:
    if "image/png" in (data := output.get("data", {})):
        yield base64.b64decode("".join(data["image/png"]))


def led(link: re.Match[str], source: Path, place: Path) -> str:
    """A link of a file in the folder `source`, shown on the site in `place`, as the site needs it."""
    target = (source / link["target"]).resolve().relative_to(ROOT)
    if target == NOTEBOOK:
        target = target.with_suffix(".md")
    for folder, there in {"docs": ".", **ELSEWHERE}.items():
        if target.is_relative_to(folder):
            to = os.path.relpath(there / target.relative_to(folder), place)
            return f"[{link['words']}]({to}{link['heading'] or ''})"
    return link["words"]
