"""The gate: whether a challenger may take the champion's place, judged on rows and failures that made neither."""

from pipeline.gate.judge import judge_build, judge_later
from pipeline.gate.page import decision_page
from pipeline.gate.record import Check, GateDecision, Verdict

__all__ = ["Check", "GateDecision", "Verdict", "decision_page", "judge_build", "judge_later"]
