"""Two processes that train one network, as torchrun starts them, do what one does at the same global batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from pipeline.store import read_json

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = 1e-3  # of a loss: parts of a batch are summed in another order, and every step starts from the last
SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[3])
from pathlib import Path
import torch
from test_neural import CPU, codes, make, plant
from pipeline.detectors import Fitting, TrainingRows
from pipeline.engine import joined
from pipeline.errors import UserError

torch.set_num_threads(1)
x, later = plant(1003), plant(300, seed=9)
settings = json.loads(sys.argv[2])
with joined() as processes:
    detector = make("autoencoder", **settings)
    try:
        history = detector.fit(TrainingRows(x, codes(x), later, codes(later)), Fitting(3, CPU))
    except UserError as error:
        history = {"error": str(error)}
    if processes.leads:
        Path(sys.argv[1]).write_text(json.dumps(history | {"processes": processes.count}))
"""
SETTINGS = {"optimiser": {"batch_rows": 64, "max_epochs": 4, "learning_rate": 0.01}}


def torchrun(processes: int, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*launcher, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def history_of(processes: int, folder: Path, **changes: object) -> dict:
    (folder / "script.py").write_text(SCRIPT)
    out = folder / f"{processes}.json"
    done = torchrun(processes, folder, "script.py", str(out), json.dumps(SETTINGS | changes), str(ROOT / "tests"))
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(read_json(out))


def test_two_have_the_loss_curve_of_one(tmp_path: Path) -> None:
    alone, together = (history_of(count, tmp_path) for count in (1, 2))
    assert (alone["processes"], together["processes"]) == (1, 2)
    for figure in ("train_loss", "validation_loss"):
        curves = [[epoch[figure] for epoch in history["epochs"]] for history in (alone, together)]
        assert len(curves[0]) == 4
        np.testing.assert_allclose(curves[1], curves[0], rtol=TOLERANCE)
    assert alone["best_epoch"] == together["best_epoch"]


def test_an_objective_of_whole_batches_is_refused(tmp_path: Path) -> None:
    told = history_of(2, tmp_path, sparse={})["error"]
    assert "got 2 processes with train.autoencoder.sparse" in told


def test_the_stage_writes_once(built: Path, tmp_path: Path) -> None:
    import shutil

    for name in ("raw", "status", "base_release"):
        if (built / "data" / name).exists():
            shutil.copytree(built / "data" / name, tmp_path / "data" / name)
    (tmp_path / "params.yaml").write_text((built / "params.yaml").read_text())
    done = torchrun(2, tmp_path, "-m", "pipeline.train", "autoencoder")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("fitted on") == 1
    histories = [read_json(folder / "data/models/autoencoder/history.json") for folder in (built, tmp_path)]
    losses = [[epoch["validation_loss"] for epoch in history["epochs"]] for history in histories]
    np.testing.assert_allclose(losses[1], losses[0], rtol=5 * TOLERANCE)
    assert load_file(tmp_path / "data/models/autoencoder/weights.safetensors")
