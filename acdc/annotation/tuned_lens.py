"""What a model would predict if it stopped at a layer, read by an affine map that was trained for that layer.

The tuned lens reads the residual stream h that block i reads as the final norm would read h + A_i h + b_i. Each map
starts at zero, where it is the logit lens, and is trained so that KL(the model's own distribution || the lens's) falls,
on running text. How it is trained:

- A step draws windows of the text, runs the model once, and differentiates the mean KL of `tokens_per_step` tokens, a
  layer at a time.
- The dimensions of a residual stream differ by orders of magnitude. So what is trained is A and b in units of each
  dimension's mean size over the first windows, by Adam, with a rate that falls linearly to 0.
- Everything random depends on the seed and the number of the step alone: a run goes on from a checkpoint as if it had
  not stopped.

Source: Belrose et al. 2023 (arXiv 2303.08112).
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from acdc.annotation.sites import read
from acdc.discovery.checkpoint import Checkpoint
from acdc.errors import AcdcError
from acdc.input_file import read_text
from acdc.learning import Adam, draw_prompts, generator
from acdc.models import weights_hash
from acdc.output_folder import write_file
from acdc.stopping import unbroken_steps
from acdc.tensor_file import read_tensors
from acdc.transformer import Transformer, frozen

CONFIG, WEIGHTS, PICKLE = "config.json", "params.safetensors", "params.pt"
LENS_TYPE = "linear_tuned_lens"
SAVE_EVERY = 25  # steps between checkpoints
FIRST_WINDOWS = 8  # that sizes of dimensions are measured on
ROWS = 256  # tokens that are unembedded at once


@dataclass(frozen=True, eq=False)
class TunedLens:
    """Translators of the residual streams that blocks 0, 1, ... read: h + h @ weight[i].T + bias[i].

    `history`: the mean KL over layers at each step of the training, empty for a lens that was loaded.
    """

    weight: Float[Tensor, "layer d_model d_model"]
    bias: Float[Tensor, "layer d_model"]
    history: list[dict[str, float]] = field(default_factory=list)

    def __call__(self, layer: int, h: Float[Tensor, "*where d_model"]) -> Float[Tensor, "*where d_model"]:
        """What the final norm reads in place of h; the `translate` of `acdc.annotation.lens.logit_lens`."""
        return h + h @ self.weight[layer].T + self.bias[layer]


@dataclass(frozen=True)
class Training:
    """How a lens is trained. `learning_rate`: in shares of the mean size of each dimension."""

    steps: int = 250
    windows_per_step: int = 4
    tokens_per_step: int = 64
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "windows_per_step", "tokens_per_step"):
            if getattr(self, name) < 1:
                raise AcdcError(f"{name}={getattr(self, name)}: it must be at least 1")
        if not 0 < self.learning_rate < float("inf"):
            raise AcdcError(f"learning_rate={self.learning_rate}: it must be a positive number")
        if self.seed < 0:
            raise AcdcError(f"seed={self.seed}: it must be 0 or more")


class _State:
    """What a checkpoint holds: what is trained, flat, the averages of Adam, and the loss curve so far."""

    def __init__(self, n_layers: int, width: int, device: torch.device) -> None:
        self.weight = torch.zeros(n_layers, width, width, device=device)
        self.bias = torch.zeros(n_layers, width, device=device)
        self.of_weight, self.of_bias = Adam(self.weight), Adam(self.bias)
        self.step, self.history = 0, []

    def tensors(self) -> dict[str, Tensor]:
        return {"weight": self.weight, "bias": self.bias,
                "weight_mean": self.of_weight.mean, "weight_square": self.of_weight.square,
                "bias_mean": self.of_bias.mean, "bias_square": self.of_bias.square}


def train_tuned_lens(
    model: Transformer,
    windows: Int[Tensor, "window pos"],
    training: Training | None = None,
    *,
    checkpoint: str | Path | None = None,
    progress: bool = False,
) -> TunedLens:
    """A lens trained on windows of text (`acdc.annotation.text.windows`).

    `checkpoint`: a file that the state is saved in every 25 steps; a run that finds it goes on from it. Cost of a step:
    a forward pass of its windows, and for each layer an unembedding of its tokens there and back. Raises `AcdcError`
    for no windows, options out of range, a checkpoint of another run, and a loss that is not finite.
    """
    training = training or Training()
    if not len(windows):
        raise AcdcError("no windows of text given to train on; give at least one")
    file = None if checkpoint is None else Checkpoint(checkpoint, _header(model, windows, training))
    with frozen(model):
        sizes = _sizes(model, windows)
        state = _State(model.n_layers, sizes.shape[-1], windows.device)
        if file is not None:
            file.load(state)
        with (unbroken_steps() as stopped,
              tqdm(total=training.steps, initial=state.step, desc="training the lens", disable=not progress) as bar):
            while state.step < training.steps:
                loss = _step(model, windows, training, sizes, state)
                bar.set_postfix(kl=f"{loss:.3f}")
                bar.update()
                stop = stopped()
                if file is not None and (stop or state.step % SAVE_EVERY == 0 or state.step == training.steps):
                    file.save(state)
                if stop:
                    raise stop
    weight = state.weight * sizes[:, :, None] / sizes[:, None, :]
    return TunedLens(weight.to(model.dtype), (state.bias * sizes).to(model.dtype), state.history)


def _header(model: Transformer, windows: Tensor, training: Training) -> dict[str, Any]:
    text = hashlib.sha256(windows.cpu().numpy().tobytes()).hexdigest()
    return {"method": "tuned lens", **vars(training), "model": weights_hash(model), "dtype": str(model.dtype),
            "windows": list(windows.shape), "text": text}


def _streams(model: Transformer, windows: Tensor, layers: int) -> list[Tensor]:
    """The residual streams that blocks and, last, the final norm read."""
    names = [f"resid{layer}" for layer in range(layers + 1)]
    seen = read(model, windows, names)
    return [seen[name] for name in names]


def _sizes(model: Transformer, windows: Tensor) -> Float[Tensor, "layer d_model"]:
    """The mean size of each dimension of each layer's residual stream."""
    streams = _streams(model, windows[:FIRST_WINDOWS], model.n_layers)[:-1]
    sizes = torch.stack([stream.float().abs().mean((0, 1)) for stream in streams])
    return sizes.clamp(min=1e-3 * float(sizes.mean()))


