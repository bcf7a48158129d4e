"""The report: escaped, self-contained, deterministic, and honest where something is missing."""

from __future__ import annotations

import datetime as dt
import html
import itertools
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from plotly.offline import get_plotlyjs

from pipeline.errors import ContractError
from pipeline.params import Params
from pipeline.report import ReportData, gather, render_report
from pipeline.report_page.charts import score_histogram
from pipeline.report_page.colours import PALETTES
from pipeline.report_page.failures import downsample_max
from pipeline.report_page.judgement import baseline_sentence, cautions, null_reason, winners
from pipeline.report_page.page import json_for_script
from pipeline.report_page.spectra import band_centres
from pipeline.schema import time_column
from pipeline.store import write_json, write_table

HOSTILE = "</script><script>alert('m\"1')</script>"
DETECTORS = ("autoencoder", "vae", "pca", "energy_zscore", "squared_distance")
START = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)
BINS, DAYS, ROWS_A_DAY, FAILURES = 64, 30, 48, 5


def machine_name(index: int) -> str:
    return HOSTILE if index == 0 else f"press-{index:02d}"


def iso(day: float) -> str:
    return (START + dt.timedelta(days=day)).isoformat()


def failure_days() -> list[float]:
    return [14.0 + 3.5 * index for index in range(FAILURES)]


def scores_table(machines: int = 6) -> pa.Table:
    """Scores of every machine over the days; machine i fails on its day, and its score rises for five days before."""
    random = np.random.default_rng(3)
    days = np.arange(DAYS * ROWS_A_DAY) / ROWS_A_DAY
    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("time", "machine", "faulty", *DETECTORS)}
    for machine in range(machines):
        failure = failure_days()[machine] if machine < FAILURES else np.inf
        shown = days[(days < failure) & ~((days > 9) & (days < 9.6))]
        before = np.clip(1 - (failure - shown) / 5, 0, 1)
        columns["time"].append((START.timestamp() * 1e6 + shown * 86_400e6).astype(np.int64))
        columns["machine"].append(np.full(len(shown), machine))
        columns["faulty"].append(failure - shown <= 7)
        for index, name in enumerate(DETECTORS):
            noise = np.exp(0.35 * random.standard_normal(len(shown)))
            columns[name].append((1 + index) * noise * np.exp((2.6 - 0.45 * index) * before**2 * (machine != 3)))
    joined = {name: np.concatenate(values) for name, values in columns.items()}
    n = len(joined["time"])
    machine_names = [machine_name(index) for index in joined["machine"]]
    failure_ids = [
        f"F{index:03d}" if faulty else None for index, faulty in zip(joined["machine"], joined["faulty"], strict=True)
    ]
    return pa.table(
        {
            "file": ["2025-01-01.parquet"] * n,
            "row": pa.array(np.arange(n)),
            "machine_id": pa.array(machine_names).dictionary_encode(),
            "timestamp": time_column(joined["time"]),
            "role": pa.array(["test"] * n).dictionary_encode(),
            "label": pa.array(np.where(joined["faulty"], "faulty", "healthy")).dictionary_encode(),
            "failure_id": pa.array(failure_ids),
            **{f"score_{name}": pa.array(joined[name]) for name in DETECTORS},
        }
    )


