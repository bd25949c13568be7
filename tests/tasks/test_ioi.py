"""IOI prompts say what their roles say, for tokenizers of several kinds."""

import re
from collections import Counter

import pytest
from tiny_tokenizer import tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from acdc.errors import AcdcError
from acdc.packaged import cache_folder
from acdc.tasks.ioi import NAMES, SLOT, TEMPLATES, ioi


def bpe_tokenizer():
    """A byte-level BPE that knows 30 of the names; it splits the others, and some words, into pieces."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [example.clean for example in ioi(tiny_tokenizer(n_names=30), n=600, same_length=False).examples]
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


TOKENIZERS = {
    "byte_level": tiny_tokenizer(),
    "byte_level_bos": tiny_tokenizer(bos=True),
    "sentencepiece": tiny_tokenizer(style="sentencepiece"),
    "sentencepiece_bos": tiny_tokenizer(style="sentencepiece", bos=True),
    "bpe": bpe_tokenizer(),
}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]


@pytest.mark.parametrize("same_length", [True, False])
def test_prompts_are_what_their_roles_say(tokenizer, same_length):
    task = ioi(tokenizer, n=60, same_length=same_length)
    for example in task.examples:
        clean, corrupted = (tokenizer(text)["input_ids"] for text in (example.clean, example.corrupted))
        words = [tokenizer.decode([i]).strip() for i in clean]
        roles = example.roles
        io, s = example.answer.strip(), example.wrong.strip()
        assert (words[roles["IO"]], words[roles["S1"]], words[roles["S2"]]) == (io, s, s)
        assert roles["S1+1"] == roles["S1"] + 1 and roles["end"] == len(clean) - 1
        assert [i for i, pair in enumerate(zip(clean, corrupted, strict=True)) if len(set(pair)) > 1] == [roles["S2"]]
        assert tokenizer.decode([corrupted[roles["S2"]]]).strip() not in (io, s)
        wording = SLOT.sub(r"\\w+", example.template.replace("{IO}", io).replace("{S}", s))
        assert re.fullmatch(wording, example.clean)


def test_batches_accept_every_example(tokenizer):
    """Answers are single tokens, lengths are equal: `batches` checks both."""
    batches = ioi(tokenizer, n=40, same_length=True).batches(tokenizer, batch_size=40)
    assert [len(batch) for batch in batches] == [40]
    assert sum(len(batch) for batch in ioi(tokenizer, n=60, same_length=False).batches(tokenizer)) == 60


@pytest.mark.parametrize("n", [1, 7, 32, 100])
def test_orders_and_templates_are_balanced(tokenizer, n):
    task = ioi(tokenizer, n=n)
    abba = [example.roles["IO"] < example.roles["S1"] for example in task.examples]
    assert sum(abba) == (n + 1) // 2
    counts = Counter(example.template for example in task.examples)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert len({example.clean for example in task.examples}) == n


def test_seed_decides_everything(tokenizer):
    assert ioi(tokenizer, seed=3) == ioi(tokenizer, seed=3)
    assert ioi(tokenizer, seed=3).examples != ioi(tokenizer, seed=4).examples


def test_the_prompt_everyone_quotes():
    task = ioi(tiny_tokenizer(n_names=len(NAMES)), templates=TEMPLATES[:1], n=200)
    assert task.examples[0].template == "When {IO} and {S} went to the {PLACE}, {S} gave a {OBJECT} to"
    assert task.examples[1].template == "When {S} and {IO} went to the {PLACE}, {S} gave a {OBJECT} to"
    assert task.examples[0].roles == {"IO": 1, "S1": 3, "S1+1": 4, "S2": 9, "end": 13}


def test_split_names_are_dropped_and_recorded():
    tokenizer = TOKENIZERS["bpe"]
    task = ioi(tokenizer, n=300)
    used = {example.answer for example in task.examples} | {example.wrong for example in task.examples}
    assert all(len(tokenizer(name)["input_ids"]) == 1 for name in used)
    kept, dropped = task.provenance["names"], task.provenance["dropped"]["names"]
    assert sorted([*kept, *dropped]) == sorted(NAMES) and len(kept) >= 20 and "Zachary" in dropped
    assert used == {f" {name}" for name in kept}
    assert f"{len(kept)} of {len(NAMES)} names" in task.description


def test_provenance_rebuilds_the_task(tokenizer):
    task = ioi(tokenizer, n=10, seed=5, same_length=False)
    record = task.provenance
    assert record["builder"] == "ioi"
    again = ioi(tokenizer, n=record["n"], seed=record["seed"], same_length=record["same_length"],
                names=record["names"], templates=record["templates"])
    assert again.examples == task.examples


def test_as_many_as_possible_and_no_more():
    options = {"names": ["Adam", "Amy", "Alan"], "templates": ["When {S} and {IO} met, {S} said to", TEMPLATES[15]]}
    tokenizer = TOKENIZERS["byte_level"]
    assert len({example.clean for example in ioi(tokenizer, n=24, same_length=False, **options).examples}) == 24
    with pytest.raises(AcdcError, match="cannot make 25 different ioi examples: ask for 1 to 24$"):
        ioi(tokenizer, n=25, same_length=False, **options)
    with pytest.raises(AcdcError, match="ask for 1 to 12; same_length=False uses templates of all lengths"):
        ioi(tokenizer, n=13, **options)
    with pytest.raises(AcdcError, match="cannot make 0 different"):
        ioi(tokenizer, n=0)


def test_templates_of_unequal_room_fill_up():
    """One has 6 prompts an order, the other thousands: the second takes the rest, and orders stay balanced."""
    templates = ["When {IO} and {S} met, {S} said to", TEMPLATES[0]]
    task = ioi(TOKENIZERS["byte_level"], n=60, names=["Adam", "Amy", "Alan"], templates=templates, same_length=False)
    assert sorted(Counter(example.template for example in task.examples).values()) == [6, 6, 24, 24]


def test_the_same_template_twice_counts_once():
    task = ioi(TOKENIZERS["byte_level"], n=24, names=["Adam", "Amy", "Alan", "Alex"],
               templates=["When {IO} and {S} met, {S} said to", "When {S} and {IO} met, {S} said to"])
    assert len({example.clean for example in task.examples}) == 24


@pytest.mark.parametrize("template", [
    "{IO} and {S} met, {S} said to",  # the first name would be another token without a space before it
    "When {IO} and {S} met, {IO} said to",
    "When {IO} and {S} met, they said to",
    "When {IO} and {S} met, {S} said to ",
    "When ({IO} and {S}) met, {S} said to",
    "When {IO} and {S} met {WHERE}, {S} said to",
    "When {IO!r} and {S} met, {S} said to",
])
def test_bad_templates(template):
    with pytest.raises(AcdcError, match="cannot be used. It must hold {IO} and {S} in either order") as error:
        ioi(TOKENIZERS["byte_level"], templates=[template])
    assert repr(template) in str(error.value)


def test_no_templates():
    with pytest.raises(AcdcError, match="at least one template"):
        ioi(TOKENIZERS["byte_level"], templates=[])


def test_too_few_names():
    with pytest.raises(AcdcError, match=r"needs 3 or more names .* has 2 of 3 \(not Zachary\). Pass other names"):
        ioi(TOKENIZERS["byte_level"], names=["Adam", "Amy", "Zachary"])


def test_too_few_places():
    vocabulary = {"<unk>": 0, "Ġto": 1, "Ġand": 2, "to": 3, "ĠAdam": 4, "ĠAmy": 5, "ĠAlan": 6}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    with pytest.raises(AcdcError, match="1 or more places .* has 0 of .*Give the prompts as a file"):
        ioi(PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>"))


class Wrapped:
    """A tokenizer whose ids for some texts are changed by `change(text, ids)`."""

    def __init__(self, change):
        self.inner, self.change = tiny_tokenizer(), change

    def __call__(self, text):
        return {"input_ids": self.change(text, self.inner(text)["input_ids"])}

    def decode(self, token_ids):
        return self.inner.decode(token_ids)


def test_a_token_after_every_prompt_is_refused():
    with pytest.raises(AcdcError, match="must be turned off"):
        ioi(Wrapped(lambda text, ids: [*ids, 1]))


def test_a_name_that_is_split_in_some_contexts_is_refused():
    split = Wrapped(lambda text, ids: ids if "Adam went" not in text else [ids[0], *ids])
    with pytest.raises(AcdcError, match=r"splits '[^']*Adam went.*14 tokens are expected"):
        ioi(split, names=["Amy", "Alan", "Adam"], n=100)


def test_a_name_that_is_never_one_token_in_its_template_is_refused():
    merged = Wrapped(lambda text, ids: [1, 1, 1] if text.startswith("When A") else ids)
    with pytest.raises(AcdcError, match="is not one token in 'When A.*Choose other words or another wording"):
        ioi(merged)


def test_smollm2():
    """The real tokenizer, where the packaged model is in the cache: nothing is downloaded here."""
    folder = cache_folder() / "smollm2"
    if not (folder / "tokenizer.json").exists():
        pytest.skip("the packaged model is not in the cache; load_model('smollm2') fetches it")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    task = ioi(tokenizer, n=100)
    assert [tuple(batch.clean.shape) for batch in task.batches(tokenizer, batch_size=100)] == [(100, 14)]
    assert len(task.provenance["names"]) > 150 and len(task.provenance["templates"]) == 15
    assert TEMPLATES[0] in task.provenance["templates"]
