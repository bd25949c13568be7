"""Edge attribution by gradients: (what src changes by) . (how the loss changes with what dst reads), for all edges.

    s(src -> channel) = sum over batch, pos, d of (src_replacement - src_clean) * dL/d(channel input)

Phases: HF's own forward and backward gives the gradient at each layer's z and at the MLPs' inputs; attention is
differentiated again, head by head, for q, k and v (so that grouped keys and values get one gradient per query head);
the norm and the projection are undone in closed form; one matrix product per layer gives the scores.

The gradient of a channel through its projection W and norm (gain g, x_hat = x * rstd, D = d_model, C = centring in a
LayerNorm, else the identity) is, with u = rstd * dL/d(projected),

    dL/dx = C (g * W^T u)  -  x_hat * (x_hat . (g * W^T u)) / D

The first term is linear in u, so that u is summed over the steps of a path first, and the second factor is a number
per position, head and step: only one product with W and one with the differences is made, however many steps there are.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from acdc.ablation import Ablation, Replacement, prepare_ablation
from acdc.activations import Activations, Resid, Taps, differences, record, record_with_taps
from acdc.architectures.anatomy import Projection
from acdc.circuit import EdgeScores
from acdc.cluster import over
from acdc.errors import AcdcError
from acdc.fitting import Halving
from acdc.graph import KV, Graph
from acdc.metrics import Metric
from acdc.positions import Cells, cells_of
from acdc.task import Batch, position_groups, position_names
from acdc.transformer import Transformer, frozen

PRODUCT_BYTES = 512 * 2**20  # differences and channel gradients are expanded for as many prompts as fit in this


@dataclass(frozen=True, eq=False)
class HeadGradient:
    """Gradient at q, k, v of one layer in one run: `u` as above; `along` = x_hat . (g * W^T u) / D."""

    u: Float[Tensor, "channel batch pos d_head"]
    x_hat: Resid
    along: Float[Tensor, "channel batch pos"]


@dataclass(frozen=True, eq=False)
class LayerGradient:
    """Gradients of one layer, summed over runs; `steps` holds the factors that differ from run to run."""

    u: Float[Tensor, "channel batch pos d_head"]
    steps: list[tuple[Resid, Float[Tensor, "channel batch pos"]]]
    mlp: Resid


# (model, clean run, loss of the logits, start) -> the gradients of each layer, and at the final norm
Backward = Callable[[Transformer, Activations, Callable[[Tensor], Tensor], int], tuple[list[LayerGradient], Tensor]]
# (model, batch, metric, replacement, parts) -> the scores, each summed over the tokens of one part
Products = Callable[[Transformer, Batch, Metric, Replacement, Cells], Float[Tensor, "part src channel"]]


def attribute(
    model: Transformer,
    batches: Sequence[Batch],
    metric: Metric,
    *,
    points: Sequence[float] = (1.0,),
    kv: KV,
    ablation: str,
    progress: bool,
    provenance: dict,
    positions: str = "all",
    per_prompt: bool = False,
    backward: Backward | None = None,
    products: Products | None = None,
) -> EdgeScores:
    """Scores with the gradient averaged over runs whose input lies at `points` of the way from replacement to clean.

    The clean run itself, point 1, can only be the first. `positions`: what edges are told apart by, see
    `task.position_names`. `per_prompt`: also what each prompt alone scores, in float32; 4 bytes a prompt and edge.
    `backward` stands in for HF's own backward pass, at the clean run, the only point then. `products` stands in for all
    of this: it computes a batch's scores in its own way.
    Cost a batch: a forward and a backward pass for each point, a forward pass for the replacement, one for the clean
    run unless it is among the points, and the products: 2 * edges * prompts * positions * d_model operations.
    """
    graph = model.graph(kv, position_names(batches, positions))
    total, alone = np.zeros(graph.n_edges), []
    if products is None:
        products = partial(products_at_points, points=points, backward=backward)
    for scores in batch_scores(model, batches, metric, graph, products, ablation=ablation, per_prompt=per_prompt,
                               progress=progress):
        total += scores.sum(0)
        if per_prompt:
            alone.append(scores.astype(np.float32))
    record = {**provenance, "metric": metric.name, "ablation": ablation}
    return EdgeScores(graph, total / sum(len(batch) for batch in batches), record,
                      np.concatenate(alone) if per_prompt else None)


def batch_scores(
    model: Transformer,
    batches: Sequence[Batch],
    metric: Metric,
    graph: Graph,
    products: Products,
    *,
    ablation: str,
    per_prompt: bool,
    progress: bool,
) -> Iterator[Float[np.ndarray, "prompt edge"]]:
    """For each batch, the scores of every prompt, or their sum over prompts as one row; in float64."""
    if not metric.differentiable:
        raise AcdcError(f"metric {metric.name!r} has no gradient; use a differentiable one, such as logit_difference")
    replace = prepare_ablation(model, batches, ablation)

    of_batch = partial(_of_batch, model, metric, graph, products, replace, per_prompt, Halving())
    found = over(model, of_batch, batches, "scores of a batch")
    yield from (one["scores"] for one in tqdm(found, desc="attributing", unit="batch", total=len(batches),
                                              disable=not progress))


def _of_batch(model: Transformer, metric: Metric, graph: Graph, products: Products, replace: Ablation, per_prompt: bool,
              fits: Halving, batch: Batch) -> dict[str, np.ndarray]:

    def scores(part: Batch) -> Float[np.ndarray, "prompt edge"]:
        replacement = replace(part)
        n_prompts = len(part) if per_prompt else 1
        cells = _parts(part, graph, replacement.start(model, part), n_prompts)
        found = products(model, part, metric, replacement, cells).unflatten(0, (n_prompts, -1))
        return _of_edges(graph, found.cpu().numpy())

    with frozen(model):
        found = fits.parts(batch, scores)
    return {"scores": np.concatenate(found) if per_prompt else np.sum(found, axis=0)}


def _parts(batch: Batch, graph: Graph, start: int, n_prompts: int) -> Cells:
    """The tokens from `start` of each position, in each prompt or (`n_prompts` = 1) in all."""
    prompt = torch.arange(len(batch), device=batch.clean.device)[:, None] if n_prompts > 1 else 0
    groups = position_groups(batch, graph.positions)[:, start:] + graph.n_positions * prompt
    return cells_of(groups, n_prompts * graph.n_positions)


def _of_edges(graph: Graph, products: Float[np.ndarray, "prompt position src channel_per_head"]
              ) -> Float[np.ndarray, "prompt edge"]:
    """In float64; where heads share k and v channels, the sum over the heads."""
    scores = np.zeros((len(products), graph.n_edges))
    for row, of_prompt in zip(scores, products.astype(np.float64), strict=True):
        grouped = np.zeros((len(graph.channels), graph.n_positions, len(graph.srcs)))
        np.add.at(grouped, graph.channel_of_per_head, of_prompt.transpose(2, 0, 1))
        row[:] = graph.from_matrix(grouped.transpose(2, 0, 1))
    return scores


def check_clean_gradient(metric: Metric, method: str, remedy: str) -> None:
    """Refuses a metric that compares with the clean run to a method that takes its gradient there."""
    if metric.reads_reference:
        raise AcdcError(
            f"metric {metric.name!r} is at its minimum on the clean run, where {method} takes its gradient: every "
            f"score would be 0. {remedy}"
        )


def check_start(method: str, model: Transformer, ablation: str) -> None:
    """Refuses a method that takes a gradient at the replaced input, point 0, where that is 0 and read by norms."""
    if ablation == "zero" and any(norm.eps is not None for norm in model.anatomy.norms):
        raise AcdcError(
            f"{method} with zero ablation: the path would start at an input of 0, where the gradient of a norm is "
            "1 / sqrt(eps), which multiplies from layer to layer. Use resample or a mean, or the method eap or exact"
        )


def products_at_points(
    model: Transformer, batch: Batch, metric: Metric, replacement: Replacement, parts: Cells, *,
    points: Sequence[float], backward: Backward | None = None,
) -> Float[Tensor, "part src channel"]:
    """A batch's scores with the gradient averaged over `points`, see `attribute`."""
    start = replacement.start(model, batch)
    replaced = replacement.activations.expanded(*batch.clean.shape)
    if backward is not None:
        assert list(points) == [1.0], points
        clean = record(model, batch.clean)
        gradients = backward(model, clean, lambda logits: metric.loss(logits, batch, logits.detach()), start)
        return products_with(model, clean, replaced, *gradients, start, parts)
    clean, layers, logits_gradient = gradients_at_points(model, batch, metric, replaced, points, start)
    return products_with(model, clean, replaced, layers, logits_gradient, start, parts) / len(points)


