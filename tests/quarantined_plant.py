"""A plant's folder in which validation sets a few rows aside, for the tests of quarantine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.ingest import ingest
from pipeline.params import IngestParams, ValidateParams
from pipeline.schema import spectra_column, spectra_schema, time_column
from pipeline.store import read_table, write_table
from pipeline.validate import validate

START = 1_735_689_600_000_000  # 2025-01-01
HOUR = 3_600_000_000
NASTY = "[red]../x"
EVERYTHING = {
    ("a", 5): ("quarantined", "energy"),
    ("a", 6): ("quarantined", "nonfinite"),
    ("a", 7): ("quarantined", "energy"),
    (NASTY, 6): ("suspect", "flat"),
}


def write_plant(folder: Path) -> Path:
    """Machine `a` is too loud for three hours, and for one of them no number; NASTY is flat once."""
    values = np.random.default_rng(0).lognormal(size=(48, 8)).astype(np.float32)
    values[5:8] *= 1e8
    values[6, 2] = np.nan
    values[30] = 1.0
    times = START + np.tile(np.arange(24), 2) * HOUR
    columns = {"machine_id": ["a"] * 24 + [NASTY] * 24, "timestamp": time_column(times)}
    table = pa.table(columns | {"spectrum": spectra_column(values)}).cast(spectra_schema(8))
    write_table(folder / "spectra/2025-01-01.parquet", table)
    (folder / "fleet.yaml").write_text("bins: 8\n")
    return folder


def built(plant: Path) -> dict[tuple[str, int], tuple[str, str]]:
    """Ingest and validate; status and reason of what is set aside, by machine and hour."""
    root = plant.parent
    ingest(plant, root / "data/raw", IngestParams(), horizon_hours=1, tune_share=0.5)
    validate(root / "data/raw", root / "data/status/validate.parquet", ValidateParams())
    table = read_table(root / "data/status/validate.parquet").to_pandas()
    aside = table[table.status != "ok"]
    hours = [time.hour for time in aside.timestamp]
    return dict(
        zip(zip(aside.machine_id, hours, strict=True), zip(aside.status, aside.reason, strict=True), strict=True)
    )
