"""`acdc benchmark`: methods × tasks × models, each cell stored as it is finished, and tables of all of them."""

import argparse
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from acdc.arguments import add_cluster, add_device, add_memory, check_measuring, choose
from acdc.errors import AcdcError
from acdc.packaged import sha256

from .benchmark_cells import NOTHING_LOADED, Cell, Desk, failure, make_desk, measured, other_weights
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
    add_device(parser)
    add_memory(parser)
    parser.add_argument("--out", type=Path, default=Path("benchmark"), help="folder of results; one that is there is "
                        "gone on with")
    parser.add_argument("--retry-failed", action="store_true", help="also measure again what failed")
    add_cluster(parser, "cells are measured")


def run(arguments: argparse.Namespace) -> None:
    from acdc.grid.folder import grid_folder

    runs = _check(arguments)
    settings = {name: getattr(arguments, name) for name in SETTINGS}
    with grid_folder(arguments.out, settings) as folder:
        grid = Grid(arguments, folder, runs)
        try:
            grid.measure()
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


def _workers(arguments: argparse.Namespace) -> Any:
    """The processes that measure cells: none but this one, unless --ray asks for them."""
    if arguments.ray is None:
        return nullcontext()
    import torch

    from acdc.ray_workers import ray_workers

    device = torch.device(arguments.device).type  # each sees no GPUs but its own
    alike = {key: value for key, value in vars(arguments).items() if key != "run"}
    return ray_workers(partial(make_desk, argparse.Namespace(**{**alike, "device": device})), arguments.ray,
                       arguments.workers, device=device)


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
        from acdc.tasks import TASKS  # pyright: ignore[reportMissingImports]

        return {task: None if task in TASKS else sha256(Path(task)) for task in self.arguments.tasks}

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

    def measure(self) -> None:
        """All cells that are missing; if there are any, with workers where they are asked for."""
        arguments = self.arguments
        todo = [entry for model in arguments.models for task in arguments.tasks for seed in arguments.seeds
                for entry in self.missing(model, task, seed)]
        if not todo:
            return
        desk = Desk(arguments)
        with _workers(arguments) as workers:
            if workers is not None:
                workers.stand_for(desk, NOTHING_LOADED)
            self.measure_all(todo, desk, workers)

    def measure_all(self, todo: Sequence[tuple[Any, dict[str, Any]]], desk: Desk, workers: Any) -> None:
        """Cells are stored here, as they are finished, wherever they were measured."""
        from acdc.cluster import finished
        from acdc.ray_workers import LostError

        weights = {cell["model"]: cell["model_sha256"] for cell in self.folder.all_cells() if "model_sha256" in cell}
        for i, found in finished(workers, partial(measured, desk), self._begun(todo, weights, workers is not None)):
            names = todo[i][1]
            (result,) = [failure(found)] if isinstance(found, LostError) else found
            sha = result.get("model_sha256")
            if sha is not None and weights.setdefault(names["model"], sha) != sha:
                raise other_weights(self.folder.path, names["model"])
            self._count(self.folder.store(names, result))

    def _begun(self, todo: Sequence[tuple[Any, dict[str, Any]]], weights: Mapping[str, str], elsewhere: bool
               ) -> Iterator[Cell]:
        """Each cell when its turn comes. `elsewhere`: paths must be known from other folders, too."""
        for number, (run, names) in enumerate(todo, self.n_done + 1):
            say(f"[{number}/{self.n_cells}] {_title(names)} ...")
            model, task = names["model"], names["task"]
            if elsewhere:
                model = os.path.abspath(model) if Path(model).is_dir() else model
                task = os.path.abspath(task) if names["task_sha256"] else task
            yield Cell(names, run, model, task, weights.get(names["model"]))

    def _count(self, cell: Mapping[str, Any], note: str = "") -> None:
        self.n_done += 1
        if cell["status"] == "failed":
            self.failed.append(cell)
        print(f"[{self.n_done}/{self.n_cells}] {_title(cell)}: {note or outcome(cell)}", flush=True)


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
    from acdc.grid.folder import file_word
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
            name = f"{file_word(Path(model).name)}-{file_word(Path(task).stem)}"
            taken[name] += 1
            save_figure(faithfulness_figure(own), folder / f"{name}{f'-{taken[name]}' * (taken[name] > 1)}.png")
    if any(cell["curves"] for cell in done):
        save_figure(heat_map(done), folder / "overview.png")