def gradients_at_points(
    model: Transformer, batch: Batch, metric: Metric, replaced: Activations, points: Sequence[float], start: int
) -> tuple[Activations, list[LayerGradient], Float[Tensor, "batch d_model"]]:
    """The clean run, and the gradients of each layer and at the final norm, at positions from `start`, summed over
    `points`, in float32 at least.

    Of a model with offloaded weights a layer at a time is differentiated, as a graph of all would hold all weights.
    """
    clean = None if 1.0 in points else record(model, batch.clean)
    assert 1.0 not in points[1:], points
    total: list[LayerGradient] = []
    logits_gradient: Tensor | None = None
    for point in points:
        inside = None if point == 1.0 else replaced.input + point * (model.embed(batch.clean) - replaced.input)
        reference = None if clean is None or not metric.reads_reference else model.logits(clean.final[:, -1])
        loss = partial(_loss, metric, batch, reference)
        if model.is_offloaded:
            from acdc.discovery.rules import backward  # here, because it reads this module

            run = record(model, batch.clean, inside)
            layers, at_logits = backward(model, run, loss, start)
        else:
            run, layers, at_logits = _forward_and_backward(model, batch, inside, loss, start)
        clean = run if point == 1.0 else clean
        logits_gradient = at_logits if logits_gradient is None else logits_gradient + at_logits
        total = _added(total, layers)
        del run, layers  # the next run needs their room
    assert clean is not None and logits_gradient is not None
    return clean, total, logits_gradient


