"""The house: each file imports only from those above it, and torch only where it must be."""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

import sasrec
from sasrec.variants import load_native

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "sasrec"
ORDER = [
    "errors", "config", "interactions", "datasets", "sequences", "variants", "draws", "batches", "threads",
    "provenance", "weights", "native", "model", "losses", "published", "engine", "checkpoint", "ranking", "index",
    "scorers", "estimates", "tables", "lists", "evaluation", "comparison", "trainer", "charts", "reports",
    "recommender", "study", "benchmark", "graph", "export", "bulk", "api", "openapi", "batching", "telemetry", "events",
    "serving", "server", "connections", "workers", "console", "flags", "cli", "__main__",
]  # fmt: skip
MAY_IMPORT_TORCH = {"model", "losses", "engine", "published"}


def imported(source: str) -> set[str]:
    """Modules, and names of modules, that a file imports: at its top, inside functions, for type checking."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names |= {f"{module}.{alias.name}" for alias in node.names} | {module}
    return names


def ours_in(source: str) -> set[str]:
    """Files of the package that a file imports; a public name counts as the file it lives in."""
    names = imported(source)
    assert not any(name.startswith(".") for name in names), "imports are absolute"
    direct = {name.split(".")[1] for name in names if name.startswith("sasrec.")}
    return {sasrec._HOME_OF.get(name, name) for name in direct - {"__version__"}}


def test_no_import_escapes_the_check() -> None:
    source = (
        "import sasrec.cli\ndef f():\n    from sasrec.engine import A\n    from sasrec import model, fit, __version__"
    )
    assert ours_in(source) == {"cli", "engine", "model", "recommender"}
    with pytest.raises(AssertionError, match="imports are absolute"):
        ours_in("from . import cli")


def test_every_file_has_its_place_in_the_order() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"} == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_file_imports_only_from_those_above_it(name: str) -> None:
    above = set(ORDER[: ORDER.index(name)])
    assert ours_in((PACKAGE / f"{name}.py").read_text()) <= above


def test_the_package_itself_imports_nothing_until_a_public_name_is_used() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert not {name for name in imported(ast.unparse(node)) if name.startswith(("sasrec", "."))}
    assert {name for name in sasrec.__all__ if name != "__version__"} == set(sasrec._HOME_OF)
    for name in sasrec.__all__:
        value = getattr(sasrec, name)
        home = sasrec._HOME_OF.get(name)
        assert home is None or value is getattr(importlib.import_module(f"sasrec.{home}"), name)
    with pytest.raises(AttributeError, match="has no attribute 'wings'"):
        _ = sasrec.wings


@pytest.mark.parametrize("name", ORDER)
def test_only_the_model_and_its_engine_import_torch(name: str) -> None:
    uses_torch = any(m.partition(".")[0] == "torch" for m in imported((PACKAGE / f"{name}.py").read_text()))
    assert uses_torch == (name in MAY_IMPORT_TORCH)


@pytest.mark.parametrize(
    "program",
    [
        "import sasrec, sasrec.cli",
        "import sasrec.engine, sasrec.published, sasrec.checkpoint, sasrec.trainer, sasrec.recommender",
        "import sasrec; from pathlib import Path\n"
        "from sasrec.sequences import build_sequences, Sequences, split_leave_one_out\n"
        "Path('log.txt').write_text('1 2\\n1 3\\n1 4\\n')\n"
        "build_sequences(sasrec.read_interactions('log.txt'))[0].save(Path())\n"
        "assert len(split_leave_one_out(Sequences.load(Path())).test) == 1",
        "import polars as pl; from sasrec.sequences import build_sequences, split_leave_one_out\n"
        "from sasrec.evaluation import evaluate; from sasrec.scorers import build_baselines\n"
        "from sasrec.config import EvalConfig\n"
        "log = pl.DataFrame({'user_id': [1] * 4 + [2] * 4, 'item_id': [1, 2, 3, 4, 4, 3, 2, 1]})\n"
        "split = split_leave_one_out(build_sequences(log)[0])\n"
        "evaluate(build_baselines(split)[0], split, 'test', EvalConfig())",
    ],
)
def test_torch_is_not_loaded_before_a_model_is_used(program: str, tmp_path: Path) -> None:
    check = f"{program}\nimport sys; assert not {{'torch', 'pandas', 'matplotlib'}} & set(sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    subprocess.run([sys.executable, "-c", check], check=True, cwd=tmp_path, env=environment)


@pytest.mark.skipif(load_native().module is None, reason=load_native().why)
def test_a_run_folder_answers_without_torch_and_without_what_only_training_needs(
    markov_log: pl.DataFrame, tmp_path: Path
) -> None:
    sasrec.fit(markov_log, engine="native", max_epochs=1, threads=1, output=tmp_path / "run")
    program = (
        f"import sasrec; run = sasrec.load({str(tmp_path / 'run')!r})\n"
        "assert run.engine.name == 'native' and len(run.recommend([[1, 2]], k=3)) == 3\n"
        "import sys; assert not {'torch', 'matplotlib', 'typer', 'rich', 'yaml', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
