"""What an export holds, that it is checked before it is put in place, and that others can serve it."""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # noqa: F401 - usearch, loaded first, would crash it
import polars as pl
import pytest
from conftest import make_markov_log, variants
from made import make_features, spread_weights
from usearch.index import Index, search

import sasrec
from sasrec.cli import main as cli
from sasrec.converting import convert
from sasrec.core.config import ModelConfig, TrainConfig
from sasrec.core.errors import CheckpointError, ConfigError, DataError
from sasrec.core.isa import load_native
from sasrec.data.ragged import Ragged
from sasrec.engine.protocol import create_engine
from sasrec.export import onnx as export_module
from sasrec.export.onnx import export_onnx, open_session
from sasrec.export.onnx_graph import ModelGraph
from sasrec.export.vectors import export_embeddings
from sasrec.model.folding import fold
from sasrec.recommender import Recommender

pytestmark = pytest.mark.usefixtures("float32_core")  # as the graph multiplies
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "serve_onnx.py"
SMALL: dict[str, Any] = {"embedding_dim": 16, "n_blocks": 1, "max_epochs": 2, "threads": 1, "filter_seen": "yes"}


@pytest.fixture(scope="module")
def texts(float32_core: None) -> Recommender:
    """A small model whose item ids are text, with titles for most."""
    log = make_markov_log().select("user_id", pl.format("film {}", "item_id").alias("item_id"))
    titles = pl.DataFrame(
        {"item_id": [f"film {i}" for i in range(1, 29)], "title": [f"Film, {i} é" for i in range(28)]}
    )
    return sasrec.fit(log, titles=titles, **SMALL)


