"""Ctrl-C is heard wherever it comes."""

import subprocess
import sys

DESTROYS = """
import signal, time, weakref
from sasrec.training.interrupts import hear_lost_interrupts
hear_lost_interrupts()
class Thing: pass
thing = Thing()
watch = weakref.ref(thing, lambda _: {what})
del thing
print("destroyed", flush=True)
try:
    time.sleep({seconds})
except KeyboardInterrupt:
    print("heard")
"""


def run(what: str, seconds: float) -> subprocess.CompletedProcess[str]:
    program = DESTROYS.format(what=what, seconds=seconds)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)


def test_ctrl_c_while_an_object_is_destroyed_is_heard_soon_after() -> None:
    """Python drops the KeyboardInterrupt of a weak reference's callback or of __del__."""
    done = run("signal.raise_signal(signal.SIGINT)", 120)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["destroyed", "heard"], "")


def test_what_else_goes_wrong_there_is_told_as_ever() -> None:
    done = run("1 / 0", 0.1)
    assert (done.returncode, done.stdout.split()) == (0, ["destroyed"])
    assert "ZeroDivisionError" in done.stderr


def test_the_program_hears_it() -> None:
    program = """
import sys
from sasrec.cli.main import main
sys.argv, plain = ["sasrec", "--version"], sys.unraisablehook
try:
    main()
except SystemExit:
    pass
assert plain is sys.__unraisablehook__ and sys.unraisablehook is not plain
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, stdout=subprocess.DEVNULL)
