"""The options that commands share."""

from __future__ import annotations

import click
import pytest

from turbocode.errors import DeviceError, OptionError
from turbocode.evaluation import environment
from turbocode_cli.options import (
    MIN_MEMORY,
    device_option,
    layers_option,
    max_memory_option,
    quiet_option,
)


@click.command()
@layers_option
@max_memory_option
@device_option
@quiet_option
def command(**given: object) -> dict[str, object]:
    return given


def parse(*arguments: str) -> dict[str, object]:
    parsed: dict[str, object] = command.main(list(arguments), standalone_mode=False)
    return parsed


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("512MiB", 512 << 20),
        ("2GiB", 2 << 30),
        ("1.5G", 3 << 29),
        ("1TB", 10**12),
        ("100mb", 10**8),
        ("64 MiB", 64 << 20),
        ("67108864", 64 << 20),
        ("67108864b", 64 << 20),
        ("65536K", 64 << 20),
    ],
)
def test_sizes(text: str, n_bytes: int) -> None:
    assert parse("--max-memory", text)["max_memory"] == n_bytes


@pytest.mark.parametrize("text", ["", "1", "63MiB", "-2GiB", "2XiB", "1e9", "nan", "inf", "2 G i B", "٣GiB"])
def test_what_is_not_a_size(text: str) -> None:
    with pytest.raises(click.BadParameter):
        parse("--max-memory", text)


def test_memory_is_half_of_what_there_is_by_default() -> None:
    from turbocode.evaluation.environment import memory_limit

    assert parse()["max_memory"] == max(MIN_MEMORY, memory_limit() // 2)


@pytest.mark.parametrize(
    ("text", "layers"), [("0", (0,)), ("0-3,7", (0, 1, 2, 3, 7)), ("5, 2-3,2", (2, 3, 5)), ("999", (999,))]
)
def test_layers(text: str, layers: tuple[int, ...]) -> None:
    assert parse("--layers", text)["layers"] == layers


@pytest.mark.parametrize("text", ["", "3-1", "-1", "a", "1,", "1000", "0-99999999999", "1-2-3"])
def test_what_is_not_a_list_of_layers(text: str) -> None:
    with pytest.raises(OptionError):
        parse("--layers", text)


def test_all_layers_by_default() -> None:
    assert parse()["layers"] is None


def test_device_without_a_gpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "cuda_problem", lambda: "no NVIDIA driver is installed")
    assert parse("--device", "cpu")["device"] is None and capsys.readouterr().err == ""
    assert parse("--device", "auto")["device"] is None
    assert capsys.readouterr().err == "device: cpu (no NVIDIA driver is installed)\n"
    assert parse("--device", "auto", "--quiet")["device"] is None and capsys.readouterr().err == ""
    for name in ("cuda", "cuda:1"):
        with pytest.raises(DeviceError, match="no NVIDIA driver") as caught:
            parse("--device", name)
        assert "pip install 'turbocode[cu13]'" in str(caught.value.hint)


def test_device_with_two_gpus(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "cuda_problem", lambda: None)
    monkeypatch.setattr(environment, "cuda_devices", lambda: ["H100", "H200"])
    assert parse("--device", "auto")["device"] == 0 and capsys.readouterr().err == "device: cuda:0 (H100)\n"
    assert [parse("--device", name)["device"] for name in ("cuda", "cuda:0", "cuda:1", "cpu")] == [0, 0, 1, None]
    with pytest.raises(DeviceError, match=r"cuda:0 \(H100\), cuda:1 \(H200\)"):
        parse("--device", "cuda:2")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:12345", "CUDA", ""])
def test_what_is_not_a_device(name: str) -> None:
    with pytest.raises(OptionError, match="auto, cpu, cuda, cuda:N"):
        parse("--device", name)
