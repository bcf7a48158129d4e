"""Stage `release`: all that scoring needs in one folder, known by the hash of its bytes.

A release holds no time, commit or id of its own (its row in the registry does), so the same build gives the same id.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.alerts import AlertPolicy
from pipeline.detectors import Detector, choose_device, load_detector
from pipeline.detectors.base import MANIFEST, WEIGHTS
from pipeline.drift.columns import Judge
from pipeline.drift.reference import describe_reference, pick_reference, write_reference
from pipeline.ensemble import TailTables, load_tails
from pipeline.epochs import EpochStarts
from pipeline.errors import ContractError, ReleaseError, run_reporting_errors
from pipeline.measure import condition_column
from pipeline.params import Params, load_params
from pipeline.rows import has_role
from pipeline.schema import MAINTENANCE_SCHEMA, FleetSpec, Role, load_fleet_spec, times_us
from pipeline.store import atomic_folder, folder_id, read_json, read_table, sha256_file, sha256_files, write_json

# as dvc.yaml lists for this stage; the days of its windows stand in drift.json
MANIFEST_PARAMS = ("seed", "detectors", "train", "calibrate", "release", "split")


@dataclass(frozen=True)
class Release:
    """A loaded and checked release: detectors, tail tables, thresholds, policy, epochs."""

    folder: Path
    id: str
    manifest: dict[str, Any]
    detectors: Mapping[str, Detector]
    tails: TailTables
    calibration: dict[str, Any]
    epochs: EpochStarts
    fleet: FleetSpec

    @property
    def detector(self) -> str:
        """The detector whose tiers raise alerts, or `ensemble`."""
        return str(self.manifest["detector"])

    @property
    def deciding(self) -> Mapping[str, Detector]:
        """The detectors whose scores decide on alerts: the release's own, or the members of the ensemble."""
        return {name: self.detectors[name] for name in self.tails.members_that_decide(self.detector)}

    @property
    def condition_column(self) -> str | None:
        """The context column that names the condition of rows to score; None: conditions make no difference."""
        return condition_column(self.detectors)

    @property
    def policy(self) -> AlertPolicy:
        """The alert policy."""
        return AlertPolicy.from_json(self.calibration["policy"])

    def threshold(self, tier: str) -> float:
        """Threshold of a tier (comparable score) of the release's own detector."""
        return float(self.calibration["detectors"][self.detector][tier]["threshold"])

    @property
    def page_rate(self) -> float:
        """Share of healthy rows that the page tier was calibrated to let through."""
        return 1 - float(self.calibration["detectors"][self.detector]["page"]["percentile"]) / 100

    def epochs_with(self, maintenance: pa.Table | None) -> EpochStarts:
        """Epochs as the release knows them, and those that a later log adds."""
        if maintenance is None:
            return self.epochs
        return self.epochs.extended_by(EpochStarts.of_log(maintenance), int(self.manifest["newest_row_us"]))


def release_id(folder: Path) -> str:
    """The id of a release folder: the first 16 hex digits of the hash over its names and bytes."""
    return folder_id(folder)


