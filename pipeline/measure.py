"""Scores of rows: raw ones of every detector, piece by piece, and comparable ones, whichever baseline they stand on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.detectors import Detector, RowOrder, choose_device, load_detector
from pipeline.detectors.baseline import BaselineTable
from pipeline.detectors.runs import last_looks
from pipeline.ensemble import TailTables
from pipeline.errors import ContractError
from pipeline.rows import RowKeys, Rows
from pipeline.schema import BASELINE_NAMES, FloatN, FloatNF, IntN, dictionary_column

MATCHED_ROWS = 50_000
Pieces = Iterable[tuple[slice, FloatNF]]


@dataclass(frozen=True)
class Scored:
    """Rows and their comparable scores per detector, in the rows' order."""

    rows: Rows
    scores: Mapping[str, FloatN]
    raw: Mapping[str, FloatN]
    baseline: npt.NDArray[np.int8]  # as `Baseline`
    code: npt.NDArray[np.int32]  # rows of the baseline table


@dataclass(frozen=True)
class Measured:
    """Rows without their spectra, their raw scores per detector, and some of them scored on wider baselines.

    `baseline` says which `Baseline` each row was scored against, `code` which row of the table. `wider` (M, 3) holds
    scores of the same M rows against the fleet's baseline, their machine's as if it had just begun an epoch, and their
    own; empty for a detector whose scores need no match.
    """

    rows: Rows
    raw: Mapping[str, FloatN]
    baseline: npt.NDArray[np.int8]
    code: npt.NDArray[np.int32]
    wider: Mapping[str, FloatNF]
    baselines: BaselineTable

    def comparable(self, tails: TailTables) -> Scored:
        """The rows with comparable scores."""
        scores = tails.comparable(self.raw, self.baseline, self.code)
        return Scored(self.rows, scores, self.raw, self.baseline, self.code)


def load_detectors(root: Path, names: tuple[str, ...], device: str) -> dict[str, Detector]:
    """Every detector of params.yaml from `data/models`."""
    return {name: load_detector(root / "data/models" / name, choose_device(device)) for name in names}


def condition_column(detectors: Mapping[str, Detector]) -> str | None:
    """Where the detectors of one build take conditions from: all from the same column, or none."""
    return next(iter(detectors.values())).condition_column


def measure(detectors: Mapping[str, Detector], rows: Rows, pieces: Pieces) -> Measured:
    """Score rows piece by piece; at most MATCHED_ROWS of them also against wider baselines than their own.

    Rows that know the narrowest baseline tell what they would score against the wider ones.

    Args:
        detectors: fitted.
        rows: their spectra are not looked at.
        pieces: the spectra, each piece with its place among the rows.
    """
    raw = {name: np.empty(len(rows)) for name in detectors}
    wider: dict[str, list[FloatNF]] = {name: [] for name in detectors}
    baselines = next(iter(detectors.values())).baselines  # those of one build are all the same
    code_N = baselines.codes(rows.keys)
    state_N = baselines.states(code_N)
    told = np.flatnonzero(state_N == state_N.max(initial=0))
    told = told[:: max(1, len(told) // MATCHED_ROWS)]
    looks = {name: _Looks(detector, rows, code_N) for name, detector in detectors.items()}
    for place, spectra in pieces:
        sampled = told[slice(*np.searchsorted(told, [place.start, place.stop]))]
        for name, detector in detectors.items():
            table = detector.baselines
            looks[name].see(place, spectra)
            raw[name][place] = looks[name].scores(np.arange(place.start, place.stop))
            if detector.matched and table.keys and len(sampled):
                codes = (table.fleet_codes, table.next_epoch_codes)
                scores = [*(looks[name].scores(sampled, code) for code in codes), raw[name][sampled]]
                wider[name].append(np.stack(scores, axis=1))
    matched = {name: np.concatenate([np.empty((0, 3)), *parts]) for name, parts in wider.items()}
    without = replace(rows, spectra=np.empty((len(rows), 0), np.float32))
    return Measured(without, raw, state_N, code_N, matched, baselines)


class _Looks:
    """What one detector needs of pieces of rows: the piece, and rows before it that windows still hold."""

    def __init__(self, detector: Detector, rows: Rows, code_N: npt.NDArray[np.int32]) -> None:
        self.detector, self.keys, self.code_N = detector, rows.keys, code_N
        self.window_NW = detector.windows(RowOrder(rows.keys, rows.time_us))
        self.last_N = None if self.window_NW is None else last_looks(self.window_NW)
        self.row_H, self.spectra_HF = np.empty(0, np.int64), np.empty((0, detector.baselines.bins), np.float32)

    def see(self, place: slice, spectra: FloatNF) -> None:
        """The next piece; rows that no later window holds are forgotten."""
        rows = np.arange(place.start, place.stop)
        if self.last_N is None:
            self.row_H, self.spectra_HF = rows, spectra
            return
        kept = self.last_N[self.row_H] >= place.start
        self.row_H = np.r_[self.row_H[kept], rows]
        self.spectra_HF = np.concatenate([self.spectra_HF[kept], spectra])

    def scores(self, row_n: IntN, codes: Callable[[RowKeys], npt.NDArray[np.int32]] | None = None) -> FloatN:
        """Scores (n,) of rows of the newest piece, of all against their own baselines, or of some against `codes`."""

        def code_of(rows: IntN) -> npt.NDArray[np.int32]:
            return self.code_N[rows] if codes is None else codes(self.keys.take(rows))

        if self.window_NW is None:
            spectra = self.spectra_HF if codes is None else self.spectra_HF[row_n - self.row_H[0]]
            return self.detector.score(spectra, code_of(row_n))
        seen, place = np.unique(self.window_NW[row_n], return_inverse=True)
        where = np.searchsorted(self.row_H, seen)
        if (where >= len(self.row_H)).any() or (self.row_H[where] != seen).any():
            got, expected = "a row whose predecessor comes in a later file", "files in the order of time"
            raise ContractError.of("rows", got=got, expected=expected, where=f"detector {self.detector.name}")
        window = place.reshape(len(row_n), -1)
        return self.detector.score(self.spectra_HF[where], code_of(seen), window)


def measure_rows(detectors: Mapping[str, Detector], rows: Rows) -> Measured:
    """As `measure`, of rows whose spectra are there."""
    return measure(detectors, rows, [(slice(0, len(rows)), rows.spectra)])


def score_rows(detectors: Mapping[str, Detector], rows: Rows, tails: TailTables) -> Scored:
    """Rows, whose spectra are there, with the comparable scores of every detector and of the ensemble."""
    baselines = next(iter(detectors.values())).baselines
    code_N = baselines.codes(rows.keys)
    state_N = baselines.states(code_N)
    order = RowOrder(rows.keys, rows.time_us)
    raw = {name: each.score(rows.spectra, code_N, each.windows(order)) for name, each in detectors.items()}
    return Scored(rows, tails.comparable(raw, state_N, code_N), raw, state_N, code_N)


def scores_table(scored: Scored) -> pa.Table:
    """Keys, role, label, failure and the comparable score of every detector."""
    names = ["file", "row", "machine_id", "timestamp", "epoch", "role", "label", "failure_id"]
    table = scored.rows.status.select(names).append_column(
        "baseline", dictionary_column(scored.baseline, BASELINE_NAMES)
    )
    for name, values in scored.scores.items():
        table = table.append_column(f"score_{name}", pa.array(values))
    return table
