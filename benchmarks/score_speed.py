"""From the landing zone to score log and alerts: spectra per second of a fleet's days, peak memory, and PyOD beside it.

A fleet of 600 machines is simulated. Its first weeks, a spectrum an hour, build a release through the project's own
stages: convolutional autoencoder, PCA and energy z-score, the ensemble of all three deciding. Then days at the full
ten-second cadence (5,184,000 spectra each, a file a day) lie in a landing zone, and a scoring run in a process of its
own takes them in, scores them, writes the score log, and opens alerts in a database. `fleet_day_s` is everything from
the start of that run (the libraries are loaded, the release is not) to its end, for one day.

For PyOD a release of one dense autoencoder scores the same day; PyOD's `AutoEncoder` of the same layers runs
`decision_function` on rows of that day that lie in memory, no disk in between. Both in turns; medians count. PyOD sees
`--pyod-rows` rows, as it takes gigabytes for more. Its weights do not matter for its speed: it is fitted for one epoch.
Usage: python benchmarks/score_speed.py [--machines 600] [--days 3] [--repeats 3] [--pyod-rows 1036800] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from stages_here import build_release

from flows import registry
from flows.database import open_database
from flows.service.scorer import score_arrivals
from flows.settings import Settings
from pipeline.params import SimulateParams, load_params
from pipeline.schema import spectra_view
from pipeline.simulate import simulate
from pipeline.simulation.plan import plan_fleet
from pipeline.store import read_batches, row_count

GIB = 2**20  # of the kilobytes that the system reports
TRAIN_DAYS, PLANNED_DAYS = 20.0, 40.0
GOALS = {"fleet_day_s": 30.0, "peak_rss_gib": 2.0, "vs_pyod_in_memory": 1.0}
PARAMS = """
seed: 11
source: {{path: data/demo}}
detectors: [{detectors}]
split: {{horizon_hours: 24, train_share: 0.5, calibration_share: 0.3, unseen_machine_share: 0, purge_hours: 12}}
train:
  threads: 2
  autoencoder: {{{autoencoder}, optimiser: {{max_epochs: 2, batch_rows: 1024}}}}
