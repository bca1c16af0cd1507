"""A run folder of format 1, as version 0.1.0 wrote it, keeps working: it answers, is measured, goes on, is served."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import sasrec
from sasrec.core.config import to_dict
from sasrec.fitting import fit
from sasrec.recommender import Recommender
from sasrec.runs.folder import RunFolder
from sasrec.serving.schemas import Answer, Query
from sasrec.serving.served_model import Row, ServedModel

HERE = Path(__file__).parent / "format-1"
RUN = HERE / "run"
STORED: dict[str, Any] = json.loads((RUN / "metrics.json").read_text())
GIVEN: dict[str, list[dict[str, Any]]] = json.loads((HERE / "recommendations.json").read_text())

pytestmark = pytest.mark.usefixtures("float32_core")  # the run was trained by a core that multiplies floats


@pytest.fixture(scope="module")
def recommender(float32_core: None) -> Recommender:
    return sasrec.load(RUN)


def test_it_gives_the_recommendations_it_gave(recommender: Recommender) -> None:
    by_user = recommender.recommend_users(["user 1", "user 42"], k=5)
    by_history = recommender.recommend([[1, 10], [7]], k=5)
    for frame, stored in ((by_user, GIVEN["users"]), (by_history, GIVEN["histories"])):
        assert frame.drop("score").to_dicts() == [{k: v for k, v in row.items() if k != "score"} for row in stored]
        assert frame["score"].to_list() == pytest.approx([row["score"] for row in stored], abs=1e-5)
    assert recommender.vocabulary.titles_of(recommender.vocabulary.indices_of([7])) == ["Film 7"]


def figures(metrics: dict[str, dict[str, float | None]]) -> dict[str, float]:
    """All that is known of each metric, flat."""
    parts = {f"{name} {part}": value for name, estimate in metrics.items() for part, value in estimate.items()}
    return {name: value for name, value in parts.items() if value is not None}


@pytest.mark.parametrize("place", range(3))
def test_it_is_measured_as_it_was(recommender: Recommender, place: int) -> None:
    stored = STORED["results"][place]
    result = recommender.evaluate(stored["split"], protocol=stored["protocol"]).to_dict()
    assert list(result) == list(stored)
    told = [text for text in result["warnings"] if text.startswith("sampled protocol: ")]  # version 0.1.0 did not
    assert len(told) == (stored["protocol"] == "sampled")
    result["warnings"] = [text for text in result["warnings"] if text not in told]
    for name in stored:
        if name not in ("metrics", "baselines"):
            assert result[name] == stored[name]
    assert figures(result["metrics"]) == pytest.approx(figures(stored["metrics"]), rel=1e-9)
    assert list(result["baselines"]) == list(stored["baselines"])
    for name, metrics in stored["baselines"].items():
        assert figures(result["baselines"][name]) == pytest.approx(figures(metrics), rel=1e-9)


def test_what_it_tells_is_written_again_to_the_byte(tmp_path: Path) -> None:
    shutil.copytree(RUN, tmp_path / "run")
    run = RunFolder.open(tmp_path / "run")
    run.save_config(run.load_config())
    run.save_metrics(run.load_metrics(), run.load_training())
    run.rewind_history(1)
    for name in ("config.json", "metrics.json", "history.jsonl"):
        assert (run.path / name).read_bytes() == (RUN / name).read_bytes()


def test_training_goes_on_where_it_stopped(tmp_path: Path) -> None:
    shutil.copytree(RUN, tmp_path / "run")
    config = RunFolder.open(RUN).load_config()
    settings = {**to_dict(config.model), **to_dict(config.train), **to_dict(config.eval), "max_epochs": 2}
    resumed = fit(RUN, output=tmp_path / "run", resume=True, **settings).train_result
    whole = fit(RUN, **settings).train_result
    assert resumed is not None
    assert whole is not None
    assert resumed.epochs == whole.epochs == 2
    lines = [json.loads(text) for text in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert lines[0] == json.loads((RUN / "history.jsonl").read_text())
    assert lines[1]["train_loss"] == pytest.approx(whole.history[1].train_loss, rel=1e-4)
    assert len(sasrec.load(tmp_path / "run").results) == 3


def test_it_is_served(recommender: Recommender) -> None:
    served = ServedModel(recommender)
    (answer,) = served.answer([Row(Query([], k=5), "user 1")])
    assert isinstance(answer, Answer)
    items = [row["item_id"] for row in GIVEN["users"] if row["user_id"] == "user 1"]
    assert [item.item_id for item in answer.items] == items
    assert [item.title for item in answer.items] == [f"Film {item}" for item in items]
    facts = json.loads(json.dumps(served.facts()))
    assert facts["results"] == STORED["results"]
