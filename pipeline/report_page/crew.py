"""What the crew would have seen per day: a calendar of alert episodes by machine, and the load of each day.

Shape legend: D periods (days, or several days each), M machines.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.report_page.blocks import (
    EM_DASH,
    Block,
    Cell,
    Chart,
    Charts,
    Column,
    Figures,
    Section,
    Table,
    Text,
    as_map,
    as_number,
    count,
    hours,
    number,
    parse_time,
    plural,
)
from pipeline.report_page.charts import HALF_HEIGHT, Json, axis
from pipeline.report_page.colours import detector_label
from pipeline.report_page.data import ReportData
from pipeline.report_page.names import isolated, plot_label, shortened
from pipeline.schema import MICROSECONDS_PER_DAY, MICROSECONDS_PER_HOUR, IntN, codes_and_names, times_us

MOST_MACHINES, MOST_PERIODS, LISTED = 40, 180, 15
KINDS = ("caught", "false", "ignored")
WORDS = {"caught": "before a failure", "false": "false", "ignored": "neither"}
COLOURS = {"caught": "@accent", "false": "@warn", "ignored": "@healthy"}


@dataclass(frozen=True)
class Watch:
    """The judged span of time in periods, and every page-tier episode in it."""

    first_day: int  # days since 1970
    periods: int
    days_each: int
    machines: int  # that were judged
    episodes: Sequence[tuple[str, str, int, int]]  # machine, kind, opened and closed in microseconds

    def period(self, time_us: int) -> int:
        """In which period a moment lies."""
        place = (time_us // MICROSECONDS_PER_DAY - self.first_day) // self.days_each
        return int(min(max(place, 0), self.periods - 1))

    def labels(self) -> list[str]:
        """First day of each period, as plotly reads dates."""
        days = self.first_day + np.arange(self.periods) * self.days_each
        return [str(day) for day in days.astype("datetime64[D]")]

    def pages(self) -> IntN:
        """How many episodes open in each period, (D,)."""
        return np.asarray(np.sum(list(self.opened().values()), axis=0))

    def opened(self) -> dict[str, IntN]:
        """How many episodes of each kind open in each period, (D,)."""
        counts = {kind: np.zeros(self.periods, np.int64) for kind in KINDS}
        for _, kind, opened, _ in self.episodes:
            counts[kind][self.period(opened)] += 1
        return counts


def crew_section(data: ReportData) -> Section:
    """Key figures of a day's load, the load over time, the calendar, and the busiest machines."""
    title, short = "What would the crew have seen per day?", "Per day"
    watch = watch_of(data)
    if watch is None:
        return Section("crew", title, short)
    if data.fleet.get("time") == "relative":
        return Section("crew", title, short, missing="dates of this data set are synthetic, so days mean nothing")
    blocks: list[Block] = [_key_figures(watch)]
    if watch.episodes:
        blocks += [Charts([load_chart(watch), calendar_chart(watch)]), _machines_table(watch)]
    else:
        blocks.append(Text("No page opened, so there is nothing to draw.", "muted"))
    lead = (
        f"Alert episodes of the page tier ({detector_label(data.detector)}) on the judged rows, machine by machine and "
        "day by day, as they would have reached a crew. One before a failure is what the crew wants; a false one costs "
        "a walk. Neither: it opened where nothing is known of the machine."
    )
    return Section("crew", title, short, _answer(watch, data), lead, blocks)


