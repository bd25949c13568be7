"""Which features of a sparse coder carry the edges of a circuit: scores of edges and nodes, shared out over features.

What a node writes is, by the coder that reads it or its input, x = sum_i f_i d_i + e: features times decoder rows, and
what the coder does not explain (its error, with its bias and skip connection). So the change of x from the clean to the
replaced run is sum_i (f'_i - f_i) d_i + (e' - e), and a score that is linear in that change, as `eap`'s and `eap_ig`'s
are, is shared out exactly:

    s(src -> channel) = sum_i (f'_i - f_i) d_i . g  +  (e' - e) . g,     g = dL/d(channel input), summed over tokens

Source: Marks et al. 2024 (arXiv 2403.19647), "Sparse feature circuits"; the edges' gradients are those of EAP (arXiv
2310.10348) and EAP-IG (arXiv 2403.17806).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from acdc.ablation import prepare_ablation
from acdc.activations import Activations, attention_bias, contribution, out_weight, record
from acdc.annotation.sites import Site, changed, check_after, site
from acdc.circuit import Circuit
from acdc.discovery.gradients import channel_gradients, check_clean_gradient, check_start, gradients_at_points
from acdc.errors import AcdcError
from acdc.metrics import METRICS, Metric
from acdc.patching import check_graph
from acdc.task import Batch, position_groups
from acdc.transformer import Transformer, frozen


@runtime_checkable  # so that the shape checker of the tests can check it
class Coder(Protocol):
    """A sparse autoencoder, or a transcoder: `reads` are the sites that it reads (the last of them is `site`; most
    coders read one), `target` is what it rebuilds, all as `acdc.annotation.sites` names them."""

    @property
    def site(self) -> str: ...
    @property
    def reads(self) -> tuple[str, ...]: ...
    @property
    def target(self) -> str: ...
    @property
    def decoder(self) -> Float[Tensor, "feature d_out"]: ...
    @property
    def encode(self) -> Callable[..., Tensor]: ...  # of what is at each of `reads`
    def name_of(self, feature: int) -> str: ...


@dataclass(frozen=True, eq=False)
class NodeFeatures:
    """How the scores of a node's edges are shared out; each row of `values` and its error sum to that edge's score.

    `total` and `total_error`: over all edges out of the node, kept or not; they sum to the node's own score.
    """

    node: str
    coder: Coder
    edges: tuple[str, ...]
    values: Float[np.ndarray, "edge feature"]
    errors: Float[np.ndarray, " edge"]
    total: Float[np.ndarray, " feature"]
    total_error: float

    def strongest(self, n: int) -> list[int]:
        """The `n` features of the largest |total|, those that score exactly 0 left out."""
        order = np.argsort(-np.abs(self.total), kind="stable")[:n]
        return [int(i) for i in order if self.total[i] != 0]


@dataclass(frozen=True, eq=False)
class SiteFeatures:
    """How the estimated effect of replacing what is at one site is shared out: `values` and `error` sum to it."""

    coder: Coder
    values: Float[np.ndarray, " feature"]
    error: float


def nodes_of(model: Transformer, coder: Coder) -> list[str]:
    """The nodes whose output a coder rebuilds. Raises `AcdcError` where that is no node's, as in the residual stream,
    and where what it rebuilds does not reach the residual stream in a linear way."""
    at = site(model, coder.target)
    heads = range(model.n_heads) if at.head is None else [at.head]
    if at.kind == "m" and at.part is None:
        return [f"m{at.layer}"]
    if at.kind == "a" and (at.head is not None or at.part == "z"):
        if at.part == "z" and model.blocks[at.layer].attn_post is not None:
            raise AcdcError(f"the coder of {coder.target}: in {model.name} a norm follows attention, so a head writes "
                            f"its z times a factor of the run. Use a coder of a{at.layer}.h0 and so on")
        return [f"a{at.layer}.h{head}" for head in heads]
    raise AcdcError(f"the coder rebuilds {coder.target}, which is not the output of a node of the graph; use one of "
                    "m5, a5.h1, a5.h1.z or a5.z, or `site_features`")


def edge_features(
    model: Transformer,
    batches: Sequence[Batch],
    metric: Metric = METRICS["logit_difference"],
    *,
    circuit: Circuit,
    coders: Sequence[Coder],
    steps: int | None = 5,
    ablation: str = "resample",
    progress: bool = False,
) -> list[NodeFeatures]:
    """For each node of the circuit that a coder rebuilds, how its kept edges' scores are shared out over features.

    `steps`: the gradient is that of `eap_ig` with so many steps, or with None that of `eap`, and so are the scores that
    the shares sum to: the mean over prompts, in the unit of the metric as a loss, positive where the feature helps. A
    replaced run that is a mean has the features that the coder finds in that mean. Cost a batch: as the method, and for
    each kept edge a product of the features that change with their decoder rows and the gradient.

    It misleads where the coder explains little: look at the error first. Raises `AcdcError` for a coder of no node of
    the graph, or of no node of the circuit, two coders of one node, and where the method does.
    """
    check_graph(model, circuit.graph)
    if steps is None:
        check_clean_gradient(metric, "a share of EAP's scores", "Give steps")
    else:
        check_start("eap_ig", model, ablation)
    points = [1.0] if steps is None else [k / steps for k in range(steps)]
    of_node = coder_of_node(model, circuit, coders)
    replace = prepare_ablation(model, batches, ablation)
    sums = {node: _Sums(model, circuit, node, coder) for node, coder in of_node.items()}
    with frozen(model):
        for batch in tqdm(batches, desc="features", unit="batch", disable=not progress):
            replacement = replace(batch)
            start = replacement.start(model, batch)
            replaced = replacement.activations.expanded(*batch.clean.shape)
            clean, layers, at_logits = gradients_at_points(model, batch, metric, replaced, points, start)
            groups = position_groups(batch, circuit.graph.positions)[:, start:]
            with torch.no_grad():
                change = {node: change_of(model, coder, node, clean, replaced, start)
                          for node, coder in of_node.items()}
                for channels, gradient in all_gradients(model, layers, at_logits):
                    for node, own in sums.items():
                        own.add(channels, gradient / len(points), change[node], groups)
    n = sum(len(batch) for batch in batches)
    return [own.mean(n) for own in sums.values()]


def coder_of_node(model: Transformer, circuit: Circuit, coders: Sequence[Coder]) -> dict[str, Coder]:
    """Which coder rebuilds which node of the circuit, in the order of the forward pass."""
    found: dict[str, Coder] = {}
    for coder in coders:
        check_order(model, coder)
        for node in nodes_of(model, coder):
            if node in found:
                raise AcdcError(f"two coders rebuild {node}: of {found[node].site} and of {coder.site}; give one")
            found[node] = coder
    writing = {circuit.graph.srcs[s].name for s in circuit.graph.edge_src[circuit.kept]}
    if not found.keys() & writing:
        raise AcdcError(f"no edge of the circuit leaves a node that the coders rebuild ({', '.join(found) or 'none'}); "
                        "give coders of nodes of the circuit")
    return {node.name: found[node.name] for node in circuit.nodes if node.name in found.keys() & writing}


def check_order(model: Transformer, coder: Coder) -> None:
    """Raises `AcdcError` where what a coder rebuilds does not come after what it reads."""
    for name in coder.reads:
        check_after(model, name, coder.target)


@dataclass(frozen=True, eq=False)
class Change:
    """replaced - clean of what a node writes, at positions from the start: by its coder's features, of which only
    `active` ones change (`decoder` holds their rows, in the residual stream), and whole."""

    active: Int[Tensor, " active"]
    features: Float[Tensor, "batch pos active"]
    decoder: Float[Tensor, "active d_model"]
    whole: Float[Tensor, "batch pos d_model"]

    @property
    def error(self) -> Float[Tensor, "batch pos d_model"]:
        return self.whole - self.features @ self.decoder


def change_of(model: Transformer, coder: Coder, node: str, clean: Activations, replaced: Activations, start: int
              ) -> Change:
    src = model.graph().src_index[node]
    whole = contribution(model, replaced, src)[:, start:] - contribution(model, clean, src)[:, start:]
    before, after = (features_of(model, run, coder, start) for run in (clean, replaced))
    features = (after - before).to(whole.dtype)
    active = (features != 0).flatten(0, 1).any(0).nonzero()[:, 0]
    return Change(active, features[..., active], decoder_of_node(model, coder, node)[active], whole)


def features_of(model: Transformer, run: Activations, coder: Coder, start: int = 0
                ) -> Float[Tensor, "batch pos feature"]:
    """A coder's features in a recorded run, at positions from `start`."""
    return coder.encode(*(value_at(model, run, site(model, name))[:, start:] for name in coder.reads))


