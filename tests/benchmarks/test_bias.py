"""The bias probe measures what it says, on a tiny model whose "pronouns" are names of its tokenizer."""

import numpy as np
import pytest
import torch
from tiny_models import GROUPED
from tiny_tokenizer import tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from acdc.ablation import prepare_ablation
from acdc.benchmarks import bias
from acdc.intervention.generation import Cut, without
from acdc.tasks import load_task
from acdc.transformer import Transformer


@pytest.fixture(scope="module")
def model():
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    hf = LlamaForCausalLM(LlamaConfig(**{**GROUPED, "vocab_size": len(tokenizer)})).eval()
    with torch.no_grad():
        for weight in hf.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return Transformer(hf, tokenizer, "tiny")


@pytest.fixture(autouse=True)
def _words(monkeypatch):
    monkeypatch.setattr(bias, "PRONOUNS", (" Alice", " Daniel"))
    monkeypatch.setattr(bias, "TEMPLATES", ("Then, the {} and", "While the {} had"))


def test_probabilities_are_means_over_templates(model):
    he, she = (model.tokenizer(name)["input_ids"][0] for name in bias.PRONOUNS)
    expected = []
    for text in ("Then, the store and", "While the store had"):
        p = model.hf(torch.tensor([model.tokenizer(text)["input_ids"]])).logits[0, -1].detach().softmax(-1)
        expected.append([float(p[he]), float(p[she])])
    found = bias.occupation_probabilities(model, occupations=["store"])
    np.testing.assert_allclose(found, [np.mean(expected, axis=0)], rtol=1e-5)


def test_nothing_cut_changes_nothing_and_something_does(model):
    batches = load_task("ioi", model.tokenizer, n=4).batches(model.tokenizer)
    ablation, text = prepare_ablation(model, batches, "mean_over_positions"), torch.arange(40).view(4, 10)
    occupations = ["store", "school", "garden"]
    results = [bias.measure(model, Cut(without(model.graph(), names), ablation), {"ioi": batches}, text, occupations)
               for names in ([], ["m1"])]
    assert list(results[0]) == ["task ioi", "he + she", "he - she", "its size", "its spread", "loss on text"]
    for name, result in results[0].items():
        assert result.change.value == pytest.approx(0, abs=1e-5)
        assert abs(results[1][name].change.value) > 1e-4
        assert results[1][name].before == result.before


def test_the_study_compares_the_circuit_with_random_ones(model, monkeypatch):
    monkeypatch.setattr(bias, "load_task", lambda name, *rest, **how: load_task("ioi", *rest, **how))
    results = bias.study(model, sizes=(0.02,), n=4, n_windows=2, others=["other"], unused=["more"],
                         occupations=["store", "school"])
    size = round(0.02 * model.graph().n_edges)
    assert list(results) == [f"{name} {size}" for name in ("top", "specific", "random")]
    lines = bias.table(results).splitlines()
    assert lines[0] == (f"| | whole model | without top {size} | without specific {size} | without random {size} |")
    assert len(lines) == 10
    with pytest.raises(bias.AcdcError, match="needs single tokens"):
        monkeypatch.setattr(bias, "PRONOUNS", (" Alice and", " Daniel"))
        bias.occupation_probabilities(model)
