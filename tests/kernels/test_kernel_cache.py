"""Kernels kept on disk: what their keys depend on, and that nothing but a whole kernel is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")

from turbocode.kernels import _kernel_cache
from turbocode.kernels._cuda import device, kernel
from turbocode.kernels.kernel_table import kernel_table

CUBIN = bytes(range(256)) * 3


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("TURBOCODE_CACHE_DIR", str(tmp_path / "kernels"))
    return tmp_path / "kernels"


def kernel_of(number: int, is_doubled: bool = False) -> Any:
    """A kernel that is made of a number it closes over and of a device function."""
    if is_doubled:

        @device
        def inner(x: Any) -> Any:
            return x + x
    else:

        @device
        def inner(x: Any) -> Any:
            return x

    @kernel()
    def run(x: Any) -> None:
        inner(x + number)

    return run


def test_keys_depend_on_what_a_kernel_is_made_of() -> None:
    key = _kernel_cache.key_of(kernel_of(1), 1, (9, 0))
    assert key is not None and key == _kernel_cache.key_of(kernel_of(1), 1, (9, 0))
    others = [
        _kernel_cache.key_of(kernel_of(2), 1, (9, 0)),
        _kernel_cache.key_of(kernel_of(1, is_doubled=True), 1, (9, 0)),
        _kernel_cache.key_of(kernel_of(1), 2, (9, 0)),
        _kernel_cache.key_of(kernel_of(1), 1, (8, 0)),
    ]
    assert None not in others and len({key, *others}) == 5


def test_kernels_of_the_table_have_keys_of_their_own() -> None:
    entries = [entry for entry in kernel_table() if entry.name.split()[0] in ("rotate", "attend", "prefill")]
    keys = [_kernel_cache.key_of(entry.make(), entry.n_args, (9, 0)) for entry in entries]
    assert len(entries) > 10 and None not in keys and len(set(keys)) == len(keys)


def test_what_is_kept_is_found() -> None:
    assert _kernel_cache.find("key") is None
    _kernel_cache.keep("key", "function", CUBIN)
    assert _kernel_cache.find("key") == ("function", CUBIN)


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[:-1] + b"\0", lambda b: b"[1]\n" + b])
def test_what_is_damaged_is_not(damage: Any, folder: Path) -> None:
    _kernel_cache.keep("key", "function", CUBIN)
    path = folder / "key.kernel"
    path.write_bytes(damage(path.read_bytes()))
    assert _kernel_cache.find("key") is None


def test_a_folder_that_cannot_be_made_is_no_error(folder: Path) -> None:
    folder.write_text("a file")
    _kernel_cache.keep("key", "function", CUBIN)
    assert _kernel_cache.find("key") is None
