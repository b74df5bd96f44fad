"""The rotation against scipy.linalg.hadamard, the published signs, and itself."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.compare import assert_within
from scipy.linalg import hadamard

from turbocode.errors import OptionError
from turbocode.formats import GROUP_SIZES
from turbocode.kernels.fwht import ROTATION_KINDS, cpu, reference, rotation_for, signs
from turbocode.kernels.fwht.hadamard import paley_hadamard

EACH = pytest.mark.parametrize(("group", "kind"), [(g, k) for g in GROUP_SIZES for k in ROTATION_KINDS])


def test_signs_are_the_published_ones() -> None:
    before, after = signs()
    assert np.packbits(before < 0, bitorder="little").tobytes().hex() == "59036ae44959f842bb3bc6a4a950f249"
    assert np.packbits(after < 0, bitorder="little").tobytes().hex() == "90eeac16dc8f623f7a35a5b76265a5be"


@pytest.mark.parametrize("order", [12, 20])
def test_paley_matrices_are_hadamard(order: int) -> None:
    matrix = paley_hadamard(order)
    assert set(matrix.ravel()) == {-1.0, 1.0}
    np.testing.assert_array_equal(matrix @ matrix.T, order * np.eye(order))


@pytest.mark.parametrize("group", [16, 32, 64, 128])
def test_powers_of_two_agree_with_scipy(group: int, rng: np.random.Generator) -> None:
    x = rng.standard_normal((5, group))
    before, after = signs()
    expected = after[:group] * (hadamard(group) @ (before[:group] * x).T / np.sqrt(group)).T
    assert_within(reference.rotate(x, rotation_for(group)), expected, 1e-13)


@EACH
def test_reference_is_the_dense_matrix(group: int, kind: str, rng: np.random.Generator) -> None:
    rotation, x = rotation_for(group, kind), rng.standard_normal((3, 2, group))
    matrix = rotation.matrix()
    assert_within(matrix @ matrix.T, np.eye(group), 1e-14)
    assert_within(reference.rotate(x, rotation), x @ matrix.T, 1e-13)
    assert_within(reference.unrotate(reference.rotate(x, rotation), rotation), x, 1e-13)


@EACH
@pytest.mark.parametrize("n", [1, 63, 64, 65, 129])
def test_cpu_agrees_with_reference(group: int, kind: str, n: int, rng: np.random.Generator) -> None:
    rotation, x = rotation_for(group, kind), rng.standard_normal((n, group)).astype(np.float32)
    rotated = cpu.rotate(x, rotation)
    assert_within(rotated, reference.rotate(x, rotation), 2e-6)
    assert_within(cpu.unrotate(rotated, rotation), x, 3e-6)


@pytest.mark.parametrize(("group", "kind"), [(72, "signed"), (256, "signed"), (128, "random"), (0, "signed")])
def test_unknown_rotations_are_refused(group: int, kind: str) -> None:
    with pytest.raises(OptionError):
        rotation_for(group, kind)
