"""Compiled models compute their programs, and ACDC finds exactly the edges that they are known to use."""

from functools import cache
from itertools import accumulate

import numpy as np
import pytest
import torch

from acdc.ablation import prepare_ablation
from acdc.benchmarks.compiled import cut
from acdc.benchmarks.compiled.load import COMPILED, load_compiled
from acdc.benchmarks.compiled.published import PUBLISHED, found_again, prompts_of, that_matter_alone, weights_of
from acdc.benchmarks.recovery import above_rounding, auroc
from acdc.circuit import Circuit
from acdc.discovery import METHODS
from acdc.discovery.exact import exact_effects
from acdc.errors import AcdcError
from acdc.patching import run_circuit

compiled_models = pytest.mark.parametrize("name", COMPILED)
ablations = pytest.mark.parametrize("ablation", ["zero", "resample"])
LARGE = ("sort_freq", "shuffle_dyck1", "shuffle_dyck2")
SMALL = [name for name in COMPILED if name not in LARGE]
READ = {name: "last" if name in LARGE else "all" for name in COMPILED}  # large ones take long


@cache
def load(name, read):
    return load_compiled(name, read=read)


def loaded(name, read="all"):
    return load(name, read)


def fraction(tokens, token):
    return [tokens[: i + 1].count(token) / (i + 1) for i in range(len(tokens))]


def after_same(tokens):
    """What follows the earlier occurrence of each token; it may follow by being the token here."""
    return [next((tokens[j + 1] for j in range(i) if tokens[j] == token), None) for i, token in enumerate(tokens)]


def balanced(tokens):
    """Each kind of bracket by itself: never more closed than opened, and as many in the end."""
    kinds = [[{pair[0]: 1, pair[1]: -1}.get(token, 0) for token in tokens] for pair in ("()", "{}")]
    return all(min(accumulate(steps)) >= 0 and sum(steps) == 0 for steps in kinds)


def neighbours(tokens):
    """(before, here, after) at each position; None where there is none."""
    return zip([None, *tokens[:-1]], tokens, [*tokens[1:], None], strict=True)


def how_often(share):
    return "frequent" if share > 0.5 else "common" if share > 0.25 else "rare"


PROGRAMS = {
    "reverse": lambda tokens: tokens[::-1],
    "proportion": lambda tokens: fraction(tokens, "x"),
    "pair_balance": lambda tokens: np.subtract(fraction(tokens, "("), fraction(tokens, ")")).tolist(),
    "hist": lambda tokens: [str(tokens.count(token)) for token in tokens],
    "sort_unique": sorted,
    "induction": after_same,
    "frac_prevs": lambda tokens: fraction(tokens, "x"),
    "sort": sorted,
    "sort_freq": lambda tokens: sorted(tokens, key=lambda token: -tokens.count(token)),
    "shuffle_dyck1": lambda tokens: [str(balanced(tokens))] * len(tokens),
    "shuffle_dyck2": lambda tokens: [str(balanced(tokens))] * len(tokens),
    "trend": lambda tokens: [then and ("constant" if then == here else "rising" if then > here else "falling")
                             for _, here, then in neighbours(tokens)],
    "frequency_class": lambda tokens: [how_often(tokens.count(token) / len(tokens)) for token in tokens],
    "drop_repeats": lambda tokens: [before and (None if before == here else here)
                                    for before, here, _ in neighbours(tokens)],
    "alternation": lambda tokens: [before and then and str(before != here and here != then)
                                   for before, here, then in neighbours(tokens)],
    "detect_ab": lambda tokens: [before and str(before + here == "ab") for before, here, _ in neighbours(tokens)],
}


