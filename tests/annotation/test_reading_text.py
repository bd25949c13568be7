"""Running text: windows hold its tokens in order, and a text that cannot fill them is refused."""

from dataclasses import replace

import pytest
import torch
from conftest import tiny
from tiny_tokenizer import tiny_tokenizer

from acdc.annotation.text import read_text, windows
from acdc.errors import AcdcError

TEXT = "When Mary and John went to the store, John gave a drink to Mary. " * 4


@pytest.mark.parametrize("bos", [False, True])
def test_windows_are_the_tokens_of_the_text_in_order(bos):
    tokenizer = tiny_tokenizer(bos=bos)
    model = replace(tiny("llama"), tokenizer=tokenizer)
    found = windows(model, TEXT, 8, 3)
    plain = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert found.shape == (3, 8)
    assert found[:, int(bos):].flatten().tolist() == plain[: 3 * (8 - int(bos))]
    if bos:
        assert found[:, 0].tolist() == [tokenizer.bos_token_id] * 3
    assert len(windows(model, TEXT, 8)) == len(plain) // (8 - int(bos))


def test_python_carries_text():
    text = read_text("python")
    assert len(text) > 300_000 and "comparison operators" in text


def test_a_file_named_python_is_that_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "python").write_text("own text")
    assert read_text("python") == "own text"


def test_text_that_cannot_be_read(tmp_path):
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "binary.txt").write_bytes(b"ok\xff\xfe")
    for name, expected in {"none.txt": "cannot read", "empty.txt": "is empty", "binary.txt": "not UTF-8"}.items():
        with pytest.raises(AcdcError, match=expected):
            read_text(tmp_path / name)


@pytest.mark.parametrize(("context", "n", "expected"), [
    (64, None, r"\d+ tokens, which is 0 windows of 64; 1 asked for"), (8, 99, "99 asked for"),
    (1, None, "context of 1 tokens"), (65, None, "context of 65 tokens"),
])
def test_windows_that_cannot_be_filled(context, n, expected):
    model = replace(tiny("llama"), tokenizer=tiny_tokenizer())
    with pytest.raises(AcdcError, match=expected):
        windows(model, TEXT[:130], context, n)


def test_a_model_without_a_tokenizer():
    with pytest.raises(AcdcError, match="no tokenizer"):
        windows(tiny("llama"), TEXT, 8)


def test_windows_are_on_the_models_device():
    assert windows(replace(tiny("llama"), tokenizer=tiny_tokenizer()), TEXT, 8).device == torch.device("cpu")
