"""Drift or fault on simulated fleets of 40 machines, a spectrum every ten minutes: what is called a drift, and when.

A fleet lives 60 days of winter, from which the project's stages build a release (a dense autoencoder, pca and
energy_zscore; four epochs). What comes after is scored with it, checked every three hours, and differs by kind; all
kinds of one fleet share the release and every day before their change:

- `quiet`: 30 days without a change. Failures, repairs and moved sensors go on as before, and so do the seasons, within
  the range that the reference has heard. Drifts found within a day of each other count once.
- `sudden`: new firmware (another gain and filter) on all machines at some hour of the first week.
- `group`: the same on 30 % of the machines.
- `gradual`: days 110 to 180; loads rise with the season, beyond the reference's range from about day 119 on. Checked
  daily; the delay counts from the day on which the season leaves that range, a drift before it is a false one.
- `fault`: single faults, four in each fleet's 30 days, one of which grows over all of them; two overlap.

A delay is the time from the change to the first row that the check which finds it does not see any more. Checks decide
by the NumPy statistics that tests show equal to Evidently's; without Evidently's page. `seconds_per_fleet_day` is one
check of a day of 600 machines every ten seconds (5,184,000 spectra) with the page: sampling the score log, reading the
spectra, deciding, writing; Evidently is imported before.

Seeds from 8101 on were not used in development (that used 1 to 99).
Usage: python benchmarks/drift.py [--fleets 4] [--first-seed 8101] [--kinds quiet sudden gradual group fault]
[--without-speed]
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import resource
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table
from stages_here import build_release

from pipeline.drift import DriftDecision, check_drift, contract_window
from pipeline.drift.check import decide_on
from pipeline.drift.columns import Heard, Judge, describe
from pipeline.drift.evidently_page import evidently_report
from pipeline.drift.reference import read_reference
from pipeline.errors import run_reporting_errors
from pipeline.params import FAULT_MODES, MonitorParams, SimulateParams, load_params
from pipeline.release import Release, load_release
from pipeline.schema import MICROSECONDS_PER_DAY, dictionary_column, score_log_schema
from pipeline.score import score_data_set
from pipeline.simulate import simulate
from pipeline.simulation.growth import amplitude_of_rise, amplitude_of_snr
from pipeline.simulation.history import Fault, FleetHistory
from pipeline.simulation.operation import WARMEST_DAY
from pipeline.simulation.plan import plan_fleet
from pipeline.store import day_files, read_table, write_table

KINDS = ("quiet", "sudden", "gradual", "group", "fault")
BUILT, QUIET_DAYS = 60.0, 30.0  # days until the release, and watched after it
GRADUAL = (110.0, 180.0)
PLANNED = 180.0
STEP_HOURS, GRADUAL_STEP_HOURS = 3.0, 24.0
PATIENCE_DAYS = 4.0  # after a change, then it is missed
GROUP_SHARE = 0.3
START = dt.date(2024, 11, 18)  # the coldest day lies at the end of what the release has heard
DETECTED = ("detected_share", "median_delay_hours")
TOLD = dict.fromkeys(KINDS, DETECTED) | {"quiet": ("false_drifts_per_30_days",), "fault": ("called_drift",)}
PARAMS = """
seed: {seed}
source: {{path: {plant}}}
simulate: {{machines: {machines}, days: {planned}, interval_seconds: 600, failures: 24, seed: {seed},
  start: "2024-11-18", mislabelled_share: 0.02}}
detectors: [autoencoder, pca, energy_zscore]
split: {{horizon_hours: 48, train_share: 0.45, calibration_share: 0.25, unseen_machine_share: 0}}
train:
  autoencoder: {{architecture: dense, optimiser: {{max_epochs: 4}}}}
calibrate: {{draws: 60}}
evaluate: {{chance_shifts: 20}}
"""


@dataclass(frozen=True)
class Check:
    """One decision, and the moment up to which rows were there, in days since the fleet's start."""

    day: float
    decision: DriftDecision
    seconds: float


