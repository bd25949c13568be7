"""Induction prompts are exactly the tokens drawn, and only the first A tells the answer."""

import pytest
from tiny_tokenizer import tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from acdc.errors import AcdcError
from acdc.tasks.induction import induction

TOKENIZERS = {(style, bos): tiny_tokenizer(style=style, bos=bos)
              for style in ("byte_level", "sentencepiece") for bos in (False, True)}


@pytest.fixture(params=TOKENIZERS, ids=str)
def tokenizer(request):
    return TOKENIZERS[request.param]


@pytest.mark.parametrize("length", [6, 12, 25])
def test_the_pattern(tokenizer, length):
    task = induction(tokenizer, n=50, length=length)
    n_before = len(tokenizer("")["input_ids"])
    for example in task.examples:
        clean, corrupted = (tokenizer(text)["input_ids"] for text in (example.clean, example.corrupted))
        a1, b, end = (example.roles[role] for role in ("A1", "B", "end"))
        assert b == a1 + 1 and end == len(clean) - 1 == n_before + length - 1 and a1 > n_before
        assert clean[a1] == clean[end]
        assert len(set(clean[n_before:])) == length - 1 and len(set(corrupted[n_before:])) == length
        assert [i for i in range(len(clean)) if clean[i] != corrupted[i]] == [a1]
        assert tokenizer.decode([clean[b]]).strip() == example.answer.strip()
        wrong = [i for i, token in enumerate(clean) if tokenizer.decode([token]).strip() == example.wrong.strip()]
        assert len(wrong) == 1 and wrong[0] not in (a1, b, end) and wrong[0] > n_before + 1


def test_one_batch_of_the_words_drawn(tokenizer):
    (batch,) = induction(tokenizer, n=20).batches(tokenizer)
    n_before = len(tokenizer("")["input_ids"])
    for ids, example in zip(batch.clean, batch.examples, strict=True):
        assert [tokenizer.decode([i]).strip() for i in ids.tolist()[n_before:]] == example.clean.split()
    assert batch.first_difference == min(example.roles["A1"] for example in batch.examples)


def test_seed_decides_everything(tokenizer):
    assert induction(tokenizer, seed=3) == induction(tokenizer, seed=3)
    assert induction(tokenizer, seed=3).examples != induction(tokenizer, seed=4).examples
    assert induction(tokenizer, n=9, seed=3, length=8).provenance == {
        "builder": "induction", "n": 9, "seed": 3, "length": 8, "n_words": 1000, "split": None, "by": None,
        "possible": induction(tokenizer, length=8).provenance["possible"]}


def test_n_words_bounds_the_vocabulary(tokenizer):
    task = induction(tokenizer, n=200, length=10, n_words=15)
    assert len({word for example in task.examples for word in example.clean.split()}) == 15


def toy_tokenizer(tokens):
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def test_words_with_an_s_form_come_first():
    whole = ["state", "plant", "level", "value", "model", "group"]
    words = ["caus", "signific", *whole, *(f"{word}s" for word in whole)]
    tokenizer = toy_tokenizer(["<unk>", "to", "Ġand", "shop", "shops", *(f"Ġ{word}" for word in words)])
    task = induction(tokenizer, length=6, n_words=6)
    assert {word for example in task.examples for word in example.clean.split()} == set(whole)
    assert "caus" in " ".join(example.clean for example in induction(tokenizer, length=10).examples)


def test_no_duplicates_and_no_more_than_possible():
    tokenizer = TOKENIZERS["byte_level", False]
    task = induction(tokenizer, n=1200, length=6, n_words=6)  # of 6 * 5 * 4 * 3 * 2 orders, A at one of 3 places
    assert len({example.clean for example in task.examples}) == 1200
    with pytest.raises(AcdcError, match="cannot make 2,161 different induction examples: ask for 1 to 2,160"):
        induction(tokenizer, n=2161, length=6, n_words=6)


def test_errors(tokenizer):
    with pytest.raises(AcdcError, match="5 words: at least 6"):
        induction(tokenizer, length=5)
    with pytest.raises(AcdcError, match="prompts of 30 words need .* there are 20, of 20 asked for"):
        induction(tokenizer, length=30, n_words=20)
    with pytest.raises(AcdcError, match="cannot make 0"):
        induction(tokenizer, n=0)


class Wrapped:
    """A tokenizer whose ids are changed by `change(text, ids)`."""

    def __init__(self, change):
        self.inner, self.change = tiny_tokenizer(), change
        self.get_vocab, self.decode = self.inner.get_vocab, self.inner.decode

    def __call__(self, text):
        return {"input_ids": self.change(text, self.inner(text)["input_ids"])}


def test_a_first_word_that_is_always_split_is_refused():
    always = Wrapped(lambda text, ids: ids if not text or text.startswith("to") else [0, *ids])
    with pytest.raises(AcdcError, match="splits a word at the beginning of a text otherwise than inside"):
        induction(always)


def test_a_prompt_that_is_not_the_tokens_drawn_is_refused():
    with pytest.raises(AcdcError, match="the ids .* are expected. Give the prompts as a file"):
        induction(Wrapped(lambda text, ids: ids[:-1] if len(ids) == 12 else ids))
