"""Spoilt and hostile files of every format give one clear error: nothing is run, written or allocated without measure.

`ACDC_FUZZ=10000 pytest tests/test_hostile_files.py` runs that many cases, with new seeds, and counts what was
read and what was refused.
"""

import contextlib
import io
import json
import os
import resource
import shutil
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import make_batch, tiny
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from spoilt_files import spoilt
from tiny_tokenizer import tiny_tokenizer

from acdc.annotation.probes import Probe
from acdc.annotation.text import read_text
from acdc.annotation.tuned_lens import TunedLens, load_tuned_lens, save_tuned_lens
from acdc.annotation.variables import read_labels
from acdc.circuit import Annotation, Circuit, EdgeScores
from acdc.cli import main
from acdc.discovery import METHODS
from acdc.errors import AcdcError
from acdc.evaluation.bootstrap import bootstrap
from acdc.evaluation.curve import Curve, CurvePoint, curves_of
from acdc.evaluation.difference import difference
from acdc.export.annotations_file import annotations_to_json
from acdc.export.circuit_drawing import circuit_drawing, default_title
from acdc.export.difference_page import difference_page
from acdc.export.difference_report import difference_report
from acdc.export.edge_table import circuit_from_table, edge_table
from acdc.export.formats import FORMATS, Wanted, read_export
from acdc.export.json_file import check_record, circuit_to_json, parse_json
from acdc.export.methods_paragraph import methods_paragraph
from acdc.export.mib import circuit_from_mib
from acdc.export.node_table import node_table, roles_from_table
from acdc.export.page import to_html
from acdc.export.page_state import read_state
from acdc.export.prompt_scores import FILE, prompt_scores_bytes
from acdc.export.report import report
from acdc.export.report_page import report_page
from acdc.export.text import describe
from acdc.graph import Graph
from acdc.grid.folder import grid_folder
from acdc.intervention.direction import load_direction, save_direction
from acdc.patches import PatchTable
from acdc.sae.formats import load_coder, save_coder
from acdc.sae.sparse_coder import SparseCoder
from acdc.tasks.file import task_from_file

CASES = int(os.environ.get("ACDC_FUZZ", "0"))
IN_CI = 2000
GRAPH = Graph(2, 2, 1, kv="group", positions=("S", "end"))
TOKENIZER = tiny_tokenizer()
MOST_MEMORY = 512  # MiB that all cases of a format may add


class Target(NamedTuple):
    """A format: writes intact files into a folder, and reads them. `spoils`: which of them are spoilt."""

    write: Callable[[Path], Any]
    read: Callable[[Path], Any]
    spoils: tuple[str, ...]
    share: float = 3  # of the cases, beside the others
    writes: bool = False  # what is read is also carried on, as journals are


def circuit(seed: int = 0) -> Any:
    """A circuit with all that `discover` writes beside it."""
    rng = np.random.default_rng(seed)
    alone = rng.normal(size=(4, GRAPH.n_edges)).astype(np.float32)
    known = {"method": "eap", "method_options": {"steps": 5}}
    scores = EdgeScores(GRAPH, alone.mean(0, dtype=np.float64), known, alone)
    points = tuple(CurvePoint(x, int(x * GRAPH.n_edges), 1.0, 0.5) for x in (0.1, 0.5, 1.0))
    curve = Curve("magnitude", "logit_difference", 3.0, 1.0, 4, points, GRAPH.n_edges)
    found = scores.top(20, by="magnitude")
    history = [{"step": step, "loss": 1.0, "sparsity": 0.5, "target": 0.5} for step in range(3)]
    calibration = {"overall": {"n_sampled": 60, "pearson": 0.9, "spearman": 0.8, "sign_agreement": 1.0, "missed": 0.1,
                               "missed_low": 0.0, "missed_high": 0.3}}
    uncertainty = bootstrap(scores, size=20, by="magnitude", templates=["a", "a", "b", "b"], n_resamples=10)
    known = {"task": "ioi", "model": "gpt2", "metric": "logit_difference", "ablation": "resample", "seed": 0,
             "n_prompts": 4, "faithfulness": 1.2, "clean_metric": 3.0, "corrupted_metric": 1.0, "circuit_metric": 3.1,
             "example": {"clean": "When", "corrupted": "Then", "answer": " a", "wrong": " b"}, "d_model": 8,
             "command": "acdc discover", "seconds": {"load": 1.5}, "versions": {"acdc": "0.1.0"}, "history": history,
             "curves": [curve.as_record()], "uncertainty": uncertainty.summary(), "calibration": calibration}
    return type(found)(found.graph, found.kept, scores, {**found.provenance, **known})