@dataclass
class Found:
    """What came of one kind in one fleet."""

    days: float
    checks: list[Check] = field(default_factory=list)
    changed: float | None = None  # day

    @property
    def drifts(self) -> list[Check]:
        """The checks that called a drift."""
        return [check for check in self.checks if check.decision.drifted]

    def false_drifts(self) -> int:
        """Drifts before the change (or at all, without one); those within a day of each other are one."""
        days = [check.day for check in self.drifts if self.changed is None or check.day <= self.changed]
        return sum(1 for place, day in enumerate(days) if place == 0 or day - days[place - 1] > 1.0)

    def delay_hours(self) -> float | None:
        """From the change to the check that found it; None: missed."""
        if self.changed is None:
            return None
        return next(((check.day - self.changed) * 24 for check in self.drifts if check.day > self.changed), None)


def main() -> None:
    """Measure, print a table, and last one line of JSON."""
    parser = argparse.ArgumentParser(description="Drift or fault on simulated fleets.")
    parser.add_argument("--fleets", type=int, default=4)
    parser.add_argument("--first-seed", type=int, default=8101)
    parser.add_argument("--machines", type=int, default=40)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--without-speed", action="store_true")
    args = parser.parse_args()
    found: dict[str, list[Found]] = {kind: [] for kind in args.kinds}
    seconds = None
    console = Console(width=150)
    for place in range(args.fleets):
        seed = args.first_seed + place
        with tempfile.TemporaryDirectory(prefix="hearken-drift-") as folder:
            begun = time.perf_counter()
            fleet = Plant.built(Path(folder), seed, args.machines)
            console.print(f"fleet {seed}: release after {time.perf_counter() - begun:.0f} s")
            for kind in args.kinds:
                begun = time.perf_counter()
                result = fleet.live(kind)
                found[kind].append(result)
                _tell(console, kind, result, time.perf_counter() - begun)
            if place == 0 and not args.without_speed:
                seconds = fleet.fleet_day(console)
    figures = summary(found) | {"seconds_per_fleet_day": seconds}
    _print(console, found, figures)
    told = {kind: {name: figures[kind][name] for name in TOLD[kind]} for kind in args.kinds}
    print(json.dumps(told | {"seconds_per_fleet_day": seconds}))


