"""Patterns are HuggingFace's own, and means over roles are plain means."""

import pytest
import torch
from conftest import make_batch, tiny

from acdc.activations import record
from acdc.annotation.attention import mean_patterns, patterns, role_names
from acdc.annotation.movers import _moved_pattern
from acdc.errors import AcdcError
from acdc.task import Batch, position_groups


def reference(model, tokens):
    model.hf.config._attn_implementation = "eager"
    with torch.no_grad():
        return model.hf(tokens, output_attentions=True).attentions


def test_patterns_are_those_of_huggingface(family):
    model, batch = tiny(family), make_batch()
    run = record(model, batch.clean)  # before: HF's eager attention is set on the model for the reference
    ours = [patterns(model, run, layer) for layer in range(model.n_layers)]
    some = patterns(model, run, 1, [3, 1])
    for layer, expected in enumerate(reference(model, batch.clean)):
        torch.testing.assert_close(ours[layer].double(), expected.double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(some, ours[1][:, [3, 1]])


def test_means_over_roles():
    model, batches, heads = tiny("llama"), [make_batch(3, 9, seed=0), make_batch(2, 7, seed=1)], [(2, 1), (0, 3)]
    names = role_names(batches)
    assert set(names) == {"subject", "verb", "other", "end"}
    ours = mean_patterns(model, batches, heads, names)
    torch.testing.assert_close(ours.sum(-1), torch.ones(2, len(names)), atol=1e-5, rtol=0)
    totals, counts = torch.zeros(2, len(names), len(names)), torch.zeros(len(names))
    for batch in batches:
        groups, attentions = position_groups(batch, names), reference(model, batch.clean)
        for prompt in range(len(batch)):
            for query, role in enumerate(groups[prompt].tolist()):
                counts[role] += 1
                for key, other in enumerate(groups[prompt].tolist()):
                    for i, (layer, head) in enumerate(heads):
                        totals[i, role, other] += attentions[layer][prompt, head, query, key].float()
    torch.testing.assert_close(ours, totals / counts[:, None], atol=1e-5, rtol=0)


def test_without_roles_places_are_told_apart():
    batch = make_batch(2, 7)
    plain = Batch(batch.clean, batch.corrupted, batch.answer, batch.wrong,
                  tuple(type(e)(e.clean, e.corrupted, e.answer, e.wrong) for e in batch.examples))
    assert role_names([plain]) == tuple(map(str, range(7)))


def test_heads_that_are_not_there_are_refused():
    model = tiny("gpt2")
    run = record(model, make_batch().clean)
    for layer, head in ((3, 0), (0, 4)):
        with pytest.raises(AcdcError, match="layers 0 to 2 of heads 0 to 3"):
            patterns(model, run, layer, [head])


def test_attention_of_a_query_that_reads_something_else(family):
    """What S-inhibition is measured by: HuggingFace's own pattern with the query of one head at the end swapped."""
    model, batch, layer, head = tiny(family), make_batch(), 2, 3
    run, block = record(model, batch.clean), model.blocks[2]
    changes = torch.randn(2, len(batch), 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        ours = _moved_pattern(model, run, layer, head, changes)
    for i, change in enumerate(changes):
        with torch.no_grad():
            resid = run.attn_in[layer].clone()
            resid[:, -1] += change
            query = block.attention.q.of_output(block.attention.q.module(block.attn_norm(resid)))[:, -1, head]

        def swap(module, args, output, query=query):
            output = output.clone()
            block.attention.q.of_output(output)[:, -1, head] = query
            return output

        handle = block.attention.q.module.register_forward_hook(swap)
        expected = reference(model, batch.clean)[layer][:, head, -1]
        handle.remove()
        torch.testing.assert_close(ours[:, i].double(), expected.double(), atol=1e-6, rtol=0)
