"""A run pushed to a Hub and loaded from there is the same model; users stay here, and what is damaged is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from conftest import make_markov_log
from fake_hub import GUEST, FakeHub, Repository, running_hub
from hub_worker import RefusedError, Worker, working
from made import without

import sasrec
from sasrec.core.digests import BOOK, digest_of, note
from sasrec.core.errors import ConfigError
from sasrec.recommender import Recommender
from sasrec.runs.folder import RunFolder
from sasrec.runs.hub import Address, address_of, is_address

pytestmark = pytest.mark.slow
MODEL_FILES = {
    "config.json", "model.safetensors", "items.parquet", "item_features.json", "history.jsonl", "metrics.json", BOOK,
}  # fmt: skip
PAGES = {"README.md", "report.html", "curve.png"}
HISTORIES = "[[3, 24, 21], [5]]"
USER = "person-{}-of-the-log"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose users have ids that are easily found."""
    path = tmp_path_factory.mktemp("run") / "run"
    log = make_markov_log().with_columns(pl.format(USER, pl.col("user_id")).alias("user_id"))
    items = pl.DataFrame(
        {"item_id": range(1, 31), "title": [f"Film {i}" for i in range(30)], "genre": ["a", "b", "c"] * 10}
    )
    sizes: dict[str, Any] = {"embedding_dim": 8, "n_blocks": 1, "max_epochs": 2, "threads": 1}
    sasrec.fit(log, items=items, item_features=["genre"], output=path, **sizes)
    return path


@pytest.fixture(scope="module")
def recommender(run: Path) -> Recommender:
    return sasrec.load(run)


