"""A run that is stopped goes on from its pieces, and computes each once."""

import json

import numpy as np
import pytest
from conftest import make_batch, tiny
from safetensors.numpy import save

import acdc.pieces
from acdc.annotation.causal_tracing import Noise, trace
from acdc.annotation.effects import node_effects
from acdc.annotation.patching_sweep import sweep
from acdc.discovery import METHODS
from acdc.errors import AcdcError
from acdc.evaluation.calibration import calibrate
from acdc.metrics import METRICS
from acdc.optimal_ablation import learn_ablation
from acdc.pieces import piece, piece_of_json, resumable


class Killed(BaseException):
    """In place of what ends a run."""


@pytest.fixture(autouse=True)
def _always(monkeypatch):
    monkeypatch.setattr(acdc.pieces, "SECONDS", 0.0)


def interrupted(tmp_path, monkeypatch, compute, after):
    """What `compute` gives when it is killed once `after` pieces are computed, and goes on; and how many it computes
    in either try."""
    counts = []
    take = acdc.pieces.Pieces.take

    def counted(pieces, label, items, own):
        def once(items):
            computed = own(items)
            while True:
                if len(counts) == 1 and counts[0] == after:
                    raise Killed
                counts[-1] += 1
                try:
                    yield next(computed)
                except StopIteration:
                    counts[-1] -= 1
                    return

        return take(pieces, label, items, once)

    monkeypatch.setattr(acdc.pieces.Pieces, "take", counted)
    spent = []
    counts.append(0)
    with pytest.raises(Killed), resumable(tmp_path / "out", {"a": 1}, spent):
        compute()
    counts.append(0)
    with resumable(tmp_path / "out", {"a": 1}, spent):
        return compute(), counts


def test_pieces_are_computed_once(tmp_path, monkeypatch):
    calls = []

    def outer(i):
        parts = [piece("part", lambda j=j: calls.append((i, j)) or {"x": np.array([i, j]), "y": np.array(0.1 * j)})
                 for j in range(3)]
        return {"sum": sum(part["x"] for part in parts), "last": parts[-1]["y"]}

    def compute():
        return [piece("whole", lambda i=i: outer(i)) for i in range(3)]

    whole = compute()
    assert len(calls) == 9
    calls.clear()
    found, counts = interrupted(tmp_path, monkeypatch, compute, after=6)  # a whole and its parts, one of the next
    assert counts == [6, 7] and sorted(calls) == [(i, j) for i in range(3) for j in range(3)]
    for one, other in zip(whole, found, strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[key], other[key]) and one[key].dtype == other[key].dtype for key in one)


def test_json_comes_back_as_it_was(tmp_path):
    value = {"a": [1, 2.5, None, "é"], "b": {"c": 1e-300, "d": -0.1}}
    for _ in range(2):
        with resumable(tmp_path / "out", {}, []) as found:
            assert piece_of_json("x", lambda: value) == value
    assert found


def test_another_run_starts_anew_and_a_short_one_writes_nothing(tmp_path, monkeypatch):
    spent = []
    for run in ({"seed": 0}, {"seed": 1}):
        with resumable(tmp_path / "out", run, spent) as found:
            assert not found and piece("x", lambda run=run: {"seed": np.array(run["seed"])})["seed"] == run["seed"]
    assert len(set(spent)) == 2 == len(list(tmp_path.iterdir()))
    monkeypatch.setattr(acdc.pieces, "SECONDS", 60.0)
    with resumable(tmp_path / "short", {}, []):
        piece("x", lambda: {"x": np.zeros(1)})
    with pytest.raises(KeyboardInterrupt), resumable(tmp_path / "short", {}, []):
        piece("x", lambda: {"x": np.zeros(1)})
        raise KeyboardInterrupt
    assert len(list(tmp_path.iterdir())) == 2


def test_damage_and_disorder_are_told(tmp_path):
    spent = []
    with resumable(tmp_path / "out", {}, spent):
        piece("x", lambda: {"x": np.zeros(1)})
    with (pytest.raises(AcdcError, match=r"is damaged \(piece 0 is 'x', not 'y'\). Delete it"),
          resumable(tmp_path / "out", {}, [])):
        piece("y", lambda: {"x": np.zeros(1)})
    (file,) = spent[0].iterdir()
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(AcdcError, match="is damaged .* Delete it"), resumable(tmp_path / "out", {}, []):
        pass