def _added(total: list[LayerGradient], layers: list[LayerGradient]) -> list[LayerGradient]:
    for layer, more in zip(total, layers, strict=bool(total)):
        layer.u.add_(more.u)
        layer.mlp.add_(more.mlp)
        layer.steps.extend(more.steps)
    return total or layers


def _loss(metric: Metric, batch: Batch, reference: Tensor | None, logits: Float[Tensor, "batch vocab"]
          ) -> Float[Tensor, " batch"]:
    """`reference`: None where it is the run's own logits."""
    return metric.loss(logits, batch, logits.detach() if reference is None else reference)


def _forward_and_backward(
    model: Transformer, batch: Batch, input: Resid | None, loss: Callable[[Tensor], Tensor], start: int
) -> tuple[Activations, list[LayerGradient], Float[Tensor, "batch d_model"]]:
    """HuggingFace's own, of all layers at once: the run, and the gradients in float32 at least."""
    run, taps = record_with_taps(model, batch.clean, input)
    with torch.enable_grad():
        total = loss(model.logits(taps.final[:, -1])).sum()
    gradients = _tap_gradients(model, total, taps)
    del taps, total
    wide = torch.promote_types(model.dtype, torch.float32)
    layers = []
    for layer, (at_z, at_mlp) in enumerate(zip(gradients.z, gradients.mlp_in, strict=True)):
        head = _head_gradient(model, layer, run, at_z, start)
        layers.append(LayerGradient(head.u, [(head.x_hat, head.along)], at_mlp[:, start:].to(wide, copy=True)))
    return run, layers, gradients.final[:, -1].to(wide)


def _tap_gradients(model: Transformer, loss: Tensor, taps: Taps) -> Taps:
    n = len(taps.z)
    # A layer that cannot reach the logits (a model with an MLP of no effect) has gradient 0.
    gradients = torch.autograd.grad(loss, [*taps.z, *taps.mlp_in, taps.final], allow_unused=True,
                                    materialize_grads=True)
    gradients = [gradient.to(model.device) for gradient in gradients]
    return Taps(gradients[:n], gradients[n:-1], gradients[-1])


def _head_gradient(model: Transformer, layer: int, run: Activations, z_gradient: Tensor, start: int) -> HeadGradient:
    """Gradient at q, k, v of every query head, from the gradient at z; at positions from `start`."""
    block, kv = model.blocks[layer], model.kv_head
    attention = block.attention
    with torch.enable_grad():
        q = run.q[layer][:, start:].detach().requires_grad_()
        k = run.k[layer][:, :, kv].detach().requires_grad_()
        v = run.v[layer][:, :, kv].detach().requires_grad_()
        z = model.attend(attention, q, k, v, start)
        gradients = torch.autograd.grad(z, (q, k, v), z_gradient[:, start:].unflatten(-1, z.shape[2:]))
    return head_gradient(model, layer, run.attn_in[layer][:, start:], (q, k, v), gradients)


def head_gradient(model: Transformer, layer: int, reads: Resid, values: Sequence[Tensor], gradients: Sequence[Tensor]
                  ) -> HeadGradient:
    """From what attention reads, its q, k and v of every query head and the gradients there; at the last positions,
    those of `reads`."""
    attention, norm, kv = model.blocks[layer].attention, model.blocks[layer].attn_norm, model.kv_head
    x_hat, rstd = norm.statistics(reads.detach())
    window, d_model = x_hat.shape[1:]
    us, alongs = [], []
    projections = (attention.q, attention.k, attention.v)
    for value, gradient, projection in zip(values, gradients, projections, strict=True):
        u = gradient[:, -window:] * rstd[..., None]
        offset = _offset(projection, norm.bias)
        if offset is not None and len(offset) != model.n_heads:
            offset = offset[kv]
        of_x_hat = value.detach()[:, -window:] - (0 if offset is None else offset)
        us.append(u.permute(2, 0, 1, 3))
        alongs.append(((of_x_hat * u).sum(-1) / d_model).permute(2, 0, 1))
    return HeadGradient(torch.cat(us), x_hat, torch.cat(alongs))


