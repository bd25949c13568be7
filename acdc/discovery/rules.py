"""How the gradient flows back, where it is not the derivative: rules, and a reverse pass that follows them.

The pass goes through a recorded run from the last block to the first, with the gradient G of the loss at the residual
stream in hand. At each block the MLP is differentiated again, from what it read, and the gradient there is added to G;
so is that of every q, k and v channel, which attention is differentiated again for:

    g_mlp = J_mlp^T G        G <- G + g_mlp        u_c = rstd * factor_c * (J_attention^T G W_O^T)_c
    g_c = C (gain * W_c^T u_c) - x_hat * along_c   G <- G + sum over channels c of g_c

(see `acdc.discovery.gradients` for u, x_hat, along and C; in parallel blocks attention takes the G that came in.) While
it runs, hooks let norms, activation functions and gated MLPs return what they always do, with another gradient. Rules
that are all trivial give the gradient itself.

In a causal model nothing that is read before a position depends on it, so the pass takes positions from `start` only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from acdc.activations import Activations, Resid, hooks
from acdc.architectures.anatomy import Block, Norm
from acdc.discovery.gradients import LayerGradient
from acdc.errors import AcdcError
from acdc.transformer import Transformer

Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Rules:
    """What stands in for the derivative. The defaults are the derivative.

    `constant_scale`: the scale of every norm is a constant (those after attention and MLP, of q and k, and the final
    one too); centring and gain are not. `identity_act`: an activation function f passes its gradient on times f(x) / x,
    at 0 times f'(0). `gate`: factor of the gradient at act(gate) * up in a gated MLP. `temperature`: the gradient at
    attention's scores is T times that of softmax(scores / T). `constant_pattern`: it is 0. `q`, `k`, `v`: factors of
    the gradients there.

    Soft-caps, the softmax of a metric, and everything linear keep their derivative.
    """

    constant_scale: bool = False
    identity_act: bool = False
    gate: float = 1.0
    temperature: float = 1.0
    constant_pattern: bool = False
    q: float = 1.0
    k: float = 1.0
    v: float = 1.0

    @property
    def softmax(self) -> Callable[[Tensor], Tensor] | None:
        """The softmax with another gradient; None where the gradient is its own."""
        return self._softmax if self.constant_pattern or self.temperature != 1 else None

    def _softmax(self, scores: Tensor) -> Tensor:
        pattern = scores.softmax(-1)
        if self.constant_pattern:
            return pattern.detach()
        return _straight_through(pattern, self.temperature * (scores / self.temperature).softmax(-1))


TRUE_GRADIENT = Rules()


def check_rules(method: str, model: Transformer, rules: Rules) -> None:
    """Refuses a model whose activation functions have no f(x) / x, or whose adapter does not name them."""
    for block in model.blocks if rules.identity_act or rules.gate != 1 else ():
        if block.mlp_act is None and any(True for _ in block.mlp.parameters()):
            raise AcdcError(
                f"{method} has a rule for activation functions and gates, but the adapter of {type(model.hf).__name__} "
                "does not name those of its MLPs. Give Block its mlp_act, and its gated_down if the MLPs are gated"
            )
        if rules.identity_act and block.mlp_act is not None:
            at_zero = block.mlp_act.forward(torch.zeros((), dtype=model.dtype, device=model.device))
            if at_zero != 0:
                raise AcdcError(
                    f"{method} passes gradients on times f(x) / x, which is not bounded for the activation function "
                    f"{type(block.mlp_act).__name__}: f(0) = {float(at_zero):.3g}, not 0. Use eap or eap_ig"
                )


def backward(
    model: Transformer, run: Activations, loss: Loss, start: int, rules: Rules = TRUE_GRADIENT
) -> tuple[list[LayerGradient], Float[Tensor, "batch d_model"]]:
    """The gradient of `loss` (logits at the last position -> one number a prompt) at every channel of a run.

    Given are those of each layer at positions from `start` (which must be 0 if the model is not causal), and that of
    the logits at the last position. To be called with the weights frozen. Cost: a forward and a backward pass over
    these positions.
    """
    wide = torch.promote_types(model.dtype, torch.float32)
    layers: list[LayerGradient] = []
    with hooks() as add, torch.enable_grad():
        _follow(model, rules, add)
        final = run.final[:, -1].detach().requires_grad_()
        (at_logits,) = torch.autograd.grad(loss(model.logits(final)).sum(), final)
        at_logits = at_logits.to(wide)
        resid = torch.zeros_like(run.final[:, start:], dtype=wide)
        resid[:, -1] = at_logits
        for layer in reversed(range(model.n_layers)):
            mlp = _pulled_back(model.blocks[layer].mlp_output, run.mlp_in[layer][:, start:], resid)
            at_attention = resid if model.parallel else resid + mlp
            u = _projected_gradients(model, layer, run, at_attention, rules, start)
            steps, passed_on = _through_norm(model, layer, run.attn_in[layer][:, start:], u, rules)
            layers.append(LayerGradient(u, steps, mlp))
            resid = resid + mlp + passed_on
    return layers[::-1], at_logits


def _projected_gradients(
    model: Transformer, layer: int, run: Activations, resid: Resid, rules: Rules, start: int
) -> Float[Tensor, "channel batch pos d_head"]:
    """u of the q, k and v channels of every query head, from the gradient at what attention adds to."""
    block, kv = model.blocks[layer], model.kv_head
    at_z = _at_z(block, layer, run, resid, start)
    q = run.q[layer][:, start:].detach().requires_grad_()
    k = run.k[layer][:, :, kv].detach().requires_grad_()
    v = run.v[layer][:, :, kv].detach().requires_grad_()
    z = model.attend(block.attention, q, k, v, start, rules.softmax)
    gradients = torch.autograd.grad(z, (q, k, v), at_z.to(z.dtype), allow_unused=True, materialize_grads=True)
    _, rstd = block.attn_norm.statistics(run.attn_in[layer][:, start:])
    window = rstd.shape[1]
    return torch.cat([
        (gradient[:, -window:] * (factor * rstd[..., None])).permute(2, 0, 1, 3)
        for gradient, factor in zip(gradients, (rules.q, rules.k, rules.v), strict=True)
    ])


def _at_z(
    block: Block, layer: int, run: Activations, resid: Resid, start: int
) -> Float[Tensor, "batch pos head d_head"]:
    """The gradient at each head's z, as attention computes it, from the gradient at what attention adds to."""
    attention, scale = block.attention, run.attn_scale[layer]
    if block.attn_post is not None:
        assert scale is not None
        z = run.z[layer][:, start:] / scale[:, start:, None]
        resid = _pulled_back(block.attn_post, attention.output(z), resid)
    weight = attention.out_weight
    return (resid.to(weight.dtype) @ weight.flatten(0, 1).T).unflatten(-1, weight.shape[:2])


