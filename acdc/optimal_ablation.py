"""Replacement values that are learned: one constant for each node, with which a circuit does best.

Phases: every constant starts as the mean of what the node writes, over all positions of the corrupted prompts; in each
step some prompts are run with the cut edges carrying the constants, the loss is differentiated by these, and they go
down.
Source: Li & Janson 2024, *Optimal ablation for interpretability* (arXiv 2409.09951).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from acdc.ablation import Ablation, Replacement, prepare_ablation, with_own_projections
from acdc.activations import Activations, record, written
from acdc.circuit import Circuit
from acdc.errors import AcdcError
from acdc.fitting import over_batches
from acdc.learning import Adam, check_metric, draw_prompts, mean_loss, prepare_prompts
from acdc.metrics import METRICS, Metric
from acdc.patching import check_graph, kept_matrix
from acdc.pieces import piece
from acdc.soft_circuit import SoftCircuit
from acdc.task import Batch
from acdc.transformer import Transformer, frozen

START = "mean_over_positions"
RATE = 0.03  # of Adam, in units of each constant
STEPS_A_PIECE = 25


def learn_ablation(
    model: Transformer,
    batches: Sequence[Batch],
    metric: Metric = METRICS["kl_divergence"],
    *,
    circuit: Circuit,
    steps: int = 200,
    learning_rate: float = RATE,
    prompts_per_step: int = 8,
    seed: int = 0,
    progress: bool = False,
) -> Ablation:
    """The constants a that minimise the mean loss of the circuit when each cut edge carries its src's:

        minimise over a  mean over prompts of L(circuit, with a[src] on every cut edge)

    The input and each MLP have a vector of d_model numbers, each head its z, of d_head; the same at all positions, of
    prompts of any length, as in the paper. What is returned goes wherever an ablation is asked for in evaluation:
    `faithfulness(model, circuit, batches, ablation=learn_ablation(...))`. It is of this circuit: another has others.

    `learning_rate`: of Adam, which moves each number by so many of its own mean absolute deviations over the corrupted
    prompts; it falls to 0 over the second half. Cost: two forward passes of all prompts, and a step a forward and a
    backward pass of `SoftCircuit` on `prompts_per_step` prompts.

    It misleads where prompts are few: constants can spell out what these have in common, such as a frequent answer.
    Measure on others. With few steps they are not optimal: try more. With all edges cut they are not the best for an
    empty circuit; learn those for themselves.
    Raises `AcdcError` for a metric without gradient.
    """
    check_metric(metric)
    check_graph(model, circuit.graph)
    for name, value, least in (("steps", steps, 0), ("prompts_per_step", prompts_per_step, 1), ("seed", seed, 0)):
        if value < least:
            raise AcdcError(f"{name}={value}: it must be at least {least}")
    if not 0 < learning_rate < float("inf"):
        raise AcdcError(f"learning_rate={learning_rate}: it must be a positive number")
    with frozen(model):
        groups = prepare_prompts(model, batches, START, circuit.graph.positions)
        constants = first_constants(model, batches)
        kept = torch.from_numpy(kept_matrix(circuit.graph, circuit.kept)).to(model.device, constants.shift.dtype)
        n_prompts = sum(len(group.batch) for group in groups)
        with tqdm(total=steps, desc="learning constants", disable=not progress) as bar:

            def some(first: int) -> dict[str, np.ndarray]:
                for step in range(first, min(first + STEPS_A_PIECE, steps)):
                    chosen = draw_prompts(seed, step, prompts_per_step, n_prompts)
                    loss = mean_loss(groups, chosen, kept, metric, constants.logits, constants.shift)
                    loss.backward()
                    constants.descend(step, learning_rate * min(1.0, 2 - 2 * step / steps))
                    bar.set_postfix(loss=float(loss.detach()))
                    bar.update()
                return {name: tensor.cpu().numpy().copy() for name, tensor in constants.tensors().items()}

            for first in range(0, steps, STEPS_A_PIECE):
                found = piece("constants after some steps", partial(some, first))
                for name, tensor in constants.tensors().items():
                    tensor.copy_(torch.from_numpy(found[name]))
        learned = constants.replacement()
    return lambda batch: learned


@dataclass(eq=False)
class Constants:
    """One constant a node: its `mean` plus `shift` of its `unit`s. `shift` is what is learned.

    The numbers lie in the order of the srcs: d_model for the input and each MLP, d_head, of z, for each head.
    """

    model: Transformer
    mean: Activations
    unit: Float[Tensor, " n"]
    shift: Float[Tensor, " n"]
    adam: Adam

    def logits(self, soft: SoftCircuit, kept: Float[Tensor, "src channel position"]) -> Float[Tensor, "batch vocab"]:
        """A soft run of prompts whose base run is the mean, with the constants in its place; differentiable by both."""
        by = self.unit * self.shift
        base = moved(self.model, soft.base, by.detach())
        soft = replace(soft, base=base, input=soft.input - by.detach()[: base.input.shape[-1]])
        return soft.logits(kept, _written(self.model, by))

    def descend(self, step: int, learning_rate: float) -> None:
        """One step of Adam along the gradient that was gathered; `step` from 0."""
        assert self.shift.grad is not None
        change = self.adam.change(self.shift.grad, step, learning_rate)
        self.shift.grad = None
        with torch.no_grad():
            self.shift += change

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint saves, to be written into."""
        return {"constants": self.shift.detach(), "constants_mean": self.adam.mean,
                "constants_square": self.adam.square}

    def replacement(self) -> Replacement:
        """What cut edges carry, for any batch."""
        run = moved(self.model, self.mean, (self.unit * self.shift).detach())
        return Replacement(with_own_projections(self.model, run), consistent=False)


