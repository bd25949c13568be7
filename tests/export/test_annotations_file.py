"""Annotations written and read are the same, in whatever their data holds; what JSON lacks is refused."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_circuits import texts

from acdc.circuit import Annotation
from acdc.errors import AcdcError
from acdc.export.annotations_file import annotations_from_json, annotations_to_json

finite = st.floats(allow_nan=False, allow_infinity=False)
nested = st.recursive(st.none() | st.booleans() | st.integers(-(2**70), 2**70) | finite | texts, lambda inner: st.lists(
    inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=8)
annotations = st.builds(Annotation, st.sampled_from(["input", "a0.h1", "a1.g0", "m3", "logits"]), texts.filter(bool),
                        texts, st.none() | finite, st.dictionaries(texts, nested, max_size=3))


@settings(max_examples=40, deadline=None)
@given(st.lists(annotations, max_size=5))
def test_writing_and_reading_is_the_identity(given_ones):
    nodes = list(dict.fromkeys(annotation.node for annotation in given_ones))
    text = annotations_to_json(given_ones)
    again = annotations_from_json(text)
    assert again == sorted(given_ones, key=lambda annotation: nodes.index(annotation.node))
    assert annotations_to_json(again) == text and text.isascii()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_json_lacks_are_refused(value):
    with pytest.raises(AcdcError, match=r"a0\.h1\.data\.grid\[1\]\[0\] is"):
        annotations_to_json([Annotation("a0.h1", "attention", data={"grid": [[0.5], [value]]})])
    with pytest.raises(AcdcError, match="must be a finite number"):
        Annotation("a0.h1", "role", value=value)
    written = annotations_to_json([Annotation("a0.h1", "role", "mover", 0.25)])
    with pytest.raises(AcdcError, match=r"mine\.json"):
        annotations_from_json(written.replace("0.25", json.dumps(value)), "mine.json")