def value_at(model: Transformer, run: Activations, at: Site) -> Float[Tensor, "batch pos width"]:
    """What a recorded run has at a site; in a mean of runs, what follows from the means."""
    block = model.blocks[min(at.layer, model.n_layers - 1)]
    if at.part == "neurons":
        raise AcdcError(f"a coder that reads {at.name}: neurons are not recorded; use one of m{at.layer}.in")
    if at.kind == "resid":
        if at.part == "mid":
            return run.mlp_in[at.layer]
        return run.attn_in[at.layer] if at.layer < model.n_layers else run.final
    if at.part == "norm":
        return block.mlp_norm.statistics(run.mlp_in[at.layer])[0].to(run.mlp_in[at.layer].dtype)
    if at.kind == "m":
        return run.mlp[at.layer] if at.part is None else block.mlp_norm(run.mlp_in[at.layer])
    z, scale = run.z[at.layer], run.attn_scale[at.layer]
    if at.part == "z":
        z = z if scale is None else z / scale[..., None]
        return z.flatten(2) if at.head is None else z[:, :, at.head]
    if at.head is not None:
        return z[:, :, at.head] @ out_weight(block)[at.head]
    wrote, bias = z.flatten(2) @ out_weight(block).flatten(0, 1), attention_bias(block)
    return wrote if bias is None else wrote + bias


