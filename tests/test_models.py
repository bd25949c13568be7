"""A model is loaded from an object, a folder or a name, and refused where it is not what it says to be."""

import json

import pytest
import torch
from conftest import make_batch
from safetensors.torch import load_file, save_file
from tiny_models import CONFIGS, GPT2, VOCAB, tiny_hf
from tiny_tokenizer import tiny_tokenizer
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaForSequenceClassification,
    LlamaModel,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from acdc.ablation import prepare_ablation
from acdc.architectures import ARCHITECTURES
from acdc.circuit import Circuit
from acdc.errors import AcdcError
from acdc.models import TOLERANCE, check_parity, check_prompts, load_model, load_tokenizer, weights_hash
from acdc.patching import run_circuit
from acdc.task import Batch, Example

TOKENIZER = tiny_tokenizer()
TOKENS = torch.arange(10)[None]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    tiny_hf("llama").save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    """Copies the saved model, and lets its config and weights be changed."""

    def make(change_weights=lambda weights: None, **config):
        for file in saved.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        weights = load_file(tmp_path / "model.safetensors")
        change_weights(weights)
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        known = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(known | config))
        return tmp_path

    return make


def test_object_and_folder_are_the_same_model(saved):
    hf = tiny_hf("llama")
    of_object, of_path, of_name = load_model(hf, TOKENIZER), load_model(saved), load_model(str(saved))
    assert of_object.hf is hf and of_object.tokenizer is TOKENIZER
    assert (of_object.name, of_path.name, of_name.name) == ("LlamaForCausalLM", str(saved), str(saved))
    assert weights_hash(of_object) == weights_hash(of_path) == weights_hash(of_name)
    assert of_path.tokenizer("When Adam")["input_ids"] == TOKENIZER("When Adam")["input_ids"]
    assert load_model(saved, TOKENIZER).tokenizer is TOKENIZER
    assert not of_path.hf.training
    with torch.no_grad():
        assert torch.equal(of_path.hf(TOKENS).logits, hf(TOKENS).logits)


def test_dtype(saved):
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float64", torch.float64)):
        for wanted in (name, dtype):
            assert load_model(saved, dtype=wanted).dtype == dtype
        assert load_model(tiny_hf("llama", dtype)).dtype == dtype
    assert load_model(saved).dtype == torch.float32
    assert load_model(tiny_hf("llama"), dtype="float64").dtype == torch.float64


def test_float16_is_refused_and_the_object_stays_as_it_is(saved):
    hf = tiny_hf("llama")
    for source in (saved, hf):
        for dtype in ("float16", torch.float16):
            with pytest.raises(AcdcError, match="unknown dtype 'float16'.*Known: float32, bfloat16, float64"):
                load_model(source, dtype=dtype)
    assert hf.dtype == torch.float32
    with pytest.raises(AcdcError, match="LlamaForCausalLM is in torch.float16; use one of float32"):
        load_model(hf.half())


def test_parity_is_within_the_tolerance(family):
    hf = tiny_hf(family, torch.float64)
    model = load_model(hf)
    with torch.no_grad():
        largest = max(1.0, float(hf(TOKENS).logits.abs().max()))
    assert check_parity(model) <= (1e-4 if "gemma" in family else 1e-12) * largest


def scaled(factor):
    """A hook that multiplies what a module returns."""

    def hook(module, args, out):
        return (out[0] * factor, *out[1:]) if isinstance(out, tuple) else out * factor

    return hook


ALTERED = {
    "llama": lambda hf: hf.model.layers[1].self_attn,
    "gpt2": lambda hf: hf.transformer.h[2].attn,
    "gpt_neox": lambda hf: hf.gpt_neox.layers[0].attention,
    "gemma2": lambda hf: hf.model.layers[2],
    "qwen3": lambda hf: hf.model.layers[0],
}


