"""auto-circuit's side: its ACDC and its mask gradients (1.0.1), run in an environment that holds it.

    python auto_circuit_side.py request.json answer.json

It imports nothing of acdc, and auto-circuit only when it runs. The request names a folder that `save_pretrained` wrote,
prompts, and either a threshold with orders of the edges, or functions of the logits whose gradient is wanted. The
answer says how far the logits are from HuggingFace's, and what each run kept or scored, in acdc's names. Within a layer
auto-circuit goes through edges in the order of a Python set, which no seed fixes before Python 3.12 (None is hashed by
its address). Its sort by layer is stable, so a list in the set's place gives the order within each layer.
"""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

LOGITS_TOLERANCE = 1e-4


def hooked(hf: Any) -> Any:
    """The same model in TransformerLens: weights rearranged, nothing folded or centred."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig  # pyright: ignore[reportMissingImports]
    from transformer_lens.loading_from_pretrained import (  # pyright: ignore[reportMissingImports]
        convert_gpt2_weights,
    )

    config = hf.config
    model = HookedTransformer(HookedTransformerConfig(
        n_layers=config.n_layer, n_heads=config.n_head, d_model=config.n_embd, d_head=config.n_embd // config.n_head,
        d_mlp=4 * config.n_embd, n_ctx=config.n_positions, d_vocab=config.vocab_size, eps=config.layer_norm_epsilon,
        act_fn=config.activation_function, normalization_type="LN", device="cpu",
        use_attn_result=True, use_split_qkv_input=True, use_hook_mlp_in=True,
    ))
    model.load_and_process_state_dict(
        convert_gpt2_weights(hf, model.cfg), fold_ln=False, center_writing_weights=False, center_unembed=False,
        fold_value_biases=False,
    )
    return model.eval()


def name_of(edge: Any) -> str:
    """acdc's name of an auto-circuit edge: A0.1->A2.3.Q is a0.h1->a2.h3<q>."""
    fixed = {"Resid Start": "input", "Resid End": "logits"}

    def node(name: str) -> str:
        if name in fixed:
            return fixed[name]
        if name.startswith("MLP "):
            return f"m{name.removeprefix('MLP ')}"
        layer, head, *letter = name.removeprefix("A").split(".")
        return f"a{layer}.h{head}" + (f"<{letter[0].lower()}>" if letter else "")

    return f"{node(edge.src.name)}->{node(edge.dest.name)}"


def run(request: dict[str, Any]) -> dict[str, Any]:
    from auto_circuit.data import PromptDataLoader, PromptDataset  # pyright: ignore[reportMissingImports]
    from auto_circuit.utils.graph_utils import patchable_model  # pyright: ignore[reportMissingImports]
    from transformers import GPT2LMHeadModel

    torch.set_num_threads(request["threads"])
    clean, corrupted = torch.tensor(request["clean"]), torch.tensor(request["corrupted"])
    hf = GPT2LMHeadModel.from_pretrained(request["folder"]).eval()
    lens = hooked(hf)
    with torch.no_grad():
        difference = max(float((lens(tokens) - hf(tokens).logits).abs().max()) for tokens in (clean, corrupted))
    assert difference < LOGITS_TOLERANCE, f"TransformerLens' logits differ from HuggingFace's by {difference}"
    model = patchable_model(lens, factorized=True, slice_output="last_seq", separate_qkv=True)
    answers, wrong = (list(torch.tensor(request[key])[:, None]) for key in ("answer", "wrong"))  # KL reads none
    loader = PromptDataLoader(PromptDataset(clean, corrupted, answers, wrong), seq_len=None, diverge_idx=0,
                              batch_size=request.get("batch_size", len(clean)), shuffle=False)
    edges = {name_of(edge): edge for edge in model.edges}
    assert len(edges) == model.n_edges
    versions = {name: version(name) for name in ("auto-circuit", "transformer-lens", "torch")}
    return {"versions": versions, "logits_difference": difference,
            "runs": [decide(model, loader, edges, order, request["threshold"]) for order in request.get("orders", [])],
            "scores": [gradients(model, loader, edges, function) for function in request.get("functions", [])]}


def decide(model: Any, loader: Any, edges: dict[str, Any], order: list[str], threshold: float) -> dict[str, Any]:
    """ACDC, going through the edges of a layer in the given order."""
    from auto_circuit.prune_algos.ACDC import acdc_prune_scores  # pyright: ignore[reportMissingImports]

    assert sorted(order) == sorted(edges), "the graphs have other edges"
    model.edges = [edges[name] for name in order]
    tried = [name_of(edge) for edge in sorted(model.edges, key=lambda edge: edge.dest.layer, reverse=True)]
    start = time.perf_counter()
    scores = acdc_prune_scores(model, loader, None, tao_exps=[0], tao_bases=[threshold])
    seconds = time.perf_counter() - start
    kept = [name for name in tried if torch.isinf(edges[name].prune_score(scores))]
    print(f"auto-circuit: {seconds:.1f} s, {len(kept):,} of {len(tried):,} edges kept", file=sys.stderr)
    return {"seconds": seconds, "tried": tried, "kept": kept}


def gradients(model: Any, loader: Any, edges: dict[str, Any], function: str) -> dict[str, float]:
    """The gradient at every edge's mask, with nothing cut, of the difference between the answers' logits or
    probabilities (`function`): edge attribution patching."""
    from auto_circuit.prune_algos.mask_gradient import mask_gradient_prune_scores  # pyright: ignore

    scores = mask_gradient_prune_scores(model, loader, None, grad_function=function, answer_function="avg_diff",
                                        mask_val=0.0)
    return {name: float(edge.prune_score(scores)) for name, edge in edges.items()}


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps(run(request)))


if __name__ == "__main__":
    main()