def _through_norm(
    model: Transformer, layer: int, reads: Resid, u: Float[Tensor, "channel batch pos d_head"], rules: Rules
) -> tuple[list[tuple[Resid, Float[Tensor, "channel batch pos"]]], Resid]:
    """The factors x_hat and along of a layer's channels, if scales are not constant; and the sum of its gradients."""
    norm, attention, kv = model.blocks[layer].attn_norm, model.blocks[layer].attention, model.kv_head
    weight = torch.cat([attention.q.weight, attention.k.weight[kv], attention.v.weight[kv]]).to(u.dtype)
    if norm.gain is not None:
        weight = weight * norm.gain
    passed_on = torch.einsum("cbpk,ckd->bpd", u, weight)
    if norm.centered:
        passed_on = passed_on - passed_on.mean(-1, keepdim=True)
    if rules.constant_scale or norm.eps is None:
        return [], passed_on
    x_hat, _ = norm.statistics(reads)
    along = torch.einsum("bpd,ckd,cbpk->cbp", x_hat, weight, u) / x_hat.shape[-1]
    return [(x_hat, along)], passed_on - x_hat * along.sum(0)[..., None]


def _pulled_back(function: Callable[[Tensor], Tensor], x: Tensor, gradient: Tensor) -> Tensor:
    """The gradient at x, from that at function(x); 0 where the function ignores x."""
    x = x.detach().contiguous().requires_grad_()
    y = function(x)
    if not y.requires_grad:
        return torch.zeros_like(gradient)
    return torch.autograd.grad(y, x, gradient.to(y.dtype))[0].to(gradient.dtype)


def _straight_through(value: Tensor, surrogate: Tensor) -> Tensor:
    """The value, to the last bit, with the gradient of the surrogate."""
    return value.detach() + (surrogate - surrogate.detach()).to(value)


def _follow(model: Transformer, rules: Rules, add: Callable[[Any], None]) -> None:
    """Hooks the modules that a reverse pass calls so that they follow the rules."""
    norms = [model.anatomy.final_norm]
    for block in model.blocks:
        attention = block.attention
        norms += [norm for norm in (block.mlp_norm, block.mlp_post, block.attn_post, attention.q_norm, attention.k_norm)
                  if norm is not None]
        if rules.identity_act and block.mlp_act is not None:
            add(block.mlp_act.register_forward_hook(_identity_rule))
        if rules.gate != 1 and block.gated_down is not None:
            add(block.gated_down.register_forward_pre_hook(_scales_gradient(rules.gate)))
    for norm in norms if rules.constant_scale else []:
        if norm.eps is not None:
            add(norm.module.register_forward_hook(_constant_scale(norm)))


def _constant_scale(norm: Norm) -> Any:
    def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        (x,) = args
        _, rstd = norm.statistics(x.detach())
        surrogate = (x - x.mean(-1, keepdim=True) if norm.centered else x) * rstd
        return _straight_through(output, surrogate if norm.gain is None else surrogate * norm.gain)

    return hook


def _identity_rule(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
    (x,) = args
    with torch.enable_grad():
        zero = torch.zeros((), dtype=x.dtype, device=x.device, requires_grad=True)
        (slope,) = torch.autograd.grad(module.forward(zero), zero)  # not through this hook
    at_zero = x.detach().abs() < torch.finfo(x.dtype).tiny
    factor = torch.where(at_zero, slope, output.detach() / x.detach())
    return _straight_through(output, x * factor)


def _scales_gradient(factor: float) -> Any:
    def hook(module: nn.Module, args: tuple) -> tuple[Tensor]:
        (x,) = args
        return (_straight_through(x, factor * x),)

    return hook
