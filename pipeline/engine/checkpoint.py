"""The state of a training after an epoch, on disk: a killed run goes on from it to the same bits.

One safetensors file: weights, best weights, the optimiser's state, and as JSON in its metadata the epoch, the history
and the fingerprint of everything that decides the result. Order of rows and noise follow from the seed and the epoch,
the learning rate from the rows seen: generators and schedule have no state of their own.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from pipeline.engine.processes import Processes
from pipeline.engine.rows import FeatureRows
from pipeline.engine.run import Run
from pipeline.params import OptimiserParams
from pipeline.store import atomic_file

Tensors = dict[str, torch.Tensor]
METADATA = "hearken"
PROBED_ROWS = 4096  # of which every bit counts in the fingerprint; all rows count in its sums


@dataclass
class State:
    """Where a training stands."""

    epoch: int = 0  # the last that is complete
    best: float = math.inf  # validation loss
    best_epoch: int = 0
    batch_rows: int = 0
    part_rows: int = 0  # of validation
    stopped: str = ""  # why there is no further epoch
    epochs: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def fingerprint(
    network: nn.Module, rows: FeatureRows, validation: torch.Tensor, settings: OptimiserParams, run: Run
) -> str:
    """Hex SHA-256 of what decides the result: layers and first weights, settings, seed, machine, data, code.

    All rows are summed, and PROBED_ROWS of them read bit by bit: hashing millions of rows would take longer than an
    epoch on a GPU.
    """
    digest = hashlib.sha256()
    facts = [
        settings.model_dump(mode="json"),
        [run.seed, run.device.type, run.precision, run.compile, run.fine_tunes, run.key],
        [torch.__version__, torch.get_num_threads(), repr(network)],
        Processes.here().count,
        [len(rows), rows.bins, len(validation), rows.starts_K[:2].tolist(), len(rows.starts_K)],
    ]
    digest.update(json.dumps(facts, sort_keys=True).encode())
    for name, value in network.state_dict().items():
        digest.update(name.encode() + _bytes(value))
    for part in rows.parts():
        digest.update(_bytes(part.sum(0, dtype=torch.float64)))
    digest.update(_bytes(rows.features[:: max(1, len(rows) // PROBED_ROWS)]))
    if rows.window is not None:
        digest.update(_bytes(rows.window.sum(0)))
    digest.update(_bytes(validation.sum(0, dtype=torch.float64)))
    return digest.hexdigest()


def _bytes(value: torch.Tensor) -> bytes:
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def save(
    folder: Path, mark: str, state: State, network: nn.Module, best: Tensors, optimiser: torch.optim.Optimizer
) -> None:
    """Write the checkpoint atomically."""
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in best.items()}
    for index, values in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{key}": value for key, value in values.items() if value is not None}
    own = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    facts = asdict(state) | {"fingerprint": mark, "best": state.best if math.isfinite(state.best) else None}
    with atomic_file(checkpoint_file(folder)) as file:
        save_file(own, file, metadata={METADATA: json.dumps(facts)})  # figures keep their order


def resume(
    folder: Path, mark: str, network: nn.Module, optimiser: torch.optim.Optimizer, run: Run
) -> tuple[State, Tensors] | None:
    """State and best weights of the checkpoint, loaded into network and optimiser; None where the training starts anew.

    A checkpoint that is damaged, or of other parameters, data or code, is not used, and `run.say` is told.
    """
    path = checkpoint_file(folder)
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt", device=str(run.device)) as file:
            facts = json.loads(file.metadata()[METADATA])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except Exception as error:  # noqa: BLE001  (safetensors raises its own type; a checkpoint is only a saving of time)
        run.say(f"the checkpoint {path} is damaged ({error}); training starts again")
        return None
    if facts.pop("fingerprint") != mark:
        run.say(f"the checkpoint {path} is of other parameters, data or code; training starts again")
        return None
    facts["best"] = math.inf if facts["best"] is None else facts["best"]
    network.load_state_dict(tensors_below(tensors, "network."))
    load_optimiser(optimiser, tensors_below(tensors, "optimiser."))
    return State(**facts), tensors_below(tensors, "best.")


def load_optimiser(optimiser: torch.optim.Optimizer, values: Tensors) -> None:
    """Put the state of each parameter (`<index>.<name>`) back."""
    state: dict[int, dict[str, Any]] = {}
    for name, value in values.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def discard(folder: Path | None) -> None:
    """Remove the checkpoints of a training that has been saved."""
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def checkpoint_file(folder: Path) -> Path:
    """The one file of a checkpoint."""
    return folder / "checkpoint.safetensors"


def tensors_below(tensors: Tensors, prefix: str) -> Tensors:
    """The tensors whose names begin with a prefix, without it.

    >>> sorted(tensors_below({"network.a": torch.zeros(1), "best.a": torch.zeros(1)}, "network."))
    ['a']
    """
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
