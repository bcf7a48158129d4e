"""fleet.yaml and params.yaml: every mistake with the line that a person must change."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.findings import Finding
from pipeline.schema import FleetSpec
from pipeline.yaml_model import checked_model


def findings_of(text: str) -> list[Finding]:
    spec, findings = checked_model(text, FleetSpec, "fleet.yaml")
    assert (spec is None) == bool(findings)
    return findings


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("bins: 3\nbnis: 4\n", 2, "bnis: got an unknown key, expected one of kind, bins, "),
        ("bins: 3\nkind: sound\n", 2, "kind: got 'sound', expected 'spectrum' or 'features'"),
        ("bins: 2\n\nband_edges_hz: [0, 20, 10]\n", 3, "band_edges_hz: got 20 before 10, expected .* increase"),
        ("bins: 2\nband_edges_hz: [0, .nan, 10]\n", 2, "band_edges_hz: got 0 before nan"),
        ("bins: 4\nname: a\nband_edges_hz: [0, 20]\n", 3, "band_edges_hz: got 2 band_edges_hz, expected 5"),
        ("timezone: Europe/Berln\n", 1, "timezone: got 'Europe/Berln', expected an IANA name such as Europe/Berlin"),
        ("interval_seconds: -1\n", 1, "interval_seconds: got -1, expected greater than 0"),
        (
            "source:\n  columns:\n    machin: a\n",
            3,
            "source.columns.machin: got an unknown key, expected one of machine_id",
        ),
        ("maintenance:\n  tags: {a: broken}\n", 2, "maintenance.tags.a: got 'broken'"),
        ("bins: 1\nunit: g\nbins: 2\n", 3, "bins: got the key again .first on line 1."),
        ("source: {files: a, files: b}\n", 1, "files: got the key again"),
        ("bins: 1\n  unit: [\n", 2, "got text that is not YAML"),
        ("- a\n", 1, "the whole file: got a list, expected a mapping"),
        ("interval_seconds: 2025-02-30\n", None, "got text that is not YAML"),
    ],
)
def test_a_mistake_is_named_with_its_line(text: str, line: int | None, message: str) -> None:
    (finding,) = findings_of(text)
    assert finding.place == ("" if line is None else f"line {line}")
    with pytest.raises(type(finding.error()), match=message):
        raise finding.error()


def test_all_mistakes_are_found_at_once_and_aliases_end() -> None:
    assert [finding.place for finding in findings_of("bins: 0\nkind: x\ncolour: red\n")] == [
        "line 1",
        "line 2",
        "line 3",
    ]
    assert findings_of("a: &a [*a]\n")[0].what == "a"


def test_a_right_text_gives_the_model() -> None:
    spec, findings = checked_model("bins: 4\naxes: [x, y]\nband_edges_hz: [0, 1, 2]\n", FleetSpec, "fleet.yaml")
    assert findings == []
    assert spec is not None
    assert spec.band_name(3) == "y 1-2 Hz"
    assert checked_model("", FleetSpec, "fleet.yaml")[0] == FleetSpec()


WORDS = st.sampled_from(
    ["bins", "source", "axes", "kind", ": ", ":\n  ", "\n", "- ", "[", "]", "{a: 1}", "64", "&a", "*a", "off"]
)


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(max_size=60), st.lists(WORDS, max_size=12).map("".join)))
def test_any_text_gives_a_model_or_findings(text: str) -> None:
    spec, findings = checked_model(text, FleetSpec, "fleet.yaml")
    assert (spec is None) == bool(findings)


def test_depth_without_end_is_a_finding() -> None:
    assert findings_of("[" * 5000)[0].got.startswith("text that is not YAML")
