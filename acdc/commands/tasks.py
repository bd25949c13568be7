"""`acdc tasks`: lists the built-in tasks, measures whether a model can do them, or tells all about one."""

import argparse
import inspect
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from acdc.arguments import check_device, choose
from acdc.errors import AcdcError
from acdc.output_folder import write_file

from .loading import quiet_libraries

HELP = "list the built-in tasks, and whether a model can do them; or tell all about one"
COLUMNS = {
    "possible": ("prompts", 9), "n_templates": ("templates", 10), "length": ("tokens", 7), "clean": ("clean", 8),
    "corrupted": ("corrupted", 10), "accuracy": ("accuracy", 9), "corrupted_accuracy": ("corrupted", 10),
    "able": ("able", 5), "seconds": ("seconds", 8),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="tell all about this one: a built-in task, or a file")
    parser.add_argument("--tokenizer", help="say how many prompts each can make with the tokenizer of this model, "
                        "without loading the model (default for one task: smollm2)")
    parser.add_argument("--model", help="measure how well this model does each, on its clean and corrupted prompts")
    parser.add_argument("--prompts", type=int, help="with --model: how many pairs of prompts (default: 32, or all of "
                        "a file)")
    parser.add_argument("--seed", type=int, default=0, help="which prompts are drawn")
    parser.add_argument("--split", help="of one part of each task only, train or test")
    parser.add_argument("--split-by", help="what its two parts do not share: template or word")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float64")
    parser.add_argument("--batch-size", type=int, default=32, help="prompts a forward pass")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--out", type=Path, help="also write what is printed of the tasks to this JSON file")


def run(arguments: argparse.Namespace) -> None:
    from acdc.models import DTYPES, load_model, load_tokenizer
    from acdc.tasks import TASKS  # pyright: ignore[reportMissingImports]

    choose("dtype", arguments.dtype, DTYPES)
    check_device(arguments.device)
    for option in ("prompts", "batch_size"):
        value = getattr(arguments, option)
        if value is not None and value < 1:
            raise AcdcError(f"--{option.replace('_', '-')} {value}: it must be at least 1")
    if arguments.model and arguments.tokenizer:
        raise AcdcError("--tokenizer and --model: give one; a model comes with its tokenizer")
    if arguments.name and not arguments.model:
        arguments.tokenizer = arguments.tokenizer or "smollm2"
    if not (arguments.model or arguments.tokenizer):
        if arguments.out:
            raise AcdcError("--out needs --tokenizer or --model: without them there are no numbers to write")
        print("".join(f"{name:<{_width(TASKS)}} {_title(builder)}\n" for name, builder in TASKS.items()))
        print("or the path of a .json, .jsonl or .csv file of clean, corrupted, answer, wrong, or of a .py file with a "
              "builder\n`--model smollm2` says which of them that model can do, NAME tells all about one")
        return
    quiet_libraries()
    model = load_model(arguments.model, dtype=arguments.dtype, device=arguments.device) if arguments.model else None
    tokenizer = load_tokenizer(arguments.tokenizer) if model is None else model.tokenizer
    if arguments.name:
        records = [_record(arguments.name, arguments, tokenizer, model)]
        print("".join(_details(arguments.name, records[0], tokenizer)), end="")
    else:
        records = []
        print(_header(_width(TASKS), model is not None))
        for name in TASKS:
            try:
                records.append(_record(name, arguments, tokenizer, model))
            except AcdcError as error:  # said in its line; the others can be made
                records.append({"task": name, "cannot": str(error)})
            print(_line(_width(TASKS), records[-1]), flush=True)
    if arguments.out:
        plain = [{key: value for key, value in record.items() if key != "made"} for record in records]
        write_file(arguments.out, json.dumps(plain, indent=1, allow_nan=False))
        print(f"written to {arguments.out}")


