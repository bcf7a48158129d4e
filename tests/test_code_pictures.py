"""What is drawn of codes: bounded samples, seeded, spaces in which neighbours are counted honestly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.calibrate import load_calibration
from pipeline.code_pictures import (
    DEVIATIONS,
    FEW_ROWS,
    HEALTHY_ROWS,
    ROWS_A_FAILURE,
    SAMPLES,
    STEPS,
    DrawnRows,
    code_pictures,
    drawn_rows,
    neighbours_of_one_mode,
    principal_axes,
)
from pipeline.judging.judged import Judgement
from pipeline.measure import Scored, load_detectors, score_rows
from pipeline.params import load_params
from pipeline.report_page.codes import codes_answer, codes_section, neighbours_chart
from pipeline.report_page.data import ReportData
from pipeline.rows import has_role, load_rows
from pipeline.schema import Label, Role, load_fleet_spec
from pipeline.store import read_json, read_table


@pytest.fixture(scope="module")
def judged(built: Path) -> tuple[dict[str, Any], Scored, Judgement]:
    """The detectors and test rows of a small build, and its failures."""
    params, split = load_params(built / "params.yaml"), read_table(built / "data/status/split.parquet")
    detectors = load_detectors(built, params.detectors, "cpu")
    rows = load_rows(built / "data/raw", split, has_role(split, Role.TEST), 32, "condition")
    tails, _ = load_calibration(built / "data/calibration", params.detectors)
    events = read_json(built / "data/evaluation/events.json")
    return detectors, score_rows(detectors, rows, tails), Judgement({}, events, [], [])


def test_the_rows_of_a_build_are_bounded_seeded_and_what_they_are_called(built: Path, judged: Any) -> None:
    detectors, scored, judgement = judged
    fleet = load_fleet_spec(built / "data/raw/fleet.yaml")
    found = code_pictures(detectors, scored, judgement, fleet, 5)
    assert found == read_json(built / "data/evaluation/codes.json")
    assert found != code_pictures(detectors, scored, judgement, fleet, 6)
    drawn = drawn_rows(scored, judgement, 5)
    label, failure = scored.rows.column("label")[drawn.place_P], scored.rows.column("failure_id")[drawn.place_P]
    assert set(label[drawn.healthy_P]) == {str(Label.HEALTHY)}
    assert 0 < drawn.healthy_P.sum() <= HEALTHY_ROWS
    for at, event in enumerate(judgement.events):
        mine = drawn.failure_P == at
        assert 0 < mine.sum() <= ROWS_A_FAILURE
        assert set(failure[mine]) == {event["failure_id"]}
    points, size = found["points"], len(drawn.place_P)
    assert {len(points[key]) for key in ("machine", "mode", "failure", "hours_before")} == {size}
    assert [hours is None for hours in points["hours_before"]] == drawn.healthy_P.tolist()
    assert all(0 <= hours <= 48 for hours in points["hours_before"] if hours is not None)  # of the small fleet
    assert {space["detector"]: len(space["x"]) for space in found["spaces"]} == dict.fromkeys(
        ("autoencoder", "vae", "pca"), size
    )
    pca = detectors["pca"].vectors.shape[1]
    assert {space["detector"]: space["dimensions"] for space in found["spaces"]} == {
        "autoencoder": 4,
        "vae": 4,
        "pca": pca,
    }


def test_samples_ways_and_traversals_are_what_the_decoder_says(built: Path, judged: Any) -> None:
    detectors, scored, _ = judged
    found = read_json(built / "data/evaluation/codes.json")
    assert (len(found["samples"]["spectra"]), len(found["samples"]["spectra"][0])) == (SAMPLES, 32)
    assert found["samples"]["healthy_rows"] >= FEW_ROWS
    assert 0.5 < found["samples"]["inside"] <= 1
    low, middle, high = (np.array(found["samples"][key]) for key in ("low", "median", "high"))
    assert (low <= middle).all()
    assert (middle <= high).all()
    for path in found["paths"]:
        network = detectors[path["detector"]]
        place = [int(np.flatnonzero(_is(scored, path[end]))[0]) for end in ("from", "to")]
        _, rebuilt = network.reconstruct(scored.rows.spectra[place], scored.code[place])
        ends = np.array(path["levels"])[[0, -1]]
        assert np.allclose(ends, rebuilt, atol=2e-3)
        assert len(path["levels"]) == len(STEPS)
    for sweep in found["traversals"]:
        levels = np.array(sweep["levels"])
        assert levels.shape == (len(DEVIATIONS), 32)
        assert np.abs(levels[0] - levels[-1]).max() > 0.01  # the number says something
        assert 1 <= sweep["dimension"] <= 4
        assert sweep["moved_by"]["deviations"] > 0


def _is(scored: Scored, row: dict[str, Any]) -> np.ndarray:
    machine = list(scored.rows.machines).index(row["machine_id"])
    seconds = np.datetime64(row["timestamp"].removesuffix("Z"), "s").astype(np.int64)
    return np.asarray((scored.rows.machine == machine) & (scored.rows.time_us // 1_000_000 == seconds))


def test_without_networks_or_failures(built: Path, judged: Any) -> None:
    detectors, scored, _ = judged
    fleet, nothing = load_fleet_spec(built / "data/raw/fleet.yaml"), Judgement({}, [], [], [])
    assert code_pictures({"pca": detectors["pca"]}, scored, nothing, fleet, 5) == {}
    found = code_pictures({"vae": detectors["vae"]}, scored, nothing, fleet, 5)
    assert (found["paths"], found["points"]["modes"]) == ([], [])
    assert [space["neighbours"] for space in found["spaces"]] == [None]
    assert found["traversals"][0]["moved_by"] is None
    charts = [chart for block in codes_section(_report(found)).blocks for chart in block.charts]  # type: ignore[union-attr]
    assert [chart.id for chart in charts] == ["codes-vae", "samples-vae", "traversal-vae"]
    assert codes_section(_report({})).blocks == []
    assert codes_section(_report(None)).answer == ""


def _report(codes: dict[str, Any] | None) -> ReportData:
    return ReportData(evaluation={}, codes=codes)


def rows_of(modes: list[str], machines: list[str], rows: int = 30) -> DrawnRows:
    """Healthy rows, then as many of each failure."""
    failures = [
        {"failure_mode": mode, "machine_id": machine, "failure_id": str(at)}
        for at, (mode, machine) in enumerate(zip(modes, machines, strict=True))
    ]
    failure = np.repeat(np.arange(-1, len(modes)), rows)
    return DrawnRows(np.arange(len(failure)), failure, failures)


class TestNeighbours:
    def test_modes_that_lie_apart_are_told_apart(self, rng: np.random.Generator) -> None:
        drawn = rows_of(["race", "race", "gear", "gear"], ["a", "b", "c", "d"])
        codes = rng.normal(size=(150, 3)).astype(np.float32)
        chance = neighbours_of_one_mode(codes, drawn)
        assert chance is not None
        assert chance["by_chance"] == pytest.approx(1 / 3, abs=1e-4)  # of three others, one is of the same mode
        assert chance["share"] == pytest.approx(1 / 3, abs=0.15)
        codes[30:90, 0] += 40
        codes[90:, 1] += 40
        apart = neighbours_of_one_mode(codes, drawn)
        assert apart == {"rows": 120, "share": 1.0, "by_chance": pytest.approx(1 / 3, abs=1e-4)}

    def test_a_machine_is_no_neighbour_of_itself(self, rng: np.random.Generator) -> None:
        """Two failures of one machine sound alike because it is the same machine."""
        codes = rng.normal(size=(120, 3)).astype(np.float32)
        assert neighbours_of_one_mode(codes, rows_of(["race", "race", "gear"], ["a", "a", "c"])) is None

    def test_one_mode_tells_nothing(self, rng: np.random.Generator) -> None:
        codes = rng.normal(size=(90, 3)).astype(np.float32)
        assert neighbours_of_one_mode(codes, rows_of(["race", "race"], ["a", "b"])) is None

    def test_the_page_says_so(self) -> None:
        space = {"detector": "vae", "dimensions": 12, "neighbours": None}
        assert neighbours_chart([space]) is None
        assert "cannot be told" in codes_answer([space], 64)
        space = space | {"neighbours": {"rows": 9, "share": 0.5, "by_chance": 0.25}}
        assert codes_answer([space], 64).endswith("for 50 % of rows, by chance 25 %.")


def test_axes_of_one_number() -> None:
    assert principal_axes(np.array([[1.0], [2.0], [4.0]])).tolist() == [[1.0]]
