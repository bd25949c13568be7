"""Which tasks are built in, and how one is loaded by name or from a file.

A builder is a function `name(tokenizer, *, n=32, seed=0, split=None, by=None, ...) -> Task`; the first line of its
docstring describes it.
"""

import hashlib
import inspect
import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from acdc.errors import AcdcError, unknown_name
from acdc.task import Task, Tokenizer

from . import (
    acronym,
    arithmetic,
    capitals,
    colored_objects,
    digits,
    docstring,
    file,
    gendered_pronoun,
    greater_than,
    hypernymy,
    induction,
    ioi,
    mcqa,
    subject_verb_agreement,
)

TaskBuilder = Callable[..., Task]

TASKS: dict[str, TaskBuilder] = {
    "ioi": ioi.ioi,
    "greater_than": greater_than.greater_than,
    "docstring": docstring.docstring,
    "gendered_pronoun": gendered_pronoun.gendered_pronoun,
    "subject_verb_agreement": subject_verb_agreement.subject_verb_agreement,
    "agreement_relative": subject_verb_agreement.agreement_relative,
    "agreement_prepositional": subject_verb_agreement.agreement_prepositional,
    "capitals": capitals.capitals,
    "induction": induction.induction,
    "arithmetic": arithmetic.arithmetic,
    "mcqa": mcqa.mcqa,
    "colored_objects": colored_objects.colored_objects,
    "acronym": acronym.acronym,
    "hypernymy": hypernymy.hypernymy,
    "digits": digits.digits,
}


def load_task(name_or_path: str | Path, tokenizer: Tokenizer, *, n: int | None = None, seed: int = 0,
              split: str | None = None, by: str | None = None, **options: Any) -> Task:
    """The built-in task of that name, or the task in that .json, .jsonl, .csv or .py file.

    `n`: by default what the builder makes, or all that the file holds (else its first `n`).
    `seed`: what a builder draws by; nothing is drawn from a file of examples. `options` go to the builder.
    `split`: "train" or "test", which share no template (`by="template"`, the default) or no word that fills a slot
    (`by="word"`, the default where there are no templates); None: all. The words and templates that can be used are
    split, so that options and tokenizer must be the same for both.

    A .py file is run: it must define a builder of the file's name. Only give one that you would run yourself.

        task = load_task("ioi", tokenizer, n=64)
        test = load_task("ioi", tokenizer, n=64, split="test")
        task = load_task("prompts.jsonl", tokenizer)
    """
    name, path = str(name_or_path), Path(name_or_path)
    asked: dict[str, Any] = {key: value for key, value in (("n", n), ("split", split), ("by", by)) if value is not None}
    if name in TASKS:
        return _build(TASKS[name], name, tokenizer, seed=seed, **asked, **options)
    if path.suffix.lower() == ".py":
        builder, sha256 = _builder_in(path)
        task = _build(builder, path.stem, tokenizer, seed=seed, **asked, **options)
        if not isinstance(task, Task):
            raise AcdcError(f"{path}: {path.stem} must return an acdc.task.Task, not {type(task).__name__}")
        return replace(task, provenance={**task.provenance, "file": path.name, "sha256": sha256})
    if path.suffix.lower() in file.READERS or path.exists():
        if options:
            raise AcdcError(f"a task file takes no options; given {', '.join(options)} with {name!r}")
        return file.task_from_file(path, tokenizer, **asked)
    raise AcdcError(
        f"{unknown_name('task', name, TASKS)}. The path of a .json, .jsonl, .csv or .py file will do too"
    )


def _build(builder: TaskBuilder, name: str, tokenizer: Tokenizer, **options: Any) -> Task:
    known = [key for key, p in inspect.signature(builder).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            raise unknown_name(f"option of task {name!r}", option, known)
    return builder(tokenizer, **options)


def _builder_in(path: Path) -> tuple[TaskBuilder, str]:
    """The function of the file's name that running the file defines, and the file's sha256."""
    try:
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise AcdcError(f"task file {path} cannot be read: {error.strerror}") from error
    try:
        builder: TaskBuilder | None = runpy.run_path(str(path)).get(path.stem)
    except Exception as error:  # whatever the user's file raises
        raise AcdcError(f"task file {path} cannot be run: {type(error).__name__}: {error}") from error
    if not callable(builder):
        raise AcdcError(
            f"task file {path} defines no function {path.stem!r}; it must hold a builder of its own name, such as "
            f"def {path.stem}(tokenizer, *, n=32, seed=0) -> Task"
        )
    return builder, sha256
