"""A new release with the weights of another: thresholds, tails and policy anew, from recent healthy rows of a data set.

Rows are later than every row that the other release was built from. Spectra are read in pieces of whole day files and
scored as the release scores them: its batches, threads and precision.

Shape legend: N rows, M machines, B machine-days, D draws.
"""

from __future__ import annotations

import datetime as dt
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from pipeline.alerts import MINUTE, AlertPolicy
from pipeline.calibrate import TIERS, Calibration, calibrate_measured
from pipeline.detectors.base import MANIFEST
from pipeline.drift.columns import Judge
from pipeline.drift.reference import LIMITS, REFERENCE, describe_reference, pick_reference, write_reference
from pipeline.errors import ContractError, ReleaseError
from pipeline.intervals import MIN_MACHINES, rate_above
from pipeline.measure import Measured, measure
from pipeline.moments import microseconds
from pipeline.params import CalibrateParams, Params, ValidateParams
from pipeline.recent_rows import RecentRows, recent_rows
from pipeline.release import Release, release_id
from pipeline.rows import rows_without_spectra, spectra_pieces
from pipeline.schema import MICROSECONDS_PER_DAY, MICROSECONDS_PER_HOUR, BoolN, codes_and_names, load_fleet_spec
from pipeline.store import read_json, sha256_file, sha256_files, write_json
from pipeline.train import use_threads

RENEWED = ("tails", "calibration.json", REFERENCE, LIMITS, MANIFEST)  # all else is copied byte for byte
NO_TIER = "The release has no such tier."
UNJUDGED = "The thresholds are new: no later rows have judged them yet."


@dataclass(frozen=True)
class TierChange:
    """What becomes of a tier of a detector; `rate` is what the old threshold lets through of the new rows."""

    detector: str
    tier: str
    old_percentile: float | None
    percentile: float
    old_threshold: float | None
    threshold: float
    basis: str
    rate: float | None
    rate_low: float | None
    rate_high: float | None
    note: str | None


@dataclass(frozen=True)
class Recalibration:
    """A new release and what is different in it."""

    id: str
    folder: Path
    recalibrated_from: str
    detector: str
    rows: int
    machines: int
    unconfirmed: int
    first: str
    last: str
    tune_failures: int
    provisional: bool
    old_rows: int
    old_policy: dict[str, Any]
    policy: dict[str, Any]
    tiers: tuple[TierChange, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self) | {"folder": str(self.folder)}


def recalibrate(
    release: Release,
    data_set: Path,
    out: Path,
    validate: ValidateParams,
    *,
    since: dt.datetime | None = None,
    until: dt.datetime | None = None,
    calibrate: CalibrateParams | None = None,
) -> Recalibration:
    """Calibrate a release anew and write what comes out as a release of its own.

    Healthy is what the maintenance log and confirmed alerts leave, what validation found sound, and no machine that the
    release holds out. Rows younger than the horizon are unconfirmed: they count, and make the release provisional. The
    reference of drift is renewed from the same rows. The same inputs give the same bytes.

    Args:
        release: whose weights stay.
        data_set: that `ingest` wrote: a folder of its own, or `data/raw` of a build.
        out: a new or empty folder, or one that holds this very release already.
        validate: limits of the rows' facts, where no status table stands beside the data set; a release holds none.
        since: rows from here on (UTC); None: all that are later than the release's own.
        until: rows before this (UTC); None: all.
        calibrate: percentiles and policy; None: the release's own.

    Raises:
        ContractError: no such data set, another number of bins, no rows in the span, fewer than 100 healthy
            ones, scores that are all equal or not finite, a folder that holds something else.
        ReleaseError: a release whose settings this version does not know.
    """
    _refuse_full(out)
    settings = _settings_of(release)
    params = calibrate or settings.calibrate
    _check_fleet(release, data_set)
    use_threads(int(release.manifest["threads"]))
    rows = recent_rows(release, data_set, settings, since, until, validate)
    healthy, tune = (_measured(release, data_set, rows, chosen_N) for chosen_N in (rows.healthy_N, rows.tune_N))
    anew = settings.model_copy(update={"calibrate": params})
    calibration = calibrate_measured(healthy, tune, anew, rows.tuned_us)
    changes = tier_changes(release, healthy, calibration, params, settings.seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name[:60]}.", suffix=".tmp", dir=out.parent) as place:
        made = Path(place) / "release"
        made.mkdir()
        asked = {
            "since_us": None if since is None else microseconds(since),
            "until_us": None if until is None else microseconds(until),
            "validate": validate.model_dump(mode="json"),
        }
        _write_release(release, data_set, made, rows, calibration, params, settings, asked)
        identity = _move_in(made, out)
    manifest = read_json(out / MANIFEST)
    figures = manifest["recalibration"]
    return Recalibration(
        id=identity,
        folder=out,
        recalibrated_from=release.id,
        detector=release.detector,
        rows=figures["rows"],
        machines=figures["machines"],
        unconfirmed=figures["unconfirmed"],
        first=figures["first"],
        last=figures["last"],
        tune_failures=figures["tune_failures"],
        provisional=manifest["provisional"],
        old_rows=int(release.calibration["rows"]),
        old_policy=dict(release.calibration["policy"]),
        policy=calibration.policy.to_json(),
        tiers=changes,
        notes=tuple(dict.fromkeys([*rows.notes, *_of_machines_and_device(release, manifest), *calibration.notes])),
    )


