"""What the figures say, in sentences and in the comparison table: who wins, where a baseline does, what to beware."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.params import NEURAL_DETECTORS
from pipeline.report_page.blocks import (
    EM_DASH,
    NO_REASON,
    Cell,
    Column,
    Footnotes,
    Table,
    as_map,
    as_number,
    count,
    interval,
    number,
    percent,
    percent_interval,
    plural,
    sentence_list,
    short_hours,
)
from pipeline.report_page.colours import detector_label
from pipeline.report_page.data import ReportData, detector_order
from pipeline.report_page.names import isolated

# metric: (label, hint, +1 where more is better, how it reads in the table, what a sentence calls it)
METRICS: dict[str, tuple[str, str, int, Callable[[Any], str], str]] = {
    "auroc": ("AUROC", "chance is 0.5", 1, number, "AUROC"),
    "average_precision": ("Average precision", "", 1, number, "average precision"),
    "partial_auroc": ("Partial AUROC", "below 0.5 % false", 1, number, "partial AUROC"),
    "events_caught": ("Failures caught", "", 1, count, "failures caught"),
    "false_episodes_per_day": ("False episodes per day", "whole fleet", -1, number, "false episodes per day"),
    "median_lead_time_hours": ("Median lead time", "", 1, short_hours, "median lead time"),
}
NEEDS_A_CATCH = ("false_episodes_per_day", "median_lead_time_hours")
FEW_MACHINES, FEW_FAILURES = 20, 10


def null_reason(data: ReportData, *path: str) -> str:
    """Why a figure is null: the most exact entry of null_reasons that names it.

    >>> reasons = {"partial_auroc": "fewer than 2,000 healthy rows"}
    >>> null_reason(ReportData(evaluation={"null_reasons": reasons}), "detectors", "pca", "partial_auroc")
    'fewer than 2,000 healthy rows'
    """
    reasons = as_map(data.evaluation.get("null_reasons"))
    tries = [path[start:end] for start in range(len(path)) for end in range(len(path), start, -1)]
    tries.sort(key=lambda part: (part[-1] != path[-1], -len(part)))
    for part in tries:
        value: Any = reasons.get(".".join(part))
        if value is None:  # nested in the same way as the figures
            value = reasons
            for key in part:
                value = as_map(value).get(key)
        if isinstance(value, str) and value:
            return value
    tier = as_map(as_map(data.evaluation.get("tiers")).get(path[1])) if path[0] == "tiers" and len(path) > 1 else {}
    return str(tier.get("note") or NO_REASON)


def winners(detectors: Mapping[str, Any], metric: str) -> set[str]:
    """The detectors with the best value of a metric; none where all are equal or only one has it.

    Few false episodes or a long lead time are no merit of a detector that caught nothing.
    """
    values = {}
    for name, figures in detectors.items():
        value, caught = as_number(as_map(figures).get(metric)), as_number(as_map(figures).get("events_caught"))
        if value is not None and not (metric in NEEDS_A_CATCH and caught == 0):
            values[name] = value * METRICS[metric][2]
    if len(values) < 2 or len(set(values.values())) == 1:
        return set()
    best = max(values.values())
    return {name for name, value in values.items() if value == best}


def comparison_table(data: ReportData, caption: str = "Every detector on the same test rows") -> Table:
    """Every detector against every metric: best of each column, footnotes for what is null."""
    detectors, notes = as_map(data.evaluation.get("detectors")), Footnotes()
    best = {metric: winners(detectors, metric) for metric in METRICS}
    rows = []
    for name in detector_order(data):
        figures = as_map(detectors[name])
        cells = [Cell(detector_label(name), "in service" if name == data.detector else "", detector=name)]
        for metric, (_, _, _, show, _) in METRICS.items():
            if as_number(figures.get(metric)) is None:
                footnote = notes.number(null_reason(data, "detectors", name, metric))
                cells.append(Cell(EM_DASH, note=footnote))
                continue
            text = (
                f"{count(figures[metric])} of {count(figures.get('events'))}"
                if metric == "events_caught"
                else show(figures[metric])
            )
            cells.append(Cell(text, _beneath(metric, figures), best=name in best[metric]))
        rows.append(cells)
    columns = [Column("Detector", numeric=False), *(Column(label, hint=hint) for label, hint, *_ in METRICS.values())]
    shares = [as_number(as_map(detectors[name]).get("machine_days_with_alert_share")) for name in detector_order(data)]
    if any(share is not None for share in shares):
        columns.append(Column("Days in alert", hint="of machine-days"))
        rows = [[*cells, Cell(percent(share))] for cells, share in zip(rows, shares, strict=True)]
    return Table(f"{caption}, {budget_text(data)}", columns, rows, notes.reasons)


def budget_text(data: ReportData) -> str:
    """How the thresholds of the comparison were set."""
    budget = as_map(data.evaluation.get("budget"))
    allowed, rate = (
        as_number(budget.get("false_episodes_on_calibration")),
        as_number(budget.get("false_episodes_per_machine_day")),
    )
    if budget.get("rule") == "few" and allowed is not None:
        return f"thresholds that allow {plural(round(allowed), 'false episode')} in all on the calibration rows"
    return (
        f"thresholds that allow {rate:g} false episodes per machine and day on the calibration rows"
        if rate
        else "at the same budget"
    )


def _beneath(metric: str, figures: Mapping[str, Any]) -> str:
    """By chance under the failures caught; elsewhere the interval, where there is one."""
    if metric == "events_caught":
        chance = as_number(figures.get("events_by_chance"))
        return "" if chance is None else f"{chance:.1f} by chance"
    if metric == "median_lead_time_hours":
        quartiles = figures.get("lead_time_quartiles_hours")
        ends = quartiles[::2] if isinstance(quartiles, list) and len(quartiles) == 3 else []
        return f"half: {interval(ends)} h" if interval(ends) and ends[0] != ends[1] else ""
    return interval(figures.get(f"{metric}_ci"), 2)


def baseline_sentence(data: ReportData) -> tuple[str, bool]:
    """Says plainly where a baseline beats the autoencoder; and whether one does.

    Fewer false episodes or a longer lead time count only for a baseline that catches no fewer failures.
    """
    detectors = as_map(data.evaluation.get("detectors"))
    own = as_map(detectors.get("autoencoder"))
    baselines = [name for name in detectors if name not in (*NEURAL_DETECTORS, "ensemble")]
    if not own or not baselines:
        return "", False
    beaten, compared = [], 0
    for metric, (_, _, sign, show, words) in METRICS.items():
        mine = as_number(own.get(metric))
        known = _rivals(detectors, baselines, metric)
        if mine is None or not known:
            continue
        compared += 1
        better = max(value * sign for value in known.values())
        if better > mine * sign:
            names = sentence_list([detector_label(name) for name, value in known.items() if value * sign == better])
            beaten.append(f"{names} in {words} ({show(better * sign)} against {show(mine)})")
    if not compared:
        return "The autoencoder and the baselines share no figure that could be compared.", False
    if not beaten:
        return f"No baseline beats the autoencoder in any of the {compared} figures compared.", False
    return f"A baseline beats the autoencoder in {len(beaten)} of {compared} figures: {'; '.join(beaten)}.", True


def _rivals(detectors: Mapping[str, Any], baselines: Sequence[str], metric: str) -> dict[str, float]:
    """The baselines' values of a metric that may be compared with the autoencoder's."""
    own = as_number(as_map(detectors["autoencoder"]).get("events_caught")) or 0
    found = {}
    for name in baselines:
        figures = as_map(detectors[name])
        value, caught = as_number(figures.get(metric)), as_number(figures.get("events_caught")) or 0
        if value is not None and not (metric in NEEDS_A_CATCH and caught < own):
            found[name] = value
    return found


def cautions(data: ReportData) -> list[str]:
    """What a reader must know before relying on the headline."""
    found = []
    dataset, figures = as_map(data.evaluation.get("dataset")), release_figures(data)
    machines, events = as_number(dataset.get("machines")), as_number(figures.get("events"))
    sentence, beaten = baseline_sentence(data)
    if beaten:
        found.append(sentence)
    caught, chance = as_number(figures.get("events_caught")), as_number(figures.get("events_by_chance"))
    if caught is not None and chance is not None and caught <= chance:
        found.append(
            f"The release detector catches no more failures ({count(caught)}) than chance does ({number(chance, 2)})."
        )
    if events is not None and events < FEW_FAILURES:
        found.append(
            f"Only {plural(int(events), 'failure was', 'failures were')} judged: one more or less moves every figure."
        )
    if machines is not None and machines < FEW_MACHINES:
        found.append(
            f"{plural(int(machines), 'machine')}: below {FEW_MACHINES}, intervals are too narrow to be trusted."
        )
    page = as_map(as_map(data.evaluation.get("tiers")).get("page"))
    low, percentile = as_number(page.get("ci_low")), as_number(page.get("percentile"))
    if low is not None and percentile is not None and low > 1 - percentile / 100:
        fires = percent_interval(low, page.get("ci_high")) or percent(page.get("false_positive_rate"))
        asked = percent(1 - percentile / 100)
        found.append(f"The page tier fires more often than was asked for: {fires} of healthy rows instead of {asked}.")
    later = as_map(as_map(data.evaluation.get("rates_over_time")).get("second_half"))
    if later.get("holds_asked") is False:
        found.append(
            f"In the second half of the test span the page tier lets {percent(later.get('false_positive_rate'))} of "
            f"healthy rows through (interval {percent_interval(later.get('ci_low'), later.get('ci_high'))}), which is "
            "not what was asked for: later rows are not like those of the calibration."
        )
    capped = [detector_label(name) for name, history in sorted(data.histories.items()) if history.get("cap_hit")]
    if capped:
        found.append(f"Training stopped at the epoch cap before it had converged: {sentence_list(capped)}.")
    return found


def release_figures(data: ReportData) -> Mapping[str, Any]:
    """The evaluation's figures of the release detector."""
    return as_map(as_map(data.evaluation.get("detectors")).get(data.detector))


def only_caught(data: ReportData) -> list[str]:
    """Sentences on the failures that a single detector caught."""
    only = as_map(as_map(data.evaluation.get("pairs")).get("only"))
    found = []
    for name in sorted(only, key=lambda name: (name != data.detector, name)):
        failures: Sequence[Any] = only[name] if isinstance(only[name], list) else []
        if failures:
            listed = sentence_list([isolated(failure) for failure in failures])
            found.append(f"{detector_label(name)} alone caught {listed}.")
    return found
