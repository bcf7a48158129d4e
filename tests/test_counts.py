"""How far a count may lie from its mean, where machines differ."""

import numpy as np
import pytest
from scipy import stats

from pipeline.alerts import AlertPolicy, Timeline
from pipeline.counts import mean_interval, overdispersion, overdispersion_among, upper_bound
from pipeline.judging.outcomes import event_metrics, outcome_at

HOUR = 3_600_000_000


def test_the_bound_is_that_of_a_poisson_mean_where_machines_are_alike() -> None:
    assert overdispersion(np.array([1, 0, 1, 0, 1, 1])) == 1.0
    assert stats.poisson.cdf(4, upper_bound(4)) == pytest.approx(0.1)
    low, high = mean_interval(4)
    assert stats.poisson.sf(3, low) == pytest.approx(0.05)
    assert stats.poisson.cdf(4, high) == pytest.approx(0.05)


def test_it_is_wider_where_machines_differ() -> None:
    assert overdispersion(np.array([12, 0, 0, 0])) == pytest.approx(36 / 3)
    assert upper_bound(12, 12.0) == pytest.approx(12 * stats.chi2.ppf(0.9, 2 * 1 + 2) / 2)
    assert upper_bound(12, 12.0) > upper_bound(12)
    assert overdispersion_among(np.array([3, 3]), np.array([5, 7]), 4) == pytest.approx(12)


def test_a_machine_that_was_watched_longer_may_page_more_often() -> None:
    counts, days = np.array([10, 1, 1, 1]), np.array([100.0, 10.0, 10.0, 10.0])
    assert overdispersion(counts, days) == 1.0
    assert overdispersion(counts) > 5
    # one that was not watched says nothing of how machines differ
    assert overdispersion(np.r_[counts, 2], np.r_[days, 0.0]) == 1.0


def test_a_single_event_of_a_machine_that_was_hardly_watched_says_little() -> None:
    counts, days = np.r_[np.ones(12), np.zeros(588), 1], np.r_[np.full(600, 1.5), 0.01]
    assert overdispersion(counts, days) < 1.5
    many = np.r_[np.zeros(600), 12]
    assert overdispersion(many, days) > 5, "twelve of it do"


def test_intervals_of_false_episodes_keep_their_promise_where_machines_differ() -> None:
    """Counts of 100 machines whose rates vary as a gamma of shape 0.1: a plain Poisson interval covers two thirds."""
    rng = np.random.default_rng(5)
    covered = {True: 0, False: 0}
    for _ in range(400):
        counts = rng.poisson(rng.gamma(0.1, 3.0, 100))
        for corrected in covered:
            low, high = mean_interval(counts.sum(), overdispersion(counts) if corrected else 1.0)
            covered[corrected] += low <= 30 <= high
    assert covered[False] < 0.7 * 400
    assert covered[True] > 0.8 * 400


def test_pages_of_one_machine_widen_the_interval_of_the_rate() -> None:
    machine = np.repeat(np.arange(10, dtype=np.int32), 100)
    line = Timeline.of(machine, np.tile(np.arange(100) * HOUR, 10), AlertPolicy(1, 1, HOUR, HOUR))
    alike, one = np.zeros((10, 100), bool), np.zeros((10, 100), bool)
    alike[:9, 50], one[4, 5:90:10] = True, True
    found = {}
    for name, exceeds in (("alike", alike), ("one", one)):
        outcome = outcome_at(exceeds.ravel(), line, [])
        assert outcome.false_episodes == 9
        found[name] = event_metrics(outcome, [], 40.0, 10, {}, calendar=True)["false_episodes_per_day_ci"]
    low, high = mean_interval(9)
    assert found["alike"] == pytest.approx([low / 4, high / 4], abs=1e-3)
    assert found["one"][1] > 1.5 * found["alike"][1]
