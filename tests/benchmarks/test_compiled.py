"""Compiled models compute their programs, and ACDC finds exactly the edges that they are known to use."""

from functools import cache

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from acdc.ablation import prepare_ablation
from acdc.benchmarks.compiled import generate
from acdc.benchmarks.compiled.load import COMPILED, FOLDER, load_compiled
from acdc.circuit import Circuit
from acdc.discovery import METHODS
from acdc.errors import AcdcError
from acdc.patching import run_circuit

loaded = cache(load_compiled)
compiled_models = pytest.mark.parametrize("name", COMPILED)
ablations = pytest.mark.parametrize("ablation", ["zero", "resample"])


def fraction(tokens, token):
    return [tokens[: i + 1].count(token) / (i + 1) for i in range(len(tokens))]


def after_same(tokens):
    """What follows the earlier occurrence of each token; it may follow by being the token here."""
    return [next((tokens[j + 1] for j in range(i) if tokens[j] == token), None) for i, token in enumerate(tokens)]


PROGRAMS = {
    "reverse": lambda tokens: tokens[::-1],
    "proportion": lambda tokens: fraction(tokens, "x"),
    "pair_balance": lambda tokens: np.subtract(fraction(tokens, "("), fraction(tokens, ")")).tolist(),
    "hist": lambda tokens: [str(tokens.count(token)) for token in tokens],
    "sort_unique": sorted,
    "induction": after_same,
}

# Found by ACDC's authors with zero ablation (Conmy et al. 2023, arXiv 2304.14997), in other code, on prompts of their
# own. Token and position embedding are two nodes there, so they count 11 and 7 edges.
PUBLISHED_ZERO = {
    "reverse": "input->a0.h0<v> a0.h0->m0 input->m0 m0->m1 input->m1 m1->m2 m2->a3.h0<q> input->a3.h0<k> "
               "input->a3.h0<v> a3.h0->logits",
    "proportion": "input->m0 m0->a1.h0<v> input->a1.h0<q> input->a1.h0<k> a1.h0->logits",
}
# The true edges under resample ablation in auto-circuit (Miller et al. 2024, arXiv 2407.08734).
PUBLISHED_RESAMPLE = {
    "reverse": "input->a3.h0<v> a3.h0->logits",
    "proportion": "input->m0 m0->a1.h0<v> a1.h0->logits",
}


@cache
def runs(name, ablation):
    """Prompts, replacement values and uncut logits, for the prompts of each length."""
    compiled, graph = loaded(name), loaded(name).model.graph()
    replace = prepare_ablation(compiled.model, compiled.batches, ablation)
    full = Circuit(graph, np.ones(graph.n_edges, dtype=bool))
    prompts = [(batch, replace(batch)) for batch in compiled.batches]
    return [(batch, replacement, run_circuit(compiled.model, batch, full, replacement, all_positions=True))
            for batch, replacement in prompts]


def moved(name, kept, ablation):
    """By how much cutting all other edges moves each logit after BOS, for the prompts of each length."""
    model = loaded(name).model
    for batch, replacement, clean in runs(name, ablation):
        cut = run_circuit(model, batch, Circuit(model.graph(), kept), replacement, all_positions=True)
        yield (cut - clean)[:, 1:].abs().numpy()


@compiled_models
def test_logits_are_those_of_the_compiler(name):
    compiled = loaded(name)
    for batch, expected in zip(compiled.batches, compiled.logits, strict=True):
        with torch.no_grad():
            logits = compiled.model.hf(batch.clean, attention_mask=compiled.model.full_mask(batch.clean)).logits
        assert logits.shape == expected.shape
        torch.testing.assert_close(logits, expected.double(), rtol=0, atol=1e-5)


@compiled_models
def test_logits_say_what_the_program_says(name):
    compiled = loaded(name)
    tokens = {i: token for token, i in compiled.vocabulary.items()}
    for batch, logits in zip(compiled.batches, compiled.logits, strict=True):
        for prompt, rows in zip(batch.clean.tolist(), logits, strict=True):
            assert tokens[prompt[0]] == "BOS"
            for expected, row in zip(PROGRAMS[name]([tokens[i] for i in prompt[1:]]), rows[1:], strict=True):
                if expected is None:
                    assert row.abs().max() < 1e-4
                elif compiled.labels == ("value",):
                    assert row.item() == pytest.approx(expected, abs=1e-3)
                else:
                    assert compiled.labels[int(row.argmax())] == expected