def _record(name: str, arguments: argparse.Namespace, tokenizer: Any, model: Any) -> dict[str, Any]:
    """What there is to say of one task, with this tokenizer and model."""
    from acdc.evaluation.task_check import check_task
    from acdc.metrics import METRICS
    from acdc.models import check_prompts
    from acdc.tasks import TASKS, load_task  # pyright: ignore[reportMissingImports]

    n = arguments.prompts if model else 4 if name in TASKS else None
    task = load_task(name, tokenizer, n=n, seed=arguments.seed, split=arguments.split, by=arguments.split_by)
    batches = task.batches(tokenizer, batch_size=arguments.batch_size, device=arguments.device)
    found = {
        "task": name, "source": task.source, "possible": task.provenance.get("possible"),
        "n_templates": len({example.template for example in task.examples}) if name not in TASKS
        else len(task.provenance.get("templates", [])),
        "length": sorted({batch.clean.shape[1] for batch in batches}), "dropped": task.provenance.get("dropped", {}),
        "split": arguments.split, "made": task,
    }
    if model is None:
        return found
    check_prompts(model, batches)
    start = time.perf_counter()
    check = check_task(model, batches, METRICS[task.metric])
    return {**found, "model": arguments.model, "seed": arguments.seed, **vars(check), "able": check.able,
            "seconds": round(time.perf_counter() - start, 2)}


def _width(tasks: Mapping[str, Any]) -> int:
    return max(map(len, tasks))


def _title(builder: Any) -> str:
    return (inspect.getdoc(builder) or "").splitlines()[0]


def _header(width: int, measured: bool) -> str:
    shown = list(COLUMNS.items())[: None if measured else 3]
    above = " " * (width + 1 + sum(size + 1 for _, (_, size) in shown[:3]))
    lines = [f"{above}{'metric':>17}{'answer > wrong':>22}"] if measured else []
    return "\n".join([*lines, f"{'':<{width}} " + " ".join(f"{title:>{size}}" for _, (title, size) in shown)])


def _line(width: int, record: Mapping[str, Any]) -> str:
    if "cannot" in record:
        return f"{record['task']:<{width}} cannot be made: {record['cannot']}"
    cells = [f"{_cell(key, record[key]):>{size}}" for key, (_, size) in COLUMNS.items() if key in record]
    return f"{record['task']:<{width}} {' '.join(cells)}"


def _cell(key: str, value: Any) -> str:
    if key == "possible":
        return "-" if value is None else f"{value:,}" if value < 10**6 else f"{value:.1e}"
    if key == "length":
        return ", ".join(map(str, value))
    if key in ("accuracy", "corrupted_accuracy"):
        return f"{value:.0%}"
    if key == "able":
        return "yes" if value else "no"
    return f"{value:.1f}" if key == "seconds" else f"{value:.3f}" if isinstance(value, float) else f"{value or '-'}"


def _details(name: str, record: Mapping[str, Any], tokenizer: Any) -> Iterator[str]:
    from acdc.tasks import TASKS  # pyright: ignore[reportMissingImports]

    task = record["made"]
    about = f"{task.name}: {task.description}\n\nSource: {task.source}"
    if name in TASKS:
        about = inspect.getdoc(TASKS[name])
    yield f"{about}\n\n{_header(0, 'clean' in record)}\n{_line(0, {**record, 'task': ''})}\n"
    for kind, words in record["dropped"].items():
        if words:
            shown = [word if isinstance(word, str) else "/".join(word) for word in words]
            why = "of another length" if kind == "templates" else "not single tokens"
            yield f"{len(shown)} {kind} dropped, {why}: {', '.join(shown[:9])}{', ...' if len(shown) > 9 else ''}\n"
    for example in task.examples[:3]:
        tokens = [tokenizer.decode([i]) for i in tokenizer(example.clean)["input_ids"]]
        yield (f"\nclean      {example.clean!r}\ncorrupted  {example.corrupted!r}\nanswer     {example.answer!r}, not "
               f"{example.wrong!r}\nroles      "
               f"{', '.join(f'{role} {place} {tokens[place]!r}' for role, place in example.roles.items()) or 'none'}\n")
