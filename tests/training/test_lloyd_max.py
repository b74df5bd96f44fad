"""Lloyd-Max codebooks against published tables and against direct integration."""

from __future__ import annotations

import json
import math
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from helpers.compare import assert_within
from scipy import integrate

from turbocode.codebooks.catalog import SCALAR_NAMES
from turbocode.errors import OptionError
from turbocode.training.densities import Density, Gaussian, SphereCoordinate
from turbocode.training.lloyd_max import lloyd_max
from turbocode_cli.main import run

# Max, IRE Trans. IT-6 (1960), to six digits: bits -> (MSE, positive centroids, positive boundaries).
MAX_1960 = {
    1: (0.363380, [0.797885], []),
    2: (0.117482, [0.452780, 1.510418], [0.981599]),
    3: (0.034548, [0.245094, 0.756005, 1.343909, 2.151946], [0.500550, 1.049957, 1.747927]),
    4: (
        0.009501,
        [0.128395, 0.388048, 0.656759, 0.942340, 1.256231, 1.618046, 2.069017, 2.732590],
        [0.258222, 0.522404, 0.799550, 1.099286, 1.437139, 1.843532, 2.400803],
    ),
    5: (
        0.0025047,
        [
            0.065890,
            0.198052,
            0.331378,
            0.466699,
            0.604934,
            0.747136,
            0.894565,
            1.048783,
            1.211804,
            1.386340,
            1.576228,
            1.787233,
            2.028728,
            2.317739,
            2.691119,
            3.260732,
        ],
        [
            0.131971,
            0.264715,
            0.399039,
            0.535816,
            0.676035,
            0.820850,
            0.971674,
            1.130294,
            1.299072,
            1.481284,
            1.681730,
            1.907981,
            2.173234,
            2.504429,
            2.975926,
        ],
    ),
}
# MSE x dimension of the coordinate of a random unit vector, 1 to 5 bits, as many digits as known.
SPHERE_MSE = {
    32: ("0.35336", "0.11160", "0.03226", "0.008774", "0.002298"),
    64: ("0.35839", "0.11453", "0.03339", "0.009132", "0.002399"),
    80: ("0.35939", "0.11511", "0.03362", "0.009204", "0.002420"),
    96: ("0.36006", "0.11551", "0.03377", "0.009253", "0.002434"),
    128: ("0.36089", "0.11600", "0.033966", "0.009315", "0.002451"),
    256: ("0.36214", "0.11674", "0.034256", "0.009408", "0.002478"),
    512: ("0.36276", "0.11711", "0.03440", "0.009454", "0.002491"),
}


@pytest.mark.parametrize("bits", MAX_1960)
def test_gaussian_agrees_with_max(bits: int) -> None:
    mse, centroids, boundaries = MAX_1960[bits]
    codebook, half = lloyd_max(Gaussian(), bits), 2 ** (bits - 1)
    assert_within(codebook.centroids[half:], centroids, 1e-6)
    assert_within([0.0, *codebook.boundaries[half:]], [0.0, *boundaries], 1e-6)
    assert codebook.nmse == pytest.approx(mse, abs=1e-6)


def test_six_bits_agree_with_the_published_error() -> None:
    assert lloyd_max(Gaussian(), 6).nmse == pytest.approx(0.000644, abs=5e-7)


@pytest.mark.parametrize("dimension", SPHERE_MSE)
def test_sphere_agrees_with_the_published_errors(dimension: int) -> None:
    for bits, digits in enumerate(SPHERE_MSE[dimension], start=1):
        half_unit = 0.51 * 10.0 ** -len(digits.partition(".")[2])
        assert lloyd_max(SphereCoordinate(dimension), bits).nmse == pytest.approx(float(digits), abs=half_unit)


def pdf(density: Density, x: float) -> float:
    if isinstance(density, SphereCoordinate):
        d = density.dimension
        log_c = math.lgamma(d / 2) - math.lgamma((d - 1) / 2) - 0.5 * math.log(math.pi * d)
        return math.exp(log_c) * max(0.0, 1 - x * x / d) ** ((d - 3) / 2)
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize(
    "density", [Gaussian(), *(SphereCoordinate(d) for d in (3, 4, 5, 64, 128, 1000))], ids=lambda d: d.name
)
def test_every_centroid_is_the_mean_of_its_cell(density: Density, bits: int) -> None:
    codebook = lloyd_max(density, bits)
    reach = min(density.support, 12.0)
    edges = [-reach, *codebook.boundaries, reach]
    error = 0.0
    for centroid, low, high in zip(codebook.centroids, edges, edges[1:], strict=False):
        mass = integrate.quad(lambda x: pdf(density, x), low, high, epsabs=1e-13)[0]
        mean = integrate.quad(lambda x: x * pdf(density, x), low, high, epsabs=1e-13)[0] / mass
        assert centroid == pytest.approx(mean, abs=1e-7)
        error += integrate.quad(lambda x, c=centroid: (x - c) ** 2 * pdf(density, x), low, high, epsabs=1e-13)[0]
    assert codebook.nmse == pytest.approx(error, rel=1e-6)


@pytest.mark.parametrize("dimension", [2, 3, 17, 4096])
@pytest.mark.parametrize("bits", [1, 6, 8])
def test_any_dimension_converges(dimension: int, bits: int) -> None:
    codebook = lloyd_max(SphereCoordinate(dimension), bits)
    np.testing.assert_array_equal(codebook.centroids, -codebook.centroids[::-1])
    assert np.abs(codebook.centroids).max() < math.sqrt(dimension)


def test_three_dimensions_are_uniform() -> None:
    assert lloyd_max(SphereCoordinate(3), 4).nmse == pytest.approx(4.0**-4, rel=1e-12)


def test_what_is_not_possible_is_refused() -> None:
    for bits in (0, 9):
        with pytest.raises(OptionError):
            lloyd_max(Gaussian(), bits)
    with pytest.raises(OptionError):
        SphereCoordinate(1)


@pytest.mark.parametrize("name", SCALAR_NAMES)
def test_the_command_in_its_provenance_makes_the_shipped_table(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = json.loads(resources.files("turbocode.codebooks").joinpath("tables", f"{name}.json").read_text())
    command = shipped["provenance"]["command"].split()
    assert command[0] == "turbocode"
    path = tmp_path / "made.json"
    assert run([*command[1:], "-o", str(path), "--json"]) == 0
    made = json.loads(path.read_text())
    for document in (shipped, made):
        del document["provenance"]["versions"]
    assert_within(made.pop("centroids"), shipped.pop("centroids"), 1e-12)
    assert_within(made.pop("boundaries"), shipped.pop("boundaries"), 1e-12)
    for key in ("nmse", "shannon_gap_db"):
        assert made.pop(key) == pytest.approx(shipped.pop(key), rel=1e-9)
    assert made == shipped
