"""Every part streamed through the detectors; scores are kept, spectra are not."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from harbor_fleet.plan import Part, Plan, plan
from harbor_fleet.plant import DAY, Heard, Plant, Setup, Stretch, in_order
from harbor_fleet.training import Clock, say, settings_of, train_all
from pipeline.detectors import Detector
from pipeline.errors import UserError
from pipeline.measure import load_detectors, measure
from pipeline.rows import RowKeys, Rows
from pipeline.schema import (
    FloatNF,
    IntN,
)
from pipeline.simulation import physics
from pipeline.store import atomic_folder, read_json, write_json

PIECE_ROWS = 200_000
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Scores:
    """Raw scores per detector of N rows, and which stretch and `Baseline` each row has; time is the circle's.

    `wider` is as in `Measured`, of calibration rows alone.
    """

    stretch_N: npt.NDArray[np.int32]
    time_us_N: IntN
    state_N: npt.NDArray[np.int8]
    raw: Mapping[str, Float32]
    wider: Mapping[str, FloatNF] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write a file per array into a folder."""
        arrays: dict[str, npt.NDArray[Any]] = {
            "stretch": self.stretch_N,
            "time_us": self.time_us_N,
            "state": self.state_N,
        }
        arrays |= {f"raw.{name}": values for name, values in self.raw.items()}
        arrays |= {f"wider.{name}": values for name, values in self.wider.items()}
        for name, values in arrays.items():
            np.save(folder / f"{name}.npy", values)

    @classmethod
    def load(cls, folder: Path) -> Scores:
        """The inverse of `save`."""
        arrays = {path.stem: np.load(path) for path in sorted(folder.glob("*.npy"))}
        groups = {
            group: {name.removeprefix(group): values for name, values in arrays.items() if name.startswith(group)}
            for group in ("raw.", "wider.")
        }
        return cls(arrays["stretch"], arrays["time_us"], arrays["state"], groups["raw."], groups["wider."])


def keys_of(plant: Plant, heard: Sequence[Heard], stretches: Sequence[Stretch]) -> RowKeys:
    """Keys of the rows of some stretches."""
    machine = np.repeat([stretch.machine for stretch in stretches], [len(rows) for rows in heard]).astype(np.int32)
    epoch = np.concatenate([rows.epoch_N for rows in heard])
    condition = np.concatenate([rows.condition_N for rows in heard])
    return RowKeys(plant.history.names, machine, epoch, physics.REGIMES, condition)


def circle_time(plant: Plant, rows: Heard, stretch: Stretch) -> IntN:
    """Times (N,) of a stretch's rows in its circle."""
    return np.asarray(rows.time_us_N - plant.zero_us - round(stretch.begin * DAY) + round(stretch.offset * DAY))


def score_part(plant: Plant, detectors: Mapping[str, Detector], what: str, part: Part, clock: Clock) -> Scores:
    """Stream a part through all detectors; spectra are dropped piece by piece."""
    begin, done, last_said = time.perf_counter(), 0, time.perf_counter()
    stretch_parts, time_parts, state_parts = list[Any](), list[Any](), list[Any]()
    raw_parts: dict[str, list[Float32]] = {name: [] for name in detectors}
    heard, places = list[Heard](), list[int]()

    def flush() -> None:
        nonlocal done
        if not sum(map(len, heard)):
            return
        mine = [part.stretches[place] for place in places]
        keys = keys_of(plant, heard, mine)
        spectra = np.concatenate([rows.spectra_NF for rows in heard])
        code = next(iter(detectors.values())).baselines.codes(keys)  # the baselines of one build are all the same
        stretch_parts.append(np.repeat(np.array(places, np.int32), [len(rows) for rows in heard]))
        time_parts.extend(circle_time(plant, rows, stretch) for rows, stretch in zip(heard, mine, strict=True))
        state_parts.append(next(iter(detectors.values())).baselines.states(code))
        for name, detector in detectors.items():
            with clock.phase(f"score {name}"):
                raw_parts[name].append(detector.score(spectra, code).astype(np.float32))
        done += len(spectra)
        heard.clear()
        places.clear()

    for place, rows in enumerate(in_order(part.stretches, plant.hear)):
        heard.append(rows)
        places.append(place)
        if sum(map(len, heard)) >= PIECE_ROWS:
            flush()
            if time.perf_counter() - last_said > 10:
                last_said = time.perf_counter()
                say(f"{what}: {place + 1} of {len(part.stretches)} stretches", last_said - begin, done)
    flush()
    seconds = time.perf_counter() - begin
    clock.seconds[f"stream {what}"] = seconds
    say(f"{what}: {done:,} rows", seconds, done)
    if not done:
        raise UserError(f"{what}: got no rows, expected some; more stretches or a shorter interval give some.")
    raw = {name: np.concatenate(parts) for name, parts in raw_parts.items()}
    return Scores(np.concatenate(stretch_parts), np.concatenate(time_parts), np.concatenate(state_parts), raw)


