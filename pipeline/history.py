"""What a score log says of one machine in a span: rows and how rare they were, period by period, and its alerts.

Shape legend: N rows. Rarity is minus the decimal logarithm of a tail probability: 3 is one healthy row in 1,000.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import ContractError, UserError
from pipeline.findings import nearest
from pipeline.moments import moment_of, to_us
from pipeline.run_alerts import ALERTS, TIER_NAMES
from pipeline.schema import (
    ENSEMBLE,
    MICROSECONDS_PER_DAY,
    MICROSECONDS_PER_HOUR,
    FleetSpec,
    FloatN,
    IntN,
    codes_and_names,
    load_fleet_spec,
    times_us,
)
from pipeline.score_log import log_days, machine_names, machine_rows, newest_row_us
from pipeline.store import read_json

DEFAULT_DAYS = 7
LAST_ROW = "the machine's newest row"
MOST_HOURS = 48  # of a span that is told hour by hour
CONDITION = "condition"  # the context column, where no release names another
RELEASE_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class Span:
    """From a moment on and before another, in microseconds since 1970 (UTC)."""

    since_us: int
    until_us: int

    @property
    def since(self) -> dt.datetime:
        """When it begins."""
        return moment_of(self.since_us)

    @property
    def until(self) -> dt.datetime:
        """When it is over."""
        return moment_of(self.until_us)


@dataclass(frozen=True)
class MachineAlert:
    """One alert of the machine; times in microseconds, `details` as `pipeline.alert_details` describes it."""

    id: int  # in the database, or the place in the list beside the log, from 1
    cause: str
    tier: str | None
    opened_us: int
    paged_us: int | None
    last_us: int
    closed_us: int | None  # None: open
    answer: str | None
    details: Mapping[str, Any]

    @property
    def end_us(self) -> int:
        """Its last moment that is known."""
        return self.last_us if self.closed_us is None else max(self.closed_us, self.last_us)

    def touches(self, span: Span) -> bool:
        """Whether it stands within a span; an open one still does."""
        return self.opened_us < span.until_us and (self.closed_us is None or self.end_us >= span.since_us)


@dataclass(frozen=True)
class Period:
    """What stands in the log of an hour or a day."""

    start_us: int
    rows: int
    unusable: int  # of the rows, without a score
    rarity: float | None  # the highest
    low: int  # rows above the low tier, those above the page tier among them
    page: int
    releases: tuple[str, ...]
    baselines: tuple[str, ...]


@dataclass(frozen=True)
class History:
    """All that is told of one machine in a span."""

    machine: str
    span: Span
    rows: pa.Table  # of the score log, in time order
    alerts: Sequence[MachineAlert]  # that touch the span, oldest first
    chosen: MachineAlert | None  # the alert that is looked at closely
    detector: str  # whose tiers raise alerts
    tiers: Mapping[str, float]  # rarity from which a row exceeds a tier, where that is known
    fleet: FleetSpec | None  # as the newest release knows it
    condition_column: str | None = CONDITION

    @property
    def unusable(self) -> int:
        """Rows without a score."""
        return int(np.isnan(rarity_of(self.rows, self.detector)).sum())


def alerts_beside(log: Path, machine: str) -> list[MachineAlert] | None:
    """A machine's alerts in the list that a scoring run left in its log; None where there is no such list.

    Raises:
        ContractError: the list is no such list.
    """
    path = log / ALERTS
    if not path.is_file():
        return None
    found = read_json(path)
    try:
        return [
            MachineAlert(
                number,
                str(alert["cause"]),
                alert["tier"],
                to_us(alert["opened"]),
                None if alert["paged"] is None else to_us(alert["paged"]),
                to_us(alert["last"]),
                None if alert["closed"] is None else to_us(alert["closed"]),
                None,
                alert,
            )
            for number, alert in enumerate(found, 1)
            if alert["machine_id"] == machine
        ]
    except (KeyError, TypeError, ValueError) as error:
        got = f"an entry without what an alert has ({error!r})"
        raise ContractError.of("alerts", got=got, expected="the list of a scoring run", where=path) from None


def chosen_alert(alerts: Sequence[MachineAlert], wanted: int | None, span: Span | None) -> MachineAlert | None:
    """The alert with a number; without one the newest that touches the span.

    Raises:
        UserError: no alert of the machine has this number.
    """
    if wanted is None:
        touching = [alert for alert in alerts if span is None or alert.touches(span)]
        return max(touching, key=lambda alert: alert.opened_us, default=None)
    for alert in alerts:
        if alert.id == wanted:
            return alert
    known = ", ".join(str(alert.id) for alert in alerts[-20:]) or "none"
    raise UserError(f"--alert: got {wanted}, expected an alert of this machine ({known}).")


def span_of(
    log: Path, machine: str, since_us: int | None, until_us: int | None, alert: MachineAlert | None = None
) -> Span:
    """The span that is asked for; by default the last seven days of the machine, or those around an alert.

    Raises:
        UserError: the machine or the log are not known, or the times make no span.
    """
    newest = newest_row_us(log, machine)
    if newest is None:
        raise _unknown(log, machine)
    if until_us is None:
        until_us = newest + 1
        if alert is not None and since_us is None:
            until_us = min(until_us, alert.end_us + MICROSECONDS_PER_DAY)
        if since_us is not None and until_us <= since_us:
            got = f"{moment_of(since_us):%Y-%m-%dT%H:%MZ}"
            raise UserError(
                f"--from: got {got}, expected a time before {moment_of(newest):%Y-%m-%dT%H:%MZ}, {LAST_ROW}."
            )
    since_us = until_us - DEFAULT_DAYS * MICROSECONDS_PER_DAY if since_us is None else since_us
    if since_us >= until_us:
        got = f"{moment_of(since_us):%Y-%m-%dT%H:%MZ} to {moment_of(until_us):%Y-%m-%dT%H:%MZ}"
        raise UserError(f"--from, --to: got {got}, expected a start before the end.")
    return Span(since_us, until_us)


def _unknown(log: Path, machine: str) -> UserError:
    days = log_days(log)
    if not days:
        expected = "a folder with a folder or a file per day, as scoring writes it"
        return ContractError.of("score log", got="no day", expected=expected, where=log)
    names = machine_names(log)
    likely = nearest(machine, names)
    near = f"; {likely!r} is near" if likely else ""
    return UserError(
        f"machine: got {machine!r}, expected one of the score log (its newest days have {len(names)}{near})."
    )


@dataclass(frozen=True)
class ReleaseFacts:
    """What a release says of its alerts, and of the fleet that it was made for."""

    detector: str
    tiers: Mapping[str, float]  # rarity of each tier's threshold
    fleet: FleetSpec
    condition_column: str | None


def release_facts(releases: Path, release: str) -> ReleaseFacts | None:
    """The facts of a release among those of an installation; None where it is not there.

    Raises:
        ContractError: a release is there, and damaged.
    """
    folder = releases / release
    if not RELEASE_ID.fullmatch(release) or not folder.is_dir():  # the name is data, and no path
        return None
    manifest = read_json(folder / "manifest.json")
    detector = str(manifest["detector"])
    tiers = read_json(folder / "calibration.json")["detectors"][detector]
    rarity = {tier: -float(np.log10(1 - float(tiers[tier]["percentile"]) / 100)) for tier in TIER_NAMES[1:]}
    condition = (manifest["params"].get("train") or {}).get("baseline", {}).get("condition_column", CONDITION)
    return ReleaseFacts(detector, rarity, load_fleet_spec(folder / "fleet.yaml"), condition)


def history_of(
    log: Path,
    machine: str,
    span: Span,
    alerts: Sequence[MachineAlert],
    chosen: MachineAlert | None,
    releases: Path | None = None,
) -> History:
    """Gather what is told of a machine.

    Args:
        log: folder of the score log.
        machine: its name.
        span: to be told.
        alerts: of this machine, of any time.
        chosen: see History.
        releases: folder of the installation's releases; of one that it does not hold, the rows tell what they can.

    Raises:
        UserError: the machine has no row in the span.
    """
    rows = machine_rows(log, machine, span.since, span.until)
    if not rows.num_rows:
        got = f"no row of {machine!r} from {span.since:%Y-%m-%dT%H:%MZ} to {span.until:%Y-%m-%dT%H:%MZ}"
        raise UserError(f"--from, --to: got {got}, expected a span with rows, in {log}.")
    facts = None if releases is None else release_facts(releases, str(rows["release"][-1].as_py()))
    detector = ENSEMBLE if facts is None else facts.detector
    tiers = tiers_seen(rows, detector) if facts is None else facts.tiers
    touching = sorted((alert for alert in alerts if alert.touches(span)), key=lambda alert: alert.opened_us)
    if facts is None:
        return History(machine, span, rows, touching, chosen, detector, tiers, None)
    return History(machine, span, rows, touching, chosen, detector, tiers, facts.fleet, facts.condition_column)


def rarity_of(rows: pa.Table, detector: str) -> FloatN:
    """Rarity of each row (N,) in the eyes of a detector; NaN where it has no score.

    >>> rarity_of(pa.table({"tail_pca": [0.001, None]}), "pca").tolist()
    [3.0, nan]
    """
    tail_N = rows[f"tail_{detector}"].to_numpy(zero_copy_only=False).astype(np.float64)
    return np.asarray(-np.log10(tail_N)) + 0.0  # no minus zero


def detectors_of(rows: pa.Table, first: str) -> list[str]:
    """Detectors that scored at least one row, after the one that comes first in any case."""
    names = [name.removeprefix("tail_") for name in rows.column_names if name.startswith("tail_")]
    scored = [name for name in names if name == first or rows[f"tail_{name}"].null_count < rows.num_rows]
    return sorted(scored, key=lambda name: (name != first, name == ENSEMBLE))


def tier_levels(rows: pa.Table) -> IntN:
    """The tier of each row (N,) by its number: 0 none, 1 low, 2 page."""
    code_N, names = codes_and_names(rows["tier"])
    known = [TIER_NAMES.index(name) if name in TIER_NAMES else 0 for name in names]
    return np.array(known or [0], np.int64)[code_N]


def tiers_seen(rows: pa.Table, detector: str) -> dict[str, float]:
    """The lowest rarity of a row above each tier, where the detector's rarity parts those rows from the others."""
    rarity_N, level_N = rarity_of(rows, detector), tier_levels(rows)
    scored_N = np.isfinite(rarity_N)
    found = {}
    for level, name in enumerate(TIER_NAMES[1:], 1):
        above, below = rarity_N[scored_N & (level_N >= level)], rarity_N[scored_N & (level_N < level)]
        if len(above) and above.min() >= below.max(initial=0.0):
            found[name] = float(above.min())
    return found


