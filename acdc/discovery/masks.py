"""Masks that are learned: how much of each edge is kept is trained by gradient descent, under a target sparsity.

Phases of a step: some prompts are drawn; the mask of each parameter is drawn from its distribution; the model runs with
these fractions of its edges kept (`SoftCircuit`); the loss is differentiated; the parameters go down.

How the target is met, `constraint`:

- `budget`: after each step all parameters are shifted by the one number that makes the expected share of open
  masks what it must be. The gradient by a mask goes to its parameter as it is, also where the mask is 0
  or 1, so that closed edges come back if they would help. A step is Adam's, with the gradient of the weakest edge
  within the budget for its epsilon: what counts for less than that edge hardly moves. In
  the second half the learning rate falls, and the noise of the masks, so that in the end what is trained is what a
  threshold makes of it. Our own.
- `lagrangian`: hard concrete masks are differentiated, and the sparsity enters the loss with multipliers that ascend,
  as in Edge Pruning. It needs thousands of steps.

Everything random in a step depends on the seed and the number of the step alone, so that a run goes on from a
checkpoint as if it had not stopped.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from acdc.discovery.checkpoint import Checkpoint
from acdc.errors import AcdcError, unknown_name
from acdc.graph import Graph
from acdc.learning import Adam, Group, draw_prompts, generator, mean_loss
from acdc.metrics import Metric
from acdc.optimal_ablation import RATE, Constants
from acdc.soft_circuit import SoftCircuit
from acdc.stopping import unbroken_steps
from acdc.transformer import Transformer

LOW, HIGH = -0.1, 1.1  # what the concrete distribution is stretched to, before it is clamped to 0 and 1
TEMPERATURE = 2 / 3
OPEN = 10.0  # log_alpha at the start, on average, where the sparsity is a part of the loss
LEAST_NOISE = 0.1
LEAST = -15.0  # of log_alpha, with a budget: so that no mask closes for good
FULL = 0.999  # the largest share of open masks that is aimed at: at 1 they would be beyond all gradients
CONSTRAINTS = ("budget", "lagrangian")
HISTORY = 100  # points of the loss curve at most
SAVE_EVERY = 25  # steps between checkpoints


def sample(log_alpha: Float[Tensor, " n"], uniform: Float[Tensor, " n"], noise: float = 1.0) -> Float[Tensor, " n"]:
    """Hard concrete masks: clamp(sigmoid((noise * logit(uniform) + log_alpha) / temperature) stretched, 0, 1).

    Source: Louizos et al. 2018 (arXiv 1712.01312), where the noise is 1.
    """
    concrete = torch.sigmoid((noise * torch.logit(uniform) + log_alpha) / TEMPERATURE)
    return (concrete * (HIGH - LOW) + LOW).clamp(0, 1)


def probability_open(log_alpha: Float[Tensor, " n"], noise: float = 1.0) -> Float[Tensor, " n"]:
    """P(mask > 0)."""
    return torch.sigmoid((log_alpha - TEMPERATURE * np.log(-LOW / HIGH)) / noise)


@dataclass(frozen=True)
class Distribution:
    """How masks are drawn: (log_alpha, numbers uniform in (0, 1), noise) -> masks; and (log_alpha, noise) -> how likely
    each is open. `straight_through`: with a budget, log_alpha gets the gradient by its mask as it is."""

    draw: Callable[[Tensor, Tensor, float], Tensor]
    probability_open: Callable[[Tensor, float], Tensor]
    straight_through: bool


HARD_CONCRETE = Distribution(sample, probability_open, straight_through=True)


@dataclass(frozen=True)
class Training:
    """How masks are trained. `sparsity`: the share of masks that is to be closed at the end; `warmup`: the share of the
    steps over which it is reached; `open_at_first`: the share of open masks that a budget starts from."""

    steps: int
    sparsity: float
    learning_rate: float
    prompts_per_step: int
    seed: int
    warmup: float
    constraint: str = "budget"
    open_at_first: float = 1.0

    def __post_init__(self) -> None:
        for name in ("steps", "prompts_per_step"):
            if getattr(self, name) < 1:
                raise AcdcError(f"{name}={getattr(self, name)}: it must be at least 1")
        if not 0 <= self.sparsity < 1:
            raise AcdcError(f"sparsity={self.sparsity}: it is the share of edges that is cut, from 0 to below 1")
        if not 0 < self.learning_rate < float("inf"):
            raise AcdcError(f"learning_rate={self.learning_rate}: it must be a positive number")
        if self.seed < 0:
            raise AcdcError(f"seed={self.seed}: it must be 0 or more")
        if not 0 <= self.warmup <= 1:
            raise AcdcError(f"warmup={self.warmup}: it is a share of the steps, between 0 and 1")
        if self.constraint not in CONSTRAINTS:
            raise unknown_name("constraint", self.constraint, CONSTRAINTS)

    def target(self, step: int) -> float:
        """The sparsity to be met after a step. With a budget, the share of open masks falls geometrically."""
        rise = self.warmup * self.steps
        progress = min(1.0, (step + 1) / rise) if rise >= 1 else 1.0
        if self.constraint == "lagrangian":
            return self.sparsity * progress
        first = max(self.open_at_first, 1 - self.sparsity)
        return 1 - first ** (1 - progress) * (1 - self.sparsity) ** progress

    def rate(self, step: int) -> float:
        """The learning rate: with a budget it falls to 0 over the second half."""
        return self.learning_rate * (min(1.0, 2 - 2 * step / self.steps) if self.constraint == "budget" else 1.0)

    def noise(self, step: int) -> float:
        """Of the masks: with a budget it falls over the second half, so that what is trained in the end is what a
        threshold makes of it."""
        return max(LEAST_NOISE, min(1.0, 2 - 2 * step / self.steps)) if self.constraint == "budget" else 1.0

    def generator(self, kind: str, number: int) -> torch.Generator:
        return generator(self.seed, kind, number)

    def draw(self, step: int, n: int) -> Int[Tensor, " prompt"]:
        return draw_prompts(self.seed, step, self.prompts_per_step, n)


def first_masks(model: Transformer, n: int, training: Training, scores: Float[np.ndarray, " n"] | None = None
                ) -> Float[Tensor, " n"]:
    """log_alpha before the first step: all masks open; or, with a budget, open by the size of some `scores`.

    These are put on a log scale, a factor of 10 for 4.6; open_at_first of the masks are open. An edge that was never
    tried (-inf) counts as 0.
    """
    dtype = torch.promote_types(model.dtype, torch.float32)
    noise = torch.randn(n, generator=training.generator("start", 0), dtype=torch.float64)
    if training.constraint == "lagrangian":
        return (OPEN + 0.01 * noise).to(model.device, dtype)
    log_alpha = torch.zeros(n, dtype=torch.float64)
    if scores is not None:
        size = torch.from_numpy(np.where(np.isfinite(scores), np.abs(scores), 0.0))
        weakest = size.sort(descending=True).values[min(n - 1, int(training.open_at_first * n))]
        log_alpha = 2 * (size / weakest.clamp(min=1e-30)).clamp(min=1e-30).log().clamp(-12, 12)
    return within_budget(log_alpha.to(model.device, dtype), min(training.open_at_first, FULL))


def within_budget(log_alpha: Float[Tensor, " n"], share: float, noise: float = 1.0,
                  of: Distribution = HARD_CONCRETE) -> Float[Tensor, " n"]:
    """Shifted by one number, so that on average a `share` of the masks is open; by bisection."""
    low, high = -100.0, 100.0
    for _ in range(50):
        middle = (low + high) / 2
        is_over = float(of.probability_open(log_alpha + middle, noise).double().mean()) > share
        low, high = (low, middle) if is_over else (middle, high)
    return log_alpha + low


class EdgeMatrix:
    """Lays one number an edge out as the matrix that a run takes: over the channels of each query head."""

    def __init__(self, graph: Graph, device: torch.device) -> None:
        self.shape = graph.exists.shape
        self.index = tuple(torch.from_numpy(x).to(device)
                           for x in (graph.edge_src, graph.edge_channel, graph.edge_position))
        self.per_head = torch.from_numpy(graph.channel_of_per_head).to(device)

    def __call__(self, values: Float[Tensor, " edge"]) -> Float[Tensor, "src channel position"]:
        return values.new_zeros(self.shape).index_put(self.index, values)[:, self.per_head]


@dataclass(eq=False)
class State:
    """What a run has learned: `log_alpha` of each mask and the multipliers of the sparsity, with their optimisers; and
    what closed edges carry, if it is learned."""

    log_alpha: Float[Tensor, " n"]
    multipliers: Float[Tensor, " 2"]
    adam: tuple[Adam, Adam]
    step: int
    history: list[dict[str, float]]
    constants: Constants | None = None

    def tensors(self) -> dict[str, Tensor]:
        alpha, multipliers = self.adam
        constants = {} if self.constants is None else self.constants.tensors()
        return {"log_alpha": self.log_alpha, "multipliers": self.multipliers, "alpha_mean": alpha.mean,
                "alpha_square": alpha.square, "multipliers_mean": multipliers.mean,
                "multipliers_square": multipliers.square, **constants}


def train_masks(
    groups: Sequence[Group],
    metric: Metric,
    training: Training,
    start: Float[Tensor, " n"],
    to_kept: Callable[[Tensor], Tensor],
    checkpoint: Checkpoint | None = None,
    progress: bool = False,
    of: Distribution = HARD_CONCRETE,
    constants: Constants | None = None,
) -> State:
    """Learns masks from log_alpha = `start`; `to_kept` lays masks out as the matrix of what is kept. `constants`: what
    closed edges carry, if that is to be learned too.

    Cost a step: a forward and a backward pass of `SoftCircuit`.
    """
    multipliers = start.new_zeros(2)
    betas = (0.9, 0.98) if training.constraint == "budget" else (0.9, 0.999)
    state = State(start.clone(), multipliers, (Adam(start, betas), Adam(multipliers)), 0, [], constants)
    run, learned = (SoftCircuit.logits, []) if constants is None else (constants.logits, [constants.shift])
    if checkpoint is not None:
        checkpoint.load(state)
    n_prompts = sum(len(group.batch) for group in groups)
    take = budget_step if training.constraint == "budget" else lagrangian_step
    every = -(-training.steps // HISTORY)
    with (unbroken_steps() as stopped,
          tqdm(total=training.steps, initial=state.step, desc="learning masks", disable=not progress) as bar):
        while state.step < training.steps:
            chosen = training.draw(state.step, n_prompts)
            uniform = torch.rand(len(start), generator=training.generator("masks", state.step), dtype=torch.float64)
            uniform = uniform.clamp(1e-6, 1 - 1e-6).to(start.device, start.dtype)

            def loss_of(masks: Tensor, chosen: Tensor = chosen) -> Tensor:
                return mean_loss(groups, chosen, to_kept(masks), metric, run, *learned)

            point = take(loss_of, training, state, uniform, of)
            if constants is not None:
                constants.descend(state.step, RATE * training.rate(state.step) / training.learning_rate)
            if state.step % every == 0 or state.step == training.steps - 1:
                state.history.append({"step": state.step, **point})
            state.step += 1
            bar.set_postfix(point)
            bar.update()
            stop = stopped()
            if checkpoint is not None and (stop or state.step % SAVE_EVERY == 0 or state.step == training.steps):
                checkpoint.save(state)
            if stop:
                raise stop
    return state


def budget_step(loss_of: Callable[[Tensor], Tensor], training: Training, state: State, uniform: Tensor,
                of: Distribution) -> dict[str, float]:
    """One step of `constraint="budget"`; its loss, and sparsity and target afterwards."""
    log_alpha = state.log_alpha.clone().requires_grad_()
    noise = training.noise(state.step)
    masks = of.draw(log_alpha, uniform, noise)
    masks.retain_grad()
    loss = loss_of(masks)
    loss.backward()
    gradient = masks.grad if of.straight_through else log_alpha.grad
    assert gradient is not None
    rate, target, n = training.rate(state.step), training.target(state.step), len(log_alpha)
    change = state.adam[0].change(gradient, state.step, rate, int((1 - training.sparsity) * n))
    shifted = within_budget(state.log_alpha + change, min(1 - target, FULL), noise, of)
    state.log_alpha.copy_(shifted.clamp(min=LEAST))
    sparsity = 1 - of.probability_open(state.log_alpha, noise).mean()
    return {"loss": float(loss.detach()), "sparsity": float(sparsity), "target": target}


def lagrangian_step(loss_of: Callable[[Tensor], Tensor], training: Training, state: State, uniform: Tensor,
                    of: Distribution) -> dict[str, float]:
    """One step of `constraint="lagrangian"`:

        minimise  loss + multiplier_0 (s - t) + multiplier_1 (s - t)^2    with s = mean P(mask = 0)

    over log_alpha, and maximise over the multipliers. Returns its loss without these, its sparsity and target.
    """
    of_alpha, of_multipliers = state.adam
    log_alpha = state.log_alpha.clone().requires_grad_()
    loss = loss_of(of.draw(log_alpha, uniform, 1.0))
    sparsity = 1 - of.probability_open(log_alpha, 1.0).mean()
    target = training.target(state.step)
    gap = sparsity - target
    (loss + state.multipliers[0] * gap + state.multipliers[1] * gap**2).backward()
    assert log_alpha.grad is not None
    gap, rate = gap.detach(), training.rate(state.step)
    state.log_alpha += of_alpha.change(log_alpha.grad, state.step, rate)
    state.multipliers -= of_multipliers.change(torch.stack([gap, gap**2]), state.step, rate)
    return {"loss": float(loss.detach()), "sparsity": float(sparsity.detach()), "target": target}
