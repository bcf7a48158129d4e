"""What cleaning came to: whether its gate kept it, what went when, and the worst of that beside what was kept.

Shape legend: T spectra of an interval, F bins, B bands (groups of neighbouring bins).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.report_page.blocks import (
    EM_DASH,
    Block,
    Cell,
    Chart,
    Charts,
    Column,
    Columns,
    Group,
    Table,
    Text,
    as_map,
    as_number,
    count,
    interval,
    number,
    parse_time,
    percent,
    plural,
    sentence_list,
    when,
)
from pipeline.report_page.charts import HALF_HEIGHT, Json, axis, band_axis, heat_trace, slug
from pipeline.report_page.data import ReportData
from pipeline.report_page.names import escaped, isolated
from pipeline.schema import FloatN

LISTED = 10
DAY_MS = 86_400_000
MAX_BANDS = 128
BETWEEN = (" ", "  ")  # empty columns between what was kept and what was removed
NEAREST = 12
MAD_OF_NORMAL = 1.4826
MIN_SPREAD = 0.1  # of the median band's, for a band that never moves
FIGURES = {
    "auroc": ("AUROC of tune failures", "higher is better"),
    "tail_instability": ("instability of healthy tails", "lower is better"),
}
LAST_WORD = (
    "People have the last word: a line of data/cleaning/removed.csv, copied into the data set's corrections.csv with "
    "the action keep, brings its rows back at the next build; with the action remove it removes them whatever the "
    "statistics and the gate say."
)


def cleaning_blocks(data: ReportData) -> list[Block]:
    """The gate, removed rows by day, the worst intervals and their spectra; nothing where nothing was cleaned."""
    cleaning = as_map(data.cleaning)
    if not cleaning:
        return []
    blocks: list[Block] = [Text(text) for text in (_found(cleaning), gate_words(cleaning)) if text]
    beside = [_gate_table(as_map(cleaning.get("gate"))), _days_chart(as_map(cleaning.get("by_day")))]
    known = [block for block in beside if block is not None]
    blocks += [Columns(known)] if known else []
    worst = cleaning.get("worst_episodes")
    blocks += _worst_table(worst) if isinstance(worst, list) else []
    charts = [chart for index, entry in enumerate(data.worst, 1) if (chart := removed_chart(entry, index))]
    blocks += [Charts(charts, "The worst removed intervals beside kept rows of the same machine")] if charts else []
    return [Group("cleaning", "What cleaning removed", [*blocks, Text(LAST_WORD)])]


def gate_words(cleaning: Mapping[str, Any]) -> str:
    """The verdict of the gate, as the stage says it among its notes."""
    why = str(as_map(cleaning.get("gate")).get("why") or "")
    notes = [str(text) for text in cleaning.get("notes") or []]
    return next((text for text in notes if why and text.startswith(why)), why)


def _found(cleaning: Mapping[str, Any]) -> str:
    """How many episodes stood out, and how much the method takes for contaminated."""
    if cleaning.get("method") == "none":
        return "The statistics were off (clean.method: none): only corrections of people were applied."
    episodes, marked = as_number(cleaning.get("episodes")), as_number(cleaning.get("removed_episodes"))
    if episodes is None or marked is None:
        return ""
    how = ", ".join(f"{name} {cleaning[name]}" for name in ("method", "model") if cleaning.get(name))
    how += f", regimes by {isolated(cleaning['regimes'])}" if cleaning.get("regimes") else ""
    text = f"{count(marked)} of {plural(int(episodes), 'episode')} stood out from their machine's others ({how})."
    share = as_number(cleaning.get("contaminated_share_estimate"))
    return text if share is None else f"{text} An estimated {percent(share)} of the rows looked at are contaminated."


def _gate_table(gate: Mapping[str, Any]) -> Table | None:
    """A quick detector's figure, fitted on raw and on cleaned rows."""
    figure, better = FIGURES.get(str(gate.get("figure")), ("", ""))
    if not figure:
        return None
    rows = [
        [Cell(words), Cell(number(gate.get(key))), Cell(interval(gate.get(f"{key}_interval"), 3) or EM_DASH)]
        for key, words in (("raw", "Raw rows"), ("cleaned", "Cleaned rows"), ("difference", "Gain by cleaning"))
    ]
    verdict = "kept the cleaning" if gate.get("cleaning_kept") else "kept the raw rows"
    heads = [Column("Fitted on", numeric=False), Column("Figure", hint=better), Column("90 % interval")]
    return Table(f"The gate {verdict}: {figure}", heads, rows)


