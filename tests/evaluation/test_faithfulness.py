"""Faithfulness equals what circuit runs give by hand, over whatever batches."""

import numpy as np
import pytest
import torch
from conftest import make_batch, tiny
from tiny_models import FAMILIES

from acdc.ablation import ABLATIONS, prepare_ablation
from acdc.circuit import Circuit, EdgeScores
from acdc.errors import AcdcError
from acdc.evaluation.curve import MIB_FRACTIONS
from acdc.evaluation.faithfulness import faithfulness, faithfulness_curve, measure
from acdc.graph import Graph
from acdc.metrics import METRICS, Metric
from acdc.patching import run_circuit

ANY = METRICS["kl_divergence"]  # 0 in the full model, more in any other: it separates every model


def batches_of(*shapes):
    return [make_batch(n, length, seed=seed) for seed, (n, length) in enumerate(shapes)]


def random_circuit(graph, density=0.5, seed=0):
    return Circuit(graph, np.random.default_rng(seed).random(graph.n_edges) < density)


def everything(graph):
    return Circuit.from_edges(graph, []).complement()


def by_hand(model, circuit, batches, metric, ablation):
    """The metric of every prompt in one circuit."""
    values, replace = [], prepare_ablation(model, batches, ablation)
    for batch in batches:
        replacement = replace(batch)
        reference = run_circuit(model, batch, everything(model.graph()), replacement)
        values += metric.value(run_circuit(model, batch, circuit, replacement), batch, reference).tolist()
    return values


@pytest.mark.parametrize(("family", "ablation", "kv"), [
    *((family, "resample", "head") for family in FAMILIES),
    *(("qwen2", ablation, "group") for ablation in ABLATIONS),
])
def test_full_is_one_and_empty_is_zero(family, ablation, kv):
    model, batches = tiny(family), batches_of((2, 5))
    graph = model.graph(kv)
    full = faithfulness(model, everything(graph), batches, ANY, ablation=ablation)
    empty = faithfulness(model, Circuit.from_edges(graph, []), batches, ANY, ablation=ablation)
    assert (full.faithfulness, empty.faithfulness) == pytest.approx((1, 0), abs=1e-9)
    assert (full.n_edges, empty.n_edges) == (graph.n_edges, 0)
    assert (full.circuit, empty.circuit) == pytest.approx((full.full, full.empty), abs=1e-9)


@pytest.mark.parametrize(("name", "ablation", "kv"), [
    ("kl_divergence", "resample", "head"), ("answer_rank", "mean", "group"),
    ("answer_rank", "zero", "head"), ("kl_divergence", "mean_over_positions", "group"),
])
def test_equals_the_computation_by_hand(name, ablation, kv):
    """A ratio of means over prompts, each of which counts once, in batches of unequal size and length."""
    model, batches = tiny("llama"), batches_of((4, 6), (1, 6), (2, 9))
    metric, circuit = METRICS[name], random_circuit(model.graph(kv))
    if metric is not ANY:  # turned so that it separates
        full, empty = (np.mean(by_hand(model, c, batches, metric, ablation))
                       for c in (everything(model.graph()), Circuit.from_edges(model.graph(), [])))
        metric = Metric(name, metric.value, higher_is_better=bool(full > empty))
    result = faithfulness(model, circuit, batches, metric, ablation=ablation)
    values = [by_hand(model, c, batches, metric, ablation)
              for c in (circuit, everything(circuit.graph), Circuit.from_edges(circuit.graph, []))]
    own, full, empty = np.mean(values, axis=1)
    assert (result.circuit, result.full, result.empty) == pytest.approx((own, full, empty), abs=1e-12)
    assert result.faithfulness == pytest.approx((own - empty) / (full - empty), abs=1e-12)
    assert (result.n_edges, result.n_prompts) == (circuit.n_edges, 7)
    if metric is ANY:
        ratios = (np.array(values[0]) - values[2]) / (np.array(values[1]) - values[2])
        assert result.faithfulness != pytest.approx(ratios.mean(), abs=1e-3)


