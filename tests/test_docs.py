"""The documents say what is so: their Python runs and prints what they say, their commands exist, their links lead
somewhere.

A text block right under a Python block is what that block prints, up to line breaks and decimals. A Python block with
the comment `<!-- not run: why -->` right above it is not run; only what it imports from acdc must exist. The other
blocks of a document run in order, like the cells of a notebook, in an empty folder with `prompts.jsonl`, and find
`model`, `tokenizer`, `task` and `batches`. Packaged models are replaced by a tiny one.

Every command of `acdc` in a document is one that its parser takes. In the documents of `FOLLOWED`, which a new user
follows from top to bottom, the commands are run too, in order with the Python blocks; where they begin with circuits
that are there, `GIVEN` says which.
"""

import ast
import importlib.util
import json
import re
import shlex
from argparse import ArgumentParser
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from io import StringIO
from itertools import zip_longest
from pathlib import Path

import pytest
import torch
from tiny_tokenizer import tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

import acdc.models
from acdc.ablation import ABLATIONS
from acdc.architectures import ARCHITECTURES
from acdc.arguments import build_parser
from acdc.cli import main
from acdc.commands import COMMANDS
from acdc.discovery import METHODS
from acdc.export.formats import FORMATS
from acdc.metrics import METRICS
from acdc.models import load_model
from acdc.packaged import PACKAGED
from acdc.tasks import TASKS, load_task