@dataclass(frozen=True)
class Plant:
    """A fleet whose release is built."""

    folder: Path
    params: SimulateParams
    history: FleetHistory
    release: Release
    monitor: MonitorParams

    @classmethod
    def built(cls, folder: Path, seed: int, machines: int) -> Plant:
        """Simulate the first days, and run the stages on them."""
        plant = folder / "plant"
        text = PARAMS.format(seed=seed, plant=plant, machines=machines, planned=PLANNED)
        (folder / "params.yaml").write_text(text)
        settings = load_params(folder / "params.yaml")
        simulate(settings.simulate, plant, days=BUILT)
        release = load_release(build_release(folder / "build", text, simulated=False))
        return cls(folder, settings.simulate, plan_fleet(settings.simulate), release, settings.monitor)

    def live(self, kind: str) -> Found:
        """What is decided over the days of a kind."""
        first, last = GRADUAL if kind == "gradual" else (BUILT, BUILT + QUIET_DAYS)
        rng = np.random.default_rng([self.params.seed, KINDS.index(kind)])
        params, history, changed = self.params, self.history, None
        if kind in ("sudden", "group"):
            changed = first + float(rng.uniform(2, 7))
            last = changed + PATIENCE_DAYS
            share = 1.0 if kind == "sudden" else GROUP_SHARE
            params = params.model_copy(update={"firmware_day": changed, "firmware_share": share})
            history = plan_fleet(params)
        if kind == "gradual":
            changed = self._season_leaves()
        if kind == "fault":
            history = replace(history, faults=(*history.faults, *single_faults(self.history, first, rng)))
        data, log = self.folder / kind, self.folder / f"{kind}-log"
        simulate(params, data, from_day=first, days=last - first, plan=history)
        score_data_set(self.release, data, log)
        result = Found(last - first, changed=changed)
        step = (GRADUAL_STEP_HOURS if kind == "gradual" else STEP_HOURS) / 24
        heard, reference, limits = self._heard(data, log), *read_reference(self.release.folder)
        zero_us = MICROSECONDS_PER_DAY * (START - dt.date(1970, 1, 1)).days
        day_N = (heard.time_us_N - zero_us) / MICROSECONDS_PER_DAY
        for day in np.arange(first + 1, last + step / 2, step).tolist():
            begun = time.perf_counter()
            current = heard.take((day_N > day - self.monitor.days) & (day_N <= day))
            start_us = zero_us + round((day - self.monitor.days) * MICROSECONDS_PER_DAY)
            decision, _ = decide_on(current, reference, limits, self.monitor, self.params.seed, start_us)
            result.checks.append(Check(day, decision, time.perf_counter() - begun))
            if decision.drifted and changed is not None and day > changed:
                break
        return result

    def _heard(self, data: Path, log: Path) -> Heard:
        """All usable rows of a log as compared quantities: the windows of 40 machines hold every one of theirs."""
        rows_a_day = self.params.machines * 86_400 / self.params.interval_seconds
        assert rows_a_day * self.monitor.days < self.monitor.max_rows
        everything = self.monitor.model_copy(update={"days": 400.0, "max_rows": 1_000_000})
        window = contract_window(self.release, data, log, everything, self.params.seed)
        release = self.release
        judge = Judge.of(release.detectors, release.tails, release.calibration, release.detector)
        return describe(window.rows, judge, window.speed_N, window.context)

    def _season_leaves(self) -> float:
        """The day on which the season is warmer than on any day of the reference."""
        newest_us = int(self.release.manifest["newest_row_us"])
        zero_us = MICROSECONDS_PER_DAY * (START - dt.date(1970, 1, 1)).days
        heard = np.arange(0, (newest_us - zero_us) / MICROSECONDS_PER_DAY)
        later = np.arange(heard[-1], PLANNED)
        warmest = _warmth(heard).max()
        return float(later[np.flatnonzero(_warmth(later) > warmest)[0]])

    def fleet_day(self, console: Console) -> float:
        """Seconds of one check of a day of 600 machines every ten seconds; the plant's own machines are known."""
        data, log = self.folder / "large", self.folder / "large-log"
        params = self.params.model_copy(update={"machines": 600, "interval_seconds": 10.0, "failures": 0})
        made = simulate(params, data, from_day=BUILT, days=1.0)
        for path in day_files(data):
            write_table(log / path.stem / "000000001-00000000.parquet", self._log_of(path))
        evidently_report({"x": (np.arange(9.0), np.arange(9.0))}, {"x": "wasserstein"}, {"x": 1.0}, None)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        begun, worked = time.perf_counter(), time.process_time()
        window = contract_window(self.release, data, log, self.monitor, 1)
        heard = time.perf_counter() - begun
        decision = check_drift(self.release, window, self.monitor, self.folder / "page.html", 1)
        seconds = time.perf_counter() - begun
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        page = (self.folder / "page.html").stat().st_size / 1e6
        console.print(
            f"a fleet-day of {made.rows:,} spectra: {decision.rows:,} drawn in {heard:.1f} s, {seconds:.1f} s in all "
            f"({time.process_time() - worked:.1f} s of work; {os.getloadavg()[0]:.0f} processes wanted a core); "
            f"peak memory {before:.0f} MB before, {peak:.0f} MB after; page {page:.1f} MB"
        )
        return round(seconds, 2)

    def _log_of(self, path: Path) -> pa.Table:
        """The log of an upload as scoring would leave it, with numbers by chance for scores: a check reads none."""
        keys = read_table(path, ["machine_id", "timestamp"])
        rows, rng = keys.num_rows, np.random.default_rng(1)
        schema, zeros = score_log_schema(self.release.manifest["members"]), np.zeros(keys.num_rows, np.int16)
        told = {
            "file": dictionary_column(zeros, [path.name]),
            "row": pa.array(np.arange(rows, dtype=np.int32)),
            "machine_id": keys["machine_id"],
            "timestamp": keys["timestamp"],
            "epoch": pa.array(np.zeros(rows, np.int32)),
            "baseline": dictionary_column(zeros, ["own"]),
            "tier": dictionary_column(zeros, ["none"]),
            "top_bins": pa.nulls(rows, schema.field("top_bins").type),
            "release": dictionary_column(zeros, [self.release.id]),
        }
        told |= {name: pa.array(rng.random(rows)) for name in schema.names if name not in told}
        return pa.table({name: told[name] for name in schema.names}).cast(schema)


