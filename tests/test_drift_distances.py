"""The NumPy statistics are Evidently's, to many digits."""

import numpy as np
import pytest

from pipeline.drift.distances import jensen_shannon, normed_wasserstein
from pipeline.drift.evidently_page import evidently_report


@pytest.mark.parametrize("sizes", [(2000, 2000), (1500, 700), (300, 5000)])
@pytest.mark.parametrize("method", ["wasserstein", "jensenshannon"])
def test_numpy_and_evidently_agree(rng: np.random.Generator, sizes: tuple[int, int], method: str) -> None:
    statistic = {"wasserstein": normed_wasserstein, "jensenshannon": jensen_shannon}[method]
    pairs = {}
    for place, name in enumerate(("normal", "heavy", "ties", "constant", "single")):
        now, then = (rng.standard_t(3, size=4 * size) * (1 + place) for size in sizes)
        now += 0.2 * place
        if name == "ties":
            now, then = np.round(now), np.round(then)
        if name == "constant":
            then[:] = 4.0
        if name == "single":
            now, then = now.astype(np.float32), then.astype(np.float32)
        pairs[name] = (now, then)
    short = {name: (now[: sizes[0]], then[: sizes[0]]) for name, (now, then) in pairs.items()}
    found = evidently_report(short, dict.fromkeys(short, method), dict.fromkeys(short, 0.1), None)
    for name, (now, then) in short.items():
        assert statistic(now, then) == pytest.approx(found[name], rel=1e-6 if name == "single" else 1e-10), name


def test_mixes_agree(rng: np.random.Generator) -> None:
    now, then = rng.choice(["idle", "cut", "off"], size=(2, 900))
    now[:300] = "new"
    found = evidently_report({"condition": (now, then)}, {"condition": "jensenshannon"}, {"condition": 0.1}, None)
    assert jensen_shannon(now, then) == pytest.approx(found["condition"], rel=1e-10)
