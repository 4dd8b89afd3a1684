"""Singular triplets and polar factors against decompositions in float64, on all shapes and spectra."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from consilience.merging.singular import complement, eigen, gram, leading, leading_of_product, polar

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def spectrum(rows, columns, values, seed=0):
    """A float32 matrix with these singular values."""
    u = torch.linalg.qr(random(rows, len(values), seed=seed).double()).Q
    v = torch.linalg.qr(random(columns, len(values), seed=seed + 1).double()).Q
    return ((u * torch.as_tensor(values, dtype=torch.float64)) @ v.T).float()


def projector(columns):
    return columns.double() @ columns.double().T


@pytest.mark.parametrize("device", DEVICES)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 45), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_leading_triplets_are_those_of_the_decomposition(device, rows, columns, count, seed):
    matrix = random(rows, columns, seed=seed).to(device)
    found = leading(matrix, count)
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    kept = min(count, rows, columns)
    assert found.left.shape == (rows, kept) and found.right.shape == (kept, columns)
    assert torch.allclose(found.values, s[:kept], rtol=1e-6)
    best = (u[:, :kept] * s[:kept]) @ v[:kept]
    made = (found.left * found.values) @ found.right.double()
    assert torch.allclose(made, best, atol=2e-6 * float(s[0]))
    assert found.left.dtype == matrix.dtype and found.left.device == matrix.device


@pytest.mark.parametrize("shape", [(320, 320), (280, 700), (700, 280)])
@pytest.mark.parametrize("kind", ["flat", "some strong", "decaying", "steep"])
def test_few_triplets_are_exact_for_every_spectrum(shape, kind):
    size = min(shape)
    matrix = random(*shape, seed=3)
    if kind == "some strong":
        matrix += 0.4 * random(shape[0], 30, seed=4) @ random(30, shape[1], seed=5)
    elif kind != "flat":
        matrix = spectrum(*shape, torch.logspace(0, -2 if kind == "decaying" else -8, size, dtype=torch.float64))
    count = size // 10
    found = leading(matrix, count)
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    assert float(torch.linalg.matrix_norm(projector(found.left) - projector(u[:, :count]), 2)) < 1e-6
    assert float(torch.linalg.matrix_norm(projector(found.right.T) - projector(v[:count].T), 2)) < 1e-6
    assert torch.allclose(found.values, s[:count], rtol=1e-7)


@pytest.mark.parametrize("device", DEVICES)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 30), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_polar_factor_of_any_rank(device, rows, columns, rank, seed):
    rank = min(rank, rows, columns)
    matrix = (random(rows, rank, seed=seed) @ random(rank, columns, seed=seed + 1)).to(device)
    factor, values = polar(matrix)
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    kept = int((s > 1e-6 * s[0]).sum()) if rank else 0
    near = float(s[kept - 1] / s[0]) if kept else 1.0
    assert len(values) == kept
    assert torch.allclose(factor.double(), u[:, :kept] @ v[:kept], atol=1e-6 + 1e-9 / near)
    assert torch.allclose(values, s[:kept], rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(7, 7), (5, 40), (40, 5), (300, 260)])
def test_powers_of_two_give_the_same_bits(dtype, shape):
    matrix = random(*shape).to(dtype)
    for scale in (4.0, 2.0**-20, 2.0**31):
        one, other = leading(matrix, 4), leading(matrix * scale, 4)
        assert torch.equal(one.left, other.left) and torch.equal(one.right, other.right)
        assert torch.equal(one.values * scale, other.values)
        one, other = polar(matrix), polar(matrix * scale)
        assert torch.equal(one[0], other[0]) and torch.equal(one[1] * scale, other[1])


def test_float64_matrices_keep_their_digits():
    matrix = random(30, 20).double() @ torch.diag(torch.logspace(0, -5, 20, dtype=torch.float64))
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    factor, values = polar(matrix)
    assert torch.allclose(factor, u @ v, atol=1e-10) and torch.allclose(values, s, rtol=1e-12)
    found = leading(matrix, 20)
    assert torch.allclose((found.left * found.values) @ found.right, matrix, atol=1e-14)


def test_directions_that_are_rounding_are_left_out():
    thin = random(20, 3) @ random(3, 30, seed=1)
    assert len(leading(thin, 10).values) == 3
    assert len(leading(thin, 10, least=1e9).values) == 0
    assert len(leading(torch.zeros(4, 6), 2).values) == 0
    stacked = torch.cat([thin, thin], 1)
    factor, values = polar(stacked)
    assert len(values) == 3 and torch.allclose(factor[:, :30], factor[:, 30:])


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 12), st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_products_of_thin_factors(rows, columns, rank, seed):
    left, right = random(rows, rank, seed=seed), random(rank, columns, seed=seed + 1)
    found = leading_of_product(left, right, 5)
    expected = leading(left.double() @ right.double(), 5)
    assert torch.allclose(found.values, expected.values, rtol=1e-5)
    made, best = ((t.left * t.values).double() @ t.right.double() for t in (found, expected))
    assert torch.allclose(made, best, atol=1e-5 * (1 + float(best.abs().max() if best.numel() else 0)))


def test_gram_and_its_eigenvectors():
    matrix = random(130, 70000)[:, ::7]
    square = gram(matrix)
    assert torch.allclose(square, matrix.double() @ matrix.double().T, rtol=1e-12)
    values, vectors = eigen(square.clone())
    assert (values.diff() >= 0).all()
    assert torch.allclose((vectors * values) @ vectors.T, square, atol=1e-9 * float(values[-1]))


def test_complement_is_the_rest_of_the_space():
    basis = torch.linalg.qr(random(9, 4)).Q
    rest = complement(basis)
    assert torch.allclose(projector(basis) + projector(rest), torch.eye(9).double(), atol=1e-5)
    assert complement(basis[:, :0]).shape == (9, 9)


def test_a_decomposition_that_does_not_converge_is_done_elsewhere(monkeypatch):
    matrix = random(9, 6).double()
    expected = polar(matrix)

    def fails(*args, **options):
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "svd", fails)
    factor, values = polar(matrix)
    assert torch.allclose(factor, expected[0]) and torch.allclose(values, expected[1])
    flat, plain = random(300, 400), torch.linalg.eigh
    expected = leading(flat, 10)
    monkeypatch.setattr(torch.linalg, "eigh", lambda m: fails() if m.dtype == torch.float32 else plain(m))
    assert torch.allclose(leading(flat, 10).values, expected.values, rtol=1e-7)
