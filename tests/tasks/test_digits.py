"""The task of images: digits that the shipped model reads, and its circuit from the command line."""

import json
import re

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from tiny_tokenizer import tiny_tokenizer

from acdc.benchmarks.trained import digits as training
from acdc.cli import main
from acdc.errors import AcdcError
from acdc.evaluation.task_check import check_task
from acdc.models import load_model, load_tokenizer
from acdc.tasks import load_task
from acdc.tasks.digits import images_and_labels


@pytest.fixture(scope="module")
def table():
    return load_tokenizer("digits_vit")


def shown(table, text):
    """The image that a prompt shows."""
    return table.images(torch.tensor([table(text)["input_ids"]]))[0, 0].numpy()


def test_digits_are_of_scikit_learn_and_parts_share_none():
    data = load_digits()
    held_out, trained_on = (images_and_labels(held_out=part) for part in (True, False))
    keys = [sorted((image.tobytes(), int(label)) for image, label in zip(*part, strict=True))
            for part in (held_out, trained_on, ((data.images / 16).astype(np.float32), data.target))]
    assert sorted(keys[0] + keys[1]) == keys[2] and len(keys[0]) == 599 and not set(keys[0]) & set(keys[1])


def test_prompts_are_digits_with_the_nearest_of_the_other(table):
    images, labels = images_and_labels(held_out=True)
    task = load_task("digits", table, n=20, seed=3)
    assert len({example.clean for example in task.examples}) == 20
    for i, example in enumerate(task.examples):
        answer, wrong = (3, 8) if i % 2 == 0 else (8, 3)
        clean, corrupted = shown(table, example.clean), shown(table, example.corrupted)
        assert (example.answer, example.wrong) == (f" {answer}", f" {wrong}")
        assert any((clean == image).all() for image in images[labels == answer])
        distances = np.linalg.norm((images[labels == wrong] - clean).reshape(-1, 64), axis=1)
        assert np.linalg.norm(corrupted - clean) == pytest.approx(distances.min(), abs=1e-6)
    assert task.examples[0].roles["patch r2 c3"] == 6 and task.examples[0].roles["end"] == 16
    assert task.examples == load_task("digits", table, n=20, seed=3).examples
    assert task.examples != load_task("digits", table, n=20).examples


def test_parts_share_no_image(table):
    train, test = ({text for e in load_task("digits", table, n=40, split=split).examples
                    for text in (e.clean, e.corrupted)} for split in ("train", "test"))
    assert train and test and not train & test


def test_what_cannot_be_made_is_refused(table):
    for options, message in (({"n": 200}, "ask for 1 to 126"), ({"pair": (3, 3)}, "give two different ones"),
                             ({"split": "train", "by": "template"}, "can only be split by word")):
        with pytest.raises(AcdcError, match=message):
            load_task("digits", table, **options)
    with pytest.raises(AcdcError, match="needs a model that reads images, such as digits_vit; this one reads text"):
        load_task("digits", tiny_tokenizer())


def test_the_shipped_model_reads_digits():
    model = load_model("digits_vit")
    assert training.accuracy(model.hf.hf) >= 0.95
    images, labels = images_and_labels(held_out=True)
    tokens = model.tokenizer.tokens(torch.from_numpy(images)[:, None])
    with torch.no_grad():
        read = model.hf(tokens).logits[:, -1].argmax(-1).numpy()
    assert (read == labels).mean() >= 0.95
    for pair in ((3, 8), (4, 9), (1, 7)):
        check = check_task(model, load_task("digits", model.tokenizer, pair=pair).batches(model.tokenizer))
        assert check.able and check.accuracy >= 0.95 and check.corrupted < 0


def test_training_lowers_its_loss_and_repeats():
    settings = training.Settings(steps=150, batch=64)
    hf, history = training.train(settings)
    again, same = training.train(settings)
    assert history == same and sum(history[-5:]) < 0.9 * sum(history[:5])
    assert all(torch.equal(a, b) for a, b in zip(hf.parameters(), again.parameters(), strict=True))


def test_shifts_move_an_image_by_a_pixel():
    images = torch.rand(40, 1, 8, 8)
    moved = training.shifted(images, torch.Generator().manual_seed(0))
    ways = set()
    for image, other in zip(images[:, 0], moved[:, 0], strict=True):
        padded = torch.nn.functional.pad(image, (1, 1, 1, 1))
        found = [(r, c) for r in range(3) for c in range(3) if torch.equal(padded[r : r + 8, c : c + 8], other)]
        assert len(found) == 1
        ways |= set(found)
    assert len(ways) == 9


def test_a_circuit_by_patch_from_the_command_line(tmp_path, capsys):
    out = tmp_path / "found"
    status = main(["discover", "--model", "digits_vit", "--task", "digits", "--positions", "roles", "--prompts", "8",
                   "--resamples", "0", "--calibrate", "0", "--size", "200", "--out", str(out)])
    assert status == 0, capsys.readouterr().err
    stored = json.loads((out / "circuit.json").read_text())
    assert "patch r2 c3" in stored["graph"]["positions"] and stored["provenance"]["faithfulness"] > 0.8
    assert main(["evaluate", str(out), "--seed", "1", "--split", "test"]) == 0
    assert re.search(r"faithfulness 0\.[89]|faithfulness 1\.", capsys.readouterr().out)
    assert main(["models"]) == 0 and "digits_vit" in capsys.readouterr().out
