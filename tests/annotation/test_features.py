"""Features: what they and the error share sums to the scores that other code computes."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pytest
import torch
from conftest import make_batch, tiny
from jaxtyping import Float
from torch import Tensor

from acdc.annotation.annotate import annotate
from acdc.annotation.feature_graph import feature_graph
from acdc.annotation.features import decoder_of_node, edge_features, nodes_of, site_features
from acdc.annotation.sites import changed, read, width
from acdc.discovery.eap import eap
from acdc.discovery.eap_ig import eap_ig
from acdc.errors import AcdcError
from acdc.metrics import METRICS
from acdc.transformer import Transformer

METRIC = METRICS["logit_difference"]
BATCHES = [make_batch(3, 9, 0), make_batch(2, 7, 1)]


@dataclass(frozen=True, eq=False)
class RandomCoder:
    """f = relu(x W + b): features that mean nothing, of which many are silent."""

    model: Transformer
    site: str
    target: str
    n: int = 13

    @cached_property
    def weights(self) -> list[Tensor]:
        g = torch.Generator().manual_seed(0)
        d_in, d_out = width(self.model, self.site), width(self.model, self.target)
        return [torch.randn(*shape, generator=g, dtype=torch.float64)
                for shape in ((d_in, self.n), (self.n,), (self.n, d_out))]

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.site,)

    def name_of(self, feature: int) -> str:
        return f"feature {feature}"

    @property
    def decoder(self) -> Float[Tensor, "feature d_out"]:
        return self.weights[2]

    def encode(self, x: Float[Tensor, "*where d_in"]) -> Float[Tensor, "*where feature"]:
        return torch.relu(x.double() @ self.weights[0] + self.weights[1])


def coder(model: Transformer, site: str, target: str | None = None) -> RandomCoder:
    return RandomCoder(model, site, target or site)


def assert_shared(found, scores, circuit):
    totals = scores.of_nodes()
    for one in found:
        edges = [edge for edge in circuit.edge_names if edge.startswith(f"{one.node}->")]
        assert list(one.edges) == edges
        expected = [scores[edge] for edge in edges]
        np.testing.assert_allclose(one.values.sum(1) + one.errors, expected, rtol=1e-5, atol=1e-7)
        if not scores.graph.positions:
            np.testing.assert_allclose(one.total.sum() + one.total_error, totals[one.node], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("steps", [None, 3])
def test_shares_sum_to_the_scores_of_edges_and_nodes(family, steps):
    model = tiny(family)
    scores = eap(model, BATCHES) if steps is None else eap_ig(model, BATCHES, steps=steps)
    circuit = scores.top(90, by="magnitude")
    coders = [coder(model, "m0"), coder(model, "m1.in", "m1"), coder(model, "a0.h1"), coder(model, "a1.h2")]
    if model.blocks[0].attn_post is None:
        coders += [coder(model, "a0.h3.z"), coder(model, "a2.z")]
    found = edge_features(model, BATCHES, METRIC, circuit=circuit, coders=coders, steps=steps)
    assert len(found) >= 3
    assert_shared(found, scores, circuit)
    assert all(np.abs(one.total).max() > 0 and abs(one.total_error) > 0 for one in found)


@pytest.mark.parametrize("ablation", ["mean", "zero"])
def test_shares_under_other_ablations(ablation):
    model = tiny("llama")
    batches = [make_batch(3, 9, 0), make_batch(3, 9, 1)]
    scores = eap(model, batches, ablation=ablation)
    circuit = scores.top(200, by="magnitude")
    coders = [coder(model, "m1"), coder(model, "m0.in", "m0")]
    found = edge_features(model, batches, METRIC, circuit=circuit, coders=coders, steps=None, ablation=ablation)
    assert_shared(found, scores, circuit)


@pytest.mark.parametrize(("kv", "positions"), [("group", "all"), ("head", "roles"), ("group", "each")])
def test_shares_of_grouped_keys_and_of_positions(kv, positions):
    model = tiny("qwen2")
    batches = [make_batch(3, 9, 0), make_batch(2, 9, 1)]
    scores = eap_ig(model, batches, steps=2, kv=kv, positions=positions)
    circuit = scores.top(180, by="magnitude")
    found = edge_features(model, batches, METRIC, circuit=circuit, coders=[coder(model, "m0"), coder(model, "a1.h0")],
                          steps=2)
    assert_shared(found, scores, circuit)


def test_a_feature_that_is_the_whole_change_takes_it_all():
    """A node rebuilt exactly by one coder of basis vectors has an error of nothing."""
    model = tiny("llama")

    basis, both = coder(model, "m0"), torch.cat([torch.eye(24), -torch.eye(24)]).double()
    basis.weights[:] = [both.T, torch.zeros(48).double(), both]
    circuit = eap(model, BATCHES).top(150, by="magnitude")
    one = edge_features(model, BATCHES, METRIC, circuit=circuit, coders=[basis], steps=None)[0]
    assert abs(one.total_error) < 1e-9 and np.abs(one.errors).max() < 1e-9
    assert np.abs(one.total).max() > 1e-3


@pytest.mark.parametrize(("family", "where"), [
    ("gpt2", "m1"), ("gpt2", "a0.z"), ("gpt_neox", "a1"), ("gpt_neox", "resid1"), ("llama", "resid3"),
    ("qwen3", "input"), ("gemma2", "m1"), ("gemma3", "a1.h2"), ("gemma3", "a1"), ("gemma2", "a0.z"),
])
def test_integrated_gradients_at_a_site_near_the_exact_effect(family, where):
    model = tiny(family)
    found = site_features(model, BATCHES, METRIC, coder=coder(model, where), steps=60)
    exact, n = 0.0, 0
    for batch in BATCHES:
        other = read(model, batch.corrupted, [where])[where]
        clean = model.hf(batch.clean, attention_mask=model.full_mask(batch.clean)).logits[:, -1]
        with changed(model, {where: lambda x, other=other: other}):
            run = model.hf(batch.clean, attention_mask=model.full_mask(batch.clean)).logits[:, -1]
        exact += float((METRIC.loss(run, batch, clean) - METRIC.loss(clean, batch, clean)).sum().detach())
        n += len(batch)
    np.testing.assert_allclose(found.values.sum() + found.error, exact / n, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("where", ["m1", "m0"])
def test_attribution_at_a_nodes_site_is_its_score(where):
    model = tiny("gpt2")
    found = site_features(model, BATCHES, METRIC, coder=coder(model, where), steps=None)
    np.testing.assert_allclose(found.values.sum() + found.error, eap(model, BATCHES).of_nodes()[where], rtol=1e-6)
    circuit = eap(model, BATCHES).top(200, by="magnitude")
    one = edge_features(model, BATCHES, METRIC, circuit=circuit, coders=[coder(model, where)], steps=None)[0]
    np.testing.assert_allclose(found.values, one.total, atol=1e-9)


def test_edges_between_features_sum_to_the_edge(family):
    model = tiny(family)
    scores = eap(model, BATCHES)
    circuit = scores.top(120, by="magnitude")
    coders = [coder(model, "m0"), coder(model, "m1.in", "m1"), coder(model, "a1.h2"), coder(model, "m2"),
              coder(model, "a2.h0")]
    found = feature_graph(model, BATCHES, METRIC, circuit=circuit, coders=coders, n_features=3)
    sums: dict[str, float] = {}
    for (src, _), (dst, _), letter, score in found.edges:
        name = f"{src}->{dst}" + f"<{letter}>" * bool(letter)
        sums[name] = sums.get(name, 0) + score
    assert set(sums) == set(circuit.edge_names)
    np.testing.assert_allclose([sums[name] for name in circuit.edge_names], [scores[n] for n in circuit.edge_names],
                               rtol=1e-6, atol=1e-9)
    drawn = found.to_networkx()
    assert {"m0/rest", "input", "logits"} <= set(drawn) and any("/f" in name for name in drawn)


def test_an_edge_into_a_feature_is_its_derivative():
    """Both ends split: the weight is how the dst feature moves along the src feature's change, times its worth."""
    model, batch = tiny("llama"), make_batch(2, 6, 3)
    scores = eap(model, [batch])
    circuit = scores.top(len(scores.values), by="magnitude")
    a, b = coder(model, "m0"), coder(model, "m1")
    found = feature_graph(model, [batch], METRIC, circuit=circuit, coders=[a, b], n_features=2)
    (src, i), (dst, j), _, weight = next(edge for edge in found.edges if edge[0][0] == "m0" and edge[1][0] == "m1")
    clean, corrupted = (read(model, tokens, ["m0", "resid1.mid"]) for tokens in (batch.clean, batch.corrupted))
    delta = (a.encode(corrupted["m0"]) - a.encode(clean["m0"]))[..., [i]] * a.decoder[i]
    worth = site_gradient(model, batch, "m1") @ b.decoder[j]
    step, block = 1e-5, model.blocks[1]
    up, down = (b.encode(block.mlp_output(clean["resid1.mid"] + sign * step * delta))[..., j] for sign in (1, -1))
    np.testing.assert_allclose(weight, float((worth * (up - down) / (2 * step)).sum().detach()) / 2, rtol=1e-4)


