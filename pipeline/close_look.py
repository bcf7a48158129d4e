"""The spectra around an alert, or of a whole span, against what the machine usually sounds like.

Shape legend: T spans of time, F frequency bins, N rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.history import History, MachineAlert, Span, rarity_of, tier_levels
from pipeline.history_spectra import HeardSpectra, read_uploads
from pipeline.moments import to_us
from pipeline.schema import MICROSECONDS_PER_DAY, MICROSECONDS_PER_HOUR, FleetSpec, IntN, times_us
from pipeline.score_log import machine_rows
from pipeline.score_log.read import unified

MOST_ROWS, USUAL_ROWS, MOST_SPANS = 3000, 400, 240
LONGEST_BEFORE_US, SHORTEST_BEFORE_US = 14 * MICROSECONDS_PER_DAY, 12 * MICROSECONDS_PER_HOUR
SHORTEST_AFTER_US = 4 * MICROSECONDS_PER_HOUR
DoubleNF = npt.NDArray[np.float64]
FEW_ROWS = 20  # of which nothing usual can be told
SILENCE, IQR_OF_NORMAL = 1e-12, 1.349
QUIETEST = 1e-3  # of the usual magnitude: silence has no decibels


@dataclass(frozen=True)
class CloseLook:
    """Levels over time against the machine's own median, and the spectrum of one row beside it."""

    span: Span
    edges_us_T: IntN  # of the spans of time (T + 1,)
    level_TF: DoubleNF  # decibels of magnitudes, robust deviations of features; NaN: no row
    usual_F: DoubleNF  # the machine's own median in the peak's condition
    usual_low_F: DoubleNF
    usual_high_F: DoubleNF
    usual_rows: int  # that levels are held against
    by_condition: str  # how, for a caption
    peak_usual_rows: int  # of the median, as the peak is
    as_the_peak: str
    peak_us: int | None
    peak_F: DoubleNF | None  # None: its upload is gone
    peak_level_F: DoubleNF | None
    rows: int  # shown
    gone: Mapping[str, str]  # upload: why it could not be read
    spec: FleetSpec

    @property
    def unit(self) -> str:
        """Of the levels."""
        return "dB" if self.spec.kind == "spectrum" else "robust SD"