def _step(model: Transformer, windows: Tensor, training: Training, sizes: Tensor, state: _State) -> float:
    chosen = draw_prompts(training.seed, state.step, training.windows_per_step, len(windows)).to(windows.device)
    streams = [stream.flatten(0, 1) for stream in _streams(model, windows[chosen], model.n_layers)]
    order = torch.randperm(len(streams[0]), generator=generator(training.seed, "tokens", state.step))
    rows = order[: training.tokens_per_step].to(windows.device)
    with torch.no_grad():
        own = model.logits(streams[-1][rows]).float().log_softmax(-1)
    of_weight, of_bias, losses = torch.zeros_like(state.weight), torch.zeros_like(state.bias), []
    for layer, size in enumerate(sizes):
        h = streams[layer][rows]
        weight, bias = (x[layer].clone().requires_grad_() for x in (state.weight, state.bias))
        with torch.enable_grad():
            moved = ((h.float() / size) @ weight.T + bias) * size
            kl = _divergence(model, own, h + moved.to(h.dtype)).mean()
        of_weight[layer], of_bias[layer] = torch.autograd.grad(kl, (weight, bias))
        losses.append(float(kl.detach()))
    loss = float(np.mean(losses))
    if not np.isfinite(loss):
        raise AcdcError(f"the loss is {loss} at step {state.step}; give a smaller learning rate than "
                        f"{training.learning_rate}")
    rate = training.learning_rate * (1 - state.step / training.steps)
    state.weight += state.of_weight.change(of_weight, state.step, rate)
    state.bias += state.of_bias.change(of_bias, state.step, rate)
    state.history.append({"step": float(state.step), "kl": loss})
    state.step += 1
    return loss


def _divergence(model: Transformer, own: Float[Tensor, "row vocab"], h: Float[Tensor, "row d_model"]
                ) -> Float[Tensor, " row"]:
    """KL(own || what the final norm and the unembedding make of h)."""
    return (own.exp() * (own - model.logits(h).float().log_softmax(-1))).sum(-1)


def lens_divergence(model: Transformer, windows: Int[Tensor, "window pos"], lens: TunedLens | None = None
                    ) -> Float[Tensor, " layer"]:
    """The mean KL(the model's own distribution || the lens's) over all tokens, in nats, for each layer; without `lens`,
    that of the logit lens. To be measured on text that the lens was not trained on."""
    total = torch.zeros(model.n_layers, dtype=torch.float64)
    with torch.no_grad(), frozen(model):
        for window in windows:
            streams = [stream[0] for stream in _streams(model, window[None], model.n_layers)]
            own = [model.logits(rows).float().log_softmax(-1) for rows in streams[-1].split(ROWS)]
            for layer, stream in enumerate(streams[:-1]):
                h = stream if lens is None else lens(layer, stream)
                total[layer] += sum(float(_divergence(model, *pair).double().sum())
                                    for pair in zip(own, h.split(ROWS), strict=True))
    return (total / windows.numel()).float()