@pytest.mark.parametrize("site", ["resid1.mid", "m1.norm", "m1.in", "m1"])
def test_a_feature_is_followed_from_wherever_it_is_read(site):
    model, batch = tiny("llama"), make_batch(2, 6, 3)
    circuit = eap(model, [batch]).top(262, by="magnitude")
    b = coder(model, site, "m1")
    found = feature_graph(model, [batch], METRIC, circuit=circuit, coders=[b], n_features=1)
    j, weight = next((dst[1], weight) for src, dst, _, weight in found.edges if src[0] == "m0" and dst[0] == "m1")
    clean, corrupted = (read(model, tokens, ["m0", "resid1.mid"]) for tokens in (batch.clean, batch.corrupted))
    gradient = site_gradient(model, batch, "m1") @ b.decoder[j]
    block, step = model.blocks[1], 1e-5
    before = {"resid1.mid": lambda x: x,  # all in float64
              "m1.norm": lambda x: block.mlp_norm.statistics(x)[0],
              "m1.in": lambda x: before["m1.norm"](x) * block.mlp_norm.gain,
              "m1": lambda x: block.mlp(before["m1.in"](x))}
    moves = [clean["resid1.mid"] + sign * step * (corrupted["m0"] - clean["m0"]) for sign in (1, -1)]
    up, down = (b.encode(before[site](moved))[..., j] for moved in moves)
    np.testing.assert_allclose(weight, float((gradient * (up - down) / (2 * step)).sum().detach()) / 2, rtol=1e-4)


