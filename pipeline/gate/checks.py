"""The conditions of the gate, one by one, and the gains of which a challenger needs one.

Statistics: failures in pairs with the exact test of McNemar (1947); false pages by Garwood's (1936) bounds of a count,
widened where machines differ; differences by resampling machines, then days, the same for both sides.

Shape legend: B machine-days, F failures, D draws, T rounds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from pipeline.gate.record import Check
from pipeline.gate.sides import Side, release_seed
from pipeline.judging.pairs import BASELINES, FEW_FAILURES, FEW_MACHINES, exact_p, resampled_rates
from pipeline.params import EvaluateParams, GateParams
from pipeline.schema import FloatN

WORDS = {"pca": "PCA", "squared_distance": "the squared distance", "energy_zscore": "the energy"}


def check_another(champion: Side, challenger: Side) -> Check:
    """A release cannot take its own place."""
    same = champion.release.id == challenger.release.id
    words = "The challenger is the release in service." if same else "The challenger is another release."
    return Check("another_release", not same, None, None, None, words)


def check_failures(champion: Side, challenger: Side, params: GateParams, evaluate: EvaluateParams) -> Check:
    """Of the failures that neither was tuned on, the challenger may miss few that the champion catches.

    A champion that shouts catches failures by shouting: its catches count at the threshold at which it would have kept
    the budget on the same healthy rows.
    """
    judging, limit = champion.rows.judging, float(params.lost_failures)
    if not judging:
        return Check("failures", None, None, None, limit, "There is no failure that could be lost.")
    held, how = champion.pages, ""
    if shouts(champion, params):
        held = champion.quiet(champion.release.detector, allowed_pages(champion, evaluate))
        own, quiet = len(champion.pages.caught(judging)), len(held.caught(judging))
        how = (
            f" The champion shouts (at least {champion.times_page_rate:.3g} times the rate of its page tier): it "
            f"catches {own} so, and {quiet} at a threshold that keeps the budget on these rows, which is what counts."
        )
    old, new = held.caught(judging), challenger.pages.caught(judging)
    lost = len(old - new)
    words = (
        f"Of {_failures(len(judging))} it misses {lost or 'none'} that the champion catches, and catches "
        f"{len(new - old) or 'none'} that the champion misses."
    )
    return Check("failures", lost <= limit, float(len(old)), float(len(new)), limit, words + how)


def shouts(side: Side, params: GateParams) -> bool:
    """Whether a release lets far more healthy rows above its page tier than it was calibrated for."""
    return side.times_page_rate is not None and side.times_page_rate > params.shouts


def allowed_pages(side: Side, evaluate: EvaluateParams) -> float:
    """False pages that the budget allows on the healthy rows."""
    return evaluate.false_episodes_per_machine_day * side.rows.healthy_days


def check_false_pages(champion: Side, challenger: Side, params: GateParams, evaluate: EvaluateParams) -> Check:
    """The upper bound of the challenger's false pages must be within the budget; too few rows cannot show that.

    Where the lower bound is beyond the budget, more rows will not mend it.
    """
    budget, days = evaluate.false_episodes_per_machine_day, challenger.rows.healthy_days
    sides = [side.pages.bounds(params.confidence) for side in (champion, challenger)]
    old, new = (upper / days if days else None for _, upper in sides)
    low, upper = sides[1]
    share, count = f"{100 * params.confidence:g} %", challenger.pages.false
    found = f"{_pages(count)} on {days:,.1f} healthy machine-days"
    if days and upper <= budget * days:
        words = f"{found}: its upper {share} bound, {upper / days:.3g} a machine-day, is within the budget."
        return Check("false_pages", True, old, new, budget, words)
    if days and low > budget * days:
        words = f"{found}: even its lower {share} bound, {low / days:.3g} a machine-day, is beyond the budget."
        return Check("false_pages", False, old, new, budget, words)
    needed = upper / budget
    words = f"{found}: the upper {share} bound is within the budget after {needed:,.1f} days without another."
    return Check("false_pages", None, old, new, budget, words, waits=True)


def check_baselines(challenger: Side, params: GateParams, evaluate: EvaluateParams) -> Check:
    """The challenger may not catch fewer failures than each of its own simple detectors does at the same budget.

    Each has its own tiers of the same percentiles, from the same calibration rows, and the same policy; one that breaks
    the budget on the rows that judge has the lowest threshold that keeps it there.
    """
    judging, release = challenger.rows.judging, challenger.release
    names = [name for name in BASELINES if name in challenger.scores and name != release.detector]
    own = len(challenger.pages.caught(judging))
    if not judging:
        return Check("baselines", None, None, None, None, "There is no failure to compare them on.")
    if not names:
        return Check("baselines", None, None, float(own), None, "The release holds none of the simple detectors.")
    allowed = max(float(challenger.pages.false), allowed_pages(challenger, evaluate))
    caught = {name: len(challenger.quiet(name, allowed).caught(judging)) for name in names}
    told = ", ".join(f"{WORDS[name]} {count}" for name, count in caught.items())
    words = f"Of {_failures(len(judging))} it catches {own}; at the same budget {told}."
    least = max(caught.values()) - params.behind_baselines
    # failures to come may turn it round
    return Check("baselines", own >= least, None, float(own), float(least), words, waits=own < least)


def check_time(seconds_T2: FloatN | None, rows: int, params: GateParams) -> Check:
    """A row may not take much longer to score than the champion takes: the median ratio of the rounds.

    A busy machine disturbs some rounds. Beyond the limit it fails only where the lower bound of the median is beyond it
    too, by the signs of the rounds (Conover 1999, section 3.2); else it is to be measured again.

    Args:
        seconds_T2: champion's and challenger's seconds per row in each round; None: too few rows.
        rows: that there are.
        params: section `gate`.

    >>> calm = np.tile([1e-6, 1.2e-6], (7, 1))
    >>> check_time(calm, 5000, GateParams()).passed, check_time(2 * calm * [1, 2], 5000, GateParams()).passed
    (True, False)
    """
    limit = params.time_ratio
    if seconds_T2 is None:
        words = f"{rows:,} rows are too few to measure time ({params.time_rows:,} are needed)."
        return Check("time", None, None, None, limit, words, waits=True)
    ratio_T = np.sort(seconds_T2[:, 1] / seconds_T2[:, 0])
    ratio, (old, new) = float(np.median(ratio_T)), (1e6 * np.median(seconds_T2, axis=0)).tolist()
    words = f"It takes {ratio:.2f} times as long per row ({new:.3g} against {old:.3g} microseconds)."
    if ratio <= limit:
        return Check("time", True, old, new, limit, words)
    # the place of the lower bound among the sorted rounds; -1: too few of them for one
    below = int(stats.binom.ppf(1 - params.confidence, len(ratio_T), 0.5)) - 1
    if below >= 0 and float(ratio_T[below]) > limit:
        return Check("time", False, old, new, limit, words)
    words += " Some rounds are within the limit: the machine was busy, and it must be measured again."
    return Check("time", None, old, new, limit, words, waits=True)


def check_seeds(champion: Side, challengers: Sequence[Side], params: GateParams, evaluate: EvaluateParams) -> Check:
    """Challengers of other seeds must pass the same checks of failures, false pages and baselines."""
    candidate, limit = challengers[0].release, float(params.seeds)
    if candidate.manifest.get("recalibrated_from") == champion.release.id:
        return Check("seeds", True, None, None, None, "The weights are the champion's: there is no seed to vary.")
    others = {release_seed(side.release): side for side in challengers[1:]}
    others.pop(release_seed(candidate), None)
    if params.seeds == 1 and not others:
        return Check("seeds", True, None, 1.0, limit, "One seed is asked for, and no other was trained.")
    if len(others) + 1 < params.seeds:
        words = f"Challengers of {len(others) + 1} seeds were trained, {params.seeds} are needed to tell luck apart."
        return Check("seeds", False, None, float(len(others) + 1), limit, words)
    found = [
        (seed, check)
        for seed, side in others.items()
        for check in (
            check_failures(champion, side, params, evaluate),
            check_false_pages(champion, side, params, evaluate),
            check_baselines(side, params, evaluate),
        )
    ]
    failed = [(seed, check) for seed, check in found if check.passed is False]
    open_ = [(seed, check) for seed, check in found if check.passed is None and check.waits]
    count = float(len(others) + 1)
    told = " ".join(f"Seed {seed}: {check.words}" for seed, check in failed or open_)
    if failed:
        return Check("seeds", False, None, count, limit, told, waits=all(check.waits for _, check in failed))
    if open_:
        return Check("seeds", None, None, count, limit, told, waits=True)
    names = ", ".join(map(str, [release_seed(candidate), *others]))
    return Check("seeds", True, None, count, limit, f"Seeds {names} pass the same checks.")


def gain_in_pages(champion: Side, challenger: Side, params: GateParams) -> Check:
    """Fewer false pages per machine-day on confirmed rows: the difference, and its interval over machines and days.

    Rows younger than the horizon do not count: who stays silent before a failure that nobody has logged yet gains
    nothing.
    """
    old, new = champion.pages, challenger.pages
    days_B, machine_B = new.confirmed_days_B, new.machine_B
    days, value_B = float(days_B.sum()), old.confirmed_false_B - new.confirmed_false_B
    if days <= 0:
        words = "No later row is old enough to be confirmed as healthy."
        return Check("fewer_false_pages", None, None, None, 0.0, words, waits=True)
    rates = float(old.confirmed_false_B.sum()) / days, float(new.confirmed_false_B.sum()) / days
    told = f"On {days:,.1f} confirmed machine-days {rates[0]:.3g} false pages a day against {rates[1]:.3g}"
    kept = (days_B > 0) | (value_B != 0)
    if len(np.unique(machine_B[kept])) < FEW_MACHINES:
        words = f"{told}: an interval resamples machines, and there is only one."
        return Check("fewer_false_pages", None, *rates, 0.0, words)
    if not value_B.any():
        words = f"{told}: both raise as many on every machine-day."
        return Check("fewer_false_pages", False, *rates, 0.0, words)
    drawn_D = resampled_rates(
        value_B[kept][:, None], days_B[kept], machine_B[kept], params.draws, release_seed(challenger.release)
    )[:, 0]
    low, high = _ends(drawn_D, params.confidence)
    verdict = "excludes zero" if low > 0 else "does not exclude zero"
    words = f"{told}: the interval of the difference, {low:.3g} to {high:.3g}, {verdict}."
    return Check("fewer_false_pages", low > 0, *rates, 0.0, words)


def gain_in_catches(champion: Side, challenger: Side, params: GateParams) -> Check:
    """More tune failures caught: the paired interval and the exact test on those that only one caught must agree.

    Where few failures differ, resampling them flatters the difference (three of ten that only one caught are enough);
    the exact test of McNemar does not.
    """
    tuning = sorted(champion.rows.tuning)
    if not tuning:
        return Check("more_caught", None, None, None, 0.0, "There is no tune failure that counts for both.")
    old_F, new_F = (np.isin(tuning, sorted(side.pages.outcome.caught)) for side in (champion, challenger))
    counts = float(old_F.sum()), float(new_F.sum())
    told = f"Of {_failures(len(tuning), 'tune failure')} it catches {counts[1]:g}, the champion {counts[0]:g}"
    if len(tuning) < FEW_FAILURES:
        words = f"{told}: too few to resample ({FEW_FAILURES} are needed)."
        return Check("more_caught", None, *counts, 0.0, words)
    generator = np.random.default_rng(release_seed(challenger.release))
    draws_DF = generator.multinomial(len(tuning), np.full(len(tuning), 1 / len(tuning)), params.draws)
    low, high = _ends(draws_DF @ (new_F.astype(np.int64) - old_F), params.confidence)
    chance = exact_p(int((new_F & ~old_F).sum()), int((old_F & ~new_F).sum()))
    words = f"{told}: the interval of the difference is {low:g} to {high:g}, the exact test gives p = {chance:.2g}."
    return Check("more_caught", low > 0 and chance <= 1 - params.confidence, *counts, 0.0, words)


def gain_of_rates(champion: Side) -> Check:
    """The champion no longer keeps the rate of healthy rows above its page tier that it was calibrated to keep.

    Its interval on later rows and its interval of the calibration must not touch: more than a later rate that lies
    outside, which few rows show by chance.
    """
    page = champion.release.calibration["detectors"][champion.release.detector]["page"]
    low, high = page["rate_low"], page["rate_high"]
    if champion.rate is None:
        words = "There is no later healthy row."
        return Check("champion_rate", None, None, None, high, words, waits=True)
    rate, now_low, now_high, note = champion.rate
    if now_low is None or now_high is None:
        return Check("champion_rate", None, rate, None, high, note or "There is no interval.", waits=True)
    told = f"The champion lets {_percent(rate)} of later healthy rows through ({_percent(now_low)} to "
    told += f"{_percent(now_high)})"
    if low is None or high is None:
        return Check("champion_rate", None, rate, None, None, f"{told}; its calibration has no interval.")
    out = now_low > high or now_high < low
    where = "outside" if out else "not outside"
    words = f"{told}, which is {where} the {_percent(low)} to {_percent(high)} of its calibration."
    return Check("champion_rate", out, rate, None, high, words)


def _ends(values_D: np.ndarray, confidence: float) -> tuple[float, float]:
    low, high = np.quantile(values_D, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _failures(count: int, noun: str = "failure") -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _pages(count: int) -> str:
    return "No false page" if not count else f"{count} false page" + ("" if count == 1 else "s")
