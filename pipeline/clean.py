"""Statistical removal of what the log tags healthy and is not, in train and validation rows only.

Contaminated rows pull a model towards the fault. So principal components are fitted, refitted without the rows that
they explain worst, and whole episodes that the refit still explains badly are removed, up to a cap.

Shape legend: N rows, F bins, G = F + 1 features, C components, E episodes (blocks of hours of one machine).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.detectors.baseline import BaselineTable, fit_baselines, spectra_features
from pipeline.errors import ContractError, run_reporting_errors
from pipeline.params import CleanParams, load_params
from pipeline.rows import RowKeys, has_role, load_rows
from pipeline.schema import (
    CLEAN_SCHEMA,
    KEY_FIELDS,
    MICROSECONDS_PER_HOUR,
    SPLIT_SCHEMA,
    BoolN,
    FloatN,
    FloatNF,
    IntN,
    Role,
    dictionary_column,
    load_fleet_spec,
)
from pipeline.store import read_table, write_json, write_table

REASON = "residual"
FIT_ROWS = 200_000
CHUNK_ROWS = 65_536
MIN_LOG_SPREAD = 0.05  # in a quiet fleet 5 % more error is no contamination, however rare
MAD_OF_NORMAL = 1.4826
LISTED = 10
Codes = npt.NDArray[np.integer]


@dataclass(frozen=True)
class Removal:
    """What is removed of N rows; E episodes, worst first."""

    removed_N: BoolN
    error_N: npt.NDArray[np.float32]  # robust deviations of the log error, over all rows
    episode_machine_E: npt.NDArray[np.int64]
    episode_start_E: IntN  # microseconds since 1970
    episode_error_E: FloatN  # robust deviations of the median log error, over all episodes
    episode_rows_E: IntN
    removed_episodes: int  # the first so many
    cap_hit: bool


def remove_contaminated(
    spectra_NF: FloatNF,
    machine_N: Codes,
    epoch_N: Codes,
    time_us_N: IntN,
    params: CleanParams,
    seed: int,
    *,
    log: bool = True,
) -> Removal:
    """Find episodes that a trimmed model of all rows explains badly.

    Args:
        spectra_NF: train and validation rows, finite.
        machine_N: machine codes.
        epoch_N: baseline epochs.
        time_us_N: microseconds since 1970.
        params: clean section.
        seed: of the sample that the components are fitted on.
        log: magnitudes are seen in log (kind `spectrum`).

    >>> rng = np.random.default_rng(0)
    >>> spectra = np.exp(0.1 * rng.normal(size=(400, 8))).astype(np.float32)
    >>> spectra[96:102, 3] *= 20  # six hours
    >>> hours = np.arange(400) * 3_600_000_000
    >>> removal = remove_contaminated(spectra, np.zeros(400, int), np.zeros(400, int), hours, CleanParams(), 0)
    >>> np.flatnonzero(removal.removed_N)[[0, -1]].tolist(), removal.cap_hit
    ([96, 101], False)
    """
    log_error_N = _trimmed_errors(spectra_NF, machine_N, epoch_N, params, seed, log)
    machine_E, start_E, median_E, rows_E, episode_N = _episodes(log_error_N, machine_N, time_us_N, params)
    error_E = _robust_deviations(median_E)
    order = np.lexsort((start_E, machine_E, -error_E))
    contaminated = int((error_E > params.remove_above).sum())
    limit = params.max_removed_share * len(machine_N)
    removed = int(np.searchsorted(np.cumsum(rows_E[order])[:contaminated], limit, side="right"))
    taken_E = np.zeros(len(error_E), bool)
    taken_E[order[:removed]] = True
    return Removal(
        removed_N=taken_E[episode_N],
        error_N=_robust_deviations(log_error_N).astype(np.float32),
        episode_machine_E=machine_E[order],
        episode_start_E=start_E[order],
        episode_error_E=error_E[order],
        episode_rows_E=rows_E[order],
        removed_episodes=removed,
        cap_hit=removed < contaminated,
    )


def _names(machine_N: Codes) -> list[str]:
    return [str(code) for code in range(int(machine_N.max(initial=-1)) + 1)]


def _sample(count: int, wanted: int, seed: int) -> IntN:
    """Sorted row numbers, without repeats."""
    if count <= wanted:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, wanted, replace=False))


@dataclass(frozen=True)
class _Model:
    """Baselines of machines and epochs, and the fleet's components of what is relative to them.

    `whiten_GG` turns a centred row into one whose squared length is T squared plus Q over the variance that is left:
    the negative log likelihood of probabilistic components (Tipping and Bishop 1999, eq. 8), but for a constant. Q
    alone would miss a fault that is common enough to have become a component itself.
    """

    baselines: BaselineTable
    mean_G: FloatN
    whiten_GG: FloatN

    @classmethod
    def fit(
        cls, spectra_NF: FloatNF, machine_N: Codes, epoch_N: Codes, names: Sequence[str], wanted: int, log: bool
    ) -> _Model:
        keys = RowKeys.of(names, machine_N, epoch_N)
        baselines = fit_baselines(spectra_NF, keys, log=log)
        relative_NG = _relative(spectra_NF, baselines.codes(keys), baselines)
        mean_G = relative_NG.mean(axis=0, dtype=np.float64)
        centred_NG = relative_NG - mean_G.astype(np.float32)
        values_G, vectors_GG = np.linalg.eigh((centred_NG.T @ centred_NG).astype(np.float64) / len(centred_NG))
        left = max(1, len(values_G) - wanted)  # eigh sorts from the smallest
        values_G[:left] = values_G[:left].mean()
        values_G = np.maximum(values_G, max(1e-6 * values_G[-1], 1e-12))
        return cls(baselines, mean_G, vectors_GG / np.sqrt(values_G))

    def log_error(self, spectra_NF: FloatNF, machine_N: Codes, epoch_N: Codes, names: Sequence[str]) -> FloatN:
        """Log of the root mean square of the whitened row (N,); 0 is what a typical row has."""
        error_N = np.empty(len(machine_N))
        code_N = self.baselines.codes(RowKeys.of(names, machine_N, epoch_N))
        for begin in range(0, len(machine_N), CHUNK_ROWS):
            part = slice(begin, begin + CHUNK_ROWS)
            centred_NG = _relative(spectra_NF[part], code_N[part], self.baselines) - self.mean_G.astype(np.float32)
            error_N[part] = np.mean(np.square(centred_NG @ self.whiten_GG.astype(np.float32)), axis=1)
        log_error_N: FloatN = 0.5 * np.log(np.maximum(error_N, 1e-12))
        return log_error_N


def _relative(spectra_NF: FloatNF, code_N: Codes, baselines: BaselineTable) -> npt.NDArray[np.float32]:
    """(N, G) features in robust deviations from each row's own baseline."""
    features = spectra_features(spectra_NF, baselines.floor, baselines.log)
    relative: npt.NDArray[np.float32] = (features - baselines.location[code_N]) / baselines.scale[code_N]
    return relative


