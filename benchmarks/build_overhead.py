"""What a build costs beside its stages: wall time over the sum of the stages' own compute, and a build with no change.

Each repeat is a whole build of this checkout in an empty home (nothing cached), then one with nothing changed, each in
a process of its own, from the start of the interpreter to its end. A stage's own compute is what it measures itself:
its work without the start of Python and imports.
Usage: python benchmarks/build_overhead.py [--repeats 5] [--set simulate.machines=8 ...]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

from flows.settings import Settings, child_environment

ROOT = Path(__file__).parents[1]
GOAL_RATIO, GOAL_NOOP_S = 1.5, 20.0
PROGRAM = """
import json, sys
from flows.build import run_build
overrides = json.loads(sys.argv[2])
result = run_build(sys.argv[1], clone=True, name="benchmark", params_overrides=overrides, copy=False, show=False)
stages = {stage.stage: [stage.outcome.value, stage.seconds, stage.compute_seconds] for stage in result.stages}
with open(sys.argv[3], "w") as out:
    json.dump({"compute_s": result.compute_seconds, "changed": result.changed, "stages": stages}, out)
"""


def timed_build(home: Path, overrides: dict[str, object]) -> dict[str, object]:
    """One build in a process of its own."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "HEARKEN_"))}
    environment = child_environment(Settings.of(ROOT, own | {"HEARKEN_HOME": str(home)}), own)
    out = home / "result.json"
    command = [sys.executable, "-c", PROGRAM, str(ROOT), json.dumps(overrides), str(out)]
    started = time.monotonic()
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    wall = time.monotonic() - started
    if result.returncode:
        sys.exit(f"the build failed:\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}")
    return {"wall_s": wall, **json.loads(out.read_text())}


def quartiles(values: list[float]) -> list[float]:
    """25 %, 50 % and 75 %."""
    return [round(float(value), 3) for value in np.quantile(values, [0.25, 0.5, 0.75])]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of params.yaml")
    arguments = parser.parse_args()
    overrides = {name: yaml.safe_load(value) for name, _, value in (item.partition("=") for item in arguments.set)}
    table = Table("repeat", "build, s", "own compute, s", "ratio", "nothing changed, s", title="A build and its stages")
    ratios, noops, walls, computes = [], [], [], []
    stages: dict[str, list[object]] = {}
    for repeat in range(arguments.repeats):
        with tempfile.TemporaryDirectory(prefix="hearken-benchmark-") as folder:
            full, noop = timed_build(Path(folder), overrides), timed_build(Path(folder), overrides)
        if noop["changed"]:
            sys.exit("the second build ran a stage")
        walls.append(float(str(full["wall_s"])))
        computes.append(float(str(full["compute_s"])))
        ratios.append(walls[-1] / computes[-1])
        noops.append(float(str(noop["wall_s"])))
        stages = dict(full["stages"])  # type: ignore[call-overload]
        cells = (walls[-1], computes[-1], ratios[-1], noops[-1])
        table.add_row(str(repeat + 1), *(f"{cell:.2f}" for cell in cells))
    console = Console()
    console.print(table)
    last = Table("stage", "wall, s", "own compute, s", title="Stages of the last build")
    for name, (_, wall, compute) in stages.items():
        last.add_row(name, f"{wall:.2f}", "-" if compute is None else f"{compute:.2f}")
    console.print(last)
    figures = {
        "overhead_ratio": quartiles(ratios)[1],
        "overhead_ratio_quartiles": quartiles(ratios),
        "noop_s": quartiles(noops)[1],
        "noop_s_quartiles": quartiles(noops),
        "build_s": quartiles(walls)[1],
        "compute_s": quartiles(computes)[1],
        "repeats": arguments.repeats,
        "goals": {"overhead_ratio": GOAL_RATIO, "noop_s": GOAL_NOOP_S},
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