calibrate: {{draws: 50, ensemble: {{members: [{members}], agree: 1}}, choice: {{enabled: false}}}}
evaluate: {{chance_shifts: 20}}
release: {{detector: {decides}, reference_rows: 1000}}
"""
CONVOLUTIONAL = "architecture: convolutional, latent: 12, channels: [8, 16, 32]"
DENSE = "architecture: dense, latent: 12, layers: [32]"
RELEASES = {
    "convolutional": PARAMS.format(
        detectors="autoencoder, pca, energy_zscore", autoencoder=CONVOLUTIONAL,
        members="autoencoder, pca, energy_zscore", decides="ensemble",
    ),
    "dense": PARAMS.format(detectors="autoencoder", autoencoder=DENSE, members="autoencoder", decides="autoencoder"),
}  # fmt: skip


def make_plant(folder: Path, machines: int, days: int) -> None:
    """Releases of both kinds, and days at the full cadence, below a folder; what is there already stays."""
    settings = SimulateParams(
        machines=machines, days=PLANNED_DAYS, interval_seconds=3600, failures=max(4, machines // 10), seed=11
    )
    plan = plan_fleet(settings)
    if not (folder / "history").exists():
        simulate(settings, folder / "history", days=TRAIN_DAYS, plan=plan)
    for name, params in RELEASES.items():
        if not (folder / name / "data/release/manifest.json").exists():
            shutil.copytree(folder / "history", folder / name / "data/demo", dirs_exist_ok=True)
            build_release(folder / name, params, simulated=False)
    for day in range(days):
        landing = folder / "arrived"
        if len(list(landing.glob("spectra/*.parquet"))) <= day:
            fast = settings.model_copy(update={"interval_seconds": 10.0})
            simulate(fast, landing, from_day=TRAIN_DAYS + day, days=1, plan=plan)


def score(release: Path, landing: Path) -> dict[str, Any]:
    """One run of the scorer in this process, in an empty home: seconds, rows, peak memory."""
    with tempfile.TemporaryDirectory(prefix="hearken-", dir=landing.parent) as home:
        settings = Settings.of(landing, {"HEARKEN_HOME": home, "HEARKEN_LANDING": str(landing)})
        engine = open_database(settings.database_url)
        row = registry.register_release(engine, settings.releases, release / "data/release", commit="benchmark")
        registry.promote(engine, row.id)
        params = load_params(release / "params.yaml")
        begin, used = time.perf_counter(), time.process_time()
        summary = score_arrivals(engine, settings, params)
        seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - used
        engine.dispose()
        if summary.failures or summary.set_aside:
            sys.exit(f"scoring failed: {summary}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIB
    told = {"rows": summary.rows, "seconds": seconds, "cpu_seconds": cpu_seconds, "peak_rss_gib": peak}
    return told | {"opened": summary.opened, "paged": summary.paged}


def in_a_process(release: Path, landing: Path) -> dict[str, Any]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--child", str(release), str(landing)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"the scorer failed:\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}")
    told: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return told


def landing_of(folder: Path, days: int) -> Path:
    """A landing zone with the first days that arrived, as links to their files."""
    landing = folder / f"landing-{days}"
    shutil.rmtree(landing, ignore_errors=True)
    (landing / "spectra").mkdir(parents=True)
    for path in sorted((folder / "arrived/spectra").glob("*.parquet"))[:days]:
        os.link(path, landing / "spectra" / path.name)
    for name in ("fleet.yaml", "maintenance.parquet"):
        shutil.copyfile(folder / "arrived" / name, landing / name)
    return landing


def pyod_scorer(landing: Path, rows: int) -> tuple[Any, np.ndarray]:
    """PyOD's autoencoder of the dense release's layers, and rows of the first day in memory."""
    from pyod.models.auto_encoder import AutoEncoder

    path, parts, have = sorted((landing / "spectra").glob("*.parquet"))[0], [], 0
    for table in read_batches(path, ["spectrum"]):
        parts.append(np.log(np.maximum(spectra_view(table["spectrum"], 64), 1e-6)))
        have += len(parts[-1])
        if have >= rows:
            break
    rows_NF = np.concatenate(parts)[:rows]
    detector = AutoEncoder(hidden_neuron_list=[32, 12], epoch_num=1, batch_size=8192, verbose=0, random_state=1)
    detector.fit(rows_NF[:50_000])
    return detector, rows_NF


def against_pyod(folder: Path, rows: int, repeats: int) -> dict[str, Any]:
    """Rates of the dense release from Parquet and of PyOD in memory, in turns."""
    try:
        import pyod  # noqa: F401
    except ImportError:
        reason = "pyod is not installed: pip install pyod==3.6.7"
        return {"vs_pyod_in_memory": None, "null_reasons": {"vs_pyod_in_memory": reason}}
    landing = landing_of(folder, 1)
    detector, rows_NF = pyod_scorer(landing, rows)
    ours, theirs = [], []
    for _ in range(repeats):
        told = in_a_process(folder / "dense", landing)
        ours.append(told["rows"] / told["seconds"])
        begin = time.perf_counter()
        detector.decision_function(rows_NF)
        theirs.append(len(rows_NF) / (time.perf_counter() - begin))
    ratios = np.array(ours) / np.array(theirs)
    return {
        "vs_pyod_in_memory": round(float(np.median(ratios)), 3),
        "dense_rows_per_s": round(float(np.median(ours))),
        "pyod_rows_per_s": round(float(np.median(theirs))),
        "pyod_rows": len(rows_NF),
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machines", type=int, default=600)
    parser.add_argument("--days", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--pyod-rows", type=int, default=1_036_800)
    parser.add_argument("--keep", type=Path, help="folder that keeps fleet and releases for the next run")
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(score(*options.child)))
        return
    with tempfile.TemporaryDirectory(prefix="hearken-") as temporary:
        folder = (options.keep or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        make_plant(folder, options.machines, options.days)
        report(folder, options)


def report(folder: Path, options: argparse.Namespace) -> None:
    """Measure, print the table and the last line."""
    day = row_count(sorted((folder / "arrived/spectra").glob("*.parquet"))[0])
    one = [in_a_process(folder / "convolutional", landing_of(folder, 1)) for _ in range(options.repeats)]
    many = in_a_process(folder / "convolutional", landing_of(folder, options.days))
    seconds = float(np.median([run["seconds"] for run in one]))
    figures = {
        "rows_per_s": round(day / seconds),
        "fleet_day_s": round(seconds, 1),
        "fleet_day_cpu_s": round(float(np.median([run["cpu_seconds"] for run in one])), 1),
        "peak_rss_gib": round(max(run["peak_rss_gib"] for run in one), 2),
        "rows": day,
        "days": options.days,
        f"seconds_{options.days}_days": round(many["seconds"], 1),
        "seconds_per_day_ratio": round(many["seconds"] / options.days / seconds, 3),
        f"peak_rss_gib_{options.days}_days": round(many["peak_rss_gib"], 2),
        "alerts_opened": many["opened"],
        "pages": many["paged"],
        **against_pyod(folder, options.pyod_rows, options.repeats),
        "repeats": options.repeats,
        "goals": GOALS,
    }
    table = Table("figure", "measured", "goal", title="From the landing zone to score log and alerts")
    for name, value in figures.items():
        if name != "goals":
            table.add_row(name, str(value), str(GOALS.get(name, "")))
    Console().print(table)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
