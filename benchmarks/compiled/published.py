"""What others published as the true edges of compiled models, on which prompts, and whether it is found again here."""

import json
from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from .cut import MOVED, Pairs, Weights, edges, movement, name

FOLDER = Path(__file__).parent
ACDC = "Conmy et al. 2023 (arXiv 2304.14997), acdc/tracr_task/utils.py"
AUTO_CIRCUIT = "Miller et al. 2024 (arXiv 2407.08734), auto_circuit/metrics/official_circuits/circuits/tracr"


@dataclass(frozen=True)
class Published:
    """A list of edges. `apart`: token and position embedding are two nodes in it, `tok` and `pos`."""

    program: str
    ablation: str
    edges: frozenset[str]
    apart: bool
    source: str


def _edges(names: str) -> frozenset[str]:
    return frozenset(names.split())


# Found by ACDC itself, with zero ablation: that ACDC finds them says that the code is right, not that they are.
PUBLISHED = (
    Published("reverse", "zero", _edges(
        "tok->a0.h0<v> a0.h0->m0 tok->m0 m0->m1 tok->m1 pos->m1 m1->m2 m2->a3.h0<q> pos->a3.h0<k> tok->a3.h0<v> "
        "a3.h0->logits"), True, ACDC),
    Published("proportion", "zero", _edges(
        "tok->m0 m0->a1.h0<v> tok->a1.h0<q> pos->a1.h0<q> tok->a1.h0<k> pos->a1.h0<k> a1.h0->logits"), True, ACDC),
    Published("reverse", "resample", _edges("input->a3.h0<v> a3.h0->logits"), False, AUTO_CIRCUIT),
    Published("proportion", "resample", _edges("input->m0 m0->a1.h0<v> a1.h0->logits"), False, AUTO_CIRCUIT),
)


def weights_of(program: str, *, apart: bool = False) -> Weights:
    """The stored weights, for the forward pass in numpy."""
    tensors = {key: value for key, value in load_file(FOLDER / f"{program}.safetensors").items() if "logits" not in key}
    return Weights(**tensors, causal=_record(program)["causal"], apart=apart)


def prompts_of(program: str) -> list[Pairs]:
    """The stored pairs of prompts, a batch a length."""
    return [Pairs(*(np.array(prompts[side]) for side in ("clean", "corrupted")))
            for prompts in _record(program)["batches"]]


def _record(program: str) -> dict:
    return json.loads((FOLDER / f"{program}.json").read_text(encoding="utf-8"))


def prompts_of_acdc(program: str) -> Pairs:
    """The prompts that ACDC's authors used: for `reverse` BOS and the orders of 1, 2 and 3. For `proportion` rows of
    four ids from 0 to 3, meant as w to z; they drew some, here are all. But there the ids 0 to 3 are BOS, the padding,
    w and x, so that these prompts have no BOS in front, and BOS and padding among the tokens, which the program is not
    made for."""
    if program == "reverse":
        rows = [[3, *order] for order in permutations(range(3))]
    else:
        rows = list(product(range(4), repeat=4))
    return Pairs(np.array(rows), np.array(rows))


def that_matter_alone(weights: Weights, batches: list[Pairs], ablation: str, read: str = "all") -> frozenset[str]:
    """The edges that, cut alone, move some logit after the first position (or at the `last`) by more than MOVED."""
    moved_by, at = [movement(weights, pairs, ablation) for pairs in batches], slice(0 if read == "all" else -1, None)
    return frozenset(name(edge) for edge in edges(weights) if max(by([edge])[:, at].max() for by in moved_by) > MOVED)


def found_again(published: Published) -> frozenset[str]:
    """The edges that matter alone in the same graph, for zero ablation on the prompts of those who published them."""
    weights = weights_of(published.program, apart=published.apart)
    own = published.source == ACDC
    prompts = [prompts_of_acdc(published.program)] if own else prompts_of(published.program)
    return that_matter_alone(weights, prompts, published.ablation)