@pytest.mark.parametrize("family", ALTERED)
def test_what_the_adapter_does_not_know_of_is_refused_by_name_and_number(family):
    """Such as a multiplier after attention, or one of the whole residual stream."""
    hf = tiny_hf(family)
    load_model(hf)
    ALTERED[family](hf).register_forward_hook(scaled(1.05))
    name = rf"{type(hf).__name__} \(model_type '{hf.config.model_type}'\)"
    with pytest.raises(AcdcError, match=rf"{name} is not the architecture it says: .* up to \d"):
        load_model(hf)


def test_the_number_is_the_largest_difference():
    hf = tiny_hf("llama")

    def adds(module, args, out):
        out.logits[1, 3, 5] += 0.5
        return out

    hf.register_forward_hook(adds)
    with pytest.raises(AcdcError, match=r"differ from HuggingFace's by up to 0\.5 \(tolerance .*docs/adding_a_model"):
        load_model(hf)


@pytest.mark.parametrize(("vocab", "length"), [(2, 64), (6, 64), (12, 64), (7919, 64), (6, 2), (97, 1)])
def test_parity_sees_through_small_and_odd_vocabularies(vocab, length):
    """The two probe prompts differ whatever the vocabulary: between equal ones nothing would travel."""
    hf = GPT2LMHeadModel(GPT2Config(**{**GPT2, "vocab_size": vocab, "n_positions": length}))
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.mul_(3)
    load_model(hf)
    hf.transformer.h[0].attn.register_forward_hook(scaled(1.5))
    with pytest.raises(AcdcError, match="is not the architecture it says"):
        load_model(hf)


@pytest.mark.parametrize("window", [3, 40])
def test_the_probe_is_longer_than_short_windows(window):
    config = MistralConfig(**{**CONFIGS["mistral"].to_dict(), "sliding_window": window})
    model = load_model(MistralForCausalLM(config).eval())
    with torch.no_grad():
        for parameter in model.hf.parameters():
            parameter.mul_(3)
    model.hf.config.sliding_window = None  # HF reads it at every forward, the adapter has read it
    with pytest.raises(AcdcError, match="is not the architecture it says"):
        check_parity(model)


def test_unsupported_architectures_are_named_with_what_to_do():
    opt = OPTConfig(hidden_size=8, ffn_dim=8, num_attention_heads=2, num_hidden_layers=1, vocab_size=VOCAB,
                    word_embed_proj_dim=8)
    bloom = BloomConfig(hidden_size=8, n_head=2, n_layer=1, vocab_size=VOCAB)
    cases = {"'opt'": OPTForCausalLM(opt), "'bloom'": BloomForCausalLM(bloom), "None": torch.nn.Linear(2, 2)}
    for name, hf in cases.items():
        with pytest.raises(AcdcError) as error:
            load_model(hf, dtype="float64")
        message = str(error.value)
        assert f"{type(hf).__name__} (model_type {name}) is not supported" in message
        assert all(known in message for known in ARCHITECTURES) and "To add one, write an adapter" in message
        assert next(hf.parameters()).dtype == torch.float32
    with pytest.raises(AcdcError, match="cannot load a model from int; give a name, a path or a HuggingFace model"):
        load_model(3)


@pytest.mark.parametrize("body", [LlamaModel, LlamaForSequenceClassification, GPT2Model])
def test_a_body_without_its_head_is_refused(body):
    config = CONFIGS["gpt2" if body is GPT2Model else "llama"]
    with pytest.raises(AcdcError, match=f"{body.__name__} has no unembedding; load the causal language model"):
        load_model(body(config))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(bad):
    hf = tiny_hf("llama")
    hf.model.layers[1].mlp.up_proj.weight.data[3, 2] = bad
    with pytest.raises(AcdcError, match=r"these weights are not finite: model\.layers\.1\.mlp\.up_proj\.weight\."):
        load_model(hf)