def watch_of(data: ReportData) -> Watch | None:
    """The judged span and its episodes; None where no scores or no episodes were written."""
    table = data.scores
    if table is None or not table.num_rows or data.events is None:
        return None
    times = times_us(table["timestamp"])
    codes, names = codes_and_names(table["machine_id"])
    first, last = (int(value) // MICROSECONDS_PER_DAY for value in (times.min(), times.max()))
    days_each = math.ceil((last - first + 1) / MOST_PERIODS)
    episodes = []
    for episode in data.episodes:
        opened, closed = (_moment(episode.get(key)) for key in ("start", "end"))
        if opened is not None and closed is not None:
            kind = str(episode.get("kind"))
            episodes.append((str(episode.get("machine_id")), kind if kind in KINDS else "ignored", opened, closed))
    machines = len(set(codes[codes >= 0].tolist()) & set(range(len(names))))
    return Watch(first, math.ceil((last - first + 1) / days_each), days_each, machines, episodes)


def _moment(stamp: Any) -> int | None:
    moment = parse_time(stamp)
    return None if moment is None else round(moment.timestamp() * 1e6)


def _answer(watch: Watch, data: ReportData) -> str:
    days = watch.periods * watch.days_each
    total = len(watch.episodes)
    false = sum(kind == "false" for _, kind, *_ in watch.episodes)
    told = f"{plural(total, 'page')} in {plural(days, 'day')} on {plural(watch.machines, 'machine')}"
    told += f", {number(total / days, 2)} a day" if total else ""
    told += f"; {count(false) if false else 'none'} of them false" if total > 1 else ", a false one" if false else ""
    budget = as_number(as_map(data.evaluation.get("budget")).get("false_episodes_per_machine_day"))
    allowed = (
        "" if budget is None else f" The budget allows {number(budget * watch.machines, 2)} false ones a day here."
    )
    return f"{told}.{allowed}"


def _key_figures(watch: Watch) -> Figures:
    opened = watch.pages()
    days = watch.periods * watch.days_each
    each = "day" if watch.days_each == 1 else f"{watch.days_each} days"
    false = sum(kind == "false" for _, kind, *_ in watch.episodes)
    stands = [(closed - opened_us) / MICROSECONDS_PER_HOUR for _, _, opened_us, closed in watch.episodes]
    quiet = int((opened == 0).sum()) * watch.days_each
    longest = f"the longest {_stood(max(stands))}" if stands else "no page opened"
    return Figures(
        [
            (
                "Pages a day",
                number(len(watch.episodes) / days, 2),
                f"{plural(len(watch.episodes), 'page')} in {plural(days, 'day')}",
            ),
            (
                f"Busiest {each}",
                count(int(opened.max())),
                watch.labels()[int(opened.argmax())] if opened.any() else EM_DASH,
            ),
            ("Days without a page", f"{count(quiet)} of {count(days)}", f"{plural(false, 'false page')} in all"),
            ("A page stands", _stood(float(np.median(stands))) if stands else EM_DASH, f"median; {longest}"),
        ]
    )


def load_chart(watch: Watch) -> Chart:
    """Pages opened per day, by what they came to."""
    opened, x = watch.opened(), watch.labels()
    traces: list[Json] = []
    for kind in KINDS:
        if opened[kind].any():
            bar = {"type": "bar", "name": WORDS[kind], "x": x, "y": opened[kind].tolist()}
            traces.append(
                {
                    **bar,
                    "marker": {"color": COLOURS[kind]},
                    "hovertemplate": f"%{{x}}: %{{y}} {WORDS[kind]}<extra></extra>",
                }
            )
    each = "day" if watch.days_each == 1 else f"{watch.days_each} days"
    busiest = int(watch.pages().max())
    layout = {
        "barmode": "stack",
        "xaxis": axis("day (UTC)", type="date", range=_span(watch)),
        "yaxis": axis(f"pages opened per {each}", rangemode="tozero", tickformat="d", nticks=min(busiest + 1, 6)),
        "showlegend": True,
    }
    totals = [f"{int(opened[kind].sum())} {WORDS[kind]}" for kind in KINDS]
    busy = f"at most {count(busiest)} in a {each}" if watch.days_each == 1 else f"at most {count(busiest)} in {each}"
    return Chart("load", f"Load per {each}", f"Pages opened: {', '.join(totals)}; {busy}.", traces, layout, HALF_HEIGHT)


def _span(watch: Watch) -> list[str]:
    days = np.array([watch.first_day, watch.first_day + watch.periods * watch.days_each])
    return [f"{day}T{'12:00:00'}" for day in (days - 1).astype("datetime64[D]")]


def calendar_chart(watch: Watch) -> Chart:
    """Machines with any page against days: what stood open, the worst first in rank."""
    machines = _by_machine(watch)[:MOST_MACHINES]
    rows = {name: place for place, (name, _) in enumerate(reversed(machines))}
    z = np.zeros((len(machines), watch.periods), int)
    for name, kind, opened, closed in watch.episodes:
        if name in rows:
            span = slice(watch.period(opened), watch.period(closed) + 1)
            z[rows[name], span] = np.maximum(z[rows[name], span], 1 + ("ignored", "false", "caught").index(kind))
    steps = ["@surface", "@healthy", "@warn", "@accent"]
    scale = [[place / 4, colour] for index, colour in enumerate(steps) for place in (index, index + 1)]
    heat: Json = {
        "type": "heatmap",
        "x": watch.labels(),
        "y": list(range(len(machines))),
        "z": [[value if value else None for value in row] for row in z.tolist()],
        "zmin": -0.5,
        "zmax": 3.5,
        "xgap": 1,
        "ygap": 2,
        "showscale": False,
        "colorscale": scale,
        "text": [[plot_label(name)] * watch.periods for name, _ in reversed(machines)],
        "hovertemplate": "%{text}, %{x}<extra></extra>",
    }
    layout = {
        "xaxis": axis("day (UTC)", type="date", range=_span(watch)),
        "yaxis": {
            "tickvals": list(range(len(machines))),
            "ticktext": [plot_label(name, 20) for name, _ in reversed(machines)],
            "range": [-0.6, len(machines) - 0.4],
        },
    }
    left_out = len(_by_machine(watch)) - len(machines)
    caption = (
        f"{plural(len(_by_machine(watch)), 'machine')} of {count(watch.machines)} had a page: blue-green before a "
        f"failure, amber false, grey neither. {f'{left_out} with fewer pages are not drawn. ' if left_out else ''}"
        f"Most pages: {isolated(shortened(machines[0][0], 40))} ({plural(sum(machines[0][1].values()), 'page')})."
    )
    return Chart(
        "calendar", "Which machine stood in alert on which day", caption, [heat], layout, 110 + 22 * len(machines)
    )


def _by_machine(watch: Watch) -> list[tuple[str, Mapping[str, int]]]:
    """Episodes of each machine by kind, most first."""
    counts: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(KINDS, 0))
    for name, kind, *_ in watch.episodes:
        counts[name][kind] += 1
    return sorted(counts.items(), key=lambda item: (-sum(item[1].values()), item[0]))


def _machines_table(watch: Watch) -> Table:
    rows = [
        [Cell(name), *(Cell(count(counts[kind])) for kind in KINDS), Cell(_stood(_open_hours(watch, name)))]
        for name, counts in _by_machine(watch)[:LISTED]
    ]
    heads = [Column(WORDS[kind].capitalize()) for kind in KINDS]
    return Table("Machines with the most pages", [Column("Machine", numeric=False), *heads, Column("In alert")], rows)


def _stood(span: float) -> str:
    """How long pages stood; one of a single row has no length."""
    return hours(span) if span else "a moment"


def _open_hours(watch: Watch, machine: str) -> float:
    return sum(closed - opened for name, _, opened, closed in watch.episodes if name == machine) / MICROSECONDS_PER_HOUR
