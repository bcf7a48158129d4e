"""What people get wrong, through the commands and stages that meet it: one clear line and exit code 2, or a note."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from cleaning_fleet import Fleet

from flows import cli
from pipeline.errors import run_reporting_errors
from pipeline.schema import FEEDBACK_SCHEMA, dictionary_column, spectra_column, spectra_schema, time_column
from pipeline.store import read_json, read_table, sha256_folder, write_table, write_text

MACHINES, DAYS, BINS = 5, 12, 16
START = 1_748_736_000_000_000  # 2025-06-01
HOUR = 3_600_000_000
LOG = "machine_id,start,end,tag\n"
CORRECTIONS = "machine_id,start,end,action,note\n"
RELEASES = "machine_id,start,end,reason\n"
Run = Callable[..., tuple[int, str]]


def spectra(seed: int = 0) -> np.ndarray:
    """(machine, day, hour, bin): peaks of its own per machine, and noise."""
    rng = np.random.default_rng(seed)
    shape = rng.normal(size=(MACHINES, 1, 1, BINS))
    return np.exp(shape + 0.2 * rng.normal(size=(MACHINES, DAYS, 24, BINS))).astype(np.float32)


def write_plant(folder: Path, values: np.ndarray, fleet: str = "") -> None:
    names = [f"m{code}" for code in range(MACHINES)]
    for day in range(DAYS):
        columns = {
            "machine_id": dictionary_column(np.repeat(np.arange(MACHINES), 24), names),
            "timestamp": time_column(START + (day * 24 + np.tile(np.arange(24), MACHINES)) * HOUR),
            "spectrum": spectra_column(values[:, day].reshape(-1, BINS)),
        }
        write_table(folder / f"spectra/2025-06-{day + 1:02d}.parquet", pa.table(columns).cast(spectra_schema(BINS)))
    write_text(folder / "fleet.yaml", f"bins: {BINS}\ninterval_seconds: 3600\n{fleet}")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A stage (`run("split")`) or a command (`run("hearken", ...)`): exit code and what it said of errors."""
    monkeypatch.chdir(tmp_path)
    settings = "split: {horizon_hours: 6, run_in_hours: 0, unseen_machine_share: 0}\n"
    write_text("params.yaml", f"source: {{path: plant}}\n{settings}")

    def run(name: str, *arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        capsys.readouterr()
        try:
            cli.main() if name == "hearken" else run_reporting_errors(import_module(f"pipeline.{name}").main)
        except SystemExit as ended:
            return int(ended.code or 0), capsys.readouterr().err
        return 0, ""

    return run


def refused(found: tuple[int, str], message: str) -> None:
    """Exit code 2 and one line, with this in it."""
    code, said = found
    assert code == 2
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert message in said


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("maintenance.csv", f"{LOG}m1,2025-06-02,,off\nm1,2025-06-03,,brokn\n", "tag: got 'brokn', expected one of"),
        ("maintenance.csv", f"{LOG}# x\nm1,2025-06-03,2025-06-02,off\n", "end: got a time before start"),
        ("maintenance.csv", f"{LOG}# x\nm1,June,2025-06-02,off\n", "start: got 'June'"),
        ("corrections.csv", f"{CORRECTIONS}\nm1,2025-06-03,2025-06-02,keep\n", "end: got a time before start"),
        ("corrections.csv", f"{CORRECTIONS}\nm1,2025-06-03,,keep\n", "end: got nothing, expected a time"),
        ("corrections.csv", f"{CORRECTIONS}\n,2025-06-03,2025-06-04,keep\n", "machine_id: got nothing"),
        ("corrections.csv", f"{CORRECTIONS}\nm1,2025-06-03,2025-06-04,kept\n", "action: got 'kept'"),
        (
            "corrections.csv",
            f"{CORRECTIONS}m1,2025-06-01,2025-06-05,keep\nm1,2025-06-04,2025-06-06,remove\n",
            "action: got remove where line 2 says keep of the same time",
        ),
        ("quarantine_releases.csv", f"{RELEASES}\nm1,2025-06-03,2025-06-02,flat\n", "end: got a time before start"),
        ("quarantine_releases.csv", f"{RELEASES}\nm1,2025-06-03,2025-06-04,negative\n", "reason: got 'negative'"),
    ],
)
def test_a_wrong_line_of_a_persons_file(run: Run, file: str, text: str, message: str) -> None:
    write_plant(Path("plant"), spectra())
    assert run("ingest") == (0, "")
    before = sha256_folder("data/raw")
    write_text(f"plant/{file}", text)
    for found in (run("ingest"), run("hearken", "ingest", "plant", "--out", "data/raw")):
        refused(found, message)
        refused(found, f"in plant/{file}, line 3.")
    assert sha256_folder("data/raw") == before


