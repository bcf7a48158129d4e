"""Spectra that a command is given, as a data set: read as the settings say, and so as the service reads them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from flows.terminal import say_markup, shown

if TYPE_CHECKING:
    from pipeline.params import IngestParams


@contextmanager
def as_data_set(source: Path, params: IngestParams) -> Iterator[Path]:
    """A snapshot that ingest wrote as it is; everything else goes through ingest's checks first, to a passing place.

    Every row is taken, and no label: what a build samples and learns from is not asked for here.

    Args:
        source: a data set, or anything that ingest takes.
        params: how times are read.

    Raises:
        ContractError: the source breaks the contract.
    """
    from pipeline.ingest import ingest

    if (source / "snapshot.json").is_file():
        yield source
        return
    how = params.model_copy(update={"max_rows": None, "label_column": None})
    with tempfile.TemporaryDirectory(prefix="hearken-") as folder:
        out = Path(folder) / "data"
        for warning in ingest(source, out, how, horizon_hours=0.0, tune_share=0.0).warnings:
            say_markup(f"[yellow]warning:[/yellow] {shown(warning)}")
        yield out
