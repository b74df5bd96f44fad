"""Output is old or new, whole, whatever happens in between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dumps.samples import metadata, write_quantized

from turbocode.dumps import (
    DiskFullError,
    SynthesisSpec,
    atomic_output,
    create_dump,
    open_quantized,
    synthesize,
    write_text_atomically,
)
from turbocode.errors import LockedError, NoInputError, OutputError, StorageError

ROOT = Path(__file__).parents[2]


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_text_is_written_whole_with_the_usual_mode(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    old = os.umask(0o022)
    try:
        write_text_atomically(path, "é\r\n")
    finally:
        os.umask(old)
    assert path.read_bytes() == "é\r\n".encode() and path.stat().st_mode & 0o777 == 0o644
    assert names(tmp_path) == ["out.json"]


def test_existing_file_needs_force(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("old")
    with pytest.raises(OutputError, match="exists") as caught:
        write_text_atomically(path, "new")
    assert caught.value.exit_code == 73 and path.read_text() == "old"
    write_text_atomically(path, "new", force=True)
    assert path.read_text() == "new" and names(tmp_path) == ["out"]


def test_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with pytest.raises(OutputError, match="exists"), atomic_output(path) as part:
        part.write_text("ours")
        path.write_text("theirs")
    assert path.read_text() == "theirs" and names(tmp_path) == ["out"]


@pytest.mark.parametrize("dangling", [True, False])
def test_symbolic_link_is_refused(tmp_path: Path, dangling: bool) -> None:
    if not dangling:
        (tmp_path / "target").write_text("old")
    (tmp_path / "out").symlink_to(tmp_path / "target")
    with pytest.raises(OutputError, match="symbolic link"):
        write_text_atomically(tmp_path / "out", "new", force=True)
    assert (tmp_path / "target").exists() is not dangling


def test_output_that_is_the_input(tmp_path: Path) -> None:
    source, other_name = tmp_path / "in.h5", tmp_path / "other.h5"
    write_quantized(source)
    before = source.read_bytes()
    other_name.hardlink_to(source)
    for output in (source, other_name, tmp_path / "." / "in.h5"):
        with (
            pytest.raises(OutputError, match="is the input"),
            create_dump(output, metadata(), force=True, inputs=[source]),
        ):
            raise AssertionError("opened its own input for writing")
    with pytest.raises(NoInputError):
        write_text_atomically(source, "new", force=True, inputs=[tmp_path / "missing"])
    assert source.read_bytes() == before


def test_places_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "missing" / "out", tmp_path / "file" / "out", Path(".."), tmp_path / ("x" * 300)):
        with pytest.raises(OutputError) as caught:
            write_text_atomically(path, "new", force=True)
        assert "\n" not in str(caught.value)
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_interruption_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), create_dump(tmp_path / "out.h5", metadata()):
        raise error
    with pytest.raises(error), atomic_output(tmp_path / "out") as part:
        part.write_text("half")
        raise error
    assert names(tmp_path) == []


def test_stale_parts_are_swept_and_living_ones_kept(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    token = "0123456789abcdef"
    stale = f".out.{dead.pid}.{token}.part"
    kept = [f".out.{os.getpid()}.{token}.part", f".other.{dead.pid}.{token}.part", f".out.{dead.pid}.part", "out.part"]
    for name in (stale, *kept):
        (tmp_path / name).write_text("")
    write_text_atomically(tmp_path / "out", "new")
    assert names(tmp_path) == sorted(["out", *kept])


def test_second_writer_is_turned_away(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with atomic_output(path) as part:
        part.write_text("first")
        with pytest.raises(LockedError) as caught, atomic_output(path):
            raise AssertionError("two writers")
        assert caught.value.exit_code == 75
    assert path.read_text() == "first" and names(tmp_path) == ["out"]


def test_of_many_processes_each_wins_or_is_told(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom dumps.samples import write_quantized\nfrom pathlib import Path\n"
        "from turbocode.errors import TurbocodeError\n"
        "try: write_quantized(Path(sys.argv[1]), force=True, seed=int(sys.argv[2]))\n"
        "except TurbocodeError as error: sys.exit(error.exit_code)\n"
    )
    path = tmp_path / "out.h5"
    racers = [start(code, path, seed) for seed in range(6)]
    codes = [(racer.communicate()[1], racer.returncode) for racer in racers]
    assert all(code in (0, 75) for _, code in codes), codes
    assert any(code == 0 for _, code in codes)
    with open_quantized(path) as file:
        assert file.layers[0].side("keys").compute_sha256() == file.layers[0].side("keys").stored_sha256
    assert names(tmp_path) == ["out.h5"]


@pytest.mark.parametrize("has_old", [True, False])
def test_kill_leaves_old_or_nothing(tmp_path: Path, has_old: bool) -> None:
    path = tmp_path / "out.h5"
    before = None
    if has_old:
        write_quantized(path)
        before = path.read_bytes()
    code = (
        "import sys\nfrom turbocode.dumps import SynthesisSpec, synthesize\n"
        "def told(n): print(n, flush=True)\n"
        "synthesize(sys.argv[1], SynthesisSpec(n_layers=999, n_tokens=4096), force=True, advance=told)\n"
    )
    for lines in (1, 7, 40):
        writer = start(code, path)
        assert writer.stdout is not None
        for _ in range(lines):
            assert writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        assert writer.returncode == -signal.SIGKILL
        assert (path.read_bytes() if path.exists() else None) == before
    write_text_atomically(path, "next", force=True)
    assert names(tmp_path) == ["out.h5"]


@pytest.mark.parametrize("limit", [1 << 12, 1 << 16, 1 << 20, (1 << 20) + 7, 5 << 20])
def test_file_size_limit_ends_in_74_without_a_crash(tmp_path: Path, limit: int) -> None:
    path = tmp_path / "out.h5"
    path.write_text("old")
    code = (
        "import resource, sys\nfrom turbocode.dumps import SynthesisSpec, synthesize\n"
        "from turbocode.errors import StorageError\n"
        "limit = int(sys.argv[2])\nresource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))\n"
        "try: synthesize(sys.argv[1], SynthesisSpec(n_tokens=8192), force=True)\n"
        "except StorageError as error: print(error.disk_full, error); sys.exit(error.exit_code)\n"
    )
    writer = start(code, path, limit)
    out, err = writer.communicate(timeout=60)
    assert (writer.returncode, err) == (74, "") and out.startswith("True ")
    assert path.read_text() == "old" and names(tmp_path) == ["out.h5"]


def test_space_is_checked_beforehand(tmp_path: Path) -> None:
    with (
        pytest.raises(DiskFullError, match="are free") as caught,
        atomic_output(tmp_path / "out", expected_bytes=1 << 60),
    ):
        raise AssertionError("began to write")
    assert caught.value.exit_code == 74 and isinstance(caught.value, StorageError)
    assert names(tmp_path) == []


def test_reader_keeps_the_old_file_while_it_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "out.h5"
    blocks = write_quantized(path, seed=1)
    with open_quantized(path) as file:
        write_quantized(path, seed=2, force=True)
        assert (file.layers[1].side("keys").read(1, 1) == blocks["001/keys"][1, 1]).all()


def test_reader_meets_a_foreign_writer(tmp_path: Path) -> None:
    code = (
        "import sys, h5py\nfile = h5py.File(sys.argv[1], 'w')\nfile['x'] = 1\nfile.flush()\n"
        "print('open', flush=True)\nsys.stdin.read()\n"
    )
    path = tmp_path / "foreign.h5"
    writer = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None and writer.stdout.readline() == "open\n"
    started = time.perf_counter()
    with pytest.raises(LockedError):
        open_quantized(path)
    assert time.perf_counter() - started < 1
    writer.communicate("")


def test_synthesis_is_not_started_over_an_old_file(tmp_path: Path) -> None:
    (tmp_path / "out.h5").write_text("old")
    with pytest.raises(OutputError):
        synthesize(tmp_path / "out.h5", SynthesisSpec())
