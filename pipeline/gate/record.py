"""What the gate decided, and every figure that it decided on: the record that a registry keeps and a page shows."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

TITLES = {  # of checks and gains, in the middle of a sentence
    "another_release": "that it is another release",
    "failures": "failures lost",
    "false_pages": "false pages within the budget",
    "baselines": "catches against simple detectors",
    "seeds": "other seeds",
    "time": "time per row",
    "fewer_false_pages": "fewer false pages",
    "more_caught": "more tune failures caught",
    "champion_rate": "a champion that no longer keeps its rate",
}


class Verdict(StrEnum):
    """What becomes of a challenger."""

    PROMOTE = "promote"
    REFUSE = "refuse"
    WAIT = "wait"  # too few rows yet: the challenger goes on in shadow


@dataclass(frozen=True)
class Check:
    """One condition: both sides' figures, the limit, and what came out, in words.

    `passed` is None where it cannot be told; `waits` says that more rows may tell it, or mend what has failed.
    """

    name: str
    passed: bool | None
    champion: float | None
    challenger: float | None
    limit: float | None
    words: str
    waits: bool = False


@dataclass(frozen=True)
class GateDecision:
    """The verdict, its reason, and both sides' figures on the same rows.

    `gain` is the one gain that is stated, None where there is none; `gains` are all that were looked for. `caught`
    holds the failures that neither side was tuned on, by id: caught by `both`, by the `champion` or the `challenger`
    alone, by `neither`; and under `failures` what each id stands for. `asked` says on which rows, by which budget.
    A figure that cannot be computed is None, with an entry in its side's `null_reasons`.

    >>> decision = GateDecision(Verdict.WAIT, "Too few rows.", (), None, {}, {}, 10.0, 115.1, {})
    >>> decision.accepted, decision.to_dict()["verdict"]
    (False, 'wait')
    """

    verdict: Verdict
    reason: str  # one sentence for people
    checks: tuple[Check, ...]
    gain: Check | None
    champion: dict[str, Any]
    challenger: dict[str, Any]
    healthy_machine_days: float
    needed_machine_days: float
    caught: dict[str, Any]
    gains: tuple[Check, ...] = ()
    asked: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def accepted(self) -> bool:
        """Whether the challenger may enter service."""
        return self.verdict == Verdict.PROMOTE

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        told = asdict(self)
        lists = {name: list(told[name]) for name in ("checks", "gains", "notes")}
        return told | lists | {"verdict": str(self.verdict)}
