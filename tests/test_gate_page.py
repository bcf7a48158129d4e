"""The decision's page: says what was asked and decided, loads nothing, and runs nothing that data bring."""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import replace

import pytest

from pipeline.gate import Check, GateDecision, Verdict, decision_page

HOSTILE = "</script><img src=x onerror=alert(1)>\u202e"
SIDE = {
    "release": "0123456789abcdef", "detector": "ensemble", "failures": 3, "caught": 2, "caught_interval": [0.2, 0.9],
    "caught_by_chance": 0.4, "tune_failures": 0, "tune_caught": None, "false_pages": 3,
    "false_pages_per_machine_day": 0.04, "false_pages_per_machine_day_bounds": [0.01, 0.09], "page_rate": 0.0004,
    "page_rate_interval": [0.0001, 0.0009], "page_rate_asked": 0.0005, "page_rate_calibrated": None,
    "seconds_per_million_rows": 4.2,
    "null_reasons": {"tune_caught": "There is no tune failure that counts for both.", "page_rate_calibrated": HOSTILE},
}  # fmt: skip
DECISION = GateDecision(
    verdict=Verdict.WAIT,
    reason=f"There are too few later rows yet {HOSTILE}.",
    checks=(
        Check("another_release", True, None, None, None, "The challenger is another release."),
        Check("failures", True, 2.0, 2.0, 1.0, f"Of 3 failures {HOSTILE}"),
        Check("false_pages", None, 0.1, 0.09, 0.02, "3 false pages on 75 healthy machine-days.", waits=True),
        Check("time", False, 2.0, 4.0, 1.5, "It takes 2.00 times as long per row."),
        Check(HOSTILE, True, None, None, None, "Nobody knows it."),
    ),
    gain=None,
    champion=SIDE,
    challenger=SIDE | {"release": HOSTILE},
    healthy_machine_days=75.3,
    needed_machine_days=334.0,
    caught={
        "both": ["aaa"],
        "champion": [HOSTILE],
        "challenger": [],
        "neither": ["ccc"],
        "failures": {
            "aaa": {"machine_id": HOSTILE, "time": "2025-01-03T04:05:06Z", "failure_mode": HOSTILE},
            "ccc": {"machine_id": "pump 7", "time": "2025-01-04T04:05:06Z", "failure_mode": None},
        },
    },
    gains=(Check("more_caught", None, None, None, 0.0, "There is no tune failure that counts for both."),),
    asked={
        "rows": "test rows", "first": "2025-01-01T00:00:00Z", "last": "2025-01-09T00:00:00Z", "healthy_rows": 1800,
        "machines": 10, "challengers": ["a", "b"], "false_pages_per_machine_day": 0.02, "confidence": 0.9,
        "shadow_days": 14.0,
    },
    notes=(f"The champion shouts {HOSTILE}",),
)  # fmt: skip


def test_names_are_text_and_nothing_is_loaded() -> None:
    page = decision_page(DECISION, HOSTILE)
    assert "<img" not in page
    assert "</script><img" not in page
    assert "\u202e" not in page
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", page)
    assert "default-src 'none'" in page
    assert len(page) < 100_000  # no plotly where there is no chart


def test_the_page_says_verdict_conditions_figures_failures_and_what_is_missing() -> None:
    page = decision_page(DECISION, "Nordhafen", until=dt.datetime(2025, 2, 1, 12, tzinfo=dt.UTC))
    for words in (
        "The challenger goes on in shadow",
        "What is missing. The challenger scores in shadow until 2025-02-01 12:00 UTC",
        "3 false pages on 75 healthy machine-days.",
        "not known yet",
        "0.010 to 0.090",
        "pump 7",
        "2025-01-03 04:05",
        "334 are needed",
        "and 1 other seed",
    ):
        assert words in page, words
    assert "for at most 14 days" in decision_page(DECISION, "Nordhafen")


@pytest.mark.parametrize(
    ("verdict", "words"), [(Verdict.PROMOTE, "takes the champion"), (Verdict.REFUSE, "The challenger is refused")]
)
def test_only_who_waits_is_told_until_when(verdict: Verdict, words: str) -> None:
    page = decision_page(replace(DECISION, verdict=verdict), "Nordhafen")
    assert words in page.replace("&#39;", "'")
    assert "What is missing" not in page


def test_a_decision_without_any_figure_has_a_page() -> None:
    bare = GateDecision(Verdict.REFUSE, "No.", (), None, {}, {}, 0.0, 115.1, {})
    assert "There is no failure that both could be judged on." in decision_page(bare, "Nordhafen")
