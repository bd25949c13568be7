"""What strangers and other programs read of the project: citation, changes, templates, extras."""

import importlib.metadata
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
CFF_KEYS = {"cff-version", "message", "title", "abstract", "type", "version", "license", "authors", "keywords"}
"""Those of version 1.2.0 of the format that are used here."""
PERSON, ENTITY = {"family-names", "given-names", "orcid", "affiliation"}, {"name", "website"}
INPUTS = {"markdown", "textarea", "input", "dropdown", "checkboxes"}


def read(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_citation_has_what_its_format_asks_for():
    citation = read("CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= set(citation) <= CFF_KEYS
    assert citation["cff-version"] == "1.2.0" and citation["type"] in ("software", "dataset")
    assert citation["authors"] and all(set(author) <= PERSON or set(author) <= ENTITY for author in citation["authors"])
    assert all(isinstance(citation[key], str) for key in CFF_KEYS - {"authors", "keywords"})
    assert len(set(citation["keywords"])) == len(citation["keywords"])


def test_citation_is_of_this_package():
    citation, package = read("CITATION.cff"), importlib.metadata.metadata("acdc")
    assert str(citation["version"]) == package["Version"]
    assert citation["license"] == package["License-Expression"]
    assert citation["authors"][0]["name"] in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_changelog_keeps_its_form():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## (.+)$", text, re.M)
    assert versions[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", version) for version in versions[1:])
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", text, re.M)) <= kinds


@pytest.mark.parametrize("name", ["bug", "request"])
def test_issue_forms_are_forms(name):
    form = read(f".github/ISSUE_TEMPLATE/{name}.yml")
    assert {"name", "description", "body"} <= set(form) <= {"name", "description", "body", "labels", "title"}
    ids = [field["id"] for field in form["body"] if field["type"] != "markdown"]
    assert len(set(ids)) == len(ids)
    for field in form["body"]:
        assert field["type"] in INPUTS and set(field) <= {"type", "id", "attributes", "validations"}
        assert field["attributes"].get("label") or field["type"] == "markdown"
        assert field["type"] != "checkboxes" or all(set(option) <= {"label", "required"}
                                                    for option in field["attributes"]["options"])


def test_what_contributors_are_told_to_run_is_installed_by_the_test_extra():
    tests = {re.split(r"[>=<\[ ;]", requirement)[0] for requirement in importlib.metadata.requires("acdc")
             if 'extra == "test"' in requirement or 'extra == "docs"' in requirement}
    assert {"pytest", "pytest-xdist", "ruff", "pyright", "mkdocs", "mkdocs-material", "mkdocstrings-python"} <= tests
    template = (ROOT / ".github/pull_request_template.md").read_text(encoding="utf-8")
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for command in ("pytest -n 2 --dist loadfile", "ruff check .", "pyright", "mkdocs build --strict"):
        assert command in template and command in guide
