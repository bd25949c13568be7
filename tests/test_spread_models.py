"""Models that accelerate spreads over devices, the CPU and a disk: the same numbers as the model in one piece."""

import json

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, disk_offload
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, attach_execution_device_hook
from conftest import make_batch, tiny
from pretend_device import NAME, move, second_device
from tiny_models import tiny_hf

from acdc.ablation import prepare_ablation
from acdc.annotation.annotate import annotate
from acdc.circuit import Circuit
from acdc.discovery import METHODS
from acdc.errors import AcdcError
from acdc.metrics import METRICS
from acdc.models import load_model, weights_hash
from acdc.patching import run_circuit
from acdc.transformer import Transformer

LOGIT_DIFFERENCE = METRICS["logit_difference"]
BATCH = make_batch(3, 6)


def assert_the_same(spread, whole, methods=("eap_ig",)):
    assert weights_hash(spread) == weights_hash(whole)
    for name in methods:
        options = {"steps": 2} if name != "acdc" else {"threshold": 0.5}
        found, expected = (METHODS[name](model, [BATCH], LOGIT_DIFFERENCE, **options) for model in (spread, whole))
        np.testing.assert_allclose(found.values, expected.values, atol=1e-5)
    circuit = METHODS["random"](whole, [BATCH]).top(80, by="signed")
    found, expected = (run_circuit(model, BATCH, circuit, prepare_ablation(model, [BATCH], "mean")(BATCH))
                       for model in (spread, whole))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def saved(folder, family):
    tiny_hf(family).save_pretrained(folder, max_shard_size="10KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return Transformer(tiny_hf(family), None, family)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neox"])
def test_offloaded_to_the_cpu(family):
    spread = load_model(cpu_offload(tiny_hf(family), execution_device=torch.device("cpu")))
    assert spread.is_offloaded and spread.unembedding.device.type == "cpu"
    assert_the_same(spread, tiny(family, torch.float32))
    assert all(weight.device.type == "meta" for weight in spread.hf.parameters())


@pytest.mark.parametrize("name", ["eap_ig_activations", "acdc", "edge_pruning"])
def test_other_methods_of_an_offloaded_model(name):
    spread = load_model(cpu_offload(tiny_hf("qwen2"), execution_device=torch.device("cpu")))
    assert_the_same(spread, tiny("qwen2", torch.float32), [name])


def test_an_offloaded_model_is_differentiated_a_layer_at_a_time(monkeypatch):
    """So that no graph holds the weights of all layers: at most one block's are alive at once."""
    spread = load_model(cpu_offload(tiny_hf("llama"), execution_device=torch.device("cpu")))
    monkeypatch.setattr("acdc.discovery.gradients.record_with_taps", None)
    assert np.isfinite(METHODS["eap"](spread, [BATCH]).values).all()


def test_offloaded_to_a_disk_and_annotated(tmp_path):
    spread = load_model(disk_offload(tiny_hf("llama"), str(tmp_path), execution_device=torch.device("cpu")))
    whole = tiny("llama", torch.float32)
    assert_the_same(spread, whole)
    circuit = Circuit(whole.graph(), np.ones(whole.graph().n_edges, dtype=bool))
    found, expected = (annotate(model, circuit, [make_batch(6, 6)], only=["effects", "roles", "composition", "lens"])
                       for model in (spread, whole))
    assert [(a.node, a.kind) for a in found] == [(a.node, a.kind) for a in expected]
    np.testing.assert_allclose(*([a.value for a in notes] for notes in (found, expected)), atol=1e-4)


def test_a_device_map_of_shards(tmp_path):
    whole = saved(tmp_path, "llama")
    assert_the_same(load_model(tmp_path, Ellipsis), whole)
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "disk",
              "model.norm": "disk", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    spread = load_model(tmp_path, Ellipsis, device_map=places)
    assert spread.is_offloaded and spread.hf.model.layers[1].mlp.up_proj.weight.device.type == "meta"
    assert_the_same(spread, whole)
    assert_the_same(load_model(tmp_path, Ellipsis, device_map="auto"), whole)


