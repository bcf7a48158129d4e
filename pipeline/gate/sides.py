"""What champion and challenger do on the same rows: scores, pages by the policy that each has in service, rates, time.

Shape legend: S rows that are scored, B machine-days, M machines, T rounds.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.alerts import Episodes, Timeline
from pipeline.counts import mean_interval, overdispersion
from pipeline.errors import ContractError
from pipeline.gate.rows import GateRows
from pipeline.intervals import rate_above, wilson
from pipeline.judging.breakdown import MachineDays
from pipeline.judging.judged import Outcome, rounded
from pipeline.judging.outcomes import candidate_thresholds, outcome_of, shifted_catches
from pipeline.judging.pairs import BASELINES
from pipeline.params import EvaluateParams, GateParams
from pipeline.policy_state import page_episodes
from pipeline.release import Release
from pipeline.rows import RowKeys, load_conditions, spectra_pieces
from pipeline.schema import MICROSECONDS_PER_DAY, FloatN, FloatNF, IntN, load_fleet_spec
from pipeline.score import score_columns
from pipeline.train import use_threads

TIMED_ROWS = 20_000  # at most


@dataclass(frozen=True)
class Pages:
    """What the pages of one detector come to; false ones by machine-day, each further 24 hours counted again."""

    outcome: Outcome
    machine_B: IntN
    days_B: FloatN  # healthy
    false_B: FloatN
    confirmed_days_B: FloatN
    confirmed_false_B: FloatN

    @property
    def false(self) -> int:
        """False pages in all."""
        return int(self.false_B.sum())

    def caught(self, among: frozenset[str]) -> set[str]:
        """Which of some failures were caught."""
        return set(self.outcome.caught) & among

    def bounds(self, confidence: float) -> tuple[float, float]:
        """One-sided lower and upper bound of the expected number of false pages; counts differ between machines."""
        _, code_B = np.unique(self.machine_B, return_inverse=True)
        count_M, days_M = (np.bincount(code_B, weights=values_B) for values_B in (self.false_B, self.days_B))
        return mean_interval(self.false, overdispersion(count_M, days_M), 2 * confidence - 1)


@dataclass(frozen=True)
class Side:
    """One release on the rows of the gate: the scores (S,) of its detectors, and the pages of the one that decides."""

    release: Release
    rows: GateRows
    line: Timeline
    scores: Mapping[str, FloatN]
    pages: Pages
    rate: tuple[float, float | None, float | None, str | None] | None  # of healthy rows above the page tier

    @classmethod
    def of(cls, release: Release, rows: GateRows, scores: Mapping[str, FloatN], params: GateParams) -> Side:
        """Pages and rates of a release whose scores are known."""
        line = Timeline.of(rows.rows.machine, rows.rows.time_us, release.policy)
        name, healthy = release.detector, rows.healthy_S
        rate = None
        if healthy.any():
            rate = rate_above(
                scores[name][healthy], release.threshold("page"), rows.rows.machine[healthy],
                rows.rows.time_us[healthy] // MICROSECONDS_PER_DAY,
                draws=params.draws, confidence=params.confidence, seed=release_seed(release),
            )  # fmt: skip
        pages = _pages(release, rows, line, scores[name], name, release.threshold("page"))
        return cls(release, rows, line, scores, pages, rate)

    @property
    def times_page_rate(self) -> float | None:
        """How many times the share of healthy rows above its page tier is the one it was calibrated for, at the least.

        The lower end of the interval counts where there is one: a single machine that is ill is no fleet that shouts.
        """
        if self.rate is None:
            return None
        rate, low, _, _ = self.rate
        return (rate if low is None else low) / self.release.page_rate

    def pages_of(self, name: str) -> Pages:
        """Pages that another of its detectors would raise, at its own tiers and by the same policy."""
        threshold = float(self.release.calibration["detectors"][name]["page"]["threshold"])
        return _pages(self.release, self.rows, self.line, self.scores[name], name, threshold)

    def quiet(self, name: str, allowed: float) -> Pages:
        """Pages of a detector that raises at most so many false ones: at its own tier, or at one so much higher."""
        found, healthy = self.pages_of(name), self.rows.healthy_S
        if found.false <= allowed or not healthy.any():
            return found
        own, scores = self.release.calibration["detectors"][name]["page"]["threshold"], self.scores[name]
        candidates = candidate_thresholds(scores[healthy])
        candidates = np.r_[candidates[candidates > own], scores.max()]  # above the last there is nothing

        def pages_at(threshold: float) -> Pages:
            return _pages(self.release, self.rows, self.line, scores, name, threshold)

        place = bisect_left(candidates, True, key=lambda threshold: pages_at(threshold).false <= allowed)
        return pages_at(float(candidates[min(place, len(candidates) - 1)]))

    def figures(self, params: GateParams, evaluate: EvaluateParams, seconds: float | None) -> dict[str, Any]:
        """The side's figures with their intervals, as JSON; what cannot be computed is None, with its reason."""
        rows, pages, nulls = self.rows, self.pages, dict[str, str]()
        days, judged, tuned = rows.healthy_days, len(rows.judging), len(rows.tuning)
        caught, tune_caught = len(pages.caught(rows.judging)), len(pages.caught(rows.tuning))
        events = [event for event in rows.events if event.failure_id in rows.judging]
        low, high = pages.bounds(params.confidence)
        page = self.release.calibration["detectors"][self.release.detector]["page"]
        rate, rate_low, rate_high, note = self.rate or (None, None, None, "There are no healthy rows.")
        by_chance = None
        if pages.outcome.episodes is not None and events:
            by_chance = shifted_catches(
                pages.outcome.episodes, events, evaluate.chance_shifts, release_seed(self.release)
            )
        found: dict[str, Any] = {
            "release": self.release.id,
            "detector": self.release.detector,
            "failures": judged,
            "caught": caught if judged else None,
            "caught_interval": _pair(wilson(caught, judged, params.confidence)) if judged else None,
            "caught_by_chance": None if by_chance is None else rounded(by_chance, 3),
            "tune_failures": tuned,
            "tune_caught": tune_caught if tuned else None,
            "false_pages": pages.false if days else None,
            "false_pages_per_machine_day": rounded(pages.false / days) if days else None,
            "false_pages_per_machine_day_bounds": _pair((low / days, high / days)) if days else None,
            "page_rate": None if rate is None else rounded(rate, 9),
            "page_rate_interval": None if rate_low is None or rate_high is None else _pair((rate_low, rate_high)),
            "page_rate_asked": rounded(self.release.page_rate, 9),
            "page_rate_calibrated": None if page["rate_low"] is None else _pair((page["rate_low"], page["rate_high"])),
            "seconds_per_million_rows": None if seconds is None else rounded(seconds * 1e6, 3),
        }
        if not judged:
            nulls |= dict.fromkeys(("caught", "caught_interval", "caught_by_chance"), "There is no failure to judge.")
        if not tuned:
            nulls["tune_caught"] = "There is no tune failure that counts for both."
        if not days:
            few = "There are no healthy rows."
            names = ("false_pages", "false_pages_per_machine_day", "false_pages_per_machine_day_bounds", "page_rate")
            nulls |= dict.fromkeys(names, few)
        if rate is None or rate_low is None:
            nulls["page_rate_interval"] = note or "There are no healthy rows."
        if found["page_rate_calibrated"] is None:
            nulls["page_rate_calibrated"] = page.get("note") or "The calibration rows were too few for an interval."
        if seconds is None:
            nulls["seconds_per_million_rows"] = f"Fewer than {params.time_rows:,} rows: time is not measured."
        return found | {"null_reasons": nulls}


