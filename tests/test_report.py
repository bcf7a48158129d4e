"""The report: escaped, self-contained, deterministic, and honest where something is missing."""

from __future__ import annotations

import html
import itertools
import json
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
from report_data import (
    BINS,
    DETECTORS,
    FAILURES,
    HOSTILE,
    NAMES,
    REMOVED,
    days,
    evaluation,
    full_data,
    gate,
    history,
    removed_intervals,
    scores_table,
)

from pipeline.errors import ContractError
from pipeline.evidence import HEAT_BINS, SPECTRUM_BINS
from pipeline.log_status import LOG_STATUSES
from pipeline.params import Params
from pipeline.report import ReportData, gather, render_report
from pipeline.report_page.cleaned import removed_chart
from pipeline.report_page.colours import PALETTES
from pipeline.report_page.crew import watch_of
from pipeline.report_page.data import DATA_DOCS, threshold_setters
from pipeline.report_page.failures import downsample_max
from pipeline.report_page.inputs import LOG_STATUS_WORDS
from pipeline.report_page.judgement import baseline_sentence, cautions, null_reason, winners
from pipeline.report_page.names import visible
from pipeline.report_page.next_steps import next_steps
from pipeline.report_page.packing import packed_numbers, packed_times, unpacked
from pipeline.report_page.page import json_for_script
from pipeline.report_page.score_charts import score_histogram
from pipeline.report_page.spectra import band_centres
from pipeline.store import write_json, write_table


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
    held = json.loads(found[1])
    return {name: opened(figure, held["shared"]) for name, figure in held["figures"].items()}


def opened(value: Any, shared: list[Any]) -> Any:
    """A figure with everything that is packed in it taken out."""
    if isinstance(value, dict):
        if value.get("packed") == "shared":
            return shared[value["at"]]
        return unpacked(value) if "packed" in value else {name: opened(entry, shared) for name, entry in value.items()}
    return [opened(entry, shared) for entry in value] if isinstance(value, list) else value


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
    assert outline.count("script") == 4  # palettes, plotly, figures, and the page's own code


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
    assert markup_for_plotly(page) == []


def test_the_page_loads_nothing(page: str) -> None:
    own = without_plotly(page)
    for tag, attributes in Outline(own).elements:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            target = attributes.get(name)
            ours = target in (None, "data:,") or str(target).startswith("#") or (tag, target) == ("a", DATA_DOCS)
            assert ours, (tag, name, target)
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
        "caught",
        "price",
        "weekly-rates",
        "tail",
        "rates",
        "error-profile",
        "load",
        "calendar",
        "training-autoencoder-loss",
        "training-vae-loss",
        "training-vae-reconstruction",
        "training-vae-kl",
    }
    expected |= {"removed-days", *(f"removed-{i + 1}" for i in range(REMOVED))}
    expected |= {f"scores-{name.replace('_', '-')}" for name in DETECTORS}
    expected |= {f"codes-{part}" for part in ("autoencoder", "vae", "pca", "neighbours")} | {"samples-vae"}
    expected |= {f"{kind}-{name}" for kind in ("path", "traversal") for name in ("autoencoder", "vae")}
    expected |= {
        f"{kind}-{i + 1}" for kind in ("timeline", "heat", "alert-spectrum", "spectrum") for i in range(FAILURES)
    }
    assert set(figures) == expected
    for name, figure in figures.items():
        for trace in figure["data"]:
            if trace["type"] == "heatmap":
                assert len(trace["z"]) == len(trace["y"]) > 0, name
                assert any(value is not None for row in trace["z"] for value in row), name
                continue
            assert len(trace["x"]) == len(trace["y"]) > 0, name
            assert any(value is not None for value in trace["y"]), name
        axes = [value for key, value in figure["layout"].items() if key[1:5] == "axis"]
        assert len(axes) >= 2
        assert all(axis.get("ticktext") or axis["title"]["text"] for axis in axes), name
        assert len(str(places[name]["aria-label"])) > 40
        assert name == "roc" or re.search(r"\d", str(places[name]["aria-label"])), name  # it says figures
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
    assert levels[0] == 1
    assert all(later - earlier <= 1 for earlier, later in itertools.pairwise(levels))
    links = [str(attributes["href"]) for tag, attributes in outline.elements if tag == "a"]
    targets = [link[1:] for link in links if link != DATA_DOCS]
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
    own = without_plotly(page) if get_plotlyjs() in page else page
    text = re.sub(r"<(script|style).*?</\1>", " ", own, flags=re.DOTALL)
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
    assert text.count("Not available:") == 14  # seven pages, and each again in the summary
    assert "Not available: a backtest sets nothing aside." in text
    assert "no failure could be judged" in text
    assert len(page) < 80_000  # no chart, no plotly
    assert "<h2" in page


