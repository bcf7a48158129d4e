"""What the codes tell apart: failures among healthy rows beside PCA; samples, ways between spectra, numbers moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.report_page.blocks import (
    Chart,
    Charts,
    Section,
    as_map,
    as_number,
    count,
    number,
    percent,
    plural,
    when,
)
from pipeline.report_page.charts import TALL_HEIGHT, Json, axis, band_axis, line, log_ticks, note, rule, slug
from pipeline.report_page.colours import MODE_COLOURS, detector_colour, detector_label
from pipeline.report_page.data import ReportData
from pipeline.report_page.names import escaped, isolated, plot_label, visible
from pipeline.report_page.packing import packed_numbers
from pipeline.report_page.spectra import band_centres
from pipeline.schema import FloatN

SCATTER_HEIGHT = 430
MARKS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "x", "triangle-down", "pentagon", "hexagon")
WAY = ("@cold-3", "@cold-2", "@muted", "@heat-2", "@heat-3")
SWEEP = ("@cold-3", "@cold-2", "@cold-1", "@muted", "@heat-2", "@heat-3", "@heat-4")
NEAR_HOURS, FAINT = 24.0, 0.25  # rows longer before the failure are drawn faint
KINDS = ("spaces", "paths", "traversals")
LEVELS = axis("level (robust SD)") | {"zeroline": True, "zerolinewidth": 1, "zerolinecolor": "@line"}


def codes_section(data: ReportData) -> Section:
    """Scatter plots beside PCA, how often neighbours share a mode, samples, ways and traversals."""
    codes = as_map(data.codes)
    spaces, paths, traversals = ([as_map(each) for each in codes.get(key) or []] for key in KINDS)
    samples, names = as_map(codes.get("samples")), [str(name) for name in codes.get("bands") or []]
    scatters = [chart for space in spaces if (chart := scatter_chart(as_map(codes.get("points")), space))]
    scatters += [chart for chart in [neighbours_chart(spaces)] if chart]
    drawn = {
        "Codes by failure mode": scatters,
        "What codes drawn at random sound like": [samples_chart(samples, names, data.fleet)] if samples else [],
        "From a healthy spectrum to a failing one": [path_chart(path, names) for path in paths],
        "One number of the code, moved": [traversal_chart(each, names) for each in traversals],
    }
    blocks = [Charts(charts, heading) for heading, charts in drawn.items() if charts]
    lead = (
        "A network describes every spectrum by a few numbers, its code. Rows that lie apart here sound different to "
        "it. Where codes decode to spectra that no machine makes, the network has not understood them."
    )
    return Section("codes", "What do the codes tell apart?", "Codes", codes_answer(spaces, len(names)), lead, blocks)


def codes_answer(spaces: Sequence[Mapping[str, Any]], bands: int) -> str:
    """How small the codes are, and whether rows of one failure mode lie together in them."""
    if not spaces:
        return ""
    first = spaces[0]
    told = (
        f"{detector_label(str(first.get('detector')))}: {bands} bands become {count(first.get('dimensions'))} numbers."
    )
    known = as_map(first.get("neighbours"))
    if as_number(known.get("share")) is None:
        return f"{told} No failure mode was judged on two machines, so whether modes lie together cannot be told."
    return (
        f"{told} The nearest row on another machine is of the same failure mode for {percent(known['share'])} of rows, "
        f"by chance {percent(known.get('by_chance'))}."
    )


def scatter_chart(points: Mapping[str, Any], space: Mapping[str, Any]) -> Chart | None:
    """Rows in a plane of the codes: healthy ones grey, rows before failures by their mode, faint when long before."""
    mode_P, name = np.asarray(points.get("mode") or [], np.int64), str(space.get("detector"))
    x_P, y_P = (np.asarray(space.get(key) or [], np.float64) for key in "xy")
    if not len(mode_P) or len(x_P) != len(mode_P):
        return None
    healthy_P, is_pca = mode_P < 0, name == "pca"
    traces = [_dots("healthy", x_P[healthy_P], y_P[healthy_P], "@healthy", "circle", 4, 0.45)]
    for place in range(len(points.get("modes") or [])):
        traces += _mode_dots(points, place, x_P, y_P)
    shown, plane = as_number(space.get("shown_share")), "the plane in which the drawn codes vary most"
    caption = f"{count(space.get('dimensions'))} numbers, seen in {'its first two components' if is_pca else plane}"
    caption += f" ({percent(shown)} of what varies). " if shown is not None else ". "
    caption += f"{plural(int(healthy_P.sum()), 'healthy test row')}, {int((~healthy_P).sum()):,} before failures: "
    caption += f"faint until {NEAR_HOURS:g} h before."
    what = ("component", " (robust SD)") if is_pca else ("direction of the code", "")
    layout: Json = {
        "xaxis": axis(f"first {''.join(what)}", showgrid=True),
        "yaxis": axis(f"second {''.join(what)}"),
        "legend": {"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top", "font": {"color": "@ink"}},
        "margin": {"b": 110, "t": 12},
    }
    title = f"{detector_label(name)}: {'components' if is_pca else 'codes'}"
    return Chart(slug(f"codes-{name}"), title, caption, traces, layout, SCATTER_HEIGHT, "half")


def _mode_dots(points: Mapping[str, Any], place: int, x_P: FloatN, y_P: FloatN) -> list[Json]:
    """The rows before failures of one mode: faint ones, and on top of them those of the last hours."""
    name, machines = _mode_name(points["modes"][place]), points.get("machines") or []
    mine = np.flatnonzero(np.asarray(points["mode"]) == place)
    hours = np.array([float(points["hours_before"][at] or 0.0) for at in mine])
    traces = []
    for near in (False, True):
        rows, spans = mine[(hours <= NEAR_HOURS) == near], hours[(hours <= NEAR_HOURS) == near]
        if not len(rows):
            continue
        said = [
            f"{plot_label(machines[points['machine'][at]])}, {span:,.0f} h before failing"
            for at, span in zip(rows.tolist(), spans, strict=True)
        ]
        colour, mark = f"@mode-{place % MODE_COLOURS}", MARKS[place % len(MARKS)]
        trace = _dots(name, x_P[rows], y_P[rows], colour, mark, 7, 0.9 if near else FAINT)
        hover = {"text": said, "hovertemplate": f"{plot_label(name)}: %{{text}}<extra></extra>"}
        legend = {"legendgroup": f"mode {place}", "showlegend": near or bool((hours > NEAR_HOURS).all())}
        traces.append(trace | hover | legend)
    return traces


def neighbours_chart(spaces: Sequence[Mapping[str, Any]]) -> Chart | None:
    """Whether rows of one mode lie together, in all numbers of the codes; None where that cannot be told."""
    known = [(str(space.get("detector")), as_map(space.get("neighbours"))) for space in spaces]
    known = [(name, figures) for name, figures in known if as_number(figures.get("share")) is not None]
    if not known:
        return None
    names = [escaped(detector_label(name)) for name, _ in known]
    bars: Json = {
        "type": "bar",
        "name": "nearest row of the same mode",
        "orientation": "h",
        "y": names,
        "x": [figures["share"] for _, figures in known],
        "width": 0.5,
        "marker": {"color": [detector_colour(name) for name, _ in known], "line": {"width": 0}},
        "showlegend": False,
        "hovertemplate": "%{y}: %{x:.1%}<extra></extra>",
    }
    chance = float(known[0][1].get("by_chance") or 0.0)
    rows = plural(int(known[0][1].get("rows") or 0), "row")
    told = ", ".join(f"{detector_label(name)} {percent(figures['share'])}" for name, figures in known)
    caption = (
        f"Of {rows} before failures, those whose nearest row on another machine fails in the same way: {told}; by "
        f"chance {percent(chance)}. Nearness counts all numbers of a code, not only the plane drawn."
    )
    layout: Json = {
        "xaxis": axis("rows whose nearest row fails alike", tickformat=".0%", range=[0, 1]),
        "yaxis": axis("space", autorange="reversed", showgrid=False),
        "shapes": [rule("x", chance, "@ink", "dash")],
        "annotations": [note("by chance", x=chance, y=1, yref="y domain", xanchor="left", yanchor="bottom")],
    }
    title = "Do failures of one mode lie together?"
    return Chart("codes-neighbours", title, caption, [bars], layout, SCATTER_HEIGHT, "half")


def _mode_name(mode: Any) -> str:
    return str(mode).replace("_", " ")


def _dots(name: str, x: Any, y: Any, colour: str, mark: str, size: int, opacity: Any) -> Json:
    marker = {"color": colour, "symbol": mark, "size": size, "opacity": opacity, "line": {"width": 0}}
    return {
        "type": "scatter",
        "mode": "markers",
        "name": escaped(visible(name)),
        "x": packed_numbers(x),
        "y": packed_numbers(y),
        "marker": marker,
        "hovertemplate": f"{plot_label(name)}<extra></extra>",
    }


def samples_chart(samples: Mapping[str, Any], names: Sequence[str], fleet: Mapping[str, Any]) -> Chart:
    """Spectra decoded from N(0, 1) codes, among the healthy spectra of the machine whose baseline they have."""
    x, across = _across(names)
    name = str(samples.get("detector"))
    low, high = (samples.get(key) or [] for key in ("low", "high"))
    edge: Json = {"type": "scatter", "mode": "lines", "x": x, "line": {"width": 0, "color": "@healthy-soft"}}
    traces: list[Json] = [
        {**edge, "y": packed_numbers(low), "showlegend": False, "hoverinfo": "skip", "name": "healthy, 5th percentile"},
        {
            **edge,
            "y": packed_numbers(high),
            "fill": "tonexty",
            "fillcolor": "@healthy-soft",
            "name": "healthy, 5th to 95th percentile",
            "hoverinfo": "skip",
        },
    ]
    for index, spectrum in enumerate(samples.get("spectra") or []):
        style = {"width": 1.25, "legendgroup": "samples", "showlegend": index == 0, "opacity": 0.75}
        traces.append(line("samples", x, packed_numbers(spectrum), detector_colour(name), **style))
    traces.append(line("healthy, median", x, packed_numbers(samples.get("median") or []), "@ink", width=2))
    known = [value for part in (low, high, *(samples.get("spectra") or [])) for value in part if as_number(value)]
    log, unit = fleet.get("kind") != "features" and bool(known) and min(known) > 0, str(fleet.get("unit") or "")
    title = "value" if fleet.get("kind") == "features" else "magnitude" + (f" ({unit})" if unit else "")
    up = axis(f"{title}, log scale", type="log", **log_ticks(min(known), max(known))) if log else axis(title)
    condition = str(samples.get("condition") or "")
    where = isolated(samples.get("machine_id")) + (f", {isolated(condition)}" if condition else "")
    inside = as_number(samples.get("inside"))
    caption = (
        f"{plural(len(samples.get('spectra') or []), 'spectrum', 'spectra')} decoded from standard normal codes "
        f"for {where}, over {count(samples.get('healthy_rows'))} healthy spectra of it. "
    )
    if inside is not None:
        caption += f"Of many such spectra {percent(inside)} of the bands lie within the band of healthy ones, "
        caption += "as 90 % of theirs do; more would say that they vary too little."
    layout = {"xaxis": across, "yaxis": up}
    return Chart(slug(f"samples-{name}"), f"{detector_label(name)}: samples", caption, traces, layout, TALL_HEIGHT + 20)


def path_chart(path: Mapping[str, Any], names: Sequence[str]) -> Chart:
    """Decoded spectra on the straight way from one code to another, and both ends as they were heard."""
    x, across = _across(names)
    name, begin, end = str(path.get("detector")), as_map(path.get("from")), as_map(path.get("to"))
    heard = path.get("heard") or [[], []]
    traces = [
        line("heard, healthy", x, packed_numbers(heard[0]), WAY[0], width=1, dash="dot"),
        line("heard, failing", x, packed_numbers(heard[1]), WAY[-1], width=1, dash="dot"),
    ]
    for step, levels, colour in zip(path.get("steps") or [], path.get("levels") or [], WAY, strict=False):
        label = {0.0: "decoded, healthy", 1.0: "decoded, failing"}.get(float(step), f"{percent(step)} of the way")
        traces.append(line(label, x, packed_numbers(levels), colour, width=2 if step in (0.0, 1.0) else 1.25))
    same = "the same machine and condition" if path.get("same_baseline") else "different machines or conditions"
    caption = (
        f"From {isolated(begin.get('machine_id'))}, {when(begin.get('timestamp'))} UTC, to "
        f"{isolated(end.get('machine_id'))}, {when(end.get('timestamp'))} UTC, before a failure "
        f"({isolated(_mode_name(end.get('failure_mode')))}, {when(end.get('failure_time'))}): {same}."
    )
    layout = {"xaxis": across, "yaxis": LEVELS}
    title = f"{detector_label(name)}: code by code"
    return Chart(slug(f"path-{name}"), title, caption, traces, layout, TALL_HEIGHT + 40, "half")


def traversal_chart(traversal: Mapping[str, Any], names: Sequence[str]) -> Chart:
    """What a code decodes to while one of its numbers moves and the others stay at the healthy mean."""
    x, across = _across(names)
    name = str(traversal.get("detector"))
    traces = [
        line(f"{float(at):+g}" if at else "mean", x, packed_numbers(levels), colour, width=2 if not at else 1.5)
        for at, levels, colour in zip(
            traversal.get("deviations") or [], traversal.get("levels") or [], SWEEP, strict=False
        )
    ]
    moved = as_map(traversal.get("moved_by"))
    caption = (
        f"Number {count(traversal.get('dimension'))} of {count(traversal.get('dimensions'))}, in deviations of healthy "
        "codes; the others at their healthy mean. "
    )
    if moved:
        caption += (
            f"No number moved further before a failure: {number(moved.get('deviations'), 2)} deviations at "
            f"{isolated(moved.get('machine_id'))} ({isolated(_mode_name(moved.get('failure_mode')))})."
        )
    layout = {"xaxis": across, "yaxis": LEVELS}
    title = f"{detector_label(name)}: number {count(traversal.get('dimension'))}"
    return Chart(slug(f"traversal-{name}"), title, caption, traces, layout, TALL_HEIGHT + 20, "half")


def _across(names: Sequence[str]) -> tuple[Any, Json]:
    """Places along the bands and their axis: in Hz where the names tell, else by name."""
    centres = band_centres(names, len(names))
    if centres is None:
        return list(range(len(names))), axis("", **band_axis(names))
    return packed_numbers(centres), axis("frequency (Hz)", tickformat="~s")
