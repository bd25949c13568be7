"""Batches hold what the examples say; prompts that cannot be batched are named."""

import re

import pytest
import torch
from tiny_tokenizer import tiny_tokenizer

from acdc.errors import AcdcError
from acdc.task import Batch, Example, Task, answer_token, position_groups, position_names

TOKENIZER = tiny_tokenizer()
SHORT = Example("When Adam and Amy met, Amy said to", "When Adam and Amy met, Alan said to", " Adam", " Amy")
LONG = Example("When Amy and Adam met at the lake, Amy said to", "When Amy and Adam met at the lake, Alan said to",
               " Adam", " Amy")


def ids(text, tokenizer=TOKENIZER):
    return tokenizer(text)["input_ids"]


def test_a_task_needs_examples():
    with pytest.raises(AcdcError, match="task 'mine' has no examples"):
        Task("mine", ())


def test_batches_are_grouped_by_length_in_order_of_appearance():
    task = Task("t", (LONG, SHORT, LONG, LONG, SHORT))
    batches = task.batches(TOKENIZER, batch_size=2)
    assert [batch.examples for batch in batches] == [(LONG, LONG), (LONG,), (SHORT, SHORT)]
    assert [len(batch) for batch in batches] == [2, 1, 2] and len(task) == 5


@pytest.mark.parametrize("bos", [False, True])
def test_batches_hold_the_tokens(bos):
    tokenizer = tiny_tokenizer(bos=bos)
    (batch,) = Task("t", (SHORT,)).batches(tokenizer)
    assert batch.clean.tolist() == [ids(SHORT.clean, tokenizer)]
    assert batch.corrupted.tolist() == [ids(SHORT.corrupted, tokenizer)]
    assert tokenizer.decode([int(batch.answer)]) == " Adam" and tokenizer.decode([int(batch.wrong)]) == " Amy"
    assert batch.clean.dtype == batch.answer.dtype == torch.int64
    assert batch.first_difference == 6 + bos


def test_first_difference_is_that_of_the_batch():
    other = Example(SHORT.clean, SHORT.clean.replace("Adam", "Alan"), " Adam", " Amy")
    (batch,) = Task("t", (SHORT, other)).batches(TOKENIZER)
    assert batch.first_difference == 1


def refused(example, message):
    with pytest.raises(AcdcError, match=message) as error:
        Task("t", (SHORT, example)).batches(TOKENIZER)
    assert repr(example.clean) in str(error.value)


def test_unequal_lengths():
    refused(Example(SHORT.clean, LONG.corrupted, " Adam", " Amy"), "differ in length: .* has 9 tokens, .* has 12")


def test_identical_prompts():
    refused(Example(LONG.clean, LONG.clean, " Adam", " Amy"), "are the same")


def test_identical_answers():
    refused(Example(LONG.clean, LONG.corrupted, " Adam", " Adam"), "answer and wrong answer are the same, ' Adam'")


@pytest.mark.parametrize("answer", [" Adam and", "", "Adam and"])
@pytest.mark.parametrize("field", ["answer", "wrong"])
def test_answers_that_are_not_one_token(field, answer):
    answers = {"answer": " Adam", "wrong": " Amy", field: answer}
    refused(Example(LONG.clean, LONG.corrupted, **answers), f"answer {answer!r} is not one token .* mind the leading")


def test_an_answer_that_joins_the_last_word_is_refused():
    """`a` and `nd` would be the one word `and`: the prompt's own tokens change."""
    with pytest.raises(AcdcError, match="the text is split into"):
        answer_token(TOKENIZER, "When Adam a", ids("When Adam a"), "nd")


def test_batch_size():
    with pytest.raises(AcdcError, match="batch size 0: it must be at least 1"):
        Task("t", (SHORT,)).batches(TOKENIZER, batch_size=0)


def labelled(*roles, length=5):
    """A batch of prompts that differ at the first token, with these roles."""
    clean = torch.arange(len(roles))[:, None] + torch.arange(length)
    examples = tuple(Example(f"prompt {i}", "corrupted", " a", " b", roles=named) for i, named in enumerate(roles))
    return Batch(clean, clean + 1, clean[:, 0], clean[:, 1], examples)


def test_positions_are_places_or_roles():
    batch = labelled({"S": 3, "V": 2}, {"V": 1, "S": -2, "answer": 4})
    assert position_names([batch], "all") == () and position_groups(batch, ()).tolist() == [[0] * 5] * 2
    each = position_names([batch], "each")
    assert each == ("0", "1", "2", "3", "4") and position_groups(batch, each).tolist() == [[0, 1, 2, 3, 4]] * 2
    names = position_names([batch, labelled({"S": 0, "V": 1}, length=2)], "roles")
    assert names == ("V", "S", "other", "end")  # V is at 1.3 on the whole, S at 2
    assert position_groups(batch, names).tolist() == [[2, 2, 0, 1, 3], [2, 0, 2, 1, 3]]
    assert position_names([labelled({"S": 0}, length=2)], "roles") == ("S", "end")


@pytest.mark.parametrize(("batches", "positions", "message"), [
    ([labelled({}), labelled({}, length=4)], "each", "prompts of 4, 5 tokens"),
    ([labelled({})], "roles", "no example says which role"),
    ([labelled({"end": 4})], "roles", "no example says which role"),
    ([labelled({"S": 1, "V": 1})], "roles", "token 1 has two roles, 'S' and 'V'"),
    ([labelled({"S": 7})], "roles", "role 'S' is at token 7 of 'prompt 0', which has 5 tokens"),
    ([labelled({"other": 1})], "roles", "that name is taken"),
    ([labelled({})], "rolls", "unknown positions 'rolls'. Did you mean 'roles'"),
])
def test_positions_that_mean_nothing_are_refused(batches, positions, message):
    with pytest.raises(AcdcError, match=re.escape(message)):
        position_names(batches, positions)


def test_prompts_that_a_circuit_by_position_does_not_fit_are_refused():
    with pytest.raises(AcdcError, match="prompts of 5 tokens, but the circuit's edges are at places 0 to 3"):
        position_groups(labelled({}), ("0", "1", "2", "3"))
    with pytest.raises(AcdcError, match="role 'V', but the circuit's edges are at S, other, end only"):
        position_groups(labelled({"V": 1}), ("S", "other", "end"))


@pytest.mark.parametrize("positions", ["each", "roles"])
def test_no_prompts_have_no_positions(positions):
    with pytest.raises(AcdcError, match="no prompts given"):
        position_names([], positions)
