"""The columns in which a fleet's present is compared with a release's reference: few, and relative to each machine.

Sixty-four correlated bins would raise an alarm each; eight bands, the shape and the scores say the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import pyarrow as pa

from pipeline.detectors import Detector
from pipeline.ensemble import TailTables
from pipeline.measure import score_rows
from pipeline.rows import Rows
from pipeline.schema import BASELINES, MACHINE, FloatNF, dictionary_column, time_column

BANDS = 8


def reference_table(rows: Rows, detectors: Mapping[str, Detector], tails: TailTables) -> pa.Table:
    """machine_id, timestamp, baseline, then one float column per compared quantity.

    Rows whose machine, epoch or condition the release does not know well are described by a wider baseline, marked.
    """
    every = list(detectors.values())
    first = next((detector for detector in every if detector.matched), every[0])  # relative to each machine itself
    code = first.baselines.codes(rows.keys)
    relative = first.relative(rows.spectra, code).cpu().numpy()
    columns = shape_columns(relative, rows.spectra)
    scored = score_rows(detectors, rows, TailTables(tails.tables))
    for name, comparable_N in scored.scores.items():
        columns[f"log_score_{name}"] = np.log(np.maximum(comparable_N, 1e-12))
    table = pa.table(
        {
            "machine_id": pa.DictionaryArray.from_arrays(pa.array(rows.machine), pa.array(list(rows.machines))).cast(
                MACHINE
            ),
            "timestamp": time_column(rows.time_us),
            "baseline": dictionary_column(first.baselines.states(code), BASELINES),
        }
    )
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values.astype(np.float64)))
    return table


def shape_columns(relative_NG: np.ndarray, spectra_NF: FloatNF) -> dict[str, np.ndarray]:
    """Mean of each of eight bands and of the energy relative to the machine, centroid, and share of the top bin."""
    bins = spectra_NF.shape[1]
    edges = np.unique(np.linspace(0, bins, min(BANDS, bins) + 1).astype(int))
    columns = {
        f"band_{index + 1}": relative_NG[:, low:high].mean(1) for index, (low, high) in enumerate(pairwise(edges))
    }
    total = np.maximum(np.abs(spectra_NF).sum(1), 1e-30)
    columns["energy"] = relative_NG[:, -1]
    columns["centroid"] = np.abs(spectra_NF) @ np.arange(bins) / total
    columns["top_share"] = np.abs(spectra_NF).max(1) / total
    return columns


def compared_columns(table: pa.Table) -> list[str]:
    """Names of the compared quantities in a reference table."""
    return [name for name in table.column_names if name not in ("machine_id", "timestamp", "baseline")]
