"""The battery against other computations, and on circuits of which it is known what they are."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_batch, tiny
from scipy import stats

from acdc.ablation import prepare_ablation
from acdc.benchmarks.battery import QUICK, effect_class, simulate, variants
from acdc.benchmarks.planted import LENGTH, VOCAB, draw_prompts, plant
from acdc.circuit import Circuit
from acdc.discovery.exact import exact_effects
from acdc.errors import AcdcError
from acdc.evaluation import hypothesis_tests as shi
from acdc.evaluation.battery import TESTS, Settings, run_battery
from acdc.evaluation.bench import prepare_bench
from acdc.evaluation.completeness import completeness
from acdc.evaluation.dissociation import of_another_circuit, on_another_task
from acdc.evaluation.faithfulness import faithfulness
from acdc.evaluation.knock_outs import nodes_that_write, without_each_edge, without_each_node
from acdc.evaluation.minimality import cut_edges
from acdc.evaluation.random_circuits import _strata, connected, draw, inflated, matched
from acdc.evaluation.sensitivity import mean_of_ratios, node_circuit
from acdc.evaluation.significance import Estimate
from acdc.evaluation.verdict import near, near_reason, together
from acdc.export.battery_page import battery_page
from acdc.metrics import METRICS
from acdc.patching import run_circuit
from acdc.task import Batch

METRIC = METRICS["logit_difference"]


def random_circuit(graph, share, seed=0):
    return Circuit(graph, np.random.default_rng(seed).random(graph.n_edges) < share)


def solvable(model, batch):
    """The batch with the answers by which the metric separates clean from corrupted."""
    with torch.no_grad():
        falls = (model.hf(batch.clean).logits - model.hf(batch.corrupted).logits)[:, -1]
    return Batch(batch.clean, batch.corrupted, falls.argmax(-1), falls.argmin(-1), batch.examples)


def bench_of(family="gpt2", metric=METRIC, **options):
    model = tiny(family)
    batches = [solvable(model, make_batch(n, length=6, seed=n, first=1)) for n in (3, 4)]
    return prepare_bench(model, batches, metric, n_resamples=200, **options)


@pytest.fixture(scope="module")
def bench():
    return bench_of()


@pytest.fixture(scope="module")
def planted():
    return plant(1)


@pytest.fixture(scope="module")
def planted_bench(planted):
    return prepare_bench(planted.model, [draw_prompts(planted.model, 24, 1)], METRIC)


def scores_by_hand(bench, circuit, metric=METRIC, ablation="resample"):
    """Circuit runs one by one; prompts in the order of the batches."""
    replace_by = prepare_ablation(bench.model, bench.batches, ablation)
    sign = 1 if metric.higher_is_better else -1
    return np.concatenate([
        sign * metric(run_circuit(bench.model, batch, circuit, replace_by(batch)), batch,
                      bench.model.hf(batch.clean).logits[:, -1].detach()).numpy() for batch in bench.batches])


# What the tests are made of


@pytest.mark.parametrize("metric", ["logit_difference", "kl_divergence"])
def test_gains_are_scores_over_the_empty_circuits(metric):
    bench = bench_of(metric=METRICS[metric])
    circuit = random_circuit(bench.model.graph(), 0.5)
    empty = Circuit(circuit.graph, np.zeros_like(circuit.kept))
    expected = scores_by_hand(bench, circuit, METRICS[metric]) - scores_by_hand(bench, empty, METRICS[metric])
    np.testing.assert_allclose(bench.gains([circuit])[0], expected, atol=1e-9)
    estimate = bench.estimates(bench.gains([circuit]))[0]
    f = faithfulness(bench.model, circuit, bench.batches, METRICS[metric]).faithfulness
    assert estimate.value == pytest.approx(f)
    assert estimate.low <= estimate.value <= estimate.high
    np.testing.assert_allclose(bench.gains([Circuit(circuit.graph, ~empty.kept)])[0], bench.gap, atol=1e-9)


@pytest.mark.parametrize(("family", "kv", "ablation", "positions"), [
    ("gpt2", "head", "resample", ()), ("llama", "group", "resample", ()), ("qwen2", "head", "zero", ()),
    ("gpt_neox", "head", "mean_over_positions", ()), ("gpt2", "head", "resample", tuple("012345")),
])
def test_a_trial_gives_what_a_run_without_the_edge_gives(family, kv, ablation, positions):
    bench = bench_of(family, ablation=ablation)
    circuit = random_circuit(bench.model.graph(kv, positions), 0.4, seed=1)
    edges = np.random.default_rng(2).choice(np.nonzero(circuit.kept)[0], 12, replace=False)
    own, gains = without_each_edge(bench, circuit, edges)
    np.testing.assert_allclose(own, bench.gains([circuit])[0], atol=1e-9)
    for edge, gain in zip(edges, gains, strict=True):
        kept = circuit.kept.copy()
        kept[edge] = False
        np.testing.assert_allclose(gain, bench.gains([Circuit(circuit.graph, kept)])[0], atol=1e-9)


def test_cutting_a_node_cuts_the_edges_out_of_it(bench):
    graph = bench.model.graph()
    circuit = Circuit.from_edges(graph, ["input->a0.h1<v>", "a0.h1->m1", "a0.h1->logits", "m1->logits"])
    assert [node.name for node in nodes_that_write(circuit)] == ["a0.h1", "m1"]
    gains = without_each_node(bench, circuit, nodes_that_write(circuit))
    left = [["input->a0.h1<v>", "m1->logits"], ["input->a0.h1<v>", "a0.h1->m1", "a0.h1->logits"]]
    np.testing.assert_allclose(gains, bench.gains([Circuit.from_edges(graph, names) for names in left]))


def test_the_three_verdicts_of_an_interval():
    assert [near(Estimate(1.0, low, high), 1.0, 0.1) for low, high in
            ((0.91, 1.05), (0.85, 1.05), (0.5, 0.89), (1.11, 1.2), (0.5, 1.5))] == [
        "pass", "undecided", "fail", "fail", "undecided"]
    assert near_reason("f", Estimate(0.5, -0.0001, 1.0), 1.0, 0.1) == (
        "f 0.500: its interval 0.000 to 1.000 reaches over a bound of 1 ± 0.1")
    assert [together(v) for v in (["pass", "pass"], ["pass", "undecided"], ["undecided", "fail"], [])] == [
        "pass", "undecided", "fail", "undecided"]


# Random circuits


@pytest.mark.parametrize("kv", ["head", "group"])
def test_random_circuits_match(kv):
    graph = tiny("llama").graph(kv)
    circuit, rng = random_circuit(graph, 0.15), np.random.default_rng(0)
    random = matched(circuit, rng)
    names = [f"{c.node.layer} {c.letter} {c.node.kind}" for c in (graph.channels[i] for i in graph.edge_channel)]
    counts = [Counter(name for name, kept in zip(names, one.kept, strict=True) if kept) for one in (circuit, random)]
    assert counts[0] == counts[1] and random != circuit
    assert len(set(_strata(graph).tolist())) == len(set(names))
    joined = connected(circuit, rng)
    assert joined.drop_dangling() == joined and circuit.n_edges <= joined.n_edges <= 1.2 * circuit.n_edges
    again = [draw(circuit, "connected", 2, seed) for seed in (5, 5, 6)]
    assert [np.array_equal(again[0][0].kept, other[0].kept) for other in again] == [True, True, False]


@pytest.mark.parametrize(("kv", "positions"), [("head", ()), ("group", ()), ("head", ("a", "b", "end"))])
def test_an_inflated_circuit_has_one_path_more(kv, positions):
    graph, rng = tiny("llama").graph(kv, positions), np.random.default_rng(1)
    circuit = random_circuit(graph, 0.02)
    for _ in range(20):
        bigger, edge = inflated(circuit, rng)
        new = bigger.kept & ~circuit.kept
        assert (bigger.kept >= circuit.kept).all() and new[edge]
        assert Circuit(graph, new).n_edges <= 2 * graph.n_layers + 1
        path = bigger.drop_dangling()
        assert (path.kept | ~new).all(), "a new edge is on no path from the input to the logits"


# The tests of Shi et al.


@pytest.mark.parametrize("n_above", [16.0, 20.0, 20.5, 27.0, 2.0])
def test_equivalence_is_a_binomial_test_of_how_often(n_above):
    counts = np.arange(33)
    at_end = stats.binom.pmf(counts, 32, 0.6)
    off, own = np.abs(counts / 32 - 0.5), abs(n_above / 32 - 0.5)
    expected = at_end[off >= own - 1e-12].sum()
    assert shi.equivalence_p(n_above, 32, 0.1) == pytest.approx(expected)
    if n_above == int(n_above):
        two_sided = stats.binomtest(int(n_above), 32, 0.5).pvalue
        assert shi.equivalence_p(n_above, 32, 1e-12) == pytest.approx(two_sided)


@pytest.mark.parametrize(("share", "most"), [(0.5, 0.05), (0.6, 0.06), (0.4, 0.06)])
def test_equivalence_rejects_a_true_null_at_its_level(share, most):
    rejected = stats.binom.pmf([k for k in range(101) if shi.equivalence_p(float(k), 100, 0.1) <= 0.05], 100, share)
    assert rejected.sum() <= most
    certain = [k for k in range(1001) if shi.differs_at_most(k, 0, 1000) <= 0.1]
    assert stats.binom.pmf(certain, 1000, 0.601).sum() <= 0.05 and stats.binom.pmf(certain, 1000, 0.5).sum() > 0.9


def test_equivalence_counts_and_does_not_average(bench):
    """Little better on most prompts and far worse on one: no mean difference, but not equally good."""
    def equivalence_of(delta):
        gap = np.full(len(delta), 2.0)
        return shi.equivalence(replace(bench, full=gap, empty=0 * gap), (gap + delta)[None])

    delta = np.array([0.1] * 39 + [-3.9])
    assert abs(delta.mean()) < 1e-9
    result = equivalence_of(delta)
    assert (result.verdict, result.numbers["n_above"]) == ("fail", 39)
    balanced = equivalence_of(np.array([0.1, -50.0] * 20))
    assert (balanced.verdict, balanced.numbers["share"]) == ("undecided", 0.5)
    ties = equivalence_of(np.full(32, 1e-6))
    assert (ties.verdict, ties.numbers["n_ties"], ties.numbers["p"]) == ("pass", 32, pytest.approx(1))


def test_hsic_is_the_double_loop():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=9), rng.normal(size=9)

    def kernel(values):
        width = np.median([abs(values[i] - values[j]) for i in range(9) for j in range(i)])
        return np.array([[np.exp(-((a - b) ** 2) / (2 * width**2)) for b in values] for a in values])

    k, m, h = kernel(x), kernel(y), np.eye(9) - 1 / 9
    assert shi.hsic(x, y) == pytest.approx(np.trace(k @ h @ m @ h) / 64)
    double = sum(k[i, j] * m[i, j] for i in range(9) for j in range(9)) / 81
    double += k.mean() * m.mean() - 2 * sum(k[i].mean() * m[i].mean() for i in range(9)) / 9
    assert shi.hsic(x, y) == pytest.approx(double * 81 / 64)


def test_hsic_sees_dependence_without_correlation_and_keeps_its_level():
    rng = np.random.default_rng(1)
    x = rng.normal(size=40)
    assert shi.hsic_p(x, x**2, 199, 0) <= 0.01
    p = np.array([shi.hsic_p(*rng.normal(size=(2, 20)), 99, seed) for seed in range(300)])
    assert (p <= 0.05).mean() < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)
    assert stats.kstest(p, "uniform").pvalue > 0.001
    assert shi.hsic_p(np.zeros(10), x[:10], 99, 0) == 1


# On circuits that are known


def test_nothing_but_what_is_planted_carries_anything(planted):
    """Cut alone, an edge of the circuit matters, any other does nothing, under every ablation."""
    batch = draw_prompts(planted.model, 12, 3)
    for ablation in ("resample", "mean", "zero"):
        effects = exact_effects(planted.model, [batch], METRIC, np.arange(planted.circuit.graph.n_edges),
                                ablation=ablation)
        matters = np.abs(effects).max(1) > 1e-9
        assert not (matters & ~planted.circuit.kept).any()
        if ablation == "resample":
            np.testing.assert_array_equal(matters, planted.circuit.kept)


def test_a_planted_circuit_passes_every_test(planted, planted_bench):
    settings = Settings(subsets=4, inflated=29, permutations=99)
    battery = run_battery(planted_bench, planted.circuit, settings)
    assert {result.name: result.verdict for result in battery.results if result.verdict != "pass"} == {}
    assert len(battery.results) == len(TESTS)
    json.dumps(battery.summary(), allow_nan=False)
    page = battery_page(battery, name="planted", on="prompts of <b>\n# x\n![i](y)\x1b")
    assert r"prompts of \<b\> \# x \!\[i\]\(y\)⟨U\+001B⟩." in page and "\n# x" not in page
    assert "**pass**: all 6 tests that decide pass" in page
    assert page.count("| edges (") == page.count("| nodes (") == 3
    again = run_battery(planted_bench, planted.circuit, settings, only=("completeness", "random", "shi_minimality"))
    known = {result.name: result for result in battery.results}
    assert all(result == known[result.name] for result in again.results) and len(again.results) == 3


def test_known_flaws_are_found(planted, planted_bench):
    """With ten edges more it is not minimal, by those ten; without one it lacks something; random ones do nothing."""
    circuits = dict(variants(planted, 1))
    more, fewer = circuits["with ten more"], circuits["without an edge"]
    of_edges, of_shi = run_battery(planted_bench, more, QUICK, only=("minimality_edges", "shi_minimality")).results
    added = {planted.circuit.graph.edge_name(e) for e in np.nonzero(more.kept & ~planted.circuit.kept)[0].tolist()}
    assert {row["name"] for row in of_edges.numbers["edges"] if row["idle"]} == added
    assert {row["name"] for row in of_edges.numbers["edges"] if row["needed"]} == set(planted.circuit.edge_names)
    assert (of_edges.verdict, of_shi.verdict) == ("fail", "fail") and of_shi.numbers["n_idle"] == 10
    wrong = run_battery(planted_bench, fewer, QUICK, only=("sufficiency", "completeness"))
    assert wrong.verdict == "fail"
    random = run_battery(planted_bench, circuits["random, matched"], QUICK, only=("sufficiency", "necessity", "random"))
    assert [result.verdict for result in random.results] == ["fail", "fail", "fail"]


def test_the_gap_of_completeness_is_that_of_circuit_and_model(planted, planted_bench):
    """For a circuit without an edge, d of every single edge by circuit runs."""
    kept = planted.circuit.kept.copy()
    kept[np.nonzero(kept)[0][-1]] = False
    circuit = Circuit(planted.circuit.graph, kept)
    result = completeness(planted_bench, circuit, cut_edges(planted_bench, circuit, 5), n_random=3)
    singles = [row for row in result.numbers["sets"] if row["set"].endswith(" alone")]
    assert len(singles) == 5 and result.numbers["n_sets"] == 5 + 3 + result.numbers["n_chosen"]
    for row in singles:
        alone = np.arange(len(kept)) == circuit.graph.edge(row["set"].removesuffix(" alone"))
        of_circuit, of_model = planted_bench.gains([Circuit(circuit.graph, one & ~alone)
                                                    for one in (kept, np.ones_like(kept))])
        assert row["value"] == pytest.approx((of_circuit - of_model).mean() / planted_bench.gap.mean(), abs=1e-9)
    worst = max(abs(row["value"]) for row in result.numbers["sets"])
    assert f"{worst:.3f}" in result.reason


def test_rates_on_planted_circuits(monkeypatch):
    """One model, six circuits: the same as the benchmark counts on many."""
    monkeypatch.setattr("acdc.benchmarks.battery.N_POPULATION", 128)
    found, inside, n = simulate(1, seed=100)
    assert {kind: tally.verdicts["pass"] for kind, tally in found.items() if tally.verdicts["pass"]} == {
        "planted": 1, "planted, leaking": 1}
    for kind in ("random, matched", "random, connected", "with ten more"):
        assert found[kind].verdicts == {"fail": 1}, kind
    assert sum(found[effect_class(d)].verdicts.total() for d in (0.3, 0.15, 0.0)) == 1
    assert 0 <= inside <= n


# Other tasks, other circuits, other ways to measure


def test_a_circuit_of_one_task_on_another(planted, planted_bench):
    """The same model on other prompts is the same task; a circuit of another model's is not this one's."""
    same = prepare_bench(planted.model, [draw_prompts(planted.model, 24, 9)], METRIC)
    gains = planted_bench.gains([planted.circuit])
    result = on_another_task(planted_bench, same, planted.circuit, gains, name="the same", n_random=5)
    assert result.verdict == "fail" and result.numbers["on_other"]["value"] == pytest.approx(1)
    other = plant(2).circuit
    assert of_another_circuit(planted_bench, planted.circuit, other, gains).verdict == "pass"
    assert of_another_circuit(planted_bench, planted.circuit, planted.circuit, gains).verdict == "fail"


def test_the_mean_of_ratios(bench):
    circuit = random_circuit(bench.model.graph(), 0.7)
    gains = bench.gains([circuit])[0]
    estimate = mean_of_ratios(bench, gains)
    assert estimate.value == pytest.approx(np.mean(gains / bench.gap))
    with_none = replace(bench, full=np.where(np.arange(7) == 2, bench.empty, bench.full))
    assert mean_of_ratios(with_none, gains).value == pytest.approx(np.mean(np.delete(gains / bench.gap, 2)))


def test_a_node_circuit_has_all_edges_among_its_nodes():
    graph = tiny("llama").graph("group")
    circuit = Circuit.from_edges(graph, ["input->a0.g0<v>", "a0.h1->m1", "m1->logits"])
    nodes = {"input", "a0.h0", "a0.h1", "a0.g0", "m1", "logits"}
    ends = [(graph.srcs[s].name, graph.channels[c].node.name)
            for s, c in zip(graph.edge_src, graph.edge_channel, strict=True)]
    np.testing.assert_array_equal(node_circuit(circuit).kept, [src in nodes and dst in nodes for src, dst in ends])
    per_head = Circuit.from_edges(tiny("llama").graph(), ["input->a0.h1<v>", "a0.h1->logits"])
    assert {name.partition("<")[0] for name in node_circuit(per_head).edge_names} == {
        "input->a0.h1", "input->logits", "a0.h1->logits"}


def test_planted_prompts_share_no_token(planted):
    batch = draw_prompts(planted.model, 50, 0)
    assert batch.clean.shape == (50, LENGTH) and int(batch.clean.max()) < VOCAB
    assert not (batch.clean == batch.corrupted).any() and (batch.answer != batch.wrong).all()


def test_what_cannot_be_tested_is_refused(bench, planted):
    graph = bench.model.graph()
    for circuit in (Circuit(graph, np.zeros(graph.n_edges, bool)), Circuit(graph, np.ones(graph.n_edges, bool))):
        with pytest.raises(AcdcError, match="nothing to test"):
            run_battery(bench, circuit)
    with pytest.raises(AcdcError, match="of another model"):
        run_battery(bench, planted.circuit)
    with pytest.raises(AcdcError, match="sufficency"):
        run_battery(bench, random_circuit(graph, 0.5), only=("sufficency",))
    for wrong in ({"tolerance": 0.0}, {"epsilon": 0.5}, {"random": 18}, {"edges": 0}, {"inflated": 28}):
        with pytest.raises(AcdcError, match=next(iter(wrong))):
            Settings(**wrong)