ROOT = Path(__file__).parents[1]
DOCUMENTS = {path.name: path for path in (*sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*.md")))}
FOLLOWED = ("quickstart.md", "adding_a_task.md", "adding_a_method.md", "adding_a_model.md", "adding_a_format.md",
            "export.md", "annotation.md", "tasks.md")
GIVEN = {"export.md": ("mine", "eap", "eap_ig"), "annotation.md": ("mine",)}
BLOCK = re.compile(r"^(?P<mark><!-- not run: [^\n]+ -->\n)?```(?P<language>[^\n`]*)\n(?P<text>.*?)^```$", re.M | re.S)
LINK = re.compile(r"\]\((?P<file>[^)#:]*)(?:#(?P<heading>[^)]+))?\)")  # those with a colon leave the repository
SPAN = re.compile(r"`(acdc [a-z][^`]*)`")
OPTION = re.compile(r"(?<![^\s])--[a-z][a-z-]*")
MODULE = re.compile(r"python -m (acdc[\w.]*)")
DECIMAL = re.compile(r"\d+\.\d+(e[+-]?\d+)?|\d+e[+-]?\d+")


@dataclass(frozen=True)
class Block:
    """Of Python or of commands (`sh`). `prints`: the text block right under it."""

    line: int
    text: str
    run: bool
    prints: str | None
    language: str = "python"


def blocks_of(document: str) -> list[Block]:
    found = list(BLOCK.finditer(document))
    blocks = []
    for match, after in zip_longest(found, found[1:]):
        if match["language"] in ("python", "sh"):
            shown = after and after["language"] == "text" and not document[match.end() : after.start()].strip()
            line = document.count("\n", 0, match.start("text"))
            blocks.append(Block(line, match["text"], not match["mark"], after["text"] if after and shown else None,
                                match["language"]))
    return blocks


def commands_of(block: Block) -> list[list[str]]:
    """The arguments of each command of acdc in a block."""
    lines = block.text.replace("\\\n", " ").splitlines()
    parts = [part.strip() for line in lines for part in shlex.join(shlex.split(line, comments=True)).split("'&&'")]
    return [shlex.split(part)[1:] for part in parts if re.match(r"([\w./]+/)?acdc(\s|$)", part)]


def without_decimals(text: str) -> str:
    return DECIMAL.sub("#", " ".join(text.split()))


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama whose first layer takes away from the logits of every word that it has read: it completes IOI, as
    the subject is read once more than the indirect object."""
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=6, num_attention_heads=4,
                         num_key_value_heads=4, intermediate_size=40, max_position_embeddings=64,
                         tie_word_embeddings=True)
    generator = torch.Generator().manual_seed(0)
    hf = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for weight in hf.parameters():
            if weight.dim() > 1:
                weight.copy_(0.05 * torch.randn(weight.shape, generator=generator))
        hf.model.embed_tokens.weight *= 20
        reads_all = hf.model.layers[0].self_attn
        reads_all.v_proj.weight.copy_(torch.eye(32))
        reads_all.o_proj.weight.copy_(-4 * torch.eye(32))
    folder = tmp_path_factory.mktemp("packaged")
    hf.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def names(document, packaged, tmp_path, monkeypatch):
    """What a document finds: the real model in README, a tiny one elsewhere; what it registers is forgotten again."""
    monkeypatch.chdir(tmp_path)
    if document != "README.md":
        monkeypatch.setattr(acdc.models, "packaged_model", lambda name: packaged)
    model = load_model(next(iter(PACKAGED)))
    task = load_task("ioi", model.tokenizer, n=8)
    lines = [json.dumps(asdict(example)) for example in task.examples]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for i, circuit in enumerate(GIVEN.get(document, ())):
        out = ["--out", f"circuits/{circuit}"]
        assert main(["discover", "--prompts", "4", "--resamples", "0", "--calibrate", "0", "--seed", str(i), *out]) == 0
    tables = [(table, dict(table)) for table in (ARCHITECTURES, FORMATS, METHODS, METRICS, TASKS)]
    yield {"model": model, "tokenizer": model.tokenizer, "task": task, "batches": task.batches(model.tokenizer)}
    for table, before in tables:
        table.clear()
        table.update(before)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_runs_and_prints_what_is_shown(document, names):
    path = DOCUMENTS[document]
    for block in blocks_of(path.read_text(encoding="utf-8")):
        if block.language == "sh":
            for arguments in commands_of(block) if document in FOLLOWED and block.run else ():
                assert main(arguments) == 0, f"{path}:{block.line}: acdc {shlex.join(arguments)}"
        elif not block.run:
            imports = [node for node in ast.parse(block.text).body if isinstance(node, (ast.Import, ast.ImportFrom))]
            ours = [ast.unparse(node) for node in imports if "acdc" in ast.unparse(node)]
            exec("\n".join(ours), {})
        else:
            printed = StringIO()
            with redirect_stdout(printed):
                exec(compile("\n" * block.line + block.text, str(path), "exec"), names)
            if block.prints is not None:
                assert without_decimals(printed.getvalue()) == without_decimals(block.prints), f"{path}:{block.line}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_blocks_are_written_so_that_they_are_found(document):
    text = DOCUMENTS[document].read_text(encoding="utf-8")
    blocks = blocks_of(text)
    assert len(blocks) == len(re.findall(r"```\s*(?:py|sh|bash|console)", text)), (
        "a block is indented, or of a language not called python or sh")
    assert sum(not block.run for block in blocks) == text.count("not run:"), "a mark is not right above its block"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_are_those_of_the_parser(document, capsys):
    text = DOCUMENTS[document].read_text(encoding="utf-8")
    for block in blocks_of(text):
        for arguments in commands_of(block) if block.language == "sh" else ():
            try:
                build_parser(COMMANDS).parse_args(arguments)
            except SystemExit as stop:
                assert stop.code == 0, capsys.readouterr().err
    for span in SPAN.findall(BLOCK.sub("", text)):  # in a sentence, arguments may be left out
        command = span.split()[1]
        assert command in COMMANDS or command == "COMMAND", span
        if command in COMMANDS:
            taken = ArgumentParser()
            COMMANDS[command].add_options(taken)
            known = {*taken.format_help().replace("[", " ").replace("]", " ").replace(",", " ").split(), "--help"}
            assert set(OPTION.findall(span)) <= known, span
    assert all(importlib.util.find_spec(name) for name in MODULE.findall(text))


def test_both_starts_install_the_same():
    start, quickstart = (DOCUMENTS[name].read_text(encoding="utf-8") for name in ("README.md", "quickstart.md"))
    install = re.search(r"^python3 -m venv .*-e \.$", quickstart, re.M)[0]
    assert f"{install} && .venv/bin/acdc discover\n" in start


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    path = DOCUMENTS[document]
    for link in LINK.finditer(BLOCK.sub("", path.read_text(encoding="utf-8"))):
        target = path.parent / link["file"] if link["file"] else path
        assert target.exists(), link[0]
        if link["heading"]:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.M)
            anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert link["heading"] in anchors, link[0]


@pytest.mark.parametrize(("document", "known"), [
    ("glossary.md", METRICS), ("glossary.md", ABLATIONS), ("methods.md", METHODS), ("tasks.md", TASKS),
])
def test_every_name_is_documented(document, known):
    text = DOCUMENTS[document].read_text(encoding="utf-8")
    assert not [name for name in known if f"`{name}`" not in text]


def test_blocks_are_read_as_they_are_meant():
    run, not_run = "```python\nprint(1)\n```\n\n```text\n1\n```\n", "<!-- not run: why -->\n```python\nx\n```\n"
    commands = "```sh\npip x && .venv/bin/acdc a 'b c' \\\n  --d  # e\nacdc\n```\n"
    expected = [Block(1, "print(1)\n", True, "1\n"), Block(9, "x\n", False, None),
                Block(15, commands[6:-4], True, None, "sh")]
    assert blocks_of(f"{run}{not_run}b\n```text\n```\n{commands}") == expected
    assert commands_of(expected[2]) == [["a", "b c", "--d"], []]
    assert without_decimals("5.65\n(6.1e-09), 310") == "# (#), 310"
