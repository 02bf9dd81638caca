"""Ctrl-C and SIGTERM: the step in hand is saved, and the same command goes on to the same files."""

import signal

import pytest

from engine import stopping
from engine.files import at_end
from run_helpers import OFTEN, SELDOM, at_step

SIGNALS = [("SIGINT", 130), ("SIGTERM", 143)]


def assert_goes_on(script, place):
    """The same command goes on in `place`, and ends as a run in one go."""
    code, text = script.run()
    assert code == 0 and f"resuming {script.folder / 'run'} {place}\n" in text, text
    script.assert_as_whole()


@pytest.mark.parametrize(("name", "step", "place", "number"), [
    ("autoencoder", 7, "in epoch 1, after batch 2", 0),
    ("autoencoder", 10, "in epoch 1, after batch 5", 1),  # of five: nothing of it is lost
    ("train", 3, "in head epoch 0, after batch 3", 0),
    pytest.param("train", 10, "in head epoch 1, after batch 5", 1, marks=pytest.mark.slow),
    pytest.param("train", 13, "in epoch 0, after batch 3", 0, marks=pytest.mark.slow),
    ("train-once", 7, "in epoch 1, after batch 2", 1)])
def test_a_signal_saves_the_step_and_says_how_to_go_on(stage, name, step, place, number):
    script, (signal_name, expected) = stage(name), SIGNALS[number]
    code, text = script.run(at_step(step, f"os.kill(os.getpid(), signal.{signal_name})", SELDOM))
    assert code == expected and "Traceback" not in text, text
    assert text.splitlines()[-2:] == [
        "stopping when this step is done and saved; once more stops at once",
        "interrupted; the same command with --resume goes on from what was saved"]
    assert_goes_on(script, place)


def test_a_second_signal_does_not_wait_and_loses_nothing_saved(stage):
    script = stage("train-once")
    twice = "os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGINT)"
    code, text = script.run(at_step(3, twice))
    assert code == 130 and text.splitlines()[-1].startswith("interrupted;"), text
    assert_goes_on(script, "in epoch 0, after batch 2")  # what was saved before


def test_a_signal_while_codes_are_measured_saves_the_epoch(stage):
    script = stage("train-once")
    code, text = script.run(f"""{SELDOM}
import hamming, os, signal
hamming.evaluate = lambda *_, **__: os.kill(os.getpid(), signal.SIGINT)
""")
    assert code == 130, text
    assert text.splitlines()[-1].startswith("interrupted; the same command with --resume"), text
    assert_goes_on(script, "in epoch 0, after batch 5")  # of 5: nothing is lost


@pytest.mark.parametrize(("name", "exit_code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_while_features_are_extracted_keeps_those_that_are_there(stage, name, exit_code):
    script = stage("autoencoder")
    code, text = script.run(f"""{OFTEN}
import itertools, os, signal
calls, append = itertools.count(1), _Part.append
def acting(self, rows):
    append(self, rows)
    if "features" in str(self.path) and next(calls) == 3:
        os.kill(os.getpid(), signal.{name})
_Part.append = acting
""")
    assert code == exit_code, text
    assert text.splitlines()[-1].startswith("interrupted; the same command with --resume"), text
    code, text = script.run()
    assert code == 0 and ".npy goes on after 24 of 42 rows" in text, text  # batches of 8
    script.assert_as_whole()


def test_a_signal_that_the_shell_wants_ignored_is_ignored(stage):
    script = stage("train-once")
    ignored = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    code, text = script.run(ignored + at_step(3, "os.kill(os.getpid(), signal.SIGINT)"))
    assert code == 0, text
    script.assert_as_whole()


# ------------------------------------------------------------ in this process


@pytest.fixture
def signals():
    """Installed, and what was there before put back at the end."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell may want ignored
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    made = stopping.StopSignals()
    made.install()
    yield made
    at_end.close()
    after = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert after == before


def test_a_first_signal_waits_only_where_it_is_deferred(signals, capsys):
    with pytest.raises(stopping.Stopped) as stopped:
        signal.raise_signal(signal.SIGTERM)
    assert stopped.value.number == signal.SIGTERM
    signals.raise_if_asked()  # nobody is to be asked again
    signals.deferred = True
    signal.raise_signal(signal.SIGINT)
    assert signals.asked == signal.SIGINT and "once more stops at once" in capsys.readouterr().err
    with pytest.raises(stopping.Stopped) as stopped:
        signals.raise_if_asked()
    assert stopped.value.number == signal.SIGINT
    with pytest.raises(stopping.Stopped):
        signal.raise_signal(signal.SIGINT)


def test_of_several_ranks_none_stops_before_they_agree(signals, monkeypatch):
    monkeypatch.setattr(stopping, "world_size", lambda: 2)
    signal.raise_signal(signal.SIGTERM)
    assert signals.asked == signal.SIGTERM
