"""What README and docs show is executed: console blocks, Python blocks, the table of codecs, links, recipes."""

from __future__ import annotations

import doctest
import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from benchmarks.fidelity_table import comparison, spread, table
from benchmarks.transform_table import table as transform_table
from benchmarks.tuned_tables import AIM, BITS, MUST, contexts_table, matrix_summary, matrix_table, positions_table

from turbocode.dumps import open_dump
from turbocode.evaluation.sweep import sweep_codecs
from turbocode.formats import FORMAT_NAMES, block_format
from turbocode.policies.recipe import parse_recipe

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
README = (ROOT / "README.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def console_examples() -> list[tuple[str, str]]:
    examples = []
    for document in DOCUMENTS:
        for block in blocks(document.read_text(), "console"):
            for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                command, _, output = part.partition("\n")
                examples.append((command, output))
    return examples


def squeezed(text: str) -> list[str]:
    """Lines without the space that only aligns columns, and without rules and empty lines.

    What sums of float32 differ by, some 1e-7, depends on the machine: such a number only stands for its size.
    """
    lines = [re.sub(r"[\s─]+", " ", line).strip() for line in text.splitlines()]
    lines = [re.sub(r"\b\d\.\de-07\b", "some 1e-07", line) for line in lines]
    return [line for line in lines if line]


@pytest.mark.parametrize(("command", "expected"), console_examples(), ids=lambda value: str(value)[:40])
def test_console_blocks_show_what_is_printed(command: str, expected: str) -> None:
    words = command.split()
    assert words[0] == "turbocode"
    run = subprocess.run(
        [sys.executable, "-m", "turbocode_cli", *words[1:]],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'cli'}", **__import__("os").environ},
        capture_output=True,
        text=True,
        check=True,
    )
    assert squeezed(run.stdout) == squeezed(expected)


def test_there_are_console_and_python_blocks() -> None:
    assert len(console_examples()) >= 2
    assert blocks(README, "python")


def test_python_blocks_of_the_readme_run() -> None:
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner()
    for number, block in enumerate(blocks(README, "python")):
        runner.run(parser.get_doctest(block, {}, f"README block {number}", "README.md", 0))
    assert runner.summarize(verbose=False).attempted > 5
    assert runner.summarize(verbose=False).failed == 0


def test_the_table_of_codecs_is_measured(tmp_path: Path) -> None:
    rows = re.findall(r"^\| `([a-z0-9_:=]+)` \| ([\d.]+) \| ([\d.]+) \| (.*) \|$", README, flags=re.MULTILINE)
    assert len(rows) == 11
    with open_dump(ROOT / "data" / "tiny-pride.h5") as dump:
        measured = sweep_codecs(dump, [row[0] for row in rows], tmp_path, max_memory=1 << 30)
    keys = ("nmse_k", "nmse_v", "kl_mean", "kl_median", "kl_p999", "output_error")
    for (_, bits, compression, figures), row in zip(rows, measured, strict=True):
        assert float(bits) == row["bits_per_value"]
        assert f"{row['compression']:.2f}" == compression
        for shown, key in zip(figures.split(" | "), keys, strict=True):
            if shown == "< 1e-6":
                assert row[key] < 1e-6
            else:
                assert float(shown) == pytest.approx(row[key], rel=6e-3, abs=1e-12), key


@pytest.mark.parametrize("model", ["lm-hd128", "lm-tiny"])
def test_the_tables_of_fidelity_are_those_of_the_runs(model: str) -> None:
    text = (ROOT / "docs" / "fidelity.md").read_text()
    document = json.loads((ROOT / "docs" / "benchmarks" / f"fidelity-{model}.json").read_text())
    assert document["model"] == model and (document["n_windows"], document["context"]) == (2, 2048)
    assert "\n".join(table(document)) in text
    assert document["machine"]["cpu"] in text
    if model == "lm-hd128":
        assert "\n".join(comparison(document)) in text
        chunked = json.loads((ROOT / "docs" / "benchmarks" / f"fidelity-{model}-chunks.json").read_text())
        assert chunked["mode"] == "chunks of 256" and "\n".join(spread(document, chunked)) in text


def test_the_table_of_transforms_is_that_of_the_runs() -> None:
    folder = ROOT / "docs" / "benchmarks"
    documents = [json.loads((folder / f"transforms-{model}.json").read_text()) for model in ("lm-tiny", "lm-hd128")]
    assert "\n".join(transform_table(documents)) in (ROOT / "docs" / "fidelity.md").read_text()


@pytest.mark.parametrize("model", ["lm-hd128", "lm-tiny"])
def test_the_tables_of_tuned_recipes_are_those_of_the_runs(model: str) -> None:
    text = (ROOT / "docs" / "fidelity.md").read_text()
    document = json.loads((ROOT / "docs" / "benchmarks" / f"tuned-{model}.json").read_text())
    assert "\n".join(table(document)) in text and "\n".join(contexts_table(document)) in text
    if model == "lm-hd128":
        assert "\n".join(positions_table(document)) in text
        tuned = {codec["name"]: codec for codec in document["codecs"]}
        for bits in BITS:
            assert tuned[f"tuned {bits}"]["bits_per_value"] <= bits
            assert tuned[f"tuned {bits}"]["kl_median"] <= MUST[bits] and AIM[bits] < MUST[bits]


def test_the_matrix_of_calibrations_is_that_of_the_run() -> None:
    text = (ROOT / "docs" / "fidelity.md").read_text()
    document = json.loads((ROOT / "docs" / "benchmarks" / "robustness.json").read_text())
    assert "\n".join(matrix_table(document)) in text and "\n".join(matrix_summary(document)) in text
    best = [cell for cell in document["cells"] if cell["calibration"] == document["recommended"]]
    assert len(best) == 18 and all(cell["bits_per_value"] <= cell["plain_bits_per_value"] for cell in best)
    ratios = [cell["ratio_kl_mean"] for cell in best]
    assert max(ratios) < 1 and sum(ratios) / len(ratios) < 0.7
    assert all(cell["ratio_kl_median"] < 1 and cell["ratio_kl_p999"] < 1 for cell in best)


@pytest.mark.skipif(find_spec("transformers") is None, reason="needs the extra hf (torch and transformers)")
@pytest.mark.filterwarnings("ignore::FutureWarning")  # the argument's name changes with transformers
def test_the_cache_of_the_document_generates() -> None:
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    (block,) = blocks((ROOT / "docs" / "fidelity.md").read_text(), "python")
    runner.run(parser.get_doctest(block, {}, "fidelity.md", "fidelity.md", 0))
    assert runner.summarize(verbose=False) == (0, len(parser.get_examples(block)))


def test_the_table_of_formats_is_computed() -> None:
    text = (ROOT / "docs" / "formats.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (\d+) \| (\d+) \| ([\d.]+) \| ([\d.]+) \|$", text, flags=re.MULTILINE)
    assert {row[0] for row in rows} == set(FORMAT_NAMES)
    for name, size, values, group, bits, compression in rows:
        layout = block_format(name, 128)
        assert (layout.bytes_per_block, layout.values_per_block, layout.group_size) == (
            int(size),
            int(values),
            int(group),
        )
        assert layout.bits_per_value == float(bits)
        assert f"{layout.compression:.2f}" == compression


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
        assert (document.parent / target).exists(), target


def test_recipes_in_the_documents_are_valid() -> None:
    import yaml

    recipes = [block for document in DOCUMENTS for block in blocks(document.read_text(), "yaml")]
    assert recipes
    for recipe in recipes:
        parse_recipe(yaml.safe_load(recipe))
