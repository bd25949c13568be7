"""What commands that look into a model work on: the prompts of a task, or one that is typed; and where they write."""

import argparse
import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from acdc.arguments import add_device, check_placement, choose, placement
from acdc.errors import AcdcError
from acdc.output_folder import write_file

from .loading import load, quiet_libraries
from .printing import say


def add_prompts(parser: argparse.ArgumentParser, n: int, *, corrupted: bool = False) -> None:
    """`n`: how many prompts of a task are taken; `corrupted`: whether a typed prompt needs a corrupted one."""
    parser.add_argument("--model", default="smollm2", help="packaged model, hub name or local folder")
    parser.add_argument("--task", help="a built-in task, or a .json, .jsonl, .csv or .py file of prompts")
    parser.add_argument("--prompt", help="one prompt, in place of a task")
    if corrupted:
        parser.add_argument("--corrupted", help="the corrupted prompt to --prompt, of as many tokens")
    parser.add_argument("--answer", help="what continues --prompt: one token, with its space: ' Mary'")
    parser.add_argument("--wrong", help="a token that does not" + (
        "" if corrupted else " (default: the likeliest one but the answer)"))
    parser.add_argument("--prompts", type=int, default=n, help="how many of the task")
    parser.add_argument("--seed", type=int, default=0, help="which prompts are drawn, and what else is random")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float64")
    add_device(parser)
    add_out(parser)
    parser.set_defaults(metric=None, ablation="resample", split=None, split_by=None)


def add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")


def load_prompts(arguments: argparse.Namespace) -> tuple[Any, list[Any], str]:
    """The model, the batches, and what they are called."""
    if (arguments.task is None) == (arguments.prompt is None):
        raise AcdcError("give either --task, or --prompt with --answer")
    if arguments.task is not None:
        typed = [name for name in ("answer", "wrong", "corrupted") if getattr(arguments, name, None) is not None]
        if typed:
            raise AcdcError(f"--{typed[0]} belongs to --prompt; a task says its own")
        model, task, batches = load(arguments)
        return model, batches, f"{len(task)} prompts of {task.name}"
    if arguments.answer is None:
        raise AcdcError("--prompt without --answer: say what continues it, such as --answer ' Mary'")
    model = load_one(arguments)
    return model, [_typed(arguments, model)], arguments.prompt


def load_one(arguments: argparse.Namespace) -> Any:
    """The model alone."""
    from acdc.models import DTYPES, load_model

    choose("dtype", arguments.dtype, DTYPES)
    check_placement(arguments)
    quiet_libraries()
    say(f"loading {arguments.model}")
    return load_model(arguments.model, dtype=arguments.dtype, **placement(arguments))


def _typed(arguments: argparse.Namespace, model: Any) -> Any:
    """The batch of one typed prompt; where no corrupted one is asked for, the prompt stands for it."""
    import torch

    from acdc.models import check_prompts
    from acdc.task import Batch, Example, Task, answer_token

    prompt, corrupted = arguments.prompt, getattr(arguments, "corrupted", None)
    if hasattr(arguments, "corrupted"):
        if corrupted is None or arguments.wrong is None:
            raise AcdcError("--prompt needs --corrupted, --answer and --wrong here: what is patched is the difference")
        example = Example(prompt, corrupted, arguments.answer, arguments.wrong)
        (batch,) = Task("prompt", (example,)).batches(model.tokenizer, device=model.device)
        check_prompts(model, [batch])
        return batch
    ids = model.tokenizer(prompt)["input_ids"]
    if not ids:
        raise AcdcError("the prompt is empty; give some text")
    tokens = torch.tensor([ids], device=model.device)
    answer = answer_token(model.tokenizer, prompt, ids, arguments.answer)
    given = torch.tensor([answer], device=model.device)
    example = Example(prompt, prompt, arguments.answer, arguments.wrong or "")
    check_prompts(model, [Batch(tokens, tokens, given, given, (example,))])
    if arguments.wrong is None:
        with torch.no_grad():
            logits = model.hf(input_ids=tokens, attention_mask=model.full_mask(tokens)).logits[0, -1].clone()
        logits[answer] = -torch.inf
        wrong = int(logits.argmax())
    else:
        wrong = answer_token(model.tokenizer, prompt, ids, arguments.wrong)
    if wrong == answer:
        raise AcdcError(f"answer and wrong answer are the same, {arguments.answer!r}")
    return Batch(tokens, tokens, given, torch.tensor([wrong], device=model.device), (example,))


def texts(model: Any, tokens: Any) -> list[str]:
    return [model.tokenizer.decode([token]) for token in tokens.tolist()]


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)  # lines end in \r\n, as RFC 4180 has it, so that either in a token is quoted
    writer.writerow(columns)
    writer.writerows([repr(float(x)) if isinstance(x, float) else x for x in row] for row in rows)
    return text.getvalue().encode()


def write(folder: Any, files: Mapping[str, bytes]) -> None:
    """Fills the `OutputFolder` with what it was opened for."""
    for name, content in files.items():
        write_file(folder.path / name, content)


def as_json(data: Any) -> bytes:
    return (json.dumps(data, indent=1, allow_nan=False) + "\n").encode()
