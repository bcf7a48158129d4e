"""layout: what paths tell, and settings that cannot be."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from pipeline.layout import SourceLayout, WaveformLayout


@pytest.mark.parametrize(
    ("pattern", "form", "path", "facts"),
    [
        ("{machine_id}/{timestamp}.csv", None, "a b/2024.csv", {"machine_id": "a b", "timestamp": "2024"}),
        ("{machine_id}/{timestamp}.csv", None, "a/b/2024.csv", None),
        ("{_}/{machine_id}_{sequence}.wav", None, "x/m_1_007.wav", {"machine_id": "m_1", "sequence": "007"}),
        (
            "{timestamp}/{machine_id}.npy",
            "%Y/%m/%d",
            "2024/03/01/m.npy",
            {"timestamp": "2024/03/01", "machine_id": "m"},
        ),
        ("{machine_id}.(a)+.csv", None, "m.(a)+.csv", {"machine_id": "m"}),
        ("{machine_id}.csv", None, "m\nn.csv", {"machine_id": "m\nn"}),
        (None, None, "anything", {}),
    ],
)
def test_what_a_path_tells(pattern: str | None, form: str | None, path: str, facts: dict | None) -> None:
    assert SourceLayout(path=pattern, timestamp_format=form).facts_of(path) == facts


@pytest.mark.parametrize("pattern", ["{a}/{a}", "{}", "{a b}", "{a", "a}", "{0}", "{a.__class__}"])
def test_a_pattern_that_cannot_be_read_is_refused(pattern: str) -> None:
    with pytest.raises(ValidationError, match="expected"):
        SourceLayout(path=pattern)


@pytest.mark.parametrize(
    "settings",
    [{"overlap": 1.0}, {"bands": 7}, {"bands": 4097}, {"sample_rate_hz": 0}, {"min_hz": 5, "max_hz": 5}, {"rate": 1}],
)
def test_settings_of_waveforms_out_of_range(settings: dict) -> None:
    with pytest.raises(ValidationError):
        WaveformLayout(**settings)
