"""Effects are those of patching; annotations say what was measured, and are kept beside the circuit."""

import json

import numpy as np
import pytest
import torch
from conftest import make_batch, tiny
from planted_heads import mover_batch, mover_model

from acdc.activations import record
from acdc.annotation.annotate import ANNOTATORS, annotate, merge
from acdc.annotation.effects import joint_effects, node_effects
from acdc.circuit import Annotation, Circuit
from acdc.errors import AcdcError
from acdc.export.annotations_file import annotations_from_json, annotations_to_json
from acdc.export.text import describe_annotations
from acdc.metrics import METRICS
from acdc.patching import patch_nodes

METRIC = METRICS["logit_difference"]


def whole(model):
    graph = model.graph()
    return Circuit(graph, np.ones(graph.n_edges, dtype=bool))


def test_effects_are_those_of_patching(family):
    model, batches = tiny(family), [make_batch(3, 9, seed=0), make_batch(2, 7, seed=1)]
    nodes = ["input", "a0.h1", "m0", "a1.h3", "a2.h0", "m2"]
    ours = node_effects(model, batches, METRIC, nodes)
    for node in nodes:
        losses = []
        for batch in batches:
            with torch.no_grad():
                clean = model.hf(batch.clean).logits[:, -1]
            losses += (METRIC.loss(patch_nodes(model, batch, [node]), batch, clean)
                       - METRIC.loss(clean, batch, clean)).tolist()
        assert ours[node].value == pytest.approx(np.mean(losses), abs=1e-6 if "gemma" in family else 1e-9)
        assert ours[node].low < ours[node].value < ours[node].high
    assert ours["input"].share == (pytest.approx(1) if ours["input"].value > 0 else None)
    for nodes in (["a1.h2"], ["a0.h1", "m1"]):
        joint = joint_effects(model, batches, METRIC, {"some": nodes})["some"]
        losses = [METRIC.loss(patch_nodes(model, batch, nodes), batch, batch_logits)
                  - METRIC.loss(batch_logits, batch, batch_logits)
                  for batch in batches for batch_logits in [model.logits(record(model, batch.clean).final[:, -1])]]
        assert joint.value == pytest.approx(float(torch.cat(losses).detach().mean()), abs=1e-9)
    assert joint_effects(model, batches, METRIC, {"one": ["a0.h1"]})["one"].value == pytest.approx(
        ours["a0.h1"].value, abs=1e-6 if "gemma" in family else 1e-9)


def test_roles_are_backed_by_effects():
    """The head that attends to the token before does nothing for the task: its role is said to be without effect."""
    model, batch = mover_model(), mover_batch()
    found = annotate(model, whole(model), [batch], METRIC)
    roles = {(a.node, a.text) for a in found if a.kind == "role"}
    assert {("a0.h0", "S-inhibition"), ("a1.h0", "name mover"), ("a1.h0", "copying"), ("a1.h1", "negative mover"),
            ("a0.h1", "previous token (seen, without effect on this task)")} <= roles
    effects = {a.node: a.value for a in found if a.kind == "evidence" and a.value is not None}
    assert effects["a1.h0"] > 1 > 0 > effects["a1.h1"] and effects["a0.h1"] == 0 == effects["m0"]
    mean, first = (next(a for a in found if a.kind == "attention" and a.node == "a1.h0" and what in a.text)
                   for what in ("mean", "first prompt"))
    assert set(mean.data["tokens"]) == {"IO", "S1", "S2", "other", "end"}
    assert mean.data["weights"][-1][mean.data["tokens"].index("IO")] > 0.9
    assert len(first.data["tokens"]) == len(first.data["weights"]) == batch.clean.shape[1]
    assert found == annotate(model, whole(model), [batch], METRIC)
    nodes = [a.node for a in found]
    assert annotations_from_json(annotations_to_json(found)) == sorted(found, key=lambda a: nodes.index(a.node))
    text = describe_annotations(whole(model), found)
    assert "name mover" in text and "a1.h0 0.99" in text


def test_only_some_annotators_replace_what_they_made():
    model, batch = mover_model(), mover_batch()
    old = [Annotation("a0.h0", "role", "old"), Annotation("m0", "probe", "mine", 0.5)]
    new = annotate(model, whole(model), [batch], METRIC, only=["roles"])
    assert {a.kind for a in new} == {"role"}
    assert merge(old, new, ["roles"]) == [old[1], *new]


def test_mistakes_are_named():
    model, batch = tiny("gpt2"), make_batch(2)
    for message, only in (("annotator", ["rolls"]), ("no annotator named", [])):
        with pytest.raises(AcdcError, match=message):
            annotate(model, whole(model), [batch], METRIC, only=only)
    with pytest.raises(AcdcError, match="at least two"):
        annotate(model, whole(model), [make_batch(1)], METRIC)
    with pytest.raises(AcdcError, match="of another model"):
        annotate(model, whole(mover_model()), [batch], METRIC)
    with pytest.raises(AcdcError, match="node"):
        node_effects(model, [batch], METRIC, ["a9.h9"])


def test_a_circuit_without_heads_has_effects_alone():
    model, batch = tiny("llama"), make_batch(4)
    circuit = Circuit.from_edges(model.graph(), ["input->m0", "m0->logits"])
    found = annotate(model, circuit, [batch], METRIC)
    assert {(a.node, a.kind) for a in found} == {("input", "evidence"), ("m0", "evidence")}
    empty = Circuit.from_edges(model.graph(), [])
    assert annotate(model, empty, [batch]) == []
    assert "annotated nodes (all 0)" in describe_annotations(empty, [])


def test_unprintable_text_of_a_file_does_not_reach_the_terminal():
    circuit = whole(tiny("gpt2"))
    notes = annotations_from_json(json.dumps({"format": "acdc-annotations", "version": 1, "annotations": {
        "a9.h9": [{"kind": "role", "text": "\x1b[31mred\n"}, {"kind": "\x1b[31m"}]}}))
    assert all(c.isprintable() or c == "\n" for c in describe_annotations(circuit, notes))
    assert set(ANNOTATORS) == {"effects", "roles", "attention", "composition", "pictures"}