def test_what_a_spread_model_refuses(tmp_path):
    saved(tmp_path, "llama")
    with pytest.raises(AcdcError, match="device_map with device 'cpu'.*give one of the two"):
        load_model(tmp_path, Ellipsis, device_map="auto", device="cpu")
    with pytest.raises(AcdcError, match="device_map with a model that is loaded already"):
        load_model(tiny_hf("llama"), device_map="auto")
    spread = cpu_offload(tiny_hf("llama"), execution_device=torch.device("cpu"))
    with pytest.raises(AcdcError, match="spread over devices by accelerate"):
        load_model(spread, dtype="bfloat16")


def with_blocks_elsewhere(family, layers):
    """A model of which some blocks are on the second device, and take their input there, as accelerate has it."""
    model = tiny(family)
    add_hook_to_module(model.hf, AlignDevicesHook("cpu", io_same_device=True))
    for i, block in enumerate(model.blocks):
        device = NAME if i in layers else "cpu"
        if i in layers:
            move(block.module)
        add_hook_to_module(block.module, AlignDevicesHook())
        for hooked in (block.module,):
            hooked._hf_hook.execution_device = device
        attach_execution_device_hook(block.module, device)
    return Transformer(model.hf, None, family)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("name", ["eap_ig", "relp", "exact", "edge_pruning"])
def test_a_model_on_two_devices(family, name):
    options = {"steps": 2} if name in ("eap_ig", "edge_pruning") else {}
    expected = METHODS[name](tiny(family), [BATCH], LOGIT_DIFFERENCE, **options)
    with second_device():
        found = METHODS[name](with_blocks_elsewhere(family, [1]), [BATCH], LOGIT_DIFFERENCE, **options)
    np.testing.assert_allclose(found.values, expected.values, atol=1e-9)


def test_scores_of_a_model_in_bfloat16():
    """Near those in float32, and summed over prompts and steps in float32 or more."""
    batch = make_batch(8, 8)
    exactly = METHODS["eap_ig"](tiny("llama", torch.float32), [batch], LOGIT_DIFFERENCE)
    rounded = METHODS["eap_ig"](tiny("llama", torch.bfloat16), [batch], LOGIT_DIFFERENCE, per_prompt=True)
    assert np.corrcoef(exactly.values, rounded.values)[0, 1] > 0.99
    np.testing.assert_allclose(rounded.per_prompt.mean(0, dtype=np.float64), rounded.values, rtol=1e-3, atol=1e-5)
    alone = [METHODS["eap_ig"](tiny("llama", torch.bfloat16), [batch.rows(slice(i, i + 1))], LOGIT_DIFFERENCE).values
             for i in range(8)]
    assert np.abs(np.mean(alone, 0) - rounded.values).max() < 0.02 * np.abs(rounded.values).max()


def test_a_large_model_in_bfloat16_is_checked_as_it_is(monkeypatch):
    monkeypatch.setattr("acdc.models.COPIED", 0)
    monkeypatch.setattr("acdc.models.deepcopy", None)
    for family in ("gpt2", "llama", "gemma3", "gpt_neox", "qwen3"):
        load_model(tiny_hf(family, torch.bfloat16))
    wrong = tiny_hf("llama", torch.bfloat16)
    for layer in wrong.model.layers:
        layer.self_attn.scaling *= 3  # the adapter reads it; HuggingFace's own attention does, too
    wrong.model.layers[0].self_attn.forward = (lambda forward: lambda *a, **k: (forward(*a, **k)[0] * 1.5, None))(
        wrong.model.layers[0].self_attn.forward)
    with pytest.raises(AcdcError, match="is not the architecture it says"):
        load_model(wrong)


def test_the_index_of_shards_is_read(tmp_path):
    saved(tmp_path, "gpt2")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