def _trimmed_errors(
    spectra_NF: FloatNF, machine_N: Codes, epoch_N: Codes, params: CleanParams, seed: int, log: bool
) -> FloatN:
    """Log error of each row (N,) under a model refitted without the rows that the first one explains worst.

    Each machine and epoch loses the same share and is measured from its own median error: some machines are louder in
    what no component explains, healthy or not. Baselines are refitted too, for a fault in more than 2.5 % of a
    machine's rows has widened the first one.
    """
    names = _names(machine_N)
    rows = _sample(len(machine_N), FIT_ROWS, seed)
    spectra, machine, epoch = spectra_NF[rows], machine_N[rows], epoch_N[rows]
    key_N = machine_N.astype(np.int64) * (int(epoch_N.max()) + 1) + epoch_N
    rough = _Model.fit(spectra, machine, epoch, names, params.components, log)
    first = rough.log_error(spectra, machine, epoch, names)
    kept = first <= _of_group(first, key_N[rows], params.trim_percentile)
    model = _Model.fit(spectra[kept], machine[kept], epoch[kept], names, params.components, log)
    error_N = model.log_error(spectra_NF, machine_N, epoch_N, names)
    return error_N - _of_group(error_N, key_N, 50.0)


def _of_group(values: FloatN, key_N: IntN, percentile: float) -> FloatN:
    """Each row's group's percentile (N,); an even median is the mean of the middle two."""
    _, group_N, count_K = np.unique(key_N, return_inverse=True, return_counts=True)
    ordered = values[np.lexsort((values, group_N))]
    begin_K = np.cumsum(count_K) - count_K
    place_K = (count_K - 1) * percentile / 100
    below_K, above_K = np.floor(place_K).astype(np.int64), np.ceil(place_K).astype(np.int64)
    percentile_K: FloatN = (ordered[begin_K + below_K] + ordered[begin_K + above_K]) / 2
    return percentile_K[group_N]


