"""Threads for the work on the CPU, and the memory that each of them works in."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch


class Scratch(threading.local):
    """Arrays that each thread has for itself and uses again and again.

    A fresh array costs more than what is done to it: the system clears its pages one by one.
    """

    def __init__(self) -> None:
        self._flat: dict[str, np.ndarray] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array of any content; the same name, always of one dtype, is the same memory."""
        size, flat = math.prod(shape), self._flat.get(name)
        if flat is None or len(flat) < size:
            flat = self._flat[name] = np.empty(size, dtype)
        return flat[:size].reshape(shape)


class Threads:
    """As many threads as torch uses, up to 16, in each of which torch uses one.

    Teams of threads inside every operation would meet at a barrier each time, and wait there for a
    core that another program has taken.

        with Threads() as threads:
            threads.each(work, jobs)
    """

    _starting = threading.Lock()

    def __enter__(self) -> Threads:
        with self._starting:
            wanted = torch.get_num_threads()
            self.count = min(16, wanted)  # Python runs between the operations, one at a time
            self._pool = ThreadPoolExecutor(self.count)
            together = threading.Barrier(self.count)

            def use_one_thread(_: int) -> None:
                torch.get_num_threads()  # has torch set this thread up, which it would do later
                torch.set_num_threads(1)  # for this thread, and for those born from now on
                together.wait(60)  # so that each thread of the pool takes one of these jobs

            try:
                self.each(use_one_thread, range(self.count))
            finally:
                torch.set_num_threads(wanted)  # for those born from now on
        return self

    def __exit__(self, *_: Any) -> None:
        self._pool.shutdown()

    def each(self, work: Callable[[Any], None], jobs: Iterable[Any]) -> None:
        """Call work(job) for every job, in no particular order; an error drops the rest."""
        todo = deque(jobs)

        def work_through() -> None:
            try:
                while True:
                    try:
                        job = todo.popleft()
                    except IndexError:  # another thread has taken the last one
                        return
                    work(job)
            finally:
                todo.clear()

        shares = [self._pool.submit(work_through) for _ in range(self.count)]
        try:
            for share in shares:
                share.result()
        finally:  # Ctrl-C comes here alone
            todo.clear()