def decoder_of_node(model: Transformer, coder: Coder, node: str) -> Float[Tensor, "feature d_model"]:
    """What one unit of each feature adds to the residual stream through `node`."""
    at, decoder = site(model, coder.target), coder.decoder.to(model.dtype)
    if at.part != "z":
        return decoder
    head = int(node.partition(".h")[2])
    weight = model.blocks[at.layer].attention.out_weight[head]
    own = decoder if at.head is not None else decoder.unflatten(1, (model.n_heads, -1))[:, head]
    return own @ weight


def all_gradients(model: Transformer, layers: Sequence, at_logits: Tensor
                  ) -> Iterator[tuple[list[int], Float[Tensor, "channel batch pos d_model"]]]:
    """dL/d(channel input) of all channels of each query head, a few at a time, with which they are."""
    for layer in range(model.n_layers + 1):
        gradient, channels = channel_gradients(model, layers, layer, slice(None))
        yield channels, gradient
    last = layers[-1].mlp.new_zeros(1, *layers[-1].mlp.shape)
    last[0, :, -1] = at_logits
    yield [len(model.graph().channels) - 1], last


class _Sums:
    """Adds up one node's shares over channels and batches."""

    def __init__(self, model: Transformer, circuit: Circuit, node: str, coder: Coder) -> None:
        graph = circuit.graph
        self.node, self.coder = node, coder
        src = graph.src_index[node]
        self.kept = np.nonzero(circuit.kept & (graph.edge_src == src))[0]
        self.edges = tuple(graph.edge_name(edge) for edge in self.kept.tolist())
        n = len(coder.decoder)
        self.values, self.errors = np.zeros((len(self.kept), n)), np.zeros(len(self.kept))
        self.total, self.total_error = np.zeros(n), 0.0
        self.reads = model.graph().n_srcs_read > src
        self.of_channel: dict[int, list[tuple[int, int]]] = {}
        for row, edge in enumerate(self.kept.tolist()):
            for channel in np.nonzero(graph.channel_of_per_head == graph.edge_channel[edge])[0].tolist():
                self.of_channel.setdefault(channel, []).append((row, int(graph.edge_position[edge])))

    def add(self, channels: list[int], gradient: Tensor, change: Change, groups: Int[Tensor, "batch pos"]) -> None:
        reading = [i for i, channel in enumerate(channels) if self.reads[channel]]
        if not reading:
            return
        active = change.active.cpu().numpy()
        features, error = _shares(change, gradient[reading].sum(0))
        self.total[active] += features
        self.total_error += error
        for i in reading:
            for row, position in self.of_channel.get(channels[i], []):
                there = gradient[i] * (groups == position)[..., None]
                features, error = _shares(change, there)
                self.values[row, active] += features
                self.errors[row] += error

    def mean(self, n: int) -> NodeFeatures:
        return NodeFeatures(self.node, self.coder, self.edges, self.values / n, self.errors / n, self.total / n,
                            self.total_error / n)


