"""The commands: one a file, with its options and what it does. Only these modules and `acdc.cli` print."""

from types import ModuleType

from . import (
    annotate,
    benchmark,
    calibrate,
    compare,
    diff,
    discover,
    evaluate,
    export,
    import_circuit,
    lens,
    models,
    monitor,
    patch,
    report,
    sae,
    show,
    steer,
    tasks,
    test,
    trace,
    tune_lens,
    view,
)

COMMANDS: dict[str, ModuleType] = {
    "discover": discover,
    "evaluate": evaluate,
    "calibrate": calibrate,
    "test": test,
    "compare": compare,
    "benchmark": benchmark,
    "annotate": annotate,
    "sae": sae,
    "lens": lens,
    "tune-lens": tune_lens,
    "trace": trace,
    "patch": patch,
    "steer": steer,
    "monitor": monitor,
    "show": show,
    "view": view,
    "export": export,
    "import": import_circuit,
    "report": report,
    "diff": diff,
    "tasks": tasks,
    "models": models,
}
"""Each has `HELP`, `add_options(parser)` and `run(arguments)`, and imports torch only when it runs."""
