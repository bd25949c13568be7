"""The reverse pass: with trivial rules it is the gradient; with others, autograd of a model written by them."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_batch, tiny
from naive import NaiveModel
from tiny_models import CONFIGS, NoEffect, tiny_hf
from torch import Tensor, nn

from acdc.activations import hooks, record
from acdc.discovery.eap import eap
from acdc.discovery.gradients import attribute
from acdc.discovery.rules import Rules, _follow, backward, check_rules
from acdc.errors import AcdcError
from acdc.metrics import METRICS
from acdc.transformer import Transformer, frozen

LOGIT_DIFFERENCE = METRICS["logit_difference"]
SINGLE = {
    "constant_scale": Rules(constant_scale=True),
    "identity_act": Rules(identity_act=True),
    "gate": Rules(gate=0.3),
    "temperature": Rules(temperature=2.5),
    "constant_pattern": Rules(constant_pattern=True),
    "factors": Rules(q=0.2, k=0.3, v=-0.5),
}
METHODS = {
    "relp": Rules(constant_scale=True, identity_act=True, gate=0.5),
    "relp_constant": Rules(constant_scale=True, identity_act=True, gate=0.5, constant_pattern=True),
    "gim": Rules(constant_scale=True, gate=0.5, temperature=2.0, q=0.25, k=0.25, v=0.5),
}
ACTS = {"gelu_new": lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
        "gelu": nn.functional.gelu, "relu": torch.relu, "silu": lambda x: x * torch.sigmoid(x),
        "gelu_pytorch_tanh": partial(nn.functional.gelu, approximate="tanh")}


def scores(model, batch, rules, metric=LOGIT_DIFFERENCE, ablation="resample"):
    return attribute(model, [batch], metric, points=[1.0], kv="head", ablation=ablation, progress=False,
                     provenance={"method": "rules", "method_options": {}}, backward=partial(backward, rules=rules))


def assert_close(ours, expected, rtol=1e-5):
    np.testing.assert_allclose(ours, expected, rtol=0, atol=rtol * np.abs(expected).max())


class ConstantScale(nn.Module):
    """A norm that divides by a number."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.norm, self.weight, self.eps = norm, norm.weight, getattr(norm, "eps", 0)

    def forward(self, x: Tensor) -> Tensor:
        kind, weight = type(self.norm).__name__, self.norm.weight
        centred = x - x.mean(-1, keepdim=True) if kind == "LayerNorm" else x
        eps = self.norm.variance_epsilon if hasattr(self.norm, "variance_epsilon") else self.norm.eps
        y = centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt().detach()
        return y * weight + self.norm.bias if kind == "LayerNorm" else y * (weight + kind.startswith("Gemma"))


class Slope(nn.Module):
    """An activation function that multiplies x by a number."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return x * (ACTS[self.name](x) / x).detach()


class ScalesGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, *grads):
        return grads[0] * ctx.factor, None


class SoftmaxAt(torch.autograd.Function):
    """The softmax, with P (g - P . g) as its gradient, P at another temperature."""

    @staticmethod
    def forward(ctx, scores, temperature):
        ctx.pattern = torch.exp(scores / temperature - torch.logsumexp(scores / temperature, -1, keepdim=True))
        return torch.exp(scores - torch.logsumexp(scores, -1, keepdim=True))

    @staticmethod
    def backward(ctx, *grads):
        return ctx.pattern * (grads[0] - (ctx.pattern * grads[0]).sum(-1, keepdim=True)), None


class RuledModel(NaiveModel):
    """HF's modules, some of them rewritten so that autograd follows the rules."""

    def __init__(self, hf: Any, rules: Rules) -> None:
        super().__init__(hf)
        self.rules = rules
        for parent in list(hf.modules()):
            for name, child in list(parent.named_children()):
                if rules.constant_scale and "Norm" in type(child).__name__:
                    setattr(parent, name, ConstantScale(child))
                if rules.identity_act and name in ("act", "act_fn"):
                    config = hf.config
                    act = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
                    setattr(parent, name, Slope(act or config.activation_function))
                if name == "down_proj":
                    setattr(parent, name, nn.Sequential(Scales(rules.gate), child))
        self.final_norm = hf.get_submodule("transformer.ln_f" if hasattr(hf, "transformer") else
                                           "gpt_neox.final_layer_norm" if hasattr(hf, "gpt_neox") else "model.norm")
        hf.config._attn_implementation = "eager"

    def rstd(self, x: Tensor, norm: Any) -> Tensor:
        rstd = super().rstd(x, norm)
        return rstd.detach() if self.rules.constant_scale else rstd

    def head_z(self, layer: Any, kwargs: dict, head: int, normed: dict[str, Tensor]) -> Tensor:
        scaled = {x: ScalesGradient.apply(normed[x], getattr(self.rules, x)) for x in "qkv"}
        softmax = nn.functional.softmax

        def by_the_rules(scores: Tensor, dim: int = -1, dtype: Any = None) -> Tensor:
            pattern: Any = SoftmaxAt.apply(scores.to(dtype or scores.dtype), self.rules.temperature)
            return pattern.detach() if self.rules.constant_pattern else pattern

        nn.functional.softmax = by_the_rules  # type: ignore[assignment]
        try:
            return super().head_z(layer, {**kwargs, "attention_mask": causal_mask(layer, normed["q"])}, head, scaled)
        finally:
            nn.functional.softmax = softmax


