"""Trains a sparse autoencoder or transcoder on what a model's sites hold while it reads text.

Phases: scale activations (a transcoder's input: what its mean leaves) to a mean norm of sqrt(d); draw tokens in
random order from a buffer of windows; a step of Adam on the loss of the architecture; keep track of dead features and
bring them back; fold scale and mean in. The loss is the squared error summed over dimensions, averaged over tokens,
plus

- relu: l1 * sum_i f_i |W_dec_i|, no constraint on the decoder (Conerly et al. 2024); dead features are resampled.
- gated: l1 * sum_i relu(gate_i) |W_dec_i|, and the error of rebuilding from relu(gate) with the decoder held fixed
  (Rajamanoharan et al. 2024, arXiv 2404.16014); dead features are resampled.
- topk, batchtopk: the error that dead features leave when they rebuild what the living ones left (AuxK: k = d / 2,
  without b_dec; Gao et al. 2024, arXiv 2406.04093; Bussmann et al. 2024, arXiv 2412.06410). The threshold of batchtopk
  is a moving average of the least active value.
- jumprelu: l0 * the number of active features, by straight-through estimators with a rectangle of width 0.05; a small
  pull on dead ones (Rajamanoharan et al. 2024, arXiv 2407.14435).

Resampling is that of Bricken et al. 2023: a dead feature is pointed at a token drawn with probability proportional to
its squared loss.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

from acdc.discovery.checkpoint import Checkpoint
from acdc.errors import AcdcError, unknown_name
from acdc.learning import Adam, generator
from acdc.sae.source import ModelActivations, Source
from acdc.sae.sparse_coder import ARCHITECTURES, SparseCoder, top
from acdc.stopping import unbroken_steps
from acdc.transformer import Transformer

BANDWIDTH = 0.05
THRESHOLD_RATE = 0.01
SAMPLE = 4096  # tokens that scales and the first bias are taken from
SAVE_EVERY = 500
FREE_DECODER = ("relu", "jumprelu")  # the other architectures keep decoder rows of norm 1


@dataclass(frozen=True)
class Recipe:
    """How a coder is trained. `penalty`: l1 of relu and gated, l0 of jumprelu; `k`: of topk and batchtopk. A feature
    counts as dead after `dead_after` steps without a token. `resample_every`: steps, relu and gated only."""

    architecture: str = "topk"
    n_features: int = 2048
    steps: int = 2000
    k: int = 32
    penalty: float = 5.0
    learning_rate: float = 1e-3
    dead_after: int = 200
    resample_every: int = 500
    skip: bool = False
    seed: int = 0

    def check(self, *, autoencoder: bool) -> None:
        if self.architecture not in ARCHITECTURES:
            raise unknown_name("architecture of a sparse coder", self.architecture, ARCHITECTURES)
        for name in ("n_features", "steps", "k", "dead_after", "resample_every"):
            if getattr(self, name) < 1:
                raise AcdcError(f"{name}={getattr(self, name)}: it must be at least 1")
        if self.architecture in ("topk", "batchtopk") and self.k > self.n_features:
            raise AcdcError(f"k={self.k} of {self.n_features} features: it must not be above them")
        if not (self.learning_rate > 0 and self.penalty >= 0):
            raise AcdcError(f"learning rate {self.learning_rate} and penalty {self.penalty}: give positive numbers")
        if self.skip and autoencoder:
            raise AcdcError("a skip connection in an autoencoder would rebuild everything; it is for transcoders")


@dataclass
class _State:
    """All that training changes; what a checkpoint holds."""

    weights: dict[str, Tensor]
    adam: dict[str, Adam]
    silent: Tensor
    ema: Tensor
    scales: Tensor
    centre: Tensor
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def tensors(self) -> dict[str, Tensor]:
        named = {"silent": self.silent, "ema": self.ema, "scales": self.scales, "centre": self.centre}
        for name, weight in self.weights.items():
            adam = self.adam[name]
            named |= {f"weights.{name}": weight, f"mean.{name}": adam.mean, f"square.{name}": adam.square}
        return named


def train_coder(
    source: Source,
    recipe: Recipe,
    *,
    site: str,
    target: str | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = False,
) -> SparseCoder:
    """Trains a coder on a source of activations; deterministic by the seed, and resumed to the same result.

    `target`: what is rebuilt, another site for a transcoder. The coder returned works on activations as they are, with
    decoder rows of norm 1 (not topk's, which fix what is largest). `checkpoint`: saved to every 500 steps.
    Cost a step: three products of tokens * d * features forward, twice that backward. Raises `AcdcError` for options
    out of range, a loss that is not finite, and a checkpoint of another run.
    """
    target = site if target is None else target
    recipe.check(autoencoder=site == target)
    state = _start(source, recipe, autoencoder=site == target)
    saved = None if checkpoint is None else Checkpoint(checkpoint, {**source.header, **vars(recipe), "kind": "coder"})
    if saved is not None:
        saved.load(state)
    with (unbroken_steps() as stopped,
          tqdm(total=recipe.steps, initial=state.step, desc=f"training on {target}", disable=not progress) as bar):
        while state.step < recipe.steps:
            loss = _step(source, recipe, state, site == target)
            bar.update()
            if state.step % 50 == 0:
                bar.set_postfix(loss=f"{loss:.3g}")
            stop = stopped()
            if saved is not None and (stop or state.step % SAVE_EVERY == 0):
                saved.save(state)
            if stop:
                raise stop
    of_input, of_output = state.scales.tolist()
    record = {"recipe": vars(recipe), "source": dict(source.header), "history": state.history}
    architecture = "jumprelu" if recipe.architecture == "batchtopk" else recipe.architecture
    weights = {name: weight.detach().clone() for name, weight in state.weights.items()}
    if recipe.architecture == "batchtopk":
        weights["threshold"] = torch.full_like(weights["b_enc"], float(state.ema))
    k, autoencoder = recipe.k if architecture == "topk" else None, site == target
    coder = SparseCoder(architecture, site, target, weights, k, autoencoder, record)
    coder = (coder if autoencoder else coder.uncentred(state.centre)).unscaled(of_input, of_output)
    return coder if architecture == "topk" else coder.with_unit_decoder()


def _start(source: Source, recipe: Recipe, *, autoencoder: bool) -> _State:
    x, y = source.batch(0)
    x, y = x[:SAMPLE].float(), y[:SAMPLE].float()
    # An autoencoder reads what b_dec leaves; a transcoder, what the mean of its input leaves, folded in at the end.
    centre = torch.zeros_like(x[0]) if autoencoder else x.mean(0)
    scales = torch.stack([v.shape[1] ** 0.5 / v.norm(dim=1).mean().clamp(min=1e-12) for v in (x - centre, y)])
    if autoencoder:
        scales[1] = scales[0]
    centre = centre * scales[0]
    random = torch.Generator().manual_seed(recipe.seed)
    n, d_in, d_out = recipe.n_features, x.shape[1], y.shape[1]
    decoder = _unit(torch.randn(n, d_out, generator=random)).to(x.device)
    encoder = decoder.T.clone()
    if not autoencoder:
        encoder = (torch.randn(d_in, n, generator=random) / d_in**0.5).to(x.device)
    zeros = torch.zeros(n, device=x.device)
    weights = {
        "W_enc": encoder,
        "W_dec": decoder * (0.1 if recipe.architecture in FREE_DECODER else 1),
        "b_dec": y.mean(0) * scales[1],
    }
    if recipe.architecture == "gated":
        weights |= {"b_gate": zeros.clone(), "b_mag": zeros.clone(), "r_mag": zeros.clone()}
    else:
        weights["b_enc"] = zeros.clone()
    if recipe.architecture == "jumprelu":
        weights["threshold"] = torch.full_like(zeros, 0.1)
    if recipe.skip:
        weights["W_skip"] = torch.zeros(d_out, d_in, device=x.device)
    adam = {name: Adam(weight) for name, weight in weights.items()}
    return _State(weights, adam, zeros.clone(), torch.zeros((), dtype=torch.float64), scales, centre)


def _step(source: Source, recipe: Recipe, state: _State, autoencoder: bool) -> float:
    x, y = source.batch(state.step)
    x, y = x.float() * state.scales[0] - state.centre, y.float() * state.scales[1]
    for weight in state.weights.values():
        weight.requires_grad_()
    with torch.enable_grad():
        parts, active, rest = _loss(recipe, state, x, y, autoencoder)
        loss = sum(parts.values(), torch.zeros((), device=x.device))
        gradients = torch.autograd.grad(loss, list(state.weights.values()), allow_unused=True, materialize_grads=True)
    for weight in state.weights.values():
        weight.requires_grad_(False)
    if not torch.isfinite(loss):
        raise AcdcError(f"the loss is {float(loss)} at step {state.step}; lower the learning rate")
    rate = recipe.learning_rate * min(1.0, (state.step + 1) / 50, 5 * (1 - state.step / recipe.steps))
    shorter = torch.stack([gradient.norm() for gradient in gradients]).norm().clamp(min=1.0)  # to a norm of 1 at most
    for (name, weight), gradient in zip(state.weights.items(), gradients, strict=True):
        weight.add_(state.adam[name].change(gradient / shorter, state.step, rate))
    if "threshold" in state.weights:
        state.weights["threshold"].clamp_(min=1e-6)
    if recipe.architecture not in FREE_DECODER:
        state.weights["W_dec"].copy_(_unit(state.weights["W_dec"]))
    fired = (active > 0).any(0)
    state.silent = torch.where(fired, 0, state.silent + 1)
    if recipe.architecture == "batchtopk" and fired.any():
        least = active[active > 0].min().double().cpu()
        state.ema = least if state.step == 0 else (1 - THRESHOLD_RATE) * state.ema + THRESHOLD_RATE * least
    if state.step % 50 == 0:
        state.history.append(
            {
                "step": state.step,
                **{name: float(part.detach()) for name, part in parts.items()},
                "l0": float((active > 0).sum(1).float().mean()),
                "dead": float((state.silent > recipe.dead_after).float().mean()),
            }
        )
    state.step += 1
    in_time = state.step % recipe.resample_every == 0 and state.step <= 0.7 * recipe.steps
    if recipe.architecture in ("relu", "gated") and in_time:
        _resample(recipe, state, x - state.weights["b_dec"] if autoencoder else x, rest)
    return float(loss.detach())


def _loss(
    recipe: Recipe, state: _State, x: Tensor, y: Tensor, autoencoder: bool
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The parts of the loss, the features of each token, and what of it they do not rebuild."""
    w = state.weights
    product = (x - w["b_dec"] if autoencoder else x) @ w["W_enc"]
    norm = w["W_dec"].norm(dim=1)
    warm = min(1.0, (state.step + 1) / (0.05 * recipe.steps + 1))
    active, extra = _ACTIVE[recipe.architecture](recipe, state, product, norm, warm, y)
    rebuilt = active @ w["W_dec"] + w["b_dec"]
    if "W_skip" in w:
        rebuilt = rebuilt + x @ w["W_skip"].T
    rest = y - rebuilt
    parts = {"error": rest.pow(2).sum(1).mean(), **extra}
    dead = state.silent > recipe.dead_after
    if recipe.architecture in ("topk", "batchtopk") and dead.any():
        parts["auxk"] = _auxk(product + w["b_enc"], w["W_dec"], rest.detach(), dead)
    return parts, active.detach(), rest.detach()


def _auxk(before: Tensor, decoder: Tensor, rest: Tensor, dead: Tensor) -> Tensor:
    """What dead features leave of the rest, weighed by how many there are, and by 1/32 as in the paper."""
    wanted = max(1, decoder.shape[1] // 2)
    n_dead = int(dead.sum())
    active = top(torch.relu(before[:, dead]), min(wanted, n_dead))
    return (rest - active @ decoder[dead]).pow(2).sum(1).mean() * min(1.0, n_dead / wanted) / 32


def _relu(
    recipe: Recipe, state: _State, product: Tensor, norm: Tensor, warm: float, y: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    active = torch.relu(product + state.weights["b_enc"])
    return active, {"sparsity": warm * recipe.penalty * (active * norm).sum(1).mean()}


def _gated(
    recipe: Recipe, state: _State, product: Tensor, norm: Tensor, warm: float, y: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    w = state.weights
    gate = torch.relu(product + w["b_gate"])
    active = torch.relu(product * w["r_mag"].exp() + w["b_mag"]) * (gate > 0)
    rest = y - gate @ w["W_dec"].detach() - w["b_dec"].detach()
    return active, {"sparsity": warm * recipe.penalty * (gate * norm).sum(1).mean(), "gate": rest.pow(2).sum(1).mean()}


def _topk(
    recipe: Recipe, state: _State, product: Tensor, norm: Tensor, warm: float, y: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    return top(torch.relu(product + state.weights["b_enc"]), recipe.k), {}


def _batchtopk(
    recipe: Recipe, state: _State, product: Tensor, norm: Tensor, warm: float, y: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    active = torch.relu(product + state.weights["b_enc"])
    return top(active.flatten(), recipe.k * len(active)).view_as(active), {}


def _jumprelu(
    recipe: Recipe, state: _State, product: Tensor, norm: Tensor, warm: float, y: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    before, threshold = product + state.weights["b_enc"], state.weights["threshold"]
    active, steps = _Jump.apply(before, threshold)  # pyright: ignore[reportGeneralTypeIssues]
    dead = state.silent > recipe.dead_after
    pull = (torch.relu(threshold - before) * dead * norm).sum(1).mean()
    return active, {"sparsity": warm * recipe.penalty * steps.sum(1).mean(), "dead": 3e-6 * pull}


_ACTIVE: dict[str, Callable[..., tuple[Tensor, dict[str, Tensor]]]] = {
    "relu": _relu,
    "gated": _gated,
    "topk": _topk,
    "batchtopk": _batchtopk,
    "jumprelu": _jumprelu,
}


class _Jump(torch.autograd.Function):
    """x where x > threshold, and 1 there; straight-through to the threshold by a rectangle around it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, threshold)
        on = x > threshold
        return x * on, on.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        of_value, of_step = gradients
        x, threshold = ctx.saved_tensors
        near = ((x - threshold).abs() < BANDWIDTH / 2).to(x.dtype) / BANDWIDTH
        return of_value * (x > threshold), -(near * (threshold * of_value + of_step)).sum(0)


def _resample(recipe: Recipe, state: _State, reads: Tensor, rest: Tensor) -> None:
    """Points dead features at tokens that were badly rebuilt in the step just done, and lets Adam forget them.

    `reads`: what the encoder multiplies; `rest`: what was not rebuilt."""
    dead = (state.silent > recipe.dead_after).nonzero()[:, 0]
    if not len(dead):
        return
    w, living = state.weights, state.silent <= recipe.dead_after
    chances = rest.pow(2).sum(1).pow(2).cpu()
    random = generator(recipe.seed, "resample", state.step)
    chosen = torch.multinomial(chances, len(dead), replacement=len(dead) > len(chances), generator=random)
    towards, new = (_unit(rows[chosen.to(rows.device)]) for rows in (reads, rest))
    w["W_enc"][:, dead] = towards.T * (w["W_enc"][:, living].norm(dim=0).mean() if living.any() else 1.0) * 0.2
    w["W_dec"][dead] = new * (w["W_dec"][living].norm(dim=1).mean() if living.any() else 1.0)
    for name, weight in w.items():
        if name in ("b_dec", "W_skip"):
            continue
        if weight.dim() == 1:
            weight[dead] = 0
        for moment in (state.adam[name].mean, state.adam[name].square):
            (moment.T if name == "W_enc" else moment)[dead] = 0
    state.silent[dead] = 0


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)


def train_on_model(
    model: Transformer,
    tokens: Int[Tensor, "window pos"],
    recipe: Recipe,
    *,
    site: str,
    target: str | None = None,
    batch_size: int = 1024,
    checkpoint: str | Path | None = None,
    progress: bool = False,
) -> SparseCoder:
    """Trains a coder on what a model holds at `site` (and `target`) while it reads windows of tokens."""
    source = ModelActivations(model, tokens, site, target or site, batch_size, recipe.seed)
    return train_coder(source, recipe, site=site, target=target, checkpoint=checkpoint, progress=progress)
