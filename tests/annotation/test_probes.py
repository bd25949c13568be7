"""Probes find what is planted and not what is absent; control tasks catch what is learnt by heart; erasure erases."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_batch, tiny

from acdc.annotation.annotate import annotate
from acdc.annotation.erasure import clean_run, eraser, erasure, random_moves
from acdc.annotation.probes import Probe, fit, probe, shuffled_labels, words_tell
from acdc.annotation.sites import changed, read
from acdc.annotation.variables import Labels, gather, read_labels, variable
from acdc.cli import main
from acdc.discovery.eap import eap
from acdc.errors import AcdcError
from acdc.intervention.direction import load_direction
from acdc.metrics import METRICS

METRIC = METRICS["logit_difference"]


def labels(values, word=None, group=None) -> Labels:
    n = len(values)
    rows = np.arange(n)
    return Labels("planted", rows, np.zeros(n, int), np.zeros(n, bool), np.array(values),
                  rows.astype(str) if word is None else np.array(word), rows if group is None else np.array(group))


def draw(n: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_planted_variable_is_found():
    """Ten classes, each a direction of its own: all is read off, and with labels dealt out anew, a tenth."""
    values = np.array([f"class {i % 10}" for i in range(200)])
    x = draw(200, 40) * 0.3
    x[np.arange(200), np.arange(200) % 10] += 3
    found = probe(x, labels(values), n_controls=20)
    assert found.accuracy == 1 and found.control < 0.2 and found.selectivity > 0.8 and found.p == pytest.approx(1 / 21)
    assert found.majority == pytest.approx(0.1) and found.low > 0.9
    assert "control" in str(found)


@pytest.mark.parametrize(("n_words", "n_draws"), [(24, 60), (3, 30)])
def test_absent_variables_are_rarely_found(n_words, n_draws):
    """Of labels that have nothing to do with the activations, at most 5% have p <= 0.05; also where words repeat."""
    rng = np.random.default_rng(0)
    word = np.arange(24) % n_words
    of_word = draw(n_words, 4, 99)[word] * 3 if n_words < 24 else 0
    found = sum(probe(draw(24, 4, seed) + of_word, labels(rng.permutation(["a", "b"] * 12), word.astype(str)),
                      n_controls=19, seed=seed).p <= 0.05 for seed in range(n_draws))
    assert found <= 0.05 * n_draws


@pytest.mark.parametrize("n_words", [2, 8])
def test_what_the_context_tells_is_found_where_few_words_stand(n_words):
    """Control tasks of few words are read perfectly, which says nothing of a variable that words do not tell."""
    word = np.arange(120) % n_words
    values = np.array(["ab"[i] for i in np.random.default_rng(1).integers(2, size=120)])
    x = draw(120, 12) + torch.cat([torch.zeros(n_words, 1), 3 * draw(n_words, 11, 2)], 1).double()[word]
    absent = probe(x, labels(values, word.astype(str)))
    x[:, 0] += 6.0 * torch.from_numpy(values == "b")
    found = probe(x, labels(values, word.astype(str)))
    assert found.accuracy > 0.95 and found.control > 0.95 and found.p == pytest.approx(1 / 21)
    assert np.mean(found.shuffled) < 0.6 and "shuffled within words" in str(found)
    assert absent.p > 0.05


def test_shuffled_labels_keep_what_words_tell():
    word = np.array(list("aaabbbcc"))
    asked = labels(np.array(list("xxyyyyxy")), word)
    drawn = shuffled_labels(asked, np.random.default_rng(0))
    assert all(sorted(drawn[word == w]) == sorted(asked.values[word == w]) for w in "abc")
    assert not words_tell(asked) and words_tell(labels(np.array(list("xxxyyyxy")), word))


def test_the_control_catches_a_probe_that_learns_words_by_heart():
    """Each word has a direction of its own and an arbitrary label: accuracy 1, and 1 for any other labels."""
    word = np.arange(120) % 12
    x = torch.eye(12, dtype=torch.float64)[word] * 5 + 0.01 * draw(120, 12)
    values = np.array(["ab"[w % 2] for w in word])
    found = probe(x, labels(values, word=word.astype(str)))
    assert found.accuracy == 1 and found.control > 0.95 and found.selectivity < 0.05 and found.p > 0.05
    apart = probe(x, labels(values, word=word.astype(str), group=word))
    assert apart.accuracy < 0.7  # words that it has not seen


def test_a_number_is_probed_by_its_share_of_variance():
    x = draw(150, 10)
    values = (x[:, 0] * 2 + 0.1 * draw(150, 1, 5)[:, 0]).numpy()
    found = probe(x, labels(values))
    assert found.measure == "r2" and found.accuracy > 0.95 > found.control and found.p <= 0.05


def test_a_fitted_probe_is_in_the_units_of_the_activations(tmp_path):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = draw(90, 5) * torch.tensor([1.0, 10, 0.1, 3, 1]) + 4
    values = np.where((x[:, 1] > 4) ^ (x[:, 0] > 5), "yes", "no")
    ours = fit(x, labels(values), about={"site": "m1", "variable": "planted"})
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)).fit(x.numpy(), values)
    np.testing.assert_allclose(ours.read(x).numpy(), theirs.predict_proba(x.numpy()), atol=1e-4)
    ours.save(tmp_path / "probe.safetensors")
    again = Probe.load(tmp_path / "probe.safetensors")
    assert torch.equal(again.weight, ours.weight) and again.classes == ours.classes == ("no", "yes")
    direction = load_direction(tmp_path / "probe.safetensors")
    assert direction.site == "m1"
    log_odds = ours.read(x)[:, 1].logit()
    measured = (x.float() @ direction.unit - direction.offset) * direction.vector.norm()
    torch.testing.assert_close(measured.double(), log_odds, atol=1e-3, rtol=1e-3)


def test_nothing_linear_is_left_after_erasure():
    values = np.array(["abc"[i % 3] for i in range(120)])
    x = draw(120, 8) @ draw(8, 8, 3)
    x[:, 2] += torch.tensor([i % 3 for i in range(120)]) * 30.0
    erase = eraser(x, values)
    after = erase(x)
    for name in "abc":
        torch.testing.assert_close(after[values == name].mean(0), x.mean(0), atol=1e-8, rtol=0)
    assert erase.read.shape[0] == 2
    assert probe(x, labels(values)).accuracy > 0.95 > 0.6 > probe(after, labels(values)).accuracy
    torch.testing.assert_close(erase(after), after, atol=1e-8, rtol=0)


def test_random_moves_are_as_large_as_the_erasure_and_do_not_erase():
    values = np.array(["abc"[i % 3] for i in range(90)])
    x = draw(90, 12) @ draw(12, 12, 3)
    x[:, 2] += torch.tensor([i % 3 for i in range(90)]) * 30.0
    erase = eraser(x, values)
    moved, at_random = erase(x) - x, random_moves(x, erase, 1, np.random.default_rng(0))[0]
    torch.testing.assert_close(at_random @ at_random.T, moved @ moved.T)
    assert int(torch.linalg.matrix_rank(at_random, rtol=1e-9)) == erase.read.shape[0]
    assert float(torch.nn.functional.cosine_similarity(at_random, moved).abs().mean()) < 0.9
    only = torch.zeros(90, 12, dtype=torch.float64)
    only[:, 2] = torch.tensor([i % 3 for i in range(90)])
    again = random_moves(only, eraser(only, values), 1, np.random.default_rng(0))[0]  # nothing is left to draw from
    torch.testing.assert_close(again.norm(dim=1), (eraser(only, values)(only) - only).norm(dim=1))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma2"])
@pytest.mark.parametrize("name", ["m1", "a1.h2", "resid2", "input"])
def test_erasure_is_what_the_eraser_does_in_the_models_own_forward(family, name):
    model, batches = tiny(family), [make_batch(8, 9, 0), make_batch(7, 7, 1)]
    place = "subject"
    asked = variable(batches, "template", place)
    found = erasure(model, batches, METRIC, name, asked, n_draws=3)
    erase, total, row = eraser(gather(model, batches, [name], asked)[name], asked.values), 0.0, 0
    for batch in batches:
        positions = torch.from_numpy(asked.position[row : row + len(batch)])

        def at(x, positions=positions):
            x = x.clone()
            rows = torch.arange(len(x))
            x[rows, positions] = erase(x[rows, positions].double()).to(x)
            return x

        clean = model.hf(batch.clean).logits[:, -1].detach()
        with changed(model, {name: at}), torch.no_grad():
            run = model.hf(batch.clean).logits[:, -1]
        total += float((METRIC.loss(run, batch, clean) - METRIC.loss(clean, batch, clean)).sum())
        row += len(batch)
    assert found.effect == pytest.approx(total / 15, abs=1e-5)
    runs = [clean_run(model, batch) for batch in batches]
    few = erasure(model, batches, METRIC, name, asked, runs=runs, n_draws=3)
    assert few == found
    assert found.rank == 1


def test_erasing_what_the_model_uses_costs_and_what_it_does_not_use_costs_nothing():
    """The answer is 3 where the last place says so, and 4 elsewhere: that is what is erased, and a split at random."""
    model, batch = tiny("llama"), make_batch(40, 6, 2)
    unembed = model.hf.get_output_embeddings().weight.detach()
    x = read(model, batch.clean, ["resid3"])["resid3"][:, -1]
    along = (model.logits(x) @ torch.nn.functional.one_hot(torch.tensor([3, 4]), len(unembed)).double().T).detach()
    three = along[:, 0] - along[:, 1] > (along[:, 0] - along[:, 1]).median()
    batch = replace(batch, answer=torch.where(three, 3, 4), wrong=torch.where(three, 4, 3))
    used = replace(variable([batch], "template"), values=np.where(three, "three", "four"))
    found = erasure(model, [batch], METRIC, "resid3", used)
    assert found.effect > 0.1 and found.p == pytest.approx(1 / 20) and found.effect > 3 * abs(found.null)
    assert probe(x, used, n_controls=19).selectivity > 0.1
    unused = replace(used, values=np.random.default_rng(1).permutation(used.values))
    assert abs(erasure(model, [batch], METRIC, "resid3", unused).effect) < found.effect / 3


def test_variables_of_a_task_are_where_the_prompts_have_them():
    batches = [make_batch(4, 9, 0), make_batch(3, 7, 1)]
    roles = variable(batches, "role")
    assert set(roles.values) == {"subject", "verb", "end"}
    at = variable(batches, "template", "verb")
    assert at.position.tolist() == [e.roles["verb"] % b.clean.shape[1] for b in batches for e in b.examples]
    both = variable(batches, "corrupted")
    assert both.values.tolist() == ["clean", "corrupted"] * 7
    model = tiny("llama")
    x = gather(model, batches, ["m1"], both)["m1"]
    expected = [read(model, getattr(b, side)[[i]], ["m1"])["m1"][0, -1]
                for b in batches for i in range(len(b)) for side in ("clean", "corrupted")]
    torch.testing.assert_close(x, torch.stack(expected))


def test_labels_of_a_file(tmp_path):
    batches = [make_batch(4, 9, 0), make_batch(3, 7, 1)]
    examples = [e for b in batches for e in b.examples]
    path = tmp_path / "labels.csv"
    path.write_text("example,label,position\n0,noun,verb\n5,verb,\n")
    found = read_labels(path, examples, batches)
    assert found.values.tolist() == ["noun", "verb"] and found.prompt.tolist() == [0, 5]
    assert found.position.tolist() == [examples[0].roles["verb"] % 9, 6]
    (tmp_path / "numbers.json").write_text(json.dumps([{"example": 1, "label": 2.5}]))
    assert read_labels(tmp_path / "numbers.json", examples, batches, numeric=True).values.tolist() == [2.5]
    for text, expected in (("example,label\n9,a\n", "row 1: there is no example '9'"),
                           ("prompt,label\nx,a\n", "no clean"),
                           ("example,what\n0,a\n", "no label"), ("", "a list of objects"),
                           ("example,label,position\n0,a,object\n", "no position 'object'")):
        path.write_text(text)
        with pytest.raises(AcdcError, match=expected):
            read_labels(path, examples, batches)


def test_what_cannot_be_probed():
    x = draw(20, 3)
    with pytest.raises(AcdcError, match="needs two classes"):
        probe(x, labels(["a"] * 20))
    with pytest.raises(AcdcError, match="control tasks: give at least 2"):
        probe(x, labels(["a", "b"] * 10), n_controls=1)
    with pytest.raises(AcdcError, match="unknown variable"):
        variable([make_batch()], "mood")
    with pytest.raises(AcdcError, match="cannot be followed"):
        erasure(tiny("llama"), [make_batch(12)], METRIC, "m1.in", variable([make_batch(12)], "corrupted"))
    with pytest.raises(AcdcError, match="there is no nothing.safetensors, which should be a probe"):
        Probe.load("nothing.safetensors")


def test_annotations_of_probes_name_the_control_and_the_erasure(monkeypatch):
    monkeypatch.setattr("acdc.annotation.probe_notes.ALPHA", 0.6)
    model, batches = tiny("llama"), [make_batch(12, 9, 0)]
    circuit = eap(model, batches).top(60, by="magnitude")
    found = annotate(model, circuit, batches, METRIC, only=["probes"])
    assert found and all(note.kind == "probe" for note in found)
    nodes = {node.name for node in circuit.nodes if node.kind in ("input", "head", "mlp")}
    assert {note.node for note in found if note.data["variable"] == "corrupted"} == nodes
    assert any("erasure_effect" in note.data for note in found)
    for note in found:
        assert {"control", "selectivity", "p", "low", "high", "majority"} <= note.data.keys()
        assert ("erasure_effect" in note.data) == (note.data["p"] <= 0.6)
        assert note.data.get("erasure_draws", 19) == 19 or note.data["erasure_p"] >= 0.4
        assert "control" in note.text and note.value is not None
        assert note.data["selectivity"] == pytest.approx(note.value - note.data["control"])


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = ["--model", "digits_vit", "--task", "digits", "--prompts", "24"]
    assert main(["probe", *model, "--variable", "corrupted", "--site", "resid*", "m1.in", "--controls", "5",
                 "--out", "probes"]) == 0
    printed = capsys.readouterr().out
    assert "selectivity" in printed and "m1.in" in printed and "majority 0.50" in printed
    record = json.loads((tmp_path / "probes" / "probes.json").read_text())
    assert record[-1]["site"] == "m1.in" and record[-1]["erasure"] is None and record[0]["erasure"] is not None
    assert all(one["control"] <= 1 and "selectivity" in one for one in record)
    assert load_direction(tmp_path / "probes" / "m1.in.safetensors").site == "m1.in"
    for options, expected in ((["--variable", "answer", "--site", "m9"], "its last is m"),
                              (["--variable", "mood"], "unknown variable"),
                              (["--labels", "none.csv"], "cannot be read"),
                              (["--variable", "corrupted", "--labels", "none.csv"], "not both"),
                              (["--variable", "corrupted", "--site", "m1", "--out", "probes"], "already"),
                              (["--variable", "template", "--site", "m1"], "needs two classes")):
        assert main(["probe", *model, *options]) == 1
        assert expected in capsys.readouterr().err