@pytest.fixture(scope="module")
def exported(texts: Recommender, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "onnx"
    export_onnx(texts, folder)
    return folder


def ask(folder: Path, rows: Ragged, k: int, hide_seen: bool) -> list[Any]:
    given = {"histories": export_module.padded(rows), "k": np.array([k]), "hide_seen": np.array([hide_seen])}
    return open_session(folder / "model.onnx", 1).run(["items", "scores"], given)


def test_an_export_holds_the_graph_its_vocabulary_and_facts(texts: Recommender, exported: Path) -> None:
    assert {path.name for path in exported.iterdir()} == {"model.onnx", "items.jsonl", "export.json"}
    lines = [json.loads(line) for line in (exported / "items.jsonl").read_text().splitlines()]
    assert [line["item_index"] for line in lines] == list(range(1, 31))
    assert [line["item_id"] for line in lines] == texts.vocabulary.item_ids.to_list()
    assert {line["item_id"]: line["title"] for line in lines}["film 3"] == "Film, 2 é"
    facts = json.loads((exported / "export.json").read_text())
    assert facts["model_version"] == texts.model_version
    assert facts["check"]["largest_difference"] < 1e-4
    assert facts["check"]["recall"] == 1
    assert facts["check"]["n_histories"] == 201
    metadata = open_session(exported / "model.onnx", 1).get_modelmeta().custom_metadata_map
    assert (metadata["model_version"], metadata["hide_seen"]) == (texts.model_version, "true")
    assert (metadata["n_items"], metadata["max_seq_len"]) == ("30", "50")


def test_model_version_is_that_of_weights_and_items(texts: Recommender, tmp_path: Path) -> None:
    texts.save(tmp_path / "run")
    assert sasrec.load(tmp_path / "run").model_version == texts.model_version
    weights = texts.engine.weights()
    weights["blocks.0.ffn_norm.bias"][0] += 1e-6
    assert _with_weights(texts, weights).model_version != texts.model_version


def _with_weights(recommender: Recommender, weights: dict[str, Any], **settings: Any) -> Recommender:
    config = replace(recommender.config, model=replace(recommender.config.model, **settings))
    engine = create_engine(config.model, len(recommender.vocabulary), TrainConfig(threads=1), weights)
    return Recommender(engine, recommender.vocabulary, config, recommender.sequences)


@pytest.mark.parametrize("hide_seen", [True, False])
def test_the_graph_recommends_what_the_package_does(texts: Recommender, exported: Path, hide_seen: bool) -> None:
    sequences = texts.sequences
    assert sequences is not None
    wanted = texts.recommend_users(k=7, keep_seen=not hide_seen)
    items, scores = ask(exported, Ragged(sequences.items, sequences.offsets), 7, hide_seen)
    assert texts.vocabulary.ids_of(items.ravel()).to_list() == wanted["item_id"].to_list()
    np.testing.assert_allclose(scores.ravel(), wanted["score"].to_numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "engine"), [({"padding": "attended"}, "torch"), ({"padding": "zeroed"}, "torch"), ({}, "auto")]
)
def test_a_model_without_histories_is_checked_on_made_ones(
    texts: Recommender, tmp_path: Path, settings: dict[str, Any], engine: Any
) -> None:
    model = ModelConfig(embedding_dim=16, max_seq_len=10, block="ligr", n_heads=2, tied=False, **settings)
    made = create_engine(model, 30, TrainConfig(threads=1, engine=engine), spread_weights(model, 30))
    facts = export_onnx(
        Recommender(made, texts.vocabulary, replace(texts.config, model=model), None), tmp_path / "onnx"
    )
    assert facts["check"]["n_histories"] == 51
    assert facts["check"]["largest_difference"] < 1e-5


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_of_items_with_features_is_exported_as_whole_tables(
    texts: Recommender, tmp_path: Path, tied: bool
) -> None:
    model = ModelConfig(embedding_dim=16, max_seq_len=10, n_features=9, vector_dim=5, tied=tied, cold_scale=2)
    train = TrainConfig(threads=1, feature_dropout=0.5)
    weights = spread_weights(model, 30)
    for name in {"item_embedding.weight", "output_embedding.weight"} & set(weights):
        weights[name][21:] = 0  # items without events, whose rows are as long as cold_scale says
    made = create_engine(model, 30, train, weights, features=make_features(30, 9, 5))
    config = replace(texts.config, model=model, train=train)
    recommender = Recommender(made, texts.vocabulary, config, texts.sequences)
    facts = export_onnx(recommender, tmp_path / "onnx")
    assert facts["check"]["largest_difference"] < 1e-5
    assert facts["check"]["recall"] == 1
    assert facts["model_version"] == recommender.model_version
    sequences = texts.sequences
    assert sequences is not None
    wanted = recommender.recommend_users(k=7, keep_seen=False)
    items, scores = ask(tmp_path / "onnx", Ragged(sequences.items, sequences.offsets), 7, hide_seen=True)
    assert recommender.vocabulary.ids_of(items.ravel()).to_list() == wanted["item_id"].to_list()
    np.testing.assert_allclose(scores.ravel(), wanted["score"].to_numpy(), atol=1e-4)
    export_embeddings(recommender, tmp_path / "vectors")
    folded = fold(made.weights(), made.features, model)["item_embedding.weight" if tied else "output_embedding.weight"]
    np.testing.assert_allclose(np.load(tmp_path / "vectors" / "embeddings.npy"), folded[1:], rtol=1e-5, atol=1e-6)


def test_a_graph_that_disagrees_is_not_put_in_place(
    texts: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_onnx(texts, tmp_path / "onnx")
    before = (tmp_path / "onnx" / "model.onnx").read_bytes()
    plain = ModelGraph.pick
    monkeypatch.setattr(ModelGraph, "pick", lambda self, x, last_only: self.nodes.add("Neg", plain(self, x, last_only)))
    with pytest.raises(CheckpointError, match=r"differ from the package's by up to .*more than 0.0001, so nothing"):
        export_onnx(texts, tmp_path / "onnx", overwrite=True)
    assert (tmp_path / "onnx" / "model.onnx").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]


