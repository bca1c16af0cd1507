"""The compiled core in a process that was forked after use: it starts threads of its own."""

import pytest
from made import run_program

from sasrec.core.isa import load_native

PROGRAM = """
import os, sys, time
import numpy as np
from sasrec.core.config import ModelConfig, TrainConfig
from sasrec.data.ragged import Ragged
from sasrec.engine.protocol import create_engine

def engine():
    return create_engine(ModelConfig(embedding_dim=16, max_seq_len=20), 500, TrainConfig(threads=3, engine="native"))

rows = Ragged.from_lists([np.arange(1, 15, dtype=np.int32)] * 200)
old = engine()
wanted = old.encode(rows)

def use(generation):
    for _ in range(20):
        assert np.array_equal(old.encode(rows), wanted)
        time.sleep(0.002)
    assert np.array_equal(engine().encode(rows), wanted)
    time.sleep(0.05)  # threads of this process go to sleep: a fork remembers that somebody waits
    if generation < 2:
        child = os.fork()
        if not child:
            use(generation + 1)
            sys.exit()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert np.array_equal(old.encode(rows), wanted)

use(0)
"""


@pytest.mark.skipif(load_native().module is None, reason=load_native().why)
def test_an_engine_computes_on_in_a_forked_process_and_its_children_and_ends_there() -> None:
    run_program(PROGRAM)
