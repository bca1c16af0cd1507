"""From a log and an item file to a server whose catalogue grows under load: all parts say the same."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from server_process import Load, ServerProcess, running, until
from test_add_items import NEW, SMALL, items_of, log_of

from sasrec import fit, load
from sasrec.export.onnx import export_onnx, open_session

pytestmark = pytest.mark.slow  # a server starts
WHERE = "kind = 'red' and price < 8"
HISTORIES = [[1, 2, 3], [7], [30, 4, 9, 12]]


def answers_with(server: ServerProcess, version: str) -> bool:
    return bool(server.ask("GET", "/v1/model")[1]["model_version"] == version)


def test_a_run_with_features_is_exported_served_asked_with_where_and_extended_under_load(tmp_path: Path) -> None:
    items = items_of(list(range(1, 31)))
    first = fit(
        log_of(), preset="paper", items=items, item_features=["kind", "price"], output=tmp_path / "first", **SMALL
    )
    (tmp_path / "current").symlink_to("first")
    second = first.add_items(NEW)
    second.save(tmp_path / "second")

    for model in (first, second):
        export_onnx(model, tmp_path / model.model_version)
        session = open_session(tmp_path / model.model_version / "model.onnx", 1)
        rows = np.zeros((len(HISTORIES), 4), np.int64)
        for row, history in zip(rows, HISTORIES, strict=True):
            row[: len(history)] = model.vocabulary.indices_of(history)
        listed = session.run(
            ["items"], {"histories": rows, "k": np.array([5], np.int64), "hide_seen": np.array([True])}
        )[0]
        ids = [[model.vocabulary.ids[i - 1] for i in row if i] for row in listed.tolist()]
        assert ids == model.recommend(HISTORIES, k=5)["item_id"].reshape((-1, 5)).to_list()

    body = {"requests": [{"history": history, "k": 5, "where": WHERE} for history in HISTORIES]}
    with running(tmp_path / "current", "--reload-seconds", 0.05) as server:
        answers, clients = {}, Load(server.port)
        for model in (first, second):
            until(partial(answers_with, server, model.model_version))
            status, answers[model.model_version] = server.ask("POST", "/v1/recommend", body)
            assert status == 200
            (tmp_path / "next").symlink_to("second")
            (tmp_path / "next").replace(tmp_path / "current")
        clients.stop()
        assert not clients.lost
        assert [*clients.codes] == [200]
        assert {*clients.versions} == {first.model_version, second.model_version}
        assert server.ask("POST", "/v1/recommend", {"history": [1], "where": "weight < 3"})[0] == 422
        assert server.ask("GET", "/v1/items/101/similar?k=3")[0] == 200
        only_new = {"history": [1, 2, 3], "k": 3, "allow": [101, 102, 103]}
        assert {item["item_id"] for item in server.ask("POST", "/v1/recommend", only_new)[1]["items"]} == {
            101,
            102,
            103,
        }
    for model in (load(tmp_path / "first"), load(tmp_path / "second")):
        told = [[item["item_id"] for item in one["items"]] for one in answers[model.model_version]["results"]]
        wanted = model.recommend(HISTORIES, k=5, where=WHERE)
        assert told == wanted.group_by("user_id", maintain_order=True).agg("item_id")["item_id"].to_list()