@pytest.fixture(scope="module")
def running() -> Iterator[FakeHub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture
def hub(running: FakeHub) -> FakeHub:
    """An empty Hub."""
    running.repositories.clear()
    running.objects.clear()
    running.received.clear()
    running.asked.clear()
    running.broken = 0
    return running


@pytest.fixture(scope="module")
def worker(running: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    with working(running, tmp_path_factory.mktemp("cache")) as one:
        yield one


def push(worker: Worker, run: Path, repo: str = "me/model", **asked: Any) -> str:
    address: str = worker.do(f"str(push(RunFolder(Path({str(run)!r})), {repo!r}, **{asked!r}))")
    return address


def loaded(address: str) -> str:
    """An expression: the version of a model, its lists, and whether it has histories."""
    return (
        f"(lambda rec: [rec.model_version, [list(r) for r in rec.recommend({HISTORIES}, k=5).rows()],"
        f" rec.sequences is not None])(sasrec.load({address!r}))"
    )


def answers_of(recommender: Recommender) -> list[Any]:
    return [recommender.model_version, [list(row) for row in recommender.recommend([[3, 24, 21], [5]], k=5).rows()]]


def test_a_model_that_was_pushed_and_loaded_is_the_same(
    worker: Worker, hub: FakeHub, run: Path, recommender: Recommender
) -> None:
    address = push(worker, run)
    assert address == f"hf://me/model@{hub.repositories['me/model'].refs['main']}"
    hub.asked.clear()
    for place in (address, "hf://me/model", "hf://me/model@main"):
        assert worker.do(loaded(place)) == [*answers_of(recommender), False]
    assert hub.fetched == MODEL_FILES


def test_a_model_in_memory_is_pushed_as_a_run_folder_is(
    worker: Worker, hub: FakeHub, run: Path, recommender: Recommender
) -> None:
    address = worker.do(f"sasrec.load({str(run)!r}).push_to_hub('me/memory', license='mit', datasets=['me/log'])")
    assert worker.do(loaded(address)) == [*answers_of(recommender), False]
    card = hub.repositories["me/memory"].files["README.md"].decode()
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "mit"


def test_no_byte_that_was_sent_tells_of_a_user(worker: Worker, hub: FakeHub, run: Path, tmp_path: Path) -> None:
    push(worker, run)
    files = hub.repositories["me/model"].files
    assert set(files) == MODEL_FILES | PAGES | {".gitattributes"}
    sent = [*hub.received, *files.values(), *hub.objects.values()]
    assert len(sent) > 20
    for data in sent:
        assert b"of-the-log" not in data
        assert b"sequences" not in data
    (tmp_path / "items.parquet").write_bytes(files["items.parquet"])
    assert pl.read_parquet(tmp_path / "items.parquet").columns == ["item_index", "item_id", "count", "title", "genre"]
    assert b"Example recommendations" in (run / "report.html").read_bytes()
    assert b"Example recommendations" not in files["report.html"]


def test_what_leaves_the_machine_is_said_before(worker: Worker, hub: FakeHub, run: Path) -> None:
    push(worker, run)
    assert worker.told[0].startswith("INFO: to hf://me/model, for those that you let read it: config.json, model.")
    assert worker.told[1] == "INFO: with it go the ids and counts of 30 items, and their titles, genre"
    assert worker.told[2].startswith("INFO: no id and no history of a user goes with it")


def test_histories_are_pushed_where_they_are_asked_for_with_a_warning(
    worker: Worker, hub: FakeHub, run: Path, recommender: Recommender
) -> None:
    push(worker, run, with_histories=True)
    assert "WARNING: with it go the ids and the histories of all 200 users" in worker.told
    assert worker.do(loaded("hf://me/model")) == [*answers_of(recommender), True]
    user = USER.format(7)
    wanted = [list(row) for row in recommender.recommend_users([user], k=3).rows()]
    assert (
        worker.do(f"[list(r) for r in sasrec.load('hf://me/model').recommend_users([{user!r}], k=3).rows()]") == wanted
    )
    card = hub.repositories["me/model"].files["README.md"].decode()
    assert "`sequences/` hold the ids and the histories" in card


def test_the_next_push_takes_away_what_it_does_not_send(worker: Worker, hub: FakeHub, run: Path) -> None:
    push(worker, run, with_histories=True)
    hub.repositories["me/model"].files["NOTES.md"] = b"of the owner"
    push(worker, run)
    assert set(hub.repositories["me/model"].files) == MODEL_FILES | PAGES | {".gitattributes", "NOTES.md"}


def test_a_repository_is_private_unless_it_is_to_be_public(worker: Worker, hub: FakeHub, run: Path) -> None:
    push(worker, run)
    push(worker, run, "me/open", private=False)
    assert {name: one.private for name, one in hub.repositories.items()} == {"me/model": True, "me/open": False}
    push(worker, run, private=False)
    assert "WARNING: hf://me/model is there and is private, and stays so" in worker.told
    assert hub.repositories["me/model"].private
    hub.received.clear()
    with pytest.raises(RefusedError, match=r"^ConfigError: hf://me/open is there and is public; say private=False"):
        push(worker, run, "me/open")
    assert not any(b"lfsFile" in data for data in hub.received)


def test_the_card_has_front_matter_with_metrics_and_their_protocol(
    worker: Worker, hub: FakeHub, run: Path, recommender: Recommender
) -> None:
    push(worker, run, license="apache-2.0", datasets=["me/log", "me/more"])
    card = hub.repositories["me/model"].files["README.md"].decode()
    matter = yaml.safe_load(card.split("---\n")[1])
    assert matter["library_name"] == "sasrec"
    assert matter["tags"] == ["sasrec", "sequential-recommendation", "recommender-system", "transformer"]
    assert (matter["license"], matter["datasets"]) == ("apache-2.0", ["me/log", "me/more"])
    (model,) = matter["model-index"]
    (measured,) = model["results"]
    assert measured["dataset"]["type"] == "me/log"
    figures = [figure for figure in measured["metrics"] if figure["type"] == "ndcg@10"]
    results = [result for result in recommender.results if result.split == "test"]
    assert [figure["value"] for figure in figures] == [round(r.metrics["ndcg@10"]["value"], 6) for r in results]
    assert "full protocol: all 30 items" in figures[0]["name"]
    assert "NDCG@10" in matter["model-index"][0]["results"][0]["metrics"][0]["name"]
    assert 'sasrec.load("hf://me/model")' in card
    assert "recommend_users" not in card


def test_without_a_licence_none_is_told(worker: Worker, hub: FakeHub, run: Path) -> None:
    push(worker, run)
    matter = yaml.safe_load(hub.repositories["me/model"].files["README.md"].decode().split("---\n")[1])
    assert not {"license", "datasets"} & set(matter)


def test_a_run_that_was_not_trained_here_has_a_card_too(
    worker: Worker, hub: FakeHub, recommender: Recommender, tmp_path: Path
) -> None:
    recommender.save(tmp_path / "copy")
    push(worker, tmp_path / "copy")
    assert set(hub.repositories["me/model"].files) == MODEL_FILES - {"history.jsonl"} | {"README.md", ".gitattributes"}
    assert b"curve.png" not in hub.repositories["me/model"].files["README.md"]


@pytest.mark.parametrize("name", sorted(MODEL_FILES))
def test_a_file_that_is_damaged_at_the_hub_is_refused(worker: Worker, hub: FakeHub, run: Path, name: str) -> None:
    push(worker, run)
    repository = hub.repositories["me/model"]
    changed = bytearray(repository.files[name])
    changed[len(changed) // 2] ^= 1
    repository.commit({**repository.files, name: bytes(changed)})
    with pytest.raises(RefusedError, match=rf"^CheckpointError: .*({name}.* is damaged|is damaged: {name})"):
        worker.do(loaded("hf://me/model"))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_that_is_gone_from_the_hub_is_named(worker: Worker, hub: FakeHub, run: Path, name: str) -> None:
    push(worker, run)
    repository = hub.repositories["me/model"]
    repository.commit({other: data for other, data in repository.files.items() if other != name})
    with pytest.raises(RefusedError, match=f"^CheckpointError: hf://me/model@.* has no {name}, which its digests"):
        worker.do(loaded("hf://me/model"))


def test_a_file_with_another_name_is_never_fetched(worker: Worker, hub: FakeHub, run: Path, tmp_path: Path) -> None:
    push(worker, run)
    repository = hub.repositories["me/model"]
    odd = {
        "model.pkl": b"cos\nsystem\n",
        "sasrec.py": b"raise SystemExit",
        "training/state.safetensors": b"x",
        "a/../b": b"x",
    }
    for name, data in repository.files.items():
        (tmp_path / name).write_bytes(data)
    for name, data in odd.items():
        (tmp_path / "odd").write_bytes(data)
        note(tmp_path, {name: digest_of(tmp_path / "odd")})
    repository.commit({**repository.files, **odd, BOOK: (tmp_path / BOOK).read_bytes()})
    hub.asked.clear()
    worker.do(loaded("hf://me/model"))
    assert hub.fetched <= MODEL_FILES


def test_a_later_format_is_told(worker: Worker, hub: FakeHub, run: Path, tmp_path: Path) -> None:
    push(worker, run)
    repository = hub.repositories["me/model"]
    later = json.dumps(json.loads(repository.files["config.json"]) | {"format": 9}).encode()
    for name in MODEL_FILES:
        (tmp_path / name).write_bytes(later if name == "config.json" else repository.files[name])
    note(tmp_path, {"config.json": digest_of(tmp_path / "config.json")})
    repository.commit({**repository.files, "config.json": later, BOOK: (tmp_path / BOOK).read_bytes()})
    with pytest.raises(RefusedError, match=r"has format 9, and this version reads up to 2; update sasrec$"):
        worker.do(loaded("hf://me/model"))


def test_what_the_hub_refuses_is_one_sentence(worker: Worker, hub: FakeHub, run: Path) -> None:
    address = push(worker, run)
    hub.repositories["me/empty"] = Repository(private=False)
    hub.repositories["me/empty"].commit({"README.md": b""})
    hub.repositories["me/gated"] = Repository(private=False, gated=True)
    hub.repositories["me/gated"].commit({})
    revision = address.partition("@")[2]
    expected = {
        "hf://me/empty": f"hf://me/empty has no {BOOK}, and so is no run that sasrec pushed",
        "hf://me/none": "hf://me/none is not there, or is private and not yours; check the name, or log in",
        "hf://me/model@v9": "hf://me/model@v9 has no such revision; give a branch, a tag or a commit of hf://me/model",
        "hf://me": "'hf:/me' is no address at the Hub; write hf://user/model",
        "hf://me/model/config.json": "is no address at the Hub",
        "hf://me/mo--del": "'me/mo--del' is no name of a repository",
    }
    for place, words in expected.items():
        with pytest.raises(RefusedError) as caught:
            worker.do(loaded(place))
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith(("CheckpointError: ", "ConfigError: "))
    for token, place, words in [
        (GUEST, f"hf://me/model@{'0' * 40}", "is not there, or is private and not yours"),
        (GUEST, "hf://me/gated", f"hf://me/gated is gated: ask for access at {hub.url}/me/gated, and log in"),
        ("hf_wrong", "hf://me/empty", "(401): Invalid credentials in Authorization header; log in"),
    ]:
        with pytest.raises(RefusedError) as caught:
            with_token(worker, token, loaded(place))
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
    assert worker.do(loaded(f"hf://me/model@{revision}"))[2] is False


def with_token(worker: Worker, token: str, expression: str) -> Any:
    worker.do(f"os.environ.__setitem__('HF_TOKEN', {token!r})")
    try:
        return worker.do(expression)
    finally:
        worker.do("os.environ.__setitem__('HF_TOKEN', 'hf_owner')")


def test_a_push_that_is_refused_is_one_sentence(worker: Worker, hub: FakeHub, run: Path, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"^CheckpointError: .* this of hf://other/model \(403\): You don't"):
        push(worker, run, "other/model")
    with pytest.raises(RefusedError, match=r"^CheckpointError: .* \(401\): Invalid username or password; log in"):
        with_token(worker, GUEST, f"str(push(RunFolder(Path({str(run)!r})), 'me/model'))")
    with pytest.raises(RefusedError, match=r"^ConfigError: hf://me/model@v1 names a revision, and a push"):
        push(worker, run, "hf://me/model@v1")
    with pytest.raises(RefusedError, match=r"^ConfigError: 'hf://model' is no address at the Hub"):
        push(worker, run, "model")
    sasrec.load(run).save(tmp_path / "bare", histories=False)
    with pytest.raises(RefusedError, match=r"^ConfigError: .* was saved without histories, so none can be pushed"):
        push(worker, tmp_path / "bare", with_histories=True)
    shutil.copytree(run, tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(RefusedError, match=r"is damaged: model\.safetensors is not as it was written"):
        push(worker, tmp_path / "damaged")
    assert not hub.received or not any(b"lfsFile" in data for data in hub.received)


def test_a_hub_that_is_out_of_order_is_one_sentence_and_the_cache_answers(
    worker: Worker, hub: FakeHub, run: Path, recommender: Recommender
) -> None:
    push(worker, run)
    worker.do(loaded("hf://me/model"))
    hub.broken = 418
    assert worker.do(loaded("hf://me/model")) == [*answers_of(recommender), False]
    with pytest.raises(RefusedError, match=r"^CheckpointError: .* this of hf://me/other \(418\): out of order$"):
        worker.do(loaded("hf://me/other"))


def test_offline_the_cache_answers(
    running: FakeHub, hub: FakeHub, run: Path, recommender: Recommender, tmp_path: Path
) -> None:
    with working(running, tmp_path) as online:
        push(online, run)
        online.do(loaded("hf://me/model"))
    hub.asked.clear()
    with working(running, tmp_path, HF_HUB_OFFLINE="1") as offline:
        assert offline.do(loaded("hf://me/model")) == [*answers_of(recommender), False]
        with pytest.raises(RefusedError, match=r"is not in the cache of huggingface_hub, and .* is not to be asked"):
            offline.do(loaded("hf://me/other"))
    assert not hub.asked


def test_the_commands_take_a_run_at_the_hub(
    worker: Worker, hub: FakeHub, run: Path, recommender: Recommender, tmp_path: Path
) -> None:
    def command(*words: object) -> tuple[int, str, str]:
        code, out, err = worker.do(f"cli{tuple(map(str, words))!r}")
        return code, out, " ".join(err.split())

    make_markov_log(n_users=60, seed=5).write_csv(tmp_path / "log.csv")
    code, out, err = command("push", run, "me/model", "--license", "mit", "--dataset", "me/log", "--json")
    assert code == 0, err
    assert "no id and no history of a user goes with it" in err
    address = json.loads(out)["address"]
    rows = json.loads(command("recommend", address, "--history", "3,24,21", "-k", "5", "--json")[1])
    assert [row["item_id"] for row in rows] == recommender.recommend([[3, 24, 21]], k=5)["item_id"].to_list()
    told = json.loads(command("info", "hf://me/model", "--verify", "--json")[1])
    assert set(told["verified"]) == MODEL_FILES - {BOOK}
    measured = json.loads(command("evaluate", "hf://me/model", "--log", tmp_path / "log.csv", "--json")[1])
    assert measured["n_users"] == 60
    code, _, err = command("evaluate", "hf://me/model")
    assert (code, "saved without histories" in err) == (1, True)
    code, _, err = command("export", "hf://me/model", "--format", "embeddings")
    assert (code, "--output is needed for a run at the Hub" in err) == (2, True)
    code, _, err = command("export", "hf://me/model", "--format", "embeddings", "--output", tmp_path / "vectors")
    assert (code, (tmp_path / "vectors" / "embeddings.npy").exists()) == (0, True), err
    code, _, err = command("push", run, "model")
    assert (code, "'hf://model' is no address at the Hub" in err) == (2, True)


def test_without_huggingface_hub_the_extra_is_named(run: Path, tmp_path: Path) -> None:
    program = (
        "import sasrec\n"
        f"for use in (lambda: sasrec.load('hf://me/model'), lambda: sasrec.load({str(run)!r}).push_to_hub('me/x')):\n"
        "    try:\n        use()\n    except sasrec.ConfigError as error:\n        print(error)"
    )
    environment = without(tmp_path, "huggingface_hub")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    for line in lines:
        assert line.startswith("an address at the Hub (hf://) needs huggingface_hub")
        assert line.endswith("pip install 'sasrec[hub]'")


def test_an_address_is_known_also_as_a_path() -> None:
    for text in ("hf://me/model", Path("hf://me/model")):
        assert is_address(text)
        assert address_of(text) == Address("me/model")
    assert address_of("hf://me/model@refs/pr/1") == Address("me/model", "refs/pr/1")
    assert not is_address("runs/hf")
    with pytest.raises(ConfigError, match="'hf://me' is no address at the Hub"):
        address_of("hf://me")


def test_a_run_folder_of_another_place_is_opened_as_before(run: Path) -> None:
    assert RunFolder.open(run).path == run
