"""Evidently's report of one check: its statistics per column, and a page that opens without a network.

The only module that imports Evidently.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.store import atomic_file


def evidently_report(
    pairs: Mapping[str, tuple[Any, Any]], methods: Mapping[str, str], limits: Mapping[str, float], page: Path | None
) -> dict[str, float]:
    """Evidently's drift statistic per column (a distance: larger is further); its page is written atomically.

    Args:
        pairs: values of each column, current and reference.
        methods: of each column.
        limits: of each column, drawn on the page.
        page: HTML file; None: no page.
    """
    os.environ["DO_NOT_TRACK"] = "1"
    import pandas as pd
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift

    numbers = [name for name, (now, _) in pairs.items() if np.issubdtype(np.asarray(now).dtype, np.number)]
    kinds = [name for name in pairs if name not in numbers]
    definition = DataDefinition(numerical_columns=numbers, categorical_columns=kinds)
    now, then = (
        Dataset.from_pandas(
            pd.DataFrame({name: pair[side] for name, pair in pairs.items()}), data_definition=definition
        )
        for side in (0, 1)
    )
    metrics = [ValueDrift(column=name, method=methods[name], threshold=limits[name]) for name in pairs]
    snapshot = Report(metrics).run(now, then)
    if page is not None:
        with atomic_file(page) as path:
            path.write_text(snapshot.get_html_str(as_iframe=False), encoding="utf-8")
    return {item["config"]["column"]: float(item["value"]) for item in snapshot.dict()["metrics"]}
