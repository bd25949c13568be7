"""The scores of single prompts read back exactly; a file of anything else is refused."""

import numpy as np
import pytest
from safetensors.numpy import save

from acdc.circuit import Circuit, EdgeScores
from acdc.errors import AcdcError
from acdc.evaluation.difference import difference
from acdc.export.json_file import circuit_from_json, circuit_to_json
from acdc.export.prompt_scores import FORMAT, prompt_scores_bytes, with_prompt_scores
from acdc.graph import Graph

GRAPH = Graph(2, 2, 2)
ALONE = np.random.default_rng(0).normal(size=(6, GRAPH.n_edges)).astype(np.float32) * 1e-6


def circuit(shift: int = 0) -> Circuit:
    alone = np.roll(ALONE, shift, axis=1)
    return EdgeScores(GRAPH, alone.mean(0, dtype=np.float64), {"task": "t"}, alone).top(12, by="magnitude")


def saved(path, found: Circuit) -> Circuit:
    path.write_bytes(prompt_scores_bytes(found.scores.per_prompt))  # pyright: ignore[reportOptionalMemberAccess]
    return with_prompt_scores(circuit_from_json(circuit_to_json(found)), path)


def test_a_saved_circuit_has_the_interval_of_the_one_in_memory(tmp_path):
    a, b = circuit(), circuit(shift=1)
    again = [saved(tmp_path / name, found) for name, found in (("a", a), ("b", b))]
    assert again[0].scores is not None and again[0].scores.per_prompt is not None
    assert again[0].scores.per_prompt.tobytes() == ALONE.tobytes() and again[0] == a
    assert difference(*again).interval == difference(a, b).interval is not None


@pytest.mark.parametrize(("content", "message"), [
    (prompt_scores_bytes(np.roll(ALONE, 1, axis=1)), "is of another circuit"),
    (prompt_scores_bytes(ALONE[:, 1:]), "prompts by"),
    (prompt_scores_bytes(np.where(ALONE > 0, ALONE, np.float32("nan"))), "not finite"),
    (save({"scores": ALONE.astype(np.float16)}, {"format": FORMAT}), "F16"),
    (save({"scores": ALONE}), "as this acdc writes"),
    (prompt_scores_bytes(ALONE)[:-1], "damaged"), (b"", "damaged"),
])
def test_what_is_not_of_the_circuit_is_refused(tmp_path, content, message):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(AcdcError, match=message):
        with_prompt_scores(circuit(), tmp_path / "file")
    with pytest.raises(AcdcError, match="without scores"):
        with_prompt_scores(Circuit.from_edges(GRAPH, []), tmp_path / "file")
