"""The order of an epoch, what each rank has of it, and means over it."""

import numpy as np
import pytest
import torch

from engine.epoch import Meters, ShuffledEpoch, split_rows

CPU = torch.device("cpu")


@pytest.fixture
def as_rank(monkeypatch):
    """This process as one of several ranks that never meet."""
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "1234")

    def become(rank, number):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(number))

    return become


def test_every_row_comes_once_in_an_order_that_the_seed_alone_decides():
    orders = []
    for seed in (1, 1, 2):
        torch.rand(3)  # what was drawn before does not matter
        steps = list(ShuffledEpoch(20, 8, seed, CPU).steps())
        assert [len(step.rows) for step in steps] == [step.count for step in steps] == [8, 8, 4]
        assert all(step.weight == 1 and step.views is None for step in steps)
        orders.append(torch.cat([step.rows for step in steps]).tolist())
    assert sorted(orders[0]) == list(range(20))
    assert orders[0] == orders[1] != orders[2]


def test_dropout_depends_on_seed_and_rank_alone(as_rank):
    drawn = []
    for seed, rank in ((1, 0), (1, 0), (2, 1), (1, 1)):
        as_rank(rank, 2)
        torch.rand(3)
        ShuffledEpoch(20, 8, seed, CPU)
        drawn.append(torch.rand(4).tolist())
    assert drawn[0] == drawn[1]
    assert drawn[3] not in (drawn[0], drawn[2])


def test_an_epoch_goes_on_at_any_step_with_the_views_of_that_step():
    def views(epoch, first):
        for batch in epoch.batches[first:]:
            yield batch * 10

    whole = list(ShuffledEpoch(20, 8, 3, CPU, views).steps())
    for first in range(4):
        rest = list(ShuffledEpoch(20, 8, 3, CPU, views).steps(first))
        assert len(rest) == 3 - first
        for step, expected in zip(rest, whole[first:], strict=True):
            assert torch.equal(step.rows, expected.rows)
            assert torch.equal(step.views, step.rows * 10)


@pytest.mark.parametrize(("rows", "number"), [(21, 8), (128, 3), (6, 3), (2, 5), (5, 5), (3, 2)])
def test_shares_are_all_rows_and_their_weights_make_the_mean(as_rank, rows, number):
    values = np.random.default_rng(0).normal(size=rows)
    shares, sums, mean, order = [], 0.0, 0.0, []
    for rank in range(number):
        as_rank(rank, number)
        epoch = ShuffledEpoch(rows, rows, 0, CPU)
        step, = epoch.steps()
        assert len(step.rows) >= 2  # which batch normalisation needs
        order.append(epoch.batches[0].tolist())
        shares.append(step.rows)
        sums += values[step.rows].mean() * step.count  # as Meters take it
        mean += values[step.rows].mean() * step.weight / number
    assert order == [order[0]] * number  # one batch that all share
    times = number if rows < 2 * number else 1  # all have it whole, or a part each
    assert torch.cat(shares).tolist() == order[0] * times
    assert mean == pytest.approx(values.mean(), abs=1e-12)
    assert sums / rows == pytest.approx(values.mean(), abs=1e-12)


def test_a_last_batch_of_one_row_joins_the_one_before_and_nothing_else_changes():
    for count, sizes in ((16, [8, 8]), (17, [8, 9]), (18, [8, 8, 2]), (8, [8]), (9, [9]), (1, [1])):
        epoch = ShuffledEpoch(count, 8, 5, CPU)
        assert [len(step.rows) for step in epoch.steps()] == sizes and len(epoch) == len(sizes)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(5))
        assert torch.equal(torch.cat(epoch.batches), order)
    assert [len(batch) for batch in split_rows(torch.arange(3), 1)] == [1, 1, 1]  # as asked


def test_meters_give_means_over_rows_and_not_over_steps():
    meters = Meters(["loss", "other"], CPU)
    meters.update([torch.tensor(1.0), torch.tensor(4.0)], 3)
    meters.update([torch.tensor(5.0), torch.tensor(0.0)], 1)
    assert meters.averages() == {"loss": 2.0, "other": 3.0} and meters.rows == 4