def _shares(change: Change, gradient: Float[Tensor, "batch pos d_model"]
            ) -> tuple[Float[np.ndarray, " active"], float]:
    """(change of each feature) * (its decoder row . gradient), summed over tokens; and that of the error."""
    gradient = gradient.to(change.features.dtype)
    by_feature = torch.einsum("bpf,bpd->fd", change.features, gradient)
    features = (by_feature * change.decoder).sum(1)
    return features.double().cpu().numpy(), float((change.error * gradient).double().sum())


def site_features(
    model: Transformer,
    batches: Sequence[Batch],
    metric: Metric = METRICS["logit_difference"],
    *,
    coder: Coder,
    steps: int | None = 10,
    ablation: str = "resample",
    progress: bool = False,
) -> SiteFeatures:
    """How replacing what is at a coder's target, and only there, changes the loss, shared out over its features.

    Works at any site, the residual stream included. `steps` None: attribution, with the gradient on the clean run. m:
    integrated gradients along the straight line at this site from the clean value to the replaced one, at the middle
    of each of m equal parts, all else as on the clean run; the sum over features and error then nears the exact effect
    of the replacement (an error of the order of 1 / m^2). Cost a batch: two forward passes, and m forward and backward
    ones. Source: Marks et al. 2024 (arXiv 2403.19647), who take the left ends of 10 parts.
    """
    if steps is None:
        check_clean_gradient(metric, "attribution", "Give steps")
    elif steps < 1:
        raise AcdcError(f"steps={steps}: integrated gradients need at least 1 step")
    points = [0.0] if steps is None else [(k + 0.5) / steps for k in range(steps)]
    check_order(model, coder)
    writes = site(model, coder.target)
    replace = prepare_ablation(model, batches, ablation)
    values, error = np.zeros(len(coder.decoder)), 0.0
    with frozen(model):
        for batch in tqdm(batches, desc=f"features of {coder.target}", unit="batch", disable=not progress):
            clean, replaced = record(model, batch.clean), replace(batch).activations.expanded(*batch.clean.shape)
            x, x_replaced = value_at(model, clean, writes), value_at(model, replaced, writes)
            with torch.no_grad():
                f, f_replaced = (features_of(model, run, coder) for run in (clean, replaced))
                reference = model.logits(clean.final[:, -1])
            gradient = torch.zeros_like(x)
            for point in points:
                gradient += _gradient_at(model, batch, metric, coder.target, x + point * (x_replaced - x), reference)
            gradient /= len(points)
            features, decoder = (f_replaced - f).to(x.dtype), coder.decoder.to(x.dtype)
            values += ((features * (gradient @ decoder.T)).flatten(0, 1).sum(0)).double().cpu().numpy()
            rest = x_replaced - x - features @ decoder
            error += float((rest * gradient).double().sum())
    n = sum(len(batch) for batch in batches)
    return SiteFeatures(coder, values / n, error / n)


def _gradient_at(model: Transformer, batch: Batch, metric: Metric, where: str, value: Tensor, reference: Tensor
                 ) -> Tensor:
    """dL/d(what is at a site) in the clean run with `value` there."""
    value = value.detach().requires_grad_()
    final: dict[str, Tensor] = {}
    last = f"resid{model.n_layers}"
    changes = {where: lambda x: value}
    if where != last:
        changes[last] = lambda x: final.setdefault("x", x)
    with torch.enable_grad():
        with changed(model, changes):
            model.run_body(batch.clean)
        loss = metric.loss(model.logits(final.get("x", value)[:, -1]), batch, reference).sum()
        return torch.autograd.grad(loss, value)[0]
