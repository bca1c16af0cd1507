"""The house: each file imports only from those above it, and torch only where it must be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "sasrec"
ORDER = [
    "errors", "config", "interactions", "datasets", "sequences", "batches", "model", "losses", "engine", "published",
    "checkpoint", "ranking", "evaluation", "trainer", "reports", "recommender", "console", "cli", "__main__",
]  # fmt: skip
MAY_IMPORT_TORCH = {"model", "losses", "engine", "published"}


def imported(path: Path) -> set[str]:
    """Modules that a file imports anywhere in it, but for type checking only."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def test_every_file_has_its_place_in_the_order() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"} == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_file_imports_only_from_those_above_it(name: str) -> None:
    above = set(ORDER[: ORDER.index(name)])
    ours = {m.split(".")[1] for m in imported(PACKAGE / f"{name}.py") if m.startswith("sasrec.")}
    assert (ours & set(ORDER)) <= above


@pytest.mark.parametrize("name", ORDER)
def test_only_the_model_and_its_engine_import_torch(name: str) -> None:
    uses_torch = any(m.partition(".")[0] == "torch" for m in imported(PACKAGE / f"{name}.py"))
    assert uses_torch == (name in MAY_IMPORT_TORCH)


@pytest.mark.parametrize(
    "program",
    [
        "import sasrec, sasrec.cli",
        "import polars as pl; from sasrec.sequences import build_sequences, split_leave_one_out\n"
        "from sasrec.evaluation import evaluate, build_baselines; from sasrec.config import EvalConfig\n"
        "log = pl.DataFrame({'user_id': [1] * 4 + [2] * 4, 'item_id': [1, 2, 3, 4, 4, 3, 2, 1]})\n"
        "split = split_leave_one_out(build_sequences(log)[0])\n"
        "evaluate(build_baselines(split)[0], split, 'test', EvalConfig())",
    ],
)
def test_torch_is_not_loaded_before_a_model_is_used(program: str) -> None:
    check = f"{program}\nimport sys; assert not {{'torch', 'pandas', 'matplotlib'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)