def _of_machines_and_device(release: Release, manifest: dict[str, Any]) -> list[str]:
    """What a person must know of few machines, and of scores from another device."""
    notes, machines = [], int(manifest["recalibration"]["machines"])
    if machines < MIN_MACHINES:
        noun = "machine" if machines == 1 else "machines"
        notes.append(f"Intervals resample {machines} {noun}, fewer than {MIN_MACHINES}: they are too narrow.")
    before, now = release.manifest["device"], manifest["device"]
    if before != now:
        notes.append(f"Scores were computed on {now}, those of release {release.id} on {before}: last digits differ.")
    return notes


def _refuse_full(out: Path) -> None:
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise ContractError.of("--out", got="a folder that is not empty", expected="a new or empty one", where=out)


def _move_in(made: Path, out: Path) -> str:
    """Put a release into its place; the very same one may stand there."""
    identity = release_id(made)
    if out.is_dir() and any(out.iterdir()):
        found = release_id(out)
        if found != identity:
            raise ContractError.of(
                "--out", got=f"another release ({found})", expected="a new or empty folder", where=out
            )
        return identity
    if out.is_dir():
        out.rmdir()
    made.replace(out)
    return identity


def _settings_of(release: Release) -> Params:
    try:
        return Params.model_validate(release.manifest["params"])
    except ValidationError as error:
        first = error.errors()[0]
        name, got = ".".join(map(str, first["loc"])), first["msg"]
        raise ReleaseError(
            f"release: got {name}: {got}, expected settings of this version, in {release.folder}."
        ) from None


def _check_fleet(release: Release, data_set: Path) -> None:
    if not (data_set / "snapshot.json").is_file():
        expected = "a data set that `hearken ingest` wrote, or data/raw of a build"
        raise ContractError.of("data set", got="no snapshot.json", expected=expected, where=data_set)
    fleet, bins = load_fleet_spec(data_set / "fleet.yaml"), release.manifest["bins"]
    if fleet.bins != bins:
        raise ContractError.of("bins", got=fleet.bins, expected=f"{bins} as release {release.id}", where=data_set)
    if fleet.kind != release.fleet.kind:
        raise ContractError.of("kind", got=fleet.kind, expected=release.fleet.kind, where=data_set / "fleet.yaml")


def _measured(release: Release, data_set: Path, rows: RecentRows, chosen_N: BoolN) -> Measured:
    """Scores of some rows, a piece of day files at a time."""
    bins = int(release.manifest["bins"])
    bare = rows_without_spectra(data_set, rows.table, chosen_N, release.condition_column)
    return measure(release.detectors, bare, spectra_pieces(data_set, rows.table, chosen_N, bins))


def tier_changes(
    release: Release, healthy: Measured, calibration: Calibration, params: CalibrateParams, seed: int
) -> tuple[TierChange, ...]:
    """Old and new thresholds of every detector, the release's first, and what the old ones let through now."""
    before, now = release.calibration["detectors"], calibration.detectors
    old_scores = healthy.comparable(release.tails).scores
    day_N = healthy.rows.time_us // MICROSECONDS_PER_DAY
    changes = []
    for name in sorted(now, key=lambda name: (name != release.detector, list(now).index(name))):
        for tier in TIERS:
            new, old = now[name][tier], before.get(name, {}).get(tier)
            found: tuple[float | None, float | None, float | None, str | None] = (None, None, None, NO_TIER)
            if old is not None and name in old_scores:
                found = rate_above(
                    old_scores[name], float(old["threshold"]), healthy.rows.machine, day_N,
                    draws=params.draws, confidence=params.confidence, seed=seed,
                )  # fmt: skip
            changes.append(
                TierChange(
                    detector=name,
                    tier=tier,
                    old_percentile=None if old is None else float(old["percentile"]),
                    percentile=float(new["percentile"]),
                    old_threshold=None if old is None else float(old["threshold"]),
                    threshold=float(new["threshold"]),
                    basis=str(new["basis"]),
                    rate=found[0],
                    rate_low=found[1],
                    rate_high=found[2],
                    note=found[3],
                )
            )
    return tuple(changes)


