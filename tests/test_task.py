"""Batches hold what the examples say; prompts that cannot be batched are named."""

import pytest
import torch
from tiny_tokenizer import tiny_tokenizer

from acdc.errors import AcdcError
from acdc.task import Example, Task, answer_token

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
