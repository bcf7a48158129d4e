"""Intervals of rates: exact against repeated rows, and honest about machines."""

from __future__ import annotations

import time

import numpy as np
import pytest

from pipeline import intervals
from pipeline.errors import ContractError
from pipeline.intervals import _Blocks, _drawn_thresholds, _weighted_exceedances, rate_with_interval, wilson, zero_bound

OPTIONS = {"draws": 200, "confidence": 0.9, "seed": 1}


def fleet(machines: int, days: int, rows: int, spread: float, seed: int, first_day: int = 0):
    """Scores whose machines differ by `spread`; the machines' own levels depend on the seed only."""
    rng = np.random.default_rng(seed)
    level = np.random.default_rng(seed + 10_000).normal(size=machines) * spread
    machine = np.repeat(np.arange(machines), days * rows)
    day = np.tile(np.repeat(np.arange(first_day, first_day + days), rows), machines)
    scores = level[machine] + rng.normal(size=len(machine))
    return scores, (machine, day)


def test_wilson_against_known_values():
    assert wilson(0, 10, 0.95) == (0.0, pytest.approx(0.2775, abs=1e-4))
    assert wilson(10, 10, 0.95) == (pytest.approx(0.7225, abs=1e-4), 1.0)
    assert wilson(0, 0, 0.95) == (0.0, 1.0)
    assert wilson(5, 10, 0.9)[0] == pytest.approx(1 - wilson(5, 10, 0.9)[1])


@pytest.mark.parametrize("percentile", [60.0, 95.0, 99.5])
def test_draws_are_what_repeated_rows_give(percentile, monkeypatch):
    monkeypatch.setattr(intervals, "CELLS", 700)  # several parts
    scores, blocks_of_rows = fleet(6, 5, 20, 1.0, 0)
    scores = np.round(scores, 1)  # ties
    later, later_blocks = fleet(6, 4, 20, 1.0, 5)
    blocks, judged = _Blocks.of(*blocks_of_rows), _Blocks.of(*later_blocks)
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(6, np.full(6, 1 / 6), size=30)
    weights = blocks.weights(drawn, np.arange(6), rng)
    later_weights = judged.weights(drawn, np.arange(6), rng)
    assert (weights.sum(axis=1) == 30).all()
    thresholds = _drawn_thresholds(scores, blocks, weights, percentile)
    counts = _weighted_exceedances(later, judged, later_weights, thresholds)
    for draw in range(30):
        repeated = np.repeat(scores, weights[draw][blocks.block_N])
        assert thresholds[draw] == np.percentile(repeated, percentile, method="higher")
        assert counts[draw] == (np.repeat(later, later_weights[draw][judged.block_N]) > thresholds[draw]).sum()


def test_a_tail_of_one_machine_is_followed_down():
    scores, blocks = fleet(25, 2, 40, 0.0, 0)
    scores[blocks[0] == 3] += 100  # 4 % of the rows: a draw without this machine has its threshold far below
    later, later_blocks = fleet(25, 2, 40, 0.0, 7, first_day=9)
    later[later_blocks[0] == 3] += 100
    found = rate_with_interval(scores, blocks, later, later_blocks, 99.5, **OPTIONS)
    assert found.threshold > 90
    assert found.low == 0 or found.low < 0.005
    assert found.high > 0.005


def test_threshold_and_rate_are_those_of_numpy():
    scores, blocks = fleet(30, 4, 20, 0.5, 0)
    later, later_blocks = fleet(30, 4, 20, 0.5, 0, first_day=9)
    found = rate_with_interval(scores, blocks, later, later_blocks, 99.0, **OPTIONS)
    assert found.threshold == np.percentile(scores, 99.0, method="higher")
    assert (scores > found.threshold).mean() <= 0.01
    assert found.rate == (later > found.threshold).mean()
    assert found.low <= found.rate <= found.high
    assert found.note is None
    assert found == rate_with_interval(scores, blocks, later, later_blocks, 99.0, **OPTIONS)


def test_machines_that_move_widen_the_interval():
    def width(spread):
        scores, blocks = fleet(30, 4, 50, spread, 1)
        later, later_blocks = fleet(30, 4, 50, spread, 2, first_day=9)  # other levels: the machines have moved
        found = rate_with_interval(scores, blocks, later, later_blocks, 95.0, **OPTIONS)
        return found.high - found.low

    assert width(1.0) > 1.5 * width(0.0)


def test_calibration_rows_against_themselves_have_an_interval():
    scores, blocks = fleet(30, 4, 50, 0.5, 1)
    found = rate_with_interval(scores, blocks, scores, blocks, 99.0, **OPTIONS)
    assert found.low < 0.01 < found.high
    assert found.high - found.low > 0.002
    assert found == rate_with_interval(scores, blocks, None, None, 99.0, **OPTIONS)


def test_coverage_of_the_rate_of_later_rows():
    """Machines drawn from one population; the interval must hold the mean rate of a threshold at 95 %."""
    inside = 0
    for seed in range(60):
        level = np.random.default_rng(seed).normal(size=40) * 0.5
        rng = np.random.default_rng(seed + 500)
        machine = np.repeat(np.arange(40), 60)
        day = np.tile(np.repeat(np.arange(3), 20), 40)
        first, second = (level[machine] + rng.normal(size=len(machine)) for _ in range(2))
        found = rate_with_interval(
            first, (machine, day), second, (machine, day + 9), 95.0, draws=150, confidence=0.9, seed=0
        )
        inside += found.low <= 0.05 <= found.high
    assert 47 <= inside <= 60  # 90 % of 60 is 54; 47 has a chance of 0.5 %


