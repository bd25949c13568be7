"""Imports go one way, and importing does nothing else."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = ("errors", "input_file", "machine", "live_bytes", "stopping", "output_folder", "pieces", "tensor_file", "graph",
         "circuit", "task", "fitting", "metrics", "patches", "architectures", "transformer", "activations", "ablation",
         "positions", "live", "soft_circuit", "learning", "patching", "optimal_ablation", "live_state", "resume",
         "packaged", "shipped", "models", "ray_workers", "cluster", "planning", "discovery", "evaluation",
         "annotation", "stages", "sae", "intervention", "export", "arguments", "grid", "commands", "cli")
READ_BY_TASKS = {"errors", "input_file", "task", "metrics", "tasks"}
WITHOUT_A_MODEL = {"errors", "input_file", "output_folder", "graph", "circuit", "evaluation.curve",
                   "evaluation.bootstrap", "evaluation.comparison", "evaluation.difference", "evaluation.verdict",
                   "export"}  # for export
EFFECTS = """
import json, locale, logging, os, random, signal, sys, warnings
import numpy, torch, matplotlib, transformers

def settings():
    return [os.getcwd(), dict(os.environ), len(warnings.filters), locale.setlocale(locale.LC_ALL),
            [repr(handler) for handler in logging.root.handlers], logging.root.level, logging.getLogger("acdc").level,
            repr(signal.getsignal(signal.SIGINT)), repr(sys.excepthook), hash(random.getstate()),
            hash(numpy.random.get_state()[1].tobytes()), sorted(numpy.geterr().items()),
            hash(torch.get_rng_state().numpy().tobytes()), torch.get_num_threads(), str(torch.get_default_dtype()),
            torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(), torch.cuda.is_initialized(),
            transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled(),
            dict.__repr__(matplotlib.rcParams), "matplotlib.pyplot" in sys.modules]

before = settings()
for name in sys.argv[1:]:
    __import__(name)
    assert settings() == before, f"{name} changes settings: {[p for p in zip(before, settings()) if p[0] != p[1]]}"
"""


def modules() -> dict[str, Path]:
    """Every module that is installed, by its installed name."""
    folders = {"acdc": ROOT / "acdc", "acdc.tasks": ROOT / "tasks", "acdc.benchmarks": ROOT / "benchmarks"}
    found = {}
    for package, folder in folders.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return found


MODULES = modules()


def imports(source: str, module: str, is_package: bool) -> set[str]:
    """What a module imports, inside functions too, as full names: `from a import b` gives a.b if that is a module."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: None if is_package and node.level == 1 else -node.level] if node.level else []
            package = ".".join([*base, *([node.module] if node.module else [])])
            found |= {name if (name := f"{package}.{alias.name}") in MODULES else package for alias in node.names}
    return found


def imports_of(module: str) -> set[str]:
    path = MODULES[module]
    return imports(path.read_text(encoding="utf-8"), module, path.name == "__init__.py")


def below_acdc(name: str) -> str:
    """`acdc.export.text` -> `export.text`; empty for what is not acdc's."""
    return name.partition(".")[2] if name.partition(".")[0] == "acdc" else ""


def layer(name: str) -> str:
    return below_acdc(name).partition(".")[0]


def in_fresh_python(code: str, *args: str) -> str:
    """What the code prints, in a Python that has imported nothing; it may write nothing on stderr."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, *args], cwd=ROOT.parent, text=True, check=False,
                          capture_output=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}, timeout=120)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def test_imports_are_read_as_python_reads_them():
    source = ("import os.path\ndef f():\n from acdc import graph, nothing\nfrom . import text\n"
              "from ..errors import AcdcError\n")
    assert imports(source, "acdc.export.report", is_package=False) == {
        "os.path", "acdc.graph", "acdc", "acdc.export.text", "acdc.errors"
    }
    assert imports("from . import text", "acdc.export", is_package=True) == {"acdc.export.text"}


@pytest.mark.parametrize("module", [name for name in MODULES if layer(name) not in ("tasks", "benchmarks")])
def test_imports_go_down(module):
    if module == "acdc":
        assert not imports_of(module), "acdc/__init__.py is imported by every module, so it imports none"
        return
    own = layer(module)
    assert own in ORDER, f"{module}: say in ORDER which layer {own!r} is"
    for name in filter(below_acdc, imports_of(module)):
        if layer(name) == "tasks":
            assert own in ("arguments", "commands"), f"{module} imports {name}: only the command line knows the tasks"
        elif layer(name) == "benchmarks":  # known circuits are named on the command line, as tasks are
            assert own == "commands", f"{module} imports {name}: only commands know the benchmarks"
        else:
            assert layer(name) in ORDER[: ORDER.index(own) + 1], f"{module} imports {name}, which lies above it"


@pytest.mark.parametrize("module", [name for name in MODULES if layer(name) == "tasks"])
def test_tasks_know_only_what_a_task_is(module):
    above = {name for name in imports_of(module) if below_acdc(name) and layer(name) not in READ_BY_TASKS}
    assert not above, f"{module} imports {above}"


@pytest.mark.parametrize("module", [name for name in MODULES if layer(name) == "benchmarks"])
def test_benchmarks_import_anything_but_tests(module):
    assert not {name for name in imports_of(module) if name.partition(".")[0] in ("tests", "conftest")}


def test_only_commands_import_benchmarks_and_no_module_tests_or_the_command_line():
    for module in MODULES:
        for name in imports_of(module):
            known = layer(name) != "benchmarks" or layer(module) in ("benchmarks", "commands")
            assert known, f"{module} imports {name}"
            assert layer(name) != "cli" or layer(module) == "benchmarks", f"{module} imports {name}"
            assert name.partition(".")[0] not in ("tasks", "benchmarks", "tests"), f"{module}: installed as acdc.{name}"


@pytest.mark.parametrize("module", [name for name in MODULES if layer(name) == "export"])
def test_export_needs_no_model(module):
    for name in imports_of(module):
        known = below_acdc(name)
        own = known in WITHOUT_A_MODEL or known.startswith("export.")
        allowed = own if known else name.partition(".")[0] != "torch"
        assert allowed, f"{module} imports {name}"


def test_a_saved_circuit_is_drawn_without_torch():
    exports = [name for name in MODULES if layer(name) == "export"]
    loaded = in_fresh_python(
        "import sys, json\nfor name in sys.argv[1:]: __import__(name)\nprint(json.dumps(list(sys.modules)))", *exports
    )
    assert not {"torch", "transformers", "acdc.transformer", "acdc.patching"} & set(json.loads(loaded))


def test_the_command_line_starts_without_torch():
    printed = in_fresh_python("import sys, acdc.cli; print(sorted({'torch', 'transformers', 'numpy', 'matplotlib'} & "
                              "set(sys.modules)))")
    assert printed == "[]\n"


def test_importing_has_no_effects():
    assert in_fresh_python(EFFECTS, *MODULES) == ""
