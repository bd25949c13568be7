"""What a command works on: the model, the task and its batches that the arguments or a saved circuit name."""

import argparse
import hashlib
import importlib.metadata
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from acdc import input_file
from acdc.arguments import check_measuring, placement
from acdc.errors import AcdcError
from acdc.output_folder import PLAN, beside, write_file
from acdc.packaged import sha256

from .printing import say

NOT_OF_THE_RESULT = {"run", "command_line", "out", "overwrite", "journal", "checkpoint", "ray", "workers", "memory"}
SMALL = 30.0  # seconds of as many passes as there are edges: of smaller models no plan is measured


def load(arguments: argparse.Namespace) -> tuple[Any, Any, Any]:
    """The model, the task and its batches that the arguments ask for."""
    from acdc.models import check_prompts, load_model
    from acdc.tasks import load_task  # pyright: ignore[reportMissingImports]

    check_measuring(arguments)
    quiet_libraries()
    say(f"loading {arguments.model}")
    model = load_model(arguments.model, dtype=arguments.dtype, **placement(arguments))
    task = load_task(arguments.task, model.tokenizer, n=arguments.prompts, seed=arguments.seed, split=arguments.split,
                     by=arguments.split_by)
    batches = task.batches(model.tokenizer, batch_size=arguments.batch_size, device=model.device)
    check_prompts(model, batches)
    return model, task, batches


def spread(arguments: argparse.Namespace, model: Any) -> AbstractContextManager[Any]:
    """The model, with workers where --ray asks for them."""
    from acdc.cluster import on_ray

    if arguments.ray is None:
        return nullcontext(model)
    say("starting workers")
    return on_ray(model, arguments.ray, arguments.workers)


