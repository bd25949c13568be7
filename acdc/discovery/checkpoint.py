"""The state of a training run on disk: one that is killed goes on from it to the same result."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from acdc.circuit import EdgeScores
from acdc.discovery.journal import hash_of, hash_of_prompts
from acdc.errors import AcdcError
from acdc.models import weights_hash
from acdc.output_folder import write_file
from acdc.task import Batch
from acdc.tensor_file import read_tensors, tensor_bytes
from acdc.transformer import Transformer

FORMAT = "acdc-masks"


@runtime_checkable  # so that the shape checker of the tests can check it
class State(Protocol):
    """What is saved: tensors, which `load` writes into, the number of steps done, and the loss curve so far."""

    step: int
    history: list[dict[str, float]]

    def tensors(self) -> dict[str, Tensor]: ...


class Checkpoint:
    """A file that holds the state of a run: tensors, and beside them what the run is, which must be the same to go on.

    Raises `AcdcError` where the file is not a checkpoint, or of another run (naming what differs).
    """

    def __init__(self, path: str | Path, header: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.header = {"format": FORMAT, **json.loads(json.dumps(dict(header)))}

    def save(self, state: State) -> None:
        record = {"header": json.dumps(self.header), "step": str(state.step), "history": json.dumps(state.history)}
        write_file(self.path, tensor_bytes(state.tensors(), record))

    def load(self, state: State) -> None:
        """Puts what the file holds into `state`; nothing, if there is no file yet."""
        if not self.path.exists():
            return
        what, remedy = "checkpoint of acdc", "it is left alone: delete it or give another path"
        tensors, found = read_tensors(self.path, what, remedy)
        try:
            self._check(json.loads(found.get("header", "{}")))
            step, history = int(found["step"]), json.loads(found["history"])
            held = {name: tensors[name] for name in state.tensors()}
        except (ValueError, KeyError, RecursionError) as error:
            raise self._damaged(error) from error
        for name, tensor in state.tensors().items():
            if held[name].shape != tensor.shape or not held[name].isfinite().all():
                raise self._damaged(f"{name} is of another shape, or not finite")
        if step < 0 or not (isinstance(history, list) and all(map(_is_point, history))):
            raise self._damaged("it does not say how far the run has come")
        for name, tensor in state.tensors().items():
            tensor.copy_(held[name])
        state.step, state.history = step, history

    def _damaged(self, how: object) -> AcdcError:
        return AcdcError(f"{self.path} is not a checkpoint of acdc, or is damaged ({how}), and is left alone; delete "
                         "it or give another path")

    def _check(self, header: Any) -> None:
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise AcdcError(f"{self.path} is not a checkpoint of acdc, and is left alone; give another path")
        for key in {**self.header, **header}:
            if header.get(key) != self.header.get(key):
                raise AcdcError(
                    f"the checkpoint {self.path} is of another run: its {key} is {header.get(key)!r}, here it is "
                    f"{self.header.get(key)!r}. Go on with the same model, task and options, give another path, or "
                    "delete it to start anew"
                )


def _is_point(value: Any) -> bool:
    """Whether it is one point of a loss curve: finite numbers by name."""
    return isinstance(value, dict) and all(
        type(number) in (int, float) and abs(number) <= sys.float_info.max for number in value.values())


def open_checkpoint(path: str | Path | None, model: Transformer, batches: Sequence[Batch], header: Mapping[str, Any],
                    start: EdgeScores | None = None) -> Checkpoint | None:
    """The checkpoint of a run on these prompts; None without a path."""
    if path is None:
        return None
    options = header["method_options"]
    header = {key: value for key, value in header.items() if key != "method_options"}
    return Checkpoint(path, {**header, **options, "model": weights_hash(model), "dtype": str(model.dtype),
                             "prompts": hash_of_prompts(batches, header["positions"]),
                             "start_values": None if start is None else hash_of(start.values)})