def _days_chart(by_day: Mapping[str, Any]) -> Charts | None:
    days = {str(day): int(rows) for day, raw in sorted(by_day.items()) if (rows := as_number(raw)) and parse_time(day)}
    if not days:
        return None
    most = max(days, key=lambda day: days[day])
    trace: Json = {
        "type": "bar",
        "name": "removed rows",
        "x": [escaped(day) for day in days],
        "y": list(days.values()),
        "marker": {"color": "@faulty"},
        "hovertemplate": "%{x|%Y-%m-%d}: %{y} rows<extra></extra>",
    }
    trace["width"] = 0.8 * DAY_MS  # a single bar has no neighbour to take its width from
    first, last = (np.datetime64(str(day)[:10]) for day in (min(days), max(days)))
    every = DAY_MS * (int((last - first).astype(int)) // 3 + 1)
    across = axis("day (UTC)", type="date", tickformat="%Y-%m-%d", tick0=str(first), dtick=every)
    layout = {"xaxis": across, "yaxis": axis("rows", rangemode="tozero")}
    caption = f"Rows were removed on {plural(len(days), 'day')}; most, {count(days[most])}, on {most}."
    return Charts([Chart("removed-days", "Removed rows by day", caption, [trace], layout, HALF_HEIGHT)])


def _worst_table(episodes: Sequence[Any]) -> list[Block]:
    rows = []
    for episode in map(as_map, episodes[:LISTED]):
        machine = str(episode.get("machine") or EM_DASH)
        spans = [Cell(when(episode.get("start"))), Cell(when(episode.get("end")))]
        figures = [Cell(count(episode.get("rows"))), Cell(number(episode.get("error")))]
        reason = str(episode.get("reason") or EM_DASH).replace("_", " ")
        fate = "kept" if episode.get("removed") is False else "removed"
        rows.append([Cell(machine), *spans, *figures, Cell(reason), Cell(fate)])
    if not rows:
        return []
    heads = [
        Column("From (UTC)"),
        Column("To (UTC)"),
        Column("Rows"),
        Column("Evidence", hint="robust SD"),
        Column("Found by", numeric=False),
        Column("Outcome"),
    ]
    return [Table("Intervals that cleaning found, worst first", [Column("Machine", numeric=False), *heads], rows)]


def removed_chart(entry: Mapping[str, Any], index: int) -> Chart | None:
    """One removed interval beside kept rows of its machine, both as distances from kept rows; see `departures`.

    None where fewer than two rows were kept, or where numbers are missing.
    """
    normal, removed = (as_map(entry.get(part)) for part in ("normal", "removed"))
    kept_TF, gone_TF = (np.asarray(part.get("spectra") or [], np.float64) for part in (normal, removed))
    names = [str(name) for name in entry.get("bands") or []]
    if kept_TF.ndim != 2 or gone_TF.ndim != 2 or not len(names) == kept_TF.shape[1] == gone_TF.shape[1]:
        return None
    if len(kept_TF) < 2 or not len(gone_TF):
        return None
    far_TB, bands = grouped(departures(kept_TF, gone_TF), names)
    kept = len(kept_TF)
    empty_TB = np.full((len(BETWEEN), len(bands)), np.nan)
    times = [escaped(str(time)[:19].replace("T", " ")) for part in (normal, removed) for time in part["times"]]
    x = (*times[:kept], *BETWEEN, *times[kept:])
    shown_TB = np.concatenate([far_TB[:kept], empty_TB, far_TB[kept:]])
    trace = heat_trace(shown_TB.T, bands, "distance", time="%{x}", x=x)
    marks = [times[kept // 2], times[kept + len(gone_TF) // 2]]
    words = [f"{kept} kept", f"{len(gone_TF)} removed"]
    layout = {
        "xaxis": axis("rows in order of time", type="category", tickvals=marks, ticktext=words, tickangle=0),
        "yaxis": axis("", **band_axis(bands)),
        "margin": {"t": 10, "l": 110, "r": 84},
    }
    title = f"{isolated(entry.get('machine', EM_DASH))} · {when(entry.get('start'))} to {when(entry.get('end'))} UTC"
    return Chart(slug(f"removed-{index}"), title, _caption(far_TB, kept, bands), [trace], layout, HALF_HEIGHT, "half")


def departures(kept_TF: FloatN, gone_TF: FloatN) -> FloatN:
    """Distance of the kept and then the removed rows from kept rows of their own level, in robust SD of the kept ones.

    A row is compared, bin by bin, with the median of the NEAREST other kept rows by mean over the bins: a machine that
    idles with itself idling.

    >>> departures(np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 0.5]]), np.array([[1.5, 0.5]])).round(1).tolist()[-1]
    [9.0, 0.2]
    """
    kept, rows_TF = len(kept_TF), np.concatenate([kept_TF, gone_TF])
    level_T = rows_TF.mean(axis=1)
    apart_TT = np.abs(level_T[:, None] - level_T[:kept])
    np.fill_diagonal(apart_TT, np.inf)  # a kept row is not its own neighbour
    nearest = np.argsort(apart_TT, axis=1, kind="stable")[:, : min(NEAREST, kept - 1)]
    far_TF = np.abs(rows_TF - np.median(kept_TF[nearest], axis=1))
    spread_F = MAD_OF_NORMAL * np.median(far_TF[:kept], axis=0)
    least = max(MIN_SPREAD * float(np.median(spread_F)), 1e-6)
    return np.asarray(far_TF / np.maximum(spread_F, least), np.float64)


def grouped(values_TF: FloatN, names: Sequence[str], most: int = MAX_BANDS) -> tuple[FloatN, list[str]]:
    """The largest value of each group of neighbouring bins (T, B), and the groups' names: a narrow line stays visible.

    >>> grouped(np.array([[1.0, 5.0, 2.0]]), ["a", "b", "c"], 2)
    (array([[5., 2.]]), ['a … b', 'c'])
    """
    each = -(-len(names) // most)
    first = np.arange(0, len(names), each)
    last = np.minimum(first + each, len(names)) - 1
    words = [
        names[a] if a == b else f"{names[a]} … {names[b]}" for a, b in zip(first.tolist(), last.tolist(), strict=True)
    ]
    return np.maximum.reduceat(values_TF, first, axis=1), words


def _caption(far_TB: FloatN, kept: int, bands: Sequence[str]) -> str:
    """The bands in which the removed rows stand farthest out."""
    usual_B, found_B = np.median(far_TB[:kept], axis=0), np.median(far_TB[kept:], axis=0)
    top = np.argsort(usual_B - found_B, kind="stable")[:3]
    listed = [f"{isolated(bands[at])} ({number(found_B[at], 2)}; kept {number(usual_B[at], 2)})" for at in top]
    return (
        "Distance of each row from the kept rows nearest to it in overall level, in robust SD of the kept rows. Median "
        f"distance of the removed rows, farthest first: {sentence_list(listed)}."
    )
