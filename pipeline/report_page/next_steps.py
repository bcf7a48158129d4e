"""What to do next: rules over the figures, each with its reason and the setting or command that acts on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from pipeline.report_page.blocks import (
    Step,
    as_map,
    as_number,
    count,
    number,
    percent,
    percent_interval,
    plural,
    sentence_list,
)
from pipeline.report_page.colours import detector_label
from pipeline.report_page.data import ReportData, detector_order, judged_failures, release_verdict, threshold_setters
from pipeline.report_page.judgement import release_figures
from pipeline.report_page.names import isolated, shortened
from pipeline.report_page.over_time import verdict

QUARANTINE_MANY = 0.02
FEW_FAILURES, REPEATS = 10, 3
MANY_MACHINES, SETS_MOST = 10, 0.6


def next_steps(data: ReportData) -> list[Step]:
    """Everything that the figures ask for, most urgent first; never empty."""
    rules = (
        _provisional,
        _better_detector,
        _threshold_setter,
        _page_rate,
        _later_rows,
        _missed,
        _false_pages,
        _converge,
        _quarantine,
        _few_failures,
        _worst_rows,
    )
    found = [step for rule in rules if (step := rule(data))]
    found.append(
        Step(
            "Confirm or dismiss every alert",
            "What people answer becomes the next build's labels; without answers nothing here gets better.",
            "Write confirmed failures and repairs into maintenance.csv with their times, then run hearken build.",
        )
    )
    return found


def _provisional(data: ReportData) -> Step | None:
    if not data.manifest.get("provisional"):
        return None
    return Step(
        "Rebuild once the horizon has passed",
        "This release is provisional: its healthy rows are younger than the time in which failures show.",
        "Run hearken build after split.horizon_hours of further data.",
    )


def _better_detector(data: ReportData) -> Step | None:
    """Another detector caught more at the same budget."""
    detectors, own = as_map(data.evaluation.get("detectors")), as_number(release_figures(data).get("events_caught"))
    caught = {name: as_number(as_map(detectors[name]).get("events_caught")) or 0.0 for name in detector_order(data)}
    if own is None or not caught or max(caught.values()) <= own:
        return None
    best = max(caught, key=lambda name: caught[name])
    why = f"At the same budget it caught {count(caught[best])} failures, {detector_label(data.detector)} {count(own)}."
    chance = as_number(as_map(detectors[best]).get("events_by_chance"))
    if chance is not None:
        why += f" Chance alone would catch {number(chance, 2)} with its alerts."
    return Step(
        f"Consider {detector_label(best)} for service",
        why,
        f"Set release.detector: {best} in params.yaml and run hearken build; compare again with more failures.",
    )


def _threshold_setter(data: ReportData) -> Step | None:
    """Few machines make most of the rows above the low threshold: the whole fleet is measured by them."""
    setters = threshold_setters(data)
    machines = as_number(as_map(data.calibration).get("machines")) or 0
    first = [(name, share) for name, _, share in setters[:2]]
    if machines < MANY_MACHINES or sum(share for _, share in first) < SETS_MOST:
        return None
    listed = sentence_list([f"{isolated(shortened(name, 40))} ({percent(share)})" for name, share in first])
    return Step(
        "Look at the machines that set the thresholds",
        f"Of the healthy calibration rows above the low threshold, most are of {listed}: every other machine is "
        "measured by them.",
        "If such a machine was not well, say so in maintenance.csv (failure, repair or off), and build again.",
    )


def _page_rate(data: ReportData) -> Step | None:
    """The page tier fires more often than asked for, or nobody can say how often."""
    page = as_map(as_map(data.evaluation.get("tiers")).get("page"))
    low, percentile = as_number(page.get("ci_low")), as_number(page.get("percentile"))
    if percentile is None or not page:
        return None
    asked = 1 - percentile / 100
    if low is None:
        return Step(
            "Collect more healthy calibration rows",
            "The rate of the page tier has no interval: there are too few machine-days.",
            "Raise split.calibration_share, or wait for more data.",
        )
    if low <= asked:
        return None
    return Step(
        "Calibrate the page threshold again",
        f"It was asked for {percent(asked)} of healthy rows and fires on {percent_interval(low, page.get('ci_high'))}.",
        "Look for a change of the fleet between calibration and test (hearken monitor), then build on later rows or "
        "raise calibrate.page_percentile.",
    )


def _later_rows(data: ReportData) -> Step | None:
    """The page threshold kept its rate at first and no longer does."""
    figures = as_map(data.evaluation.get("rates_over_time"))
    first, second = (as_map(figures.get(key)) for key in ("first_half", "second_half"))
    asked = as_number(figures.get("asked"))
    if asked is None or verdict(second, asked) != "more" or verdict(first, asked) == "more":
        return None
    return Step(
        "Find out what changed in the second half of the test span",
        f"The page threshold was asked for {percent(asked)} of healthy rows; it lets "
        f"{percent(first.get('false_positive_rate'))} through in the first half and "
        f"{percent(second.get('false_positive_rate'))} in the second.",
        "See the weeks on the page of thresholds. Log repairs, moved sensors and firmware in maintenance.csv, ask "
        "hearken monitor whether the fleet has changed, and calibrate on later rows.",
    )


def _missed(data: ReportData) -> Step | None:
    """Failures without a page, and whether any detector heard them."""
    missed = [event for event in judged_failures(data) if not release_verdict(data, event)[0]]
    if not missed:
        return None
    silent = [
        event for event in missed if not any(as_map(v).get("caught") for v in as_map(event.get("detectors")).values())
    ]
    modes = Counter(str(event.get("failure_mode") or "not recorded").replace("_", " ") for event in missed)
    listed = sentence_list([f"{isolated(mode)} ({times})" for mode, times in modes.most_common(4)])
    heard = len(missed) - len(silent)
    return Step(
        f"Look at the {plural(len(missed), 'missed failure')}",
        f"By mode: {listed}. At the comparison's budget some detector caught {count(heard)} of them, and none caught "
        f"{count(len(silent))}.",
        "On the page of failures, see whether any band grew at all. Where none did, the sensor, its place, or its band "
        "cannot hear that fault; where one did, lower the threshold or page on another detector.",
    )


def _false_pages(data: ReportData) -> Step | None:
    """False pages that come from one machine."""
    false = Counter(str(episode.get("machine_id")) for episode in data.episodes if episode.get("kind") == "false")
    repeated = [(name, times) for name, times in false.most_common(3) if times >= REPEATS]
    if not repeated:
        return None
    listed = sentence_list([f"{isolated(shortened(name, 40))} ({times})" for name, times in repeated])
    return Step(
        "Visit the machines with repeated false pages",
        f"{listed} of {plural(sum(false.values()), 'false page')}.",
        "Either something is wrong that the log does not know (add it to maintenance.csv), or the machine has changed: "
        "log the repair or the moved sensor, and a new baseline starts.",
    )


def _converge(data: ReportData) -> Step | None:
    capped = [name for name in detector_order(data) if as_map(data.histories.get(name)).get("cap_hit")]
    if not capped:
        return None
    return Step(
        "Train longer",
        f"{sentence_list([detector_label(name) for name in capped])} stopped at the epoch cap before converging.",
        " ".join(f"Raise train.{name}.optimiser.max_epochs." for name in capped),
    )


def _quarantine(data: ReportData) -> Step | None:
    validation = as_map(data.validation)
    rows, out = as_number(validation.get("rows")), as_number(validation.get("quarantined"))
    if not rows or out is None or out / rows < QUARANTINE_MANY:
        return None
    reasons: Mapping[str, Any] = as_map(validation.get("by_reason"))
    main = max(reasons, key=lambda name: as_number(reasons[name]) or 0.0) if reasons else "no reason given"
    return Step(
        "Repair the sensors or the export",
        f"{percent(out / rows)} of the rows were set aside, most for {isolated(main.replace('_', ' '))}.",
        "The first page lists reasons; hearken check names files and lines.",
    )


def _few_failures(data: ReportData) -> Step | None:
    events = as_number(release_figures(data).get("events"))
    if events is None or events >= FEW_FAILURES:
        return None
    return Step(
        "Find more failures in the log",
        f"{plural(int(events), 'failure was', 'failures were')} judged: no choice between detectors is safe on so few.",
        "Add older failures to maintenance.csv, or export a longer span of data.",
    )


def _worst_rows(data: ReportData) -> Step | None:
    worst = [row for row in data.reconstructions or [] if row.get("kind") == "worst"]
    if not worst:
        return None
    listed = sentence_list([isolated(shortened(row.get("machine_id", ""), 40)) for row in worst[:3]])
    return Step(
        "Look at the worst healthy rows",
        f"The log calls {listed} healthy where the model is most surprised.",
        "The page of the model shows which bands; a fault that nobody logged is the usual cause.",
    )
