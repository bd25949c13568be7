"""What every built-in task of text promises, with tokenizers of several kinds."""

import hashlib
import json
import re

import pytest
from task_tokenizers import KINDS, TASKS, Remembered, WholeWords, bpe
from tiny_tokenizer import tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from acdc.errors import AcdcError
from acdc.metrics import METRICS
from acdc.packaged import cache_folder
from acdc.task import position_names
from acdc.tasks import load_task
from acdc.tasks.templates import SLOT

TOKENIZERS = {kind: Remembered(bpe(kind)) for kind in KINDS} | {"whole": WholeWords()}
TEMPLATED = [name for name in TASKS if name != "induction"]
ROWS_SHARE_WORDS = {"greater_than", "arithmetic"}  # digits: parts have no year and no sum in common


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]


def filled(example, occurrences=False):
    """What stands in the slots of an example's clean prompt: by slot, or by occurrence."""
    slots = SLOT.findall(example.template)
    texts = map(re.escape, SLOT.split(example.template)[::2])
    match = re.fullmatch(r"(\w+|\+)".join(texts), example.clean)
    assert match, (example.template, example.clean)
    if not occurrences:
        return dict(zip(slots, match.groups(), strict=True))
    return {slot if slots.count(slot) == 1 else f"{slot}{slots[: i + 1].count(slot)}": word
            for i, (slot, word) in enumerate(zip(slots, match.groups(), strict=True))}


@pytest.mark.parametrize("name", TASKS)
def test_prompts(name, tokenizer):
    """As many as asked for, all different, of one length, clean against corrupted; single-token answers (`batches`
    checks that); the metric exists; roles are positions of the prompt, each its own,
    and stand at the words of the slots that are called so."""
    task = load_task(name, tokenizer, n=12, seed=2)
    assert len(task) == len({example.clean for example in task.examples}) == 12
    (batch,) = task.batches(tokenizer, batch_size=40)
    assert len(batch) == 12 and task.metric in METRICS
    for clean, corrupted, example in zip(batch.clean, batch.corrupted, batch.examples, strict=True):
        assert 1 <= int((clean != corrupted).sum()) <= 2
        assert example.roles["end"] == len(clean) - 1 and min(example.roles.values()) >= 0
    names = position_names([batch], "roles")
    assert {role for example in task.examples for role, place in example.roles.items()
            if place != example.roles["end"]} <= set(names)
    for example in task.examples if name != "induction" else ():
        ids = tokenizer(example.clean)["input_ids"]
        at = {role: word for role, word in filled(example, occurrences=True).items() if role in example.roles}
        assert at and {role: tokenizer.decode([ids[example.roles[role]]]).strip() for role in at} == at


@pytest.mark.parametrize("name", TASKS)
def test_the_seed_decides(name):
    tokenizer = TOKENIZERS["bos"]
    task = load_task(name, tokenizer, n=8, seed=2)
    assert task == TASKS[name](tokenizer, n=8, seed=2) and len(load_task(name, tokenizer)) == 32
    assert load_task(name, tokenizer, n=8, seed=3).examples != task.examples
    assert (task.name, task.provenance["builder"], task.provenance["n"], task.provenance["seed"]) == (name, name, 8, 2)
    assert json.loads(json.dumps(task.provenance)) == task.provenance


@pytest.mark.parametrize("name", TEMPLATED)
def test_templates_take_turns(name):
    task = load_task(name, TOKENIZERS["digits"], n=36)
    templates = [example.template for example in task.examples]
    counts = {template: templates.count(template) for template in templates}
    assert len(counts) >= 2 and max(counts.values()) - min(counts.values()) <= 1
    if name != "ioi":  # whose templates have two orders
        assert set(templates) <= set(task.provenance["templates"])


@pytest.mark.parametrize("name", TEMPLATED)
def test_parts_share_no_template(name):
    whole, train, test = (load_task(name, TOKENIZERS["digits"], n=30, split=split) for split in (None, "train", "test"))
    templates = [set(task.provenance["templates"]) for task in (whole, train, test)]
    assert templates[1] and templates[2] and not templates[1] & templates[2]
    assert templates[0] == templates[1] | templates[2]
    assert not {example.template for example in train.examples} & {example.template for example in test.examples}
    assert (test.provenance["split"], test.provenance["by"]) == ("test", "template")
    assert whole.provenance["split"] is whole.provenance["by"] is None
    assert train.provenance["possible"] + test.provenance["possible"] == whole.provenance["possible"]


@pytest.mark.parametrize("name", TASKS)
def test_parts_share_no_word(name):
    train, test = (load_task(name, TOKENIZERS["pairs"], n=20, split=split, by="word") for split in ("train", "test"))
    if name == "induction":
        words = [{word for e in task.examples for word in f"{e.clean} {e.corrupted}".split()} for task in (train, test)]
    elif name in ROWS_SHARE_WORDS:
        words = [{(example.clean[example.clean.rindex(",") :] if name == "arithmetic" else re.findall(
            r"\d+", example.clean)[0]) for example in task.examples} for task in (train, test)]
    else:
        fixed = {"operator", "letter1", "letter2"}
        words = [{word for example in task.examples for slot, word in filled(example).items() if slot not in fixed}
                 for task in (train, test)]
        changed = [{word for e in task.examples for word in re.findall(r"\w+", e.corrupted)} for task in (train, test)]
        assert not words[0] & changed[1] - {"A", "B"} - set(re.findall(r"\w+", " ".join(
            SLOT.sub("", e.template) for e in test.examples)))
    assert words[0] and words[1] and not words[0] & words[1]
    assert (train.provenance["split"], train.provenance["by"]) == ("train", "word")


