"""The documentation site: it builds without a warning, shows every page, and loads nothing from elsewhere."""

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("mkdocs")

import website  # noqa: E402

from acdc.discovery import METHODS  # noqa: E402

ROOT = Path(__file__).parents[1]
LOADING = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "object": "data"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def build(config: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(folder)]
    return subprocess.run(command, cwd=config.parent, capture_output=True, text=True, check=False)


class Page(HTMLParser):
    """What a page loads, where it leads, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        if tag in LOADING and (target := known.get(LOADING[tag])):
            self.loaded.append(target)
        if tag == "a":
            self.links.append(known.get("href") or "")

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    return {path.relative_to(site).as_posix(): Page(path.read_text(encoding="utf-8"))
            for path in site.rglob("*.html")}


def test_every_document_is_a_page_and_in_the_navigation(site, pages):
    documents = {f"{path.stem}.html" for path in (ROOT / "docs").glob("*.md")}
    others = {"tutorial.html", "results/index.html", "CONTRIBUTING.html", "SECURITY.html", "CHANGELOG.html"}
    assert documents | others <= set(pages)
    assert documents | others <= {"index.html", *pages["404.html"].links, *pages["index.html"].links}


def test_no_page_is_in_the_navigation_twice():
    named = re.findall(r"^ +- (?:.*: )?(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.M)
    assert "index.md" in named and len(set(named)) == len(named)


def test_nothing_is_loaded_from_elsewhere(site, pages):
    assert not [(name, target) for name, page in pages.items() for target in page.loaded
                if re.match(r"(\w+:)?//", target)]
    assert not [path for path in site.rglob("*.css") if re.search(r"url\(\W?(https?:)?//|@import", path.read_text())]


def test_what_pages_load_is_there(site, pages):
    for name, page in pages.items():
        if name != "404.html":  # whose paths are from the root of a server
            for target in page.loaded:
                assert (site / name).parent.joinpath(target.partition("?")[0]).exists(), (name, target)


def test_the_reference_holds_public_functions_and_their_docstrings(pages):
    text = " ".join(pages["reference/acdc.discovery.html"].text.split())
    assert not [name for name, method in METHODS.items() if f"{method.__name__}(" not in text]
    assert "s(edge) = L(without it) - L(with it), mean over prompts" in text
    assert set(website.packages()) >= {"acdc", "acdc.discovery", "acdc.evaluation", "acdc.export", "acdc.annotation"}
    assert not [name for modules in website.packages().values() for name in modules if ".commands" in name]


def test_the_tutorial_shows_code_outputs_and_figure(site, pages):
    assert "from acdc.models import load_model" in pages["tutorial.html"].text
    assert "30 layers of 9 heads" in pages["tutorial.html"].text
    assert (site / "tutorial_1.png").read_bytes().startswith(b"\x89PNG")


def test_links_to_nowhere_and_a_forgotten_page_fail_the_build(tmp_path):
    for name in ("docs", "dev", "acdc", "benchmarks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
    for name in ("mkdocs.yml", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "docs" / "forgotten.md").write_text("[a](gone.md) [b](glossary.md#gone)", encoding="utf-8")
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode != 0
    assert "a link 'gone.md'" in done.stderr and "does not contain an anchor '#gone'" in done.stderr
    assert re.search(r"not included in the \"nav\" configuration:\s+- forgotten.md\n", done.stderr)


def test_lists_and_tables_have_a_blank_line_before_them():
    """Without one, the site shows them as text, though GitHub does not."""
    fence = re.compile(r"^```.*?^```$", re.M | re.S)
    start = re.compile(r"^(?!#|[-*] |\d+\. |\||[ \t]|\s*$)[^\n]*\n(?=- |1\. |\|)", re.M)
    for path in [*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")]:
        assert not start.findall(fence.sub("", path.read_text(encoding="utf-8"))), path.name
