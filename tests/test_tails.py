from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import ContractError
from pipeline.intervals import rate_with_interval
from pipeline.pareto import fit_tail
from pipeline.schema import Baseline
from pipeline.tails import KEPT_WHOLE, ScoreScale, TailTable


def test_the_probability_is_the_conformal_rank(rng) -> None:
    scores = rng.normal(size=3000)
    table = TailTable.of(scores)
    asked = rng.normal(size=500) * 2
    expected = (1 + (scores[None, :] >= asked[:, None]).sum(1)) / 3001
    np.testing.assert_allclose(table.probability(asked), expected)


def test_a_thinned_table_is_exact_in_the_tail_and_never_too_small_below(rng, tmp_path: Path) -> None:
    scores = rng.normal(size=200_000)
    matches = np.array([0.0, 2.0]), np.array([0.0, 4.0]), np.array([0.0, 1.0])
    table = TailTable.of(scores, ScoreScale(*matches, level=np.array([1.0, 2.0])))
    assert len(table.values) < KEPT_WHOLE + 5_000
    asked = np.r_[np.linspace(-5, 5, 2001), scores[:50]]
    exact = (1 + len(scores) - np.searchsorted(np.sort(scores), asked, side="left")) / (len(scores) + 1)
    found = table.probability(asked)
    tail = asked >= np.sort(scores)[-KEPT_WHOLE]
    np.testing.assert_allclose(found[tail], exact[tail])
    assert (found >= exact - 1e-12).all()
    assert (found - exact).max() < 2e-3
    table.save(tmp_path / "t.safetensors")
    again = TailTable.load(tmp_path / "t.safetensors")
    baselines = np.array([Baseline.OWN, Baseline.FLEET, Baseline.FLEET, Baseline.SHRUNK])
    asked_scores, code = np.array([1.0, 1.0, 8.0, 8.0]), np.array([0, 0, 0, 1])
    assert again.scale.comparable(asked_scores, baselines, code).tolist() == [1.0, 0.5, 4.0, 1.0]
    np.testing.assert_array_equal(again.probability(asked), found)


@pytest.mark.parametrize("scores", [np.empty(0), np.array([1.0, np.nan]), np.array([1.0, np.inf])])
def test_scores_that_are_no_numbers_are_refused(scores: np.ndarray) -> None:
    with pytest.raises(ContractError, match="calibration scores"):
        TailTable.of(scores)


def with_tail(scores: np.ndarray, rows_a_day: int = 10) -> TailTable:
    fit = fit_tail(scores, np.arange(len(scores)) // rows_a_day)
    assert fit.tail is not None
    return TailTable.of(scores, tail=fit.tail)


def test_the_tail_goes_on_from_the_tenth_largest_score(rng, tmp_path: Path) -> None:
    scores = rng.exponential(size=4000)
    table, ranked = with_tail(scores), np.sort(scores)
    below = np.r_[ranked[:-9], 0.5]
    np.testing.assert_array_equal(table.probability(below), TailTable.of(scores).probability(below))
    joint = ranked[-10]
    assert table.probability(np.array([np.nextafter(joint, np.inf)]))[0] == pytest.approx(11 / 4001)
    asked = np.r_[np.linspace(0, ranked[-1] * 3, 4000), 1e6, 1e300, np.inf]
    found = table.probability(asked)
    assert (np.diff(found) <= 0).all()
    assert found.min() == found[-1] > 0
    assert (found <= TailTable.of(scores).probability(asked) + 11 / 4001).all()
    # true of an exponential law: far beyond all 4,000 rows, within a factor
    assert np.exp(-14) / 8 < table.probability(np.array([14.0]))[0] < 8 * np.exp(-14)
    table.save(tmp_path / "t.safetensors")
    np.testing.assert_array_equal(TailTable.load(tmp_path / "t.safetensors").probability(asked), found)


def test_infinite_scores_are_the_rarest_and_no_numbers_are_refused(rng) -> None:
    scores = rng.exponential(size=1000)
    for table in (TailTable.of(scores), with_tail(scores)):
        finite, infinite, least = table.probability(np.array([scores.max(), np.inf, -np.inf]))
        assert 0 < infinite <= finite
        assert least == 1.0
        with pytest.raises(ContractError, match="1 that are no number"):
            table.probability(np.array([1.0, np.nan]))
    assert TailTable.of(scores).probability(np.array([np.inf]))[0] == 1 / 1001


def test_more_scores_than_two_to_the_24(rng) -> None:
    """Where torch.quantile and float32 counts end."""
    rows = 2**24 + 5
    scores = rng.standard_exponential(rows, dtype=np.float32).astype(np.float64)
    machine, day = np.arange(rows) % 300, np.arange(rows) // (rows // 20)
    found = rate_with_interval(scores, (machine, day), None, None, 99.95, draws=50, confidence=0.9, seed=0, tail=None)
    assert found.rate == pytest.approx(5e-4, rel=1e-3)
    assert found.threshold == pytest.approx(-np.log(5e-4), abs=0.1)
    assert found.low < 5e-4 < found.high
    fit = fit_tail(scores, machine * 21 + day)
    table = TailTable.of(scores, tail=fit.tail)
    assert table.rows == rows
    assert len(table.values) < KEPT_WHOLE + 5_000
    assert table.probability(np.array([found.threshold]))[0] == pytest.approx(5e-4, rel=1e-2)
    assert table.probability(np.array([30.0]))[0] < 1e-9
