"""The stages of the graph in this process, up to a release: what benchmarks of the service score with."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

from pipeline.params import load_params
from pipeline.train import run as train


def build_release(root: Path, params: str, *, simulated: bool = True) -> Path:
    """Run every stage below a folder with the given params.yaml; the folder of the release.

    Args:
        root: the folder; it is made where it is missing.
        params: text of params.yaml.
        simulated: begin with `simulate`; otherwise the data set of `source.path` is there already.
    """
    root.mkdir(parents=True, exist_ok=True)
    (root / "params.yaml").write_text(params)
    before = Path.cwd()
    os.chdir(root)
    try:
        for stage in (*(["simulate"] if simulated else []), "ingest", "validate", "split", "clean"):
            import_module(f"pipeline.{stage}").main()
        settings = load_params()
        for detector in settings.detectors:
            train(detector, settings, Path())
        for stage in ("calibrate", "evaluate", "release"):
            import_module(f"pipeline.{stage}").main()
    finally:
        os.chdir(before)
    return root / "data/release"
