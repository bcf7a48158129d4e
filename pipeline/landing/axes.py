"""Rows that hold one axis each, joined by machine and time into rows that hold all of them.

Shape legend: N rows, G joined rows, F bins of one axis, A axes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.errors import ContractError
from pipeline.schema import codes_and_names, spectra_column, spectra_view, times_us


def join_axes(table: pa.Table, axes: Sequence[str], where: object) -> tuple[pa.Table, int]:
    """One row per machine and time, its spectrum axis by axis; and how many rows lack an axis (NaN there).

    Context is that of the first row; of two rows of one axis the first counts.

    Raises:
        ContractError: an axis that is not among `axes`.

    >>> table = pa.table({"machine_id": ["m", "m"], "timestamp": pa.array([0, 0], pa.timestamp("us", "UTC")),
    ...     "axis": ["y", "x"], "spectrum": pa.array([[3, 4], [1, 2]], pa.list_(pa.float32(), 2))})
    >>> join_axes(table, ["x", "y"], "example")[0]["spectrum"].to_pylist()
    [[1.0, 2.0, 3.0, 4.0]]
    """
    bins = table.schema.field("spectrum").type.list_size
    codes, names = codes_and_names(table["axis"])
    unknown = [name for name in names if name not in axes]
    if unknown:
        raise ContractError.of("axis", got=repr(unknown[0]), expected=f"one of {', '.join(axes)}", where=where)
    place_N = np.array([list(axes).index(name) for name in names] or [0])[codes]
    machine_N, _ = codes_and_names(table["machine_id"])
    keys = pd.MultiIndex.from_arrays([machine_N, times_us(table["timestamp"])])
    group_N, unique = pd.factorize(keys)
    first_G = np.zeros(len(unique), np.int64)
    first_G[group_N[::-1]] = np.arange(len(group_N))[::-1]
    _, kept = np.unique(group_N * len(axes) + place_N, return_index=True)
    joined_GAF = np.full((len(unique), len(axes), bins), np.nan, np.float32)
    joined_GAF[group_N[kept], place_N[kept]] = spectra_view(table["spectrum"], bins)[kept]
    missing = len(unique) * len(axes) - len(kept)
    rest = table.drop_columns(["spectrum", "axis"]).take(pa.array(first_G))
    lacking = int((np.bincount(group_N[kept], minlength=len(unique)) < len(axes)).sum()) if missing else 0
    return rest.append_column("spectrum", spectra_column(joined_GAF.reshape(len(unique), -1))), lacking