def test_answers_come_with_a_snapshot_and_go_when_the_person_takes_them_away(run: Run) -> None:
    write_plant(Path("plant"), spectra())
    files = {
        "corrections.csv": f"{CORRECTIONS}m1,2025-06-01,2025-06-02,keep,\n",
        "quarantine_releases.csv": f"{RELEASES}m1,2025-06-01,2025-06-02,flat\n",
    }
    alert = {"machine_id": ["m1"], "opened": [START], "closed": [None], "state": ["open"]}
    for name, text in files.items():
        write_text(f"plant/{name}", text)
    write_table("plant/feedback.parquet", pa.table(alert).cast(FEEDBACK_SCHEMA))
    assert run("ingest") == (0, "")
    for name, text in files.items():
        assert Path(f"data/raw/{name}").read_text() == text
    assert read_table("data/raw/feedback.parquet", schema=FEEDBACK_SCHEMA).num_rows == 1
    for name in [*files, "feedback.parquet"]:
        Path(f"plant/{name}").unlink()
    assert run("ingest") == (0, "")
    assert not {path.name for path in Path("data/raw").iterdir()} & {*files, "feedback.parquet"}


def test_a_wrong_alert_is_refused_with_its_row(run: Run) -> None:
    write_plant(Path("plant"), spectra())
    alert = {"machine_id": ["m1"], "opened": [START], "closed": [START - 1], "state": ["open"]}
    write_table("plant/feedback.parquet", pa.table(alert).cast(FEEDBACK_SCHEMA))
    refused(
        run("ingest"), "closed: got a time before opened, expected opened <= closed, in plant/feedback.parquet, row 0."
    )


def test_a_log_in_local_time_with_unknown_machines(run: Run) -> None:
    """Three ways to write 12:00 to 14:00 UTC mean the same rows; a machine that nobody knows is a note."""
    write_plant(Path("plant"), spectra(), "timezone: Europe/Berlin\n")
    entries = [
        "m0,2025-06-05 14:00,2025-06-05 16:00,off",
        "m1,2025-06-05T21:00+09:00,2025-06-05T23:00:00+09:00,off",
        "m2,2025-06-05T12:00Z,2025-06-05 16:00,off",
        "m77,2025-06-05 14:00,2025-06-05 16:00,off",
        "m78,2025-06-05 14:00,,failure",
    ]
    write_text("plant/maintenance.csv", LOG + "\n".join(entries) + "\n")
    for stage in ("ingest", "validate", "split"):
        assert run(stage) == (0, "")
    table = read_table("data/status/split.parquet").to_pandas()
    off = table[table.log_status == "off"]
    times = {(name, time.isoformat()) for name, time in zip(off.machine_id, off.timestamp, strict=True)}
    hours = ("2025-06-05T12:00:00+00:00", "2025-06-05T13:00:00+00:00")
    assert times == {(name, hour) for name in ("m0", "m1", "m2") for hour in hours}
    assert set(off.role) == {"none"}
    assert (
        "The maintenance log has 2 entries of machines without spectra (2)." in read_json("metrics/split.json")["notes"]
    )
    assert (
        "The maintenance log names 2 machines without spectra: m77, m78."
        in read_json("metrics/validation.json")["notes"]
    )


def test_a_set_of_which_everything_would_be_quarantined(run: Run) -> None:
    """The stage says why and stops; people can look at the rows, give them back, and go on."""
    write_plant(Path("plant"), spectra() * 1e8)
    assert run("ingest") == (0, "")
    rows = MACHINES * DAYS * 24
    refused(run("validate"), f"quarantined rows: got {rows} of {rows} rows (energy {rows}), expected at most 50 %")
    assert not Path("metrics/validation.json").exists()
    assert run("hearken", "quarantine", "list")[0] == 0
    assert run("hearken", "quarantine", "release", "--reason", "energy", "--yes")[0] == 0
    assert run("ingest") == (0, "")
    assert run("validate") == (0, "")
    assert read_json("metrics/validation.json")["given_back"] == rows


