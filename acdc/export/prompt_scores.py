"""How the scores of single prompts are kept beside a circuit: a safetensors file, exact, read without trust.

`prompt_scores.safetensors` holds one float32 tensor, `scores` (prompt, edge), in the order of the batches and of the
graph's edges: 4 bytes a prompt and edge, 16 MB for 32 prompts of 123,211 edges.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from acdc.circuit import Circuit
from acdc.errors import AcdcError
from acdc.input_file import check_plain

FILE = "prompt_scores.safetensors"
FORMAT = "acdc prompt scores 1"  # the only metadata: safetensors writes several in random order
CLOSE = 1e-4  # of the largest score: how far the mean over prompts, in float32, may be from the circuit's own scores


def prompt_scores_bytes(alone: Float[np.ndarray, "prompt edge"]) -> bytes:
    """The content of the file."""
    from safetensors.numpy import save

    return save({"scores": np.ascontiguousarray(alone, dtype=np.float32)}, {"format": FORMAT})


def with_prompt_scores(circuit: Circuit, path: Path) -> Circuit:
    """The circuit with the scores of single prompts that the file holds as `scores.per_prompt`.

    Raises `AcdcError` for a file that is damaged, of another shape or type, or whose mean over prompts is not the
    circuit's scores: then it belongs to another circuit. What is allocated is no more than what the file holds.
    """
    from safetensors import SafetensorError, safe_open

    scores = circuit.scores
    if scores is None:
        raise AcdcError(f"{path} lies beside a circuit without scores, so it belongs to another; move it away")
    try:
        check_plain(path)
        with safe_open(str(path), "numpy") as file:
            opened: Any = file
            known: Mapping[str, str] = opened.metadata() or {}
            if known.get("format") != FORMAT or list(opened.keys()) != ["scores"]:
                raise AcdcError(f"{path} does not hold the scores of single prompts as this acdc writes them")
            part = opened.get_slice("scores")
            shape, kind = tuple(part.get_shape()), part.get_dtype()
            if len(shape) != 2 or shape[0] < 1 or shape[1] != circuit.graph.n_edges or kind != "F32":
                raise AcdcError(f"{path} holds {kind} of shape {shape}; needed: float32, prompts by "
                                f"{circuit.graph.n_edges:,} edges. It is of another circuit; {REMEDY}")
            alone = opened.get_tensor("scores")
    except (SafetensorError, OSError, ValueError) as error:
        raise AcdcError(f"{path} is damaged ({error}); {REMEDY}") from error
    if not np.isfinite(alone).all():
        raise AcdcError(f"{path} holds numbers that are not finite; {REMEDY}")
    tried = np.isfinite(scores.values)
    apart = np.abs(alone.mean(0, dtype=np.float64) - scores.values)[tried].max(initial=0)
    if not apart <= CLOSE * np.abs(scores.values[tried]).max(initial=0):
        raise AcdcError(f"{path} is of another circuit: the mean over its prompts is not the circuit's scores; "
                        f"{REMEDY}")
    return replace(circuit, scores=replace(scores, per_prompt=alone))


REMEDY = "delete it, or discover the circuit again with --keep-prompt-scores --overwrite"
