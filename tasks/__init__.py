"""Which tasks are built in, and how one is loaded by name or from a file.

A builder is a function `name(tokenizer, *, n=32, seed=0, ...) -> Task`; the first line of its docstring
describes it.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from acdc.errors import AcdcError, unknown_name
from acdc.task import Task, Tokenizer

from . import file, induction, ioi

TaskBuilder = Callable[..., Task]

TASKS: dict[str, TaskBuilder] = {
    "ioi": ioi.ioi,
    "induction": induction.induction,
}


def load_task(name_or_path: str | Path, tokenizer: Tokenizer, *, n: int | None = None, seed: int = 0,
              **options: Any) -> Task:
    """The built-in task of that name, or the task in that .json, .jsonl or .csv file.

    `n`: by default what the builder makes, or all that the file holds (else its first `n`).
    `seed`: what a builder draws by; nothing is drawn from a file. `options` go to the builder.

        task = load_task("ioi", tokenizer, n=64)
        task = load_task("prompts.jsonl", tokenizer)
    """
    name = str(name_or_path)
    if name in TASKS:
        builder = TASKS[name]
        known = [key for key, p in inspect.signature(builder).parameters.items() if p.kind is p.KEYWORD_ONLY]
        for option in options:
            if option not in known:
                raise unknown_name(f"option of task {name!r}", option, known)
        return builder(tokenizer, **({} if n is None else {"n": n}), seed=seed, **options)
    path = Path(name_or_path)
    if path.suffix.lower() in file.READERS or path.exists():
        if options:
            raise AcdcError(f"a task file takes no options; given {', '.join(options)} with {name!r}")
        return file.task_from_file(path, tokenizer, n=n)
    raise AcdcError(f"{unknown_name('task', name, TASKS)}. The path of a .json, .jsonl or .csv file will do too")
