"""A rank-one edit: the constraint holds exactly, one matrix of a copy changes, the fact does too."""

import pytest
import torch
from tiny_models import GPT2, GROUPED, SHAPE, tiny_hf
from tiny_tokenizer import tiny_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from acdc.annotation.sites import read
from acdc.errors import AcdcError
from acdc.intervention.rome import Fact, edit_scores, rome, sampled_prefixes, second_moment
from acdc.transformer import Transformer

FACT = Fact("Then, {} went to the", "Alice", true=" store", target=" school")
PREFIXES = ["Then, Daniel had a drink. ", "While Alice had to work. "]
BUILD = {
    "gpt2": lambda n: GPT2LMHeadModel(GPT2Config(**{**GPT2, "vocab_size": n})),
    "gpt_neox": lambda n: GPTNeoXForCausalLM(GPTNeoXConfig(**{**SHAPE, "vocab_size": n})),
    "llama": lambda n: LlamaForCausalLM(LlamaConfig(**{**GROUPED, "vocab_size": n})),
}
LAST = {"gpt2": "transformer.h.1.mlp.c_proj.weight", "gpt_neox": "gpt_neox.layers.1.mlp.dense_4h_to_h.weight",
        "llama": "model.layers.1.mlp.down_proj.weight"}


def readable(family):
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    hf = BUILD[family](len(tokenizer)).eval().double()
    with torch.no_grad():
        for weight in hf.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
        hf.get_parameter(LAST[family]).mul_(10.0)  # so that the MLP's output is large enough for a change to show
    return Transformer(hf, tokenizer, family)


def text(model, n=40):
    return torch.randint(0, len(model.tokenizer), (n, 12), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", BUILD)
def test_an_edit(family):
    model = readable(family)
    before = {name: weight.clone() for name, weight in model.hf.state_dict().items()}
    moment = second_moment(model, 1, text(model))
    edit = rome(model, FACT, 1, moment, prefixes=PREFIXES)
    for name, weight in model.hf.state_dict().items():
        assert torch.equal(weight, before[name]), name
    changed = [name for name, weight in edit.model.hf.state_dict().items() if not torch.equal(weight, before[name])]
    assert changed == [LAST[family]]
    old, new = before[changed[0]], edit.model.hf.state_dict()[changed[0]]
    old, new = (old.T, new.T) if family == "gpt2" else (old, new)
    torch.testing.assert_close(new @ edit.key, edit.value)
    assert int(torch.linalg.matrix_rank(new - old, rtol=1e-6)) == 1
    # the least change: of all W' with W' k = v, it moves what other keys give least, E|(W' - W) k|^2
    other = torch.outer(edit.value - old @ edit.key, edit.key / edit.key.pow(2).sum())
    costs = [float(torch.einsum("oi,ij,oj->", change, moment, change)) for change in (new - old, other)]
    assert costs[0] < costs[1]
    assert edit.losses[-1] < edit.losses[0]


@pytest.mark.parametrize("family", BUILD)
def test_without_prefixes_the_mlp_returns_v_at_the_subject(family):
    model = readable(family)
    edit = rome(model, FACT, 1, second_moment(model, 1, text(model)))
    tokens = torch.tensor([model.tokenizer("Then, Alice went to the")["input_ids"]])
    assert tokens.shape[1] == 6
    before, after = (read(m, tokens, ["m1"])["m1"][0, 2] for m in (model, edit.model))
    matrix = before_weights(model, family)
    torch.testing.assert_close(after - before, edit.value - matrix @ edit.key)


def test_an_edit_makes_the_target_likelier():
    model = readable("llama")
    edit = rome(model, FACT, 1, second_moment(model, 1, text(model)))
    before, after = (edit_scores(m, FACT, ["While {} went"], [("Daniel", " store")]) for m in (model, edit.model))
    assert after.efficacy[1] > before.efficacy[1]


def before_weights(model, family):
    weight = model.hf.get_parameter(LAST[family]).detach()
    return weight.T if family == "gpt2" else weight


def test_the_second_moment_is_a_mean_over_tokens():
    model = readable("llama")
    tokens = text(model, n=6)
    k = read(model, tokens, ["m1.neurons"])["m1.neurons"].flatten(0, 1)
    torch.testing.assert_close(second_moment(model, 1, tokens), k.T @ k / len(k))


def test_scores_are_probabilities_compared():
    model = readable("llama")
    scores = edit_scores(model, FACT, ["While {} went to the", "Then, {} had to"], [("Daniel", " store")])

    def gap(prompt, better, worse):
        logits = model.hf(torch.tensor([model.tokenizer(prompt)["input_ids"]])).logits[0, -1].detach()
        p = logits.float().softmax(-1)
        return float(p[model.tokenizer(better)["input_ids"][0]] - p[model.tokenizer(worse)["input_ids"][0]])

    efficacy = gap("Then, Alice went to the", " school", " store")
    paraphrase = [gap(p, " school", " store") for p in ("While Alice went to the", "Then, Alice had to")]
    neighbour = gap("Then, Daniel went to the", " store", " school")
    assert scores.efficacy == pytest.approx((float(efficacy > 0), efficacy))
    assert scores.paraphrase == pytest.approx((sum(g > 0 for g in paraphrase) / 2, sum(paraphrase) / 2))
    assert scores.neighbourhood == pytest.approx((float(neighbour > 0), neighbour))


def test_prefixes_are_by_seed():
    tokenizer = tiny_tokenizer()
    model = readable("llama")
    found = [sampled_prefixes(model, 2, 4, seed=seed) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2] and all(text.endswith(". ") for text in found[0])
    assert len(tokenizer) > 0


def test_mistakes():
    model, gemma = readable("llama"), Transformer(tiny_hf("gemma2"), tiny_tokenizer(), "gemma2")
    moment = second_moment(model, 1, text(model, 4))
    cases = [
        ("must have {} once", lambda: rome(model, Fact("Then", "Alice", " store", " school"), 1, moment)),
        ("not one token", lambda: rome(model, Fact("Then, {} went", "Alice", " store", " to the"), 1, moment)),
        ("40 neurons", lambda: rome(model, FACT, 1, moment[:3, :3])),
        ("its last is m2", lambda: rome(model, FACT, 7, moment)),
        ("norm after its MLPs", lambda: rome(gemma, FACT, 1, moment)),
        ("at least one of each", lambda: edit_scores(model, FACT, [], [("Daniel", " store")])),
    ]
    for message, attempt in cases:
        with pytest.raises(AcdcError, match=message):
            attempt()
