from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import ContractError
from pipeline.schema import Baseline
from pipeline.tails import KEPT_WHOLE, TailTable


def test_the_probability_is_the_conformal_rank(rng) -> None:
    scores = rng.normal(size=3000)
    table = TailTable.of(scores)
    asked = rng.normal(size=500) * 2
    expected = (1 + (scores[None, :] >= asked[:, None]).sum(1)) / 3001
    np.testing.assert_allclose(table.probability(asked), expected)


def test_a_thinned_table_is_exact_in_the_tail_and_never_too_small_below(rng, tmp_path: Path) -> None:
    scores = rng.normal(size=200_000)
    table = TailTable.of(scores, np.array([0.0, 2.0]), np.array([0.0, 4.0]), np.array([0.0, 1.0]))
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
    assert again.comparable(np.array([1.0, 1.0, 8.0, 8.0]), baselines).tolist() == [1.0, 0.5, 4.0, 2.0]
    np.testing.assert_array_equal(again.probability(asked), found)


@pytest.mark.parametrize("scores", [np.empty(0), np.array([1.0, np.nan]), np.array([1.0, np.inf])])
def test_scores_that_are_no_numbers_are_refused(scores: np.ndarray) -> None:
    with pytest.raises(ContractError, match="calibration scores"):
        TailTable.of(scores)
