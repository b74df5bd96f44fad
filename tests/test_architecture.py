"""The house: imports point down, and each heavy package has one room."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "turbocode"
FLOORS = {
    "errors": 0,
    "provenance": 0,
    "text_input": 0,
    "formats": 0,
    "codebooks": 0,
    "kernels": 1,
    "dumps": 1,
    "transforms": 2,
    "codecs": 2,
    "policies": 3,
    "training": 3,
    "conversion": 4,
    "evaluation": 5,
    "export": 5,
    "integrations": 5,
    "turbocode_cli": 6,
}
# Rooms of one floor that may look at each other, in this direction.
NEIGHBOURS = {
    ("codebooks", "formats"),
    ("codebooks", "errors"),
    ("formats", "errors"),
    ("codebooks", "text_input"),
    ("codecs", "transforms"),
    ("export", "evaluation"),
    ("training", "policies"),  # a tuned recipe is fitted to a dump
    ("evaluation", "integrations"),  # a language model is evaluated through them
}
OWNERS = {
    "numba": {"kernels", "evaluation"},  # evaluation only asks doctor's questions
    "llvmlite": {"kernels"},
    "h5py": {"dumps", "evaluation"},
    "filelock": {"dumps"},
    "scipy": {"training"},
    "sklearn": set(),
    "pydantic": {"policies"},
    "yaml": {"policies"},
    "jinja2": {"export"},
    "matplotlib": {"evaluation"},
    "psutil": {"evaluation"},
    "torch": {"integrations", "evaluation"},  # evaluation times GPU kernels on torch's arrays
    "transformers": {"integrations"},
    "tokenizers": {"integrations"},
    "click": {"turbocode_cli"},
    "rich": {"turbocode_cli"},
}


def modules() -> list[Path]:
    return [*PACKAGE.rglob("*.py"), *(ROOT / "cli" / "turbocode_cli").rglob("*.py")]


def room_of(path: Path) -> str:
    if "turbocode_cli" in path.parts:
        return "turbocode_cli"
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Full names of everything that a module imports, at any depth, but for type checkers only."""
    names: set[str] = set()

    class Reader(ast.NodeVisitor):
        def visit_If(self, node: ast.If) -> None:
            if "TYPE_CHECKING" not in ast.dump(node.test):
                self.generic_visit(node)

        def visit_Import(self, node: ast.Import) -> None:
            names.update(alias.name for alias in node.names)

        def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")

    Reader().visit(ast.parse(path.read_text()))
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        return
    assert room in FLOORS, f"{room} has no floor: give it one here and in docs/architecture.md"
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == "turbocode_cli":
            assert room == "turbocode_cli", f"{path} imports {name}"
        if top == "turbocode" and rest:
            other = rest.partition(".")[0]
            is_below = FLOORS[other] < FLOORS[room]
            assert other == room or is_below or (room, other) in NEIGHBOURS or other == "errors", (
                f"{path} imports {name}"
            )
        if top in OWNERS:
            assert room in OWNERS[top], f"{path} imports {top}, which belongs to {OWNERS[top] or 'nobody'}"


def test_references_need_only_numpy() -> None:
    for path in PACKAGE.glob("kernels/*/reference.py"):
        assert all(
            name.partition(".")[0] in {"__future__", "typing", "numpy", "turbocode"} for name in imports(path)
        ), path
        assert not any(name.endswith("cpu") for name in imports(path)), path


def test_every_operation_has_both_implementations() -> None:
    operations = [path for path in (PACKAGE / "kernels").iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert len(operations) >= 4
    for path in operations:
        assert {"__init__.py", "reference.py", "cpu.py"} <= {file.name for file in path.iterdir()}, path


def test_no_module_is_a_drawer_or_a_novel() -> None:
    for path in modules():
        assert path.stem not in {"utils", "common", "helpers", "misc"}, path
        assert len(path.read_text().splitlines()) <= 400, path


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join(sys.modules))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'cli'}", "PATH": "/usr/bin"},
    )
    return set(run.stdout.split())


def test_importing_turbocode_does_no_work() -> None:
    assert not loaded_by("import turbocode") & {"numpy", "numba", "h5py", "scipy", "click", "matplotlib", "torch"}


def test_the_catalogue_of_codecs_needs_no_compiler() -> None:
    assert not loaded_by("import turbocode; turbocode.make_codec('turbo3', 128)") & {"numba", "h5py", "scipy", "click"}


def test_public_names_exist() -> None:
    import turbocode

    for name in turbocode.__all__:
        assert getattr(turbocode, name) is not None
    with pytest.raises(AttributeError):
        _ = turbocode.nothing