def test_measure_gives_a_row_a_circuit_and_a_column_a_prompt():
    model, batches = tiny("gpt2"), batches_of((3, 5), (1, 7))
    circuits = [random_circuit(model.graph(), seed=seed) for seed in range(3)]
    values = measure(model, circuits, batches, ANY)
    rows = [everything(model.graph()), Circuit.from_edges(model.graph(), []), *circuits]
    expected = [by_hand(model, circuit, batches, ANY, "resample") for circuit in rows]
    np.testing.assert_allclose(values, expected, atol=1e-12)
    assert values.shape == (5, 4) and values.dtype == torch.float64


def test_batches_do_not_matter():
    model, whole = tiny("gpt_neox"), make_batch(4, 6)
    singles = [type(whole)(*(getattr(whole, name)[i : i + 1] for name in ("clean", "corrupted", "answer", "wrong")),
                           examples=whole.examples[i : i + 1]) for i in range(4)]
    circuit = random_circuit(model.graph())
    for ablation in ABLATIONS:
        together, apart = (vars(faithfulness(model, circuit, batches, ANY, ablation=ablation))
                           for batches in ([whole], singles))
        assert together == pytest.approx(apart, abs=1e-9)


def answers_that_separate(model, batches):
    """The same prompts; the answer is what the clean run favours over the corrupted one, the wrong one the reverse."""
    result = []
    for batch in batches:
        with torch.no_grad():
            gain = model.hf(batch.clean).logits[:, -1] - model.hf(batch.corrupted).logits[:, -1]
        result.append(type(batch)(batch.clean, batch.corrupted, gain.argmax(1), gain.argmin(1), batch.examples))
    return result


def test_the_worst_prompt_is_named_where_the_metric_does_not_separate():
    model = tiny("gpt2")
    good = answers_that_separate(model, batches_of((3, 5), (2, 7)))
    bad = [type(batch)(batch.clean, batch.corrupted, batch.wrong, batch.answer,
                       tuple(type(e)(f"clean {b}.{i}", f"corrupted {b}.{i}", " a", " b")
                             for i, e in enumerate(batch.examples))) for b, batch in enumerate(good)]
    metric, circuit = METRICS["logit_difference"], random_circuit(model.graph())
    full, empty = measure(model, [], good, metric)[:2]
    assert (full > empty).all()
    worst = int((full - empty).argmax())
    where = f"{worst // 3}.{worst % 3}"
    numbers = f"({-float(full[worst]):.4g} against {-float(empty[worst]):.4g})"
    for call in (lambda: faithfulness(model, circuit, bad, metric), lambda: measure(model, [], bad, metric)):
        with pytest.raises(AcdcError, match="metric 'logit_difference' does not separate") as error:
            call()
        assert f"Worst prompt: 'clean {where}' against 'corrupted {where}' {numbers}" in str(error.value)
        assert f"(mean {-float(full.mean()):.4g})" in str(error.value)


def test_one_bad_prompt_among_good_ones_is_let_pass():
    model = tiny("gpt2")
    good = answers_that_separate(model, batches_of((3, 5), (1, 5)))
    last = good[1]
    mixed = [good[0], type(last)(last.clean, last.corrupted, last.wrong, last.answer, last.examples)]
    full, empty = measure(model, [], mixed, METRICS["logit_difference"])
    assert full[-1] < empty[-1] and full.mean() > empty.mean()


