"""The command that a plant runs first, on small synthetic recordings and on the real ones where they are."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from flows.cli import app
from pipeline.backtest import BacktestRequest, events_of, failure_ids, read_recording, roles, run_backtest
from pipeline.errors import ContractError, UserError
from pipeline.params import DEFAULT_DETECTORS, Params
from pipeline.schema import Role

QUICK = Params.model_validate(
    {
        "train": {
            "score_batch_rows": 256,
            "autoencoder": {"latent": 3, "channels": [4, 8], "optimiser": {"max_epochs": 4}},
            "vae": {"latent": 3, "channels": [4, 8], "optimiser": {"max_epochs": 4}},
        },
        "calibrate": {"draws": 60, "policy": {"k": 2, "n": 3}},
        "evaluate": {"chance_shifts": 20},
    }
)
FIGURES = {
    "auroc", "average_precision", "partial_auroc", "events", "events_caught", "events_by_chance",
    "false_episodes_per_day", "median_lead_time_hours",
}  # fmt: skip


def recording(path: Path, machines: int = 3, rows: int = 400, seed: int = 0) -> Path:
    """Machines that run to failure: healthy to 70 %, unknown to 90 %, then faulty in bins 4 to 6."""
    rng = np.random.default_rng(seed)
    frames = []
    for machine in range(machines):
        life = (np.arange(rows) + 1) / rows
        logs = rng.normal(size=(rows, 2)) @ rng.normal(size=(2, 16)) * 0.3 + rng.normal(size=16)
        logs += 0.1 * rng.normal(size=(rows, 16))
        logs[:, 4:7] += 2.5 * np.clip((life - 0.85) / 0.1, 0, 1)[:, None]
        frame = pd.DataFrame(np.exp(logs).astype(np.float32), columns=[f"bin_{i:02d}" for i in range(16)])
        frame["machine_id"] = f"pump {machine}"
        frame["timestamp"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(rows) * 10, unit="min")
        frame["life"] = life
        frame["label"] = np.select([life <= 0.7, life <= 0.9], [0, -1], 1)
        frames.append(frame)
    pd.concat(frames).to_parquet(path, index=False)
    return path


def test_figures_have_the_published_form_and_the_report_stands_beside(tmp_path: Path) -> None:
    source = recording(tmp_path / "r.parquet")
    request = BacktestRequest(source, train_query="life < 0.5", baseline_query="life < 0.1", timezone="UTC")
    figures = run_backtest(request, QUICK, tmp_path / "out", say=lambda _line: None)
    assert figures == json.loads((tmp_path / "out/metrics.json").read_text())
    assert figures["dataset"] | {"rows": 1200, "machines": 3, "bins": 16, "failures": 3} == figures["dataset"]
    assert set(figures["detectors"]) == {*DEFAULT_DETECTORS, "ensemble"}
    for name, row in figures["detectors"].items():
        assert row.keys() >= FIGURES
        for key in FIGURES:
            assert row[key] is not None or key in figures["null_reasons"], (name, key)
    assert figures["detectors"]["pca"]["auroc"] > 0.95
    assert figures["detectors"]["pca"]["events_caught"] == 3
    for tier in ("low", "page"):
        assert figures["tiers"][tier].keys() >= {"percentile", "false_positive_rate", "ci_low", "ci_high"}
    page = (tmp_path / "out/report.html").read_text()
    assert "pump 1" in page
    assert "<script src=" not in page


def test_roles_keep_time_order_and_nothing_is_used_twice(tmp_path: Path) -> None:
    request = BacktestRequest(
        recording(tmp_path / "r.parquet"), train_query="life >= 0.1 and life < 0.5", baseline_query="life < 0.1"
    )
    found = read_recording(request)
    role = roles(found, request)
    life = found.frame["life"].to_numpy()
    for machine in range(3):
        mine = found.rows.machine == machine
        last = {name: life[mine & (role == name)].max() for name in Role if (mine & (role == name)).any()}
        first = {name: life[mine & (role == name)].min() for name in Role if (mine & (role == name)).any()}
        assert last["baseline"] < first["train"]
        assert max(last["train"], last["validation"]) < first["calibration"]
        assert last["calibration"] < first["test"]
    fitted = np.isin(role, ["train", "validation", "calibration", "baseline"])
    assert (found.label[fitted] == 0).all()


def test_a_run_of_faulty_rows_is_one_failure_with_the_unknown_rows_before_it(tmp_path: Path) -> None:
    found = read_recording(BacktestRequest(recording(tmp_path / "r.parquet")))
    events = events_of(found, np.ones(len(found.rows), bool))
    assert [event.failure_id for event in events] == ["pump 0#1", "pump 1#1", "pump 2#1"]
    first = events[0]
    life = dict(zip(found.rows.time_us[:400], found.frame["life"][:400], strict=True))
    assert life[first.grace_us] == pytest.approx(0.7025, abs=0.003)
    assert life[first.start_us] == pytest.approx(0.9025, abs=0.003)
    assert life[first.end_us] == 1.0
    assert (failure_ids(found) != None).sum() == 120  # noqa: E711  (elementwise)


def test_across_machines_judges_every_machine_by_the_others(tmp_path: Path) -> None:
    request = BacktestRequest(
        recording(tmp_path / "r.parquet"),
        train_query="life >= 0.1 and life < 0.5",
        test_query="life >= 0.1",
        baseline_query="life < 0.1",
        time="relative",
        detectors=("pca", "squared_distance"),
        across_machines=True,
    )
    figures = run_backtest(request, QUICK, tmp_path / "out", say=lambda _line: None)
    assert set(figures["per_machine"]) == {"pump 0", "pump 1", "pump 2"}
    assert figures["release_detector"] == "ensemble"
    assert figures["detectors"]["squared_distance"]["auroc"] > 0.8
    assert figures["detectors"]["pca"]["false_episodes_per_day"] is None


def test_no_failures_at_all_still_gives_tiers(tmp_path: Path) -> None:
    source = recording(tmp_path / "r.parquet")
    pd.read_parquet(source).query("life <= 0.7").to_parquet(source)
    figures = run_backtest(BacktestRequest(source, train_query="life < 0.4"), QUICK, tmp_path / "out", lambda _l: None)
    assert figures["dataset"]["failures"] == 0
    assert figures["tiers"]["page"]["false_positive_rate"] is not None
    assert figures["detectors"]["pca"]["events_caught"] is None
    assert any("no tune failure" in note for note in figures["notes"])


def break_it(path: Path, how: str) -> None:
    frame = pd.read_parquet(path)
    if how == "no machine_id":
        frame = frame.drop(columns="machine_id")
    elif how == "text in a number":
        frame["bin_03"] = "loud"
    elif how == "no label":
        frame = frame.drop(columns="label")
    elif how == "no healthy rows":
        frame["label"] = 1
    elif how == "odd label":
        frame.loc[5, "label"] = 7
    elif how == "empty":
        frame = frame.iloc[:0]
    frame.to_parquet(path, index=False)
    if how == "cut in half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("no machine_id", "machine_id"),
        ("text in a number", "bin_03"),
        ("no label", "label"),
        ("no healthy rows", "no healthy row"),
        ("odd label", "got 7 in"),
        ("empty", "no rows"),
        ("cut in half", "cut off"),
    ],
)
def test_bad_data_gets_one_message_exit_code_2_and_no_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, how: str, says: str
) -> None:
    from flows import cli

    source = recording(tmp_path / "r.parquet")
    break_it(source, how)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["hearken", "backtest", str(source), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error:")
    assert says in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()
    assert app is cli.app


@pytest.mark.parametrize(
    ("query", "says"), [("lifee < 1", "lifee"), ("life <", "got 'life <'"), ("life > 5", "names no row")]
)
def test_a_query_that_cannot_be_understood_names_itself_and_the_columns(tmp_path: Path, query: str, says: str) -> None:
    request = BacktestRequest(recording(tmp_path / "r.parquet"), train_query=query)
    with pytest.raises(UserError, match="--train-query") as raised:
        run_backtest(request, QUICK, tmp_path / "out", say=lambda _line: None)
    assert says in str(raised.value)


def test_rows_that_train_are_not_judged(tmp_path: Path) -> None:
    request = BacktestRequest(recording(tmp_path / "r.parquet"), train_query="life < 0.5", test_query="life > 0.4")
    with pytest.raises(UserError, match="rows that also train"):
        run_backtest(request, QUICK, tmp_path / "out", say=lambda _line: None)


def test_one_machine_and_a_machine_with_ten_rows(tmp_path: Path) -> None:
    source = recording(tmp_path / "r.parquet", machines=2)
    frame = pd.read_parquet(source)
    frame[(frame.machine_id == "pump 0") | (frame.life <= 0.025)].to_parquet(source)
    figures = run_backtest(BacktestRequest(source, train_query="life < 0.5"), QUICK, tmp_path / "two", lambda _l: None)
    assert figures["dataset"]["machines"] == 2
    recording(source, machines=1)
    figures = run_backtest(BacktestRequest(source, train_query="life < 0.5"), QUICK, tmp_path / "one", lambda _l: None)
    assert figures["dataset"]["machines"] == 1


def test_an_unknown_detector_is_refused(tmp_path: Path) -> None:
    request = BacktestRequest(recording(tmp_path / "r.parquet"), detectors=("oracle",))
    with pytest.raises(UserError, match="got oracle"):
        run_backtest(request, QUICK, tmp_path / "out")


def test_too_few_calibration_rows_are_told(tmp_path: Path) -> None:
    source = recording(tmp_path / "r.parquet", machines=1, rows=60)
    with pytest.raises(ContractError, match="calibration rows"):
        run_backtest(BacktestRequest(source, train_query="life < 0.4"), QUICK, tmp_path / "out", lambda _l: None)


@pytest.mark.parametrize("name", ["femto_h", "femto_v"])
def test_real_bearings_in_time_order(real_data: Path, tmp_path: Path, name: str) -> None:
    request = BacktestRequest(
        real_data / f"{name}.parquet",
        train_query="life_frac >= 0.15 and life_frac < 0.4",
        test_query="life_frac >= 0.4",
        baseline_query="life_frac < 0.15",
        time="relative",
        detectors=("pca", "energy_zscore", "squared_distance"),
    )
    figures = run_backtest(request, QUICK, tmp_path / "out", say=lambda _line: None)
    assert figures["dataset"]["rows"] == 7534
    assert figures["dataset"]["failures"] == 6
    # the reference figure for PCA on the log magnitudes of these bearings is .951 (a model per bearing)
    assert figures["detectors"]["pca"]["auroc"] > 0.85


def test_a_folder_with_other_things_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other things"):
        run_backtest(BacktestRequest(recording(tmp_path / "r.parquet")), QUICK, tmp_path / "out", lambda _l: None)
    assert (tmp_path / "out/notes.txt").read_text() == "mine"


def test_an_enormous_bin_and_text_labels(tmp_path: Path) -> None:
    source = recording(tmp_path / "r.parquet")
    frame = pd.read_parquet(source)
    frame.loc[350, "bin_02"] = np.float32(3.4e38)
    frame.to_parquet(source)
    figures = run_backtest(BacktestRequest(source, train_query="life < 0.5"), QUICK, tmp_path / "out", lambda _l: None)
    assert any("1 rows hold" in note for note in figures["notes"])
    frame["label"] = frame["label"].astype(str).replace("1", "fault")
    frame.to_parquet(source)
    with pytest.raises(ContractError, match="got 'fault' in"):
        run_backtest(BacktestRequest(source), QUICK, tmp_path / "two", lambda _l: None)


def test_judged_rows_before_the_training_rows_are_told(tmp_path: Path) -> None:
    request = BacktestRequest(recording(tmp_path / "r.parquet"), train_query="life >= 0.2 and life < 0.5")
    figures = run_backtest(request, QUICK, tmp_path / "out", lambda _l: None)
    assert any("earlier than the last calibration row" in note for note in figures["notes"])


def with_conditions(path: Path) -> Path:
    """A recording whose machines idle and cut in turn: cutting is louder than any fault; at the end they also drill."""
    frame = pd.read_parquet(recording(path))
    place = np.arange(len(frame)) % 400
    frame["condition"] = np.select([place >= 395, place // 10 % 2 == 1], ["drill", "cut"], "idle")
    bins = [name for name in frame.columns if name.startswith("bin_")]
    frame.loc[frame["condition"] != "idle", bins] *= np.float32(np.exp(4))
    frame.to_parquet(path)
    return path


def test_a_baseline_of_each_condition_sees_what_one_of_all_does_not(tmp_path: Path) -> None:
    source = with_conditions(tmp_path / "r.parquet")
    found = {}
    for scope in ("machine", "machine+condition"):
        baseline = QUICK.train.baseline.model_copy(update={"scope": scope})
        params = QUICK.model_copy(update={"train": QUICK.train.model_copy(update={"baseline": baseline})})
        request = BacktestRequest(source, train_query="life < 0.5", detectors=("squared_distance", "energy_zscore"))
        found[scope] = run_backtest(request, params, tmp_path / scope, lambda _l: None)["detectors"]
    for name in ("squared_distance", "energy_zscore"):
        assert found["machine+condition"][name]["auroc"] > 0.9
        assert found["machine"][name]["auroc"] < 0.8
    history = json.loads((tmp_path / "machine+condition/models/energy_zscore/history.json").read_text())
    assert history["baselines"] | {"machines": 3, "keys": 6, "fleet_conditions": 2} == history["baselines"]


def test_a_column_with_too_many_conditions_is_told(tmp_path: Path) -> None:
    frame = pd.read_parquet(recording(tmp_path / "r.parquet"))
    frame["condition"] = np.arange(len(frame)) % 97 / 7  # a speed, say
    frame.to_parquet(tmp_path / "r.parquet")
    said: list[str] = []
    request = BacktestRequest(tmp_path / "r.parquet", train_query="life < 0.5", detectors=("squared_distance",))
    run_backtest(request, QUICK, tmp_path / "out", said.append)
    assert any("only 0% of the training rows have a baseline of their own" in line for line in said)
