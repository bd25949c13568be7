"""Costs that the scaling benchmark counts, against ones known in advance."""

import pytest
import torch

from acdc.benchmarks.scaling import Operations, measure

TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "intermediate_size": 64, "vocab_size": 100}


def test_operations_are_counted():
    with Operations() as operations:
        product = torch.ones(10, 20) @ torch.ones(20, 30)
        product.exp()
        torch.einsum("ij,kj->ik", product, product)
    assert operations.count == 2 * 10 * 20 * 30 + 2 * 10 * 30 * 10


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_passes_of_eap_ig_are_those_of_its_formula(dtype):
    found = measure(dtype, 4, 9, 2, 5, **TINY)
    products = 2 * found["n_edges"] * 4 * 6 * 32 / (2 * 3 * (32 * 8 * 12 + 3 * 32 * 64) * 4 * 9)
    # 7 forward passes and 5 backward ones, which end at the first z; attention comes on top
    assert 11 < found["EAP-IG"]["passes"] - products < 13
    assert 2.5 < found["circuit of 50% of the edges"]["passes"] < 5
    assert all(found[name]["seconds"] > 0 for name in ("load", "EAP-IG", "circuit of 50% of the edges"))
