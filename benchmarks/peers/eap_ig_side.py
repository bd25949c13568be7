"""The peer's side of `scores`: what EAP-IG's library scores, run in an environment that holds TransformerLens.

    python eap_ig_side.py request.json answer.json

It imports nothing of acdc. The request names the library's source folder, a folder that `save_pretrained` wrote,
prompts, and runs; the answer says how far the logits are from HuggingFace's, and each run's score of every edge. The
library is used as it is, but for two things that it takes for granted: a GPU (tensors that it asks for on `cuda` are
made on the CPU) and texts (tokens are passed as they are).
"""

import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class OnCpu(TorchFunctionMode):
    """What asks for the device `cuda` gets the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("device") == "cuda":
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


def tokens_as_given(model: Any, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """What the library's `tokenize_plus` returns, for prompts of one length: tokens, mask, lengths, length."""
    n, length = tokens.shape
    return tokens, torch.ones(n, length, dtype=torch.long), torch.full((n,), length), length


def _difference(logits: torch.Tensor, clean: torch.Tensor, lengths: torch.Tensor, labels: torch.Tensor
                ) -> torch.Tensor:
    at_end = logits[:, -1]
    return at_end.gather(1, labels[:, 1:])[:, 0] - at_end.gather(1, labels[:, :1])[:, 0]  # wrong - answer: a loss


def _divergence(logits: torch.Tensor, clean: torch.Tensor, lengths: torch.Tensor, labels: torch.Tensor
                ) -> torch.Tensor:
    reference = clean[:, -1].log_softmax(-1)
    return (reference.exp() * (reference - logits[:, -1].log_softmax(-1))).sum(-1)


LOSSES: dict[str, Callable[..., torch.Tensor]] = {"logit_difference": _difference, "kl_divergence": _divergence}


def reduced(loss: str, how: str) -> Callable[..., torch.Tensor]:
    """The loss of a batch: the `sum` over its prompts, their `mean` as in the library's notebooks, or `each`."""
    def metric(*arguments: Any) -> torch.Tensor:
        values = LOSSES[loss](*arguments)
        return values if how == "each" else getattr(values, how)()

    return metric


def score(model: Any, given: dict[str, torch.Tensor], run: dict[str, Any]) -> dict[str, float]:
    """The score of every edge by one call of the library."""
    from eap.attribute import attribute  # pyright: ignore[reportMissingImports]
    from eap.graph import Graph  # pyright: ignore[reportMissingImports]

    graph = Graph.from_model(model)
    size = run.get("batch_size", len(given["clean"]))
    labels = torch.stack([given["answer"], given["wrong"]], dim=1)
    rows = [slice(i, i + size) for i in range(0, len(labels), size)]
    batches = [(given["clean"][i], given["corrupted"][i], labels[i]) for i in rows]
    means = [(given["corrupted"][i], None, None) for i in rows]
    metric = reduced(run["loss"], run.get("reduce", "sum"))
    with OnCpu():
        attribute(model, graph, batches, metric, method=run["method"], intervention=run.get("intervention", "patching"),
                  ig_steps=run.get("steps"), intervention_dataloader=means, quiet=True)
    return {name: float(edge.score) for name, edge in graph.edges.items()}


def load(source: str) -> None:
    """Makes the library importable from its source folder, a checkout or a git directory."""
    sys.path.insert(0, source)
    import eap.attribute  # pyright: ignore[reportMissingImports]
    import eap.evaluate  # pyright: ignore[reportMissingImports]
    import eap.utils  # pyright: ignore[reportMissingImports]

    assert Path(eap.attribute.__file__).is_relative_to(Path(source).resolve()), "another `eap` is imported"
    for module in (eap.attribute, eap.evaluate):
        module.tokenize_plus = tokens_as_given
    eap.utils.tokenize_plus = lambda model, tokens, max_length=None: tokens_as_given(model, tokens)
    for module in (eap.attribute, eap.evaluate, eap.utils):
        module.tqdm = lambda items, **_: items


def run(request: dict[str, Any]) -> dict[str, Any]:
    from auto_circuit_side import LOGITS_TOLERANCE, hooked  # pyright: ignore[reportMissingImports]
    from transformers import GPT2LMHeadModel

    torch.set_num_threads(request["threads"])
    load(request["source"])
    given = {key: torch.tensor(request[key]) for key in ("clean", "corrupted", "answer", "wrong")}
    hf = GPT2LMHeadModel.from_pretrained(request["folder"]).eval()
    model = hooked(hf)
    if not hasattr(model.cfg, "use_normalization_before_and_after"):  # TransformerLens before 2.0
        model.cfg.use_normalization_before_and_after = False
    with torch.no_grad():
        difference = max(float((model(given[k]) - hf(given[k]).logits).abs().max()) for k in ("clean", "corrupted"))
    assert difference < LOGITS_TOLERANCE, f"TransformerLens' logits differ from HuggingFace's by {difference}"
    versions = {name: version(name) for name in ("transformer-lens", "torch")}
    return {"versions": versions, "logits_difference": difference,
            "scores": [score(model, given, each) for each in request["runs"]]}


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps(run(request)))


if __name__ == "__main__":
    main()
