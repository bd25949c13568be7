"""Gradient interaction modifications: the factors, and what is refused. test_rules.py tests the rules themselves."""

import numpy as np
import pytest
from conftest import make_batch, tiny
from test_rules import METHODS, scores

from acdc.discovery.eap import eap
from acdc.discovery.gim import gim
from acdc.errors import AcdcError


def test_it_follows_its_rules(family):
    model, batch = tiny(family), make_batch()
    found = gim(model, [batch])
    np.testing.assert_array_equal(found.values, scores(model, batch, METHODS["gim"]).values)
    assert found.provenance["method"] == "gim"
    assert found.provenance["method_options"] == {"temperature": 2.0, "gate": 0.5}


def test_without_norms_gates_and_temperature_the_last_layer_is_that_of_eap_times_the_factors():
    """Above it there is no attention; in a compiled model, no norm either."""
    model, batch = tiny("gpt2_compiled"), make_batch()
    plain, found = (s.graph.to_matrix(s.values) for s in (eap(model, [batch]), gim(model, [batch], temperature=1.0)))
    graph = model.graph()
    last, scale = graph.layer(model.n_layers - 1), np.abs(plain).max()
    for channels, factor in ((last.q, 0.25), (last.k, 0.25), (last.v, 0.5), (slice(last.mlp_channel, None), 1.0)):
        assert np.abs(plain[:, channels]).max() > 1e-4 * scale
        np.testing.assert_allclose(found[:, channels], factor * plain[:, channels], rtol=0, atol=1e-12 * scale)


def test_the_gate_is_that_of_gated_mlps():
    batch = make_batch()
    for family, gated in (("gpt2", False), ("llama", True)):
        with_gate, without = (gim(tiny(family), [batch], gate=gate).values for gate in (0.5, 1.0))
        assert np.array_equal(with_gate, without) != gated


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": float("nan")}, {"gate": float("inf")}])
def test_numbers_without_meaning_are_refused(options):
    name, value = next(iter(options.items()))
    with pytest.raises(AcdcError, match=f"{name}={value}: it must be"):
        gim(tiny("gpt2"), [make_batch()], **options)