def _episodes(
    log_error_N: FloatN, machine_N: Codes, time_us_N: IntN, params: CleanParams
) -> tuple[npt.NDArray[np.int64], IntN, FloatN, IntN, IntN]:
    """Machine, start, median log error and rows of each episode (E,), and the episode of each row (N,)."""
    block = max(1, round(params.episode_hours * MICROSECONDS_PER_HOUR))
    block_N = time_us_N // block
    first = int(block_N.min())
    blocks = int(block_N.max()) - first + 1
    keys_E, episode_N, rows_E = np.unique(
        machine_N.astype(np.int64) * blocks + (block_N - first), return_inverse=True, return_counts=True
    )
    median_E = np.empty(len(keys_E))
    median_E[episode_N] = _of_group(log_error_N, episode_N, 50.0)
    return keys_E // blocks, (keys_E % blocks + first) * block, median_E, rows_E, episode_N


def _robust_deviations(values: FloatN) -> FloatN:
    """Distance from the median in scaled median absolute deviations."""
    centre = np.median(values)
    spread = MAD_OF_NORMAL * np.median(np.abs(values - centre))
    deviations: FloatN = (values - centre) / max(float(spread), MIN_LOG_SPREAD)
    return deviations


def clean_table(split: pa.Table, looked_at_N: BoolN, removal: Removal) -> pa.Table:
    """CLEAN_SCHEMA: all rows of `split` in its order; the error is null where nobody looked."""
    count = split.num_rows
    removed_N, error_N = np.zeros(count, bool), np.full(count, np.nan, np.float32)
    removed_N[looked_at_N], error_N[looked_at_N] = removal.removed_N, removal.error_N
    columns = [
        *(split[field.name] for field in KEY_FIELDS),
        pa.array(error_N, mask=~looked_at_N),
        pa.array(removed_N),
        dictionary_column(removed_N.astype(np.int16), ["", REASON]),
    ]
    return pa.Table.from_arrays(columns, schema=CLEAN_SCHEMA)


def clean_metrics(removal: Removal, machine_N: Codes, machines: Sequence[str], params: CleanParams) -> dict[str, Any]:
    """What was looked at, what was removed, where, and whether the cap stopped it."""
    counts = np.bincount(machine_N[removal.removed_N], minlength=len(machines))
    most = sorted(range(len(machines)), key=lambda code: (-counts[code], machines[code]))[:LISTED]
    looked_at, removed = len(machine_N), int(removal.removed_N.sum())
    worst = [
        {
            "machine": machines[int(removal.episode_machine_E[index])],
            "start": _iso(int(removal.episode_start_E[index])),
            "end": _iso(int(removal.episode_start_E[index]) + round(params.episode_hours * MICROSECONDS_PER_HOUR)),
            "error": round(float(removal.episode_error_E[index]), 3),
            "rows": int(removal.episode_rows_E[index]),
            "removed": index < removal.removed_episodes,
        }
        for index in range(min(LISTED, len(removal.episode_error_E)))
    ]
    return {
        "looked_at": looked_at,
        "removed": removed,
        "share": round(removed / looked_at, 6),
        "cap_hit": removal.cap_hit,
        "episodes": len(removal.episode_error_E),
        "removed_episodes": removal.removed_episodes,
        "by_machine": {machines[code]: int(counts[code]) for code in most if counts[code]},
        "worst_episodes": worst,
    }


def _iso(time_us: int) -> str:
    moment = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=time_us)
    return moment.isoformat(timespec="seconds")


def main() -> None:
    """Read data/raw and the split; write data/status/clean.parquet and metrics/cleaning.json."""
    raw, params = Path("data/raw"), load_params()
    fleet = load_fleet_spec(raw / "fleet.yaml")
    split = read_table("data/status/split.parquet", schema=SPLIT_SCHEMA)
    looked_at_N = has_role(split, Role.TRAIN, Role.VALIDATION)
    if not looked_at_N.any():
        got, where = "none", "data/status/split.parquet"
        raise ContractError.of("train rows", got=got, expected="at least one", where=where)
    rows = load_rows(raw, split, looked_at_N, fleet.bins)
    removal = remove_contaminated(
        rows.spectra, rows.machine, rows.epoch, rows.time_us, params.clean, params.seed, log=fleet.kind == "spectrum"
    )
    write_table("data/status/clean.parquet", clean_table(split, looked_at_N, removal))
    write_json("metrics/cleaning.json", clean_metrics(removal, rows.machine, rows.machines, params.clean))


if __name__ == "__main__":
    run_reporting_errors(main)
