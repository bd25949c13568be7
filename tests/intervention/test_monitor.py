"""What the monitor reads token by token is what one pass over the whole text holds."""

import pytest
import torch
from conftest import make_batch, tiny

from acdc.activations import attention_bias, contribution, record
from acdc.annotation.sites import read
from acdc.errors import AcdcError
from acdc.intervention.direction import Direction
from acdc.intervention.generation import generate
from acdc.intervention.interventions import add
from acdc.intervention.monitor import monitor, watch_direction, watch_edge, watch_feature, watch_node

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
VECTOR = torch.randn(24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def direction(**known):
    return Direction("resid1", VECTOR, "mine", **known)


def rows(readings, name):
    return torch.tensor([reading.values[name] for reading in readings], dtype=torch.float64)


def test_values_are_those_of_one_full_pass(family):
    model, prompt = tiny(family), make_batch().clean[:1]
    dst = "m1" if model.parallel else "m2"
    edges = ["input->a1.h3<q>", "m0->a2.h1<k>", "a0.h2->a1.h2<v>", f"m0->{dst}", "a1.h1->logits"]
    watches = [watch_direction(model, direction(offset=0.25)), watch_node(model, "a1.h2"), watch_node(model, "m2"),
               watch_feature("f", "m1", torch.relu, 3), *(watch_edge(model, edge) for edge in edges)]
    readings = list(monitor(model, prompt, watches, 5))
    tokens = torch.tensor([[reading.token for reading in readings]])
    torch.testing.assert_close(tokens, torch.cat([prompt, generate(model, prompt, 5)], 1))
    assert [reading.prompt for reading in readings] == [True] * 9 + [False] * 5
    at = read(model, tokens, ["resid1", "a1.h2", "m2", "m1"])
    torch.testing.assert_close(rows(readings, "mine"), (at["resid1"] @ VECTOR)[0] / VECTOR.norm() - 0.25, **CLOSE)
    torch.testing.assert_close(rows(readings, "a1.h2"), at["a1.h2"][0].norm(dim=-1), **CLOSE)
    torch.testing.assert_close(rows(readings, "m2"), at["m2"][0].norm(dim=-1), **CLOSE)
    torch.testing.assert_close(rows(readings, "f"), at["m1"][0, :, 3].relu(), **CLOSE)
    for edge in edges:
        watch = watch_edge(model, edge)
        found = read(model, tokens, list(watch.sites))
        torch.testing.assert_close(rows(readings, edge), watch.value(*(found[s] for s in watch.sites))[0], **CLOSE)


@pytest.mark.parametrize("channel", ["a1.h3<q>", "a1.h3<k>", "a2.h0<v>", "m1"])
def test_shares_of_what_a_channel_reads_sum_to_one(family, channel):
    """With what no node writes, the biases of attention and of the norm and the projection, taken off the whole."""
    model, prompt = tiny(family), make_batch().clean[:1]
    graph, run = model.graph(), record(model, prompt)
    index = graph.channel_index[channel]
    srcs = graph.srcs[: graph.n_srcs_read[index]]
    shares = sum(list_values(model, prompt, f"{src.name}->{channel}") for src in srcs)
    layer = graph.channels[index].node.layer
    block = model.blocks[layer]
    x, norm = (run.mlp_in[layer], block.mlp_norm) if channel == "m1" else (run.attn_in[layer], block.attn_norm)
    owned = sum(contribution(model, run, graph.src_index[src.name]) for src in srcs)
    biases = [attention_bias(b) for b in model.blocks[: layer + (channel == "m1" and not model.parallel)]]
    torch.testing.assert_close(owned + sum(b for b in biases if b is not None), x, **CLOSE)
    whole = norm(x)
    with torch.no_grad():
        centred = owned - owned.mean(-1, keepdim=True) if norm.centered else owned
        part = centred * norm.statistics(x)[1] * (1 if norm.gain is None else norm.gain)
        if channel != "m1":
            letter = channel[-2]
            head = int(channel[4]) if letter == "q" else int(model.kv_head[int(channel[4])])
            projection = getattr(block.attention, letter)
            whole = whole @ projection.weight[head].T
            whole = whole if projection.bias is None else whole + projection.bias[head]
            part = part @ projection.weight[head].T
    torch.testing.assert_close(shares, ((part * whole).sum(-1) / (whole * whole).sum(-1))[0], **CLOSE)


def list_values(model, prompt, edge):
    watch = watch_edge(model, edge)
    found = read(model, prompt, list(watch.sites))
    return watch.value(*(found[site] for site in watch.sites))[0].detach()


def test_direct_effects_on_the_likeliest_logit_sum_to_it():
    model, prompt = tiny("llama"), make_batch().clean[:1]
    total = sum(list_values(model, prompt, f"{src.name}->logits") for src in model.graph().srcs)
    logits = model.hf(prompt).logits[0]
    torch.testing.assert_close(total, (logits.max(-1).values - logits.mean(-1)).detach(), **CLOSE)


def test_alarms_and_stopping():
    model, prompt = tiny("llama"), make_batch().clean[:1]
    values = rows(list(monitor(model, prompt, [watch_node(model, "m1")], 6)), "m1")
    assert len(values) == 15
    threshold = float(values[10:].max()) - 1e-9
    readings = list(monitor(model, prompt, [watch_node(model, "m1", threshold)], 6))
    expected = (values > threshold).tolist()
    assert [bool(reading.alarms) for reading in readings] == expected and 0 < sum(expected) < 15
    stopped = list(monitor(model, prompt, [watch_node(model, "m1", threshold)], 6, stop_on_alarm=True))
    assert len(stopped) == expected.index(True) + 1 and stopped[-1].alarms == ("m1",)


@pytest.mark.parametrize("positions", ["all", "last"])
def test_interventions_are_seen_and_the_model_is_free_between_tokens(positions):
    model, prompt = tiny("llama"), make_batch().clean[:1]
    steer = add(direction(), 4.0, absolute=True, positions=positions)
    plain = model.hf(prompt).logits
    readings = []
    for reading in monitor(model, prompt, [watch_direction(model, direction())], 4, interventions=[steer]):
        readings.append(reading)
        torch.testing.assert_close(model.hf(prompt).logits, plain)
    assert [r.token for r in readings[9:]] == generate(model, prompt, 4, interventions=[steer])[0].tolist()
    tokens = torch.tensor([[r.token for r in readings]])
    before = (read(model, tokens, ["resid1"])["resid1"] @ VECTOR)[0] / VECTOR.norm()
    moved = torch.tensor([4.0 if positions == "all" or i >= 8 else 0.0 for i in range(13)], dtype=torch.float64)
    torch.testing.assert_close(rows(readings, "mine"), before + moved, **CLOSE)


def test_mistakes():
    model, prompt = tiny("llama"), make_batch().clean[:1]
    node = watch_node(model, "m1")
    cases = [
        ("watching nothing", lambda: monitor(model, prompt, [], 1)),
        ("watching m1, m1", lambda: monitor(model, prompt, [node, node], 1)),
        ("is not a node", lambda: watch_node(model, "logits")),
        ("computed after", lambda: watch_edge(model, "m2->m1")),
        ("2 dimensions", lambda: watch_direction(model, Direction("resid1", torch.ones(2)))),
        ("not a site", lambda: monitor(model, prompt, [watch_feature("f", "nowhere", torch.relu, 0)], 1)),
        ("0 to generate", lambda: monitor(model, prompt, [node], 0)),
    ]
    for message, attempt in cases:
        with pytest.raises(AcdcError, match=message):
            attempt()
