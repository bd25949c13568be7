"""Masks that are learned: how much of each edge is kept is trained by gradient descent, under a target sparsity.

Phases of a step: some prompts are drawn; the mask of each parameter is drawn from its hard concrete distribution; the
model runs with these fractions of its edges kept (`SoftCircuit`); the loss, plus the Lagrangian of the sparsity, is
differentiated; the parameters go down, the multipliers up. Everything random in a step depends on the seed and the
number of the step alone, so that a run goes on from a checkpoint as if it had not stopped.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from acdc.ablation import check_ablation, prepare_ablation
from acdc.activations import record
from acdc.discovery.journal import hash_of_prompts
from acdc.errors import AcdcError
from acdc.graph import Graph
from acdc.metrics import Metric
from acdc.models import weights_hash
from acdc.output_folder import write_file
from acdc.soft_circuit import SoftCircuit, soft_circuit
from acdc.task import Batch
from acdc.transformer import Transformer, frozen

LOW, HIGH = -0.1, 1.1  # what the concrete distribution is stretched to, before it is clamped to 0 and 1
TEMPERATURE = 2 / 3
OPEN = 10.0  # log_alpha at the start, on average
HISTORY = 100  # points of the loss curve at most
SAVE_EVERY = 25  # steps between checkpoints
FORMAT = "acdc-masks"


def sample(log_alpha: Float[Tensor, " n"], uniform: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Hard concrete masks: clamp(sigmoid((logit(uniform) + log_alpha) / temperature) stretched, 0, 1).

    Source: Louizos et al. 2018 (arXiv 1712.01312).
    """
    concrete = torch.sigmoid((torch.logit(uniform) + log_alpha) / TEMPERATURE)
    return (concrete * (HIGH - LOW) + LOW).clamp(0, 1)