class Scales(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Any:
        return ScalesGradient.apply(x, self.factor)


def causal_mask(layer: Any, x: Tensor) -> Tensor:
    """What HF's eager attention adds to its scores."""
    attn = next(m for name, m in layer.named_children() if name in ("attn", "self_attn", "attention"))
    window = getattr(attn, "sliding_window", None)
    if window is None and attn.config.model_type == "mistral":
        window = attn.config.sliding_window
    distance = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])[None]
    hidden = (distance < 0) | (distance >= (window or x.shape[1]))
    return torch.zeros(1, 1, *distance.shape, dtype=x.dtype).masked_fill(hidden, torch.finfo(x.dtype).min)


def naive_scores(family, batch, rules):
    """One autograd pass through the rewritten model, with a tensor of its own for what each channel reads."""
    model = tiny(family)
    graph, plain, ruled = model.graph(), NaiveModel(model.hf), RuledModel(tiny_hf(family, torch.float64), rules)
    with torch.no_grad():
        expected, clean = plain.run(batch.clean, graph)
        _, replaced = plain.run(batch.corrupted, graph)
    leaves: dict[str, Tensor] = {}
    logits, _ = ruled.run(batch.clean, graph, leaves=leaves)
    assert torch.allclose(logits, expected, atol=1e-5)  # the values are HF's
    loss = LOGIT_DIFFERENCE.loss(logits, batch, logits).sum()
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    grads = dict(zip(leaves, found, strict=True))
    result = np.zeros(graph.n_edges)
    for edge in range(graph.n_edges):
        src, channel = graph.srcs[graph.edge_src[edge]].name, graph.channels[graph.edge_channel[edge]].name
        result[edge] = float(((replaced[src] - clean[src]) * grads[channel]).sum()) / len(batch)
    return result


@pytest.mark.parametrize("metric", ["logit_difference", "probability_difference"])
def test_trivial_rules_are_the_gradient(family, metric):
    model, batch = tiny(family), make_batch()
    ours = scores(model, batch, Rules(), METRICS[metric]).values
    assert_close(ours, eap(model, [batch], METRICS[metric]).values, 1e-6)


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_trivial_rules_are_the_gradient_under_other_ablations(ablation):
    model, batch = tiny("gemma3"), make_batch()
    ours = scores(model, batch, Rules(), ablation=ablation).values
    assert_close(ours, eap(model, [batch], ablation=ablation).values, 1e-6)


def test_trivial_rules_are_the_gradient_where_every_position_sees_every_other():
    model, batch = Transformer(tiny_hf("gpt2", torch.float64), None, "gpt2", causal=False), make_batch()
    assert_close(scores(model, batch, Rules()).values, eap(model, [batch]).values, 1e-12)


