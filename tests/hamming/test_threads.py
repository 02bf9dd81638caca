"""Threads that work side by side, and leave torch as it was."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import hamming
import hamming.histograms
from hamming import CodeError
from hamming.checks import require
from hamming.threads import Scratch, Threads
from helpers_hamming import assert_tables, make_data, plain_tables


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads_gives_the_same_and_leaves_torch_as_it_was(threads, monkeypatch):
    data, distances, relevance = make_data(64, Q=150, N=2000)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        monkeypatch.setattr(hamming.histograms, "CHUNK", 300)
        assert_tables(hamming.distance_histograms(*data, 64),
                      *plain_tables(distances, relevance, 64))
        indices, _ = hamming.nearest(*data[:2], 64, 20)
        stable = hamming.stable_metrics(*data, 64, 20)
        with pytest.raises(CodeError), Threads() as pool:
            pool.each(lambda job: require(job < 3, "job 3 or more"), range(100))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    order = np.argsort(distances, axis=1, kind="stable")
    np.testing.assert_array_equal(indices, order[:, :20])
    ranked = np.take_along_axis(relevance, order, axis=1)
    np.testing.assert_allclose(stable["ap"], hamming.ranked_ap(ranked, 20), rtol=1e-13)


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def threads_of_a_new_thread():
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()


@pytest.mark.usefixtures("three_threads")
def test_jobs_run_side_by_side_with_one_thread_of_torch_each():
    """A bincount of a large block must call no team of threads; three jobs wait for each other."""
    seen, together, scratch = [], threading.Barrier(3), Scratch()

    def job(number):
        together.wait(20)
        torch.zeros(10**6).sum()  # torch sets a thread up at its first parallel work
        memory = scratch.array("memory", (4,), np.uint8).ctypes.data
        seen.append((torch.get_num_threads(), memory))

    with Threads() as pool:
        assert threads_of_a_new_thread() == 3
        pool.each(job, range(9))
    assert [count for count, _ in seen] == [1] * 9
    assert len({memory for _, memory in seen}) == 3  # each its own, used three times
    assert torch.get_num_threads() == threads_of_a_new_thread() == 3


@pytest.mark.usefixtures("three_threads")
def test_calls_that_overlap_leave_torch_as_it_was():
    data, distances, relevance = make_data(33)
    inside = threading.Barrier(2)

    def parts(wait_for):
        inside.wait(20)  # both are counting
        time.sleep(wait_for)
        yield data[1], data[3]

    def call(wait_for):
        return hamming.distance_histograms(data[0], parts(wait_for), data[2], None, 33)

    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(call, (0.05, 0.2)):
            assert_tables(found, *plain_tables(distances, relevance, 33))
    assert threads_of_a_new_thread() == 3


@pytest.mark.usefixtures("three_threads")
def test_after_an_error_in_one_job_the_others_are_dropped():
    done, first = [], []

    def job(number):
        first.append(threading.get_ident())
        # All but one thread fail, so the one that is waited for must hear of it.
        require(threading.get_ident() == first[0] or number < 10, "this job fails.")
        time.sleep(0.01)
        done.append(number)

    with Threads() as pool:
        with pytest.raises(CodeError, match="this job fails"):
            pool.each(job, range(1000))
        pool.each(job, range(1, 4))  # and the threads are there for the next ones
    assert len(done) < 100 and sorted(done[-3:]) == [1, 2, 3]