def _offset(projection: Projection, norm_bias: Tensor | None) -> Float[Tensor, "head d_head"] | None:
    """What a projection returns for x_hat = 0."""
    through = None if norm_bias is None else projection.weight @ norm_bias
    if through is None or projection.bias is None:
        return projection.bias if through is None else through
    return through + projection.bias


def products_with(
    model: Transformer,
    clean: Activations,
    replaced: Activations,
    layers: Sequence[LayerGradient],
    logits_gradient: Float[Tensor, "batch d_model"],
    start: int,
    parts: Cells,
    *,
    srcs: slice = slice(None),
    first_layer: int = 0,
) -> Float[Tensor, "part src channel"]:
    """The scores, each summed over the tokens of one part: one matrix product a layer and part, for as many prompts at
    a time as memory allows.

    A layer's heads are taken together with the MLP before them. Products that are not edges are not read. Only `srcs`
    get a score, and only in channels from `first_layer`'s heads and the MLP before them on.
    """
    graph = model.graph()
    first, end, _ = srcs.indices(len(graph.srcs))
    batch, window, d_model = layers[-1].mlp.shape
    scores = layers[-1].u.new_zeros(len(parts), len(graph.srcs), len(graph.channels))
    bytes_per_prompt = (end - first + 3 * model.n_heads + 1) * window * d_model * scores.element_size()
    if len(parts) > 1:
        bytes_per_prompt *= 2
    size = max(1, PRODUCT_BYTES // bytes_per_prompt)
    for rows in (slice(i, i + size) for i in range(0, batch, size)):
        changes = differences(model, clean, replaced, start, rows, scores.dtype, srcs)
        cells = [_within(part, rows, batch, window) for part in parts]
        of_part = [_at(changes, cell) for cell in cells]
        for layer in range(first_layer, model.n_layers + 1):
            gradient, channels = channel_gradients(model, layers, layer, rows)
            reading = slice(first, min(end, int(graph.n_srcs_read[channels].max())))
            n_read = max(0, reading.stop - first)
            for part, cell in enumerate(cells):
                scores[part, reading, channels] += of_part[part][:n_read] @ _at(gradient, cell).T
        last = torch.einsum("sbd,bd->bs", changes[:, :, -1], logits_gradient[rows].to(scores.dtype))
        for part, cell in enumerate(cells):
            scores[part, srcs, -1] += last[cell[cell % window == window - 1] // window].sum(0)
    return scores


def _within(part: Int[Tensor, " _"], rows: slice, batch: int, window: int) -> Int[Tensor, " _"]:
    """The tokens of a part that belong to some prompts, counted from the first of these."""
    first, end, _ = rows.indices(batch)
    return part[(part >= first * window) & (part < end * window)] - first * window


def _at(values: Float[Tensor, "n batch pos d_model"], cell: Int[Tensor, " _"]) -> Float[Tensor, "n tokens_d_model"]:
    """The values at some tokens, side by side; without a copy where these are all."""
    if len(cell) == values.shape[1] * values.shape[2]:
        return values.flatten(1)
    return values.flatten(1, 2)[:, cell].flatten(1)


def channel_gradients(
    model: Transformer, layers: Sequence[LayerGradient], layer: int, rows: slice
) -> tuple[Float[Tensor, "channel batch pos d_model"], list[int]]:
    """dL/d(channel input) of the heads of `layer` and of the MLP before it, and which channels they are."""
    graph = model.graph()
    parts, channels = [], []
    if layer < model.n_layers:
        block, index, gradient = model.blocks[layer], graph.layer(layer), layers[layer]
        attention, kv = block.attention, model.kv_head
        weight = torch.cat([attention.q.weight, attention.k.weight[kv], attention.v.weight[kv]]).to(gradient.u.dtype)
        if block.attn_norm.gain is not None:
            weight = weight * block.attn_norm.gain
        if block.attn_norm.centered:
            weight = weight - weight.mean(-1, keepdim=True)
        u = gradient.u[:, rows]
        heads = torch.bmm(u.flatten(1, 2), weight.to(u.dtype)).view(*u.shape[:3], -1)
        for x_hat, along in gradient.steps:
            heads.addcmul_(x_hat[rows], along[:, rows, :, None], value=-1)
        parts.append(heads)
        channels += range(index.q.start, index.v.stop)
    if layer > 0:
        before = layers[layer - 1]
        parts.append(before.mlp[rows].to(before.u.dtype)[None])
        channels.append(graph.layer(layer - 1).mlp_channel)
    return (parts[0] if len(parts) == 1 else torch.cat(parts)), channels