@contextmanager
def goes_on(arguments: argparse.Namespace, target: Path | None, spent: list[Path], model: Any, batches: Any
            ) -> Iterator[None]:
    """Inside, what is computed is kept beside `target`, and a run of the same command goes on from it."""
    from acdc.discovery.journal import hash_of_prompts
    from acdc.models import weights_hash
    from acdc.pieces import resumable

    if target is None:
        yield
        return
    run = {**_given(arguments), "model": weights_hash(model), "prompts": hash_of_prompts(batches),
           "examples": repr([batch.examples for batch in batches]),
           "versions": [importlib.metadata.version(package) for package in ("acdc", "torch", "transformers")]}
    with resumable(target, run, spent) as found:
        if found:
            say(f"going on from {spent[-1]}")
        yield


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that a result depends on."""
    return {name: _content(value) for name, value in vars(arguments).items() if name not in NOT_OF_THE_RESULT}


def _content(value: Any) -> Any:
    """What an option says; of files, what they hold."""
    if isinstance(value, list):
        return [_content(one) for one in value]
    if not isinstance(value, Path):
        return value
    if (value / "circuit.json").is_file():
        value = value / "circuit.json"
    files = sorted(path for path in value.iterdir() if path.is_file()) if value.is_dir() else [value]
    return [sha256(path) for path in files if path.is_file()]


def planned(arguments: argparse.Namespace, model: Any, batches: Sequence[Any], stages: Callable[[], Sequence[Any]],
            target: Path | None = None, spent: list[Path] | None = None) -> list[Any]:
    """Batches of as many prompts as fit in what is free, or in --memory; says what the run, made of `stages`, will
    take. Of a small model, with which a run may take less than its plan, only a pass is measured. Beside `target` it is
    kept, as one of `spent`, how many they are: a run that goes on has as many at once, however much is free then."""
    from acdc.fitting import most_at_once
    from acdc.planning import gib, make_plan, rebatched, seconds_of_pass

    memory = None if arguments.memory is None else gib(arguments.memory)
    a_pass = seconds_of_pass(model, batches)
    if memory is None and a_pass * model.graph().n_edges < SMALL:
        say(f"plan: a forward pass of all prompts takes {1000 * a_pass:.0f} ms; acdc plan measures more")
        return list(batches)
    plan = make_plan(model, batches, stages(), memory=memory, quick=memory is None, pass_seconds=a_pass)
    say(plan.line())
    at_once, most = plan.at_once, most_at_once(batches)
    if target is not None and spent is not None:
        at_once = _as_before(beside(target, PLAN), _given(arguments), at_once, most)
        spent.append(beside(target, PLAN))
    if at_once != plan.at_once:
        say(f"{at_once} prompts at once, as when this run began")
    if at_once == most:
        return list(batches)
    arguments.batch_size = at_once
    return rebatched(batches, at_once)


def _as_before(path: Path, run: Mapping[str, Any], at_once: int, most: int) -> int:
    """How many prompts the same run had at once when it began; if it begins now, `at_once`, which is written."""
    digest = hashlib.sha256(json.dumps(run, sort_keys=True, default=str).encode()).hexdigest()
    try:
        first, of, *_ = input_file.read_text(path).split()
        if of == digest and 1 <= int(first) <= most:
            return int(first)
    except (OSError, ValueError, AcdcError):  # it is not there, or no such file
        pass
    write_file(path, f"{at_once} {digest}\n")
    return at_once


def quiet_libraries() -> None:
    """What loads models says nothing of its own."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def load_again(arguments: argparse.Namespace, circuit: Any, known: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """The model, the task and its batches for a saved circuit; what was not given is taken from `known`."""
    from acdc.models import weights_hash
    from acdc.patching import check_graph

    _complete(arguments, known)
    model, task, batches = load(arguments)
    check_graph(model, circuit.graph)
    if "model_sha256" in known and not arguments.other_weights and weights_hash(model) != known["model_sha256"]:
        raise AcdcError(
            f"the circuit was found in {known.get('model')!r} ({known.get('dtype')}) with other weights than "
            f"{arguments.model!r} ({arguments.dtype}) has: their sha256 is not {known['model_sha256']!r}. Give that "
            "model, or --other-weights to compare checkpoints"
        )
    if arguments.task == known.get("task_source") and known.get("task_sha256") != task.provenance.get("sha256"):
        say(f"note: {arguments.task} is not as it was when the circuit was found")
    return model, task, batches


def _complete(arguments: argparse.Namespace, known: Mapping[str, Any]) -> None:
    """Takes what was not given from the circuit. How many prompts, and of which part, holds for its own task only."""
    given = getattr(arguments, "split", None)
    if given not in (None, known.get("split")) and Path(str(known.get("task_source"))).suffix:
        known = {**known, "n_prompts": None}  # another part of a file may hold fewer
    for key in ("split", "split_by"):  # None: all prompts
        if getattr(arguments, key, None) is None:
            value = known.get(key) if arguments.task is None else None
            if value is not None and not isinstance(value, str):
                raise AcdcError(f"{arguments.circuit}: {key} is {value!r}, not str; give --{key.replace('_', '-')}")
            setattr(arguments, key, value)
    if arguments.task is None:
        refuse_python(known.get("task_source"))
    if arguments.task is not None and getattr(arguments, "prompts", None) is None:
        known = {**known, "n_prompts": None}
    for name, key in (("model", "model"), ("task", "task_source"), ("metric", "metric"), ("ablation", "ablation"),
                      ("prompts", "n_prompts"), ("seed", "seed"), ("dtype", "dtype")):
        if getattr(arguments, name, None) is None:
            if key not in known:
                raise AcdcError(f"{arguments.circuit} does not say its {name}; give --{name}")
            kind = int if name in ("prompts", "seed") else str
            if not isinstance(known[key], kind) and not (name == "prompts" and known[key] is None):
                raise AcdcError(f"{arguments.circuit}: {key} is {known[key]!r}, not {kind.__name__}; give --{name}")
            setattr(arguments, name, known[key])


def refuse_python(source: Any) -> None:
    """A circuit file, which may come from anybody, must not say which Python is run."""
    if Path(str(source)).suffix.lower() == ".py":
        raise AcdcError(
            f"the circuit's prompts are made by a Python file, {source}, which is only run if you ask for it: give it "
            "as --task"
        )


def read_circuit(path: Path, *, with_prompts: bool = False) -> Any:
    """The circuit in a file or folder. `with_prompts`: with the scores of single prompts, where the folder has them."""
    from acdc.export.json_file import circuit_from_json
    from acdc.export.prompt_scores import FILE, with_prompt_scores

    path = path / "circuit.json" if path.is_dir() else path
    try:
        circuit = circuit_from_json(input_file.read_text(path, input_file.LARGE), source=str(path))
    except FileNotFoundError as error:
        remedy = "give the circuit.json, or the folder, that discover wrote"
        raise AcdcError(f"no circuit file {str(path)!r}; {remedy}") from error
    except UnicodeDecodeError as error:
        raise AcdcError(f"{path} is not a circuit file: it is not UTF-8 text") from error
    beside = path.with_name(FILE)
    has_prompts = with_prompts and path.name == "circuit.json" and beside.exists()
    return with_prompt_scores(circuit, beside) if has_prompts else circuit


def read_annotations(arguments: argparse.Namespace) -> list[Any]:
    """What is known of the circuit's nodes: what --annotations names, or annotations.json beside it."""
    from acdc.export.annotations_file import annotations_from_json

    folder = arguments.circuit if arguments.circuit.is_dir() else arguments.circuit.parent
    path = arguments.annotations or folder / "annotations.json"
    return annotations_from_json(read_text(path), str(path)) if arguments.annotations or path.exists() else []


def read_text(path: Path) -> str:
    """The text of a file that the user named."""
    try:
        return input_file.read_text(path)
    except FileNotFoundError as error:
        raise AcdcError(f"no file {str(path)!r}") from error
    except UnicodeDecodeError as error:
        raise AcdcError(f"{path} cannot be read: it is not UTF-8 text") from error