def save_tuned_lens(lens: TunedLens, model: Transformer, folder: str | Path) -> None:
    """Writes config.json and params.safetensors ("0.weight", "0.bias", ...) in the format of the package tuned-lens,
    which itself writes the same tensors as a pickle."""
    folder = Path(folder)
    n_layers, width = lens.bias.shape
    config = {"base_model_name_or_path": model.name, "d_model": width, "num_hidden_layers": n_layers, "bias": True,
              "base_model_revision": None, "unembed_hash": unembed_hash(model), "lens_type": LENS_TYPE}
    tensors = {f"{i}.{name}": values[i].cpu().contiguous() for i in range(n_layers)
               for name, values in (("weight", lens.weight), ("bias", lens.bias))}
    write_file(folder / WEIGHTS, save(tensors))
    write_file(folder / CONFIG, json.dumps(config, indent=1) + "\n")


def unembed_hash(model: Transformer) -> str:
    """The hash by which tuned-lens tells unembeddings apart: sha256 of how numpy prints the matrix, in short and to one
    decimal. Models with much the same unembedding have the same."""
    weight = model.unembedding.detach().float().cpu().numpy()
    with np.printoptions(precision=1, threshold=1000, edgeitems=3, linewidth=75):
        return hashlib.sha256(np.array_str(weight, precision=1).encode()).hexdigest()


def load_tuned_lens(model: Transformer, folder: str | Path) -> TunedLens:
    """The lens in a folder with config.json and params.safetensors.

    Raises `AcdcError` for a folder without them, a pickle, which is never opened, a damaged file, and a lens of another
    model (its width, layers or unembedding).
    """
    folder = Path(folder)
    if not (folder / WEIGHTS).is_file() and (folder / PICKLE).exists():
        raise AcdcError(
            f"{folder / PICKLE} is a pickle, which can run any code when it is opened, so it is not. If you trust it, "
            f"convert it once: safetensors.torch.save_file(torch.load({PICKLE!r}, weights_only=True), {WEIGHTS!r})"
        )
    with _damage_told(folder):
        config = json.loads(read_text(folder / CONFIG))
        tensors, _ = read_tensors(folder / WEIGHTS, "tuned lens", f"{CONFIG} and {WEIGHTS} are needed, intact")
        _check_config(model, folder, config)
        n, width = model.n_layers, config["d_model"]
        wanted = {f"{i}.{name}": shape for i in range(n) for name, shape in (("weight", (width, width)),
                                                                             ("bias", (width,)))}
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        for name in wanted.keys() | found.keys():
            if found.get(name) != wanted.get(name):
                raise AcdcError(f"{folder / WEIGHTS}: {name!r} has the shape {found.get(name)}, not "
                                f"{wanted.get(name)}; give the files as they were saved")
            if not tensors[name].is_floating_point():
                raise AcdcError(f"{folder / WEIGHTS}: {name!r} holds {tensors[name].dtype}, not floating-point "
                                "numbers; give the files as they were saved")
    weight, bias = (torch.stack([tensors[f"{i}.{name}"] for i in range(n)]).to(model.device, model.dtype)
                    for name in ("weight", "bias"))
    if not (torch.isfinite(weight).all() and torch.isfinite(bias).all()):
        raise AcdcError(f"{folder / WEIGHTS} holds numbers that are not finite; train the lens anew")
    return TunedLens(weight, bias)


@contextmanager
def _damage_told(folder: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise AcdcError(f"{folder} holds no tuned lens: {CONFIG} and {WEIGHTS} are needed") from error
    except (OSError, ValueError, RecursionError) as error:
        raise AcdcError(f"the tuned lens in {folder} cannot be read ({error}); give intact files") from error


def _check_config(model: Transformer, folder: Path, config: Any) -> None:
    if not isinstance(config, dict) or config.get("lens_type", LENS_TYPE) != LENS_TYPE or not config.get("bias", True):
        raise AcdcError(f"{folder / CONFIG} is not of an affine tuned lens: it must say lens_type {LENS_TYPE!r} and "
                        "bias true")
    own = {"d_model": model.hf.get_input_embeddings().weight.shape[1], "num_hidden_layers": model.n_layers}
    if config.get("unembed_hash") is not None:
        own["unembed_hash"] = unembed_hash(model)
    for key, value in own.items():
        if config.get(key) != value:
            raise AcdcError(f"the tuned lens in {folder} is of another model: its {key} is {config.get(key)!r}, "
                            f"{model.name} has {value!r}. Load the model that it was trained for "
                            f"({config.get('base_model_name_or_path')!r})")
