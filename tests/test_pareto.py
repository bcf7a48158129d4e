"""Pareto tails: the estimate against scipy's, the check, and how scores go on beyond the largest."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pipeline import pareto
from pipeline.errors import ContractError
from pipeline.pareto import (
    JOINT,
    check_fit,
    fit_pareto,
    fit_tail,
    independent_rows,
    rows_needed,
    tail_beyond,
    tier_threshold,
)


@pytest.mark.parametrize("shape", [-0.2, 0.0, 0.3, 0.6])
def test_the_estimate_agrees_with_maximum_likelihood(shape, rng):
    samples = np.sort(stats.genpareto.rvs(shape, scale=2.0, size=(40, 600), random_state=rng), axis=1)
    shapes, scales = fit_pareto(samples)
    likeliest = [stats.genpareto.fit(sample, floc=0) for sample in samples[:5]]
    np.testing.assert_allclose(shapes[:5], [fit[0] for fit in likeliest], atol=0.03)
    np.testing.assert_allclose(scales[:5], [fit[2] for fit in likeliest], rtol=0.03)
    assert shapes.mean() == pytest.approx(shape, abs=0.03)
    assert scales.mean() == pytest.approx(2.0, rel=0.03)


def test_the_check_lets_a_true_tail_pass_as_often_as_it_says(rng):
    samples = np.sort(stats.genpareto.rvs(0.2, size=(60, 150), random_state=rng), axis=1)
    p_values = np.array([check_fit(sample, 150, "pareto", seed) for seed, sample in enumerate(samples)])
    assert 0.35 < np.median(p_values) < 0.65
    assert (p_values < 0.05).sum() <= 9  # 3 expected; more than 9 have a chance of 0.1 %


def test_the_check_refuses_a_second_hump_and_the_wrong_shape(rng):
    two = np.sort(np.r_[rng.exponential(size=150), 10 + rng.normal(size=50)])
    assert check_fit(two, 200, "pareto") < 0.05
    heavy = np.sort(stats.genpareto.rvs(0.8, size=300, random_state=rng))
    assert check_fit(heavy, 300, "exponential") < 0.05 < check_fit(heavy, 300, "pareto")


def test_rows_that_repeat_a_machine_day_do_not_count_against_the_fit(rng):
    """Each excess forty times: two hundred rows that are five, no proof against any tail."""
    sample = np.sort(np.repeat(rng.exponential(size=40), 10))
    assert check_fit(sample, 400, "pareto") < 0.05 < check_fit(sample, 40, "pareto")


@pytest.mark.parametrize(("shape", "bias"), [(0.0, 0.1), (0.3, 0.15)])
def test_a_threshold_beyond_all_rows_is_near_the_true_one(shape, bias):
    """A tenth of a calibration row is expected above it."""
    rows, percentile = 2000, 99.995
    true = stats.genpareto.ppf(percentile / 100, shape)
    found = []
    for seed in range(30):
        scores = stats.genpareto.rvs(shape, size=rows, random_state=seed)
        fit = fit_tail(scores, np.arange(rows) // 5)
        assert fit.tail is not None
        found.append(tier_threshold(scores, percentile, fit.tail))
        assert found[-1] > np.sort(scores)[-JOINT]
    assert np.median(found) == pytest.approx(true, rel=bias)


def test_the_shape_is_held_at_zero_and_nothing_is_impossible(rng):
    scores = rng.uniform(size=5000)
    fit = fit_tail(scores, np.arange(5000) // 5)
    assert fit.shape is not None
    assert fit.shape < -0.5
    assert fit.tail is not None
    assert fit.tail.shape == 0.0
    beyond = fit.tail.probability(np.array([1.0, 1.001, 2.0, 1e9, np.inf]))
    assert (beyond > 0).all()
    assert (np.diff(beyond) <= 0).all()
    assert beyond[0] < 10 / 5000
    # no less cautious than the tail that was fitted: at the true end a uniform score leaves nothing above
    assert tier_threshold(scores, 99.99, fit.tail) < 1.01


def test_a_score_and_its_probability_are_inverses():
    for shape in (0.0, 0.4):
        tail = pareto.ParetoTail(3.0, 0.01, shape, 0.5)
        for probability in (0.01, 1e-3, 1e-9):
            assert tail.probability(np.array([tail.score_at(probability)]))[0] == pytest.approx(probability, rel=1e-9)


def test_few_machine_days_have_an_exponential_tail_or_none(rng):
    scores = rng.exponential(size=2000)
    fit = fit_tail(scores, np.arange(2000) % 20)
    assert fit.kind == "exponential"
    assert "too few for a shape" in fit.reason
    lone = fit_tail(scores, np.arange(2000) % 6)
    assert (lone.kind, lone.tail) == ("none", None)
    assert "too few machine-days" in lone.reason
    assert lone.to_json()["tail"] is None


def test_a_day_that_holds_the_whole_tail_counts_once(rng):
    scores = rng.exponential(size=3000)
    day = np.arange(3000) // 10
    scores[day == 7] += 50
    assert independent_rows(np.r_[np.full(10, 7), np.arange(20)]) < 12
    fit = fit_tail(scores, day)
    assert fit.kind != "pareto" or fit.p_value >= 0.05


def test_a_tail_that_fits_nothing_is_said(rng):
    scores = np.r_[rng.exponential(size=3000) / 100, 100 + rng.normal(size=60), 200 + rng.normal(size=40)]
    fit = fit_tail(scores, np.arange(len(scores)))
    assert fit.tail is None
    assert fit.kind == "none"
    assert "No generalised Pareto or exponential tail fits" in fit.reason


def test_scores_too_alike_few_or_infinite_have_no_tail(rng):
    alike = np.r_[np.zeros(2000), np.ones(300)]
    assert "too alike" in fit_tail(alike, np.arange(2300)).reason
    assert "150 rows are too few" in fit_tail(rng.exponential(size=150), np.arange(150)).reason
    assert tail_beyond(np.full(100, 3.0), 50, 1000, "pareto") is None
    with pytest.raises(ContractError, match="not finite"):
        fit_tail(np.r_[rng.exponential(size=500), np.inf], np.arange(501))


@pytest.mark.parametrize("percentile", [50.0, 100.0, 101.0, -1.0, np.nan])
def test_percentiles_out_of_range_are_refused(percentile):
    with pytest.raises(ContractError, match=r"percentile: got .*, expected above 50 and below 100"):
        tier_threshold(np.arange(100.0), percentile, None)


def test_enough_rows_are_counted_and_not_extrapolated(rng):
    scores = rng.exponential(size=rows_needed(99.5))
    fit = fit_tail(scores, np.arange(len(scores)) // 10)
    assert tier_threshold(scores, 99.5, fit.tail) == np.percentile(scores, 99.5, method="higher")
    assert tier_threshold(scores[:-1], 99.5, fit.tail) == fit.tail.score_at(1 - 0.995)