def window_of(alert: MachineAlert) -> Span:
    """What is looked at around an alert: twice its length before it, half of it after, within reason."""
    length = alert.end_us - alert.opened_us
    before = min(max(2 * length, SHORTEST_BEFORE_US), LONGEST_BEFORE_US)
    return Span(alert.opened_us - before, alert.end_us + max(length // 2, SHORTEST_AFTER_US))


def look_closely(log: Path, landing: str | Path, history: History) -> CloseLook | Mapping[str, str]:
    """The spectra around the chosen alert, or of the span; where no upload is left: each upload, and why.

    What is usual comes from rows of the span that exceed no tier, before the alert where there are enough.

    Args:
        log: folder of the score log.
        landing: where the uploads lie.
        history: of the machine.
    """
    alert = history.chosen
    span = history.span if alert is None else window_of(alert)
    rows = history.rows if alert is None else machine_rows(log, history.machine, span.since, span.until)
    peak = _peak_place(rows, history, alert)
    shown = _thinned(np.arange(rows.num_rows), MOST_ROWS)
    usual = _usual_places(history, alert)
    wanted = unified([rows.take(pa.array(shown)), history.rows.take(pa.array(usual))])
    peak_row = rows.slice(0, 0) if peak is None else rows.slice(peak, 1)
    heard = read_uploads(landing, unified([wanted, peak_row]), history.condition_column)
    if not heard.known_N.any():
        return heard.gone
    return _look(heard, span, times_us(rows["timestamp"])[shown], len(usual), peak_row, history.fleet)


def _look(
    heard: HeardSpectra, span: Span, time_us_N: IntN, usual_rows: int, peak_row: pa.Table, fleet: FleetSpec | None
) -> CloseLook:
    bins, shown = heard.spectra_NF.shape[1], len(time_us_N)
    spec = next((own for own in (heard.spec, fleet) if own is not None and own.bins == bins), FleetSpec(bins=bins))
    # the log's numbers are checked before they are scored, the upload's are not
    spectra_NF = np.where(np.isfinite(heard.spectra_NF), heard.spectra_NF, np.nan).astype(np.float64)
    usual = Usual.of(spectra_NF[shown:][:usual_rows], heard.condition_N[shown:][:usual_rows])
    if not len(usual.spectra_NF):
        usual = Usual.of(spectra_NF[:shown], heard.condition_N[:shown])
    level_NF = usual.levels(spectra_NF, heard.condition_N, spec.kind == "features")
    edges = _edges(span, time_us_N)
    place_N = np.searchsorted(edges, time_us_N, side="right") - 1
    level_TF = np.full((len(edges) - 1, bins), np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a stretch in which no upload is left stays empty
        for place in np.unique(place_N).tolist():
            level_TF[place] = np.nanmedian(level_NF[:shown][place_N == place], axis=0)
    has_peak = peak_row.num_rows > 0 and bool(np.isfinite(spectra_NF[-1]).all())
    low_F, usual_F, high_F, peak_usual_rows, alike = usual.around(str(heard.condition_N[-1]) if has_peak else None)
    return CloseLook(
        span=span,
        edges_us_T=edges,
        level_TF=level_TF,
        usual_F=usual_F,
        usual_low_F=low_F,
        usual_high_F=high_F,
        usual_rows=len(usual.spectra_NF),
        peak_usual_rows=peak_usual_rows,
        by_condition=" in the same operating condition" if usual.parted else "",
        as_the_peak=" in its operating condition" if alike else "",
        peak_us=int(times_us(peak_row["timestamp"])[0]) if peak_row.num_rows else None,
        peak_F=spectra_NF[-1] if has_peak else None,
        peak_level_F=level_NF[-1] if has_peak else None,
        rows=int(np.isfinite(spectra_NF[:shown]).all(axis=1).sum()),
        gone=heard.gone,
        spec=spec,
    )


@dataclass(frozen=True)
class Usual:
    """Rows that exceed no tier (N, F), by operating condition: what a machine usually sounds like in each."""

    spectra_NF: DoubleNF
    condition_N: npt.NDArray[np.object_]

    @classmethod
    def of(cls, spectra_NF: DoubleNF, condition_N: npt.NDArray[np.object_]) -> Usual:
        """Of the rows that are whole; none where they are few."""
        whole_N = np.isfinite(spectra_NF).all(axis=1)
        kept = whole_N & (np.count_nonzero(whole_N) >= FEW_ROWS)
        return cls(spectra_NF[kept], condition_N[kept])

    @property
    def parted(self) -> bool:
        """Whether there is more than one condition."""
        return len(set(self.condition_N.tolist())) > 1

    def rows_in(self, condition: str | None) -> tuple[DoubleNF, bool]:
        """The rows in a condition where there are enough, and that it is so; else all rows."""
        if condition is None:
            return self.spectra_NF, False
        mine = self.spectra_NF[np.equal(self.condition_N, condition)]
        return (mine, self.parted) if len(mine) >= FEW_ROWS else (self.spectra_NF, False)

    def around(self, condition: str | None) -> tuple[DoubleNF, DoubleNF, DoubleNF, int, bool]:
        """The 5 %, 50 % and 95 % quantiles of each bin in a condition, of how many rows, and whether only of these."""
        rows_NF, alike = self.rows_in(condition)
        if not len(rows_NF):
            missing = np.full(self.spectra_NF.shape[1], np.nan)
            return missing, missing, missing, 0, False
        low_F, middle_F, high_F = np.quantile(rows_NF, [0.05, 0.5, 0.95], axis=0)
        return low_F, middle_F, high_F, len(rows_NF), alike

    def levels(self, spectra_NF: DoubleNF, condition_N: npt.NDArray[np.object_], features: bool) -> DoubleNF:
        """Each row against the median of its condition: in decibels, features in robust deviations (N, F)."""
        level_NF = np.full(spectra_NF.shape, np.nan)
        for condition in set(condition_N.tolist()):
            rows_NF, mine = self.rows_in(condition)[0], condition_N == condition
            if not len(rows_NF):
                continue
            quarter_F, middle_F, three_F = np.quantile(rows_NF, [0.25, 0.5, 0.75], axis=0)
            if features:
                level_NF[mine] = (spectra_NF[mine] - middle_F) / np.maximum((three_F - quarter_F) / IQR_OF_NORMAL, 1e-9)
            else:
                middle_F = np.maximum(middle_F, SILENCE)
                level_NF[mine] = 20 * np.log10(np.maximum(spectra_NF[mine], middle_F * QUIETEST) / middle_F)
        return level_NF


def _edges(span: Span, time_us_N: IntN) -> IntN:
    """Where stretches of time begin and end: each is longer than rows are apart, or every other one would be empty."""
    apart = float(np.median(np.diff(time_us_N))) if len(time_us_N) > 1 else 0.0
    length = span.until_us - span.since_us
    stretches = int(np.clip(length / max(1.5 * apart, 1.0), 1, MOST_SPANS))
    return np.linspace(span.since_us, span.until_us, stretches + 1).astype(np.int64)


def _peak_place(rows: pa.Table, history: History, alert: MachineAlert | None) -> int | None:
    """The row that is shown beside the median: the alert's peak, or the rarest row; None where none has a score."""
    if not rows.num_rows:
        return None
    rarity_N = np.nan_to_num(rarity_of(rows, history.detector), nan=-1.0)
    told = None if alert is None else (alert.details.get("peak") or {}).get("time")
    if told is not None:
        at = np.flatnonzero(times_us(rows["timestamp"]) // 1_000_000 == _second(str(told)))
        if len(at):
            return int(at[np.argmax(rarity_N[at])])
    best = int(np.argmax(rarity_N))
    return best if rarity_N[best] >= 0 else None


def _second(text: str) -> int:
    return to_us(text) // 1_000_000


def _usual_places(history: History, alert: MachineAlert | None) -> IntN:
    """Rows of the span that exceed no tier; those before the alert where there are enough."""
    time_us_N = times_us(history.rows["timestamp"])
    plain = np.flatnonzero((tier_levels(history.rows) == 0) & np.isfinite(rarity_of(history.rows, history.detector)))
    if alert is not None:
        before = plain[time_us_N[plain] < alert.opened_us]
        plain = before if len(before) >= 2 * FEW_ROWS else plain
    return _thinned(plain, USUAL_ROWS)


def _thinned(places: IntN, most: int) -> IntN:
    """At most so many of them, evenly spread."""
    if len(places) <= most:
        return places.astype(np.int64)
    return places[np.linspace(0, len(places) - 1, most).round().astype(np.int64)].astype(np.int64)