def load_release(folder: Path | str, expected_id: str | None = None, device: str = "auto") -> Release:
    """Load a release after checking every byte of it.

    Args:
        folder: the release.
        expected_id: what the registry says its id is.
        device: where scores are computed; another than at calibration changes their last bits.

    Raises:
        ReleaseError: no such folder, another id than expected, or files that differ from the manifest.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise ReleaseError(f"release: got no {MANIFEST}, expected a release folder, in {folder}.")
    try:
        found = release_id(folder)
        manifest = read_json(folder / MANIFEST)
        if expected_id is not None and found != expected_id:
            raise ReleaseError(f"release: got bytes with the id {found}, expected {expected_id}, in {folder}.")
        for name, digest in manifest["files"].items():
            path = folder / name
            if not path.is_file() or sha256_file(path) != digest:
                raise ReleaseError(
                    f"release: got other bytes than its manifest says, expected {digest[:12]}…, in {path}."
                )
        names, calibration = tuple(manifest["members"]), read_json(folder / "calibration.json")
        return Release(
            folder=folder,
            id=found,
            manifest=manifest,
            detectors={name: load_detector(folder / "detectors" / name, choose_device(device)) for name in names},
            tails=load_tails(folder / "tails", names, calibration),
            calibration=calibration,
            epochs=EpochStarts.from_json(read_json(folder / "epochs.json")),
            fleet=load_fleet_spec(folder / "fleet.yaml"),
        )
    except (ContractError, KeyError, TypeError, OSError) as error:
        raise ReleaseError(f"release: got {error}, expected a whole release, in {folder}.") from None


def build_release(root: Path, params: Params, folder: Path) -> None:
    """Fill an empty folder with the release of the stage outputs below `root`."""
    raw, split = root / "data/raw", read_table(root / "data/status/split.parquet")
    fleet = load_fleet_spec(raw / "fleet.yaml")
    for name in params.serving_detectors:
        target = folder / "detectors" / name
        target.mkdir(parents=True)
        for part in (WEIGHTS, MANIFEST):
            shutil.copyfile(root / "data/models" / name / part, target / part)
    calibration = read_json(root / "data/calibration/calibration.json")
    tails = load_tails(root / "data/calibration", params.serving_detectors, calibration)
    (folder / "tails").mkdir(exist_ok=True)
    tails.save(folder / "tails")
    write_json(folder / "calibration.json", calibration)
    shutil.copyfile(raw / "fleet.yaml", folder / "fleet.yaml")
    maintenance = read_table(raw / "maintenance.parquet", schema=MAINTENANCE_SCHEMA)
    epochs = EpochStarts.of_log(maintenance, params.split.changed_at, params.split.changed_machines)
    write_json(folder / "epochs.json", epochs.to_json())
    detectors = {name: load_detector(folder / "detectors" / name) for name in params.serving_detectors}
    # validation days are spread over the train span, and no network's weights were fitted on them
    removed_N = read_table(root / "data/status/clean.parquet", ["removed"])["removed"].to_numpy()
    healthy_N = has_role(split, Role.VALIDATION, Role.CALIBRATION) & ~removed_N
    chosen_N = pick_reference(split, healthy_N, params.release.reference_rows, params.seed)
    judge = Judge.of(detectors, tails, calibration, params.release.detector)
    reference = describe_reference(raw, split, chosen_N, judge, fleet.bins, condition_column(detectors))
    write_reference(folder, reference, params.monitor.days, params.seed)
    metrics = read_json(root / "metrics/evaluation.json")
    write_json(folder / MANIFEST, manifest_of(root, folder, params, split, metrics))


def manifest_of(root: Path, folder: Path, params: Params, split: pa.Table, metrics: dict[str, Any]) -> dict[str, Any]:
    """What made the release; nothing that changes from one identical build to the next."""
    histories = {name: read_json(root / f"data/models/{name}/history.json") for name in params.serving_detectors}
    # a row with a wrong clock is quarantined; it must not hide the log entries of the years before it
    trusted = np.array(split["log_status"].cast(pa.string()).to_pylist()) != "quarantined"
    newest = int(times_us(split["timestamp"])[trusted].max())
    inputs = {
        "snapshot": sha256_file(root / "data/raw/snapshot.json"),
        "split": sha256_file(root / "data/status/split.parquet"),
        "clean": sha256_file(root / "data/status/clean.parquet"),
    }
    files = sha256_files(folder)
    return {
        "format": 1,
        "detector": params.release.detector,
        "members": list(params.serving_detectors),
        "bins": load_fleet_spec(folder / "fleet.yaml").bins,
        "provisional": params.split.changed_at is not None,
        "changed_at": params.split.changed_at.isoformat() if params.split.changed_at else None,
        "newest_row_us": newest,
        "inputs": inputs,
        "models": {name: files[f"detectors/{name}/{WEIGHTS}"] for name in params.serving_detectors},
        "files": files,
        "params": params.model_dump(mode="json", include=set(MANIFEST_PARAMS)),
        "seed": params.seed,
        "base_release": params.base_release,
        "precision": {name: history["precision"] for name, history in histories.items()},
        "device": histories[params.explaining_detector]["device"],
        "threads": params.train.threads,
        "batch_rows": params.train.score_batch_rows,
        "metrics": {"detectors": metrics["detectors"], "tiers": metrics["tiers"], "in_service": metrics["in_service"]},
    }


def main() -> None:
    """Command line of the stage."""
    params, root = load_params(), Path()
    with atomic_folder(root / "data/release") as folder:
        build_release(root, params, folder)
    print(f"release {release_id(root / 'data/release')}", flush=True)


if __name__ == "__main__":
    run_reporting_errors(main)