@pytest.mark.parametrize(("jumping", "share", "of_the_plant"), [(5, 0.5, True), (4, 0.5, True), (4, 0.9, False)])
def test_a_day_on_which_machines_jump_together(run: Run, jumping: int, share: float, of_the_plant: bool) -> None:
    values = spectra()
    values[:jumping, 6] *= 1000
    write_plant(Path("plant"), values)
    write_text("params.yaml", f"source: {{path: plant}}\nvalidate: {{plant_share: {share}}}\n")
    assert run("ingest") == (0, "")
    assert run("validate") == (0, "")
    table = read_table("data/status/validate.parquet").to_pandas()
    aside = table[table.status == "quarantined"]
    notes = " ".join(read_json("metrics/validation.json")["notes"])
    if of_the_plant:
        assert aside.empty
        assert f"On 2025-06-07 the plant changed: unit_change at {jumping} of 5 machines; no row is set aside." in notes
    else:
        assert set(zip(aside.machine_id, aside.file, strict=True)) == {
            (f"m{code}", "2025-06-07.parquet") for code in range(jumping)
        }
        assert set(aside.reason) == {"unit_change"}
        assert "unit_change on 4 days of 4 machines" in notes


# --- what only cleaning can see ---


@pytest.fixture
def split_fleet(run: Run) -> None:
    """A snapshot and its split, ready for stage clean."""
    write_table("data/status/split.parquet", Fleet().write(Path("data/raw")))


@pytest.mark.usefixtures("split_fleet")
def test_a_correction_of_an_unknown_machine(run: Run) -> None:
    write_text(
        "data/raw/corrections.csv", f"{CORRECTIONS}m1,1970-01-02,1970-01-03,keep\nM1,1970-01-02,1970-01-03,keep\n"
    )
    refused(run("clean"), "machine_id: got 'M1', expected a machine of the data set (it has 10); m1 is near")
    refused(run("clean"), "in data/raw/corrections.csv, line 3.")


@pytest.mark.usefixtures("split_fleet")
def test_corrections_that_meet_no_row_are_noted(run: Run) -> None:
    idle = [f"m{code},1980-01-0{code + 1},1980-01-09,remove" for code in range(7)]
    write_text("data/raw/corrections.csv", CORRECTIONS + "\n".join(["m1,1970-01-02,1970-01-03,remove", *idle]) + "\n")
    assert run("clean") == (0, "")
    found = read_json("metrics/cleaning.json")
    notes = [note for note in found["notes"] if note.startswith("corrections.csv")]
    assert notes[0] == "corrections.csv keeps 0 and removes 8 intervals."
    assert notes[1] == (
        "corrections.csv, line 3: m0 has no train or validation row from 1980-01-01T00:00:00Z to "
        "1980-01-09T00:00:00Z: there is nothing to remove."
    )
    assert notes[-1] == "corrections.csv: 2 more of its lines meet no train or validation row."
    assert len(notes) == 7
    assert found["by_reason"]["correction"] == 25  # of the line that meets rows: both ends are meant


LONG = "x" * 5000


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", LONG],
        ["ingest", LONG, "--out", "out"],
        ["simulate", "--out", LONG, "--machines", "2", "--days", "1"],
        ["what-if", "--scores", LONG],
        ["init", LONG],
        ["init", "/proc/foo"],
    ],
)
def test_a_place_that_the_system_refuses(run: Run, arguments: list[str]) -> None:
    refused(run("hearken", *arguments), "expected a place that can be used so.")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.EROFS, "Read-only file system", "/plant"), "/plant: got 'read-only file system'"),
        (OSError(errno.ENOSPC, "Detail: [errno 28] No space left on device"), "disk: got 'no space left on device'"),
        (FileNotFoundError(errno.ENOENT, "gone", "/plant/x"), "/plant/x: got 'no such file or directory'"),
    ],
)
def test_a_disk_that_is_full_or_read_only(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: OSError, message: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("pipeline.plant.init_plant", refuse)
    refused(run("hearken", "init", "new"), message)


def test_an_error_of_the_system_that_names_no_file_is_not_hidden(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionResetError(errno.ECONNRESET, "reset")

    monkeypatch.setattr("pipeline.plant.init_plant", refuse)
    with pytest.raises(ConnectionResetError):
        run("hearken", "init", "new")
