"""Every door for data: Parquet, CSV and raw waveforms, here or in an object store, as tables of the contract."""

from pipeline.landing.places import SourceFile
from pipeline.landing.source import Source, open_source, source_spec

__all__ = ["Source", "SourceFile", "open_source", "source_spec"]