def evaluation() -> dict[str, Any]:
    detectors: dict[str, dict[str, Any]] = {}
    figures = {
        "autoencoder": (0.912, 0.641, 0.742, 4, 0.31, 62.0),
        "vae": (0.899, 0.615, 0.731, 4, 0.34, 60.5),
        "pca": (0.874, 0.552, 0.702, 3, 0.36, 41.0),
        "energy_zscore": (0.701, 0.233, 0.551, 1, 0.29, 12.25),
        "squared_distance": (0.927, 0.630, None, 4, 0.33, 58.0),
    }
    keys = (
        "auroc",
        "average_precision",
        "partial_auroc",
        "events_caught",
        "false_episodes_per_day",
        "median_lead_time_hours",
    )
    for index, (name, values) in enumerate(figures.items()):
        detectors[name] = {
            **dict(zip(keys, values, strict=True)),
            "events": 5,
            "events_by_chance": 0.7 + 0.1 * index,
            "auroc_ci": [values[0] - 0.05, values[0] + 0.04],
            "false_episodes_per_day_ci": [values[4] - 0.2, values[4] + 0.3],
            "at_false_episodes": {
                "0": {"events_caught": 1, "false_episodes": 2},
                "1": {"events_caught": 2, "false_episodes": 4},
            },
        }
    return {
        "dataset": {"rows": 99200, "test_rows": 58000, "machines": 24, "failures": 5},
        "budget": {"false_episodes_per_machine_day": 0.02, "false_episodes_on_calibration": 5.7, "rule": "rate"},
        "release_detector": "autoencoder",
        "detectors": detectors,
        "tiers": {
            "low": {
                "percentile": 99.5,
                "threshold": 2.9,
                "false_positive_rate": 0.0061,
                "ci_low": 0.0038,
                "ci_high": 0.0093,
            },
            "page": {
                "percentile": 99.95,
                "threshold": 4.4,
                "false_positive_rate": 0.00071,
                "ci_low": 0.00062,
                "ci_high": 0.0014,
            },
        },
        "in_service": {
            "tier": "page",
            "events": 5,
            "events_caught": 4,
            "false_episodes": 5,
            "machine_days": 402.8,
            "caught": {"F000": 70.0, "F001": 67.0, "F002": 64.0, "F004": 58.0},
        },
        "pairs": {"only": {"autoencoder": ["F001"], "pca": []}},
        "null_reasons": {"detectors.squared_distance.partial_auroc": "fewer than 2,000 healthy rows"},
        "notes": ["The data are short: purge gaps of 72 h instead of 168 h."],
    }


def history(name: str) -> dict[str, Any]:
    epochs: list[dict[str, Any]] = []
    for epoch in range(1, 19):
        fall = float(np.exp(-epoch / 4))
        entry = {
            "epoch": epoch,
            "train_loss": 0.41 + 0.6 * fall,
            "validation_loss": 0.43 + 0.58 * fall + 0.002 * max(0, epoch - 13),
        }
        if name == "vae":
            entry |= {"reconstruction": 0.38 + 0.62 * fall, "kl": 6.0 * (1 - float(np.exp(-epoch / 3)))}
        epochs.append(entry)
    return {"epochs": epochs, "best_epoch": 14, "cap_hit": name == "vae", "warnings": [], "rows_per_s": 61000}


def events() -> list[dict[str, Any]]:
    found = []
    for index, day in enumerate(failure_days()):
        caught = index != 3
        verdicts = {}
        for place, name in enumerate(DETECTORS):
            own = caught and (index + place) % 5 != 4
            lead = 70.0 - 6 * place - 3 * index
            verdicts[name] = {
                "caught": own,
                "first_alert": iso(day - lead / 24) if own else None,
                "lead_time_hours": lead if own else None,
            }
        found.append(
            {
                "failure_id": f"F{index:03d}",
                "machine_id": machine_name(index),
                "failure_mode": ["outer_race", "imbalance", "energy_rise"][index % 3],
                "time": iso(day),
                "window_start": iso(day - 7),
                "role": "test",
                "detectors": verdicts,
            }
        )
    return found


def episodes() -> list[dict[str, Any]]:
    found = []
    for event in events():
        verdict = event["detectors"]["autoencoder"]
        end = dt.datetime.fromisoformat(event["time"])
        if verdict["caught"]:
            kind = {"kind": "caught", "failure_id": event["failure_id"]}
            found.append(
                {"machine_id": event["machine_id"], "start": verdict["first_alert"], "end": end.isoformat(), **kind}
            )
        false = end - dt.timedelta(days=7.9)
        found.append(
            {
                "machine_id": event["machine_id"],
                "start": false.isoformat(),
                "end": (false + dt.timedelta(hours=3)).isoformat(),
                "kind": "false",
                "failure_id": None,
            }
        )
    return found