def test_a_metric_that_is_equal_or_not_finite_is_refused():
    model, batches = tiny("gpt2"), batches_of((2, 5))
    constant = Metric("constant", lambda logits, batch, reference: torch.ones(len(batch)))
    nan = Metric("broken", lambda logits, batch, reference: logits[:, 0] * float("nan"))
    with pytest.raises(AcdcError, match="metric 'constant' does not separate"):
        measure(model, [], batches, constant)
    with pytest.raises(AcdcError, match="metric 'broken' is not finite"):
        measure(model, [], batches, nan)
    for higher_is_better in (True, False):  # the direction counts
        turned = Metric("turned", ANY.value, higher_is_better=higher_is_better)
        if higher_is_better:
            with pytest.raises(AcdcError, match="metric 'turned' does not separate"):
                measure(model, [], batches, turned)
        else:
            measure(model, [], batches, turned)


def test_a_circuit_of_another_graph_is_refused():
    model, batches = tiny("llama"), batches_of((2, 5))
    with pytest.raises(AcdcError, match="the circuit is of another model"):
        faithfulness(model, random_circuit(Graph(2, 4, 2)), batches, ANY)


def random_scores(graph, untried=0.0):
    rng = np.random.default_rng(1)
    values = rng.standard_normal(graph.n_edges)
    values[rng.random(graph.n_edges) < untried] = -np.inf
    return EdgeScores(graph, values)


@pytest.mark.parametrize(("by", "kv"), [("signed", "head"), ("magnitude", "group")])
def test_points_of_the_curve_are_the_top_edges(by, kv):
    model, batches = tiny("llama"), batches_of((3, 6), (2, 5))
    scores = random_scores(model.graph(kv))
    curve = faithfulness_curve(model, scores, batches, ANY, by=by, ablation="mean")
    assert tuple(point.fraction for point in curve.points) == MIB_FRACTIONS
    assert (curve.by, curve.metric, curve.n_prompts) == (by, "kl_divergence", 5)
    for point in curve.points:
        circuit = scores.top(int(point.fraction * scores.graph.n_edges), by=by)
        result = faithfulness(model, circuit, batches, ANY, ablation="mean")
        assert (point.n_edges, point.metric) == (result.n_edges, result.circuit)
        assert (point.faithfulness, curve.full, curve.empty) == (result.faithfulness, result.full, result.empty)
    assert curve.points[-1].faithfulness == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("by", ["signed", "magnitude"])
def test_edges_that_were_never_tried_limit_the_sizes(by):
    model, batches = tiny("llama"), batches_of((2, 5))
    scores = random_scores(model.graph(), untried=0.7)
    tried = int(np.isfinite(scores.values).sum())
    fractions = (0.0, 0.1, 0.25, 0.5, 1.0)
    curve = faithfulness_curve(model, scores, batches, ANY, by=by, fractions=fractions)
    assert [point.n_edges for point in curve.points] == [min(int(f * len(scores.values)), tried) for f in fractions]
    assert curve.points[-1].n_edges == tried < len(scores.values)
    all_tried = Circuit(scores.graph, np.isfinite(scores.values))
    assert curve.points[-1].faithfulness == faithfulness(model, all_tried, batches, ANY).faithfulness
    assert curve.points[0].faithfulness == 0


@pytest.mark.parametrize("fractions", [(), (0.5, 0.1), (-0.1, 1.0), (0.5, 1.1)])
def test_fractions_must_ascend_from_0_to_1(fractions):
    model = tiny("gpt2")
    scores = random_scores(model.graph())
    with pytest.raises(AcdcError, match="ascending and lie between 0 and 1"):
        faithfulness_curve(model, scores, batches_of((2, 5)), ANY, by="signed", fractions=fractions)


def test_model_is_untouched():
    hf = (model := tiny("gpt2")).hf.train()
    before = {name: weight.clone() for name, weight in hf.state_dict().items()}
    faithfulness(model, random_circuit(model.graph()), batches_of((2, 5)), ANY)
    assert all(torch.equal(weight, before[name]) for name, weight in hf.state_dict().items())
    assert all(module.training for module in hf.modules())
    assert all(weight.requires_grad and weight.grad is None for weight in hf.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in hf.modules())