@compiled_models
def test_edges_by_the_weights_are_those_of_the_weights_and_suffice(name):
    compiled, graph = loaded(name), loaded(name).model.graph()
    tensors = {key: value for key, value in load_file(FOLDER / f"{name}.safetensors").items() if "logits" not in key}
    weights = generate.Weights(**tensors, causal=compiled.model.causal)
    assert [generate.name(edge) for edge in generate.edges(weights)] == list(graph.edge_names)
    assert tuple(generate.name(edge) for edge in generate.used_by_weights(weights)) == compiled.truth["weights"]
    assert compiled.circuit("weights").n_edges < graph.n_edges
    for ablation in ("zero", "resample", "mean"):
        for change in moved(name, compiled.circuit("weights").kept, ablation):
            assert change.max() < 1e-12


@ablations
@compiled_models
def test_true_edges_are_those_that_matter_alone_and_they_suffice(name, ablation):
    compiled = loaded(name)
    n_edges = compiled.model.graph().n_edges
    everywhere, last = compiled.circuit(ablation, all_positions=True), compiled.circuit(ablation)
    assert set(last.edge_names) <= set(everywhere.edge_names) <= set(compiled.truth["weights"])
    for edge in range(n_edges):
        changes = list(moved(name, np.arange(n_edges) != edge, ablation))
        assert (max(change.max() for change in changes) > 1e-3) == everywhere.kept[edge], edge
        assert (max(change[:, -1].max() for change in changes) > 1e-3) == last.kept[edge], edge
    for change in moved(name, everywhere.kept, ablation):
        assert change.max() < 1e-5
    for change in moved(name, last.kept, ablation):
        assert change[:, -1].max() < 1e-5


@pytest.mark.parametrize("threshold", [1e-5, 1e-3])
@pytest.mark.parametrize("method", ["acdc", "acdc_sequential"])
@ablations
@compiled_models
def test_acdc_finds_exactly_the_true_edges(name, ablation, method, threshold):
    compiled = loaded(name)
    scores = METHODS[method](compiled.model, compiled.batches, compiled.metric, threshold=threshold, ablation=ablation)
    assert scores.above(threshold, by="signed").edge_names == compiled.circuit(ablation).edge_names


@ablations
@compiled_models
def test_exact_patching_finds_them_too(name, ablation):
    compiled = loaded(name)
    scores = METHODS["exact"](compiled.model, compiled.batches, compiled.metric, ablation=ablation)
    assert scores.above(1e-3, by="signed").edge_names == compiled.circuit(ablation).edge_names


@pytest.mark.parametrize("name", ["reverse", "proportion"])
def test_true_edges_are_those_that_others_published(name):
    compiled = loaded(name)
    for truth in (compiled.truth, compiled.truth_at_all_positions):
        assert set(truth["zero"]) == set(PUBLISHED_ZERO[name].split())
        assert set(truth["resample"]) == set(PUBLISHED_RESAMPLE[name].split())


def test_prompts_differ_in_what_the_program_says_last():
    for name in COMPILED:
        compiled = loaded(name)
        assert sum(len(batch) for batch in compiled.batches) == 64
        for batch in compiled.batches:
            assert ((batch.answer != batch.wrong).all()) or compiled.labels == ("value",)
            first = batch.examples[0]
            assert first.clean.split() == [list(compiled.vocabulary)[i] for i in batch.clean[0]]
            assert first.answer.strip() == compiled.labels[int(batch.answer[0])]


def test_loading_draws_no_random_numbers_and_refuses_other_names():
    before = torch.get_rng_state()
    compiled = load_compiled("hist", dtype="float32")
    assert torch.equal(torch.get_rng_state(), before)
    assert compiled.model.dtype == torch.float32
    with pytest.raises(AcdcError, match=r"'sort'.*sort_unique"):
        load_compiled("sort")
    with pytest.raises(AcdcError, match=r"'mean'.*resample"):
        compiled.circuit("mean")
