"""What SECURITY.md promises: nothing that comes from elsewhere is run, and where code could do so, it says why not."""

import ast
import html
import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import tiny_hf
from tiny_tokenizer import tiny_tokenizer
from tqdm import tqdm

from acdc.circuit import Annotation, Circuit, EdgeScores
from acdc.cli import _Drawn, _Printed, main
from acdc.errors import AcdcError
from acdc.evaluation.difference import difference
from acdc.export.difference_drawing import difference_drawing
from acdc.export.difference_page import difference_page
from acdc.export.difference_report import difference_report
from acdc.export.formats import FORMATS, Wanted
from acdc.export.report import report
from acdc.export.report_page import report_page
from acdc.graph import Graph
from acdc.grid.folder import GridFolder
from acdc.models import load_model
from acdc.packaged import PACKAGED

ROOT = Path(__file__).parents[1]
TOKENIZER = tiny_tokenizer()
SOURCES = [path for folder in ("acdc", "tasks", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
# What is allowed although it could run what a file holds, and why it does not.
ALLOWED = {
    ("tasks/__init__.py", "runpy.run_path"): "a task in Python that the user names on the command line; never one that "
    "a circuit's file names (test_cli)",
    ("benchmarks/peers/scores.py", "extractall"): "what git itself has just written, with the filter for data",
    **dict.fromkeys((("acdc/ray_workers.py", "pickle"), ("acdc/ray_workers.py", "cloudpickle")),
                    "what processes of one Ray cluster, which is trusted, send each other; never a file"),
}
RUNS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle", "runpy.run_path",
        "runpy.run_module", "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput",
        "shutil.unpack_archive", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "pandas.read_pickle", "ctypes"}


def found_in(source: str) -> Iterator[str]:
    """What in a module could run what it reads."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            for name in names:
                for given in (name, module, f"{module}.{name}"):
                    if given in RUNS or given.split(".")[0] in RUNS and given:
                        yield given
        if isinstance(node, ast.Call):
            yield from _call(node)


def _call(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    options = {word.arg: ast.unparse(word.value) for word in node.keywords}
    if name in ("eval", "exec", "compile", "__import__") or name in RUNS:
        yield name
    if name.endswith("torch.load") and options.get("weights_only") != "True":
        yield "torch.load without weights_only"
    if name in ("np.load", "numpy.load") and options.get("allow_pickle") != "False":
        yield "np.load that may unpickle"
    if options.get("shell", "False") != "False":
        yield "shell=True"
    if options.get("trust_remote_code", "False") != "False":
        yield "trust_remote_code"
    if name.endswith((".from_pretrained", ".from_config")) and name.split(".")[-2].startswith("Auto") and \
            name.endswith("from_pretrained") and options.get("trust_remote_code") != "False":
        yield "from_pretrained without trust_remote_code=False"
    if name.endswith((".extractall", ".extract")):
        yield name.rpartition(".")[2]


def test_nothing_that_is_read_is_run():
    found = {(path.relative_to(ROOT).as_posix(), what) for path in SOURCES
             for what in found_in(path.read_text(encoding="utf-8"))}
    assert found == set(ALLOWED)
    reasons = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert all(path in reasons for path, _ in found)


@pytest.mark.parametrize(("source", "what"), [
    ("import pickle", "pickle"), ("from pickle import loads", "pickle"), ("torch.load(f)", "torch.load"),
    ("torch.load(f, weights_only=False)", "torch.load"), ("np.load(f)", "np.load"), ("eval(x)", "eval"),
    ("np.load(f, allow_pickle=True)", "np.load"), ("exec(x)", "exec"), ("os.system(x)", "os.system"),
    ("subprocess.run(x, shell=True)", "shell"), ("yaml.load(x)", "yaml"), ("archive.extractall(x)", "extractall"),
    ("AutoModel.from_pretrained(x)", "from_pretrained"), ("f(trust_remote_code=True)", "trust_remote_code"),
    ("import joblib", "joblib"), ("runpy.run_path(x)", "runpy"),
])
def test_the_search_finds_what_it_looks_for(source, what):
    assert any(what in found for found in found_in(source))
    assert not list(found_in("torch.load(f, weights_only=True); np.load(f, allow_pickle=False); subprocess.run([x])\n"
                             "AutoModel.from_pretrained(x, trust_remote_code=False); model.eval(); re.compile(x)"))


def test_a_model_with_code_of_its_own_is_refused_and_not_run(tmp_path):
    tiny_hf("gpt2").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')")
    with pytest.raises(AcdcError, match="Python code of its own, which is not run"):
        load_model(tmp_path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("attends", ["kernels-community/flash-attn2@main", "flash_attention_2", {"": "mine/kernel"}])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_config_does_not_say_which_code_attends(tmp_path, monkeypatch, family, attends):
    """transformers gets kernels from the hub where the package `kernels` is there."""
    tiny_hf(family).save_pretrained(tmp_path)
    expected = load_model(tmp_path, TOKENIZER).hf.config._attn_implementation
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "attn_implementation": attends}))
    asked = []
    monkeypatch.setattr(transformers.modeling_utils, "lazy_import_flash_attention", asked.append)
    monkeypatch.setattr(transformers.modeling_utils, "is_kernels_available", lambda: True)
    assert load_model(tmp_path, TOKENIZER).hf.config._attn_implementation == expected in ("sdpa", "eager")
    assert not asked


def test_weights_in_a_pickle_are_refused(tmp_path):
    hf = tiny_hf("gpt2")
    hf.config.save_pretrained(tmp_path)
    torch.save(hf.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(AcdcError, match="safetensors alone, not from pickles"):
        load_model(tmp_path)


def test_what_is_downloaded_is_named_and_has_a_hash():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    for model in PACKAGED.values():
        assert re.fullmatch("[0-9a-f]{64}", model.wheel_sha256) and re.fullmatch("[0-9a-f]{64}", model.gguf_sha256)
        assert model.requirement in text


def test_names_in_files_and_arguments_do_not_lead_out_of_a_folder(tmp_path):
    cell = {"model": "../../x", "task": "../y", "method": "../../../etc/passwd", "seed": 0}
    path = GridFolder(tmp_path, {}).file(cell)
    assert path.parent == tmp_path / "cells" and path.resolve().parent == path.parent.resolve()


BIDI = re.compile("[\u202a-\u202e\u2066-\u2069\u2028\u2029\x00\x1b]")
TEXT = ("</script><img src=x onerror=\"hacked=1\">'\u202eevil\u2066\u2028\x00\x1b[2J<b>&amp;]]>-->`|"
        "\\write18{touch owned}\\input{/etc/passwd}$^%")


def hostile() -> Circuit:
    """Whatever can hold a text holds one that is hostile in every language that is written."""
    graph = Graph(2, 2, 2, positions=(TEXT[:90], "end"))
    values = np.random.default_rng(0).normal(size=graph.n_edges)
    record = {key: TEXT for key in ("task", "model", "method", "metric", "ablation", "command", "task_description",
                                    "selection", "model_sha256", "loss")}
    record |= {"example": {key: TEXT for key in ("clean", "corrupted", "answer", "wrong")}, "seconds": {TEXT: TEXT},
               "versions": {TEXT: TEXT}, "method_options": {TEXT: TEXT}}
    return EdgeScores(graph, values, record).top(20, by="magnitude")


ROLES = {"a0.h0": TEXT, "m1": TEXT}


def test_pages_hold_hostile_text_as_text():
    notes = [Annotation("a0.h0", kind, TEXT, 1.0, {TEXT: TEXT}) for kind in ("role", TEXT)]
    circuit = hostile()
    tests = {"verdict": TEXT, "tests": [{"name": TEXT, "verdict": TEXT, "reason": TEXT}]}
    text = report(circuit, roles=ROLES, tests=tests)
    found = difference(circuit, hostile())
    pages = {"page": FORMATS["html"].write(circuit, Wanted(ROLES, notes, title=TEXT)).decode(),
             "difference": difference_page(found, (TEXT, TEXT), title=TEXT),
             "report": report_page(text, {}, title=TEXT),
             "difference report": report_page(difference_report(found, (TEXT, TEXT)), {}, title=TEXT)}
    for name, page in pages.items():
        body = re.sub(r"<script>.*</script>\n</body>", "", page, flags=re.S)  # our own
        assert "<img" not in body and "onerror=\"" not in body and "<b>" not in body, name
        assert page.count("</script>") == (2 if name in ("page", "difference") else 0), name
        assert not BIDI.search(page), name
        assert "default-src 'none'" in html.unescape(page)


@pytest.mark.parametrize("name", ["tikz", "tikzpicture", "latex"])
def test_latex_holds_no_command_of_a_file(name):
    text = FORMATS[name].write(hostile(), Wanted(ROLES, title=TEXT)).decode()
    assert "\\write18" not in text and "\\input{/" not in text and not BIDI.search(text)
    paper = report(hostile(), roles=ROLES)
    assert "\\write18" not in paper.split("```latex")[1].split("```")[0]


@pytest.mark.parametrize("name", ["svg", "dot", "graphml", "gexf", "cytoscape", "markdown", "attribution-graph"])
def test_figures_and_files_hold_hostile_text_as_text(name):
    text = FORMATS[name].write(hostile(), Wanted(ROLES, title=TEXT)).decode()
    if name not in ("dot", "cytoscape", "attribution-graph", "markdown"):  # no markup; Markdown's code is as it stands
        assert "<img" not in text
    assert not BIDI.search(text), name
    found = difference(hostile(), hostile())
    if name == "svg":
        from acdc.export.figure import figure_bytes, figure_of

        drawing = figure_bytes(figure_of(difference_drawing(found, (TEXT, TEXT), title=TEXT)), "svg").decode()
        assert "<img" not in drawing and "<script" not in drawing and not BIDI.search(drawing)
    if name == "markdown":
        said = report(hostile(), roles=ROLES) + difference_report(found, (TEXT, TEXT))
        assert not BIDI.search(said)


def test_what_is_printed_does_not_drive_the_terminal(tmp_path, capsys):
    from acdc.export.json_file import circuit_to_json

    (tmp_path / "circuit.json").write_text(circuit_to_json(hostile()))
    assert main(["show", str(tmp_path)]) == 0
    assert main(["show", str(tmp_path / "\x1b[2Jnone")]) == 1
    said = capsys.readouterr()
    assert not BIDI.search(said.out + said.err) and "evil" in said.out and len(said.err.splitlines()) == 1


def test_a_report_holds_no_file_that_a_link_leads_to(tmp_path, capsys):
    from acdc.export.json_file import circuit_to_json

    secret, picture = tmp_path / "secret", tmp_path / "found" / "curve.png"
    picture.parent.mkdir()
    (picture.parent / "circuit.json").write_text(circuit_to_json(hostile()))
    for content, reason in ((b"\x89PNG\r\n\x1a\n of the user", "is a symbolic link"), (b"root:x:0", "is not a PNG")):
        secret.write_bytes(content)
        picture.symlink_to(secret) if b"PNG" in content else secret.rename(picture)
        assert main(["report", str(picture.parent), "--out", str(tmp_path / "out")]) == 1
        assert reason in capsys.readouterr().err and not (tmp_path / "out").exists()
        picture.unlink()


def test_what_is_said_on_the_way_does_not_drive_the_terminal(tmp_path, capsys):
    from acdc.export.json_file import circuit_to_json

    (tmp_path / "circuit.json").write_text(circuit_to_json(hostile()))
    given = "--task ioi --seed 0 --dtype float32 --metric logit_difference --ablation resample"
    assert main(["evaluate", str(tmp_path), *given.split()]) == 1  # the file names the model
    said = capsys.readouterr()
    assert "loading </script>" in said.err and not BIDI.search(said.err)


def test_what_libraries_say_of_a_model_is_not_shown(tmp_path, caplog):
    tiny_hf("gpt2").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, "\x1b[2J\u202ex": torch.zeros(2)}, tmp_path / "model.safetensors", {"format": "pt"})
    logger = logging.getLogger("transformers")
    transformers.utils.logging.set_verbosity_warning()
    logger.addHandler(caplog.handler)
    main(["tasks", "ioi", "--model", str(tmp_path)])
    logger.removeHandler(caplog.handler)
    assert not any(record.name.startswith("transformers") for record in caplog.records)


def test_progress_bars_are_drawn_as_they_are():
    """Through the filter of stderr: all that tqdm draws of two bars, and nothing that a name in one does."""
    def drawn(stream: Any, name: str) -> None:
        form: dict[str, Any] = {"file": stream, "mininterval": 0, "ncols": 40, "bar_format": "{desc}{bar}{n_fmt}"}
        for _ in tqdm(range(3), desc=name, **form):
            for _ in tqdm(range(2), desc="inner", position=1, leave=False, **form):
                pass

    plain, filtered, hostile = (io.StringIO() for _ in range(3))
    drawn(plain, "outer")
    drawn(_Drawn(filtered), "outer")
    assert filtered.getvalue() == plain.getvalue() and "\x1b[A" in plain.getvalue()
    drawn(_Drawn(hostile), "\x1b[2J\rx\x1b[A\u202e")
    lines = re.sub(r"\x1b\[A", "", re.sub("\ufffd[^\r\n]*", "", hostile.getvalue()))
    assert "\ufffd[2J\ufffdx\ufffd[A\ufffd" in hostile.getvalue() and not BIDI.search(lines)


def test_a_character_that_the_output_lacks_does_not_stop_it():
    output = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    _Printed(output).write("é→x")
    output.flush()
    assert output.buffer.getvalue() == b"??x"  # pyright: ignore[reportAttributeAccessIssue]