def probability_open(log_alpha: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """P(mask > 0)."""
    return torch.sigmoid(log_alpha - TEMPERATURE * np.log(-LOW / HIGH))


@dataclass(frozen=True)
class Training:
    """How masks are trained. `sparsity`: the share of masks that is to be closed at the end; `warmup`: the share of the
    steps over which the target rises to it from 0."""

    steps: int
    sparsity: float
    learning_rate: float
    prompts_per_step: int
    seed: int
    warmup: float

    def check(self) -> None:
        for name in ("steps", "prompts_per_step"):
            if getattr(self, name) < 1:
                raise AcdcError(f"{name}={getattr(self, name)}: it must be at least 1")
        if not 0 <= self.sparsity <= 1:
            raise AcdcError(f"sparsity={self.sparsity}: it is the share of edges that is cut, between 0 and 1")
        if not 0 < self.learning_rate < float("inf"):
            raise AcdcError(f"learning_rate={self.learning_rate}: it must be a positive number")
        if self.seed < 0:
            raise AcdcError(f"seed={self.seed}: it must be 0 or more")
        if not 0 <= self.warmup <= 1:
            raise AcdcError(f"warmup={self.warmup}: it is a share of the steps, between 0 and 1")

    def target(self, step: int) -> float:
        rise = self.warmup * self.steps
        return self.sparsity * (min(1.0, (step + 1) / rise) if rise >= 1 else 1.0)

    def generator(self, kind: str, number: int) -> torch.Generator:
        """Of its own for each step (or epoch) and purpose."""
        digest = hashlib.sha256(f"{kind} {self.seed} {number}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    def draw(self, step: int, n: int) -> Int[Tensor, " prompt"]:
        """The prompts of a step: all n are gone through in random order, again and again."""
        size = min(self.prompts_per_step, n)
        places = range(step * size, (step + 1) * size)
        epochs = {place // n: None for place in places}
        orders = {epoch: torch.randperm(n, generator=self.generator("epoch", epoch)) for epoch in epochs}
        return torch.stack([orders[place // n][place % n] for place in places])


def open_masks(model: Transformer, n: int, training: Training) -> Float[Tensor, " n"]:
    """log_alpha of masks that are all open, as they are drawn before the first step."""
    noise = torch.randn(n, generator=training.generator("start", 0), dtype=torch.float64)
    return (OPEN + 0.01 * noise).to(model.device, torch.promote_types(model.dtype, torch.float32))


def check_metric(metric: Metric) -> None:
    if not metric.differentiable:
        raise AcdcError(f"metric {metric.name!r} has no gradient; use a differentiable one, such as kl_divergence")


@dataclass(frozen=True, eq=False)
class Group:
    """All prompts of one length, ready to run; `numbers`: which of all prompts they are."""

    soft: SoftCircuit
    batch: Batch
    reference: Float[Tensor, "batch vocab"]
    numbers: Int[Tensor, " batch"]


def prepare_prompts(model: Transformer, batches: Sequence[Batch], ablation: str, positions: Sequence[str]
                    ) -> list[Group]:
    """The prompts by length, whatever the batches. To be called inside `frozen`."""
    check_ablation(batches, ablation)
    numbers = torch.arange(sum(map(len, batches))).split([len(batch) for batch in batches])
    by_length: dict[int, list[int]] = {}
    for i, batch in enumerate(batches):
        by_length.setdefault(batch.clean.shape[1], []).append(i)
    merged = [_merge([batches[i] for i in places]) for places in by_length.values()]
    replacements = prepare_ablation(model, merged, ablation)
    groups: list[Group] = []
    for batch, places in zip(merged, by_length.values(), strict=True):
        soft = soft_circuit(model, batch, replacements(batch), positions)
        soft = replace(soft, weights=groups[0].soft.weights) if groups else soft
        with torch.no_grad():
            reference = model.logits(record(model, batch.clean).final[:, -1])
        groups.append(Group(soft, batch, reference, torch.cat([numbers[i] for i in places])))
    return groups


def _merge(batches: Sequence[Batch]) -> Batch:
    tensors = (torch.cat([getattr(b, name) for b in batches]) for name in ("clean", "corrupted", "answer", "wrong"))
    return Batch(*tensors, examples=tuple(example for batch in batches for example in batch.examples))


def mean_loss(groups: Sequence[Group], chosen: Int[Tensor, " prompt"], kept: Float[Tensor, "src channel position"],
              metric: Metric) -> Float[Tensor, ""]:
    """The mean loss of the chosen prompts (one that is chosen twice, at the seam of two epochs, counts twice)."""
    total = kept.new_zeros(())
    for group in groups:
        rows = (chosen[:, None] == group.numbers).nonzero()[:, 1]
        if len(rows):
            which = rows.to(kept.device)
            batch = group.batch
            some = Batch(batch.clean[which], batch.corrupted[which], batch.answer[which], batch.wrong[which],
                         tuple(batch.examples[i] for i in rows.tolist()))
            logits = group.soft.rows(which).logits(kept)
            total = total + metric.loss(logits, some, group.reference[which]).sum()
    return total / len(chosen)


class EdgeMatrix:
    """Lays one number an edge out as the matrix that a run takes: over the channels of each query head."""

    def __init__(self, graph: Graph, device: torch.device) -> None:
        self.shape = graph.exists.shape
        self.index = tuple(torch.from_numpy(x).to(device)
                           for x in (graph.edge_src, graph.edge_channel, graph.edge_position))
        self.per_head = torch.from_numpy(graph.channel_of_per_head).to(device)

    def __call__(self, values: Float[Tensor, " edge"]) -> Float[Tensor, "src channel position"]:
        return values.new_zeros(self.shape).index_put(self.index, values)[:, self.per_head]


class Adam:
    """Adam without weight decay, with a state that can be saved. Source: Kingma & Ba 2015 (arXiv 1412.6980)."""

    BETAS, EPS = (0.9, 0.999), 1e-8

    def __init__(self, like: Tensor) -> None:
        self.mean, self.square = torch.zeros_like(like), torch.zeros_like(like)

    def change(self, gradient: Tensor, step: int, learning_rate: float) -> Tensor:
        """What to add to go down; `step` from 0."""
        first, second = self.BETAS
        self.mean.lerp_(gradient, 1 - first)
        self.square.lerp_(gradient.square(), 1 - second)
        scale = (self.square / (1 - second ** (step + 1))).sqrt_().add_(self.EPS)
        return -learning_rate * (self.mean / (1 - first ** (step + 1))) / scale


@dataclass(eq=False)
class State:
    """What a run has learned: `log_alpha` of each mask and the multipliers of the sparsity, with their optimisers."""

    log_alpha: Float[Tensor, " n"]
    multipliers: Float[Tensor, " 2"]
    adam: tuple[Adam, Adam]
    step: int
    history: list[dict[str, float]]

    def tensors(self) -> dict[str, Tensor]:
        alpha, multipliers = self.adam
        return {"log_alpha": self.log_alpha, "multipliers": self.multipliers, "alpha_mean": alpha.mean,
                "alpha_square": alpha.square, "multipliers_mean": multipliers.mean,
                "multipliers_square": multipliers.square}


def train_masks(
    groups: Sequence[Group],
    metric: Metric,
    training: Training,
    start: Float[Tensor, " n"],
    to_kept: Callable[[Tensor], Tensor],
    checkpoint: "Checkpoint | None" = None,
    progress: bool = False,
) -> State:
    """Learns masks from log_alpha = `start`; `to_kept` lays masks out as the matrix of what is kept.

        minimise  mean loss + multiplier_0 (s - t) + multiplier_1 (s - t)^2    with s = mean P(mask = 0)

    over log_alpha, and maximise over the multipliers. Cost a step: a forward and a backward pass of `SoftCircuit`.
    """
    multipliers = start.new_zeros(2)
    state = State(start.clone(), multipliers, (Adam(start), Adam(multipliers)), 0, [])
    if checkpoint is not None:
        checkpoint.load(state)
    n_prompts = sum(len(group.batch) for group in groups)
    with tqdm(total=training.steps, initial=state.step, desc="learning masks", unit="step", disable=not progress) as bar:
        while state.step < training.steps:
            point = train_step(groups, metric, training, state, to_kept, training.draw(state.step, n_prompts))
            every = -(-training.steps // HISTORY)
            if state.step % every == 0 or state.step == training.steps - 1:
                state.history.append({"step": state.step, **point})
            state.step += 1
            bar.set_postfix(point)
            bar.update()
            if checkpoint is not None and (state.step % SAVE_EVERY == 0 or state.step == training.steps):
                checkpoint.save(state)
    return state


def train_step(groups: Sequence[Group], metric: Metric, training: Training, state: State,
               to_kept: Callable[[Tensor], Tensor], chosen: Int[Tensor, " prompt"]) -> dict[str, float]:
    """One step; its loss (without the Lagrangian), sparsity and target."""
    of_alpha, of_multipliers = state.adam
    log_alpha = state.log_alpha.clone().requires_grad_()
    uniform = torch.rand(len(log_alpha), generator=training.generator("masks", state.step), dtype=torch.float64)
    uniform = uniform.clamp(1e-6, 1 - 1e-6).to(log_alpha.device, log_alpha.dtype)
    loss = mean_loss(groups, chosen, to_kept(sample(log_alpha, uniform)), metric)
    sparsity = 1 - probability_open(log_alpha).mean()
    target = training.target(state.step)
    gap = sparsity - target
    (loss + state.multipliers[0] * gap + state.multipliers[1] * gap**2).backward()
    assert log_alpha.grad is not None
    gap = gap.detach()
    state.log_alpha += of_alpha.change(log_alpha.grad, state.step, training.learning_rate)
    state.multipliers -= of_multipliers.change(torch.stack([gap, gap**2]), state.step, training.learning_rate)
    return {"loss": float(loss.detach()), "sparsity": float(sparsity.detach()), "target": target}


class Checkpoint:
    """A file that holds the state of a run: tensors, and beside them what the run is, which must be the same to go on.

    Raises `AcdcError` where the file is not a checkpoint, or of another run (naming what differs).
    """

    def __init__(self, path: str | Path, header: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.header = {"format": FORMAT, **json.loads(json.dumps(dict(header)))}

    def save(self, state: State) -> None:
        record = {"header": json.dumps(self.header), "step": str(state.step), "history": json.dumps(state.history)}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in state.tensors().items()}
        try:
            write_file(self.path, save(tensors, metadata=record))
        except OSError as error:
            message = f"cannot write the checkpoint {self.path}: {error.strerror}; give another path"
            raise AcdcError(message) from error

    def load(self, state: State) -> None:
        """Puts what the file holds into `state`; nothing, if there is no file yet."""
        if not self.path.exists():
            return
        try:
            with safe_open(self.path, "pt") as file:
                found = file.metadata() or {}
                header = json.loads(found.get("header", "{}"))
                self._check(header)
                for name, tensor in state.tensors().items():
                    tensor.copy_(file.get_tensor(name))
        except (SafetensorError, OSError, ValueError) as error:
            raise AcdcError(
                f"{self.path} is not a checkpoint of acdc, or is damaged ({error}), and is left alone; delete it or give "
                "another path"
            ) from error
        state.step, state.history = int(found["step"]), json.loads(found["history"])

    def _check(self, header: Mapping[str, Any]) -> None:
        if header.get("format") != FORMAT:
            raise AcdcError(f"{self.path} is not a checkpoint of acdc, and is left alone; give another path")
        for key in {**self.header, **header}:
            if header.get(key) != self.header.get(key):
                raise AcdcError(
                    f"the checkpoint {self.path} is of another run: its {key} is {header.get(key)!r}, here it is "
                    f"{self.header.get(key)!r}. Go on with the same model, task and options, give another path, or "
                    "delete it to start anew"
                )


def open_checkpoint(path: str | Path | None, model: Transformer, batches: Sequence[Batch], header: Mapping[str, Any]
                    ) -> Checkpoint | None:
    """The checkpoint of a run on these prompts; None without a path."""
    if path is None:
        return None
    options = header["method_options"]
    header = {key: value for key, value in header.items() if key != "method_options"}
    return Checkpoint(path, {**header, **options, "model": weights_hash(model), "dtype": str(model.dtype),
                             "prompts": hash_of_prompts(batches)})


