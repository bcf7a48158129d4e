"""hearken check: everything that is wrong with a plant's folder is found at once, and nothing of what is right."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from flows import cli
from pipeline.check import Checked, check_plant
from pipeline.errors import ContractError, UserError
from pipeline.findings import Severity
from pipeline.ingest import ingest
from pipeline.maintenance_entries import OPEN_END
from pipeline.params import IngestParams

NOW = dt.datetime(2025, 6, 1, tzinfo=dt.UTC)
HEAD = "machine_id,start,end,tag,failure_mode,note\n"
BINS = 4


def rows(
    machine: str = "pump 1", begin: str = "2025-03-01", count: int = 48, step: str = "h", scale: float = 1.0
) -> pd.DataFrame:
    spectra = scale * (1 + np.arange(count)[:, None] / 100 + np.arange(BINS))
    frame = pd.DataFrame(spectra, columns=[f"bin_{k}" for k in range(BINS)])
    frame.insert(0, "timestamp", pd.date_range(begin, periods=count, freq=step).astype(str))
    frame.insert(0, "machine_id", machine)
    return frame


def plant(tmp_path: Path, *, fleet: str = "", log: str = "", **files: pd.DataFrame | str) -> Path:
    (tmp_path / "spectra").mkdir(parents=True, exist_ok=True)
    edges = list(range(BINS + 1))
    text = f"interval_seconds: 3600\ntimezone: UTC\nband_edges_hz: {edges}\nbins: {BINS}\n"
    (tmp_path / "fleet.yaml").write_text(fleet or text)
    (tmp_path / "maintenance.csv").write_text(HEAD + (log or "pump 1,2025-03-02 12:00,,failure,,\n"))
    for name, content in (files or {"a": rows()}).items():
        path = tmp_path / "spectra" / f"{name}.csv"
        path.write_text(content) if isinstance(content, str) else content.to_csv(path, index=False)
    return tmp_path


def check(folder: Path, **how: float) -> Checked:
    return check_plant(folder, horizon_hours=24, now=NOW, **how)


def said(checked: Checked) -> list[tuple[str, str, str, str]]:
    return [(f.severity.value, f.file, f.place, f.what) for f in checked.findings]


def test_a_right_plant_has_no_findings(tmp_path: Path) -> None:
    checked = check(plant(tmp_path))
    assert said(checked) == []
    assert (checked.survey.rows, checked.survey.bins, list(checked.survey.machines)) == (48, BINS, ["pump 1"])


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="hearken init"):
        check(tmp_path / "nowhere")


def test_everything_is_found_at_once(tmp_path: Path) -> None:
    log = "pump 1,2025-03-02 12:00,,failure,,\npump1,2025-03-02,,failure,,\npump 1,2025-13-01,,repair,,\n"
    broken = "machine_id,timestamp,bin_0,bin_1,bin_2,bin_3\npump 1,2025-03-01,1,2,3,4\npump 1,2025-03-02,1,2,x,4\n"
    folder = plant(tmp_path, fleet="bins: 4\nbnis: 3\ntimezone: Mars\n", log=log, a=rows(), b=broken)
    checked = check(folder)
    assert said(checked) == [
        ("error", "fleet.yaml", "line 2", "bnis"),
        ("error", "fleet.yaml", "line 3", "timezone"),
        ("error", "maintenance.csv", "line 4", "start"),
        ("note", "spectra", "", "spectra"),
        ("note", "fleet.yaml", "", "timezone"),
    ]
    (folder / "fleet.yaml").write_text("bins: 4\ntimezone: UTC\n")
    checked = check(folder)
    assert [entry for entry in said(checked) if entry[0] != "note"] == [
        ("error", "maintenance.csv", "line 4", "start"),
        ("error", "spectra/b.csv", "line 3", "bin_2"),
        ("warning", "maintenance.csv", "line 3", "machine_id"),
    ]
    assert "'pump 1'?" in checked.findings[-1].expected
    with pytest.raises(ContractError, match=r"start: got '2025-13-01'.*line 4"):
        ingest(folder, tmp_path / "raw", IngestParams(), horizon_hours=24, tune_share=0.5)


@pytest.mark.parametrize(
    ("line", "severity", "got"),
    [
        ("pump 1,2025-04-01,,failure,,", "warning", "2025-04-01 00:00"),
        ("pump 1,2025-02-01,,failure,,", "warning", "2025-02-01 00:00"),
        ("pump 2,2025-03-02,,off,,", "warning", "'pump 2', which has no spectra"),
        ("pump 1,2025-02-01,2025-02-02,repair,,", "note", "2025-02-01 00:00 to 2025-02-02 00:00"),
        ("pump 1,2025-04-01,,off,,", "note", "2025-04-01 00:00"),
    ],
)
def test_entries_that_the_spectra_do_not_know_are_found(tmp_path: Path, line: str, severity: str, got: str) -> None:
    checked = check(plant(tmp_path, log=f"pump 1,2025-03-02 12:00,,failure,,\n{line}\n"))
    (finding,) = checked.findings
    assert (finding.severity, finding.place, finding.got) == (severity, "line 3", got)


def test_a_failure_after_a_silence_is_announced_by_nothing(tmp_path: Path) -> None:
    log = "pump 1,2025-03-02 12:00,,failure,,\npump 1,2025-03-20,,failure,,\npump 1,2025-03-03,2025-03-25,off,,\n"
    checked = check(plant(tmp_path, log=log, a=rows(), b=rows(begin="2025-03-25")))
    (finding,) = checked.findings
    assert (finding.place, finding.what) == ("line 3", "failure")
    assert "no rows in the horizon" in finding.got


def test_odd_values_and_times_are_found_per_file(tmp_path: Path) -> None:
    odd = rows("pump 2")
    odd.loc[0, "bin_1"] = np.nan
    odd.loc[1:3, "bin_1"] = -1
    odd.loc[4, "bin_0":"bin_3"] = 5  # type: ignore[misc]
    odd.loc[5, "timestamp"] = odd.loc[4, "timestamp"]
    late = rows("pump 3", begin="2025-05-31", count=60)
    late.loc[0, "bin_0"] = np.inf
    checked = check(plant(tmp_path, a=rows(), odd=odd, late=late, mixed=rows("pump 4").iloc[::-1], none=rows(count=0)))
    assert said(checked) == [
        ("warning", "spectra/none.csv", "", "rows"),
        ("note", "spectra", "", "spectrum"),
        ("warning", "spectra/odd.csv", "", "spectrum"),
        ("note", "spectra", "", "spectrum"),
        ("warning", "spectra/late.csv", "", "timestamp"),
        ("note", "spectra", "", "timestamp"),
        ("note", "spectra", "", "timestamp"),
    ]
    gots = [finding.got for finding in checked.findings]
    assert gots[1] == "values that are NaN or infinite in 2 of 204 rows, most in 'spectra/late.csv' (1)"
    assert gots[2] == "values that are negative in 3 of 48 rows (6%)"
    assert gots[5].startswith("two rows of a machine at one time in 1 of 204 rows")


def test_a_stated_interval_that_is_wrong_and_a_machine_of_another_are_found(tmp_path: Path) -> None:
    others = {name: rows(f"pump {name}") for name in "123"}
    (tmp_path / "x").mkdir()
    checked = check(plant(tmp_path, slow=rows("fan", count=20, step="3h"), **others))
    assert [finding.got for finding in checked.findings] == ["a row every 10800 s of 'fan'"]
    edges = "band_edges_hz: [0, 1, 2, 3, 4]\ntimezone: UTC\n"
    wrong = check(plant(tmp_path / "x", fleet=f"interval_seconds: 10\n{edges}"))
    assert said(wrong) == [("warning", "fleet.yaml", "", "interval_seconds")]
    nothing = check(plant(tmp_path / "x", fleet=edges))
    assert [(f.severity, f.what) for f in nothing.findings] == [(Severity.NOTE, "interval_seconds")]


def test_a_gap_is_found_unless_the_log_explains_it(tmp_path: Path) -> None:
    files = {"a": rows(), "b": rows(begin="2025-03-10")}
    failure = "pump 1,2025-03-02 12:00,,failure,,\n"
    (finding,) = check(plant(tmp_path, log=failure, **files)).findings
    assert finding.got == "a gap of 'pump 1' of 7.0 days from 2025-03-03 00:00"
    explained = check(plant(tmp_path, log=failure + "pump 1,2025-03-03,2025-03-10,off,,\n", **files))
    assert explained.findings == ()


def test_a_file_in_another_unit_is_found(tmp_path: Path) -> None:
    files = {f"d{day}": rows(begin=f"2025-03-0{day}", count=24, scale=1000 if day == 3 else 1) for day in range(1, 6)}
    (finding,) = check(plant(tmp_path, **files)).findings
    assert finding.what == "unit"
    assert "d3.csv" in finding.got
    assert "mg" in finding.got


def test_a_row_per_axis_is_no_repetition(tmp_path: Path) -> None:
    fleet = "interval_seconds: 3600\ntimezone: UTC\naxes: [x, y]\nsource: {columns: {axis: direction}}\n"
    frame = pd.concat([rows().assign(direction=axis) for axis in "xy"])
    checked = check(plant(tmp_path, fleet=fleet, a=frame))
    assert {finding.severity for finding in checked.findings} == {Severity.NOTE}
    edges = next(finding for finding in checked.findings if finding.what == "band_edges_hz")
    assert edges.expected.startswith(f"{BINS + 1} frequencies")


def test_names_that_differ_in_case_or_blanks_are_found(tmp_path: Path) -> None:
    (finding,) = check(plant(tmp_path, a=rows(), b=rows("Pump  1"))).findings
    assert finding.got == "'Pump  1' and 'pump 1' as different machines"


def test_broken_files_and_other_files_are_named(tmp_path: Path) -> None:
    folder = plant(tmp_path, a=rows(), b=rows(), wrong="machine_id,timestamp,bin_0\npump 1,2025-03-01,1\n", empty="")
    (folder / "spectra" / "readme.docx").write_text("x")
    (folder / "spectra" / "cut.parquet").write_bytes(b"PAR1")
    checked = check(folder)
    assert sorted(said(checked)) == [
        ("error", "spectra/cut.parquet", "", "Parquet"),
        ("error", "spectra/empty.csv", "", "CSV"),
        ("error", "spectra/wrong.csv", "", "number of bins"),
        ("note", "spectra/readme.docx", "", "the file"),
    ]


def test_without_log_and_description_it_says_so(tmp_path: Path) -> None:
    folder = plant(tmp_path)
    (folder / "fleet.yaml").unlink()
    (folder / "maintenance.csv").unlink()
    whats = [(finding.severity.value, finding.what) for finding in check(folder).findings]
    assert ("warning", "maintenance log") in whats
    assert ("note", "fleet.yaml") in whats
    assert ("note", "timezone") in whats


def test_dst_is_warned_of_in_log_and_spectra(tmp_path: Path) -> None:
    fleet = "interval_seconds: 3600\ntimezone: Europe/Berlin\nband_edges_hz: [0, 1, 2, 3, 4]\n"
    log = "pump 1,2025-03-30 02:30,,failure,,\n"
    checked = check(plant(tmp_path, fleet=fleet, log=log, a=rows(begin="2025-03-29", count=72)))
    assert ("warning", "maintenance.csv", "line 2", "start") in said(checked)
    assert ("warning", "spectra", "", "timestamp") in said(checked)


def run_cli(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["hearken", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


def test_the_command_exits_with_2_where_there_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = plant(tmp_path / "p")
    monkeypatch.chdir(tmp_path)
    assert run_cli(monkeypatch, "check", "p") == 0
    assert "1 file, 1 machine, 48 rows, 4 bins" in capsys.readouterr().out
    (folder / "maintenance.csv").write_text(HEAD + "pump 1,2025-03-02,2025-03-01,repair,,\n")
    assert run_cli(monkeypatch, "check", "p") == 2
    out = capsys.readouterr().out
    assert "maintenance.csv" in out
    assert "1 error, 0 warnings, 1 note" in out
    assert run_cli(monkeypatch, "check", "p", "--json") == 2
    values = json.loads(capsys.readouterr().out)
    assert values["counts"] == {"error": 1, "warning": 0, "note": 1}
    assert values["findings"][0]["place"] == "line 2"


def test_an_open_end_is_far_from_every_row() -> None:
    assert np.datetime64(OPEN_END, "us") > np.datetime64("2150-01-01")


def test_answers_of_people_are_looked_at_too(tmp_path: Path) -> None:
    folder = plant(tmp_path)
    head, day = "machine_id,start,end,", "2025-03-01,2025-03-02"
    (folder / "corrections.csv").write_text(f"{head}action\npump 1,{day},remove it\npump 2,{day},keep\n")
    (folder / "quarantine_releases.csv").write_text(f"{head}reason\npump 1,2025-03-02,2025-03-01,flat\n,{day},flat\n")
    assert said(check(folder)) == [
        ("error", "corrections.csv", "line 2", "action"),
        ("warning", "corrections.csv", "", "machine_id"),
        ("error", "quarantine_releases.csv", "line 2", "end"),
    ]


def test_ingest_refuses_the_answers_that_check_calls_wrong(tmp_path: Path) -> None:
    folder = plant(tmp_path / "plant")
    (folder / "corrections.csv").write_text("machine_id,start,end,action\npump 1,2025-03-02,2025-03-01,keep\n")
    assert check(folder).count(Severity.ERROR) == 1
    with pytest.raises(ContractError, match=r"corrections\.csv, line 2"):
        ingest(folder, tmp_path / "raw", IngestParams(), horizon_hours=24, tune_share=0.5)


def test_what_answers_added_to_the_log_is_looked_at(tmp_path: Path) -> None:
    folder = plant(tmp_path)
    (folder / "maintenance_added.parquet").write_bytes(b"PAR1 cut off")
    assert said(check(folder)) == [("error", "maintenance_added.parquet", "", "maintenance")]
    with pytest.raises(ContractError, match=r"maintenance_added\.parquet"):
        ingest(folder, tmp_path / "raw", IngestParams(), horizon_hours=24, tune_share=0.5)