def test_a_graph_that_lists_other_items_disagrees(texts: Recommender, exported: Path) -> None:
    rows = Ragged.from_lists([[1, 2], [3]])
    wanted = texts.top_indices(rows, 3)
    features = texts.engine.encode(rows)
    same = [np.asarray(wanted[0], np.int64), wanted[1].copy(), features]
    assert export_module._difference(texts, rows, wanted, same) < 1e-5
    other_item = same[0].copy()
    other_item[0, 0] = 1
    for found in (
        [other_item, *same[1:]],
        [same[0], same[1] + 1, features],
        [same[0], same[1], features + 1],
        [np.where(same[0] == same[0][0, 2], 0, same[0]), *same[1:]],
        [np.concatenate([same[0], same[0][:, :1]], 1), *same[1:]],
    ):
        assert export_module._difference(texts, rows, wanted, found) > 1e-3


def test_weights_that_are_not_finite_are_refused(texts: Recommender, tmp_path: Path) -> None:
    weights = texts.engine.weights()
    weights["blocks.0.ffn_norm.bias"][0] = np.nan
    for write in (export_onnx, export_embeddings):
        with pytest.raises(DataError, match=r"weight blocks.0.ffn_norm.bias has values that are not finite"):
            write(_with_weights(texts, weights), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", [export_onnx, export_embeddings])
def test_an_existing_folder_is_kept_unless_told_otherwise(
    texts: Recommender, tmp_path: Path, write: Callable[..., Any]
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    write(texts, output)  # an empty folder is taken
    with pytest.raises(ConfigError, match="exists and is not empty; use --overwrite"):
        write(texts, output)
    (output / "stale").touch()
    write(texts, output, overwrite=True)
    assert not (output / "stale").exists()
    (output / "export.json").unlink()
    with pytest.raises(ConfigError, match="is not an export, so --overwrite does not delete it"):
        write(texts, output, overwrite=True)


def test_a_folder_that_cannot_be_written_is_one_sentence(texts: Recommender, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot write .*file/out: Not a directory"):
        export_embeddings(texts, tmp_path / "file" / "out")


def test_without_the_extra_it_says_what_to_install(
    texts: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"needs onnxruntime .*: pip install 'sasrec\[onnx\]'"):
        export_onnx(texts, tmp_path / "onnx")


def test_large_weights_lie_in_a_file_beside_the_graph(texts: Recommender, exported: Path, tmp_path: Path) -> None:
    export_onnx(texts, tmp_path / "onnx", graph_bytes=100)
    assert (tmp_path / "onnx" / "model.onnx.data").stat().st_size > 30 * 16 * 4
    rows = Ragged.from_lists([[1, 2, 3]])
    for found, wanted in zip(ask(tmp_path / "onnx", rows, 5, True), ask(exported, rows, 5, True), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_int8_reports_its_recall(texts: Recommender, tmp_path: Path) -> None:
    check = export_onnx(texts, tmp_path / "onnx", int8=True)["check"]
    assert check["k"] == 10
    assert 0.9 < check["recall"] <= 1
    assert 0 < check["largest_difference"] < 0.2


def answer(folder: Path, histories: Any, k: int = 5, *, hide_seen: bool = True) -> list[Any]:
    given = {"histories": np.array(histories, np.int64), "k": np.array([k]), "hide_seen": np.array([hide_seen])}
    return open_session(folder / "model.onnx", 1).run(["items", "scores", "features"], given)


@pytest.fixture(scope="module", params=["sasrec", "post_norm", "pre_norm", "ligr"])
def block(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=[False, True], ids=["float32", "int8"])
def any_graph(
    request: pytest.FixtureRequest, block: str, texts: Recommender, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Recommender, Path]:
    """A model of each block, two heads and two layers, and its graph."""
    model = replace(texts.config.model, block=block, n_heads=2, n_blocks=2, max_seq_len=6)
    made = create_engine(model, 30, TrainConfig(threads=1), spread_weights(model, 30))
    recommender = Recommender(made, texts.vocabulary, replace(texts.config, model=model), texts.sequences)
    folder = tmp_path_factory.mktemp(block) / "onnx"
    export_onnx(recommender, folder, int8=request.param)
    return recommender, folder


@pytest.mark.parametrize("hide_seen", [True, False])
@pytest.mark.parametrize("no_item", [-1, -7, -31, -(2**31), -(2**63)])
def test_a_negative_index_is_skipped_like_padding(
    any_graph: tuple[Recommender, Path], no_item: int, hide_seen: bool
) -> None:
    found = answer(any_graph[1], [[no_item, 3, no_item, 4, no_item], [no_item] * 5], hide_seen=hide_seen)
    wanted = answer(any_graph[1], [[0, 3, 0, 4, 0], [0] * 5], hide_seen=hide_seen)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("hide_seen", [True, False])
@pytest.mark.parametrize("index", [31, 32, 2**31, 2**63 - 1])
def test_an_index_above_the_table_is_an_error_even_where_the_model_does_not_look(
    any_graph: tuple[Recommender, Path], index: int, hide_seen: bool
) -> None:
    for history in ([3, index], [index, *range(1, 10)]):
        with pytest.raises(Exception, match=r"(?i)out of range|out of data bounds"):
            answer(any_graph[1], [history], hide_seen=hide_seen)


@pytest.mark.parametrize("length", [0, 1, 4, 40])
@pytest.mark.parametrize("k", [0, 5, 99])
def test_a_batch_without_rows_has_outputs_without_rows(
    any_graph: tuple[Recommender, Path], length: int, k: int
) -> None:
    items, scores, features = answer(any_graph[1], np.zeros((0, length)), k)
    assert items.shape == scores.shape == (0, min(k, 30))
    assert features.shape == (0, 16)
    assert (items.dtype, scores.dtype, features.dtype) == (np.int64, np.float32, np.float32)


@pytest.mark.parametrize("length", [0, 1, 4, 40])
def test_rows_without_items_get_popular_ones_however_long(any_graph: tuple[Recommender, Path], length: int) -> None:
    recommender, folder = any_graph
    items, scores, _ = answer(folder, np.zeros((3, length)))
    wanted = recommender.top_indices(Ragged.from_lists([[]] * 3), 5)
    np.testing.assert_array_equal(items, wanted[0])
    np.testing.assert_array_equal(scores, wanted[1])


def test_of_a_long_history_the_end_counts_and_all_of_it_is_hidden(any_graph: tuple[Recommender, Path]) -> None:
    folder = any_graph[1]
    long = [*range(1, 16), 0, 20, -2, 21, 22]
    items, _, features = answer(folder, [long], 30)
    np.testing.assert_allclose(features, answer(folder, [[13, 14, 15, 20, 21, 22]])[2], rtol=1e-5, atol=1e-6)
    assert set(items[0].tolist()) == {0, *range(16, 31)} - {20, 21, 22}


@pytest.mark.slow
@pytest.mark.skipif(load_native().module is None, reason=load_native().why)
def test_export_needs_no_torch(texts: Recommender, tmp_path: Path) -> None:
    texts.save(tmp_path / "run")
    program = (
        "import sys, sasrec.cli.main; sys.argv = ['sasrec', 'export', 'run', '--json']\n"
        "sasrec.cli.main.app(standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=tmp_path)
    facts = json.loads(done.stdout)
    assert (facts["output"], facts["kind"]) == ("run/onnx", "onnx")
    assert (tmp_path / "run" / "onnx" / "model.onnx").is_file()


# the command line


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["sasrec", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_command_says_what_it_wrote_and_how_it_compares(
    texts: Recommender, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    texts.save(run)
    assert command(monkeypatch, "export", run) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"wrote {run / 'onnx'}: model {texts.model_version}, 30 items"
    assert second.startswith("scores and lists as this package's on 201 histories, to ")
    assert command(monkeypatch, "export", run, "--int8") == 0
    assert "recall@10 against float32 " in capsys.readouterr().out
    assert command(monkeypatch, "export", run, "--format", "embeddings") == 0
    assert {path.name for path in run.iterdir()} >= {"onnx", "onnx-int8", "embeddings"}
    assert command(monkeypatch, "export", run, "--format", "embeddings") == 2
    assert command(monkeypatch, "export", run, "--format", "embeddings", "--int8", "--overwrite") == 2
    assert "--int8 is for --format onnx" in capsys.readouterr().err


# the example


def test_the_example_serves_without_this_package(texts: Recommender, exported: Path, tmp_path: Path) -> None:
    program = (
        f"import sys, runpy; sys.argv = ['serve', {str(exported)!r}, '--history', 'film 3,film 4', '-k', '4']\n"
        f"runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')\n"
        "assert not {'sasrec', 'torch', 'polars', 'onnx'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=tmp_path)
    found, wanted = json.loads(done.stdout), texts.recommend([["film 3", "film 4"]], k=4)
    assert [line["item_id"] for line in found] == wanted["item_id"].to_list()
    assert [line["rank"] for line in found] == [1, 2, 3, 4]
    np.testing.assert_allclose([line["score"] for line in found], wanted["score"].to_numpy(), atol=1e-4)


def test_the_example_answers_over_http(texts: Recommender, exported: Path) -> None:
    command = [sys.executable, str(EXAMPLE), str(exported), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split()[-1]
            answer = post(url, {"history": ["film 3", "who?", "film 4"], "k": 3})
            wanted = texts.recommend([["film 3", "film 4"]], k=3)["item_id"].to_list()
            assert [item["item_id"] for item in answer["items"]] == wanted
            assert answer["model_version"] == texts.model_version
            popular = post(url, {"history": [], "k": 3})["items"]
            assert [item["item_id"] for item in popular] == texts.recommend([["?"]], k=3)["item_id"].to_list()
            with pytest.raises(urllib.error.HTTPError, match="422"):
                post(url, {"k": 3})
        finally:
            server.terminate()


def post(url: str, body: dict[str, Any]) -> Any:
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=20) as answer:
        return json.load(answer)


def test_an_export_that_was_killed_is_swept_and_what_it_replaced_is_back(texts: Recommender, tmp_path: Path) -> None:
    folder = tmp_path / "vectors"
    export_embeddings(texts, folder)
    folder.rename(tmp_path / ".vectors.123.old")  # between the two renames
    (tmp_path / ".vectors.123.tmp").mkdir()
    with pytest.raises(ConfigError, match="exists and is not empty"):
        export_embeddings(texts, folder)
    export_embeddings(texts, folder, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["vectors"]


def test_what_another_export_with_a_longer_name_has_begun_is_left_alone(texts: Recommender, tmp_path: Path) -> None:
    for end in ("old", "tmp"):
        (tmp_path / f".vectors.new.123.{end}").mkdir()
    export_embeddings(texts, tmp_path / "vectors")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [".vectors.new.123.old", ".vectors.new.123.tmp", "vectors"]


# vectors


def test_vectors_are_those_that_scores_are_made_of(texts: Recommender, tmp_path: Path) -> None:
    export_embeddings(texts, tmp_path / "vectors")
    frame = pl.read_parquet(tmp_path / "vectors" / "items.parquet")
    assert frame.columns == ["item_index", "item_id", "title", "embedding"]
    table = np.load(tmp_path / "vectors" / "embeddings.npy")
    np.testing.assert_array_equal(frame["embedding"].to_numpy(), table)
    ids = np.load(tmp_path / "vectors" / "item_ids.npy").tolist()
    assert ids == frame["item_id"].to_list() == texts.vocabulary.item_ids.to_list()
    history = ["film 3", "film 4"]
    scores = texts.features([history]) @ table.T
    np.testing.assert_allclose(scores, texts.score([history], ids), atol=1e-5)


def test_an_untied_model_exports_the_table_that_is_scored_with(tmp_path: Path, markov_log: pl.DataFrame) -> None:
    recommender = sasrec.fit(markov_log, tied=False, **SMALL)
    export_embeddings(recommender, tmp_path / "vectors")
    table = np.load(tmp_path / "vectors" / "embeddings.npy")
    np.testing.assert_array_equal(table, recommender.engine.weights()["output_embedding.weight"][1:])
    assert np.load(tmp_path / "vectors" / "item_ids.npy").dtype == np.int64


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recommender, Path]:
    """A model of 5,000 items with weights that matter, and its vectors."""
    log = make_markov_log(n_users=1000, n_items=5000, randomness=1.0, length=40)
    recommender = sasrec.fit(log, **{**SMALL, "embedding_dim": 32, "max_epochs": 1})
    model = recommender.config.model
    weights = spread_weights(model, len(recommender.vocabulary), size=1.0)
    recommender = _with_weights(recommender, weights)
    folder = tmp_path_factory.mktemp("vectors") / "vectors"
    export_embeddings(recommender, folder)
    return recommender, folder


def test_exact_search_in_a_vector_library_finds_the_package_s_lists(many: tuple[Recommender, Path]) -> None:
    recommender, folder = many
    queries, wanted = _queries(recommender)
    found = search(np.load(folder / "embeddings.npy"), queries, 10, "ip", exact=True)
    assert recall(np.load(folder / "item_ids.npy")[found.keys.astype(np.int64)], wanted) == 1


def test_approximate_search_finds_nearly_all_of_them(many: tuple[Recommender, Path]) -> None:
    recommender, folder = many
    queries, wanted = _queries(recommender)
    frame = pl.read_parquet(folder / "items.parquet")
    index = Index(ndim=32, metric="ip", connectivity=32, expansion_add=256, expansion_search=256)
    index.add(frame["item_id"].to_numpy(), frame["embedding"].to_numpy(), threads=1)
    assert recall(index.search(queries, 10, threads=1).keys.astype(np.int64), wanted) > 0.9


def _queries(recommender: Recommender) -> tuple[Any, Any]:
    histories = [[i + 1, i + 17, i + 400] for i in range(200)]
    wanted = recommender.recommend(histories, 10, keep_seen=True)["item_id"].to_numpy().reshape(-1, 10)
    return recommender.features(histories), wanted


def recall(found: Any, wanted: Any) -> float:
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, wanted, strict=True)]))


# the published model on its own data


@pytest.fixture(scope="module")
def published(shared: Path) -> Recommender:
    name = "SASRec.epoch=860.lr=0.001.layer=2.head=1.hidden=50.maxlen=200.pth"
    return convert(shared / "reference" / name, "pmixer-2021", str(shared / "data" / "ml-1m.txt"))


@pytest.mark.slow
def test_1000_real_users_get_the_same_lists_from_onnxruntime(published: Recommender, tmp_path: Path) -> None:
    weights = published.engine.weights()
    weights["position_embedding.weight"] = weights["position_embedding.weight"][1:]  # without the padding's
    recommender = _with_weights(published, weights, padding="none")
    export_onnx(recommender, tmp_path / "onnx")
    rows = slice(0, 1000)
    sequences = recommender.sequences
    assert sequences is not None
    wanted = recommender.recommend_rows(rows, 10)
    items, scores = [], []
    for start in range(0, 1000, 100):
        histories = Ragged(sequences.items, sequences.offsets).take(slice(start, start + 100))
        found = ask(tmp_path / "onnx", histories, 10, True)
        items.append(found[0])
        scores.append(found[1])
    assert recommender.vocabulary.ids_of(np.concatenate(items).ravel()).to_list() == wanted["item_id"].to_list()
    np.testing.assert_allclose(np.concatenate(scores).ravel(), wanted["score"].to_numpy(), atol=1e-4)


def test_the_published_checkpoint_exports_as_it_is(published: Recommender, tmp_path: Path) -> None:
    check = export_onnx(published, tmp_path / "onnx", checked_users=49)["check"]
    assert check["n_histories"] == 50
    assert check["largest_difference"] < 1e-4


@pytest.mark.parametrize("isa", [isa for isa in variants() if isa in ("amx", "avx512_bf16")], indirect=True)
def test_a_model_that_multiplies_bf16_is_exported_and_compared_in_float32(isa: str, tmp_path: Path) -> None:
    recommender = sasrec.fit(make_markov_log(), **SMALL)
    assert recommender.engine.isa == isa
    facts = export_onnx(recommender, tmp_path / "onnx")
    assert facts["check"]["largest_difference"] < export_module.TOLERANCE
    assert recommender.engine.isa == isa