one, other = cache(circuit), cache(lambda: circuit(1))


@cache
def flat() -> Any:
    graph = Graph(2, 2, 2)
    values = np.linspace(-1, 1, graph.n_edges)
    return EdgeScores(graph, values, {"method": "eap"}).top(9, by="magnitude")


def write_circuit(folder: Path) -> None:
    (folder / "other").mkdir()
    (folder / "other" / "circuit.json").write_text(circuit_to_json(circuit(1)))
    (folder / "circuit.json").write_text(circuit_to_json(circuit()))
    (folder / "annotations.json").write_text(annotations_to_json([
        Annotation("a0.h0", "role", "mover", 0.5, {"p": 0.1, "baseline": 0.2}), Annotation("m1", "tokens", "the", 1.0),
        Annotation("a1.h1", "attention", "", None, {"tokens": ["a", "b"], "weights": [[1.0, 0.0], [0.5, 0.5]]})]))
    (folder / "state.json").write_text(json.dumps(STATE))
    (folder / "tests.json").write_text(json.dumps({"verdict": "pass", "tests": [
        {"name": "sufficiency", "verdict": "pass", "reason": "f is 1"}]}))
    (folder / "groups.json").write_text('{"movers": ["a0.h0", "a1.h1"], "early": ["m0"]}')
    (folder / FILE).write_bytes(prompt_scores_bytes(circuit().scores.per_prompt))


STATE = {"format": "acdc-view", "version": 1, "by": "signed", "n": 12, "pinned": ["a1.h0", "group:G"], "hidden": ["m0"],
         "groups": [{"name": "G", "members": ["a0.h0", "a0.h1"]}], "labels": {"m1": "label"}, "view": [0, 1, 0.5],
         "moved": {"m1@end": [1, -2.5]}, "selected": "group:G@S", "channels": "qv", "theme": "dark", "onPaths": True}
OUT = "written"
COMMANDS = {
    "show": ["show", "."], "view": ["view", ".", "--state", "state.json", "--out", f"{OUT}/a.html"],
    "report": ["report", ".", "--out", OUT], "diff": ["diff", ".", "other", "--html", f"{OUT}/d.html"],
    "compare": ["compare", ".", "other"],
    "classes": ["export", ".", "--to", "tikz", "--groups", "groups.json", "--out", f"{OUT}/e.tex"],
}
WRITTEN = [name for name in FORMATS if name not in ("pdf", "svg", "png", "mib")]


def run_command(arguments: list[str], folder: Path) -> None:
    """A command in the folder; its failure is the error that it prints, in one line, and leaves nothing behind."""
    shutil.rmtree(folder / OUT, ignore_errors=True)
    (folder / OUT).mkdir()
    out, err, before = io.StringIO(), io.StringIO(), Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(arguments)
    finally:
        os.chdir(before)
    written = sorted(path.name for path in (folder / OUT).iterdir())
    shutil.rmtree(folder / OUT)
    assert not any(not char.isprintable() and char != "\n" for char in out.getvalue() + err.getvalue())
    if status:
        lines = err.getvalue().splitlines()
        assert status in (1, 2) and written == [], (status, lines, written)
        assert lines[-1].startswith("acdc: ") and len(lines[-1]) < 3000
        raise AcdcError(lines[-1])