def first_constants(model: Transformer, batches: Sequence[Batch]) -> Constants:
    """The means. The unit of each number is its mean absolute deviation from its mean over the corrupted prompts."""
    mean = prepare_ablation(model, batches, START)(batches[0]).activations
    ours = _numbers(mean)
    total, count = torch.zeros_like(ours[0, 0], dtype=torch.float64), 0

    def deviation(batch: Batch) -> Tensor:
        return (_numbers(record(model, batch.corrupted)) - ours).double().abs().sum((0, 1))

    for batch, deviations in over_batches(batches, deviation):
        total += deviations
        count += batch.clean.numel()
    dtype = torch.promote_types(model.dtype, torch.float32)
    unit = (total / count).to(dtype)
    shift = torch.zeros_like(unit, requires_grad=True)
    return Constants(model, mean, unit, shift, Adam(unit))


def _numbers(run: Activations) -> Float[Tensor, "batch pos n"]:
    """What all nodes write in a run, heads as z."""
    of_layers = [x for z, mlp in zip(run.z, run.mlp, strict=True) for x in (z.flatten(2), mlp)]
    return torch.cat([run.input, *of_layers], dim=-1)


def _parts(model: Transformer, numbers: Float[Tensor, " n"]
           ) -> tuple[Float[Tensor, " d_model"], list[Float[Tensor, "head d_head"]], list[Float[Tensor, " d_model"]]]:
    """Of the input, of the heads of each layer, of each MLP."""
    n_heads, d_head, d_model = model.blocks[0].attention.out_weight.shape
    of_input, *of_layers = numbers.split([d_model] + [n_heads * d_head, d_model] * model.n_layers)
    return of_input, [z.unflatten(0, (n_heads, d_head)) for z in of_layers[::2]], list(of_layers[1::2])


def moved(model: Transformer, run: Activations, by: Float[Tensor, " n"]) -> Activations:
    """The run with so much added to what each node writes, and with what channels read then. q, k and v are left."""
    of_input, of_heads, of_mlps = _parts(model, by.to(run.input.dtype))
    wrote = _written(model, by.to(run.input.dtype))[:, 0, 0]
    total, attn_in, mlp_in = of_input, [], []
    for layer in range(model.n_layers):
        after = total + wrote[model.graph().layer(layer).heads].sum(0)
        attn_in.append(run.attn_in[layer] + total)
        mlp_in.append(run.mlp_in[layer] + (total if model.parallel else after))
        total = after + of_mlps[layer]
    return replace(run, input=run.input + of_input, attn_in=attn_in, mlp_in=mlp_in, final=run.final + total,
                   z=[old + new for old, new in zip(run.z, of_heads, strict=True)],
                   mlp=[old + new for old, new in zip(run.mlp, of_mlps, strict=True)])


def _written(model: Transformer, numbers: Float[Tensor, " n"]) -> Float[Tensor, "src 1 1 d_model"]:
    of_input, of_heads, of_mlps = _parts(model, numbers)
    heads = list(range(model.n_heads))
    rows = [of_input[None]]
    for block, z, mlp in zip(model.blocks, of_heads, of_mlps, strict=True):
        rows += [written(block, heads, z[None])[:, 0], mlp[None]]
    return torch.cat(rows)[:, None, None]
