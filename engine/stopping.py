"""Ctrl-C and SIGTERM: they stop a run at once, or, inside a step, when it is done and saved."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType

from engine.files import at_end
from utils import world_size


class Stopped(KeyboardInterrupt):
    """A signal asked the script to end; `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class StopSignals:
    """Notices the signals from `install` on, until the script ends.

    asked: the number of the signal that came while they were deferred, or None.
    deferred: whether a first signal only sets `asked`; a second one always stops at once.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self.deferred = False

    def install(self) -> None:
        """Take over Ctrl-C and SIGTERM; only a main thread may."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            # A shell that runs the script in the background wants Ctrl-C ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                at_end.callback(signal.signal, number, signal.signal(number, self._on_signal))

    def raise_if_asked(self) -> None:
        """Raises Stopped where a signal has come."""
        if self.asked is not None:
            raise Stopped(self.asked)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # Of several ranks none may go while the others wait for it: they agree after a step.
        if not (self.deferred or world_size() > 1) or self.asked is not None:
            raise Stopped(number)
        self.asked = number
        print("stopping when this step is done and saved; once more stops at once",
              file=sys.stderr)
