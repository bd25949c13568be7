"""The commands: one a file, with its options and what it does. Only these modules and `acdc.cli` print."""

from types import ModuleType

from . import calibrate, diff, discover, evaluate, export, models, show, tasks

COMMANDS: dict[str, ModuleType] = {
    "discover": discover,
    "evaluate": evaluate,
    "calibrate": calibrate,
    "show": show,
    "export": export,
    "diff": diff,
    "tasks": tasks,
    "models": models,
}
"""Each has `HELP`, `add_options(parser)` and `run(arguments)`, and imports torch only when it runs."""
