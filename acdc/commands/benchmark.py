"""`acdc benchmark`: methods × tasks × models, each cell stored as it is finished, and tables of all of them."""

import argparse
import json
import random
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from acdc.arguments import check_measuring, choose
from acdc.errors import AcdcError

from .loading import quiet_libraries
from .printing import say

HELP = "measure methods on tasks and models, on prompts that they have not seen; resumable"
METHODS_BY_DEFAULT = ("edge_pruning", "eap", "eap_ig", "eap_clean_corrupted", "relp", "gim",
                      "node_attribution:steps=5", "hisp", "ifr", "ensemble:methods=eap_ig+relp+gim", "random")
SETTINGS = ("prompts", "test_prompts", "ablation", "kv", "dtype")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", nargs="+", default=["smollm2"], help="packaged models, hub names or folders")
    parser.add_argument("--tasks", nargs="+", default=["ioi"], help="built-in tasks, or .json, .jsonl or .csv files "
                        "of prompts")
    parser.add_argument("--methods", nargs="+", default=list(METHODS_BY_DEFAULT), help="each a method, with options "
                        "after a colon: edge_pruning:sparsity=0.99,steps=300. Beside its own: loss=METRIC, "
                        "by=signed or magnitude, prompts=N, and for acdc shortlist=5%%")
    parser.add_argument("--prompts", type=int, default=128, help="how many pairs of prompts circuits are found on")
    parser.add_argument("--test-prompts", type=int, default=64, help="how many others they are measured on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="which prompts are drawn, and what learned "
                        "masks and random scores draw; a cell for each")
    parser.add_argument("--ablation", default="resample", help="what cut edges carry: resample, mean, "
                        "mean_over_positions or zero")
    parser.add_argument("--kv", default="head", help="k and v channels of each query head, or of each KV group: head "
                        "or group")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float64")
    parser.add_argument("--batch-size", type=int, default=32, help="prompts a forward pass")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--out", type=Path, default=Path("benchmark"), help="folder of results; one that is there is "
                        "gone on with")
    parser.add_argument("--retry-failed", action="store_true", help="also measure again what failed")


def run(arguments: argparse.Namespace) -> None:
    from acdc.grid.folder import grid_folder

    runs = _check(arguments)
    settings = {name: getattr(arguments, name) for name in SETTINGS}
    with grid_folder(arguments.out, settings) as folder:
        grid = Grid(arguments, folder, runs)
        try:
            for model in arguments.models:
                grid.measure_model(model)
        except KeyboardInterrupt as stop:
            stop.args = (f"interrupted; {len(folder.all_cells())} finished cells are in {folder.path}, and the same "
                         "command goes on from there",)
            raise
        finally:
            write_tables(folder.path, grid.in_order(folder.all_cells()), settings)
        print(f"\nwritten to {folder.path}: {', '.join(sorted(p.name for p in folder.path.glob('[!.]*.*')))}")
        for cell in grid.failed:
            say(f"failed: {_title(cell)}: {cell['message']}")
        if broken := [cell for cell in grid.failed if cell["error"] != "AcdcError"]:
            raise AcdcError(f"{len(broken)} of {grid.n_cells} cells failed in an unforeseen way; their files in "
                            f"{folder.path}/cells say how")


def _check(arguments: argparse.Namespace) -> list[Any]:
    """Refuses what can be seen to be wrong before a model is loaded; what the methods' texts mean."""
    from acdc.grid.method_run import parse_method

    for name in ("models", "tasks", "methods", "seeds"):
        setattr(arguments, name, list(dict.fromkeys(getattr(arguments, name))))
    runs = [parse_method(text) for text in arguments.methods]
    for task in arguments.tasks:
        check_measuring(argparse.Namespace(**{**vars(arguments), "task": task, "metric": None}))
    choose("kv", arguments.kv, {"head": None, "group": None})
    if arguments.test_prompts < 2:
        raise AcdcError(f"--test-prompts {arguments.test_prompts}: at least 2 are needed, for intervals")
    for seed in arguments.seeds:
        if seed < 0:
            raise AcdcError(f"--seeds {seed}: they must be 0 or more")
    for run in runs:
        if run.prompts is not None and run.prompts > arguments.prompts:
            raise AcdcError(f"method {run.label!r} takes {run.prompts} prompts, but --prompts is {arguments.prompts}")
    return runs