@pytest.mark.parametrize("read", ["all", "last"])
@compiled_models
def test_logits_are_those_of_the_compiler_and_say_what_the_program_says(name, read):
    compiled = loaded(name, read=read)
    for batch, expected in zip(compiled.batches, compiled.logits, strict=True):
        with torch.no_grad():
            logits = compiled.model.hf(batch.clean, attention_mask=compiled.model.full_mask(batch.clean)).logits[:, -1]
        torch.testing.assert_close(logits, expected.double(), rtol=0, atol=1e-5)
        for example, row in zip(batch.examples, expected, strict=True):
            bos, *tokens = example.clean.split()
            place = int(example.template.removeprefix("read at "))
            assert bos == "BOS" and (read == "all" or place == len(tokens))
            says = PROGRAMS[name](tokens)[place - 1]
            if says is None:
                assert row.abs().max() < 1e-4
            elif compiled.labels == ("value",):
                assert row.item() == pytest.approx(says, abs=1e-3)
            else:
                assert compiled.labels[int(row.argmax())] == says


@compiled_models
def test_every_prompt_is_read_once_at_every_position(name):
    """Whatever the order in which a prompt is given: each place once, with the token that stands there."""
    compiled, stored = loaded(name), prompts_of(name)
    reads = sorted((example.clean.split(), int(example.template.removeprefix("read at ")))
                   for batch in compiled.batches for example in batch.examples)
    tokens = list(compiled.vocabulary)
    expected = []
    for pairs in stored:
        for ids in pairs.clean:
            for place in range(1, len(ids)):
                seen = ids[: place + 1] if compiled.model.causal else ids
                expected.append(([tokens[i] for i in seen], place))
    assert reads == sorted(expected)
    if not compiled.model.causal:
        for batch in compiled.batches:
            for ids, example in zip(batch.clean.tolist(), batch.examples, strict=True):
                at_places = {i // len(tokens): tokens[i % len(tokens)] for i in ids}
                assert [at_places[place] for place in range(len(ids))] == example.clean.split()
                assert ids[-1] // len(tokens) == int(example.template.removeprefix("read at "))


@compiled_models
def test_edges_by_the_weights_are_those_of_the_weights_and_suffice(name):
    compiled, weights = loaded(name, READ[name]), weights_of(name)
    graph = compiled.model.graph()
    assert [cut.name(edge) for edge in cut.edges(weights)] == list(graph.edge_names)
    assert tuple(cut.name(edge) for edge in cut.used_by_weights(weights)) == compiled.truth["weights"]
    assert compiled.circuit("weights").n_edges < graph.n_edges
    for ablation in ("zero", "resample", "mean"):
        assert moved(compiled, compiled.circuit("weights"), ablation) < 1e-12


def moved(compiled, circuit, ablation):
    """The most that a circuit, with all other edges cut, moves a logit of a clean prompt."""
    batch, full = compiled.batches[-1], Circuit(circuit.graph, np.ones(circuit.graph.n_edges, dtype=bool))
    replacement = prepare_ablation(compiled.model, [batch], ablation)(batch)
    logits = [run_circuit(compiled.model, batch, some, replacement) for some in (circuit, full)]
    return float((logits[0] - logits[1]).abs().max())


@ablations
@compiled_models
def test_true_edges_are_those_that_matter_alone_and_they_suffice(name, ablation):
    compiled = loaded(name, read=READ[name])
    truth, n_edges = compiled.circuit(ablation), compiled.model.graph().n_edges
    tried = np.nonzero(truth.kept | (np.arange(n_edges) % (10 if name in LARGE else 1) == 0))[0]
    alone = exact_effects(compiled.model, compiled.batches, compiled.metric, tried, ablation=ablation)
    assert ((alone.max(1) > 1e-3) == truth.kept[tried]).all()
    assert moved(compiled, truth, ablation) < 1e-3
    assert set(truth.edge_names) <= set(loaded(name).truth[ablation]) <= set(compiled.truth["weights"])


@pytest.mark.parametrize("read", ["all", "last"])
@pytest.mark.parametrize("name", SMALL)
@ablations
def test_so_says_other_code(name, ablation, read):
    found = that_matter_alone(weights_of(name), prompts_of(name), ablation, read)
    assert found == set(loaded(name, read=read).truth[ablation])


@ablations
@compiled_models
def test_acdc_finds_exactly_the_true_edges(name, ablation):
    compiled = loaded(name, read=READ[name])
    scores = METHODS["acdc"](compiled.model, compiled.batches, compiled.metric, threshold=1e-3, ablation=ablation)
    assert scores.above(1e-3, by="signed").edge_names == compiled.circuit(ablation).edge_names


@pytest.mark.parametrize("name", ["pair_balance", "hist", "sort_unique", "induction"])
@ablations
def test_plain_acdc_does_so_where_only_the_last_is_read_and_at_a_low_threshold(name, ablation):
    compiled = loaded(name, read="last")
    scores = METHODS["acdc_sequential"](compiled.model, compiled.batches, compiled.metric, threshold=1e-5,
                                        ablation=ablation)
    assert scores.above(1e-5, by="signed").edge_names == compiled.circuit(ablation).edge_names


def test_acdc_keeps_nothing_where_nothing_is_said():
    """Single edges matter there, but without any the logits are 0 too, as they are on the clean run."""
    compiled = loaded("alternation", read="last")
    scores = METHODS["acdc"](compiled.model, compiled.batches, compiled.metric, threshold=1e-3, ablation="zero")
    assert scores.above(1e-3, by="signed").n_edges == 0 < len(compiled.truth["zero"])


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda p: f"{p.program}-{p.ablation}")
def test_edges_that_others_published_are_found_again(published):
    assert found_again(published) == published.edges
    if not published.apart:
        assert published.edges == set(loaded(published.program).truth[published.ablation])


