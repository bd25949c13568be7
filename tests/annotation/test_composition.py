"""Composition by factors is composition by whole matrices; its baseline and spread are those of random rotations."""

import numpy as np
import pytest
import torch
from conftest import tiny
from planted_heads import EYE, LOUD, PASSED, TOKEN, empty, plant

from acdc.activations import out_weight
from acdc.annotation.composition import composition


def matrices(model, layer, head):
    """OV and QK of a head as d_model x d_model matrices, rows are what is read (by the query, in QK)."""
    block, kv = model.blocks[layer], int(model.kv_head[head])
    d, norm = model.hf.get_input_embeddings().weight.shape[1], block.attn_norm
    fold = torch.eye(d, dtype=torch.float64)
    if norm.centered:
        fold = fold - 1 / d
    if norm.gain is not None:
        fold = fold @ torch.diag(norm.gain)
    q, k, v = (fold @ part.weight[h].T for part, h in
               zip((block.attention.q, block.attention.k, block.attention.v), (head, kv, kv), strict=True))
    return v @ out_weight(block)[head], q @ k.T


def test_by_whole_matrices(family):
    model = tiny(family)
    ours = composition(model)
    d = model.hf.get_input_embeddings().weight.shape[1]
    assert ours.baseline == pytest.approx(d**-0.5)
    with torch.no_grad():
        for (lw, w), (lr, r) in (((0, 1), (1, 3)), ((0, 3), (2, 0)), ((1, 2), (2, 2))):
            a, _ = matrices(model, lw, w)
            ov, qk = matrices(model, lr, r)
            expected = [float((a @ b).norm() / a.norm() / b.norm()) for b in (qk, qk.T, ov)]
            place = ours.ratio[:, lw * model.n_heads + w, lr * model.n_heads + r]
            np.testing.assert_allclose(place, expected, rtol=1e-5)
    n = model.n_heads
    assert ours.ratio[:, n:, : 2 * n][:, :n, n:].isnan().all() and ours.ratio[:, :n, n:].isfinite().all()


def test_z_is_that_of_sampled_rotations():
    model = tiny("llama")
    ours, n, d = composition(model), model.n_heads, 24
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        a, (_, b) = matrices(model, 0, 1)[0], matrices(model, 2, 3)
        drawn = torch.randn(4000, d, d, generator=generator, dtype=torch.float64)
        rotations, triangle = torch.linalg.qr(drawn)
        rotations = rotations * triangle.diagonal(dim1=1, dim2=2).sign()[:, None]
        squares = ((a @ rotations @ b).pow(2).sum((1, 2)) / (a.norm() * b.norm()) ** 2).numpy()
    assert np.sqrt(squares.mean()) == pytest.approx(ours.baseline, rel=0.01)
    ratio, z = (float(x[0, 1, 2 * n + 3]) for x in (ours.ratio, ours.z))
    assert z == pytest.approx((ratio**2 - squares.mean()) / squares.std(), abs=0.1 + 0.05 * abs(z))


def test_a_planted_pair_stands_out():
    """A head that passes tokens on, and one whose keys read what is passed on: k-composition, and no other."""
    model = empty(2)
    plant(model, 0, 0, v=(TOKEN, EYE), to=PASSED)
    plant(model, 1, 0, q=[(TOKEN, LOUD * EYE)], k=[(PASSED, EYE)])
    z = composition(model).z[:, 0, 2]
    assert z[1] > 5 > 0 > z[0] and composition(model).ratio[1, 0, 2] == pytest.approx(1 / 40**0.5)