def release_seed(release: Release) -> int:
    """The seed of draws that judge a release: its own."""
    return int(release.manifest["seed"])


def _pair(values: tuple[float, float]) -> list[float]:
    return [rounded(value, 9) for value in values]


def _pages(release: Release, rows: GateRows, line: Timeline, score_S: FloatN, name: str, threshold: float) -> Pages:
    """Pages by the release's policy, and what they come to."""
    low = float(release.calibration["detectors"][name]["low"]["threshold"])
    episodes = page_episodes(line, score_S > low, score_S > threshold)
    outcome = outcome_of(episodes, rows.events)
    days = MachineDays.of(line, rows.healthy_S, rows.interval_us)
    confirmed = MachineDays.of(line, rows.confirmed_S, rows.interval_us)
    row_E, weight_E = _false_pages(episodes, outcome.kinds, rows.after_us)
    confirmed_E = rows.confirmed_S[line.order][row_E]
    false_B, sure_B = (
        np.bincount(days.day_N[row_E], weights=weights_E, minlength=len(days)).astype(np.float64)
        for weights_E in (weight_E, weight_E * confirmed_E)
    )
    return Pages(outcome, days.machine_B, days.healthy_days_B, false_B, confirmed.healthy_days_B, sure_B)


def _false_pages(episodes: Episodes, kinds: Sequence[str], after_us: int) -> tuple[IntN, IntN]:
    """The first row of each false page from `after_us` on (a place of the timeline), and how often it counts.

    A page that opened before and still stands counts once per 24 hours that it goes on.
    """
    line = episodes.line
    false = np.array([kind == "false" for kind in kinds], bool) & (episodes.closed_us > after_us)
    first, opened, closed = episodes.first[false], episodes.opened_us[false], episodes.closed_us[false]
    days = (closed - np.maximum(opened, after_us)) // MICROSECONDS_PER_DAY
    weight = days + (opened > after_us)
    # rows of a machine follow each other: the first one after the moment
    for place in np.flatnonzero(opened <= after_us):
        mine = slice(int(first[place]), int(episodes.last[false][place]) + 1)
        first[place] += int(np.searchsorted(line.time_us[mine], after_us, side="right"))
    return first, weight


