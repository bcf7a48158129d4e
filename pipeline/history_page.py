"""One machine's history as a page of its own: nothing loaded, nothing that runs but the charts inside it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pipeline.alert_details import frequencies_within
from pipeline.close_look import CloseLook
from pipeline.history import History, by_hour, one_in, periods, rarity_of, tier_levels
from pipeline.history_charts import level_chart, peak_chart, rarity_chart
from pipeline.moments import moment_of
from pipeline.report_page.blocks import (
    EM_DASH,
    Block,
    Cell,
    Charts,
    Column,
    Columns,
    Figures,
    Group,
    Items,
    Section,
    Table,
    Text,
    count,
    hours,
    number,
    percent,
    plural,
    sentence_list,
    when,
)
from pipeline.report_page.colours import detector_label
from pipeline.report_page.names import isolated
from pipeline.report_page.page import rendered
from pipeline.run_alerts import TIER_NAMES
from pipeline.schema import MICROSECONDS_PER_HOUR, times_us

MOST_ALERTS = 25
MOST_GONE = 8  # uploads that are named
LOUDEST = 8  # bands in a table


def render_history(history: History, look: CloseLook | Mapping[str, str] | None) -> str:
    """The page as text; all text of the data is escaped.

    Args:
        history: of the machine.
        look: at the spectra; a mapping: no upload is left, and why; None: there is no landing zone to look into.
    """
    blocks: list[Block] = [_figures(history), Charts([rarity_chart(history)])]
    if history.alerts:
        blocks.append(alert_table(history))
    blocks += _close(history, look)
    blocks.append(Group("periods", _periods_title(history), [period_table(history)]))
    section = Section("history", "What the score log says", "History", answer_of(history), blocks=blocks)
    span = f"{when(history.span.since)} to {when(history.span.until)}"
    releases = dict.fromkeys(name for period in periods(history) for name in period.releases)
    facts = [
        ("Span (UTC)", span),
        ("Alerts raised by", detector_label(history.detector)),
        ("Scored by", f"{'releases' if len(releases) > 1 else 'release'} {sentence_list(list(releases))}"),
    ]
    return rendered("history.html", [section], title=f"{history.machine} history", machine=history.machine, facts=facts)


def answer_of(history: History) -> str:
    """What happened, in two sentences."""
    by_tier = {tier: [alert for alert in history.alerts if alert.tier == tier] for tier in ("page", "low", None)}
    words = {"page": ("alert that paged", "alerts that paged"), "low": ("low alert", "low alerts")}
    words_of_silence = ("time without data", "times without data")
    told = [plural(len(own), *words.get(str(tier), words_of_silence)) for tier, own in by_tier.items() if own]
    length = (history.span.until_us - history.span.since_us) / MICROSECONDS_PER_HOUR
    length_told = hours(length) if length < 48 else f"{round(length / 24, 1):g} days"
    still = [alert for alert in history.alerts if alert.closed_us is None]
    first = f"{sentence_list(told) if told else 'No alert'} in {length_told}"
    first += f"; {plural(len(still), 'is', 'are')} open." if still else "."
    rarity_N = rarity_of(history.rows, history.detector)
    if not np.isfinite(rarity_N).any():
        return f"{first} No row of the span has a score."
    return f"{first} Its rarest row scores as {one_in(float(np.nanmax(rarity_N)))} healthy rows does."


def _figures(history: History) -> Figures:
    level_N, rarity_N = tier_levels(history.rows), rarity_of(history.rows, history.detector)
    scored = int(np.isfinite(rarity_N).sum())
    told = [("Rows", count(history.rows.num_rows), f"{count(history.unusable)} of them unusable")]
    for level, tier in enumerate(TIER_NAMES[1:], 1):
        above = int((level_N >= level).sum())
        asked = history.fleet is not None and tier in history.tiers  # the release is known, and what it was made for
        usual = f"; healthy rows: {percent(10 ** -history.tiers[tier])}" if asked else ""
        share = f"{percent(above / scored)} of the scored" if scored else EM_DASH
        told.append((f"Above tier {tier}", count(above), f"{share}{usual}"))
    best = int(np.nanargmax(rarity_N)) if scored else None
    at = EM_DASH if best is None else f"{when(moment_of(int(times_us(history.rows['timestamp'])[best])))} UTC"
    told.append(("Rarest row", one_in(None if best is None else float(rarity_N[best])), at))
    return Figures(told)


def alert_table(history: History) -> Table:
    """A row per alert, the newest first."""
    rows = []
    for alert in history.alerts[: -MOST_ALERTS - 1 : -1]:
        peak = alert.details.get("peak") or {}
        tail = peak.get("tail_probability")
        paged = f"paged {_minute(alert.paged_us)}" if alert.paged_us is not None else ""
        bands = [str(band.get("band", "")) for band in alert.details.get("top_bins") or []]
        rows.append(
            [
                Cell(f"#{alert.id}", "shown below" if alert is history.chosen else ""),
                Cell(alert.tier or "no data"),
                Cell(_minute(alert.opened_us), paged),
                Cell("open" if alert.closed_us is None else _minute(alert.end_us)),
                Cell(one_in(None if not tail else -float(np.log10(tail)))),
                Cell(
                    sentence_list([detector_label(str(name)) for name in alert.details.get("agreed") or []]) or EM_DASH
                ),
                Cell(sentence_list(bands[:3]) or EM_DASH),
                Cell(alert.answer or EM_DASH),
            ]
        )
    heads = [Column("Alert", numeric=False), Column("Tier", numeric=False), Column("Opened")]
    heads += [Column("Last"), Column("Peak"), Column("Agreed", numeric=False)]
    heads += [Column("Bands", numeric=False, hint="largest shares of the score"), Column("Answer", numeric=False)]
    some = "" if len(rows) == len(history.alerts) else f" (of {len(history.alerts):,} the last {len(rows)})"
    return Table(f"Alerts, the newest first{some}", heads, rows)


def _minute(time_us: int) -> str:
    return when(moment_of(time_us))


def _close(history: History, look: CloseLook | Mapping[str, str] | None) -> list[Block]:
    """Spectra around the chosen alert, or of the whole span."""
    alert = history.chosen
    title = "The spectra of the span" if alert is None else f"The spectra around alert #{alert.id}"
    blocks: list[Block] = []
    if look is None:
        blocks.append(Text("No landing zone to read spectra from: give it as HEARKEN_LANDING or --landing.", "muted"))
    elif not isinstance(look, CloseLook):
        blocks.append(_gone(look, "No upload with these spectra is left"))
    else:
        unit = look.spec.unit
        blocks.append(Charts([level_chart(look, history)]))
        peak, bands = peak_chart(look, unit), _band_table(history, look)
        if peak is not None and bands is not None:
            blocks.append(Columns([Charts([peak]), bands]))
        if look.gone:
            blocks.append(_gone(look.gone, "Some uploads are gone, their spectra stay empty"))
    if alert is not None and alert.tier is None:
        blocks.append(Text(str(alert.details.get("note") or ""), "muted"))
    return [Group("spectra", title, blocks)]


def _gone(gone: Mapping[str, str], what: str) -> Block:
    why = dict[str, list[str]]()
    for name, reason in gone.items():
        why.setdefault(reason.replace(name, "it"), []).append(isolated(name))
    told = []
    for reason, names in list(why.items())[:MOST_GONE]:
        more = [plural(len(names) - MOST_GONE, "more", "more")] if len(names) > MOST_GONE else []
        told.append(f"{sentence_list([*names[:MOST_GONE], *more])}: {reason}")
    if len(why) > MOST_GONE:
        told.append(f"and {plural(len(why) - MOST_GONE, 'more reason')} for others")
    return Items(told, f"{what}:", "warning")


def _band_table(history: History, look: CloseLook) -> Table | None:
    """The bands that differ most at the peak, with the fault frequencies that lie in them."""
    if look.peak_level_F is None or look.peak_F is None:
        return None
    bearing, alert = look.spec.bearing_of(history.machine), history.chosen
    told = [] if alert is None else [int(band["bin"]) for band in alert.details.get("top_bins") or [] if "bin" in band]
    rows = []
    for place in np.argsort(-np.abs(look.peak_level_F), kind="stable")[:LOUDEST].tolist():
        band = look.spec.band_hz(place)
        near = frequencies_within(*band, bearing) if band is not None and bearing is not None else []
        level = float(look.peak_level_F[place])
        cells = [
            Cell(look.spec.band_name(place), sentence_list(near)),
            Cell(f"{'+' if level > 0 else '−'}{number(abs(level), 2)} {look.unit}"),
            Cell(number(float(look.usual_F[place]), 3)),
            Cell(number(float(look.peak_F[place]), 3)),
            Cell("yes" if place in told else ""),
        ]
        rows.append(cells)
    unit = look.spec.unit if look.spec.kind == "spectrum" else ""
    heads = [
        Column("Band", numeric=False),
        Column("Differs"),
        Column("Usual", hint=unit),
        Column("At the peak", hint=unit),
    ]
    return Table("What differs most at the peak", [*heads, Column("In the alert", numeric=False)], rows)


def _periods_title(history: History) -> str:
    return "Hour by hour" if by_hour(periods(history)) else "Day by day"


def period_table(history: History) -> Table:
    """A row per hour or day."""
    told = periods(history)
    rows = []
    for period in told:
        start = when(moment_of(period.start_us))
        rows.append(
            [
                Cell(start if by_hour(told) else start[:10]),
                Cell(count(period.rows)),
                Cell(count(period.unusable) if period.unusable else EM_DASH),
                Cell(one_in(period.rarity)),
                Cell(count(period.low) if period.low else EM_DASH),
                Cell(count(period.page) if period.page else EM_DASH),
                Cell(sentence_list(period.baselines) or EM_DASH),
                Cell(sentence_list(period.releases)),
            ]
        )
    heads = [Column("From (UTC)", numeric=False), Column("Rows"), Column("Unusable"), Column("Rarest")]
    heads += [Column("Above low"), Column("Above page"), Column("Baseline", numeric=False)]
    return Table("Rows of the score log", [*heads, Column("Release", numeric=False)], rows)
