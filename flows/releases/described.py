"""What a release is, from its manifest and its row of the registry: origin, settings, figures, thresholds, history."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session

from flows.database import reading
from flows.registry import Promotion, ReleaseRow
from flows.repository import run_git
from flows.service.tables import Alert, Shard
from flows.settings import Settings
from flows.terminal import DASH
from pipeline.alerts import AlertPolicy
from pipeline.errors import ContractError, ReleaseError, WorkspaceError
from pipeline.moments import moment_of
from pipeline.params import Params
from pipeline.store import read_json, sha256_file

TIERS = ("page", "low")
FIGURES = (  # of a detector: name in the manifest, in words, its interval
    ("auroc", "AUROC", "auroc_ci"),
    ("partial_auroc", "partial AUROC", None),
    ("average_precision", "average precision", None),
    ("events", "failures judged", None),
    ("events_caught", "of these caught", "events_caught_ci"),
    ("events_by_chance", "caught by chance", None),
    ("false_episodes", "false episodes", None),
    ("false_episodes_per_day", "false episodes a day", "false_episodes_per_day_ci"),
    ("median_lead_time_hours", "median lead time, h", None),
    ("machine_days_observed", "machine-days", None),
)


@dataclass(frozen=True)
class Described:
    """A release as people ask for it; `damage` says what is wrong with its files (None: nothing that was looked at)."""

    row: ReleaseRow
    folder: Path
    manifest: dict[str, Any]
    calibration: dict[str, Any]
    damage: str | None

    @classmethod
    def of(cls, settings: Settings, row: ReleaseRow) -> Described:
        """Read manifest and calibration; the bytes of the rest are not looked at."""
        folder = settings.releases / row.id
        try:
            return cls(row, folder, read_json(folder / "manifest.json"), read_json(folder / "calibration.json"), None)
        except ContractError as error:
            return cls(row, folder, {}, {}, str(error))

    @property
    def name(self) -> str:
        """Version and id."""
        return f"v{self.row.version} ({self.row.id})"

    @property
    def detector(self) -> str:
        """Whose tiers raise alerts."""
        return str(self.manifest.get("detector", ""))

    @property
    def parents(self) -> list[str]:
        """Ids of the releases that it was made from."""
        named = (self.manifest.get(key) for key in ("recalibrated_from", "fine_tuned_from", "base_release"))
        return [str(each) for each in named if each]

    def origin(self, versions: Mapping[str, int]) -> str:
        """What it came from, in a few words; `versions`: of the releases by id."""

        def named(identity: str) -> str:
            return f"v{versions[identity]}" if identity in versions else identity

        if not self.manifest:
            return "unknown: its manifest cannot be read"
        said = []
        if self.manifest.get("recalibrated_from"):
            said.append(f"recalibrated from {named(self.parents[0])}")
        elif self.parents:
            said.append(f"fine-tuned from {named(self.parents[0])}")
        if self.manifest.get("changed_at"):
            said.append(f"retrained after a change at {str(self.manifest['changed_at'])[:16]}")
        return "; ".join(said) or "build"

    def settings(self) -> dict[str, Any]:
        """Its settings by dotted name."""
        return flat(self.manifest.get("params") or {})

    def thresholds(self) -> dict[str, dict[str, Any]]:
        """Percentile, threshold and the rest of each tier by `detector, tier`; the release's own detector first."""
        detectors = self.calibration.get("detectors") or {}
        names = sorted(detectors, key=lambda name: (name != self.detector, list(detectors).index(name)))
        return {f"{name}, {tier}": detectors[name][tier] for name in names for tier in TIERS if tier in detectors[name]}

    def policy(self) -> str:
        """The alert policy in words."""
        known = self.calibration.get("policy")
        if not known:
            return DASH
        policy = AlertPolicy.from_json(known)
        said = f"{policy.k} of {policy.n} rows within {policy.window_us / 6e7:g} min"
        said += f", closed after {policy.gap_us / 6e7:g} min without one"
        said += f", pause of {policy.cool_down_us / 3.6e9:g} h" if policy.cool_down_us else ""
        return said + (f", silent after {policy.no_data_us / 3.6e9:g} h" if policy.no_data_us is not None else "")

    def figures(self, detector: str | None = None) -> dict[str, str]:
        """The figures of a detector (None: the release's own) that evaluation found, intervals beside them."""
        metrics = self.manifest.get("metrics") or {}
        found = (metrics.get("detectors") or {}).get(detector or self.detector) or {}
        told = {said: number(found.get(key), found.get(span or "")) for key, said, span in FIGURES if key in found}
        if detector is None:
            for tier in TIERS:
                of_tier = (metrics.get("tiers") or {}).get(tier)
                if of_tier:
                    span = [of_tier.get("ci_low"), of_tier.get("ci_high")]
                    rate, asked = of_tier.get("false_positive_rate"), 1 - of_tier["percentile"] / 100
                    told[f"{tier} rate, of healthy rows"] = f"{percent(rate, span)}; asked for: {asked:.3%}"
        return told

    def null_reasons(self) -> dict[str, str]:
        """Why figures are missing, where the manifest says so."""
        return dict((self.manifest.get("metrics") or {}).get("null_reasons") or {})

    def newest_row(self) -> dt.datetime | None:
        """The newest row that made or judged it."""
        newest = self.manifest.get("newest_row_us")
        return None if newest is None else moment_of(int(newest))

    def with_bytes_checked(self) -> Described:
        """The same, with the hash of every file compared with the manifest."""
        if self.damage is not None:
            return self
        from pipeline.release import release_id

        try:
            if release_id(self.folder) != self.row.id:
                wrong = [
                    name
                    for name, digest in self.manifest.get("files", {}).items()
                    if not (self.folder / name).is_file() or sha256_file(self.folder / name) != digest
                ]
                damage = f"its bytes are not those of release {self.row.id}"
                damage += f"; other bytes than its manifest says: {', '.join(wrong)}" if wrong else ""
                return Described(self.row, self.folder, self.manifest, self.calibration, damage)
        except (ContractError, OSError) as error:
            return Described(self.row, self.folder, self.manifest, self.calibration, str(error))
        return self


def flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested settings by dotted name.

    >>> flat({"seed": 7, "train": {"pca": {"components": 8}}})
    {'seed': 7, 'train.pca.components': 8}
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{name}.")
        else:
            found[name] = value
    return found


def different(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What two mappings do not have in common; a missing value is None.

    >>> different({"a": 1, "b": 2}, {"a": 1, "c": 3})
    {'b': (2, None), 'c': (None, 3)}
    """
    names = [*one, *(name for name in other if name not in one)]
    return {name: (one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)}


def default_settings(names: Iterable[str]) -> dict[str, Any]:
    """What these settings are where params.yaml says nothing."""
    known = flat(Params().model_dump(mode="json", by_alias=True))
    return {name: known.get(name) for name in names}


def number(value: Any, interval: Any = None) -> str:
    """A figure with its interval.

    >>> number(0.946001, [0.871, 0.99]), number(None), number(3, [0.1, None])
    ('0.946 (0.871 to 0.99)', '—', '3')
    """
    if value is None:
        return DASH
    said = f"{value:.4g}" if isinstance(value, float) else str(value)
    if isinstance(interval, list | tuple) and len(interval) == 2 and None not in interval:
        said += f" ({interval[0]:.4g} to {interval[1]:.4g})"
    return said


def percent(value: float | None, interval: Any = None) -> str:
    """A rate with its interval.

    >>> percent(0.0005, [0.0, 0.001]), percent(None)
    ('0.050% (0.000% to 0.100%)', '—')
    """
    if value is None:
        return DASH
    known = isinstance(interval, list | tuple) and len(interval) == 2 and None not in interval
    return f"{value:.3%}" + (f" ({interval[0]:.3%} to {interval[1]:.3%})" if known else "")


@dataclass(frozen=True)
class AtWork:
    """What a release has scored: rows of the log by the ledger, shards, uploads' span, alerts."""

    rows: int
    shards: int
    first_at: dt.datetime | None
    last_at: dt.datetime | None
    alerts: int


def work_of(engine: Engine, identity: str) -> AtWork:
    """Counted from the ledger and the alerts, without reading the score log."""
    with Session(reading(engine)) as session:
        query = sa.select(
            sa.func.coalesce(sa.func.sum(Shard.rows), 0),
            sa.func.count(),
            sa.func.min(Shard.first_at),
            sa.func.max(Shard.last_at),
        )
        rows, shards, first, last = session.execute(query.where(Shard.release_id == identity)).one()
        alerts = session.scalar(sa.select(sa.func.count()).select_from(Alert).where(Alert.release_id == identity))
    return AtWork(int(rows), int(shards), first, last, int(alerts or 0))


def spells(history: Iterable[Promotion], now: dt.datetime) -> list[tuple[Promotion, dt.datetime]]:
    """The times in service: each line of the history with the moment at which it ended (now: it has not)."""
    lines = list(history)
    ends = [*(line.at for line in lines[1:]), now]
    return list(zip(lines, ends, strict=False))


def tag_in_repository(settings: Settings, row: ReleaseRow) -> str:
    """The tag of a release and the commit that it names, as the repository has it; or why there is none."""
    tag = f"release/v{row.version}"
    where = Path(settings.checkout if settings.checkout.is_dir() else ".")
    try:
        said = run_git(where, "ls-remote", settings.repository, f"refs/tags/{tag}", f"refs/tags/{tag}^{{}}")
    except WorkspaceError:
        return f"{tag}: not known, as the repository does not answer"
    commits = [line.split()[0] for line in said.splitlines()]
    if not commits:
        return f"none: the repository has no {tag}"
    own = commits[-1]
    return tag if own == row.commit else f"none: {tag} of the repository names another commit ({own[:12]})"


def described(settings: Settings, row: ReleaseRow) -> Described:
    """A release whose manifest can be read.

    Raises:
        ReleaseError: it cannot.
    """
    found = Described.of(settings, row)
    if found.damage is not None:
        raise ReleaseError(f"release {found.name}: {found.damage}")
    return found