def test_finite_weights_that_overflow():
    hf = tiny_hf("llama")
    hf.lm_head.weight.data.mul_(1e38)
    with pytest.raises(AcdcError, match="all weights are finite, so it overflows"):
        load_model(hf)


def test_weights_hash_tells_weights_and_nothing_else():
    hf = tiny_hf("llama")
    model = load_model(hf)
    before = weights_hash(model)
    hf.train()
    hf.requires_grad_(False)
    hf.model.norm.weight.grad = torch.ones(24)
    hf.lm_head.weight.data = hf.lm_head.weight.data.T.contiguous().T  # the same numbers, in another order in memory
    hf.config._name_or_path = "elsewhere"
    assert weights_hash(model) == before == weights_hash(load_model(tiny_hf("llama")))
    others = [before, *(weights_hash(load_model(tiny_hf(family), dtype="float64")) for family in ("llama", "qwen2"))]
    for name, parameter in hf.named_parameters():
        if name in ("model.norm.weight", "model.layers.2.self_attn.k_proj.weight"):
            parameter.data.view(-1)[-1] += 1e-6
            others.append(weights_hash(model))
    norms = [block.input_layernorm.weight for block in hf.model.layers]
    norms[0].data, norms[1].data = norms[1].data, norms[0].data  # the same numbers under other names
    others.append(weights_hash(model))
    hf.lm_head.weight.data = hf.lm_head.weight.data.reshape(24, VOCAB)  # the same numbers in another shape
    others.append(weights_hash(model))
    hf.model.norm.gain = hf.model.norm.weight  # and under another name
    del hf.model.norm.weight
    others.append(weights_hash(model))
    assert len(set(others)) == 8 and all(len(digest) == 64 for digest in others)


@pytest.mark.parametrize("causal", [True, False])
def test_compiled_models(causal):
    """Identity norms, relu, an MLP without effect; causal or not."""
    hf, batch = tiny_hf("gpt2_compiled"), make_batch()
    model = load_model(hf, causal=causal)
    assert check_parity(model) < 1e-5
    everything = Circuit.from_edges(model.graph(), []).complement()
    ours = run_circuit(model, batch, everything, prepare_ablation(model, [batch])(batch), all_positions=True)
    with torch.no_grad():
        expected = hf(batch.clean, attention_mask=model.full_mask(batch.clean)).logits
        assert torch.allclose(expected, hf(batch.clean).logits, atol=1e-3) == causal
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


def test_dropout_is_off_inside_and_on_again_outside():
    hf = GPT2LMHeadModel(GPT2Config(**GPT2, attn_pdrop=0.5, embd_pdrop=0.5, resid_pdrop=0.5)).train()
    hf.transformer.h[1].eval()
    hf.transformer.wpe.weight.requires_grad_(False)
    modes = [module.training for module in hf.modules()]
    model, batch = load_model(hf), make_batch()
    replacement = prepare_ablation(model, [batch])(batch)
    everything = Circuit.from_edges(model.graph(), []).complement()
    ours = run_circuit(model, batch, everything, replacement)
    assert [module.training for module in hf.modules()] == modes and True in modes and False in modes
    assert [name for name, weight in hf.named_parameters() if not weight.requires_grad] == ["transformer.wpe.weight"]
    with torch.no_grad():
        torch.testing.assert_close(ours, hf.eval()(batch.clean).logits[:, -1], atol=1e-5, rtol=0)


def pop(*names):
    def change(weights):
        for name in names:
            weights.pop(name)

    return change


DAMAGED = {
    "lack weights of LlamaForCausalLM: model.norm.weight. Random": lambda copy: copy(pop("model.norm.weight")),
    "lack weights of LlamaForCausalLM: lm_head.weight. Random": lambda copy: copy(pop("lm_head.weight")),
    "(9 in all)": lambda copy: copy(num_hidden_layers=4),
    "lack weights of GPT2LMHeadModel": lambda copy: copy(model_type="gpt2"),
    "have other shapes for weights of LlamaForCausalLM: lm_head.weight, model.embed": lambda copy: copy(vocab_size=98),
    "not a multiple of the number of attention heads (5)": lambda copy: copy(num_attention_heads=5),
    "has no layers": lambda copy: copy(num_hidden_layers=0),
    "does not recognize this architecture": lambda copy: copy(model_type="nonsense"),
    "(model_type 'bert') is not supported": lambda copy: copy(model_type="bert", architectures=["BertLMHeadModel"]),
}


