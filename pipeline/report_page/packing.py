"""Long series as the page holds them: base64 of few bytes per number; `report.js` unpacks them.

Shape legend: N points, R rows and C columns of a heat map.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.schema import IntN

Json = dict[str, Any]
LEVELS = 254  # of a heat map; 255 is "no row here"


def packed_numbers(values_N: npt.ArrayLike) -> Json:
    """Numbers as float32; what is not finite is a gap.

    >>> unpacked(packed_numbers([1.0, float("nan")]))
    [1.0, None]
    """
    array = np.asarray(values_N, dtype="<f4")
    return {"packed": "numbers", "bytes": _text(np.where(np.isfinite(array), array, np.float32(np.nan)))}


def packed_times(times_us_N: IntN) -> Json:
    """Times in microseconds as whole seconds after the first.

    >>> unpacked(packed_times(np.array([0, 2_000_000])))
    ['1970-01-01T00:00:00', '1970-01-01T00:00:02']
    """
    first = int(times_us_N[0]) // 1_000_000 if len(times_us_N) else 0
    return {"packed": "times", "from": first, "bytes": _text((times_us_N // 1_000_000 - first).astype("<u4"))}


def packed_heat(values_RC: npt.NDArray[Any]) -> Json:
    """A heat map on a root scale: 255 steps between 0 and the largest value, for errors have long tails.

    >>> unpacked(packed_heat(np.array([[0.0, 4.0], [1.0, np.nan]])))
    [[0.0, 4.0], [1.0, None]]
    """
    known = np.isfinite(values_RC)
    highest = float(values_RC[known].max()) if known.any() else 0.0
    root = np.sqrt(np.clip(np.where(known, values_RC, 0.0), 0, None) / (highest or 1.0))
    levels = np.where(known, np.rint(root * LEVELS), LEVELS + 1).astype(np.uint8)
    rows, columns = values_RC.shape
    return {"packed": "heat", "rows": rows, "columns": columns, "highest": highest, "bytes": _text(levels)}


def _text(array: npt.NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")


def unpacked(value: Any) -> Any:
    """The inverse, as plain lists; what is not packed comes back as it is."""
    if not isinstance(value, dict) or "packed" not in value:
        return value
    raw = base64.b64decode(value["bytes"])
    if value["packed"] == "numbers":
        return [float(number) if np.isfinite(number) else None for number in np.frombuffer(raw, "<f4")]
    if value["packed"] == "times":
        seconds = np.frombuffer(raw, "<u4").astype(np.int64) + value["from"]
        return [str(stamp) for stamp in seconds.astype("datetime64[s]")]
    levels = np.frombuffer(raw, np.uint8).reshape(value["rows"], value["columns"])
    return [
        [
            None if level > LEVELS else round(float((level / LEVELS) ** 2) * value["highest"], 9)
            for level in row.tolist()
        ]
        for row in levels
    ]
