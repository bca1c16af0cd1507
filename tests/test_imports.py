"""The house: each file imports only from those above it, and torch only where it must be."""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from made import without

import sasrec
from sasrec.core.isa import load_native

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "sasrec"
ROOMS = [  # a room imports only from those above it, and from itself
    "core", "reading", "data", "model", "engine", "ranking", "evaluation", "runs", "training", "report", "measuring",
    "reporting", "publishing", "recommender", "fitting", "converting", "estimating", "tracking", "experiments",
    "export", "cluster", "serving", "cli", "bulk", "__main__",
]  # fmt: skip
FILES = sorted(PACKAGE.rglob("*.py"))
MAY_IMPORT_TORCH = {
    "model.sasrec", "model.losses", "model.published", "engine.torch_engine", "engine.device", "engine.layout",
    "engine.batch_tensors", "ranking.device_index",
    "engine.distributed", "engine.shared_steps", "engine.orthogonal",
}  # fmt: skip


def name_of(path: Path) -> str:
    """A file as others import it, without the package's own name: "reading.readers", "fit"."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in FILES if path != PACKAGE / "__init__.py"}


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
    inside = {name.removeprefix("sasrec.") for name in names if name.startswith("sasrec.")} - {"__version__"}
    inside = {sasrec._HOME_OF.get(name, name) for name in inside}
    return {name if name in MODULES else name.rpartition(".")[0] for name in inside} - {""}


def test_no_import_escapes_the_check() -> None:
    source = (
        "import sasrec.cli.main\ndef f():\n    from sasrec.engine.native import A\n"
        "    from sasrec import fit, __version__, load\n    from sasrec.serving import app"
    )
    assert ours_in(source) == {"cli.main", "engine.native", "fitting", "recommender", "serving.app", "serving"}
    with pytest.raises(AssertionError, match="imports are absolute"):
        ours_in("from . import cli")


def test_every_file_stands_in_a_room() -> None:
    assert {name.partition(".")[0] for name in MODULES} == set(ROOMS)


@pytest.mark.parametrize("name", MODULES)
def test_file_imports_only_from_its_own_room_and_those_above(name: str) -> None:
    room = name.partition(".")[0]
    above = set(ROOMS[: ROOMS.index(room) + 1])
    assert {other.partition(".")[0] for other in ours_in(MODULES[name].read_text())} <= above


def test_no_public_name_is_also_a_files_name() -> None:
    assert not set(sasrec.__all__) & set(MODULES)  # the file, once imported, would take the name's place


def test_no_files_import_each_other_in_a_circle() -> None:
    imports = {name: ours_in(path.read_text()) & set(MODULES) for name, path in MODULES.items()}
    while leaves := {name for name, others in imports.items() if not others & set(imports)}:
        imports = {name: others for name, others in imports.items() if name not in leaves}
    assert not imports


def test_what_a_room_may_not_touch() -> None:
    forbidden = {
        "data": "model", "engine": "runs", "evaluation": "engine", "ranking": "runs", "serving": "training",
        "report": "training",
    }  # fmt: skip
    for name, path in MODULES.items():
        other = forbidden.get(name.partition(".")[0])
        assert not any(found.partition(".")[0] == other for found in ours_in(path.read_text())), name


def test_no_file_has_grown_beyond_its_one_job() -> None:
    assert not {name: n for name, path in MODULES.items() if (n := len(path.read_text().splitlines())) > 450}


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


@pytest.mark.parametrize("name", MODULES)
def test_only_the_model_and_its_engine_import_torch(name: str) -> None:
    uses_torch = any(m.partition(".")[0] == "torch" for m in imported(MODULES[name].read_text()))
    assert uses_torch == (name in MAY_IMPORT_TORCH)


@pytest.mark.parametrize(
    "program",
    [
        "import sasrec, sasrec.cli.main, typer; dict(typer.main.get_command(sasrec.cli.main.app).commands)",
        "import sasrec.engine.protocol, sasrec.model.published, sasrec.runs.folder, sasrec.fitting",
        "import sasrec; from pathlib import Path\n"
        "from sasrec.data.sequences import build_sequences, Sequences\n"
        "from sasrec.data.splits import split_leave_one_out\n"
        "Path('log.txt').write_text('1 2\\n1 3\\n1 4\\n')\n"
        "build_sequences(sasrec.read_interactions('log.txt'))[0].save(Path())\n"
        "assert len(split_leave_one_out(Sequences.load(Path())).test) == 1",
        "import polars as pl; from sasrec.data.sequences import build_sequences\n"
        "from sasrec.data.splits import split_leave_one_out\n"
        "from sasrec.evaluation.protocols import evaluate; from sasrec.ranking.scorers import Baselines\n"
        "from sasrec.core.config import EvalConfig\n"
        "log = pl.DataFrame({'user_id': [1] * 4 + [2] * 4, 'item_id': [1, 2, 3, 4, 4, 3, 2, 1]})\n"
        "split = split_leave_one_out(build_sequences(log)[0])\n"
        "evaluate(Baselines(split).scorers()[0], split, 'test', EvalConfig())",
    ],
)
def test_torch_is_not_loaded_before_a_model_is_used(program: str, tmp_path: Path) -> None:
    check = f"{program}\nimport sys; assert not {{'torch', 'pandas', 'matplotlib'}} & set(sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    subprocess.run([sys.executable, "-c", check], check=True, cwd=tmp_path, env=environment)


@pytest.mark.parametrize("words", [["--version"], ["serve", "--help"], ["serve", "no/such/run"]])
def test_a_server_starts_without_what_other_commands_need(words: list[str], tmp_path: Path) -> None:
    program = (
        "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr));"
        "from sasrec.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, cwd=tmp_path)
    loaded = set(done.stderr.split())
    assert "sasrec.cli.main" in loaded
    assert ("sasrec.cli.serve" in loaded) == (words[0] == "serve")
    assert not loaded & {"sasrec.cli.train", "sasrec.cli.deploy", "sasrec.fitting", "sasrec.converting", "torch"}


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.skipif(load_native().module is None, reason=load_native().why)
def test_every_preset_trains_measures_reports_and_exports_without_torch(
    markov_log: pl.DataFrame, tmp_path: Path
) -> None:
    markov_log.write_csv(tmp_path / "log.csv")
    program = (
        "import sasrec; from pathlib import Path; from sasrec.core.presets import PRESETS\n"
        "from sasrec.export.onnx import export_onnx; from sasrec.export.vectors import export_embeddings\n"
        "for preset in PRESETS:\n"
        "    run = sasrec.fit('log.csv', preset=preset, max_epochs=1, threads=1, output=preset)\n"
        "    assert run.engine.name == 'native'\n"
        "    assert {run.evaluate(protocol=name).protocol for name in ('full', 'sampled')} == {'full', 'sampled'}\n"
        "    run = sasrec.load(preset)\n"
        "    export_onnx(run, f'{preset}/onnx'); export_embeddings(run, f'{preset}/embeddings')\n"
        "    for name in ('report.html', 'curve.png', 'README.md', 'onnx/model.onnx', 'embeddings/embeddings.npy'):\n"
        "        assert Path(preset, name).stat().st_size\n"
        "import sys; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, env=without(tmp_path, "torch"))