def score_calibration(plant: Plant, detectors: Mapping[str, Detector], what: str, part: Part, clock: Clock) -> Scores:
    """Score the calibration rows, some of them also against wider baselines, as a build does."""
    begin = time.perf_counter()
    heard: list[Heard] = list(in_order(part.stretches, plant.hear))
    keys = keys_of(plant, heard, part.stretches)
    spectra = np.concatenate([rows.spectra_NF for rows in heard])
    time_us = np.concatenate([rows.time_us_N for rows in heard])
    empty, status = np.empty((len(spectra), 0), np.float32), pa.table({})
    rows = Rows(
        empty, np.asarray(keys.machine_N), keys.machines, np.asarray(keys.epoch_N), np.asarray(keys.condition_N),
        keys.conditions, time_us, status,
    )  # fmt: skip
    places = (slice(first, min(first + PIECE_ROWS, len(spectra))) for first in range(0, len(spectra), PIECE_ROWS))
    measured = measure(detectors, rows, ((place, spectra[place]) for place in places))
    clock.seconds[f"stream {what}"] = time.perf_counter() - begin
    say(f"{what}: {len(spectra):,} rows", clock.seconds[f"stream {what}"], len(spectra))
    stretch = np.repeat(np.arange(len(heard), dtype=np.int32), [len(each) for each in heard])
    raw = {name: values.astype(np.float32) for name, values in measured.raw.items()}
    return Scores(stretch, time_us, measured.baseline, raw, measured.wider)


@dataclass(frozen=True)
class ScoredFleet:
    """A fleet's plan and the scores of its parts, and how they came about."""

    setup: Setup
    plan: Plan
    scores: Mapping[str, Scores]
    facts: Mapping[str, Any]


def scored_fleet(setup: Setup, cache: Path | None) -> ScoredFleet:
    """Simulate, train and score a fleet; what the cache already holds of it is not made again."""
    plant = Plant(setup)
    planned = plan(plant)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        home = Path(scratch) / "fleet" if cache is None else cache / f"fleet-{setup.seed}-{setup.key()}"
        trained, params = home / "trained", settings_of(setup)
        if not trained.exists():
            clock, build = Clock(), Path(scratch) / "build"
            facts = train_all(plant, planned.training, params, build, clock)
            with atomic_folder(trained) as folder:
                shutil.copytree(build / "data/models", folder / "data/models")
                write_json(folder / "facts.json", facts | {"seconds": clock.seconds})
            shutil.rmtree(build)
        detectors: dict[str, Detector] = {}
        for what, part in planned.parts.items():
            if not (home / what).exists():
                clock, detectors = Clock(), detectors or load_detectors(trained, setup.detectors, params.train.device)
                score = score_calibration if what == "calibration" else score_part
                scored = score(plant, detectors, what, part, clock)
                with atomic_folder(home / what) as folder:
                    scored.save(folder)
                    write_json(folder / "facts.json", clock.seconds)
        scores = {what: Scores.load(home / what) for what in planned.parts}
        facts = read_json(trained / "facts.json")
        for what in planned.parts:
            for phase, seconds in read_json(home / what / "facts.json").items():
                facts["seconds"][phase] = facts["seconds"].get(phase, 0.0) + seconds
    rows = sum(len(part.time_us_N) for what, part in scores.items() if what != "calibration")
    facts["scored_rows_per_s"] = {name: round(rows / facts["seconds"][f"score {name}"]) for name in setup.detectors}
    facts["seconds"] = {phase: round(seconds, 1) for phase, seconds in facts["seconds"].items()}
    return ScoredFleet(setup, planned, scores, facts)
