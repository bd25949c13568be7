"""The reader of safetensors files: what is written comes back, and what is no such file is told, and never run."""

import json
import pickle

import pytest
import torch
from safetensors.torch import save, save_file

from acdc.errors import AcdcError
from acdc.tensor_file import read_tensors


class Runs:
    """A pickle of it calls a function when it is read."""

    def __reduce__(self):
        return pytest.fail, ("the pickle was run",)


def test_what_is_saved_is_read(tmp_path):
    saved = {"a": torch.randn(2, 3), "b": torch.arange(4)}
    save_file(saved, tmp_path / "x.safetensors", {"site": "m1"})
    tensors, metadata = read_tensors(tmp_path / "x.safetensors")
    assert metadata == {"site": "m1"} and tensors.keys() == saved.keys()
    assert all(torch.equal(tensors[name], saved[name]) for name in saved)
    save_file(saved, tmp_path / "without.safetensors")
    assert read_tensors(str(tmp_path / "without.safetensors"))[1] == {}


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_numbers_of_8_bits_are_read_as_32(tmp_path, dtype):
    numbers = torch.tensor([0.5, -2.0, 8.0])
    save_file({"a": numbers.to(dtype)}, tmp_path / "x.safetensors")
    assert torch.equal(read_tensors(tmp_path / "x.safetensors")[0]["a"], numbers)


def header(claims: dict, rest: bytes = b"") -> bytes:
    text = json.dumps(claims).encode()
    return len(text).to_bytes(8, "little") + text + rest


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"no",
        save({"a": torch.ones(99)})[:-1],  # cut short
        save({"a": torch.ones(99)})[:40],
        (2**62).to_bytes(8, "little") + b"{}",  # a header of more bytes than there are
        header({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}, b"1234"),
        header({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}, b"1234"),
        header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"1234"),
        header({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, b"1234"),
        header({"a": []}),
        header({"a": {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}}, b"1234"),  # torch computes nothing of it
    ],
)
def test_damaged_files_are_told(tmp_path, damaged):
    path = tmp_path / "x.safetensors"
    path.write_bytes(damaged)
    with pytest.raises(AcdcError, match="x.safetensors is not a probe, or is damaged .*; write it anew"):
        read_tensors(path, "probe", "write it anew")


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
@pytest.mark.parametrize("how", [lambda path: path.write_bytes(pickle.dumps(Runs())),
                                 lambda path: torch.save(Runs(), path)])
def test_pickles_are_refused_and_not_run(tmp_path, name, how):
    how(tmp_path / name)
    with pytest.raises(AcdcError, match="is a pickle, which can run any code.*safetensors.torch.save_file"):
        read_tensors(tmp_path / name)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(AcdcError, match="there is no .*nothing, which should be a probe"):
        read_tensors(tmp_path / "nothing", "probe")
    with pytest.raises(AcdcError, match="is a folder, not a file"):
        read_tensors(tmp_path, "probe")