def _write_release(
    release: Release,
    data_set: Path,
    folder: Path,
    rows: RecentRows,
    calibration: Calibration,
    params: CalibrateParams,
    settings: Params,
    asked: dict[str, Any],
) -> None:
    """Fill an empty folder: everything of the old release but what calibration makes."""
    shutil.copytree(release.folder, folder, dirs_exist_ok=True, ignore=_renewed_of(release.folder))
    (folder / "tails").mkdir()
    calibration.tails.save(folder / "tails")
    write_json(folder / "calibration.json", calibration.to_json())
    _write_reference(release, data_set, folder, rows, calibration, settings)
    write_json(folder / MANIFEST, _manifest(release, data_set, folder, rows, params, asked))


def _renewed_of(root: Path) -> Any:
    """What is left out of the copy: top-level entries that are made anew."""
    return lambda folder, names: [name for name in names if Path(folder) == root and name in RENEWED]


def _write_reference(
    release: Release, data_set: Path, folder: Path, rows: RecentRows, calibration: Calibration, settings: Params
) -> None:
    """What drift is measured against: the rows that calibrated, drawn as a build draws them, and limits from them."""
    chosen_N = pick_reference(rows.table, rows.healthy_N, settings.release.reference_rows, settings.seed)
    judge = Judge.of(release.detectors, calibration.tails, calibration.to_json(), release.detector)
    bins, column = int(release.manifest["bins"]), release.condition_column
    known = release.folder / LIMITS
    days = float(read_json(known)["days"]) if known.is_file() else settings.monitor.days
    write_reference(
        folder, describe_reference(data_set, rows.table, chosen_N, judge, bins, column), days, settings.seed
    )


def _manifest(
    release: Release,
    data_set: Path,
    folder: Path,
    rows: RecentRows,
    params: CalibrateParams,
    asked: dict[str, Any],
) -> dict[str, Any]:
    """The old manifest with what is new; nothing that changes from one identical run to the next."""
    machine_N = codes_and_names(rows.table["machine_id"])[0][rows.healthy_N]
    failure_M = codes_and_names(rows.table["failure_id"])[0][rows.tune_N]
    first, last = rows.span
    made_of = ("snapshot.json", "maintenance.parquet", "failures.parquet", "feedback.parquet")
    unconfirmed = int(rows.unconfirmed_N.sum())
    return {
        **release.manifest,
        "files": sha256_files(folder),
        "recalibrated_from": release.id,
        "recalibration": {
            "first": first,
            "last": last,
            "rows": int(rows.healthy_N.sum()),
            "machines": len(np.unique(machine_N)),
            "unconfirmed": unconfirmed,
            "tune_rows": int(rows.tune_N.sum()),
            "tune_failures": len(np.unique(failure_M)),
            "reference": "renewed from the same rows",
            **asked,
            "inputs": {name: sha256_file(data_set / name) for name in made_of if (data_set / name).is_file()},
        },
        "provisional": bool(release.manifest["provisional"]) or unconfirmed > 0,
        "params": {**release.manifest["params"], "calibrate": params.model_dump(mode="json")},
        "device": next(iter(release.detectors.values())).device.type,
        "metrics": {"detectors": {}, "tiers": {}, "in_service": {}, "null_reasons": {"metrics": UNJUDGED}},
    }


def policy_words(policy: dict[str, Any]) -> str:
    """An alert policy in words: every number of it, so that two of the same words are the same.

    >>> told = {"k": 3, "n": 5, "window_us": 7_200_000_000, "gap_us": 1_800_000_000}
    >>> policy_words(told)
    '3 of 5 rows within 120 min, episodes 30 min apart'
    >>> policy_words(told | {"cool_down_us": 86_400_000_000, "no_data_us": 21_600_000_000})
    '3 of 5 rows within 120 min, episodes 30 min apart, cool-down 24 h, no data after 6 h'
    """
    known = AlertPolicy.from_json(policy)
    words = [f"{known.k} of {known.n} rows within {known.window_us / MINUTE:g} min"]
    words.append(f"episodes {known.gap_us / MINUTE:g} min apart")
    if known.cool_down_us:
        words.append(f"cool-down {known.cool_down_us / MICROSECONDS_PER_HOUR:g} h")
    if known.no_data_us is not None:
        words.append(f"no data after {known.no_data_us / MICROSECONDS_PER_HOUR:g} h")
    return ", ".join(words)