def sides_of(releases: Sequence[Release], rows: GateRows, params: GateParams) -> tuple[list[Side], FloatN | None]:
    """All releases on the rows of the gate, each spectrum read once; and `seconds_per_row` of the first two.

    Args:
        releases: the champion, then the challengers; of challengers the simple detectors are scored as well.
        rows: on which they are judged.
        params: section `gate`.

    Raises:
        ContractError: another number of bins than a release has.
    """
    bins = load_fleet_spec(rows.data_set / "fleet.yaml").bins
    for release in releases:
        if release.manifest["bins"] != bins:
            raise ContractError.of("bins", got=bins, expected=release.manifest["bins"], where=rows.data_set)
    keys = [_keys(release, rows) for release in releases]
    names = [list(release.deciding) for release in releases]
    for place, release in enumerate(releases[1:], 1):
        names[place] += [name for name in BASELINES if name in release.detectors and name not in names[place]]
    codes = [_baselines(release).codes(own) for release, own in zip(releases, keys, strict=True)]
    raw = [{name: np.empty(len(rows)) for name in own} for own in names]
    kept: list[FloatNF] = []
    for where, spectra in spectra_pieces(rows.data_set, rows.table, rows.selected_N, bins):
        for release, code_S, own in zip(releases, codes, raw, strict=True):
            use_threads(int(release.manifest["threads"]))
            for name, score_S in own.items():
                score_S[where] = release.detectors[name].score(spectra, code_S[where])
        if sum(map(len, kept)) < TIMED_ROWS:
            kept.append(spectra[:TIMED_ROWS])
    sides = []
    for release, code_S, own in zip(releases, codes, raw, strict=True):
        state_S = _baselines(release).states(code_S)
        sides.append(Side.of(release, rows, release.tails.comparable(own, state_S, code_S), params))
    sample = np.concatenate([*kept, np.empty((0, bins), np.float32)])[:TIMED_ROWS]
    return sides, seconds_per_row(releases[:2], [own.take(slice(0, len(sample))) for own in keys[:2]], sample, params)


def seconds_per_row(
    releases: Sequence[Release], keys: Sequence[RowKeys], spectra_NF: FloatNF, params: GateParams
) -> FloatN | None:
    """Seconds that service takes per row, of each release (T, 2) in T rounds: both score the same rows in turns.

    They take turns at being first, and run on the threads of the first release. None where there are fewer rows than
    `gate.time_rows`.
    """
    if len(spectra_NF) < params.time_rows:
        return None
    use_threads(int(releases[0].manifest["threads"]))
    usable = np.ones(len(spectra_NF), bool)
    seconds_T2 = np.empty((params.time_rounds, 2))
    for turn in range(-1, params.time_rounds):  # the first one warms up
        for place in (0, 1) if turn % 2 else (1, 0):
            begin = time.perf_counter()
            score_columns(releases[place], spectra_NF, keys[place], usable)
            if turn >= 0:
                seconds_T2[turn, place] = time.perf_counter() - begin
    return np.asarray(seconds_T2 / len(spectra_NF))


def _keys(release: Release, rows: GateRows) -> RowKeys:
    """What decides the baselines of the rows, with the epochs and conditions that a release knows."""
    own = rows.rows
    epoch_S = release.epochs_with(rows.maintenance).of_rows(own.machine, own.time_us, own.machines)
    condition_S, conditions = load_conditions(rows.data_set, rows.table, rows.selected_N, release.condition_column)
    return RowKeys(own.machines, own.machine, epoch_S, conditions, condition_S)


def _baselines(release: Release) -> Any:
    """Those of one build are all the same."""
    return next(iter(release.detectors.values())).baselines
