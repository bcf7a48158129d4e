"""The decision of the gate as a page of its own: nothing loaded, every name escaped."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.gate.record import TITLES, Check, GateDecision, Verdict
from pipeline.report_page.blocks import (
    EM_DASH,
    Block,
    Cell,
    Column,
    Figures,
    Footnotes,
    Group,
    Items,
    Section,
    Table,
    Text,
    Tone,
    count,
    interval,
    number,
    percent,
    percent_interval,
    plural,
    when,
)
from pipeline.report_page.names import isolated
from pipeline.report_page.page import rendered

VERDICTS = {
    Verdict.PROMOTE: "The challenger takes the champion's place",
    Verdict.REFUSE: "The challenger is refused",
    Verdict.WAIT: "The challenger goes on in shadow",
}
QUESTIONS = {
    "another_release": "Is it another release?",
    "failures": "Does it keep the champion's failures?",
    "false_pages": "Do its false pages keep the budget?",
    "baselines": "Does it keep up with simple detectors?",
    "seeds": "Do other seeds agree?",
    "time": "Is it quick enough?",
    "fewer_false_pages": "Fewer false pages?",
    "more_caught": "More tune failures caught?",
    "champion_rate": "Has the champion left its rate?",
}
UNITS = {  # of both sides' figures, and what the limit is
    "failures": ("failures caught", "lost at most"),
    "false_pages": ("a machine-day, upper bound", "at most"),
    "baselines": ("failures caught", "at least"),
    "seeds": ("seeds trained", "at least"),
    "time": ("microseconds a row", "times at most"),
    "fewer_false_pages": ("a machine-day", ""),
    "more_caught": ("tune failures", ""),
    "champion_rate": ("of healthy rows", "calibrated at most"),
}
COUNTS = ("failures", "baselines", "seeds", "more_caught")
FIGURES: tuple[tuple[str, str, str | None], ...] = (  # label, figure, its interval
    ("Failures caught", "caught", "caught_interval"),
    ("… by chance", "caught_by_chance", None),
    ("Tune failures caught", "tune_caught", None),
    ("False pages", "false_pages", None),
    ("… a machine-day", "false_pages_per_machine_day", "false_pages_per_machine_day_bounds"),
    ("Healthy rows above the page tier", "page_rate", "page_rate_interval"),
    ("… as calibrated", "page_rate_asked", "page_rate_calibrated"),
    ("Seconds per million rows", "seconds_per_million_rows", None),
)


def decision_page(decision: GateDecision, title: str, until: dt.datetime | None = None) -> str:
    """The page as text; all text of the data is escaped.

    Args:
        decision: of the gate.
        title: whose decision it is, such as the plant's name.
        until: when a challenger that waits is given up; None: as long as the record says.
    """
    asked = decision.asked
    old, new = decision.champion.get("release"), decision.challenger.get("release")
    question = (
        f"Asked: may release {new} take the place of {old}? Both score the same {count(asked.get('healthy_rows'))} "
        f"healthy rows of {count(asked.get('machines'))} machines and the same failures, and page by the policy that "
        "each has in service."
    )
    blocks: list[Block] = [Text(question, "muted"), _key_figures(decision)]
    blocks.append(_checks("Conditions: none may fail", decision.checks))
    blocks.append(_checks("Gains: one is needed", decision.gains))
    if decision.verdict == Verdict.WAIT:
        blocks.insert(2, _missing(decision, until))
    blocks.append(Group("figures", "Both on the same rows", [_sides(decision)]))
    blocks.append(Group("failures", "Failures that neither was tuned on", [_failures(decision.caught)]))
    if decision.notes:
        blocks.append(Items(list(decision.notes), "To keep in mind:", "warning"))
    section = Section("decision", VERDICTS[decision.verdict], "Decision", decision.reason, blocks=blocks)
    others = len(asked.get("challengers") or []) - 1
    seeds = f" and {plural(others, 'other seed')}" if others > 0 else ""
    facts = [
        ("Champion", str(old)),
        ("Challenger", f"{new}{seeds}"),
        ("Judged on", str(asked.get("rows", EM_DASH))),
        ("Rows (UTC)", f"{when(asked.get('first'))} to {when(asked.get('last'))}"),
        ("Budget", f"{number(asked.get('false_pages_per_machine_day'), 2)} false pages a machine-day"),
    ]
    return rendered("decision.html", [section], title=title, facts=facts)


def _key_figures(decision: GateDecision) -> Figures:
    old, new, caught = decision.champion, decision.challenger, decision.caught
    failures = sum(len(caught.get(name) or []) for name in ("both", "champion", "challenger", "neither"))
    return Figures(
        [
            ("Verdict", str(decision.verdict).capitalize(), _gain_in_short(decision)),
            (
                "Healthy machine-days",
                number(decision.healthy_machine_days),
                f"{count(math.ceil(decision.needed_machine_days))} are needed to show that the budget is kept",
            ),
            (
                "False pages",
                count(new.get("false_pages")),
                f"champion: {count(old.get('false_pages'))}",
            ),
            (
                "Failures caught",
                f"{count(new.get('caught'))} of {count(failures)}" if failures else EM_DASH,
                f"champion: {count(old.get('caught'))}" if failures else "there is none to judge",
            ),
        ]
    )


def _gain_in_short(decision: GateDecision) -> str:
    if decision.gain is None:
        return "no gain"
    return f"gain: {TITLES.get(decision.gain.name, decision.gain.name)}"


def _missing(decision: GateDecision, until: dt.datetime | None) -> Items:
    """What a verdict waits for, and until when."""
    missing = [check.words for check in decision.checks if not check.passed and check.waits]
    if decision.gain is None:
        missing += [check.words for check in decision.gains if check.waits] or ["No gain has shown so far."]
    days = float(decision.asked.get("shadow_days") or 0)
    end = f"until {when(until)} UTC" if until is not None else f"for at most {days:g} days"
    return Items(missing, f"What is missing. The challenger scores in shadow {end}; then it is given up:", "warning")


def _checks(caption: str, checks: Sequence[Check]) -> Table:
    rows = []
    for check in checks:
        unit, limit = UNITS.get(check.name, ("", ""))
        show = _shown(check.name)
        rows.append(
            [
                Cell(QUESTIONS.get(check.name, check.name), unit),
                _result(check),
                Cell(show(check.champion)),
                Cell(show(check.challenger)),
                Cell(_limit(check, show), limit if check.limit is not None else ""),
                Cell(check.words),
            ]
        )
    heads = [
        Column("Question", numeric=False),
        Column("Answer", numeric=False),
        Column("Champion"),
        Column("Challenger"),
    ]
    return Table(caption, [*heads, Column("Limit"), Column("In words", numeric=False, prose=True)], rows)


def _limit(check: Check, show: Callable[[Any], str]) -> str:
    if check.limit is None or not UNITS.get(check.name, ("", ""))[1]:
        return EM_DASH
    return f"{check.limit:g}" if check.name == "time" else show(check.limit)


def _shown(name: str) -> Callable[[Any], str]:
    if name in COUNTS:
        return count
    return percent if name == "champion_rate" else _two_digits


def _two_digits(value: Any) -> str:
    return number(value, 2)


def _result(check: Check) -> Cell:
    tone: Tone = "plain"
    if check.passed is None:
        text = "not known yet" if check.waits else "cannot be told"
    elif check.passed:
        text, tone = "yes", "good"
    else:
        text, tone = "no", "bad"
    return Cell(text, tone=tone)


def _sides(decision: GateDecision) -> Table:
    """A row per figure, with its interval beneath; reasons of what is missing as footnotes."""
    notes = Footnotes()
    sides: tuple[Mapping[str, Any], ...] = (decision.champion, decision.challenger)
    rows = []
    for label, name, ends in FIGURES:
        cells = []
        for side in sides:
            why = (side.get("null_reasons") or {}).get(name)
            missing = side.get(name) is None and why
            cells.append(
                Cell(
                    _figure(name, side.get(name)),
                    _ends(name, side.get(ends)) if ends else "",
                    note=notes.number(str(why)) if missing else None,
                )
            )
        rows.append([Cell(label), *cells])
    share = f"{percent(decision.asked.get('confidence'))} intervals and bounds beneath"
    columns = [Column("", numeric=False), Column("Champion"), Column("Challenger")]
    return Table(f"Figures, {share}", columns, rows, notes.reasons)


def _figure(name: str, value: Any) -> str:
    if name.startswith("page_rate"):
        return percent(value)
    return count(value) if name in ("caught", "tune_caught", "false_pages") else number(value, 2)


def _ends(name: str, ends: Any) -> str:
    if name == "caught":
        return f"{percent_interval(*ends)} of them" if ends else ""
    if name.startswith("page_rate"):
        return percent_interval(*ends) if ends else ""
    return interval(ends)


def _failures(caught: Mapping[str, Any]) -> Block:
    """Each failure, and who caught it."""
    known = caught.get("failures") or {}
    answers = {"both": ("yes", "yes"), "champion": ("yes", "no"), "challenger": ("no", "yes"), "neither": ("no", "no")}
    rows = []
    for name, (old, new) in answers.items():
        for failure in caught.get(name) or []:
            told = known.get(failure) or {}
            rows.append(
                [
                    Cell(str(failure)),
                    Cell(isolated(told.get("machine_id", EM_DASH))),
                    Cell(str(told.get("failure_mode") or EM_DASH)),
                    Cell(when(told.get("time"))),
                    *(Cell(answer, tone="good" if answer == "yes" else "bad") for answer in (old, new)),
                ]
            )
    if not rows:
        return Text("There is no failure that both could be judged on.", "muted")
    heads = [Column("Failure", numeric=False), Column("Machine", numeric=False), Column("Mode", numeric=False)]
    heads += [Column("Failed (UTC)", numeric=False), Column("Champion", numeric=False, hint="caught")]
    return Table("Who caught which", [*heads, Column("Challenger", numeric=False, hint="caught")], rows)
