"""What one process does for `acdc benchmark`: measures one cell after another, and keeps the model and the prompts."""

import argparse
import random
import sys
import traceback
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from acdc.arguments import placement, size_of
from acdc.errors import AcdcError
from acdc.packaged import sha256

from .loading import planned, quiet_libraries
from .printing import say

NOTHING_LOADED = "no model yet"


@dataclass(frozen=True)
class Cell:
    """One cell of the grid. `names`: what it is stored under; `model`, `task`: where they are loaded from;
    `model_sha256`: which weights other cells have of this model, if there are any."""

    names: dict[str, Any]
    run: Any
    model: str
    task: str
    model_sha256: str | None


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


class Desk:
    """Where cells are measured: the model and the prompts of the last one stay, for the next."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.model: Any = None
        self.loaded = ""
        self.sha = ""
        self.prompts: Prompts | AcdcError | None = None
        self.prepared: tuple[str, int] | None = None

    def measure(self, cell: Cell) -> dict[str, Any]:
        """What is stored of it; whatever its task or method raises is its result.

        Raises `AcdcError` for a model that cannot be loaded or has other weights, or a task that is not the same here.
        """
        from acdc.grid.cell import run_cell

        self._load(cell)
        known = {"model_sha256": self.sha}
        prompts = self._prepare(cell)
        if isinstance(prompts, AcdcError):
            return {**known, **failure(prompts)}
        arguments = self.arguments
        try:
            result = run_cell(self.model, cell.run, self._planned(cell.run, prompts), prompts.bench,
                              seed=cell.names["seed"], ablation=arguments.ablation, kv=arguments.kv,
                              progress=sys.stderr.isatty())
            return {**known, "status": "done", "task_name": prompts.train.name, **result}
        except Exception as error:  # whatever one method raises is its own result; the others go on
            return {**known, **failure(error)}

    def _planned(self, run: Any, prompts: Prompts) -> list[Any]:
        """The prompts of a method's run, as many at once as fit; says what it will take."""
        from acdc.metrics import METRICS
        from acdc.stages import stages_of_curves, stages_of_method

        model, arguments, bench = self.model, self.arguments, prompts.bench
        batches, graph, options = prompts.batches(run.prompts), model.graph(arguments.kv), dict(run.options)
        if run.shortlist is not None:
            options["shortlist"] = size_of(run.shortlist, graph.n_edges)
        metric = METRICS[run.loss] if run.loss else bench.metric
        scoring = {"ablation": arguments.ablation, "kv": arguments.kv, "positions": "all"}
        return planned(copy(arguments), model, batches, lambda: [
            *stages_of_method(model, run.method, batches, metric, options, scoring),
            *stages_of_curves(model, graph, bench.metric, bench.ablation, 2)])

    def _load(self, cell: Cell) -> None:
        from acdc.models import load_model, weights_hash

        if self.loaded != cell.model:
            self.model = self.prompts = self.prepared = None
            quiet_libraries()
            say(f"loading {cell.model}")
            self.model = load_model(cell.model, dtype=self.arguments.dtype, **placement(self.arguments))
            self.loaded, self.sha = cell.model, weights_hash(self.model)
        if cell.model_sha256 not in (None, self.sha):
            raise other_weights(self.arguments.out, cell.names["model"])

    def _prepare(self, cell: Cell) -> Prompts | AcdcError:
        """The prompts of the cell's task and seed, or why there are none, such as a task that the model cannot do."""
        seed, sha = cell.names["seed"], cell.names["task_sha256"]
        if self.prepared != (cell.task, seed):
            if sha is not None and sha256(Path(cell.task)) != sha:
                raise AcdcError(f"{cell.task} is not the same file everywhere, or has changed since the start")
            self.prepared, self.prompts = None, None
            try:
                self.prompts = self._prompts(cell.task, seed)
            except AcdcError as error:
                self.prompts = error
            self.prepared = (cell.task, seed)
        assert self.prompts is not None
        return self.prompts

    def _prompts(self, task: str, seed: int) -> Prompts:
        from acdc.evaluation.bench import prepare_bench
        from acdc.metrics import METRICS
        from acdc.models import check_prompts

        arguments, model = self.arguments, self.model
        train, test = split_prompts(task, model.tokenizer, arguments.prompts, arguments.test_prompts, seed)
        prompts = Prompts(train, None, arguments.batch_size, model)
        check_prompts(model, prompts.batches(None))
        batches = test.batches(model.tokenizer, batch_size=arguments.batch_size, device=model.device)
        check_prompts(model, batches)
        return replace(prompts, bench=prepare_bench(model, batches, METRICS[test.metric], ablation=arguments.ablation))


def measured(desk: Desk, cell: Cell) -> Iterator[dict[str, Any]]:
    yield desk.measure(cell)


def make_desk(arguments: argparse.Namespace) -> tuple[Desk, str]:
    return Desk(arguments), NOTHING_LOADED


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


def other_weights(folder: Path, model: str) -> AcdcError:
    return AcdcError(f"{folder} holds results of {model!r} with other weights; give another --out")


def failure(error: Exception) -> dict[str, Any]:
    """What is stored of a cell that failed; of what was not foreseen, where."""
    kind = type(error).__name__
    if isinstance(error, AcdcError):
        return {"status": "failed", "error": AcdcError.__name__, "message": str(error) or kind}
    return {"status": "failed", "error": kind, "message": str(error) or kind,
            "traceback": traceback.format_exception(error)}