@dataclass(frozen=True)
class Prompts:
    """The prompts of a task, tokenizer and seed: those that methods get, and the others, ready to measure on."""

    train: Any
    bench: Any
    batch_size: int
    model: Any

    def batches(self, n: int | None) -> Any:
        """The first `n` to find circuits on, or all."""
        task = self.train if n is None else replace(self.train, examples=self.train.examples[:n])
        return task.batches(self.model.tokenizer, batch_size=self.batch_size, device=self.model.device)


class Grid:
    """One run of the command: what is still to be measured, and what failed."""

    def __init__(self, arguments: argparse.Namespace, folder: Any, runs: Sequence[Any]) -> None:
        self.arguments, self.folder, self.runs = arguments, folder, runs
        self.n_cells = len(arguments.models) * len(arguments.tasks) * len(arguments.seeds) * len(runs)
        self.n_done = 0
        self.failed: list[Mapping[str, Any]] = []

    @cached_property
    def tasks(self) -> dict[str, str | None]:
        """The tasks, and what a file holds: other prompts in it are another task."""
        import hashlib

        from acdc.tasks import TASKS  # pyright: ignore[reportMissingImports]

        return {task: None if task in TASKS else hashlib.sha256(Path(task).read_bytes()).hexdigest()
                for task in self.arguments.tasks}

    def missing(self, model: str, task: str, seed: int) -> Iterator[tuple[Any, dict[str, Any]]]:
        """What is to be measured: the method's run, and which cell it is. What is there already is counted."""
        for run in self.runs:
            cell = {"model": model, "task": task, "task_sha256": self.tasks[task], "method": run.label, "seed": seed}
            there = self.folder.finished(cell)
            if there is None or (there["status"] == "failed" and self.arguments.retry_failed):
                yield run, cell
            else:
                self._count(there, "there already")

    def in_order(self, cells: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The cells in the order in which the command names models, tasks, methods and seeds; others after them."""
        arguments = self.arguments
        axes = {"model": arguments.models, "task": arguments.tasks, "method": [run.label for run in self.runs],
                "seed": arguments.seeds}
        return sorted(cells, key=lambda cell: [names.index(cell[axis]) if cell[axis] in names else len(names)
                                               for axis, names in axes.items()])

    def measure_model(self, name: str) -> None:
        """All cells of a model, which is loaded once, if anything is missing."""
        from acdc.models import load_model, weights_hash

        arguments = self.arguments
        todo = [(task, seed, cells) for task in arguments.tasks for seed in arguments.seeds
                if (cells := list(self.missing(name, task, seed)))]
        if not todo:
            return
        quiet_libraries()
        say(f"loading {name}")
        model = load_model(name, dtype=arguments.dtype, device=arguments.device)
        sha = weights_hash(model)
        for stored in self.folder.all_cells():
            if stored["model"] == name and stored.get("model_sha256", sha) != sha:
                raise AcdcError(f"{self.folder.path} holds results of {name!r} with other weights; give another --out")
        for task, seed, cells in todo:
            self.measure_task(model, sha, task, seed, cells)

    def measure_task(self, model: Any, sha: str, task: str, seed: int, cells: Sequence[tuple[Any, dict[str, Any]]]
                     ) -> None:
        from acdc.grid.cell import run_cell

        known = {"model_sha256": sha}
        try:
            prompts = self._prompts(model, task, seed)
        except AcdcError as error:  # such as a task that the model cannot do
            for _, cell in cells:
                self._count(self.folder.store(cell, {**known, **_failure(error)}))
            return
        for run, cell in cells:
            say(f"[{self.n_done + 1}/{self.n_cells}] {_title(cell)} ...")
            try:
                result = run_cell(model, run, prompts.batches(run.prompts), prompts.bench, seed=seed,
                                  ablation=self.arguments.ablation, kv=self.arguments.kv,
                                  progress=sys.stderr.isatty())
                result = {"status": "done", "task_name": prompts.train.name, **result}
            except Exception as error:  # whatever one method raises is its own result; the others go on
                result = _failure(error)
            self._count(self.folder.store(cell, {**known, **result}))

    def _prompts(self, model: Any, task: str, seed: int) -> Prompts:
        from acdc.evaluation.bench import prepare_bench
        from acdc.metrics import METRICS
        from acdc.models import check_prompts

        arguments = self.arguments
        train, test = split_prompts(task, model.tokenizer, arguments.prompts, arguments.test_prompts, seed)
        prompts = Prompts(train, None, arguments.batch_size, model)
        check_prompts(model, prompts.batches(None))
        batches = test.batches(model.tokenizer, batch_size=arguments.batch_size, device=model.device)
        check_prompts(model, batches)
        return replace(prompts, bench=prepare_bench(model, batches, METRICS[test.metric], ablation=arguments.ablation))

    def _count(self, cell: Mapping[str, Any], note: str = "") -> None:
        self.n_done += 1
        if cell["status"] == "failed":
            self.failed.append(cell)
        print(f"[{self.n_done}/{self.n_cells}] {_title(cell)}: {note or outcome(cell)}", flush=True)


def split_prompts(source: str, tokenizer: Any, n: int, n_test: int, seed: int) -> tuple[Any, Any]:
    """A task's prompts in two parts that share no prompt: drawn together, shuffled, then divided."""
    from acdc.tasks import TASKS, load_task  # pyright: ignore[reportMissingImports]

    drawn = {"n": n + n_test, "seed": seed} if source in TASKS else {}  # all that a file holds
    task = load_task(source, tokenizer, **drawn)
    examples = list({example.clean: example for example in task.examples}.values())
    if len(examples) < n + n_test:
        raise AcdcError(f"task {source!r} has {len(examples):,} different prompts; --prompts {n} and --test-prompts "
                        f"{n_test} ask for {n + n_test:,}. Ask for fewer")
    random.Random(seed).shuffle(examples)
    return (replace(task, examples=tuple(examples[:n])), replace(task, examples=tuple(examples[n : n + n_test])))


def _failure(error: Exception) -> dict[str, Any]:
    """What is stored of a cell that failed; of what was not foreseen, where."""
    kind = type(error).__name__
    record: dict[str, Any] = {"status": "failed", "error": kind, "message": str(error) or kind}
    if not isinstance(error, AcdcError):
        record["traceback"] = traceback.format_exception(error)
    return record


def _title(cell: Mapping[str, Any]) -> str:
    return f"{Path(cell['model']).name}, {Path(cell['task']).stem}, {cell['method']}, seed {cell['seed']}"


def outcome(cell: Mapping[str, Any]) -> str:
    """One cell in a line."""
    if cell["status"] == "failed":
        return f"failed: {cell['message']}"
    if cell["own"]:
        found = f"f {cell['own']['f']:.2f} with its {cell['own']['n_edges']:,} edges"
    else:
        points = {point["fraction"]: point["f"] for point in cell["curves"][cell["by"]]["points"]}
        found = "f " + ", ".join(f"{points[share]:.2f} at {share:.1%}" for share in (0.005, 0.01, 0.02, 0.05))
    return f"{found}; {cell['seconds']:.0f} s, and {cell['evaluation_seconds']:.0f} s to measure"


def write_tables(folder: Path, cells: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> None:
    """All cells of the folder as JSON, CSV, Markdown, LaTeX and pictures."""
    from acdc.export.benchmark_figure import faithfulness_figure, heat_map
    from acdc.export.benchmark_tables import groups, results_csv, results_latex, results_markdown
    from acdc.export.figure import save_figure
    from acdc.output_folder import write_file

    if not cells:
        return
    texts = {"results.json": json.dumps({"settings": dict(settings), "cells": list(cells)}, indent=1),
             "results.csv": results_csv(cells), "results.md": results_markdown(cells, settings),
             "results.tex": results_latex(cells, settings)}
    for name, text in texts.items():
        write_file(folder / name, text)
    done = [cell for cell in cells if cell["status"] == "done"]
    taken: Counter[str] = Counter()
    for (model, task), own in groups(done).items():
        if any(cell["curves"] for cell in own):
            name = f"{Path(model).name}-{Path(task).stem}"
            taken[name] += 1
            save_figure(faithfulness_figure(own), folder / f"{name}{f'-{taken[name]}' * (taken[name] > 1)}.png")
    if any(cell["curves"] for cell in done):
        save_figure(heat_map(done), folder / "overview.png")
