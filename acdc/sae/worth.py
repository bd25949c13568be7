"""What a coder is worth: how sparse it is, how much it explains, what of the model it keeps, what is dead in it."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from acdc.annotation.sites import changed, read
from acdc.errors import AcdcError
from acdc.sae.sparse_coder import SparseCoder
from acdc.transformer import Transformer, frozen

WINDOWS_AT_ONCE = 8
ALIKE = 0.9


@dataclass(frozen=True)
class Worth:
    """`l0`: features active on a token, mean. `explained`: 1 - mean squared error / variance (a ratio of means, over
    tokens). `loss`, `loss_rebuilt`, `loss_zero`: next-token loss in nats of the model as it is, with the target rebuilt
    by the coder, and with 0 there; `recovered` = (zero - rebuilt) / (zero - as it is): 1 is perfect, 0 no better than
    nothing. `dead`: share of features active on no token, `dense`: on more than one in ten.

    Two signs of absorption and splitting, which no number above shows: `alike`, the share of living features with
    another living one whose decoder row has a cosine above 0.9; and `nested`, the share whose active tokens lie, to
    95%, within those of another that is active more often and points another way.
    """

    n_tokens: int
    l0: float
    explained: float
    loss: float
    loss_rebuilt: float
    loss_zero: float
    recovered: float
    dead: float
    dense: float
    alike: float
    nested: float

    def as_record(self) -> dict[str, Any]:
        return asdict(self)


def worth(model: Transformer, coder: SparseCoder, tokens: Int[Tensor, "window pos"]) -> Worth:
    """Measures a coder on text that it was not trained on. The first position of each window is left as it is.

    Cost: four forward passes. Raises `AcdcError` for a coder of another width than the site has.
    """
    sums: dict[str, float] = dict.fromkeys(("l0", "error", "square", "loss", "rebuilt", "zero"), 0.0)
    n, n_predicted, total = 0, 0, torch.zeros(coder.d_out, dtype=torch.float64, device=tokens.device)
    active_on: list[Tensor] = []
    with frozen(model), torch.no_grad():
        for some in tokens.split(WINDOWS_AT_ONCE):
            found = read(model, some, list({coder.site, coder.target}))
            x, y = found[coder.site][:, 1:], found[coder.target][:, 1:]
            if y.shape[-1] != coder.d_out:
                raise AcdcError(
                    f"the coder rebuilds {coder.d_out} dimensions, {coder.target} of {model.name} has {y.shape[-1]}"
                )
            features = coder.encode(x)
            rebuilt = coder.decode(features, x).to(y.dtype)
            sums["l0"] += float((features > 0).sum())
            sums["error"] += float((y - rebuilt).double().pow(2).sum())
            sums["square"] += float(y.double().pow(2).sum())
            total = total + y.double().flatten(0, 1).sum(0)
            n += y.shape[0] * y.shape[1]
            active_on.append((features > 0).flatten(0, 1).cpu())
            n_predicted += some[:, 1:].numel()
            for name, value in (("loss", None), ("rebuilt", rebuilt), ("zero", torch.zeros_like(rebuilt))):
                sums[name] += _loss(model, some, coder.target, value)
    variance = sums["square"] - float((total**2).sum()) / n
    loss, of_rebuilt, of_zero = (sums[name] / n_predicted for name in ("loss", "rebuilt", "zero"))
    active = torch.cat(active_on)
    density = active.float().mean(0)
    alike, nested = _doubles(coder.decoder.cpu(), active)
    return Worth(
        n,
        sums["l0"] / n,
        1 - sums["error"] / variance,
        loss,
        of_rebuilt,
        of_zero,
        (of_zero - of_rebuilt) / (of_zero - loss) if of_zero != loss else float("nan"),
        float((density == 0).float().mean()),
        float((density > 0.1).float().mean()),
        alike,
        nested,
    )


def _loss(model: Transformer, tokens: Tensor, where: str, value: Tensor | None) -> float:
    """Sum over predicted tokens of -log p, with another value at all but the first position of a site."""
    changes = {} if value is None else {where: lambda x: torch.cat([x[:, :1], value], 1)}
    with changed(model, changes):
        logits = model.hf(input_ids=tokens, attention_mask=model.full_mask(tokens), use_cache=False).logits[:, :-1]
    return float(
        torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="sum")
    )


def _doubles(decoder: Float[Tensor, "feature d_out"], active: Tensor) -> tuple[float, float]:
    """The shares of living features that are alike and nested, see `Worth`."""
    count = active.sum(0).float()
    living = count > 0
    if not living.any():
        return 0.0, 0.0
    rows = torch.nn.functional.normalize(decoder[living].float(), dim=1)
    cosine, on, count = rows @ rows.T, active[:, living].float(), count[living]
    cosine.fill_diagonal_(-1)
    inside = (on.T @ on) / count[:, None] >= 0.95
    wider = (count[None, :] > count[:, None]) & (count[None, :] < 0.1 * len(active)) & (count[:, None] >= 5)
    nested = (inside & wider & (cosine < ALIKE)).any(1)
    return float((cosine.max(1).values > ALIKE).float().mean()), float(nested.float().mean())
