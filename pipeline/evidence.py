"""What each judged failure looked like, bin by bin: error over time, and the spectrum when healthy and at the alert.

Bounded whatever the data: rows are taken evenly, time in spans, and wide spectra in groups of neighbouring bins.
Shape legend: N rows, F bins, T spans of time, C groups of bins in a heat map, S groups of bins in a spectrum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.detectors import Detector
from pipeline.judging.judged import Judgement
from pipeline.moments import to_us
from pipeline.rows import Rows
from pipeline.schema import BASELINE_NAMES, MICROSECONDS_PER_HOUR, BoolN, FleetSpec, FloatN, FloatNF, IntN

SPANS, ROWS_A_SPAN = 120, 24
HEAT_BINS, SPECTRUM_BINS = 128, 256  # wider spectra are shown in groups of neighbouring bins
CONTEXT_SHARE = 0.25  # of the judged window, shown before it
HISTORY_ROWS, FEW_ROWS = 400, 20
LIKE_SHARE = 0.25  # of the healthy rows: those as loud as the alert
ALERT_ROWS, TOP_BANDS = 12, 5
PROFILE_ROWS = 4_000
# data/evaluation/evidence.parquet, a row per judged failure; lists of numbers are spans x groups, or groups
EVIDENCE_SCHEMA = pa.schema(
    [
        pa.field("failure_id", pa.string(), nullable=False),
        pa.field("begin_us", pa.int64(), nullable=False),
        pa.field("end_us", pa.int64(), nullable=False),
        pa.field("error_TC", pa.list_(pa.float32()), nullable=False),  # mean share of the score; NaN without rows
        pa.field("heat_bands", pa.list_(pa.string()), nullable=False),
        pa.field("spectrum_bands", pa.list_(pa.string()), nullable=False),
        pa.field("healthy_rows", pa.int32(), nullable=False),
        pa.field("healthy_low_S", pa.list_(pa.float32()), nullable=False),  # 5th percentile, NaN without rows
        pa.field("healthy_S", pa.list_(pa.float32()), nullable=False),  # median
        pa.field("healthy_high_S", pa.list_(pa.float32()), nullable=False),  # 95th percentile
        pa.field("shown", pa.string(), nullable=False),  # page | comparison | last: which rows stand for the alert
        pa.field("shown_us", pa.int64(), nullable=False),
        pa.field("baseline", pa.string(), nullable=False),  # own | shrunk | fleet: the widest that described those rows
        pa.field("alert_S", pa.list_(pa.float32()), nullable=False),  # median
        pa.field("top_bands", pa.list_(pa.string()), nullable=False),  # largest share of the score first
        pa.field("top_share", pa.list_(pa.float32()), nullable=False),
        pa.field("top_healthy", pa.list_(pa.float32()), nullable=False),
        pa.field("top_alert", pa.list_(pa.float32()), nullable=False),
    ]
)


@dataclass(frozen=True)
class Groups:
    """Neighbouring bins taken together: first bin of each group (C,), and a name for each."""

    first: npt.NDArray[np.int64]
    names: tuple[str, ...]

    @classmethod
    def of(cls, fleet: FleetSpec, most: int) -> Groups:
        """At most `most` groups of equal width.

        >>> Groups.of(FleetSpec(bins=4, band_edges_hz=(0, 10, 20, 30, 40)), 2).names
        ('0-20 Hz', '20-40 Hz')
        >>> Groups.of(FleetSpec(bins=3), 2).names
        ('bin 0 to bin 1', 'bin 2')
        """
        width = -(-fleet.bins // most)
        first = np.arange(0, fleet.bins, width)
        last = np.minimum(first + width, fleet.bins) - 1
        return cls(first, tuple(_span_name(fleet, int(a), int(b)) for a, b in zip(first, last, strict=True)))

    def sums(self, values_NF: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Sums over each group: shares of a score stay shares."""
        return np.asarray(np.add.reduceat(values_NF, self.first, axis=-1))

    def peaks(self, values_NF: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The largest value of each group: a narrow line of a spectrum stays visible."""
        return np.asarray(np.maximum.reduceat(values_NF, self.first, axis=-1))


def _span_name(fleet: FleetSpec, first: int, last: int) -> str:
    """One name for neighbouring bins; two bands of one axis in Hz join into one."""
    a, b = fleet.band_name(first), fleet.band_name(last)
    if a == b:
        return a
    head, tail = a.rsplit("-", 1), b.rsplit("-", 1)
    if a.endswith(" Hz") and b.endswith(" Hz") and len(head) == len(tail) == 2 and " " not in tail[0]:
        return f"{head[0]}-{tail[1]}"
    return f"{a} to {b}"


def evenly(index_N: IntN, most: int) -> IntN:
    """At most `most` of the positions, evenly.

    >>> evenly(np.arange(10), 4).tolist()
    [0, 3, 6, 9]
    """
    if len(index_N) <= most:
        return index_N
    return index_N[np.linspace(0, len(index_N) - 1, most).round().astype(np.int64)]


def history_mask(
    machine_N: npt.NDArray[np.int32],
    machines: Sequence[str],
    epoch_N: npt.NDArray[np.integer],
    time_us_N: IntN,
    healthy_N: BoolN,
    events: Sequence[Mapping[str, Any]],
) -> BoolN:
    """Healthy rows before each judged failure that show how its machine sounds: at most `HISTORY_ROWS` each.

    They are of the failure's own baseline epoch where that has enough of them, since a repair changes the machine.
    """
    chosen = np.zeros(len(machine_N), bool)
    codes = {machine: code for code, machine in enumerate(machines)}
    for event in events:
        mine = np.flatnonzero(machine_N == codes.get(event["machine_id"], -1))
        before = mine[healthy_N[mine] & (time_us_N[mine] < to_us(event["window_start"]))]
        until = mine[time_us_N[mine] <= to_us(event["time"])]
        if len(until):
            own = before[epoch_N[before] == epoch_N[until[np.argmax(time_us_N[until])]]]
            before = own if len(own) >= FEW_ROWS else before
        chosen[evenly(before[np.argsort(time_us_N[before], kind="stable")], HISTORY_ROWS)] = True
    return chosen


def evidence_table(detector: Detector, rows: Rows, history: Rows, judgement: Judgement, fleet: FleetSpec) -> pa.Table:
    """What a detector heard around each judged failure, in `EVIDENCE_SCHEMA`; failures without rows are left out.

    Args:
        detector: the release's own.
        rows: test rows.
        history: healthy rows that `history_mask` chose.
        judgement: its events, and which of them a page caught.
        fleet: names of the bins.
    """
    heat, spectrum = Groups.of(fleet, HEAT_BINS), Groups.of(fleet, SPECTRUM_BINS)
    codes = {machine: code for code, machine in enumerate(rows.machines)}
    found = []
    for event in judgement.events:
        mine = np.flatnonzero(rows.machine == codes.get(event["machine_id"], -1))
        mine = mine[np.argsort(rows.time_us[mine], kind="stable")]
        start, end = to_us(event["window_start"]), to_us(event["time"])
        begin = end - int(max(end - start, MICROSECONDS_PER_HOUR) * (1 + CONTEXT_SHARE))  # as the timeline above it
        shown = mine[(rows.time_us[mine] >= begin) & (rows.time_us[mine] <= end)]
        if not len(shown):
            continue
        usual = history.spectra[_same_machine(history, event["machine_id"]) & (history.time_us < start)]
        entry = {"failure_id": event["failure_id"], "begin_us": begin, "end_us": end}
        entry["error_TC"] = error_over_time(detector, rows, shown, begin, end, heat).ravel()
        entry |= {"heat_bands": heat.names, "spectrum_bands": spectrum.names}
        entry |= _spectra_at(detector, rows, shown, usual, _alert_of(event, judgement), spectrum, fleet)
        found.append(entry)
    return pa.Table.from_pylist(found, schema=EVIDENCE_SCHEMA)


def _same_machine(rows: Rows, machine: str) -> BoolN:
    names = list(rows.machines)
    return np.asarray(rows.machine == (names.index(machine) if machine in names else -1))


def error_over_time(
    detector: Detector, rows: Rows, index_N: IntN, begin_us: int, end_us: int, groups: Groups
) -> FloatNF:
    """Mean share of the score of each group of bins in each span of time, (T, C); NaN where a span has no row.

    At most `ROWS_A_SPAN` rows of a span, evenly: a week at one row every ten seconds is 60,000 rows.
    """
    place = (rows.time_us[index_N] - begin_us) * SPANS // (end_us - begin_us + 1)
    picked = np.concatenate([evenly(index_N[place == span], ROWS_A_SPAN) for span in np.unique(place)])
    place = (rows.time_us[picked] - begin_us) * SPANS // (end_us - begin_us + 1)
    shares_NC = groups.sums(_explained(detector, rows, picked))
    total = np.zeros((SPANS, len(groups.first)))
    np.add.at(total, place, shares_NC)
    counted = np.bincount(place, minlength=SPANS)[:, None]
    return np.where(counted > 0, total / np.maximum(counted, 1), np.nan).astype(np.float32)


def _explained(detector: Detector, rows: Rows, index_N: IntN) -> FloatN:
    return detector.explain(rows.spectra[index_N], detector.baselines.codes(rows.keys.take(index_N)))


def _alert_of(event: Mapping[str, Any], judgement: Judgement) -> tuple[str, int | None]:
    """Which alert stands for the failure: the page tier's, else the comparison's, else none."""
    lead = (judgement.figures.get("in_service") or {}).get("caught", {}).get(event["failure_id"])
    if lead is not None:
        return "page", to_us(event["time"]) - int(lead * MICROSECONDS_PER_HOUR)
    first = event["detectors"].get(judgement.figures.get("release_detector"), {}).get("first_alert")
    return ("comparison", to_us(first)) if first else ("last", None)


def _spectra_at(
    detector: Detector,
    rows: Rows,
    shown_N: IntN,
    usual_NF: FloatNF,
    alert: tuple[str, int | None],
    groups: Groups,
    fleet: FleetSpec,
) -> dict[str, Any]:
    """The healthy spectra, the rows from the alert on (or the last ones), and the bands that raised the score most."""
    kind, alert_us = alert
    after = shown_N[-ALERT_ROWS:]
    if alert_us is not None:
        # a lead time is rounded to a thousandth of an hour: the row that paged must not fall out
        later = shown_N[rows.time_us[shown_N] >= alert_us - 4_000_000]
        kind, after = (kind, later[:ALERT_ROWS]) if len(later) else ("last", after)
    heard_F = np.median(rows.spectra[after], axis=0)
    share_F = _explained(detector, rows, after).mean(0)
    top = np.argsort(-share_F, kind="stable")[:TOP_BANDS]
    usual_NF = as_loud(usual_NF, heard_F) if fleet.kind == "spectrum" else usual_NF
    levels_QF = np.full((3, fleet.bins), np.nan)
    if len(usual_NF):
        levels_QF = np.percentile(usual_NF, [5, 50, 95], axis=0)
    low_S, healthy_S, high_S = groups.peaks(levels_QF)
    return {
        "healthy_rows": len(usual_NF),
        "healthy_low_S": low_S,
        "healthy_S": healthy_S,
        "healthy_high_S": high_S,
        "shown": kind,
        "shown_us": int(rows.time_us[after[0]]),
        "baseline": BASELINE_NAMES[
            int(detector.baselines.states(detector.baselines.codes(rows.keys.take(after))).min())
        ],
        "alert_S": groups.peaks(heard_F),
        "top_bands": [fleet.band_name(int(place)) for place in top],
        "top_share": share_F[top] / max(float(share_F.sum()), 1e-300),
        "top_healthy": levels_QF[1, top],
        "top_alert": heard_F[top],
    }


def as_loud(usual_NF: FloatNF, heard_F: npt.NDArray[Any]) -> FloatNF:
    """The healthy rows nearest to a spectrum in overall level: idling is no measure for a heavy cut.

    The level is the median of the logs over the bins, which one loud band does not move.

    >>> as_loud(np.repeat([[1.0], [9.0]], 80, 0).astype(np.float32), np.array([8.0]))[:, 0].tolist() == [9.0] * 40
    True
    """
    level_N = np.median(np.log(np.maximum(usual_NF, 1e-12)), axis=1)
    distance_N = np.abs(level_N - np.median(np.log(np.maximum(heard_F, 1e-12))))
    return usual_NF[np.argsort(distance_N, kind="stable")[: max(int(len(usual_NF) * LIKE_SHARE), FEW_ROWS)]]


def error_profile(
    detector: Detector, rows: Rows, healthy_N: BoolN, faulty_N: BoolN, fleet: FleetSpec
) -> dict[str, Any]:
    """How the error is spread over the bins, for healthy rows and rows before failures: medians and 95th percentiles.

    The rows are test rows, at most `PROFILE_ROWS` of a kind, evenly; a kind without rows is null.
    """
    groups = Groups.of(fleet, HEAT_BINS)
    profile: dict[str, Any] = {"bands": list(groups.names)}
    for name, mask_N in (("healthy", healthy_N), ("faulty", faulty_N)):
        picked = evenly(np.flatnonzero(mask_N), PROFILE_ROWS)
        if not len(picked):
            profile[name] = None
            continue
        middle_C, high_C = np.percentile(groups.sums(_explained(detector, rows, picked)), [50, 95], axis=0)
        profile[name] = {
            "rows": len(picked),
            "median": [float(f"{value:.4g}") for value in middle_C],
            "high": [float(f"{value:.4g}") for value in high_C],
        }
    return profile