def periods(history: History) -> list[Period]:
    """Hours of a span of two days or less, days of a longer one; those without rows are left out."""
    span, rows = history.span, history.rows
    short = span.until_us - span.since_us <= MOST_HOURS * MICROSECONDS_PER_HOUR
    step = MICROSECONDS_PER_HOUR if short else MICROSECONDS_PER_DAY
    time_us_N, level_N = times_us(rows["timestamp"]), tier_levels(rows)
    rarity_N = rarity_of(rows, history.detector)
    places, starts = np.unique(time_us_N // step, return_index=True)
    told = []
    ends = [*starts[1:].tolist(), len(time_us_N)]
    for place, begin, end in zip(places.tolist(), starts.tolist(), ends, strict=True):
        own, rarity = rows.slice(begin, end - begin), rarity_N[begin:end]
        told.append(
            Period(
                start_us=place * step,
                rows=end - begin,
                unusable=int(np.isnan(rarity).sum()),
                rarity=float(np.nanmax(rarity)) if np.isfinite(rarity).any() else None,
                low=int((level_N[begin:end] >= 1).sum()),
                page=int((level_N[begin:end] >= 2).sum()),
                releases=_texts(own, "release"),
                baselines=_texts(own, "baseline"),
            )
        )
    return told


def _texts(rows: pa.Table, column: str) -> tuple[str, ...]:
    """The different texts of a column, as they come; no null."""
    code_N, names = codes_and_names(rows[column])
    known, first = np.unique(code_N[code_N >= 0], return_index=True)
    return tuple(names[code] for code in known[np.argsort(first)].tolist())


def one_in(rarity: float | None) -> str:
    """A rarity in words.

    >>> one_in(3.0), one_in(0.3), one_in(None)
    ('1 in 1,000', '1 in 2.0', '—')
    """
    if rarity is None or not np.isfinite(rarity):
        return "—"
    often = float(f"{10**rarity:.1e}")
    return f"1 in {often:,.0f}" if often >= 10 else f"1 in {often:.1f}"


def by_hour(told: Sequence[Period]) -> bool:
    """Whether periods are hours."""
    return any(period.start_us % MICROSECONDS_PER_DAY for period in told)


def changes_of(rows: pa.Table, column: str) -> list[tuple[int, str]]:
    """Moments (microseconds) at which a column takes another value than in the row before, and that value.

    >>> from pipeline.schema import time_column
    >>> changes_of(pa.table({"timestamp": time_column(np.array([0, 5, 9])), "epoch": [0, 0, 1]}), "epoch")
    [(9, '1')]
    """
    texts = rows[column].cast(pa.string())
    code_N, names = codes_and_names(texts)
    changed = np.flatnonzero(code_N[1:] != code_N[:-1]) + 1
    time_us_N = times_us(rows["timestamp"])
    return [(int(time_us_N[place]), names[code_N[place]] if code_N[place] >= 0 else "") for place in changed.tolist()]


def series(history: History, detector: str, points: int = 700) -> tuple[IntN, FloatN]:
    """Times (microseconds) and rarity of the rarest row of each of at most `points` stretches of the span.

    Between stretches that are further apart than rows usually are stands a NaN, at which a line breaks.
    """
    time_us_N, rarity_N = times_us(history.rows["timestamp"]), rarity_of(history.rows, detector)
    scored = np.flatnonzero(np.isfinite(rarity_N))
    time_us_N, rarity_N = time_us_N[scored], rarity_N[scored]
    if not len(time_us_N):
        return time_us_N, rarity_N
    step = max(1, (history.span.until_us - history.span.since_us) // points)
    place_N = (time_us_N - history.span.since_us) // step
    order = np.lexsort((-rarity_N, place_N))
    best = np.sort(order[np.r_[True, np.diff(place_N[order]) > 0]])
    time_us_N, rarity_N = time_us_N[best], rarity_N[best]
    apart = np.diff(time_us_N)
    gaps = np.flatnonzero(apart > 4 * max(step, np.median(apart) if len(apart) else 0)) + 1
    return np.insert(time_us_N, gaps, time_us_N[gaps - 1] + 1), np.insert(rarity_N, gaps, np.nan)
