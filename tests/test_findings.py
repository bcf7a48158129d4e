"""Findings: errors in the project's form become findings and come back."""

from __future__ import annotations

import pytest

from pipeline.errors import ContractError
from pipeline.findings import Finding, Severity, errors_of, nearest


def test_only_errors_keep_data_from_being_read() -> None:
    found = [Finding(severity, "f", "", "a", "b", "c") for severity in Severity]
    assert errors_of(found) == found[:1]
    assert found[1].to_json()["severity"] == "warning"


def test_the_nearest_name_is_near() -> None:
    assert nearest("pump 3", ["fan 3", "Pump-3"]) == "Pump-3"
    assert nearest("x" * 10_000, ["pump"]) is None
    assert nearest("pump", []) is None


@pytest.mark.parametrize(
    ("got", "where", "place"),
    [
        ("3", "plant/a.csv", ""),
        ("3", "plant/a.csv, line 7", "line 7"),
        ("'x' in line 12", "plant/a.csv", "line 12"),
        ("'a, in b.' in row 4", "line 3/a.csv", "row 4"),
    ],
)
def test_an_error_becomes_a_finding_with_its_place(got: str, where: str, place: str) -> None:
    error = ContractError.of("bins", got=got, expected="4, or none", where=where)
    finding = Finding.of_message(str(error), "a.csv")
    assert (finding.what, finding.got, finding.expected) == ("bins", got, "4, or none")
    assert (finding.severity, finding.place) == (Severity.ERROR, place)


def test_a_message_of_another_form_is_kept_whole() -> None:
    finding = Finding.of_message("All 3 files are wrong.", "spectra")
    assert (finding.got, finding.place, finding.where) == ("All 3 files are wrong.", "", "spectra")
