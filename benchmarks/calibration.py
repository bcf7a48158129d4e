"""Coverage of the intervals of false-positive rates, where scores are autocorrelated and machines differ.

Each repetition draws a fleet: the logarithm of a score is the machine's own level, a shift of the machine that differs
between the calibration and the later weeks, an effect of the day, and autocorrelated noise of the machine's own size.
Calibration and later weeks follow one law, so that the rate which a percentile of the one has on the other is the
nominal rate: the interval must hold it in 90 % of the repetitions. Beside it, how often it holds the rate that the
threshold of this repetition has on these machines' later weeks in the long run. A last setting, of 30 machines with
hourly rows, has too few rows for the 99.95th percentile: its threshold is extrapolated.
Usage: python benchmarks/calibration.py [--repetitions 200] [--machines 10 30 100] [--percentiles 99.5 99.95]
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import signal, stats

from pipeline.intervals import RateInterval, rate_with_interval
from pipeline.schema import FloatN, IntN

DAYS = 14
ROWS_A_DAY, FEW_ROWS_A_DAY = 144, 24  # one in ten minutes, and one an hour
LEVEL, SHIFT, DAY_EFFECT, SIZE = 0.3, 0.1, 0.3, 0.1  # standard deviations beside a noise of about 1
CORRELATION = 0.8  # of rows ten minutes apart
FIRST_SEED = 52_000


def weeks(level_M: FloatN, size_M: FloatN, rows_a_day: int, rng: np.random.Generator) -> FloatN:
    """Log scores (machines, days, rows of a day) of machines of a level and a size of noise."""
    machines = len(level_M)
    correlation = CORRELATION ** (ROWS_A_DAY / rows_a_day)
    noise = rng.normal(size=(machines, DAYS * rows_a_day)) * np.sqrt(1 - correlation**2)
    noise[:, 0] /= np.sqrt(1 - correlation**2)
    noise = signal.lfilter([1.0], [1.0, -correlation], noise, axis=1).reshape(machines, DAYS, rows_a_day)
    day_effect = DAY_EFFECT * rng.normal(size=(machines, DAYS, 1))
    return np.asarray(level_M[:, None, None] + day_effect + size_M[:, None, None] * noise)


def repetition(machines: int, percentile: float, rows_a_day: int, seed: int, draws: int) -> tuple[RateInterval, float]:
    """The interval, and the rate of its threshold on these machines' later weeks in the long run."""
    rng = np.random.default_rng(seed)
    level_M = LEVEL * rng.normal(size=machines)
    size_M = np.exp(SIZE * rng.normal(size=machines))
    now_M, later_M = (level_M + SHIFT * rng.normal(size=machines) for _ in range(2))
    calibration, later = (np.exp(weeks(level, size_M, rows_a_day, rng)) for level in (now_M, later_M))
    machine_N: IntN = np.repeat(np.arange(machines), DAYS * rows_a_day)
    day_N: IntN = np.tile(np.repeat(np.arange(DAYS), rows_a_day), machines)
    found = rate_with_interval(
        calibration.ravel(), (machine_N, day_N), later.ravel(), (machine_N, day_N + DAYS), percentile,
        draws=draws, confidence=0.9, seed=seed,
    )  # fmt: skip
    spread_M = np.hypot(size_M, DAY_EFFECT)
    return found, float(stats.norm.sf(np.log(found.threshold), later_M, spread_M).mean())


def coverage_of(machines: int, rows_a_day: int, percentile: float, repetitions: int, draws: int) -> dict[str, float]:
    """How often intervals hold the nominal rate, lie below and above it, and hold these machines' rate."""
    low_R, high_R, long_run_R = np.empty((3, repetitions))
    for number in range(repetitions):
        found, long_run_R[number] = repetition(machines, percentile, rows_a_day, FIRST_SEED + number, draws)
        low_R[number], high_R[number] = found.low or 0.0, 1.0 if found.high is None else found.high
    nominal = 1 - percentile / 100
    return {
        "machines": machines,
        "rows_a_day": rows_a_day,
        "percentile": percentile,
        "coverage": float(np.mean((low_R <= nominal) & (nominal <= high_R))),
        "interval_below": float(np.mean(high_R < nominal)),
        "interval_above": float(np.mean(low_R > nominal)),
        "coverage_of_these_machines": float(np.mean((low_R <= long_run_R) & (long_run_R <= high_R))),
        "median_upper_over_lower": round(float(np.median(high_R / np.maximum(low_R, 1e-6))), 2),
    }


def main() -> None:
    """Print a table, and one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--machines", type=int, nargs="+", default=[10, 30, 100])
    parser.add_argument("--percentiles", type=float, nargs="+", default=[99.5, 99.95])
    parser.add_argument("--draws", type=int, default=500)
    options = parser.parse_args()
    table = Table(title="coverage of 90 % intervals")
    for heading in (
        "machines",
        "rows a day",
        "percentile",
        "coverage",
        "below",
        "above",
        "these machines",
        "upper/lower",
    ):
        table.add_column(heading, justify="right")
    begin, settings = time.perf_counter(), []
    wanted = [(machines, ROWS_A_DAY, value) for machines in options.machines for value in options.percentiles]
    for machines, rows_a_day, percentile in [*wanted, (30, FEW_ROWS_A_DAY, 99.95)]:
        setting = coverage_of(machines, rows_a_day, percentile, options.repetitions, options.draws)
        settings.append(setting)
        table.add_row(*(f"{value:g}" for value in setting.values()))
    Console(width=100).print(table)
    coverage = float(np.mean([setting["coverage"] for setting in settings]))
    print(
        json.dumps(
            {
                "coverage": round(coverage, 4),
                "repetitions": options.repetitions,
                "settings": settings,
                "wall_s": round(time.perf_counter() - begin, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
