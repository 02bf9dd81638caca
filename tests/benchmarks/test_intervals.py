"""How sure a mean is: bootstrap intervals against theory, paired differences, shared queries."""

import numpy as np
import pytest

from benchmarks.intervals import RESAMPLES, interval, resampled_means


def drawn(count, seed=0):
    return np.random.default_rng(seed).beta(2, 2, count)


def test_the_interval_of_a_mean_is_that_of_the_normal_law():
    ap = drawn(400)
    low, high = interval({13: [str(n) for n in range(400)]}, {13: ap})
    half = 1.96 * ap.std() / 400**0.5
    assert (low, high) == pytest.approx((ap.mean() - half, ap.mean() + half), abs=0.1 * half)


def test_queries_of_other_images_make_a_mean_surer_and_the_same_queries_do_not():
    names = {seed: [f"{seed}-{n}" for n in range(200)] for seed in (13, 14, 15, 16)}
    same = {seed: [str(n) for n in range(200)] for seed in names}
    width = {}
    for kind, known in (("other", names), ("same", same)):
        ap = {seed: drawn(200, 0 if kind == "same" else seed) for seed in names}
        low, high = interval(known, ap)
        width[kind] = high - low
    assert width["same"] / width["other"] == pytest.approx(2, rel=0.15)


def test_the_difference_of_two_methods_is_paired():
    names = {13: list("abcdefgh"), 14: list("ghijklmn")}
    ap = {13: drawn(8, 1), 14: drawn(8, 2)}
    better = {seed: values + 0.125 for seed, values in ap.items()}
    first, second = resampled_means(names, better), resampled_means(names, ap)
    assert first.shape == (RESAMPLES,) and second.std() > 0.02
    np.testing.assert_allclose(first - second, 0.125)
    apart = {seed: better[seed] - ap[seed] for seed in ap}
    assert interval(names, apart) == pytest.approx((0.125, 0.125))


def test_one_query_says_how_little_it_knows():
    assert interval({13: ["a"]}, {13: np.array([0.5])}) == (0.5, 0.5)
    names, ap = {13: ["a", "b"], 14: ["c"]}, {13: np.array([0, 1]), 14: np.array([1])}
    assert np.isfinite(resampled_means(names, ap)).all() and interval(names, ap) == (0, 1)


def test_a_method_that_has_one_of_two_seeds_is_judged_by_its_queries_alone():
    names, ap = {13: [f"a{n}" for n in range(30)], 14: list("xyz")}, {13: drawn(30)}
    assert interval(names, ap) == interval({13: names[13]}, ap)


def test_batches_change_nothing(monkeypatch):
    names, ap = {13: [str(n) for n in range(50)]}, {13: drawn(50)}
    whole = resampled_means(names, ap)
    monkeypatch.setattr("benchmarks.intervals.BATCH", 700)
    np.testing.assert_allclose(resampled_means(names, ap), whole, rtol=1e-12)
