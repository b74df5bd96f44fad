"""doctor's facts and its self-test."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from turbocode.codecs import STANDARD_CODECS
from turbocode.evaluation import environment, self_test


def test_the_environment_is_json_with_what_is_there(tmp_path: Path) -> None:
    found = environment.describe_environment(tmp_path)
    json.dumps(found, allow_nan=False)
    assert found["versions"]["numpy"] and found["versions"]["click"]
    assert found["machine"]["cores"] >= 1 and found["hdf5"]["filters"]["fletcher32"]
    assert found["folder"]["writable"] and found["folder"]["locks"] and found["folder"]["free_bytes"] > 0
    assert (found["gpu"]["problem"] is None) == (found["gpu"]["driver"] is not None)


def test_a_folder_that_is_missing_is_no_failure(tmp_path: Path) -> None:
    found = environment.describe_environment(tmp_path / "none")["folder"]
    assert (found["writable"], found["locks"], found["free_bytes"]) == (False, None, None)


def test_a_missing_package_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "PACKAGES", ("numpy", "no-such-package"))
    versions = environment.describe_environment()["versions"]
    assert versions["no-such-package"] is None and versions["numpy"]


def test_a_container_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = environment.memory_limit()
    assert 0 < machine <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") + (1 << 20)
    (tmp_path / "limit").write_text("1000000\n")
    (tmp_path / "unlimited").write_text("max\n")
    monkeypatch.setattr(environment, "_CGROUP_LIMITS", (tmp_path / "unlimited", tmp_path / "limit", tmp_path / "none"))
    assert environment.memory_limit() == 1_000_000


def test_the_self_test_passes_and_covers_every_codec() -> None:
    result = self_test.run_self_test()
    assert result["ok"], result
    assert tuple(row["codec"] for row in result["codecs"]) == STANDARD_CODECS
    assert result["threading_layer"]


def test_the_self_test_notices_a_worse_codec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(self_test.EXPECTED_NMSE, "turbo3", 0.03)
    rows = {row["codec"]: row["problem"] for row in self_test.run_self_test()["codecs"]}
    assert "NMSE" in rows["turbo3"] and rows["turbo4"] is None


def test_the_self_test_notices_a_codec_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str, head_dim: int) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(self_test, "make_codec", broken)
    result = self_test.run_self_test()
    assert not result["ok"] and result["codecs"][0]["problem"] == "RuntimeError: no compiler"
