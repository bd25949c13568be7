"""Each role is found in a head made to have it and in no other; in random heads none is."""

import numpy as np
import pytest
import torch
from planted_heads import SIZE, Words, empty, mover_batch, mover_model, of_one_role, random_models
from torch import nn
from transformers import GPT2Config
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from acdc.annotation.head_roles import SEQUENCE_ROLES, sequence_roles
from acdc.annotation.movers import movers_and_inhibitors
from acdc.annotation.sequences import ordinal_classes, random_sequences
from acdc.errors import AcdcError
from acdc.task import Batch
from acdc.transformer import Transformer

HEADS = [(layer, head) for layer in range(2) for head in range(2)]
ALSO = {"previous token": {"positional"}, "duplicate token": {"positional"}}  # without repeats, it attends to itself
SCORES = {"duplicate token": 0.5}  # the other half goes to itself


def found(scores):
    return {(score.layer, score.head, score.role): score for score in scores if score.found}


@pytest.mark.parametrize("role", SEQUENCE_ROLES)
def test_a_planted_head_has_its_role_and_no_other_head_has_any(role):
    model, where = of_one_role(role)
    roles = found(sequence_roles(model, HEADS))
    expected = {(*where, role), *((*where, also) for also in ALSO.get(role, ()))}
    if role == "induction":  # what it is made of
        expected |= {(0, 0, "previous token"), (0, 0, "positional")}
    assert set(roles) == expected
    assert roles[(*where, role)].score == pytest.approx(SCORES.get(role, 1), abs=1e-3)


def test_movers_and_what_steers_them_are_found():
    model, batch = mover_model(), mover_batch()
    with torch.no_grad():
        logits = model.hf(batch.clean).logits[:, -1]
    assert (logits.argmax(1) == batch.answer).all()
    roles = found(movers_and_inhibitors(model, [batch], HEADS))
    assert set(roles) == {(1, 0, "name mover"), (1, 1, "negative mover"), (0, 0, "S-inhibition")}
    assert roles[1, 0, "name mover"].score > 0.9 > 0.1 > roles[1, 0, "name mover"].baseline


def test_task_roles_need_prompts_that_hold_both_answers():
    model, batch = mover_model(), mover_batch()
    never = torch.full_like(batch.wrong, SIZE)
    elsewhere = Batch(batch.clean, batch.corrupted, batch.answer, never, batch.examples)
    assert movers_and_inhibitors(model, [elsewhere], HEADS) == []


def test_random_heads_have_no_role():
    """None of 192; see docs/annotation.md for more. Their patterns are peaked: it is not for want of attention."""
    heads = [(layer, head) for layer in range(3) for head in range(16)]
    batch = mover_batch(16)
    for model in random_models(4, loud=4.0):
        with torch.no_grad():
            model.hf.config._attn_implementation = "eager"
            pattern = model.hf(random_sequences(model, 4).control, output_attentions=True).attentions[1]
        assert pattern[:, :, 20:].amax(-1).mean() > 0.4
        scores = [*sequence_roles(model, heads), *movers_and_inhibitors(model, [batch], heads)]
        assert not found(scores)
        assert len({score.role for score in scores}) == len(SEQUENCE_ROLES) + 2  # no movers, so none that steer them


def test_scores_of_induction_and_previous_token_are_those_of_the_definition():
    model, heads = random_models(1)[0], [(1, 3), (2, 0)]
    sequences = random_sequences(model, 32, seed=5)
    model.hf.config._attn_implementation = "eager"
    with torch.no_grad():
        repeated, control = (model.hf(tokens, output_attentions=True).attentions
                             for tokens in (sequences.repeated, sequences.control))
    scores = {(s.layer, s.head, s.role): s for s in sequence_roles(model, heads, seed=5)}
    for layer, head in heads:
        for role, offset in (("duplicate token", 0), ("induction", 1)):
            mean = [np.mean([float(pattern[layer][s, head, t, t - sequences.half + offset])
                             for s in range(32) for t in range(1 + sequences.half, 1 + 2 * sequences.half)])
                    for pattern in (repeated, control)]
            ours = scores[layer, head, role]
            np.testing.assert_allclose([ours.score, ours.baseline], mean, atol=1e-5)
        previous = np.mean([float(control[layer][s, head, t, t - 1]) for s in range(32)
                            for t in range(5, sequences.control.shape[1])])
        assert scores[layer, head, "previous token"].score == pytest.approx(previous, abs=1e-5)


def test_sequences_repeat_distinct_tokens():
    sequences = random_sequences(empty(), 10, seed=1)
    half = sequences.half
    assert half == 19
    assert sequences.repeated.shape == sequences.control.shape == (10, 39)
    assert torch.equal(sequences.repeated[:, 1 : 1 + half], sequences.repeated[:, 1 + half :])
    assert all(len(set(row.tolist())) == 39 for row in sequences.control)
    assert torch.equal(sequences.control, random_sequences(empty(), 10, seed=1).control)


def test_words_with_an_order():
    days, numbers = ordinal_classes(Words())[1], ordinal_classes(Words())[0]
    assert days == list(range(7))
    assert numbers == list(range(7, 20))


def test_a_model_too_small_for_sequences_is_refused():
    config = GPT2Config(n_embd=8, n_head=2, n_layer=1, n_positions=8, vocab_size=40, bos_token_id=0, eos_token_id=0)
    model = Transformer(AutoModelForCausalLM.from_config(config).eval(), None, "small")
    assert isinstance(model.hf, nn.Module)
    with pytest.raises(AcdcError, match="a context of 8: too few"):
        sequence_roles(model, [(0, 0)])
