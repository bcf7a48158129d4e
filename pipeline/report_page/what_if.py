"""What other settings of the alerts would have done: failures caught and false pages by percentile, for each k of n."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.report_page.blocks import (
    Chart,
    as_map,
    as_number,
    count,
    hours,
    interval,
    number,
    plural,
)
from pipeline.report_page.charts import Json, axis, line, note, rule, significant
from pipeline.report_page.colours import detector_colour, detector_label
from pipeline.report_page.names import plot_label

HEIGHT = 520
NAMED = 8  # failures by name in a hover, of the caught and of the missed
UPPER, LOWER = [0.56, 1.0], [0.0, 0.44]  # panels
SLIDER_MARGIN = 126
CHOSEN = "Who chooses a setting by these failures has nothing left to judge it by but later ones."


def what_if_chart(found: Mapping[str, Any]) -> Chart | None:
    """A panel of failures caught and one of false pages a day by percentile, with a slider over k of n.

    Args:
        found: data/evaluation/what_if.json, as `pipeline.what_if.grid` makes it.

    Returns:
        None where no setting has a rate of false pages: it could not be drawn.
    """
    settings = [as_map(row) for row in found.get("settings") or []]
    settings = [row for row in settings if as_number(row.get("false_episodes_per_day")) is not None]
    if not settings:
        return None
    failures = {str(one.get("failure_id")): as_map(one) for one in found.get("failures") or []}
    percentiles = sorted({float(row["percentile"]) for row in settings})
    pairs = sorted({_pair(row) for row in settings}, key=lambda pair: (pair[1], pair[0]))
    now = next((row for row in settings if row.get("present")), settings[0])
    budget = as_number(found.get("budget_per_day"))
    floor = _floor(settings, found, budget)
    traces = list[Json]()
    for pair in pairs:
        mine = sorted((row for row in settings if _pair(row) == pair), key=lambda row: float(row["percentile"]))
        places = [percentiles.index(float(row["percentile"])) for row in mine]
        traces += _traces(pair, mine, places, failures, str(found.get("detector")), floor, pair == _pair(now))
    layout = _layout(settings, percentiles, pairs, now, budget, floor, len(failures))
    name = detector_label(str(found.get("detector")))
    title = "What if? Other percentiles and other k of n"
    return Chart("what-if", title, _caption(settings, now, budget, len(failures), name), traces, layout, HEIGHT)


def _pair(row: Mapping[str, Any]) -> tuple[int, int]:
    return int(row["k"]), int(row["n"])


def _floor(settings: Sequence[Mapping[str, Any]], found: Mapping[str, Any], budget: float | None) -> float:
    """Where none is drawn on the log axis: below half a false page in all of the time observed."""
    machines, days = as_number(found.get("machines")), as_number(found.get("healthy_machine_days"))
    least = 0.5 * machines / days if machines and days else 0.01
    rates = [float(row["false_episodes_per_day"]) for row in settings if row["false_episodes_per_day"] > 0]
    return min([least, *(rate / 2 for rate in rates), *([budget / 2] if budget else [])])


def _traces(
    pair: tuple[int, int],
    rows: Sequence[Mapping[str, Any]],
    places: Sequence[int],
    failures: Mapping[str, Mapping[str, Any]],
    detector: str,
    floor: float,
    visible: bool,
) -> list[Json]:
    """False pages a day of one k of n; and where there are failures those caught, and caught by chance."""
    of = f"{pair[0]} of {pair[1]}"
    shown: Json = {"visible": visible, "mode": "lines+markers", "hovertemplate": "%{text}<extra></extra>"}
    caught = [as_number(row.get("events_caught")) for row in rows]
    chance = [as_number(row.get("events_by_chance")) for row in rows]
    rates = [float(row["false_episodes_per_day"]) for row in rows]
    ends = [row.get("false_episodes_per_day_ci") or (rate, rate) for row, rate in zip(rows, rates, strict=True)]
    drawn = np.maximum(rates, floor)
    up = [max(float(high) - at, 0.0) for (_, high), at in zip(ends, drawn, strict=True)]
    down = [max(at - max(float(low), floor), 0.0) for (low, _), at in zip(ends, drawn, strict=True)]
    bars = {"type": "data", "symmetric": False, "array": significant(up), "arrayminus": significant(down)}
    upper = [
        {
            **line(f"{of}: caught", list(places), caught, detector_colour(detector), width=2.25),
            **shown,
            "text": [_hover(row, failures) for row in rows],
            "yaxis": "y2",
        },
        {
            **line(f"{of}: caught by chance", list(places), chance, "@muted", dash="dot", width=1.5),
            **shown,
            "mode": "lines",
            "text": [f"{number(value, 2)} caught by chance" for value in chance],
            "yaxis": "y2",
        },
    ]
    lower = {
        **line(f"{of}: false pages a day", list(places), significant(drawn), "@warn", width=1.75),
        **shown,
        "error_y": {**bars, "color": "@warn", "thickness": 1.5, "width": 4},
        "text": [_told_rate(row) for row in rows],
    }
    return [*(upper if failures else []), lower]


def _told_rate(row: Mapping[str, Any]) -> str:
    """False pages a day of one setting."""
    around = interval(row.get("false_episodes_per_day_ci"))
    told = f"{number(row['false_episodes_per_day'])} false pages a day{f' ({around})' if around else ''}"
    return f"{told}<br>{number(row.get('alerts_per_day'))} pages a day in all"


def _hover(row: Mapping[str, Any], failures: Mapping[str, Mapping[str, Any]]) -> str:
    """Which failures one setting catches, and which it misses, by name; breaks are ours, names are escaped."""
    leads = as_map(row.get("lead_time_hours"))
    caught = sorted((name for name in failures if name in leads), key=lambda name: -float(leads[name]))
    missed = [name for name in failures if name not in leads]
    lines = [f"{row['percentile']:g}, {row['k']} of {row['n']}: {len(caught)} of {len(failures)} caught"]
    if caught:
        told = [f"{_name(failures[name])}, {hours(leads[name]).split(' (')[0]} ahead" for name in caught[:NAMED]]
        lines += ["caught:", *told, *_rest(len(caught))]
    if missed:
        lines += ["missed:", *(_name(failures[name]) for name in missed[:NAMED]), *_rest(len(missed))]
    return "<br>".join(lines)


def _rest(many: int) -> list[str]:
    return [f"and {many - NAMED} more"] if many > NAMED else []


def _name(failure: Mapping[str, Any]) -> str:
    mode = str(failure.get("failure_mode") or "mode not recorded").replace("_", " ")
    return f"{plot_label(failure.get('machine_id'), 24)} ({plot_label(mode, 20)})"


def _layout(
    settings: Sequence[Mapping[str, Any]],
    percentiles: Sequence[float],
    pairs: Sequence[tuple[int, int]],
    now: Mapping[str, Any],
    budget: float | None,
    floor: float,
    failures: int,
) -> Json:
    """Two panels over the percentiles, the budget and the present percentile as lines, a slider over k of n."""
    tops = [float((row.get("false_episodes_per_day_ci") or [0, row["false_episodes_per_day"]])[1]) for row in settings]
    low, high = float(np.log10(floor)) - 0.15, float(np.log10(max([*tops, budget or floor, floor * 10]))) + 0.15
    powers = [10.0**power for power in range(int(np.ceil(low)), int(np.floor(high)) + 1) if 10.0**power > 2 * floor]
    place = percentiles.index(float(now["percentile"]))
    shapes = [rule("x", place, "@muted", "dot", 1)]
    shapes[0] |= {"yref": "paper"}
    notes = [note("now", x=place, y=0.5, yref="paper", xanchor="left", xshift=4)]
    if budget:
        shapes.append(rule("y", budget, "@ink", "dash", 1.25))
        at = float(np.log10(budget))
        text = f"budget {number(budget, 2)}"
        notes.append(note(text, x=0, xref="x domain", y=at, xanchor="left", yanchor="bottom", colour="@ink"))
    whole = {"tick0": 0, "dtick": max(1, -(-failures // 4))}  # failures come whole
    upper = axis("failures caught", range=[-0.03 * failures, 1.06 * failures], domain=UPPER, **whole)
    return {
        "xaxis": {
            **axis("percentile of healthy scores that a row must exceed", anchor="y"),
            "tickvals": list(range(len(percentiles))),
            "ticktext": [f"{percentile:g}" for percentile in percentiles],
            "range": [-0.3, len(percentiles) - 0.7],
        },
        "yaxis": {
            **axis("false pages a day (log)", type="log", range=[low, high], domain=LOWER if failures else [0, 1]),
            "tickvals": [floor, *powers],
            "ticktext": ["none", *(f"{power:g}" for power in powers)],
        },
        **({"yaxis2": upper} if failures else {}),
        "shapes": shapes,
        "annotations": notes,
        "showlegend": True,
        "margin": {"b": SLIDER_MARGIN},
        "sliders": [_slider(pairs, _pair(now), 3 if failures else 1)],
    }


def _slider(pairs: Sequence[tuple[int, int]], now: tuple[int, int], series: int) -> Json:
    """A step per k of n, which shows its series and hides the others."""
    steps = []
    for pair in pairs:
        shown = [other == pair for other in pairs for _ in range(series)]
        steps.append({"label": f"{pair[0]} of {pair[1]}", "method": "restyle", "args": [{"visible": shown}]})
    return {
        "active": list(pairs).index(now) if now in pairs else 0,
        "steps": steps,
        "currentvalue": {"prefix": "Alert after ", "suffix": " rows", "xanchor": "left", "font": {"color": "@ink"}},
        "pad": {"t": 52, "b": 4},
        "x": 0,
        "len": 1,
        "bgcolor": "@accent",
        "activebgcolor": "@ink",
        "bordercolor": "@line",
        "tickcolor": "@muted",
        "font": {"color": "@muted"},
        "transition": {"duration": 0},
    }


def _caption(
    settings: Sequence[Mapping[str, Any]], now: Mapping[str, Any], budget: float | None, failures: int, name: str
) -> str:
    """The present setting, and the most that any of them catches with its false pages within the budget."""
    told = [f"{name} at present, {_words(now)}: {_achieved(now, failures)}."]
    kept = [row for row in settings if row.get("budget_kept") == "yes"]
    if budget is not None and failures and kept:
        best = max(kept, key=lambda row: (row["events_caught"], -row["false_episodes_per_day"], row.get("present")))
        allowed = f"Of {plural(len(settings), 'setting')}, {plural(len(kept), 'keeps', 'keep')} the budget of"
        told.append(f"{allowed} {number(budget, 2)} false pages a day with the whole interval; of those")
        told[-1] += f" {_words(best)} catches most: {_achieved(best, failures)}."
    elif budget is not None and not kept:
        told.append(f"No setting keeps the budget of {number(budget, 2)} false pages a day with its whole interval.")
    if failures:
        told.append(CHOSEN)
    return " ".join(told)


def _words(row: Mapping[str, Any]) -> str:
    return f"percentile {row['percentile']:g} and {row['k']} of {row['n']}"


def _achieved(row: Mapping[str, Any], failures: int) -> str:
    chance = as_number(row.get("events_by_chance"))
    by_chance = f" ({number(chance, 2)} by chance)" if chance is not None else ""
    told = f"{count(row.get('events_caught'))} of {plural(failures, 'failure')}{by_chance}, " if failures else ""
    return f"{told}{number(row['false_episodes_per_day'], 2)} false pages a day"
