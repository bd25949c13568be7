"""Which model families are understood: HuggingFace `model_type` -> adapter.

An adapter is one function from the HF model to its `Anatomy`. To add a family, write that function in a file here,
list it in ARCHITECTURES, and load a model: the parity check compares every logit with HF's own.
"""

from collections.abc import Callable
from typing import Any

from acdc.architectures.anatomy import Anatomy
from acdc.architectures.gemma import gemma
from acdc.architectures.gpt2 import gpt2
from acdc.architectures.gpt_neox import gpt_neox
from acdc.architectures.llama import llama
from acdc.architectures.vit import read_patches, vit
from acdc.errors import AcdcError

ARCHITECTURES: dict[str, Callable[[Any], Anatomy]] = {
    "gpt2": gpt2,
    "gpt_neox": gpt_neox,
    "llama": llama,
    "mistral": llama,
    "qwen2": llama,
    "qwen3": llama,
    "gemma2": gemma,
    "gemma3_text": gemma,
    "vit": vit,
}

READERS: dict[str, Callable[[Any, Any], Any]] = {"vit": read_patches}
"""What makes a model that takes tokens of one that does not, given its tokenizer."""

HOW_TO_ADD = (
    "To add one, write an adapter (one function that says where the model keeps its norms, projections and MLPs) in "
    "acdc/architectures/ and list it in ARCHITECTURES; docs/adding_a_model.md shows how"
)


def reads_images(config: Any) -> bool:
    """Whether a model of this config takes images, which its tokenizer (a `PatchTable`) turns into tokens."""
    return config.model_type in READERS


def taking_tokens(hf: Any, tokenizer: Any) -> Any:
    """The model itself, or inside one that takes tokens where it reads something else."""
    reader = READERS.get(_model_type(hf) or "")
    return hf if reader is None else reader(hf, tokenizer)


def _model_type(hf: Any) -> str | None:
    return getattr(getattr(hf, "config", None), "model_type", None)


def anatomy_of(hf: Any) -> Anatomy:
    """The parts of a HuggingFace causal language model, or an error that names the architecture."""
    name = type(hf).__name__
    model_type = _model_type(hf)
    if model_type not in ARCHITECTURES:
        raise AcdcError(
            f"the architecture of {name} (model_type {model_type!r}) is not supported. Supported: "
            f"{', '.join(ARCHITECTURES)}. {HOW_TO_ADD}"
        )
    if not callable(getattr(hf, "get_output_embeddings", None)) or hf.get_output_embeddings() is None:
        raise AcdcError(
            f"{name} has no unembedding; load the causal language model (AutoModelForCausalLM), not its body"
        )
    _check_rotary(hf)
    try:
        return ARCHITECTURES[model_type](hf)
    except AttributeError as error:
        raise AcdcError(
            f"{name} says it is a {model_type!r} model but is not built like one: {error}. {HOW_TO_ADD}"
        ) from error


def _check_rotary(hf: Any) -> None:
    """Refuses rotary embeddings whose frequencies depend on the lengths of earlier prompts: no run would repeat."""
    parameters = getattr(hf.config, "rope_parameters", None) or {}
    kinds = {of.get("rope_type") for of in (parameters, *parameters.values()) if isinstance(of, dict)}
    unsteady = kinds & {"dynamic", "longrope"}
    if unsteady:
        raise AcdcError(
            f"{type(hf).__name__} has a rotary embedding of type {unsteady.pop()!r}, which HuggingFace computes from "
            "the lengths of the prompts seen so far, so results would depend on what ran before. Load it with a "
            "rope_type such as 'default', 'linear', 'yarn' or 'llama3'"
        )