def _warmth(day: np.ndarray) -> np.ndarray:
    of_year = day + START.timetuple().tm_yday
    return np.cos(2 * np.pi * (of_year - WARMEST_DAY) / 365.25)


def single_faults(history: FleetHistory, first: float, rng: np.random.Generator) -> Sequence[Fault]:
    """Four faults on machines that nothing else happens to: three that grow in days, one over the whole time."""
    end = first + QUIET_DAYS
    taken = {fault.machine for fault in history.faults if fault.onset < end and fault.end > first}
    free = [machine for machine in range(len(history.names)) if machine not in taken]
    machines = rng.permutation(free)[:4].tolist()
    spans = [(2.0, 9.0), (6.0, 14.0), (18.0, 27.0), (1.0, QUIET_DAYS)]
    modes = rng.permutation(FAULT_MODES)[:4].tolist()
    return [
        Fault(
            machine=machine,
            mode=str(mode),
            onset=first + begin,
            end=first + last,
            start=amplitude_of_snr(-20.0),
            peak=amplitude_of_rise(float(rng.uniform(8.0, 16.0))),
        )
        for machine, mode, (begin, last) in zip(machines, modes, spans, strict=True)
    ]


def summary(found: dict[str, list[Found]]) -> dict[str, Any]:
    """The figures of each kind; `changed_at_off_hours`: the largest error of the moment told of a sudden change."""
    figures: dict[str, Any] = {}
    for kind, results in found.items():
        false = sum(result.false_drifts() for result in results)
        delays = [result.delay_hours() for result in results]
        known = [delay for delay in delays if delay is not None]
        if kind == "quiet":
            days = sum(result.days for result in results)
            figures[kind] = {"false_drifts_per_30_days": round(30 * false / days, 3), "fleets": len(results)}
        elif kind == "fault":
            figures[kind] = {"called_drift": false, "faults": 4 * len(results)}
        else:
            figures[kind] = {
                "detected_share": round(len(known) / len(results), 3),
                "median_delay_hours": round(float(np.median(known)), 1) if known else None,
                "longest_delay_hours": round(max(known), 1) if known else None,
                "within_24_hours": sum(delay <= 24 for delay in known),
                "changed_at_off_hours": None if kind == "gradual" else _off_hours(results),
                "false_before": false,
                "fleets": len(results),
            }
    return figures


def _off_hours(results: list[Found]) -> float | None:
    """The largest difference between the moment told by the check that found a change, and the change."""
    zero = dt.datetime.combine(START, dt.time(), dt.UTC)
    off = [
        abs((check.decision.changed_at - zero).total_seconds() / 3600 - 24 * result.changed)
        for result in results
        for check in result.drifts
        if result.changed is not None and check.day > result.changed and check.decision.changed_at is not None
    ]
    return round(max(off), 1) if off else None


def _tell(console: Console, kind: str, result: Found, seconds: float) -> None:
    check = float(np.mean([check.seconds for check in result.checks]))
    delay = result.delay_hours()
    told = "" if delay is None else f", found after {delay:.1f} h"
    console.print(
        f"  {kind}: {len(result.checks)} checks, {result.false_drifts()} false drifts{told}; "
        f"{check:.2f} s a check, {seconds:.0f} s"
    )
    shown = result.drifts[:3] or result.checks[-1:]
    for one in shown:
        moment = one.decision.changed_at
        console.print(f"    day {one.day:.2f} {one.decision.verdict} {one.decision.group or ''} {moment or ''}")
        console.print(f"      {one.decision.reason}")


def _print(console: Console, found: dict[str, list[Found]], figures: dict[str, Any]) -> None:
    table = Table("kind", "fleets", "figures", title="Drift or fault")
    for kind in found:
        table.add_row(kind, str(len(found[kind])), json.dumps(figures[kind]))
    console.print(table)


if __name__ == "__main__":
    run_reporting_errors(main)
