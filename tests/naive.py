"""An independent, slow circuit run: HF's own modules called once for every head and channel, in plain autograd.

It shares no code with the engine: attention is HF's, called again for each head with hooks that swap the inputs of its
projections; contributions are added up one by one.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

PARTS = {
    "gpt2": ("transformer.h", "ln_1", "attn", "ln_2", "c_proj", None, None, "transformer.ln_f"),
    "gpt_neox": ("gpt_neox.layers", "input_layernorm", "attention", "post_attention_layernorm", "dense", None, None,
                 "gpt_neox.final_layer_norm"),
    "llama": ("model.layers", "input_layernorm", "self_attn", "post_attention_layernorm", "o_proj", None, None,
              "model.norm"),
    "gemma": ("model.layers", "input_layernorm", "self_attn", "pre_feedforward_layernorm", "o_proj",
              "post_attention_layernorm", "post_feedforward_layernorm", "model.norm"),
    "vit": ("hf.vit.layers", "layernorm_before", "attention", "layernorm_after", "o_proj", None, None,
            "hf.vit.layernorm"),
}


class NaiveModel:
    """Runs an HF model node by node, with full control over what every channel reads."""

    def __init__(self, hf: Any) -> None:
        self.hf, kind = hf, hf.config.model_type
        family = "gemma" if kind.startswith("gemma") else kind if kind in PARTS else "llama"
        path, *names, final = PARTS[family]
        self.attn_norm, self.attn, self.mlp_norm, self.out, self.attn_post, self.mlp_post = names
        self.layers, self.final_norm = list(hf.get_submodule(path)), hf.get_submodule(final)
        self.parallel = kind == "gpt_neox" and hf.config.use_parallel_residual
        self.n_heads = hf.config.num_attention_heads
        self.read_at = 0 if kind == "vit" else -1  # HF's order of positions: CLS is the first

    def body_calls(self, tokens: Tensor) -> tuple[Tensor, list[dict]]:
        """What the first block reads, and the arguments that HF gives to each attention besides hidden states."""
        seen: list[dict] = []
        first: list[Tensor] = []
        handles = [self.layers[0].register_forward_pre_hook(lambda m, a, k: first.append(a[0]), with_kwargs=True)]
        for layer in self.layers:
            def note(module: Any, args: tuple, kwargs: dict) -> None:
                seen.append({k: v for k, v in kwargs.items() if k != "hidden_states"})
            handles.append(getattr(layer, self.attn).register_forward_pre_hook(note, with_kwargs=True))
        with torch.no_grad():
            self.hf(tokens, use_cache=False)
        for handle in handles:
            handle.remove()
        return first[0], seen

    def head_z(self, layer: Any, kwargs: dict, head: int, normed: dict[str, Tensor]) -> Tensor:
        """z of one head when its q, k and v projections read three different inputs."""
        attn, captured = getattr(layer, self.attn), []

        def z_hook(module: Any, args: tuple) -> None:
            captured.append(args[0])

        handles = [getattr(attn, self.out).register_forward_pre_hook(z_hook)]
        if hasattr(attn, "q_proj"):
            for letter in "qkv":
                module = getattr(attn, f"{letter}_proj")
                handles.append(module.register_forward_pre_hook(lambda m, a, x=normed[letter]: (x,)))
        else:
            module = attn.c_attn if hasattr(attn, "c_attn") else attn.query_key_value
            outputs = {letter: module(x) for letter, x in normed.items()}
            width = outputs["q"].shape[-1] // 3

            def mix(m: Any, a: tuple, out: Tensor) -> Tensor:
                if hasattr(attn, "c_attn"):
                    return torch.cat([outputs[x][..., i * width : (i + 1) * width] for i, x in enumerate("qkv")], -1)
                parts = [outputs[x].unflatten(-1, (self.n_heads, 3, -1))[..., i, :] for i, x in enumerate("qkv")]
                return torch.stack(parts, dim=-2).flatten(-3)

            handles.append(module.register_forward_hook(mix))
        attn(hidden_states=normed["q"], **kwargs)
        for handle in handles:
            handle.remove()
        return captured[0].unflatten(-1, (self.n_heads, -1))[..., head, :]

    def head_weight(self, layer: Any, head: int) -> Tensor:
        out = getattr(getattr(layer, self.attn), self.out)
        weight = out.weight if self.out == "c_proj" else out.weight.T
        return weight.unflatten(0, (self.n_heads, -1))[head]

    def run(self, tokens: Tensor, graph: Any, kept: Any = None, replaced: dict[str, Tensor] | None = None,
            embedding: Tensor | None = None, leaves: dict[str, Tensor] | None = None,
            groups: Tensor | None = None, edit: Callable[[str, Tensor], Tensor] = lambda name, x: x,
            ) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits at the last position and every src's contribution.

        `kept`, `replaced`: an edge that is not kept carries its src's value in `replaced`. `leaves`: is filled with
        what each channel reads, as tensors to differentiate by. `groups`: each token's place among `graph.positions`.
        `edit`: what a src writes, given its name and what it computes.
        """
        first, calls = self.body_calls(tokens)
        wrote = {"input": edit("input", first if embedding is None else embedding)}
        bias_sum = torch.zeros_like(first)

        def read(channel: str) -> Tensor:
            total = bias_sum.clone()
            for i, src in enumerate(graph.srcs[: graph.n_srcs_read[graph.channel_index[channel]]]):
                edge = f"{src.name}->{channel}"
                assert i < len(wrote)
                if graph.positions and kept is not None:
                    assert groups is not None and replaced is not None
                    at = [p for p in graph.positions if channel != "logits" or p == graph.positions[-1]]
                    now = [graph.positions.index(p) for p in at if kept[graph.edge(f"{edge}@{p}")]]
                    where = torch.isin(groups, torch.tensor(now, dtype=torch.long))[..., None]
                    total = total + torch.where(where, wrote[src.name], replaced[src.name])
                    continue
                is_kept = kept is None or kept[graph.edge(edge)]
                total = total + (wrote[src.name] if is_kept else replaced[src.name])  # type: ignore[index]
            if leaves is not None:
                total = total + 0.0 if total.requires_grad else total.requires_grad_()
                leaves[channel] = total
            return total

        for i, (layer, kwargs) in enumerate(zip(self.layers, calls, strict=True)):
            norm = getattr(layer, self.attn_norm)
            raws = []
            for h in range(self.n_heads):
                normed = {letter: norm(read(f"a{i}.h{h}<{letter}>")) for letter in "qkv"}
                raws.append(self.head_z(layer, kwargs, h, normed) @ self.head_weight(layer, h))
            bias = getattr(getattr(layer, self.attn), self.out).bias
            if self.attn_post:
                post = getattr(layer, self.attn_post)
                total = sum(raws)
                rstd = self.rstd(total, post)
                raws = [raw * rstd * (1 + post.weight) for raw in raws]
            heads = {f"a{i}.h{h}": edit(f"a{i}.h{h}", raw) for h, raw in enumerate(raws)}
            if self.parallel:
                wrote_mlp = self.mlp(layer, read(f"m{i}"))
                wrote.update(heads)
                bias_sum = bias_sum if bias is None else bias_sum + bias
            else:
                wrote.update(heads)
                bias_sum = bias_sum if bias is None else bias_sum + bias
                wrote_mlp = self.mlp(layer, read(f"m{i}"))
            wrote[f"m{i}"] = edit(f"m{i}", wrote_mlp)
        logits = self.hf.get_output_embeddings()(self.final_norm(read("logits")))[:, self.read_at]
        cap = getattr(self.hf.config, "final_logit_softcapping", None)
        return (logits if cap is None else torch.tanh(logits / cap) * cap), wrote

    def rstd(self, x: Tensor, norm: Any) -> Tensor:
        return torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.eps)

    def mlp(self, layer: Any, x: Tensor) -> Tensor:
        out = layer.mlp(getattr(layer, self.mlp_norm)(x))
        return getattr(layer, self.mlp_post)(out) if self.mlp_post else out