@pytest.mark.parametrize("rule", SINGLE)
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "qwen3", "gemma2"])
def test_each_rule_is_autograd_of_a_model_written_by_it(family, rule):
    batch = make_batch()
    expected = naive_scores(family, batch, SINGLE[rule])
    assert_close(scores(tiny(family), batch, SINGLE[rule]).values, expected)
    changed = np.abs(expected - eap(tiny(family), [batch]).values).max() / np.abs(expected).max()
    assert (changed > 0.01) != (rule == "gate" and family in ("gpt2", "gpt_neox"))  # whose MLPs have no gate


@pytest.mark.parametrize("method", METHODS)
def test_rules_together_are_autograd_of_a_model_written_by_them(family, method):
    batch = make_batch()
    assert_close(scores(tiny(family), batch, METHODS[method]).values, naive_scores(family, batch, METHODS[method]))


@pytest.mark.parametrize("activation", ACTS)
def test_the_identity_rule_is_the_mean_slope_and_at_zero_the_slope(activation):
    config = CONFIGS["gpt2"].to_dict() | {"activation_function": activation}
    hf = type(tiny_hf("gpt2"))(type(CONFIGS["gpt2"])(**config)).double().eval()
    model = Transformer(hf, None, "gpt2")
    x = torch.tensor([-3.0, -1e-3, -1e-30, 0.0, -0.0, 1e-300, 1e-30, 1e-3, 2.0], dtype=torch.float64)
    x.requires_grad_()
    act = model.blocks[0].mlp_act
    assert act is not None
    with hooks() as add:
        _follow(model, Rules(identity_act=True), add)
        value = act(x)
        (slope,) = torch.autograd.grad(value.sum(), x)
    assert torch.equal(value.detach(), act(x.detach()))
    at_zero = 0.0 if activation == "relu" else 0.5
    expected = [at_zero if abs(v) < 1e-307 else float(ACTS[activation](torch.tensor(v, dtype=x.dtype)) / v)
                for v in x.tolist()]
    np.testing.assert_allclose(slope.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rules_change_no_value(family, dtype):
    model, tokens = tiny(family, dtype), make_batch().clean
    with torch.no_grad():
        before = model.hf(tokens).logits
        with hooks() as add:
            _follow(model, METHODS["relp"], add)
            assert torch.equal(model.hf(tokens).logits, before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.hf.modules())


def test_hooks_are_gone_after_an_error():
    model, batch = tiny("llama"), make_batch()

    def fails(logits):
        assert any(module._forward_hooks for module in model.hf.modules())
        raise KeyboardInterrupt

    with frozen(model), pytest.raises(KeyboardInterrupt):
        backward(model, record(model, batch.clean), fails, 0, METHODS["relp"])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.hf.modules())


def test_float32_agrees_with_float64_and_bfloat16_resembles_it(family):
    batch = make_batch()
    for rules in (METHODS["relp"], METHODS["gim"]):
        exact = scores(tiny(family), batch, rules).values
        assert_close(scores(tiny(family, torch.float32), batch, rules).values, exact, 1e-4)
        rough = scores(tiny(family, torch.bfloat16), batch, rules).values
        assert np.corrcoef(rough, exact)[0, 1] > 0.97


def test_an_activation_function_that_is_not_zero_at_zero_is_refused():
    model = tiny("gpt2")
    model.hf.transformer.h[1].mlp.act = nn.Sigmoid()
    with pytest.raises(AcdcError, match=r"relp .* Sigmoid: f\(0\) = 0.5, not 0"):
        check_rules("relp", model, METHODS["relp"])
    check_rules("gim", model, METHODS["gim"])


def test_an_adapter_that_does_not_name_the_activation_function_is_refused():
    model = tiny("llama")
    model.__dict__["anatomy"] = replace(model.anatomy, blocks=tuple(replace(b, mlp_act=None) for b in model.blocks))
    for name in ("relp", "gim"):
        with pytest.raises(AcdcError, match=f"{name} has a rule .* adapter of LlamaForCausalLM does not name"):
            check_rules(name, model, METHODS[name])
    check_rules("none", model, Rules(constant_scale=True))


def test_an_mlp_without_effect_needs_no_activation_function():
    model = tiny("gpt2_compiled")
    assert isinstance(model.blocks[1].mlp, NoEffect) and model.blocks[1].mlp_act is None
    check_rules("relp", model, METHODS["relp"])
