"""A process that was forked after use answers, or says in one sentence why not; it never waits forever."""

import os
from pathlib import Path

import pytest
from conftest import make_markov_log
from made import SETTINGS, run_program

import sasrec
from sasrec.core.isa import load_native

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
PROGRAM = """
import os, sys, traceback
import numpy as np, polars as pl
import sasrec
from sasrec.bulk import recommend_all
from sasrec.core.config import ModelConfig, TrainConfig
from sasrec.data.logs import load_log
from sasrec.engine.protocol import create_engine
from sasrec.export.vectors import export_embeddings
run, parent_uses, *calls = sys.argv[1:]
log = pl.read_parquet(run + "/../log.parquet") if parent_uses == "polars" else None
rec = sasrec.load(run) if parent_uses == "sasrec" else None
if rec is not None:
    rec.recommend([[1, 2]] * 50)
    rec.evaluate()
for call in calls:
    child = os.fork()
    if not child:
        try:
            found = eval(call)
            print("answered", flush=True)
        except sasrec.SASRecError as error:
            print("refused:", error, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
if rec is not None:
    rec.recommend([[1, 2]])  # the parent is as it was
"""
SENTENCE = (
    "refused: this process was forked after {} had started its threads, which a fork does not bring along, so the call "
    'would wait forever; start processes with multiprocessing.get_context("spawn") or "forkserver", or fork before '
    "anything is read"
)
ANSWERED = [
    "rec.recommend([[1, 2]] * 5000, k=9)", "rec.recommend([['1']], allow=[1, 2, 3, 4])", "rec.recommend_users()",
    "rec.similar_items(3)", "rec.explain([1, 2, 3], 4)", "rec.score([[1]], [2])", "rec.features([[1]] * 999)",
    "rec.evaluate()", "rec.evaluate(protocol='sampled')", "rec.split()", "rec.model_version",
]  # fmt: skip
REFUSED = [
    "sasrec.load(run)", "load_log(run)", "sasrec.fit(run, max_epochs=1)", "rec.save(run + '-copy')",
    "rec.recommend(pl.DataFrame({'user_id': [1], 'item_id': [2]}))",
    "sasrec.filter_k_core(pl.DataFrame({'user_id': [1], 'item_id': [2]}))",
    "sasrec.filter_repeats(pl.DataFrame({'user_id': [1], 'item_id': [2]}), 'first')",
    "rec.vocabulary.with_titles(pl.DataFrame({'item_id': [1], 'title': ['a']}))",
    "sasrec.read_interactions(run + '.txt')", "sasrec.read_titles(run + '.txt')",
    "export_embeddings(rec, run + '-vectors')", "recommend_all(rec, run + '.parquet')",
]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of each engine, trained with two threads, and its log."""
    folder = tmp_path_factory.mktemp("runs")
    make_markov_log().write_parquet(folder / "log.parquet")
    for engine in ("native", "torch") if load_native().module else ("torch",):
        sasrec.fit(
            make_markov_log(), **SETTINGS | {"threads": 2, "max_epochs": 1}, engine=engine, output=folder / engine
        )
    return folder


def said(run: Path, parent_uses: str, calls: list[str]) -> list[str]:
    """What each call says in a forked process of its own."""
    return run_program(PROGRAM, run, parent_uses, *calls).splitlines()


@pytest.mark.skipif(load_native().module is None, reason=load_native().why)
def test_a_model_that_was_loaded_before_the_fork_answers_after_it(runs: Path) -> None:
    assert said(runs / "native", "sasrec", ANSWERED) == ["answered"] * len(ANSWERED)


@pytest.mark.skipif(load_native().module is None, reason=load_native().why)
def test_what_would_wait_for_polars_is_refused(runs: Path) -> None:
    assert said(runs / "native", "sasrec", REFUSED) == [SENTENCE.format("Polars")] * len(REFUSED)


def test_what_would_wait_for_torch_is_refused(runs: Path) -> None:
    calls = ["rec.recommend([[1, 2]])", "rec.evaluate()", "rec.features([[1]])"]
    assert said(runs / "torch", "sasrec", calls) == [SENTENCE.format("torch")] * 3


def test_polars_that_the_caller_has_used_is_noticed_too(runs: Path) -> None:
    if not Path("/proc/self/task").exists():
        pytest.skip("threads are known by name on Linux only")
    assert said(runs / "torch", "polars", ["sasrec.load(run)"]) == [SENTENCE.format("Polars")]


@pytest.mark.parametrize("engine", ["native", "torch"])
def test_a_fork_before_any_use_may_do_everything(runs: Path, engine: str) -> None:
    if (runs / engine).exists():
        calls = ["sasrec.load(run).recommend([[1, 2]])", "sasrec.fit(run, max_epochs=1)", "sasrec.load(run).evaluate()"]
        assert said(runs / engine, "nothing", calls) == ["answered"] * 3


POOL = """
import multiprocessing, sys
import polars as pl
import sasrec

def first(history):
    return sasrec.load(sys.argv[1]).recommend([history], k=1)["item_id"][0]

if __name__ == "__main__":
    wanted = first([1, 2])
    with multiprocessing.get_context(sys.argv[2]).Pool(2) as pool:
        print(*[found == wanted for found in pool.map(first, [[1, 2]] * 4)])
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_the_ways_that_the_sentence_names_work(runs: Path, method: str, tmp_path: Path) -> None:
    (tmp_path / "pool.py").write_text(POOL)
    run = f"import runpy, sys; sys.argv[0] = {str(tmp_path / 'pool.py')!r}"
    printed = run_program(f"{run}; runpy.run_path(sys.argv[0], run_name='__main__')", runs / "torch", method)
    assert printed == "True True True True\n"


def test_importing_the_package_is_enough_to_notice_what_the_caller_does_with_polars(runs: Path) -> None:
    if not Path("/proc/self/task").exists():
        pytest.skip("threads are known by name on Linux only")
    program = """
import os, sys
import sasrec
assert not {name for name in sys.modules if name.startswith(("polars", "sasrec."))}
import polars as pl
pl.read_parquet(sys.argv[1] + "/log.parquet")
child = os.fork()
if not child:
    try:
        sasrec.load(sys.argv[1] + "/torch")
    except sasrec.SASRecError:
        os._exit(7)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
sasrec.load(sys.argv[1] + "/torch")
"""
    assert run_program(program, runs) == "7\n"
