"""Detectors side by side: failures caught by mode, and what the difference between two detectors is worth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.report_page.blocks import (
    EM_DASH,
    Block,
    Cell,
    Column,
    Footnotes,
    Table,
    Text,
    as_map,
    as_number,
    count,
    interval,
    number,
    sentence_list,
)
from pipeline.report_page.colours import detector_label
from pipeline.report_page.data import ReportData, detector_order
from pipeline.report_page.judgement import null_reason

RATE = "false_episodes_per_machine_day_difference"
SIGNIFICANT = 0.05
HOW = (
    "The exact test (McNemar) looks at the failures that only one of two caught, at 5 %, and is not corrected for the "
    "number of comparisons. A difference is the detector's figure minus the other's: below zero are fewer false "
    "episodes. Intervals resample failures, and machines, then days. The best baseline is the one that caught most on "
    "these very failures."
)
COUNTS = ("both", "only_detector", "only_against", "neither")


def mode_table(data: ReportData) -> Table | None:
    """Failures caught by mode and detector, with the interval of the share."""
    modes, names = as_map(data.evaluation.get("failure_modes")), detector_order(data)
    rows = []
    events = {mode: as_number(as_map(found).get("events")) or 0 for mode, found in modes.items()}
    for mode in sorted(modes, key=lambda mode: (-events[mode], mode)):
        found, judged = modes[mode], events[mode]
        if not judged:
            continue
        own = {name: as_map(as_map(as_map(found).get("detectors")).get(name)) for name in names}
        caught = {name: as_number(figures.get("events_caught")) for name, figures in own.items()}
        known = [value for value in caught.values() if value is not None]
        best = max(known) if len(set(known)) > 1 else None
        cells = [Cell(str(mode).replace("_", " ")), Cell(count(judged))]
        for name in names:
            text = EM_DASH if caught[name] is None else f"{count(caught[name])} of {count(judged)}"
            cells.append(Cell(text, _share(own[name]), best=best is not None and caught[name] == best))
        rows.append(cells)
    if not rows:
        return None
    heads = [Column("Failure mode", numeric=False), Column("Judged"), *(Column(detector_label(name)) for name in names)]
    return Table("Failures caught by mode; beneath, the 90 % interval of the share (Wilson)", heads, rows)


def _share(figures: Mapping[str, Any]) -> str:
    ends = figures.get("events_caught_ci")
    if not isinstance(ends, list) or len(ends) != 2 or any(as_number(end) is None for end in ends):
        return ""
    return f"{100 * ends[0]:.0f} to {100 * ends[1]:.0f} %"


def pair_blocks(data: ReportData) -> list[Block]:
    """A table against the release's detector, one against the best baseline, and what they come to in a sentence."""
    blocks: list[Block] = []
    verdicts: list[str] = []
    shown = set()
    for side, what in (("against_release", "the release's own"), ("against_best_baseline", "the best baseline")):
        pair = as_map(as_map(data.evaluation.get("pairs")).get(side))
        against = pair.get("against")
        table = _pair_table(data, side, what) if against and against not in shown else None
        if table:
            shown.add(against)
            blocks.append(table)
            verdicts.append(_verdict(pair))
    if blocks:
        blocks.append(Text(" ".join([*verdicts, HOW]), "muted"))
    return blocks


def _pair_table(data: ReportData, side: str, what: str) -> Table | None:
    pair = as_map(as_map(data.evaluation.get("pairs")).get(side))
    detectors, against, notes = as_map(pair.get("detectors")), str(pair.get("against")), Footnotes()
    order = [name for name in detector_order(data) if name in detectors]
    rows = []
    for name in [*order, *sorted(set(detectors) - set(order))]:
        figures, path = as_map(detectors[name]), ("pairs", side, "detectors", name)
        cells = [Cell(detector_label(name), detector=name), *(Cell(count(figures.get(key))) for key in COUNTS)]
        for key, digits in (("events_caught_difference", 2), (RATE, 2)):
            value, ends = as_number(figures.get(key)), signed_interval(figures.get(f"{key}_ci"))
            missing = key if value is None else None if ends else f"{key}_ci"
            footnote = notes.number(null_reason(data, *path, missing)) if missing else None
            cells.append(Cell(signed(value, digits), ends, note=footnote))
        cells.insert(-1, Cell(_p_value(figures.get("exact_p"))))
        rows.append(cells)
    if not rows:
        return None
    own = detector_label(against)
    heads = [Column("Detector", numeric=False), Column("Both caught"), Column("It alone"), Column(f"{own} alone")]
    heads += [Column("Neither"), Column("Difference", hint="failures caught"), Column("Exact test", hint="p")]
    heads += [Column("Difference", hint="false episodes per machine-day")]
    return Table(f"In pairs: each detector against {own}, {what}; 90 % intervals beneath", heads, rows, notes.reasons)


def _p_value(value: Any) -> str:
    p = as_number(value)
    return EM_DASH if p is None else "< 0.001" if p < 0.001 else number(p, 2)


def _verdict(pair: Mapping[str, Any]) -> str:
    """Which differences in failures caught chance does not explain."""
    detectors = {str(name): as_map(figures) for name, figures in as_map(pair.get("detectors")).items()}
    judged = {name: p for name, own in detectors.items() if (p := as_number(own.get("exact_p"))) is not None}
    own = detector_label(str(pair.get("against")))
    if not judged:
        return f"Against {own}, only false episodes can be compared: no failure was judged."
    sure = [detector_label(name) for name, p in judged.items() if p < SIGNIFICANT]
    if sure:
        return f"Against {own}, chance does not explain what {sentence_list(sure)} caught more or less."
    return f"Against {own}, no difference in failures caught is more than chance explains."


def signed(value: Any, digits: int = 3) -> str:
    """A difference with its sign.

    >>> signed(2), signed(-0.0123, 2), signed(0), signed(None)
    ('+2', '−0.012', '0', '—')
    """
    own = as_number(value)
    if own is None:
        return EM_DASH
    if own == 0:
        return "0"
    text = count(abs(own)) if own == int(own) else number(abs(own), digits)
    return f"{'+' if own > 0 else '−'}{text}"


def signed_interval(pair: Any) -> str:
    """Ends of the interval of a difference; empty where there is none.

    >>> signed_interval([-0.004, 0.011])
    '−0.0040 to +0.011'
    """
    return f"{signed(pair[0], 2)} to {signed(pair[1], 2)}" if interval(pair) else ""