@pytest.mark.parametrize("labels", ["[]", "[" * 100_000, '{"0": ["x"]}', "5", json.dumps({"0": "x"})])
def test_pieces_of_a_stranger_are_told(tmp_path, labels):
    """Labels that are none, and a piece without its array."""
    with resumable(tmp_path / "out", {}, spent := []):
        piece("x", lambda: {"x": np.zeros(1)})
    (file,) = spent[0].iterdir()
    file.write_bytes(save({"0/y": np.zeros(1)}, {"labels": labels}))
    with pytest.raises(AcdcError, match="is damaged .* Delete it"), resumable(tmp_path / "out", {}, []):
        piece_of_json("x", lambda: 1)


def test_only_what_a_killed_run_left_is_deleted(tmp_path):
    with resumable(tmp_path / "out", {}, spent := []):
        piece("x", lambda: {"x": np.zeros(1)})
    kept = ("x.safetensors", "notes.txt", "folder/file", ".x.01234567.part/file")
    for name in kept:
        (spent[0] / name).parent.mkdir(exist_ok=True)
        (spent[0] / name).write_text("mine")
    (spent[0] / ".000001.safetensors.89abcdef.part").write_text("half")
    (tmp_path / "victim").mkdir()
    (spent[0] / ".link.89abcdef.part").symlink_to(tmp_path / "victim")
    with resumable(tmp_path / "out", {}, []) as found:
        assert found and all((spent[0] / name).read_text() == "mine" for name in kept)
    assert len(list(spent[0].iterdir())) == 6 and (tmp_path / "victim").is_dir()


def test_pieces_behind_a_symbolic_link_are_left_alone(tmp_path):
    with resumable(tmp_path / "out", {}, spent := []):
        pass
    (tmp_path / "victim" / "docs").mkdir(parents=True)
    (tmp_path / "victim" / "docs" / "file").write_text("mine")
    spent[0].symlink_to(tmp_path / "victim")
    with pytest.raises(AcdcError, match="is a symbolic link.*Delete it"), resumable(tmp_path / "out", {}, []):
        piece("x", lambda: {"x": np.zeros(1)})
    assert [path.name for path in (tmp_path / "victim").rglob("*")] == ["docs", "file"]


@pytest.mark.parametrize("name", ["eap", "hisp", "ifr", "exact", "ensemble", "edge_pruning", "acdc_sequential"])
def test_a_method_goes_on_to_the_same_scores(tmp_path, monkeypatch, name):
    """`edge_pruning`, which has a checkpoint, computes the scores that it starts from in pieces."""
    model, batches = tiny("llama"), [make_batch(2, seed=seed) for seed in range(3)]
    options = {"edge_pruning": {"steps": 2, "prompts_per_step": 2},
               "acdc_sequential": {"shortlist": METHODS["eap"](model, batches).top(30, by="signed")}}.get(name, {})

    def compute():
        return METHODS[name](model, batches, **options)

    expected = compute()
    found, counts = interrupted(tmp_path, monkeypatch, compute, after=2)
    assert counts[0] == 2 and counts[1] >= 1 and found == expected


def test_other_long_work_goes_on_to_the_same_numbers(tmp_path, monkeypatch):
    model, batches = tiny("llama"), [make_batch(2, seed=seed) for seed in range(2)]
    metric, scores = METRICS["logit_difference"], METHODS["eap"](model, batches)
    circuit = scores.top(20, by="magnitude")

    def learned():
        return learn_ablation(model, batches, circuit=circuit, steps=60)(batches[0]).activations.final

    works = {
        "sweep": lambda: list(sweep(model, batches, metric, place="mlp").values.ravel()),
        "calibration": lambda: calibrate(model, scores, batches, metric, n=60).summary(),
        "node effects": lambda: node_effects(model, batches, metric, ["a0.h0", "m1"]),
        "trace": lambda: {kind: values.tolist() for kind, values in trace(
            model, batches[0].clean[0], 3, [2], Noise(0.5, 2), window=1).restored.items()},
        "constants": lambda: learned().tolist(),
    }
    for name, compute in works.items():
        with monkeypatch.context() as patch:
            expected = compute()
            (tmp_path / name).mkdir()
            found, counts = interrupted(tmp_path / name, patch, compute, after=1)
            assert counts[0] == 1 and counts[1] >= 1 and found == expected, name