def reconstructions() -> list[dict[str, Any]]:
    random = np.random.default_rng(5)
    bands = [f"{200 * index}-{200 * (index + 1)} Hz" for index in range(BINS)]
    found = []
    for index, kind in enumerate(["alert", "healthy", "healthy", "alert"]):
        base = np.cumsum(random.standard_normal(BINS)) * 0.15
        original = base + 0.35 * random.standard_normal(BINS)
        if kind == "alert":
            original[[18, 19, 37]] += (5.5, 3.0, 4.0)
        error = (original - base) ** 2
        row = {"original": original.tolist(), "reconstruction": base.tolist(), "share": (error / error.sum()).tolist()}
        found.append(
            {"machine_id": machine_name(index), "timestamp": iso(12 + index), "kind": kind, "bands": bands, **row}
        )
    return found


def roc() -> list[dict[str, Any]]:
    rates = np.geomspace(1e-4, 1, 60)
    return [
        {
            "detector": name,
            "false_positive_rate": float(rate),
            "true_positive_rate": float(rate ** (0.16 + 0.09 * index)),
        }
        for index, name in enumerate(DETECTORS)
        for rate in rates
    ]


def calibration() -> dict[str, Any]:
    def tier(percentile: float, threshold: float) -> dict[str, Any]:
        caught = {"tune_caught": ["F007", "F009"], "tune_failures": 4}
        return {
            "percentile": percentile,
            "threshold": threshold,
            "rate_low": (100 - percentile) / 250,
            "rate_high": (100 - percentile) / 55,
            **caught,
        }

    tiers = {
        name: {"low": tier(99.5, 2.9 * (1 + index)), "page": tier(99.95, 4.4 * (1 + index))}
        for index, name in enumerate(DETECTORS)
    }
    return {
        "detectors": tiers,
        "policy": {"k": 3, "n": 5, "window_us": 7_200_000_000},
        "rows": 41200,
        "machines": 21,
        "notes": [],
    }


def split() -> dict[str, Any]:
    statuses = {
        "healthy": 171_000,
        "horizon": 14_100,
        "repair": 3_800,
        "run_in": 6_300,
        "unconfirmed": 12_160,
        "off": 0,
    }
    roles = {
        "train": 62_000,
        "validation": 15_000,
        "calibration": 41_200,
        "tune": 5_200,
        "test": 58_000,
        "none": 25_960,
    }
    unused = [
        {"failure_id": "F008", "machine_id": "press-11", "role": "test", "why": "its horizon lies before the test span"}
    ]
    edges = {"start": 0, "train_end": 27, "calibration_start": 30, "calibration_end": 42, "test_start": 45, "end": 60}
    return {
        "rows": {"total": 207_360, "by_role": roles, "by_log_status": statuses},
        "machines": 24,
        "failures": {"total": 11, "tune": 4, "judged": 5, "unused": 2, "unused_why": unused},
        "boundaries": {"scope": "calendar", **{name: iso(day) for name, day in edges.items()}},
        "notes": [],
    }


def full_data() -> ReportData:
    worst = [
        {
            "machine": machine_name(i),
            "start": iso(3 + i),
            "end": iso(3.4 + i),
            "rows": 58 - i,
            "error": 21.4 - i,
            "removed": i < 3,
        }
        for i in range(4)
    ]
    by_reason = {"bins_not_finite": 210, "stuck_sensor": 160, HOSTILE: 42}
    return ReportData(
        evaluation=evaluation(),
        release_id="3f9a1c0be27d4415",
        manifest={"precision": "float32", "device": "cpu", "inputs": {"split": "ab" * 32}},
        snapshot={"rows": 207_360, "machines": 24, "bins": BINS, "first": iso(0), "last": iso(60), "warnings": []},
        fleet={"name": "press-line", "kind": "spectrum", "interval_seconds": 600},
        validation={"rows": 207_360, "quarantined": 412, "by_reason": by_reason, "warnings": {"energy_high": 12}},
        split=split(),
        cleaning={
            "looked_at": 77_000,
            "removed": 934,
            "by_machine": {HOSTILE: 512, "press-02": 422},
            "worst_episodes": worst,
        },
        calibration=calibration(),
        histories={name: history(name) for name in ("autoencoder", "vae")} | {"pca": {"components": 9}},
        scores=scores_table(),
        events=events(),
        episodes=episodes(),
        roc=roc(),
        reconstructions=reconstructions(),
        params=Params().model_dump(mode="json", by_alias=True),
    )