def site_gradient(model, batch, where):
    value, final = read(model, batch.clean, [where])[where].requires_grad_(), {}
    with changed(model, {where: lambda x: value, "resid3": lambda x: final.setdefault("x", x)}):
        model.run_body(batch.clean)
    logits = model.logits(final["x"][:, -1])
    return torch.autograd.grad(METRIC.loss(logits, batch, logits).sum(), value)[0]


def test_decoder_rows_of_z_reach_the_stream_through_w_o():
    model = tiny("gpt2")
    whole = coder(model, "a1.z")
    heads = [decoder_of_node(model, whole, f"a1.h{head}") for head in range(4)]
    torch.testing.assert_close(sum(heads), whole.decoder @ model.blocks[1].attention.out.weight)
    assert nodes_of(model, whole) == [f"a1.h{head}" for head in range(4)]


def test_what_has_no_features():
    model = tiny("llama")
    scores = eap(model, BATCHES)
    circuit = scores.top(100, by="magnitude")

    def message(**options):
        with pytest.raises(AcdcError) as error:
            edge_features(model, BATCHES, options.pop("metric", METRIC), circuit=circuit, **options)
        return str(error.value)

    m0 = coder(model, "m0")
    assert "not the output of a node" in message(coders=[coder(model, "resid1")])
    assert "two coders rebuild m0" in message(coders=[m0, coder(model, "m0.in", "m0")])
    assert "no edge of the circuit leaves" in message(coders=[])
    assert "at its minimum" in message(coders=[m0], metric=METRICS["kl_divergence"], steps=None)
    with pytest.raises(AcdcError, match="not recorded"):
        site_features(model, BATCHES, METRIC, coder=coder(model, "m0.neurons", "m0"))
    for call in (lambda late: edge_features(model, BATCHES, METRIC, circuit=circuit, coders=[late]),
                 lambda late: site_features(model, BATCHES, METRIC, coder=late)):
        with pytest.raises(AcdcError, match="m0 does not come after resid1 in llama"):
            call(coder(model, "resid1", "m0"))
    with pytest.raises(AcdcError, match="read from what the head itself makes"):
        feature_graph(model, BATCHES, METRIC, circuit=circuit, coders=[coder(model, "resid1", "a1.h2")])
    with pytest.raises(AcdcError, match="at least 1"):
        feature_graph(model, BATCHES, METRIC, circuit=circuit, coders=[m0], n_features=0)
    with pytest.raises(AcdcError, match="norm follows attention"):
        nodes_of(tiny("gemma2"), coder(tiny("gemma2"), "a0.z"))


def test_annotations_of_features_say_what_carries_the_edges():
    model = tiny("llama")
    circuit = eap(model, BATCHES).top(120, by="magnitude")
    found = annotate(model, circuit, BATCHES, METRIC, only=["features"], coders=[coder(model, "m1")])
    shared = edge_features(model, BATCHES, METRIC, circuit=circuit, coders=[coder(model, "m1")])[0]
    whole, *features = found
    assert whole.node == "m1" and whole.data["features"] == pytest.approx(shared.total.sum())
    assert [note.data["feature"] for note in features] == shared.strongest(5)
    for note in features:
        i = note.data["feature"]
        assert note.value == pytest.approx(shared.total[i])
        for edge, value in note.data["edges"].items():
            assert value == pytest.approx(shared.values[shared.edges.index(edge), i])
        activations = [coder(model, "m1").encode(read(model, b.clean, ["m1"])["m1"])[..., i] for b in BATCHES]
        best = max(float(a.max()) for a in activations)
        if best > 0:
            assert max(note.data["examples"][0]["activations"]) == pytest.approx(best, abs=1e-4)


def test_features_without_a_coder():
    model = tiny("llama")
    circuit = eap(model, BATCHES).top(50, by="magnitude")
    with pytest.raises(AcdcError, match="give one"):
        annotate(model, circuit, BATCHES, METRIC, only=["features"])