PARTS = "validation days split cleaning calibration scores events reconstructions release_id error_profile evidence"


@pytest.mark.parametrize("gone", [*PARTS.split(), "codes"])
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


def test_dead_networks_collapse_and_code_dimensions_in_use_are_told(data: ReportData) -> None:
    died = "Dead network: all rows have the same code after epoch 3; training started again from another seed (1 of 2)."
    told = history("vae") | {
        "restarts": 1,
        "warnings": [died],
        "active_units": 7,
        "code_dimensions": 12,
        "cap_hit": False,
        "stopped": "non-finite loss",
    }
    page = readable(render_report(replace(data, histories={"vae": told})))
    assert died in page
    assert "7 of 12 code dimensions are in use" in page
    assert "training number 2" in page
    assert "no longer a finite number" in page
    assert "KL divergence term by epoch" in page
    quiet = readable(render_report(replace(data, histories={"vae": history("vae")})))
    assert "Dead network" not in quiet
    assert "in use" not in quiet
    assert "training number" not in quiet


def test_a_timeline_keeps_peaks_and_shows_thresholds_and_episodes(page: str) -> None:
    figures = figures_of(page)
    first = figures["timeline-1"]
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
    assert {name for name in figures_of(page) if name.startswith("timeline")} == {"timeline-1", "timeline-2"}
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
    assert json.loads(text) == {"name": HOSTILE + "<!--[U+2028]", "value": None, "values": [1.0, None]}


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
    write_json(root / "data/evaluation/plots/episodes.json", data.curves)
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
    assert "Error by band was not written for this failure." in text


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


def test_every_name_is_shown_whole_and_apart(page: str) -> None:
    own = without_plotly(page).replace('<bdi class="long" tabindex="0">', "<bdi>")
    shown = {html.unescape(text) for text in re.findall(r"<bdi>(.*?)</bdi>", own)}
    for name in NAMES:
        assert visible(name) in shown, name
    assert not set(own) & set("\x00\x1b\u202e")
    assert '<bdi class="long"' in page  # 320 characters are clamped until asked for