@pytest.fixture(scope="module")
def data() -> ReportData:
    return full_data()


@pytest.fixture(scope="module")
def page(data: ReportData) -> str:
    return render_report(data)


def without_plotly(page: str) -> str:
    """The page's own text: plotly's code names addresses that it never visits here."""
    assert page.count(get_plotlyjs()) == 1
    return page.replace(get_plotlyjs(), "")


def figures_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', without_plotly(page), re.DOTALL)
    assert found is not None
    return dict(json.loads(found[1]))


class Outline(HTMLParser):
    """What a browser's parser makes of the page: elements with their attributes, and whether they nest."""

    VOID = frozenset({"meta", "link", "br", "hr", "img", "input"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def test_text_of_the_data_is_escaped_everywhere(page: str) -> None:
    own = without_plotly(page)
    assert "alert(" in own  # the name is shown
    assert "<script>alert" not in own
    assert "</script><script>" not in own
    outline = Outline(own)
    assert outline.unbalanced == []
    assert outline.open == []
    assert outline.count("script") == 4  # plotly, palettes, figures, and the page's own code


def test_a_hostile_detector_or_reason_stays_text() -> None:
    judged = evaluation()
    judged["detectors"][HOSTILE] = {"auroc": None, "events": 5, "events_caught": 1}
    judged["null_reasons"] = {"auroc": "<img src=x onerror=alert(1)>"}
    curve = [{"detector": HOSTILE, "false_positive_rate": 0.1, "true_positive_rate": 0.5}]
    page = render_report(ReportData(evaluation=judged, histories={HOSTILE: history("vae")}, roc=curve))
    outline = Outline(without_plotly(page))
    assert outline.count("img") == 0
    assert outline.count("script") == 4
    assert not any(name.startswith("on") for _, attributes in outline.elements for name in attributes)
    names = [trace["name"] for trace in figures_of(page)["roc"]["data"]]
    assert all("<" not in name for name in names)  # plotly reads a subset of HTML in its labels


def test_the_page_loads_nothing(page: str) -> None:
    own = without_plotly(page)
    for tag, attributes in Outline(own).elements:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            target = attributes.get(name)
            assert target is None or target.startswith("#") or target == "data:,", (tag, name, target)
    assert "@import" not in own
    assert not re.search(r"url\(\s*[\"']?(?!#|data:)", own)
    assert "default-src 'none'" in own
    assert len(page.encode()) < 10_000_000


def test_the_same_data_give_the_same_bytes(data: ReportData, page: str) -> None:
    assert render_report(full_data()) == page
    assert render_report(replace(data, max_failures=2)) != page


def test_every_chart_has_data_a_place_a_caption_and_units(page: str) -> None:
    figures, outline = figures_of(page), Outline(without_plotly(page))
    places = {attributes["id"]: attributes for tag, attributes in outline.elements if attributes.get("role") == "img"}
    assert set(figures) == set(places)
    expected = {
        "roc",
        "training-autoencoder-loss",
        "training-vae-loss",
        "training-vae-reconstruction",
        "training-vae-kl",
    }
    expected |= {f"scores-{name.replace('_', '-')}" for name in DETECTORS} | {
        f"failure-{i + 1}" for i in range(FAILURES)
    }
    assert set(figures) == expected | {f"spectrum-{i + 1}" for i in range(4)}
    for name, figure in figures.items():
        for trace in figure["data"]:
            assert len(trace["x"]) == len(trace["y"]) > 0, name
            assert any(value is not None for value in trace["y"]), name
        axes = [value for key, value in figure["layout"].items() if key[1:5] == "axis"]
        assert len(axes) >= 2
        assert all(axis["title"]["text"] for axis in axes), name
        assert len(str(places[name]["aria-label"])) > 40
    ids = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_colours_of_charts_are_names_of_both_palettes(page: str) -> None:
    assert set(PALETTES["light"]) == set(PALETTES["dark"])
    names = set(re.findall(r'"@([a-z_-]+)"', json.dumps(figures_of(page))))
    assert names
    assert names <= set(PALETTES["light"])


def test_a_screen_reader_finds_landmarks_headings_and_captions(page: str) -> None:
    outline = Outline(without_plotly(page))
    assert [outline.count(tag) for tag in ("h1", "main", "nav", "header", "footer")] == [1, 1, 1, 1, 1]
    assert outline.count("table") == outline.count("caption") > 8
    assert outline.count("figure") == outline.count("figcaption") > 10
    levels = [int(tag[1]) for tag, _ in outline.elements if re.fullmatch("h[1-6]", tag)]
    assert all(later - earlier <= 2 for earlier, later in itertools.pairwise(levels))
    targets = [str(attributes["href"])[1:] for tag, attributes in outline.elements if tag == "a"]
    assert set(targets) <= {attributes.get("id") for _, attributes in outline.elements}


def test_the_headline_and_key_figures(page: str) -> None:
    text = readable(page)
    for expected in (
        "Autoencoder caught 4 of 5 failures.",
        "0.70 by chance",
        "whole fleet; interval 0.11 to 0.61",
        "2.6 days",
        "interval 0.062 to 0.14 %; asked for 0.050 %",
        "on the same rows it caught 4 of 5 failures, with 5 false episodes in 403 machine-days",
    ):
        assert expected in text, expected
    assert "never why" in text


def readable(page: str) -> str:
    text = re.sub(r"<(script|style).*?</\1>", " ", without_plotly(page) if "Plotly" in page else page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", text)))


def test_a_baseline_that_wins_is_named_plainly(data: ReportData) -> None:
    sentence, beaten = baseline_sentence(data)
    assert beaten
    assert (
        sentence
        == "A baseline beats the autoencoder in 1 of 6 figures: Squared distance in AUROC (0.927 against 0.912)."
    )
    assert sentence in cautions(data)
    better = evaluation()
    better["detectors"]["autoencoder"]["auroc"] = 0.99
    sentence, beaten = baseline_sentence(replace(data, evaluation=better))
    assert (sentence, beaten) == ("No baseline beats the autoencoder in any of the 6 figures compared.", False)


def test_winners_leave_out_ties_of_all_and_silence() -> None:
    detectors = {"a": {"auroc": 0.9, "events_caught": 0, "false_episodes_per_day": 0.0}}
    detectors["b"] = {"auroc": 0.8, "events_caught": 3, "false_episodes_per_day": 0.4}
    detectors["c"] = {"auroc": 0.9, "events_caught": 3, "false_episodes_per_day": 0.5}
    assert winners(detectors, "auroc") == {"a", "c"}
    assert winners(detectors, "events_caught") == {"b", "c"}
    assert winners(detectors, "false_episodes_per_day") == {"b"}  # a raised no alert at all: no merit
    assert winners({"a": {"auroc": 0.9}, "b": {"auroc": 0.9}}, "auroc") == set()


def test_a_null_figure_is_a_dash_with_its_reason(page: str) -> None:
    text = readable(page)
    assert "— note 1" in text
    assert "fewer than 2,000 healthy rows" in text
    nested = {"detectors": {"pca": {"auroc": "no faulty rows"}}, "partial_auroc": "too few", "pca": "not this one"}
    data = ReportData(
        evaluation={"null_reasons": nested, "tiers": {"page": {"ci_low": None, "note": "3 machine-days"}}}
    )
    assert null_reason(data, "detectors", "pca", "auroc") == "no faulty rows"
    assert null_reason(data, "detectors", "vae", "partial_auroc") == "too few"
    assert null_reason(data, "tiers", "page", "ci_low") == "3 machine-days"
    assert null_reason(data, "detectors", "vae", "auroc") == "no reason was recorded"


def test_missing_parts_say_so_and_nothing_breaks() -> None:
    page = render_report(ReportData(evaluation={}, missing={"data": "a backtest sets nothing aside"}))
    text = readable(page)
    assert text.count("Not available:") == 6
    assert "Not available: a backtest sets nothing aside." in text
    assert "no failure could be judged" in text
    assert len(page) < 60_000  # no chart, no plotly
    assert "<h2" in page


@pytest.mark.parametrize(
    "gone", ["validation", "split", "cleaning", "calibration", "scores", "events", "reconstructions", "release_id"]
)
def test_each_part_may_be_missing(data: ReportData, gone: str) -> None:
    assert figures_of(render_report(replace(data, **{gone: None})))


def test_null_figures_of_every_kind_render(data: ReportData) -> None:
    judged = evaluation()
    judged["detectors"] = {name: dict.fromkeys(figures) for name, figures in judged["detectors"].items()}
    judged["tiers"] = {"low": dict.fromkeys(judged["tiers"]["low"]), "page": None}
    judged |= {"pairs": None, "in_service": None, "budget": None, "notes": None, "null_reasons": None}
    assert "Autoencoder: no failure could be judged." in readable(render_report(replace(data, evaluation=judged)))


def test_the_epoch_cap_is_warned_of(data: ReportData, page: str) -> None:
    assert "stopped at the epoch cap" in readable(page)
    calm = replace(data, histories={"autoencoder": history("autoencoder")})
    assert "epoch cap" not in readable(render_report(calm))


def test_a_timeline_keeps_peaks_and_shows_thresholds_and_episodes(page: str) -> None:
    figures = figures_of(page)
    first = figures["failure-1"]
    values = [value for value in first["data"][0]["y"] if value is not None]
    assert len(first["data"][0]["y"]) <= 600
    table = scores_table()
    own = np.array([name == HOSTILE for name in table["machine_id"].to_pylist()])
    top = table["score_autoencoder"].to_numpy()[own].max()
    assert max(values) == pytest.approx(top, rel=1e-3)
    lines = [shape for shape in first["layout"]["shapes"] if shape["type"] == "line"]
    assert {shape["y0"] for shape in lines} >= {2.9, 4.4}
    assert len([shape for shape in first["layout"]["shapes"] if shape["type"] == "rect"]) == 4  # two episodes
    assert any(value is None for value in first["data"][0]["y"])  # the gap of day nine


def test_failures_beyond_the_limit_are_counted(data: ReportData) -> None:
    page = render_report(replace(data, max_failures=2))
    assert {name for name in figures_of(page) if name.startswith("failure")} == {"failure-1", "failure-2"}
    assert "3 more failures not drawn" in readable(page)


@pytest.mark.parametrize("n", [0, 1, 2, 599, 600, 601, 20_000])
def test_downsampling_bounds_and_keeps_the_largest(n: int) -> None:
    random = np.random.default_rng(n)
    times = np.cumsum(random.integers(1, 10**9, n))
    values = random.standard_normal(n)
    shown, kept = downsample_max(times, values, 600)
    assert len(shown) == len(kept) <= max(600, 0)
    assert np.all(np.diff(shown) > 0)
    assert np.isin(kept[np.isfinite(kept)], values).all()
    if n:
        assert np.nanmax(kept) == values.max()


def test_histogram_shares_sum_to_one_whatever_the_sign() -> None:
    random = np.random.default_rng(0)
    for healthy in (np.exp(random.standard_normal(500)), random.standard_normal(500), np.full(5, 2.0)):
        edges, shares, faulty, log = score_histogram(healthy, np.append(healthy[:50] + 1, np.nan))
        assert shares.sum() == pytest.approx(1)
        assert faulty.sum() == pytest.approx(1)
        assert np.all(np.diff(edges) > 0)
        assert log == bool(healthy.min() > 0)


def test_bands_become_frequencies_only_where_they_are_known() -> None:
    assert band_centres([0, 10, 30], 2) is not None
    assert band_centres([5, 20], 2).tolist() == [5, 20]  # type: ignore[union-attr]
    assert band_centres(["bin 0", "bin 1"], 2) is None
    assert band_centres(None, 2) is None


def test_json_in_a_script_cannot_end_it() -> None:
    text = json_for_script({"name": HOSTILE + "<!--\u2028", "value": float("nan"), "values": [1.0, float("inf")]})
    assert not set(text) & set("<>&\u2028")
    assert json.loads(text) == {"name": HOSTILE + "<!--\u2028", "value": None, "values": [1.0, None]}


def write_stages(root: Path) -> None:
    """The files of the stages, as they lie after a build."""
    data = full_data()
    write_json(root / "metrics/evaluation.json", data.evaluation)
    write_json(root / "metrics/validation.json", data.validation)
    write_json(root / "metrics/split.json", data.split)
    write_json(root / "data/calibration/calibration.json", data.calibration)
    write_json(root / "data/models/vae/history.json", data.histories["vae"])
    write_json(root / "data/evaluation/events.json", data.events)
    write_json(root / "data/evaluation/episodes.json", data.episodes)
    write_json(root / "data/evaluation/plots/roc.json", data.roc)
    write_json(root / "data/raw/snapshot.json", data.snapshot)
    write_json(root / "data/release/manifest.json", {**data.manifest, "params": {"seed": 11}, "provisional": True})
    assert data.scores is not None
    write_table(root / "data/evaluation/scores.parquet", data.scores)


def test_the_stage_reads_what_the_stages_wrote(tmp_path: Path) -> None:
    write_stages(tmp_path)
    gathered = gather(tmp_path, Params())
    assert set(gathered.histories) == {"vae"}
    assert gathered.cleaning is None
    text = readable(render_report(gathered))
    assert "Provisional release" in text
    assert "seed: 11" in text  # of the release, not of today's params.yaml
    assert "Not available: the evaluation wrote no spectra." in text


def test_the_stage_runs_and_writes_its_page(tmp_path: Path) -> None:
    write_stages(tmp_path)
    (tmp_path / "params.yaml").write_text("report: {title: Line four}\n")
    done = subprocess.run([sys.executable, "-m", "pipeline.report"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "<title>Line four report</title>" in (tmp_path / "reports/index.html").read_text(encoding="utf-8")


def test_no_figures_or_damaged_ones_are_one_message(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"evaluation\.json"):
        gather(tmp_path, Params())
    write_stages(tmp_path)
    (tmp_path / "data/evaluation/events.json").write_text('{"a": 1}')
    with pytest.raises(ContractError, match=r"got a dict, expected a list of objects, in .*events\.json"):
        gather(tmp_path, Params())
    (tmp_path / "data/evaluation/events.json").write_text("[")
    with pytest.raises(ContractError, match="valid JSON"):
        gather(tmp_path, Params())


CHROMIUM = os.environ.get("HEARKEN_CHROMIUM")


@pytest.mark.skipif(not CHROMIUM, reason="HEARKEN_CHROMIUM names no browser")
def test_a_browser_draws_every_chart_without_an_error(page: str, tmp_path: Path) -> None:
    file = tmp_path / "index.html"
    file.write_text(page, encoding="utf-8")
    switches = ["headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync"]
    switches += ["disable-background-networking", "disable-component-update", "enable-logging=stderr", "dump-dom"]
    switches += [f"user-data-dir={tmp_path / 'profile'}", "virtual-time-budget=30000"]
    command = [str(CHROMIUM), *(f"--{switch}" for switch in switches), file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "CONSOLE" not in done.stderr, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    figures = figures_of(page)
    assert f'data-charts="{len(figures)}"' in done.stdout
    drawn = re.findall(
        r'id="([a-z0-9-]+)"[^>]*class="chart js-plotly-plot"|class="chart js-plotly-plot"[^>]*id="([a-z0-9-]+)"',
        done.stdout,
    )
    assert {a or b for a, b in drawn} == set(figures)
