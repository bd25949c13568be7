"""What a coder is worth: how sparse it is, how much it explains, what of the model it keeps, what is dead in it."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from acdc.annotation.sites import changed, read
from acdc.annotation.text import next_token_loss
from acdc.sae.cross_layer import CrossLayerTarget
from acdc.sae.on_model import check_on_model
from acdc.sae.sparse_coder import SparseCoder
from acdc.transformer import Transformer, frozen

WINDOWS_AT_ONCE = 8
ROWS_AT_ONCE = 1024
ALIKE = 0.9


@dataclass(frozen=True)
class Worth:
    """`l0`: features active on a token, mean. `explained`: 1 - mean squared error / variance (a ratio of means, over
    tokens). `loss`, `loss_rebuilt`, `loss_zero`: next-token loss in nats of the model as it is, with the target rebuilt
    by the coder, and with 0 there; `recovered` = (zero - rebuilt) / (zero - as it is): 1 is perfect, 0 no better than
    nothing. What is not defined is None: explained where nothing varies, recovered where 0 costs nothing. `dead`: share
    of features active on no token, `dense`: on more than one in ten.

    Two signs of doubled and nested features: `alike`, the share of living features with another living one whose
    decoder row has a cosine above 0.9; and `nested`, the share (active on 5 tokens or more) whose active tokens lie, to
    95%, within those of another that is active more often, on up to a tenth of tokens, and points another way. Nested
    features come from a hierarchy in the text as well as from a coder that splits one. Neither says whether a general
    feature is silent where a special one is active: that is `acdc.sae.absorption`.
    """

    n_tokens: int
    l0: float
    explained: float | None
    loss: float
    loss_rebuilt: float
    loss_zero: float
    recovered: float | None
    dead: float
    dense: float
    alike: float
    nested: float

    def as_record(self) -> dict[str, Any]:
        return asdict(self)


def worth(model: Transformer, coder: SparseCoder | CrossLayerTarget, tokens: Int[Tensor, "window pos"], *,
          progress: bool = False) -> Worth:
    """Measures a coder on text that it was not trained on. The first position of each window is left as it is.

    Cost: four forward passes. Raises `AcdcError` for a coder that does not fit the model.
    """
    check_on_model(model, coder)
    sums: dict[str, float] = dict.fromkeys(("l0", "error", "square", "loss", "rebuilt", "zero"), 0.0)
    n, total = 0, torch.zeros(coder.d_out, dtype=torch.float64, device=tokens.device)
    active_on: list[Tensor] = []
    with frozen(model), torch.no_grad():
        for some in tqdm(tokens.split(WINDOWS_AT_ONCE), desc="measuring", unit="batch", disable=not progress):
            found = read(model, some, list({*coder.reads, coder.target}))
            x, y = [found[name][:, 1:] for name in coder.reads], found[coder.target][:, 1:]
            features = coder.encode(*x)
            rebuilt = coder.decode(features, *x).to(y.dtype)
            sums["l0"] += float((features > 0).sum())
            sums["error"] += float((y - rebuilt).double().pow(2).sum())
            sums["square"] += float(y.double().pow(2).sum())
            total = total + y.double().flatten(0, 1).sum(0)
            n += y.shape[0] * y.shape[1]
            active_on.append((features > 0).flatten(0, 1).cpu())
            for name, value in (("loss", None), ("rebuilt", rebuilt), ("zero", torch.zeros_like(rebuilt))):
                sums[name] += _loss(model, some, coder.target, value)
    variance = sums["square"] - float((total**2).sum()) / n
    loss, of_rebuilt, of_zero = (sums[name] / len(tokens) for name in ("loss", "rebuilt", "zero"))
    active = torch.cat(active_on)
    density = active.float().mean(0)
    alike, nested = _doubles(coder.decoder.cpu(), active)
    return Worth(
        n,
        sums["l0"] / n,
        1 - sums["error"] / variance if variance > 0 else None,
        loss,
        of_rebuilt,
        of_zero,
        (of_zero - of_rebuilt) / (of_zero - loss) if of_zero != loss else None,
        float((density == 0).float().mean()),
        float((density > 0.1).float().mean()),
        alike,
        nested,
    )


def _loss(model: Transformer, tokens: Tensor, where: str, value: Tensor | None) -> float:
    """Sum over windows of the mean loss, with another value at all but the first position of a site."""
    changes = {} if value is None else {where: lambda x: torch.cat([x[:, :1], value], 1)}
    with changed(model, changes):
        logits = model.hf(input_ids=tokens, attention_mask=model.full_mask(tokens), use_cache=False).logits
    return float(next_token_loss(logits, tokens).sum())


def _doubles(decoder: Float[Tensor, "feature d_out"], active: Tensor) -> tuple[float, float]:
    """The shares of living features that are alike and nested, see `Worth`."""
    living = active.any(0)
    if not living.any():
        return 0.0, 0.0
    rows, on = torch.nn.functional.normalize(decoder[living].float(), dim=1), active[:, living].float()
    count, alike, nested = on.sum(0), 0, 0
    for some in torch.arange(len(rows)).split(ROWS_AT_ONCE):
        cosine, own = rows[some] @ rows.T, count[some, None]
        cosine[torch.arange(len(some)), some] = -1
        inside = (on[:, some].T @ on) / own >= 0.95
        wider = (count > own) & (count < 0.1 * len(active)) & (own >= 5)
        alike += int((cosine > ALIKE).any(1).sum())
        nested += int((inside & wider & (cosine < ALIKE)).any(1).sum())
    return alike / len(rows), nested / len(rows)
