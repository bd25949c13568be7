"""The commands: one a file, with its options and what it does. Only these modules and `acdc.cli` print."""

from types import ModuleType

from . import calibrate, diff, discover, evaluate, export, models, report, show, tasks, view

COMMANDS: dict[str, ModuleType] = {
    "discover": discover,
    "evaluate": evaluate,
    "calibrate": calibrate,
    "show": show,
    "view": view,
    "export": export,
    "report": report,
    "diff": diff,
    "tasks": tasks,
    "models": models,
}
"""Each has `HELP`, `add_options(parser)` and `run(arguments)`, and imports torch only when it runs."""