def test_two_edges_published_for_proportion_are_there_by_its_malformed_prompts():
    """With BOS in front and no padding, the tokens say nothing of where to look."""
    published = next(p for p in PUBLISHED if (p.program, p.ablation) == ("proportion", "zero"))
    proper = that_matter_alone(weights_of("proportion", apart=True), prompts_of("proportion"), "zero")
    assert published.edges - proper == {"tok->a1.h0<q>", "tok->a1.h0<k>"} and proper < published.edges


@compiled_models
def test_prompts_differ_in_what_the_program_says(name):
    compiled, whole = loaded(name), prompts_of(name)
    assert sum(len(pairs.clean) for pairs in whole) == 64
    for pairs in whole:
        for prompts in zip(pairs.clean, pairs.corrupted, strict=True):
            clean, corrupted = ([list(compiled.vocabulary)[i] for i in prompt[1:]] for prompt in prompts)
            assert PROGRAMS[name](clean) != PROGRAMS[name](corrupted)


def test_eap_misses_by_saturation_what_integrated_gradients_find():
    """Scores below rounding count as 0. In `sort` all lies behind attention that is sure of itself."""
    compiled, found = loaded("sort"), {}
    for method, options in (("eap", {}), ("eap_ig", {"steps": 20})):
        scores = METHODS[method](compiled.model, compiled.batches, compiled.metric_of_change, **options)
        found[method] = auroc(above_rounding(scores), compiled.circuit("resample"))
    assert found == {"eap": pytest.approx(5 / 7, abs=1e-9), "eap_ig": 1}


def test_loading_draws_no_random_numbers_and_refuses_other_names():
    before = torch.get_rng_state()
    compiled = load_compiled("hist", dtype="float32")
    assert torch.equal(torch.get_rng_state(), before)
    assert compiled.model.dtype == torch.float32
    with pytest.raises(AcdcError, match=r"'sorted'.*sort_unique"):
        load_compiled("sorted")
    with pytest.raises(AcdcError, match=r"'first'.*last"):
        load_compiled("hist", read="first")
    with pytest.raises(AcdcError, match=r"'mean'.*resample"):
        compiled.circuit("mean")