def of_circuit(name: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        run_command(COMMANDS[name], folder)

    return read


def export_one(folder: Path) -> None:
    """In the format that the circuit's bytes happen to choose."""
    kind = WRITTEN[zlib.crc32((folder / "circuit.json").read_bytes()) % len(WRITTEN)]
    run_command(["export", ".", "--to", kind, "--out", f"{OUT}/e"], folder)


def read_provenance(folder: Path) -> None:
    """All that is said of a circuit whose provenance holds anything."""
    record = parse_json(text_of(folder / "provenance.json"), "provenance")
    if not isinstance(record, dict):
        raise AcdcError("not an object")
    check_record(record, "provenance")
    found = one()
    found = Circuit(found.graph, found.kept, found.scores, record)
    two, which = difference(found, other()), zlib.crc32((folder / "provenance.json").read_bytes())
    says = [lambda: describe(found), lambda: to_html(found), lambda: methods_paragraph(found), lambda: circuit_drawing(
        found), lambda: difference_report(two, ("a", "b")), lambda: difference_page(two, ("a", "b")),
        lambda: report_page(report(found, curves_of(record)), {}, title=default_title(found))]
    for i in (which, which + 1, 6):
        assert says[i % 7]()


def write_provenance(folder: Path) -> None:
    (folder / "provenance.json").write_text(json.dumps(dict(circuit().provenance)))


def text_of(path: Path) -> str:
    return path.read_text("utf-8", errors="replace")


def write_mib(folder: Path) -> None:
    (folder / "m.json").write_bytes(FORMATS["mib"].write(flat(), Wanted(d_model=8)))


def exported(kind: str) -> Target:
    suffix = FORMATS[kind].suffix
    wanted = Wanted({"a0.h0": "mover"}, all_edges=True)
    return Target(lambda folder: (folder / f"a.{suffix}").write_bytes(FORMATS[kind].write(one(), wanted)),
                  lambda folder: read_export((folder / f"a.{suffix}").read_bytes(), kind, "a"), (f"a.{suffix}",))


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def coder(architecture: str, **more: Any) -> SparseCoder:
    d, n = 6, 11
    weights = {"W_enc": random(d, n), "W_dec": random(n, d), "b_dec": random(d), "b_enc": random(n), **more}
    return SparseCoder(architecture, "m3", "m3", weights, 3 if architecture == "topk" else None)


def write_circuit_tracer(folder: Path) -> None:
    (folder / "config.yaml").write_text("feature_input_hook: mlp.hook_in\nfeature_output_hook: hook_mlp_out\n")
    (folder / "layer_3.safetensors").write_bytes(save({"W_enc": random(11, 6), "W_dec": random(11, 6),
                                                       "b_enc": random(11), "b_dec": random(6)}))


def write_npz(folder: Path) -> None:
    np.savez(folder / "params.npz", W_enc=random(6, 11).numpy(), W_dec=random(11, 6).numpy(), b_enc=random(11).numpy(),
             b_dec=random(6).numpy(), threshold=random(11).abs().numpy())


@cache
def model() -> Any:
    return tiny("llama", torch.float32)


def write_probe(folder: Path) -> None:
    Probe(random(2, 24), random(2), ("a", "b"), random(2, 24), {"site": "resid1"}).save(folder / "p.safetensors")


def read_probe(folder: Path) -> None:
    probe = Probe.load(folder / "p.safetensors")
    probe.read(random(3, 24))
    load_direction(folder / "p.safetensors")


def write_direction(folder: Path) -> None:
    from acdc.intervention.direction import Direction

    save_direction(folder / "d.safetensors", Direction("resid1", random(24), "x", 2.0, 0.5))


ROWS = [{"clean": "Then, Mary", "corrupted": "Then, John", "answer": " Mary", "wrong": " John", "template": "t",
         "roles": {"S": 1}}, {"clean": "a", "corrupted": "b", "answer": "c", "wrong": "d"}]


def task(suffix: str) -> Target:
    texts = {"json": json.dumps({"name": "mine", "metric": "logit_difference", "examples": ROWS}),
             "jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
             "csv": "clean,corrupted,answer,wrong\n\"a, b\",c,d,e\n"}
    return Target(lambda folder: (folder / f"t.{suffix}").write_text(texts[suffix]),
                  lambda folder: task_from_file(folder / f"t.{suffix}", TOKENIZER), (f"t.{suffix}",))


LABELS = [{"label": "a", "example": 0, "position": "end", "word": "x"}, {"label": "b", "prompt": "prompt 1"}]


def labels(suffix: str) -> Target:
    texts = {"json": json.dumps(LABELS), "csv": "label,example,position\na,0,end\nb,1,2\n"}
    batch = make_batch()
    return Target(lambda folder: (folder / f"l.{suffix}").write_text(texts[suffix]),
                  lambda folder: read_labels(folder / f"l.{suffix}", batch.examples, [batch]), (f"l.{suffix}",))


def resumed(method: str, file: str, **options: Any) -> Target:
    def run(folder: Path) -> None:
        graph = model().graph()
        if method == "acdc":
            options["shortlist"] = EdgeScores(graph, np.arange(graph.n_edges, dtype=float)).top(12, by="signed")
        METHODS[method](model(), [make_batch(2, 6)], **options, **{file.rpartition(".")[2] if "journal" in file else
                                                                  "checkpoint": folder / file})

    return Target(run, run, (file,), 0.4, writes=True)


def point(fraction: float | None) -> dict[str, Any]:
    return {"fraction": fraction, "n_edges": 10, "f": 0.5, "interval": [0.4, 0.6]}


def write_grid(folder: Path) -> None:
    from acdc.evaluation.curve import MIB_FRACTIONS

    number = {"value": 0.5, "interval": [0.4, 0.6]}
    curve = {"points": [point(x) for x in MIB_FRACTIONS], "cpr": number, "cmd": number}
    cell = {"model": "m", "task": "t", "method": "eap", "seed": 0, "status": "done", "loss": "kl", "metric": "x",
            "by": "magnitude", "n_prompts": 8, "n_test_prompts": 4, "n_edges": 1000, "full": 3.0, "empty": 1.0,
            "curves": {"signed": curve, "magnitude": curve}, "cpr": number, "cmd": number, "own": None, "seconds": 3.0,
            "cpu_seconds": 2.0, "evaluation_seconds": 1.0, "peak_gib": 1.5, "smallest": point(0.1)}
    with grid_folder(folder / "grid", GRID) as grid:
        grid.store({name: cell[name] for name in ("model", "task", "method", "seed")}, cell)


GRID = {"prompts": 8, "test_prompts": 4, "ablation": "resample", "kv": "head", "dtype": "float32"}


def read_grid(folder: Path) -> None:
    from acdc.commands.benchmark import outcome
    from acdc.export.benchmark_tables import results_csv, results_latex, results_markdown

    with grid_folder(folder / "grid", GRID) as grid:
        cells = grid.all_cells()
        assert results_csv(cells) and results_markdown(cells, GRID) and results_latex(cells, GRID)
        assert all(map(outcome, cells))


def write_patches(folder: Path) -> None:
    PatchTable(random(5, 1, 2, 2), (4, 4), ("a", "b")).save(folder)


COMMAND_FILES = {"view": ("circuit.json", "annotations.json", "state.json"), "report": ("circuit.json", "tests.json"),
                 "diff": ("circuit.json", FILE), "classes": ("circuit.json", "groups.json")}
TARGETS: dict[str, Target] = {
    **{name: Target(write_circuit, of_circuit(name), COMMAND_FILES.get(name, ("circuit.json", "annotations.json")),
                    {"report": 0.2, "diff": 1}.get(name, 0.5), writes=True) for name in COMMANDS},
    "export": Target(write_circuit, export_one, ("circuit.json", "annotations.json"), 2, writes=True),
    "provenance": Target(write_provenance, read_provenance, ("provenance.json",), 3),
    "state": Target(lambda folder: (folder / "s.json").write_text(json.dumps(STATE)),
                    lambda folder: read_state(text_of(folder / "s.json"), GRAPH, "s.json"), ("s.json",)),
    **{f"from {kind}": exported(kind) for kind in ("json", "dot", "graphml", "gexf", "cytoscape")},
    "edge table": Target(lambda folder: (folder / "e.csv").write_text(edge_table(one()), encoding="utf-8"),
                         lambda folder: circuit_from_table(text_of(folder / "e.csv"), GRAPH, "e"), ("e.csv",)),
    "node table": Target(lambda folder: (folder / "n.csv").write_text(node_table(one(), {"a0.h0": "x"}), "utf-8"),
                         lambda folder: roles_from_table(text_of(folder / "n.csv"), GRAPH, "n"), ("n.csv",)),
    "mib": Target(write_mib, lambda folder: circuit_from_mib(text_of(folder / "m.json"), "m.json"), ("m.json",)),
    "acdc import": Target(write_mib, lambda folder: run_command(["import", "m.json", "--out", f"{OUT}/c"], folder),
                          ("m.json",), 1, writes=True),
    "saelens": Target(lambda folder: save_coder(coder("jumprelu", threshold=random(11).abs()), folder), load_coder,
                      ("cfg.json", "sae_weights.safetensors")),
    "sparsify": Target(lambda folder: save_coder(coder("topk"), folder, format="sparsify"), load_coder,
                       ("cfg.json", "sae.safetensors")),
    "circuit-tracer": Target(write_circuit_tracer, lambda folder: load_coder(folder, layer=3),
                             ("config.yaml", "layer_3.safetensors")),
    "gemma scope": Target(write_npz, lambda folder: load_coder(folder, site="resid5"), ("params.npz",)),
    "tuned lens": Target(lambda folder: save_tuned_lens(TunedLens(random(3, 24, 24), random(3, 24)), model(), folder),
                         lambda folder: load_tuned_lens(model(), folder), ("config.json", "params.safetensors")),
    "probe": Target(write_probe, read_probe, ("p.safetensors",)),
    "direction": Target(write_direction, lambda folder: load_direction(folder / "d.safetensors"), ("d.safetensors",)),
    "patches": Target(write_patches, PatchTable.load, ("patches.safetensors",)),
    **{f"task {suffix}": task(suffix) for suffix in ("json", "jsonl", "csv")},
    **{f"labels {suffix}": labels(suffix) for suffix in ("json", "csv")},
    "journal": resumed("acdc", "a.journal", threshold=0.1),
    "checkpoint": resumed("ugs", "a.safetensors", steps=2, prompts_per_step=2),
    "benchmark": Target(write_grid, read_grid, ("grid/settings.json", "grid/cells/*.json"), 3, writes=True),
}

FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.spawn", "os.posix_spawn", "socket.connect",
             "socket.getaddrinfo", "pickle.find_class", "ctypes.dlopen", "webbrowser.open", "shutil.unpack_archive")
CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.link", "os.symlink", "os.chmod", "os.truncate")
WATCHED: list[list[tuple[str, Any]]] = []  # what is seen, while a case runs


def _hook(name: str, arguments: tuple[Any, ...]) -> None:
    if not WATCHED:
        return
    watched = WATCHED[-1]
    if name.startswith(FORBIDDEN):
        watched.append((name, arguments))
    elif name in CHANGES:
        watched.append(("change", arguments))
    elif name == "open" and (set(str(arguments[1])) & set("wax+") or (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)):
        watched.append(("write", arguments[0]))
    elif name == "compile" and "owned" in str(arguments[0]):
        watched.append((name, arguments))  # code of a file, see VALUES


sys.addaudithook(_hook)


@contextlib.contextmanager
def nothing_done(folder: Path, writes: bool) -> Iterator[None]:
    """Fails where something is run, fetched or written; with `writes`, it may be written in the folder."""
    seen: list[tuple[str, Any]] = []
    WATCHED.append(seen)
    try:
        yield
    finally:
        WATCHED.pop()

    def is_inside(path: Any) -> bool:
        return not isinstance(path, str | Path) or (folder / path).resolve().is_relative_to(folder.resolve())

    bad = [(what, about) for what, about in seen if not writes or not (what == "change" or what == "write" and (
        str(about) == os.devnull or is_inside(about)))]
    assert not bad, bad


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", TARGETS)
def test_a_spoilt_file_is_read_or_refused_in_one_line(name: str, tmp_path_factory: pytest.TempPathFactory,
                                                      capsys: pytest.CaptureFixture[str]) -> None:
    target = TARGETS[name]
    folder = tmp_path_factory.mktemp("intact")
    target.write(folder)
    intact = content_of(folder)
    target.read(folder)  # also loads what is imported late
    files = [file for pattern in target.spoils for file in intact if Path(file).match(pattern) or file == pattern]
    assert files
    total = sum(one.share for one in TARGETS.values())
    n = max(5, round((CASES or IN_CI) * target.share / total))
    counts: Counter[str] = Counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(max_examples=n, deadline=None, derandomize=not CASES, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))
    @given(st.data())
    def spoil(data: st.DataObject) -> None:
        file = data.draw(st.sampled_from(files))
        (folder / file).write_bytes(data.draw(spoilt(Path(file).name, intact[file])))
        given_now = content_of(folder)
        try:
            with nothing_done(folder, target.writes):
                target.read(folder)
            counts["read"] += 1
        except AcdcError as error:
            counts["refused"] += 1
            assert str(error).strip()
            assert content_of(folder) == given_now
        finally:
            shutil.rmtree(folder)
            for path, content in intact.items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(content)

    spoil()
    assert counts["refused"]
    if CASES:
        with capsys.disabled():
            sys.stdout.write(f"{name}: {counts['read']:,} read, {counts['refused']:,} refused\n")
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MOST_MEMORY


