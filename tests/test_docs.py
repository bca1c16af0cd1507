"""The documents tell the truth: generated pages match, README code runs, public names are pinned."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import sasrec

ROOT = Path(__file__).resolve().parents[1]


def test_generated_pages_match_the_code() -> None:
    check = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "generate_docs.py"), "--check"], capture_output=True, text=True
    )
    assert check.returncode == 0, check.stderr


def test_public_names_are_these() -> None:
    assert sasrec.__all__ == [
        "CheckpointError", "ConfigError", "DataError", "EvalConfig", "ModelConfig", "Recommendations", "Recommender",
        "Result", "SASRecError", "Tracker", "TrainConfig", "TrainingError", "UnknownItemError", "__version__",
        "compare", "convert", "filter_k_core", "filter_repeats", "fit", "load", "load_dataset", "read_interactions",
        "read_items", "read_titles", "tune",
    ]  # fmt: skip
    for name in sasrec.__all__:
        assert getattr(sasrec, name) is not None


@pytest.mark.filterwarnings("default")  # packages of trackers have their own
@pytest.mark.parametrize("page", ["README.md", "docs/tracking.md"])
def test_python_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    rows = [f"u{u},tt{(u * 3 + i) % 40:04},{i}" for u in range(60) for i in range(10)]
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows))
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(block, {})


def test_every_relative_link_leads_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]:
        for link in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


FILES = sorted(
    path for path in (ROOT / "src" / "sasrec").rglob("*.py") if path.name not in ("__init__.py", "__main__.py")
)


@pytest.mark.parametrize("path", FILES, ids=lambda p: "/".join(p.parts[-2:]))
def test_file_is_named_in_its_rooms_paragraph_of_the_architecture(path: Path) -> None:
    page, room = (ROOT / "ARCHITECTURE.md").read_text(), path.parent.name
    heading = "### The top" if room == "sasrec" else f"### {room}"
    assert f"`{path.name}`" in page.partition(f"{heading}\n")[2].partition("\n##")[0]
