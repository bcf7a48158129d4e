"""A plant with a release in service and a landing zone, for tests of the service."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa
from sqlalchemy.orm import Session

from flows import registry
from flows.service.scorer import RunSummary, score_arrivals
from flows.service.tables import Alert, AlertEvent, Shard, Upload
from flows.settings import Settings
from pipeline.params import Params, load_params
from pipeline.schema import codes_and_names
from pipeline.store import day_files, read_json, read_table, sha256_file, write_json, write_table

COLUMNS = ("machine_id", "cause", "opened_at", "paged_at", "last_at", "closed_at", "peak_at", "peak_rarity")


@dataclass
class ServicePlant:
    """Folders of one plant; `built` is what the stages made, its snapshot the source of uploads."""

    folder: Path
    built: Path
    engine: sa.Engine
    settings: Settings
    params: Params
    release: str = ""
    days: list[pa.Table] = field(default_factory=list)

    @classmethod
    def of(cls, folder: Path, built: Path, engine: sa.Engine) -> ServicePlant:
        """The release of a build in service, an empty landing zone beside it."""
        values = {"HEARKEN_HOME": str(folder / "home"), "HEARKEN_LANDING": str(folder / "landing")}
        plant = cls(folder, built, engine, Settings.of(folder, values), load_params(built / "params.yaml"))
        row = registry.register_release(engine, plant.settings.releases, loud_release(built, folder), commit="abc")
        registry.promote(engine, row.id)
        plant.release = row.id
        plant.spectra.mkdir(parents=True)
        for name in ("fleet.yaml", "maintenance.parquet"):
            shutil.copyfile(built / "data/raw" / name, plant.landing / name)
        plant.days = [read_table(path) for path in day_files(built / "data/raw")]
        return plant

    @property
    def landing(self) -> Path:
        """The data set's folder."""
        return self.folder / "landing"

    @property
    def spectra(self) -> Path:
        """Where uploads arrive."""
        return self.landing / "spectra"

    def upload(self, name: str, table: pa.Table) -> Path:
        """Let a table arrive as a file."""
        path = self.spectra / f"{name}.parquet"
        write_table(path, table)
        return path

    def all_rows(self, days: slice = slice(None)) -> pa.Table:
        """All rows of some days of the snapshot."""
        return pa.concat_tables(self.days[days]).unify_dictionaries()

    def score(self, **changes: Any) -> RunSummary:
        """One run; `changes` are of the section `score` of params.yaml."""
        params = self.params.model_copy(update={"score": self.params.score.model_copy(update=changes)})
        return score_arrivals(self.engine, self.settings, params)

    def log(self) -> pa.Table:
        """All rows of the score log, by machine and time."""
        parts = [read_table(path) for path in sorted(self.settings.score_log.glob("*/[!._]*.parquet"))]
        table = pa.concat_tables(parts, promote_options="permissive").unify_dictionaries()
        keys = pa.table({"machine": table["machine_id"].cast(pa.string()), "time": table["timestamp"]})
        order = pc.sort_indices(keys, sort_keys=[("machine", "ascending"), ("time", "ascending")])
        return table.take(order)

    def alerts(self) -> list[tuple[Any, ...]]:
        """The alerts that stand, in the order of machines and times."""
        with Session(self.engine) as session:
            found = session.scalars(sa.select(Alert).where(Alert.standing != "withdrawn"))
            return sorted(tuple(str(getattr(alert, name)) for name in COLUMNS) for alert in found)

    def events(self) -> list[AlertEvent]:
        """All lines of all stories."""
        with Session(self.engine) as session:
            return list(session.scalars(sa.select(AlertEvent).order_by(AlertEvent.id)))

    def uploads(self) -> dict[str, Upload]:
        """The ledger's newest row of each path."""
        with Session(self.engine) as session:
            return {upload.path: upload for upload in session.scalars(sa.select(Upload).order_by(Upload.id))}

    def shards(self) -> list[Shard]:
        """The ledger's shards."""
        with Session(self.engine) as session:
            return list(session.scalars(sa.select(Shard).order_by(Shard.id)))


def loud_release(built: Path, folder: Path) -> Path:
    """The release of a build with a page threshold that some of its rows exceed."""
    release = folder / "loud"
    if not release.exists():
        shutil.copytree(built / "data/release", release)
        calibration, manifest = read_json(release / "calibration.json"), read_json(release / "manifest.json")
        tiers = calibration["detectors"][manifest["detector"]]
        tiers["page"]["threshold"] = tiers["low"]["threshold"] * 1.05
        write_json(release / "calibration.json", calibration)
        manifest["files"]["calibration.json"] = sha256_file(release / "calibration.json")
        write_json(release / "manifest.json", manifest)
    return release


def of_machines(table: pa.Table, *names: str) -> pa.Table:
    """Rows of some machines."""
    codes, known = codes_and_names(table["machine_id"])
    wanted = [known.index(name) for name in names]
    return table.filter(pc.is_in(pa.array(codes), value_set=pa.array(wanted, pa.int32())))
