"""Codebooks: the shipped tables, the JSON form, files and sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from turbocode.codebooks import (
    CODEBOOK_NAMES,
    Codebook,
    CodebookSet,
    ScopedCodebook,
    TrellisCodebook,
    load_codebook,
    read_codebook,
)
from turbocode.codebooks.catalog import SCALAR_NAMES, TRELLIS_NAMES
from turbocode.errors import DataError, NoInputError, OptionError

GOOD = load_codebook("gaussian-2").to_json()


@pytest.mark.parametrize("name", SCALAR_NAMES)
def test_shipped_codebooks_are_sound(name: str) -> None:
    codebook = load_codebook(name)
    centroids = codebook.centroids
    assert codebook.name == name
    assert centroids.size == 2**codebook.bits
    assert (np.diff(centroids) > 0).all()
    np.testing.assert_array_equal(centroids, -centroids[::-1])
    np.testing.assert_array_equal(codebook.boundaries, (centroids[1:] + centroids[:-1]) / 2)
    assert codebook.shannon_gap_db == pytest.approx(10 * np.log10(codebook.nmse * 4**codebook.bits))
    for table in codebook.for_group(128):
        assert table.dtype == np.float32
    assert codebook.provenance["command"].startswith("turbocode train-codebook --density")
    assert not centroids.flags.writeable


def test_the_json_form_is_lossless() -> None:
    codebook = load_codebook("sphere64-4")
    again = Codebook.from_json(json.loads(codebook.dumps()))
    np.testing.assert_array_equal(again.centroids, codebook.centroids)
    assert again.dumps() == codebook.dumps()


BAD: list[Any] = [
    None,
    [],
    {},
    {**GOOD, "format": "other"},
    {**GOOD, "format_version": 2},
    {**GOOD, "name": ""},
    {**GOOD, "name": 3},
    {**GOOD, "centroids": "1 2"},
    {**GOOD, "centroids": [1, 2, 3]},
    {**GOOD, "centroids": [1.0]},
    {**GOOD, "centroids": [2.0, 1.0]},
    {**GOOD, "centroids": [1.0, 1.0]},
    {**GOOD, "centroids": [1.0, float("nan")]},
    {**GOOD, "centroids": [1.0, float("inf")]},
    {**GOOD, "centroids": [True, False]},
    {**GOOD, "centroids": [10**400, 1]},
    {**GOOD, "nmse": 0},
    {**GOOD, "nmse": "small"},
    {**GOOD, "nmse": True},
    {**GOOD, "nmse": float("nan")},
    {**GOOD, "bits": 3},
    {**GOOD, "provenance": []},
    {**GOOD, "centroids": list(range(512))},
]


@pytest.mark.parametrize("document", BAD, ids=range(len(BAD)))
def test_malformed_codebooks_are_refused(document: Any) -> None:
    with pytest.raises(DataError):
        Codebook.from_json(document, file="bad.json")


def test_unknown_names_get_a_suggestion() -> None:
    with pytest.raises(OptionError) as error:
        load_codebook("gausian-3")
    assert error.value.hint == "did you mean gaussian-3?"


@pytest.mark.parametrize("text", ["", "{", "\x00", "[" * 100_000, "nan"])
def test_files_that_are_not_codebooks_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "codebook.json"
    path.write_text(text)
    with pytest.raises(DataError):
        read_codebook(path)


def test_missing_files_and_folders_are_no_input(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.json", tmp_path):
        with pytest.raises(NoInputError):
            read_codebook(path)


def test_a_set_gives_the_most_specific_codebook(tmp_path: Path) -> None:
    books = [Codebook(name, np.array([-1.0 - i, 1.0 + i]), 0.4) for i, name in enumerate("abcd")]
    entries = (
        ScopedCodebook(books[0]),
        ScopedCodebook(books[1], side="keys"),
        ScopedCodebook(books[2], layer="001", side="keys"),
        ScopedCodebook(books[3], layer="001", side="keys", head=1),
    )
    path = tmp_path / "set.json"
    path.write_text(json.dumps(CodebookSet(entries).to_json()))
    stored = read_codebook(path)
    assert isinstance(stored, CodebookSet)
    assert [
        stored.select(*key).name
        for key in (("000", "values", 0), ("000", "keys", 0), ("001", "keys", 0), ("001", "keys", 1))
    ] == list("abcd")


def test_a_set_without_a_fitting_codebook_says_so() -> None:
    entries = (ScopedCodebook(load_codebook("gaussian-2"), layer="001"),)
    with pytest.raises(DataError, match="no codebook for layer 000, keys, head 0"):
        CodebookSet(entries).select("000", "keys", 0)


@pytest.mark.parametrize(
    "change",
    [
        {"codebooks": []},
        {"codebooks": [3]},
        {"format_version": 9},
        {"codebooks": [{"codebook": GOOD, "head": -1}]},
        {"codebooks": [{"codebook": GOOD, "side": "k"}]},
        {"codebooks": [{"codebook": GOOD, "layer": 3}]},
        {"codebooks": [{"codebook": None}]},
    ],
)
def test_malformed_sets_are_refused(change: dict[str, Any]) -> None:
    good = CodebookSet((ScopedCodebook(load_codebook("gaussian-2")),)).to_json()
    with pytest.raises(DataError):
        CodebookSet.from_json({**good, **change})


TRELLIS = load_codebook("trellis2-8").to_json()


def test_names_are_of_either_kind() -> None:
    assert (*SCALAR_NAMES, *TRELLIS_NAMES) == CODEBOOK_NAMES
    assert len(TRELLIS_NAMES) == 20


@pytest.mark.parametrize("name", TRELLIS_NAMES)
def test_shipped_trellis_codebooks_are_sound(name: str) -> None:
    codebook = load_codebook(name)
    assert isinstance(codebook, TrellisCodebook)
    family, _, states_log2 = name.partition("-")
    assert (codebook.name, codebook.bits, codebook.states_log2) == (name, int(family[-1]), int(states_log2))
    assert codebook.shannon_gap_db == pytest.approx(10 * np.log10(codebook.nmse * 4**codebook.bits))
    # The reproduction of a Gaussian at distortion D has variance 1 - D and, like it, no mean.
    assert codebook.values.std() == pytest.approx(1, abs=0.25)
    assert abs(codebook.values.mean()) < 0.05
    table, nothing = codebook.for_group(64)
    assert table.dtype == np.float32 and nothing.size == 0
    np.testing.assert_allclose(table, codebook.values / 8, rtol=1e-6)
    ends = "ring" if family.startswith("trellis") else "free"
    assert f"--ends {ends} --seed 1 " in codebook.provenance["command"]
    assert codebook.provenance["seed"] == 1


def test_trellis_codebooks_survive_json(tmp_path: Path) -> None:
    codebook = load_codebook("trellis3-9")
    path = tmp_path / "book.json"
    path.write_text(codebook.dumps())
    again = read_codebook(path)
    assert isinstance(again, TrellisCodebook)
    assert again.dumps() == codebook.dumps()
    np.testing.assert_array_equal(again.values, codebook.values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "turbocode-other"}, "'format'"),
        ({"format_version": 2}, "version 2"),
        ({"name": ""}, "'name'"),
        ({"bits": 2.0}, "'bits'"),
        ({"bits": True}, "'bits'"),
        ({"bits": 5}, "1 to 4"),
        ({"bits": 0}, "1 to 4"),
        ({"values": TRELLIS["values"][:-1]}, "power of two"),
        ({"values": TRELLIS["values"][:16]}, "power of two from 32"),
        ({"values": TRELLIS["values"] * 32}, "to 4096"),
        ({"values": [0.0] * 256}, "not all equal"),
        ({"values": ["1"] * 256}, "list of numbers"),
        ({"values": [float("nan")] * 256}, "finite"),
        ({"values": [10**400] * 256}, "too large"),
        ({"states_log2": 9}, "8 bits of state"),
        ({"nmse": 0}, "nmse"),
        ({"nmse": "0.1"}, "'nmse'"),
        ({"provenance": []}, "'provenance'"),
    ],
)
def test_damaged_trellis_codebooks_are_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "book.json"
    path.write_text(json.dumps({**TRELLIS, **changes}))
    with pytest.raises(DataError, match=message) as error:
        read_codebook(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_sets_hold_either_kind(tmp_path: Path) -> None:
    book = CodebookSet(
        (ScopedCodebook(load_codebook("trellis2-8"), side="keys"), ScopedCodebook(load_codebook("gaussian-2")))
    )
    path = tmp_path / "set.json"
    path.write_text(json.dumps(book.to_json()))
    again = read_codebook(path)
    assert isinstance(again, CodebookSet)
    assert isinstance(again.select("000", "keys", 0), TrellisCodebook)
    assert isinstance(again.select("000", "values", 0), Codebook)
