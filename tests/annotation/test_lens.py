"""The logit lens is HuggingFace's unembedding of what is there; direct attributions sum to the model's own logits."""

import pytest
import torch
from conftest import make_batch, tiny

from acdc.annotation.lens import attribute_answers, direct_attribution, logit_lens, node_places, residual_places
from acdc.annotation.lens_notes import lens_notes
from acdc.annotation.sites import read
from acdc.errors import AcdcError

ROUNDED = 1e-5  # RMSNorms of HuggingFace compute in float32 in any model


def tolerance(model):
    return 1e-4 if model.dtype == torch.float32 else 1e-9 if model.anatomy.final_norm.centered else ROUNDED


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_attributions_sum_to_the_logit_difference_of_the_model(family, dtype):
    model, batch = tiny(family, dtype), make_batch()
    found = direct_attribution(model, batch.clean, batch.answer, batch.wrong, positions=range(batch.clean.shape[1]))
    with torch.no_grad():
        logits = model.hf(input_ids=batch.clean).logits
    if (cap := model.anatomy.logit_softcap) is not None:
        logits = torch.atanh(logits / cap) * cap
    rows = torch.arange(len(batch))
    expected = logits[rows, :, batch.answer] - logits[rows, :, batch.wrong]
    atol = tolerance(model) * (100 if cap is not None and dtype == torch.float32 else 1)  # the cap squeezes float32
    torch.testing.assert_close(found.values.sum(0) + found.constant, expected, atol=atol, rtol=0)
    torch.testing.assert_close(found.total, expected, atol=atol, rtol=0)
    last = direct_attribution(model, batch.clean, batch.answer, batch.wrong)
    torch.testing.assert_close(last.values[..., 0], found.values[..., -1])


def test_residual_streams_are_read_as_the_last_layer_reads_them(family):
    model, batch = tiny(family), make_batch()
    targets = torch.stack([batch.answer, batch.wrong], 1)
    found = logit_lens(model, batch.clean, targets=targets, k=3)
    assert found.places == residual_places(model) and found.positions == tuple(range(batch.clean.shape[1]))
    with torch.no_grad():
        own = model.hf(input_ids=batch.clean).logits.log_softmax(-1)
        seen = read(model, batch.clean, found.places)
        for i, name in enumerate(found.places):
            logits = model.logits(seen[name])
            lens = logits.log_softmax(-1)
            expected = logits.sort(descending=True).indices[..., :3]
            assert torch.equal(found.top[i], expected), name
            torch.testing.assert_close(found.top_probability[i], lens.exp().gather(-1, expected))
            for j in range(2):
                target = targets[:, None, j, None].expand(-1, batch.clean.shape[1], 1)
                torch.testing.assert_close(found.logit[i, ..., j], logits.gather(-1, target)[..., 0])
                order = logits.argsort(descending=True)
                assert torch.equal(found.rank[i, ..., j], 1 + (order == target).int().argmax(-1))
            kl = torch.nn.functional.kl_div(lens, own, log_target=True, reduction="none").sum(-1)
            torch.testing.assert_close(found.kl[i], kl, atol=1e-6, rtol=1e-6)
    assert found.kl[-1].abs().max() < 1e-6


def test_logits_of_nodes_are_their_direct_attributions(family):
    model, batch = tiny(family), make_batch()
    nodes = node_places(model)
    targets = torch.stack([batch.answer, batch.wrong], 1)
    found = logit_lens(model, batch.clean, nodes, targets=targets, positions=[2, -1])
    expected = direct_attribution(model, batch.clean, batch.answer, batch.wrong, positions=[2, -1])
    difference = found.logit[..., 0] - found.logit[..., 1]
    torch.testing.assert_close(difference, expected.values[1:], atol=1e-6, rtol=1e-6)
    assert expected.nodes[1:] == nodes


def test_answers_are_attributed_with_intervals_over_prompts():
    model, batches = tiny("gpt2"), [make_batch(4), make_batch(5, length=7, seed=1)]
    found = attribute_answers(model, batches)
    parts = [direct_attribution(model, b.clean, b.answer, b.wrong) for b in batches]
    values = torch.cat([part.values[..., 0] for part in parts], 1)
    assert found.nodes["m1"].value == pytest.approx(float(values[parts[0].nodes.index("m1")].mean()))
    assert sum(one.value for one in found.nodes.values()) + found.constant == pytest.approx(found.total)
    for i, one in enumerate(found.nodes.values()):
        spread = float(values[i].std() / 3)  # the standard error of nine prompts
        assert one.low < one.value < one.high
        assert 2.5 * spread < one.high - one.low < 6.5 * spread
    alone = attribute_answers(model, [make_batch(1)])
    assert all(one.low == one.value == one.high for one in alone.nodes.values())


def test_notes_name_the_tokens_that_a_node_promotes(family):
    model, batches = tiny(family), [make_batch(4), make_batch(3, length=7, seed=1)]
    notes = {note.node: note for note in lens_notes(model, batches, ["input", "a1.h2", "m2"])}
    found = attribute_answers(model, batches)
    every = torch.arange(97)
    for node, note in notes.items():
        assert note.kind == "lens" and note.value == found.nodes[node].value
        sums = torch.zeros(97, dtype=torch.float64)
        for batch in batches:
            for prompt in batch.clean:
                row = prompt[None].expand(97, -1)
                one = direct_attribution(model, row, every, torch.zeros_like(every))
                sums += one.values[one.nodes.index(node), :, 0]
        mean = sums / 7
        top = (mean - mean.mean()).topk(5)
        assert [token for token, _ in note.data["promotes"]] == [str(int(token)) for token in top.indices]
        torch.testing.assert_close(torch.tensor([value for _, value in note.data["promotes"]]).double(), top.values,
                                   atol=1e-3, rtol=0)
        assert note.data["suppresses"][0][0] == str(int(mean.argmin())) and note.data["suppresses"][0][1] < 0


def test_mistakes_are_named():
    model, batch = tiny("gpt_neox"), make_batch()
    for arguments, message in [
        ({"places": []}, "no place"),
        ({"places": ["m1.neurons"]}, "not in the residual stream"), ({"places": ["resid9"]}, "3 layers"),
        ({"positions": [9]}, "of prompts of 9 tokens"), ({"positions": []}, "of prompts of 9 tokens"),
        ({"k": 98}, "97 tokens"),
    ]:
        with pytest.raises(AcdcError, match=message):
            logit_lens(model, batch.clean, **arguments)
    with pytest.raises(AcdcError, match="no prompts"):
        attribute_answers(model, [])