# Where a file should be: a pipe that nobody writes, a device that never ends, a folder, and 100 GB that take no room.
NO_FILES = {"pipe": "a device, a pipe", "zero": "a device, a pipe", "folder": "a folder", "huge": "MB are read|damaged"}


def make_no_file(path: Path, name: str) -> None:
    if name == "pipe":
        os.mkfifo(path)
    elif name == "zero":
        path.symlink_to("/dev/zero")
    elif name == "folder":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.truncate(100 * 10**9)


def reader(target: str) -> Callable[[Path], Any]:
    return TARGETS[target].read


READ_AS_FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    **{file: (of_circuit(name), file) for name, file in (
        ("show", "circuit.json"), ("show", "annotations.json"), ("view", "state.json"), ("report", "tests.json"),
        ("report", "curve.png"), ("diff", FILE), ("classes", "groups.json"))},
    "import": (reader("acdc import"), "m.json"), "task": (reader("task json"), "t.json"),
    "export": (lambda folder: run_command(["export", "a", "--from", "dot", "--to", "csv", "--out", f"{OUT}/b"], folder),
               "a"),
    "labels": (reader("labels json"), "l.json"), "direction": (reader("direction"), "d.safetensors"),
    "arrays": (lambda folder: load_coder(folder / "a.npz", site="m5"), "a.npz"),
    "saelens": (reader("saelens"), "cfg.json"), "tuned lens": (reader("tuned lens"), "config.json"),
    "text": (lambda folder: read_text(folder / "a.txt"), "a.txt"),
    "journal": (reader("journal"), "a.journal"), "benchmark": (reader("benchmark"), "grid/cells/a.json"),
}


@pytest.mark.parametrize("name", NO_FILES)
@pytest.mark.parametrize("what", READ_AS_FILES)
def test_what_is_no_plain_file_is_not_read(what: str, name: str, tmp_path: Path) -> None:
    read, file = READ_AS_FILES[what]
    write_circuit(tmp_path)
    if what in ("saelens", "tuned lens", "benchmark"):
        TARGETS[what].write(tmp_path)
    (tmp_path / file).unlink(missing_ok=True)
    make_no_file(tmp_path / file, name)
    with pytest.raises(AcdcError, match=f"{NO_FILES[name]}|symbolic link"):
        read(tmp_path)
