"""How many failures of the default mix energy alone catches: neither louder nor subtler faults than a plant's.

Energy alone is the two-sided z-score of the log energy of a row against the healthy rows of the same machine and
regime in the first part of the plan, up to the first thing that the log says was done to the machine. Its threshold is
the lowest that keeps the budget of false episodes on the later healthy rows, with the alert policy of params.yaml; a
failure is caught where an alert opens between its true onset, or the horizon, and the failure.
Usage: python benchmarks/energy_alone.py [--seeds 3] [--machines 150] [--failures 120]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from pipeline.alerts import AlertPolicy, Timeline
from pipeline.judging.judged import Event
from pipeline.judging.outcomes import budget_threshold, outcome_at
from pipeline.params import DirtParams, Params, load_params
from pipeline.schema import MICROSECONDS_PER_DAY, FloatN, codes_and_names, spectra_view, times_us
from pipeline.simulate import simulate
from pipeline.simulation.history import FleetHistory
from pipeline.simulation.plan import plan_fleet
from pipeline.store import day_files, read_table

FIRST_SEED = 41_000  # the constants were set on seeds 9000 to 9002
BASELINE_DAYS = 0.3  # of the plan
LEAST_ROWS = 30


def measure(
    params: Params, seed: int, machines: int, failures: int
) -> tuple[Counter[str], Counter[str], Counter[str], float]:
    """Failures judged, caught, and caught where regimes are not told apart; and false episodes per machine-day.

    The rate of false episodes is that of the first of the two detectors, on the rows that set its threshold.
    """
    fleet = params.simulate.model_copy(
        update={"seed": seed, "machines": machines, "failures": failures, "dirt": DirtParams()}
    )
    plan = plan_fleet(fleet)
    with tempfile.TemporaryDirectory() as folder:
        simulate(fleet, folder, plan=plan)
        machine_N, day_N, regime_N, energy_N = energies(Path(folder), fleet.bins)
    day_N = day_N - (np.datetime64(fleet.start) - np.datetime64("1970-01-01")).astype(int)
    first_work = np.full(machines, np.inf)
    for work in reversed(plan.works):
        if work.told_of is not None:
            first_work[work.machine] = work.stops
    healthy_N = healthy(plan, machine_N, day_N) & (day_N < first_work[machine_N])
    early_N = healthy_N & (day_N < BASELINE_DAYS * fleet.days)
    known_N = ~early_N & (day_N < first_work[machine_N])
    horizon = params.split.horizon_hours / 24
    events, modes = [], {}
    for number, fault in enumerate(plan.faults):
        if fault.fails and fault.end <= first_work[fault.machine] and fault.end > BASELINE_DAYS * fleet.days:
            begin, end = (
                round(day * MICROSECONDS_PER_DAY) for day in (max(fault.onset, fault.end - horizon), fault.end)
            )
            events.append(Event(str(number), fault.machine, begin, end, begin, fault.mode))
            modes[str(number)] = fault.mode
    policy = AlertPolicy.fitted_to(params.calibrate.policy, int(fleet.interval_seconds * 1e6))
    found, rates = [], []
    for group_N in (machine_N * 8 + regime_N, machine_N):
        score_N = np.abs(z_scores(energy_N, group_N, early_N))
        use_N = known_N & np.isfinite(score_N)
        time_N = np.round(day_N * MICROSECONDS_PER_DAY).astype(np.int64)
        calm_N = use_N & healthy_N
        days = calm_N.sum() * fleet.interval_seconds / 86_400
        line = Timeline.of(machine_N[calm_N], time_N[calm_N], policy)
        threshold = budget_threshold(score_N[calm_N], line, params.evaluate.false_episodes_per_machine_day * days)
        rates.append(line.episodes(line.alert_rows(score_N[calm_N] > threshold)).weight().sum() / days)
        line = Timeline.of(machine_N[use_N], time_N[use_N], policy)
        caught = outcome_at(score_N[use_N] > threshold, line, events).caught
        found.append(Counter(modes[name] for name in caught))
    return Counter(modes.values()), found[0], found[1], float(rates[0])


def energies(folder: Path, bins: int) -> tuple[np.ndarray, FloatN, np.ndarray, FloatN]:
    """Machine, day since 1970, regime and log energy of every row (N,)."""
    parts = []
    for path in day_files(folder):
        table = read_table(path)
        spectra_NF = spectra_view(table["spectrum"], bins)
        energy_N = np.log(np.einsum("nf,nf->n", spectra_NF, spectra_NF, dtype=np.float64))
        names = np.array(table["machine_id"].cast("string").to_pylist())
        machine_N = np.array([int(name.rsplit("-", 1)[1]) for name in np.unique(names)], np.int32)
        machine_N = machine_N[np.searchsorted(np.unique(names), names)]
        codes_N, regimes = codes_and_names(table["condition"])
        order = np.argsort(np.argsort(regimes))
        parts.append((machine_N, times_us(table["timestamp"]) / MICROSECONDS_PER_DAY, order[codes_N], energy_N))
    machine_N, day_N, regime_N, energy_N = (np.concatenate(column) for column in zip(*parts, strict=True))
    return machine_N, day_N, regime_N, energy_N


def healthy(plan: FleetHistory, machine_N: np.ndarray, day_N: FloatN) -> np.ndarray:
    """Rows (N,) of machines that are truly well."""
    well_N = np.ones(len(day_N), bool)
    for fault in plan.faults:
        well_N &= (machine_N != fault.machine) | (day_N < fault.onset) | (day_N >= fault.end)
    return well_N


def z_scores(value_N: FloatN, group_N: np.ndarray, fitting_N: np.ndarray) -> FloatN:
    """Deviation (N,) from the mean of the fitting rows of the same group, in theirs; NaN where they are too few."""
    groups = int(group_N.max()) + 1
    count = np.bincount(group_N[fitting_N], minlength=groups)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(group_N[fitting_N], value_N[fitting_N], groups) / count
        square = np.bincount(group_N[fitting_N], (value_N - mean[group_N])[fitting_N] ** 2, groups) / count
    spread = np.where(count >= LEAST_ROWS, np.sqrt(square), np.nan)
    return np.asarray((value_N - mean[group_N]) / spread[group_N])


def main() -> None:
    """Print a table, and one JSON object as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--machines", type=int, default=150)
    parser.add_argument("--failures", type=int, default=120)
    options = parser.parse_args()
    params = load_params()
    judged, caught, blind, shares, rates = Counter[str](), Counter[str](), Counter[str](), [], []
    for seed in range(FIRST_SEED, FIRST_SEED + options.seeds):
        there, found, found_blind, rate = measure(params, seed, options.machines, options.failures)
        judged, caught, blind = judged + there, caught + found, blind + found_blind
        shares.append(found.total() / there.total())
        rates.append(rate)
    table = Table(title="failures that energy alone catches", width=60)
    for heading in ("mode", "failures", "caught", "share"):
        table.add_column(heading, justify="left" if heading == "mode" else "right")
    for mode in params.simulate.modes:
        table.add_row(mode, str(judged[mode]), str(caught[mode]), f"{caught[mode] / max(1, judged[mode]):.2f}")
    Console().print(table)
    result = {
        "failures": judged.total(),
        "caught": caught.total(),
        "share": round(caught.total() / judged.total(), 3),
        "share_blind_to_regimes": round(blind.total() / judged.total(), 3),
        "share_by_seed": [round(share, 3) for share in shares],
        "false_episodes_per_machine_day": round(float(np.mean(rates)), 4),
        "share_by_mode": {mode: round(caught[mode] / max(1, judged[mode]), 2) for mode in params.simulate.modes},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