def test_no_exceedance_has_an_exact_bound():
    scores, blocks = fleet(30, 4, 50, 0.0, 1)
    found = rate_with_interval(scores, blocks, scores - 100, (blocks[0], blocks[1] + 9), 99.0, **OPTIONS)
    assert (found.rate, found.low) == (0.0, 0.0)
    assert zero_bound(6000, 0.9) <= found.high < 4 * zero_bound(6000, 0.9)
    assert "effective rows of 6000" in found.note
    rough, _ = fleet(30, 4, 50, 2.0, 1)
    clustered = rate_with_interval(rough, blocks, rough - 100, (blocks[0], blocks[1] + 9), 99.0, **OPTIONS)
    assert clustered.high > 5 * found.high


def test_few_machines_and_few_days_are_said():
    scores, blocks = fleet(5, 6, 20, 0.5, 0)
    found = rate_with_interval(scores, blocks, scores.copy(), blocks, 95.0, **OPTIONS)
    assert found.low is not None
    assert "5 machines, fewer than 20" in found.note
    scores, blocks = fleet(6, 3, 20, 0.5, 0)
    found = rate_with_interval(scores, blocks, scores.copy(), blocks, 95.0, **OPTIONS)
    assert (found.low, found.high) == (None, None)
    assert "18 machine-days" in found.note
    assert found.rate is not None


def test_unseen_machines_have_later_rows_only():
    scores, blocks = fleet(30, 4, 20, 0.5, 0)
    found = rate_with_interval(scores, blocks, scores.copy(), (blocks[0] + 100, blocks[1]), 95.0, **OPTIONS)
    assert found.low < found.rate < found.high


def test_what_has_no_rate():
    scores, blocks = fleet(5, 6, 20, 0.5, 0)
    empty = np.empty(0)
    codes = np.empty(0, np.int64)
    assert rate_with_interval(scores, blocks, empty, (codes, codes), 95.0, **OPTIONS).rate is None
    with pytest.raises(ContractError, match="calibration scores: got none"):
        rate_with_interval(empty, (codes, codes), scores, blocks, 95.0, **OPTIONS)
    scores[3] = np.nan
    with pytest.raises(ContractError, match="1 not finite"):
        rate_with_interval(np.ones(600), blocks, scores, blocks, 95.0, **OPTIONS)


def test_a_million_rows_take_seconds():
    scores, blocks = fleet(100, 20, 250, 0.3, 0)
    later, later_blocks = fleet(100, 20, 250, 0.3, 0, first_day=40)
    begin = time.perf_counter()
    found = rate_with_interval(scores, blocks, later, later_blocks, 99.95, **OPTIONS)
    assert time.perf_counter() - begin < 20
    assert 0 < found.low < found.high < 0.01


def test_one_machine_has_its_days_drawn_anew_and_many_are_drawn_whole():
    lone = _Blocks.of(np.zeros(40, np.int64), np.arange(40) // 4)
    weights = lone.weights(np.ones((50, 1), np.int64), np.array([0]), np.random.default_rng(0))
    assert (weights.sum(axis=1) == 10).all()
    assert (weights != 1).any(axis=1).all()
    machines = np.arange(50)
    many = _Blocks.of(np.repeat(machines, 10), np.tile(np.arange(10), 50))
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(50, np.full(50, 1 / 50), size=40)
    weights = many.weights(drawn, machines, rng).reshape(40, 50, 10)
    assert (weights.sum(axis=2) == 10 * drawn).all()
    whole = (weights == drawn[:, :, None]).all(axis=2)[drawn > 0]
    assert 0.9 < whole.mean() < 1


def test_machines_and_days_of_any_numbers_are_the_same_blocks(monkeypatch):
    """Counted in a table or sorted."""
    rng = np.random.default_rng(0)
    machine, day = rng.integers(0, 30, 500), rng.integers(-5, 40, 500)
    counted = _Blocks.of(machine, day)
    monkeypatch.setattr(intervals, "MOST_CELLS", 0)
    found = _Blocks.of(machine, day)
    for left, right in ((counted.block_N, found.block_N), (counted.machine_B, found.machine_B)):
        np.testing.assert_array_equal(left, right)
    np.testing.assert_array_equal(counted.rows_B, found.rows_B)
    np.testing.assert_array_equal(counted.rows_B[counted.block_N], found.rows_B[found.block_N])


def test_too_few_rows_have_a_threshold_from_the_tail_drawn_anew():
    """2,000 rows for one in 2,000: the largest score alone would say little."""
    scores, blocks = fleet(40, 5, 10, 0.3, 0)
    later, later_blocks = fleet(40, 5, 200, 0.3, 0, first_day=9)
    found = rate_with_interval(scores, blocks, later, later_blocks, 99.95, **OPTIONS)
    assert found.tail is not None
    assert found.tail.tail is not None
    assert found.threshold == found.tail.tail.score_at(1 - 0.9995)
    assert found.low < 5e-4 < found.high < 1e-2
    assert found.note == "2,000 calibration rows, fewer than 20,000: the threshold is extrapolated."
    assert found == rate_with_interval(scores, blocks, later, later_blocks, 99.95, **OPTIONS)
    few = rate_with_interval(scores[:150], (blocks[0][:150], blocks[1][:150]), later, later_blocks, 99.95, **OPTIONS)
    assert few.tail is not None
    assert few.tail.tail is None
    assert few.threshold == scores[:150].max()


def test_a_percentile_out_of_range_is_refused():
    scores, blocks = fleet(30, 4, 50, 0.5, 1)
    for percentile in (50.0, 100.0, 101.0):
        with pytest.raises(ContractError, match="percentile"):
            rate_with_interval(scores, blocks, None, None, percentile, **OPTIONS)