def markup_for_plotly(page: str) -> list[tuple[str, str]]:
    """Texts of figures in which plotly, which reads a subset of HTML, would find any."""

    def texts(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [text for entry in value.values() for text in texts(entry)]
        if isinstance(value, list):
            return [text for entry in value for text in texts(entry)]
        return [value] if isinstance(value, str) else []

    return [
        (name, text)
        for name, figure in figures_of(page).items()
        for text in texts(figure)
        if "<" in text.replace("<extra></extra>", "")
    ]


def test_no_text_of_the_data_is_markup_for_plotly(page: str) -> None:
    assert markup_for_plotly(page) == []


def test_pages_are_the_questions_in_their_order(page: str) -> None:
    outline = Outline(without_plotly(page))
    ids = [attributes["id"] for tag, attributes in outline.elements if tag == "section"]
    assert ids == ["summary", "data", "model", "codes", "thresholds", "detectors", "failures", "crew", "next"]
    targets = [str(attributes["href"])[1:] for tag, attributes in outline.elements if tag == "a"]
    assert [target for target in targets if target in ids][: len(ids)] == ids
    assert not any("hidden" in attributes for tag, attributes in outline.elements if tag == "section")  # no JavaScript


def test_a_hundred_failures_stay_below_ten_megabytes() -> None:
    page = render_report(full_data(100, HEAT_BINS, SPECTRUM_BINS))
    figures = figures_of(page)
    assert sum(name.startswith("heat-") for name in figures) == 100
    assert len(page.encode()) < 10_000_000


def test_a_heat_map_keeps_its_values(data: ReportData, page: str) -> None:
    assert data.evidence is not None
    written = np.array(data.evidence["error_TC"][0].as_py()).reshape(-1, 64).T
    drawn = np.array(figures_of(page)["heat-1"]["data"][0]["z"], dtype=float)
    known = np.isfinite(written)
    assert np.array_equal(known, np.isfinite(drawn))
    steps = np.abs(np.sqrt(written[known]) - np.sqrt(drawn[known])) / np.sqrt(written[known].max())
    assert steps.max() < 1 / 254


def cleaned_page(data: ReportData, **changed: Any) -> str:
    return readable(render_report(replace(data, cleaning={**(data.cleaning or {}), **changed})))


def test_the_gate_of_cleaning_is_told_with_its_figures_once(data: ReportData, page: str) -> None:
    text = readable(page)
    why = gate()["why"]
    assert text.count(why) == 1
    assert "corrections.csv keeps 1 and removes 0 intervals." in text
    assert "The gate kept the cleaning: AUROC of tune failures" in text
    assert all(figure in text for figure in ("0.871", "0.912", "0.0410", "0.820 to 0.910", "0.0100 to 0.0700"))
    assert "16 of 1,240 episodes stood out" in text
    assert "An estimated 1.3 % of the rows" in text
    assert "with the action keep" in text
    harm = "Cleaning did harm: by much."
    refused = {"gate": gate() | {"cleaning_kept": False, "why": harm}, "notes": [f"{harm} The raw rows stay."]}
    text = cleaned_page(data, **refused)
    assert "The gate kept the raw rows" in text
    assert text.count(f"{harm} The raw rows stay.") == 1
    unjudged = cleaned_page(data, gate={"figure": None, "cleaning_kept": True, "why": "Nothing to judge."})
    assert "Nothing to judge." in unjudged
    assert "The gate kept" not in unjudged
    assert "clean.method: none" in cleaned_page(data, method="none")


def test_removed_rows_stand_beside_kept_ones_on_one_scale(page: str) -> None:
    figures = figures_of(page)
    assert figures["removed-days"]["data"][0]["y"] == [500, 434]
    (trace,) = figures["removed-1"]["data"]
    rows = trace["z"]
    assert len(rows) == BINS
    assert len(trace["x"]) == len(set(trace["x"])) == 48 + 2 + 20 == len(rows[0])
    assert all(row[48:50] == [None, None] for row in rows)
    told = np.array(rows, float)
    assert np.nanmedian(told[BINS // 2, 50:]) > 5 > np.nanmedian(told[:, :48]) * 5
    assert f"{200 * (BINS // 2)}-{200 * (BINS // 2 + 1)} Hz" in readable(page)


def test_a_removed_interval_without_its_normal_is_not_drawn() -> None:
    (entry,) = removed_intervals(1)
    assert removed_chart(entry, 1) is not None
    assert removed_chart({**entry, "normal": {"times": [], "spectra": []}}, 1) is None
    assert removed_chart({**entry, "bands": ["one"]}, 1) is None
    assert removed_chart({}, 1) is None


def test_wide_spectra_of_removed_rows_are_grouped_and_keep_their_lines() -> None:
    (entry,) = removed_intervals(1, 1001)
    chart = removed_chart(entry, 1)
    assert chart is not None
    rows = np.array(unpacked(chart.traces[0]["z"]), float)
    assert len(rows) == len(chart.traces[0]["names"]) <= 128
    assert int(np.nanmedian(rows[:, 50:], axis=1).argmax()) == 500 // 8


def test_suspect_rows_and_days_of_validation(data: ReportData, page: str) -> None:
    text = readable(page)
    assert "Validation holds 77 rows (0.037 % of 207,360) for suspect" in text
    assert "They train nothing, and are judged like any other." in text
    assert "People gave 5 rows back from quarantine." in text
    assert "Suspect by validation" in text
    assert "Machine-days that break a rule, of 4" in text
    assert "the plant: most machines at once" in text
    calm = replace(data, days=days().slice(3), validation={"rows": 4, "quarantined": 0, "suspect": 0})
    text = readable(render_report(calm))
    assert "None of 1 machine-day breaks a rule." in text
    assert "suspect:" not in text


def test_the_data_docs_are_linked_where_they_exist(data: ReportData, page: str, tmp_path: Path) -> None:
    link = f'<a href="{DATA_DOCS}">Data Docs</a>'
    assert link in page
    assert link not in render_report(replace(data, data_docs=False))
    write_stages(tmp_path)
    assert not gather(tmp_path, Params()).data_docs
    docs = tmp_path / "reports" / DATA_DOCS
    docs.parent.mkdir(parents=True)
    docs.write_text("<p>docs</p>")
    assert gather(tmp_path, Params()).data_docs


def test_what_validation_and_cleaning_wrote_is_gathered(data: ReportData, tmp_path: Path) -> None:
    write_stages(tmp_path)
    assert (gather(tmp_path, Params()).days, gather(tmp_path, Params()).worst) == (None, ())
    write_table(tmp_path / "data/validation/days.parquet", days())
    write_json(tmp_path / "data/cleaning/worst.json", data.worst)
    gathered = gather(tmp_path, Params())
    assert gathered.days is not None
    assert gathered.days.num_rows == 4
    assert gathered.worst == data.worst


def test_every_status_of_the_log_has_words() -> None:
    assert set(LOG_STATUS_WORDS) == set(LOG_STATUSES)


def test_what_to_do_next_follows_the_figures(data: ReportData) -> None:
    titles = [step.title for step in next_steps(data)]
    assert titles[-1] == "Confirm or dismiss every alert"
    assert "Train longer" in titles  # the variational autoencoder hit its cap
    assert "Look at the 1 missed failure" in titles
    assert not any(title.startswith("Consider") for title in titles)  # nobody caught more
    judged = evaluation()
    judged["detectors"]["pca"]["events_caught"] = 5
    assert next_steps(replace(data, evaluation=judged))[0].title == "Consider PCA for service"


def test_a_day_of_the_crew(data: ReportData) -> None:
    watch = watch_of(data)
    assert watch is not None
    assert len(watch.episodes) == watch.pages().sum() == 8  # five false, three caught
    first_false = int(np.datetime64("2025-01-01").astype(int)) + 6  # 7.9 days before day 14
    assert watch.opened()["false"][first_false - watch.first_day] == 1
    relative = replace(data, fleet={**data.fleet, "time": "relative"})
    assert "dates of this data set are synthetic" in readable(render_report(relative))


@pytest.mark.parametrize("values", [[], [1.5, float("nan"), float("inf"), -2.0]])
def test_packing_keeps_numbers_and_gaps(values: list[float]) -> None:
    assert unpacked(packed_numbers(values)) == [value if np.isfinite(value) else None for value in values]


def test_packing_keeps_times() -> None:
    times = np.array([0, 1_000_000, 4_000_000_000_000], np.int64) + 1_735_689_600_000_000
    assert unpacked(packed_times(times)) == ["2025-01-01T00:00:00", "2025-01-01T00:00:01", "2025-02-16T07:06:40"]


def test_a_machine_that_sets_the_thresholds_is_named(data: ReportData) -> None:
    scores = np.r_[np.linspace(0, 2, 990), np.full(10, 9.0)]
    names = np.r_[np.full(500, "press-1"), np.full(490, "press-2"), np.full(10, HOSTILE)]
    table = pa.table({"machine_id": names, "score_autoencoder": scores})
    marked = replace(data, calibration_scores=table)
    assert threshold_setters(marked) == [(HOSTILE, 10, 1.0)]
    assert "Look at the machines that set the thresholds" in [step.title for step in next_steps(marked)]
    assert "Which machines set the thresholds: calibration rows at or above low, 1 machine" in readable(
        render_report(marked)
    )
    assert threshold_setters(data) == []