@pytest.mark.parametrize("name", TEMPLATED)
def test_what_is_dropped_is_said(name):
    """The BPEs have learnt some of the words only; what is kept and what is dropped is all that is given."""
    tokenizer, everything = TOKENIZERS["bos"], TOKENIZERS["whole"]
    task, whole = load_task(name, tokenizer, n=4), load_task(name, everything, n=4)
    for kind, dropped in task.provenance["dropped"].items():
        if kind == "templates":
            continue
        kept = task.provenance[kind]
        assert sorted(map(str, kept + dropped)) == sorted(map(str, whole.provenance[kind])), kind
        assert f"{len(kept)} of {len(whole.provenance[kind])} {kind} are used" in task.description


def test_some_words_are_dropped():
    dropped = {name: sum(map(len, load_task(name, TOKENIZERS["bos"], n=4).provenance["dropped"].values()))
               for name in TEMPLATED}
    assert sum(count > 0 for count in dropped.values()) >= 5, dropped


def letters():
    """A tokenizer of single characters, which splits every word."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize("name", [name for name in TASKS if name != "arithmetic"])  # which needs only digits
def test_a_tokenizer_that_splits_every_word_is_refused(name):
    with pytest.raises(AcdcError, match="are single tokens after a space|words that are single tokens"):
        load_task(name, letters())
    assert load_task("arithmetic", letters(), n=3).examples


def test_digits_that_are_no_tokens_are_refused():
    tokenizer = tiny_tokenizer()
    with pytest.raises(AcdcError, match="arithmetic needs digits that are tokens"):
        load_task("arithmetic", tokenizer)
    with pytest.raises(AcdcError, match="needs a tokenizer that splits years into"):
        load_task("greater_than", tokenizer)


def test_split_errors(tmp_path):
    tokenizer = TOKENIZERS["bos"]
    with pytest.raises(AcdcError, match="unknown split 'tset'. Did you mean 'test'"):
        load_task("ioi", tokenizer, split="tset")
    with pytest.raises(AcdcError, match="unknown way to split a task 'words'. Did you mean 'word'"):
        load_task("ioi", tokenizer, split="test", by="words")
    with pytest.raises(AcdcError, match="can only be split by word"):
        load_task("induction", tokenizer, split="test", by="template")
    with pytest.raises(AcdcError, match=r"of 1 template\(s\) of one length cannot be split by template"):
        load_task("ioi", tokenizer, split="test", templates=["When {IO} and {S} met, {S} said to"])
    with pytest.raises(AcdcError, match="ioi needs 3 or more names .* 4 of 4, 2 of them in the part 'test'"):
        load_task("ioi", TOKENIZERS["whole"], split="test", by="word", names=["Adam", "Amy", "Alan", "Andrew"])


@pytest.mark.parametrize("name", TASKS)
def test_docstrings_say_what_they_must(name):
    text = TASKS[name].__doc__ or ""
    first = text.splitlines()[0]
    assert first.endswith((".", "?")) or "->" in first
    for heading in ("Roles:", "Source:", f"task = {name}("):
        assert heading in text
    task = load_task(name, TOKENIZERS["whole"], n=4)
    roles = text[text.index("Roles:") :].split("\n\n")[0]
    assert not [role for role in task.examples[0].roles if role not in roles]


@pytest.mark.parametrize("number_of_digits", ["digits", "pairs"])
def test_greater_than_is_true(number_of_digits):
    for example in load_task("greater_than", TOKENIZERS[number_of_digits], n=100).examples:
        start, end = re.findall(r"\d+", example.clean)
        late, early = (int(f"{end}{token}".ljust(4, "0")) // 10 ** (2 - len(token)) for token in
                       (example.answer, example.wrong))
        begins = int(start) // 10 ** (2 - len(example.answer))
        assert early < begins < late
        corrupted = int(re.findall(r"\d+", example.corrupted)[0])
        assert corrupted // 10 ** (2 - len(example.answer)) <= max(early, 1701 // 10 ** (2 - len(example.answer)))


@pytest.mark.parametrize("tokenizer_name", ["digits", "pairs"])
def test_arithmetic_is_right(tokenizer_name):
    for example in load_task("arithmetic", TOKENIZERS[tokenizer_name], n=100).examples:
        for prompt, total in ((example.clean, example.answer), (example.corrupted, example.wrong)):
            a, b = re.findall(r"(\d) \+ (\d) =(?! \d)", prompt)[-1]
            assert int(a) + int(b) == int(total)


PINNED = {  # what README, docs and stored results quote: sha256 of the examples
    ("ioi", 8, 0): "74342a814b52f597", ("ioi", 32, 0): "3d455be6f3eae745", ("ioi", 64, 1): "e2dc14e206f310de",
    ("ioi", 128, 0): "cf316e070892c5a7", ("induction", 32, 0): "9318ea7d86f9ee15",
}


@pytest.mark.parametrize(("name", "n", "seed"), PINNED)
def test_stored_results_speak_of_these_prompts(name, n, seed):
    folder = cache_folder() / "smollm2"
    if not (folder / "tokenizer.json").exists():
        pytest.skip("the packaged model is not in the cache; load_model('smollm2') fetches it")
    task = load_task(name, AutoTokenizer.from_pretrained(folder), n=n, seed=seed)
    assert hashlib.sha256(repr(task.examples).encode()).hexdigest()[:16] == PINNED[name, n, seed]


def test_ioi_draws_are_pinned():

    assert hashlib.sha256(repr(load_task("ioi", tiny_tokenizer(), n=128).examples).encode()).hexdigest()[:16] == (
        "463bbcec9a7668c0")