@pytest.mark.parametrize("message", DAMAGED)
def test_folders_that_do_not_hold_the_whole_model(copy, message):
    folder = DAMAGED[message](copy)
    with pytest.raises(AcdcError) as error:
        load_model(folder)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("file", "content"), [
    ("tokenizer_config.json", "[1]"), ("tokenizer_config.json", '{"added_tokens_decoder": [1]}'),
    ("tokenizer.json", '{"version": "1.0", "model": {"type": "x"}}'), ("tokenizer.json", "[]")])
def test_a_tokenizer_that_is_damaged(copy, file, content):
    folder = copy()
    (folder / file).write_text(content)
    with pytest.raises(AcdcError, match="cannot load a tokenizer for") as error:
        load_tokenizer(str(folder))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_files_that_are_damaged_or_absent(copy, file):
    folder = copy()
    content = (folder / file).read_bytes()
    for damage in (lambda path: path.write_bytes(content[: len(content) // 2]), lambda path: path.unlink()):
        damage(folder / file)
        with pytest.raises(AcdcError, match="holds no model that can be loaded") as error:
            load_model(folder)
        assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_weights_that_are_not_used_are_warned_of(copy, caplog):
    load_model(copy(num_hidden_layers=2))
    (record,) = [record for record in caplog.records if record.name == "acdc"]
    assert "LlamaForCausalLM does not use all weights" in record.message and "model.layers.2." in record.message


def test_code_in_the_folder_is_not_run(copy):
    folder = copy(auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})
    (folder / "own.py").write_text(f"open({str(folder / 'was_run')!r}, 'w')\n")
    assert type(load_model(folder).hf).__module__ == "transformers.models.llama.modeling_llama"
    assert not (folder / "was_run").exists()


def test_a_folder_goes_before_a_packaged_name(saved, tmp_path, monkeypatch):
    (tmp_path / "smollm2").symlink_to(saved)
    monkeypatch.chdir(tmp_path)
    assert load_model("smollm2").n_layers == 3


def test_prompts_that_the_model_has_no_embeddings_for():
    model = load_model(tiny_hf("gpt2"))
    check_prompts(model, [make_batch(), make_batch(2, 64)])
    with pytest.raises(AcdcError, match="'prompt 0' has 65 tokens, but GPT2LMHeadModel takes at most 64"):
        check_prompts(model, [make_batch(), make_batch(2, 65)])
    tokens = torch.full((2, 3), VOCAB - 1)
    examples = (Example("one", "1", " a", " b"), Example("two", "2", " a", " b"))
    check_prompts(model, [Batch(tokens, tokens, tokens[:, 0], tokens[:, 0], examples)])
    for which in range(4):
        parts = [tokens, tokens, tokens[:, 0], tokens[:, 0]]
        parts[which] = parts[which].clone()
        parts[which][1] = VOCAB
        with pytest.raises(AcdcError, match=f"the token {VOCAB} in 'two', but GPT2LMHeadModel has only {VOCAB} tokens"):
            check_prompts(model, [Batch(*parts, examples)])


def test_tolerances_tell_right_from_wrong_in_every_dtype():
    """A change of a few percent is beyond the tolerance where rounding is not."""
    for dtype in TOLERANCE:
        hf = tiny_hf("llama", dtype)
        load_model(hf)
        hf.model.layers[0].self_attn.register_forward_hook(scaled(1.5))
        with pytest.raises(AcdcError, match="is not the architecture it says"):
            load_model(hf)
