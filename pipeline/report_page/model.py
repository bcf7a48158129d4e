"""What the model learned: training curves, where its error lies, single spectra against their reconstructions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.report_page.blocks import (
    EM_DASH,
    Block,
    Cell,
    Chart,
    Charts,
    Column,
    Section,
    Table,
    Text,
    as_map,
    as_number,
    count,
    number,
    percent,
    sentence_list,
    when,
)
from pipeline.report_page.charts import HALF_HEIGHT, axis, band_axis, labels, line, training_charts
from pipeline.report_page.colours import detector_colour, detector_label
from pipeline.report_page.data import SCORES_ABSENT, ReportData, detector_order, test_scores
from pipeline.report_page.names import isolated
from pipeline.report_page.packing import packed_numbers
from pipeline.report_page.score_charts import distribution_chart
from pipeline.report_page.spectra import largest_shares, spectrum_charts

NON_FINITE = "non-finite loss"  # why a training stopped, in its history


def model_section(data: ReportData) -> Section:
    """Curves, error distribution, reconstructions, and the five worst rows."""
    blocks: list[Block] = []
    curves, warnings = _training(data)
    blocks += warnings
    blocks += [Charts(curves, "Training")] if curves else []
    blocks += _spectra(data, ("healthy", "alert"), "Original against reconstruction")
    worst = _worst_table(data)
    blocks += [worst] if worst else []
    blocks += _spectra(data, ("worst",), "The worst rows, bin by bin")
    blocks += _distribution(data)
    lead = (
        "Loss on training rows, and on validation rows that no step saw; the weights of the best epoch are kept. Then "
        "single spectra as the model heard them and as it expected them, and how the error is spread."
    )
    return Section("model", "What did the model learn?", "Model", model_answer(data), lead, blocks)


def model_answer(data: ReportData) -> str:
    """How far the validation loss of the release's detector fell, and whether it had converged."""
    for name in [data.detector, *detector_order(data)]:
        history = as_map(data.histories.get(name))
        losses = [as_number(as_map(entry).get("validation_loss")) for entry in history.get("epochs") or []]
        known = [value for value in losses if value is not None]
        if known:
            return (
                f"{detector_label(name)}: the validation loss fell from {number(known[0])} to {number(min(known))} in "
                f"{len(losses)} epochs; {_how_it_ended(history)}.{_units(history)}"
            )
    return ""


def _how_it_ended(history: Mapping[str, Any]) -> str:
    if history.get("cap_hit"):
        return "stopped at the epoch cap, not converged"
    return (
        "stopped because the loss was no longer a finite number"
        if history.get("stopped") == NON_FINITE
        else "converged"
    )


def _units(history: Mapping[str, Any]) -> str:
    """How many dimensions of a variational code are in use."""
    active, whole = as_number(history.get("active_units")), as_number(history.get("code_dimensions"))
    if active is None or whole is None:
        return ""
    return f" {active:.0f} of {whole:.0f} code dimensions are in use."


def _restarts(history: Mapping[str, Any]) -> str:
    tries = int(as_number(history.get("restarts")) or 0)
    return f" It is training number {tries + 1}: those before died." if tries else ""


def _training(data: ReportData) -> tuple[list[Chart], list[Block]]:
    charts: list[Chart] = []
    warnings: list[Block] = []
    order = detector_order(data)
    for name in [*order, *sorted(set(data.histories) - set(order))]:
        history = as_map(data.histories.get(name))
        own = training_charts(name, history)
        if own:  # the first shows the losses
            own[0] = replace(own[0], caption=own[0].caption + _units(history) + _restarts(history))
        charts += own
        said = [str(text) for text in history.get("warnings") or []]
        if history.get("cap_hit"):
            said = [*(said or ["Training stopped at the epoch cap."]), "More epochs may lower the loss further."]
        if own and said:
            warnings.append(Text(f"{detector_label(name)}: {' '.join(said)}", "warning"))
    return charts, warnings


def _spectra(data: ReportData, kinds: Sequence[str], heading: str) -> list[Block]:
    charts = spectrum_charts(data, kinds)
    return [Charts(charts, heading)] if charts else []


def _worst_table(data: ReportData) -> Table | None:
    """The worst rows that the log calls healthy, one of a machine."""
    rows = [row for row in data.reconstructions or [] if row.get("kind") == "worst"]
    if not rows:
        return None
    body = [
        [
            Cell(str(row.get("machine_id", EM_DASH))),
            Cell(when(row.get("timestamp"))),
            Cell(number(row.get("score"))),
            Cell(", ".join(f"{name} ({percent(share)})" for name, share in largest_shares(row))),
        ]
        for row in rows
    ]
    columns = [Column("Machine", numeric=False), Column("Time (UTC)"), Column("Score")]
    caption = "The five worst rows that the log calls healthy, one of each machine: look at these machines first"
    return Table(caption, [*columns, Column("Largest shares of the error", numeric=False, prose=True)], body)


def _distribution(data: ReportData) -> list[Block]:
    charts = [chart for chart in [profile_chart(as_map(data.error_profile), data.detector)] if chart]
    charts += [
        distribution_chart(name, healthy, faulty, data.thresholds(name)) for name, healthy, faulty in test_scores(data)
    ]
    if charts:
        return [Charts(charts, "Error distribution")]
    reason = data.missing.get("scores", SCORES_ABSENT)
    return [Text(f"Error distributions are not available: {reason}.", "muted")] if data.histories else []


def profile_chart(profile: Mapping[str, Any], detector: str) -> Chart | None:
    """Where the error lies: median and 95th percentile by band, of healthy rows and of rows before failures."""
    names, healthy = profile.get("bands") or [], as_map(profile.get("healthy"))
    if not names or len(healthy.get("median") or []) != len(names):
        return None
    x, shown = list(range(len(names))), labels(names)
    hover = {"text": shown, "hovertemplate": "%{text}: %{y:.3g}<extra></extra>"}
    traces = [
        line(
            "healthy, 95th percentile", x, packed_numbers(healthy["high"]), "@healthy", dash="dot", width=1.5, **hover
        ),
        line("healthy, median", x, packed_numbers(healthy["median"]), detector_colour(detector), width=2.25, **hover),
    ]
    faulty = as_map(profile.get("faulty"))
    if len(faulty.get("median") or []) == len(names):
        traces.append(line("before failures, median", x, packed_numbers(faulty["median"]), "@faulty", **hover))
    median = np.asarray(healthy["median"], np.float64)
    top = np.argsort(-median, kind="stable")[:3]
    whole = float(median.sum()) or 1.0
    listed = sentence_list([f"{isolated(names[place])} ({percent(median[place] / whole)})" for place in top])
    caption = f"Median error of {count(healthy.get('rows'))} healthy test rows lies most in {listed}."
    layout = {"xaxis": axis("", **band_axis(names, 4)), "yaxis": axis("error (share of the score)", rangemode="tozero")}
    title = f"{detector_label(detector)}: error by band" if detector else "Error by band"
    return Chart("error-profile", title, caption, traces, layout, HALF_HEIGHT + 20)
