"""How far a healthy fleet strays from its own past: limits of drift, calibrated on the reference in blocks of time.

A block is as long as the window that is checked in service. Each block of history is compared, as a window would be,
with the reference less that block and its neighbours: so the limits hold what days do to a machine, and what a day does
to all machines at once. Beside the blocks as they were, fleets are drawn whose machines come from different blocks.

Shape legend: N rows, M machines, K conditions, B blocks of time, D columns of `SHAPE`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.drift.columns import ALERT_RATE, CONDITION, CONTEXT, SHAPE, SPEED, Heard
from pipeline.drift.consensus import (
    MIN_MACHINE_ROWS,
    Array,
    Sums,
    Usual,
    blocks_of,
    common_shift,
    moved_by,
    size_of,
    with_a_past,
)
from pipeline.drift.distances import DISTANCES
from pipeline.errors import ContractError
from pipeline.rows import Codes
from pipeline.schema import MICROSECONDS_PER_DAY, BoolN, IntN

ENOUGH_DAYS = 90.0  # of history, for limits without a margin for what it has not shown
MARGIN, SHORT_MARGIN, SCANT_MARGIN = 1.1, 1.4, 2.0
SCANT_DAYS = 14.0  # below it the margin grows, up to SCANT_MARGIN without any days
MOVED_SHARE = 0.995  # of healthy machine-blocks lie below the limit of one machine
COMMON_DRAWS = 1_000  # fleets whose machines come from different blocks
COLUMN_DRAWS = 40  # windows per size of group
SIZES = (1.0, 0.4, 0.15)  # shares of the fleet for which columns have limits: fewer machines stray further
FEW_BLOCKS = 6
LEAST_COLUMN_LIMIT = 0.05  # standard deviations, or a distance of mixes
# a mix, and a rate whose reference may hold no alert at all: its standard deviation is no scale
METHODS: Mapping[str, str] = {CONDITION: "jensenshannon", ALERT_RATE: "jensenshannon"}
DEFAULT_METHOD = "wasserstein"


@dataclass(frozen=True)
class Limits:
    """Of one release: `moved` of a machine, `common` of the fleet, `columns` per size of the compared group.

    `days` is the length of the window, `history` says in a sentence how they were calibrated.
    """

    days: float
    moved: float
    common: float
    sizes: tuple[float, ...]
    columns: Mapping[str, tuple[float, ...]]
    history: str
    span_days: float
    machine_blocks: int

    def column(self, name: str, share: float) -> float | None:
        """The limit of a column for a share of the machines: of the next smaller group; None: never calibrated."""
        known = self.columns.get(name)
        if known is None:
            return None
        place = next((index for index, size in enumerate(self.sizes) if share >= size), len(self.sizes) - 1)
        return known[place]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self) | {"columns": {name: list(values) for name, values in sorted(self.columns.items())}}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Limits:
        """The inverse of `to_json`.

        Raises:
            ContractError: a key is missing.
        """
        try:
            columns = {str(name): tuple(map(float, found)) for name, found in values["columns"].items()}
            return cls(**{**values, "columns": columns, "sizes": tuple(map(float, values["sizes"]))})
        except (KeyError, TypeError) as error:
            raise ContractError.of("drift.json", got=error, expected="limits of drift", where="the release") from None


def calibrate(reference: Heard, days: float, seed: int) -> Limits:
    """Limits from the rows of a reference.

    Args:
        reference: healthy rows.
        days: length of the window in service.
        seed: of the drawn windows.
    """
    rng = np.random.default_rng(seed)
    time_us_N = reference.time_us_N
    span = float(np.ptp(time_us_N)) / MICROSECONDS_PER_DAY if len(reference) else 0.0
    _, past = with_a_past(reference)
    shift_BMKD = block_shifts(past, blocks_of(past.time_us_N, days))
    machine_blocks = int(np.isfinite(shift_BMKD).any(axis=(2, 3)).sum())
    short = span < ENOUGH_DAYS
    margin = margin_of(span)
    moved = moved_by(shift_BMKD)
    moved = moved[np.isfinite(moved)]
    common = common_sizes(shift_BMKD, rng)
    columns = column_limits(reference, blocks_of(time_us_N, days), margin, rng)
    told = f"{machine_blocks} blocks of {days:g} days of {len(np.unique(reference.machine_N))} machines"
    if short:
        history = (
            f"Limits come from {span:.0f} days of healthy history, fewer than {ENOUGH_DAYS:g}: {told}, as they were "
            f"and drawn anew from different days, with a margin of {margin:g}."
        )
    else:
        history = f"Limits come from {span:.0f} days of healthy history: {told}, with a margin of {margin:g}."
    return Limits(
        days=float(days),
        moved=_rounded(margin * float(np.quantile(moved, MOVED_SHARE)) if len(moved) else 4.0),
        common=_rounded(margin * (max(common) if common else 2.0)),
        sizes=SIZES,
        columns=columns,
        history=history,
        span_days=round(span, 3),
        machine_blocks=machine_blocks,
    )


def margin_of(span_days: float) -> float:
    """The factor on what was found in so many days of history: the shorter it is, the less it has shown.

    >>> [margin_of(days) for days in (0.0, 7.0, 30.0, 90.0)]
    [2.0, 1.7, 1.4, 1.1]
    """
    if span_days >= ENOUGH_DAYS:
        return MARGIN
    missing = max(0.0, 1 - span_days / SCANT_DAYS)
    return round(SHORT_MARGIN + (SCANT_MARGIN - SHORT_MARGIN) * missing, 3)


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def block_shifts(reference: Heard, block_N: IntN) -> Array:
    """Shift (B, M, K, D) of each machine in each block from its reference without that block and its neighbours."""
    shape = (len(reference.machines), len(reference.conditions))
    if not len(reference):
        return np.empty((0, *shape, len(SHAPE)))
    usual, of_blocks = Usual.with_blocks(reference.shape(), reference.machine_N, reference.condition_N, block_N, shape)
    shifts, apart = [], _apart(len(of_blocks.rows))
    for block in range(len(of_blocks.rows)):
        near = slice(max(0, block - apart), block + apart + 1)
        now = Sums(*(part[block] for part in (of_blocks.rows, of_blocks.total, of_blocks.squares)))
        pairs = (
            (usual.sums.rows, of_blocks.rows),
            (usual.sums.total, of_blocks.total),
            (usual.sums.squares, of_blocks.squares),
        )
        rest = Sums(*(every - part[near].sum(axis=0) for every, part in pairs))
        shift = usual.shifts(now, rest)
        shift[rest.rows.sum(axis=1) < MIN_MACHINE_ROWS] = np.nan
        shifts.append(shift)
    return np.stack(shifts)


def _apart(blocks: int) -> int:
    """Neighbours that say much the same as a block, and are left out with it, where there are blocks enough."""
    return 1 if blocks >= FEW_BLOCKS else 0


def common_sizes(shift_BMKD: Array, rng: np.random.Generator) -> list[float]:
    """Sizes of the fleet's common shift: in each block with half of the machines, and in fleets drawn from all blocks.

    Of the drawn ones only the 999th of a thousand counts, so that the list's largest is a limit.
    """
    told_BM: BoolN = np.asarray(np.isfinite(shift_BMKD).any(axis=(2, 3)))
    found = [
        size_of(common_shift(shift_MKD[told_M]))
        for shift_MKD, told_M in zip(shift_BMKD, told_BM, strict=True)
        if told_M.sum() >= max(2, told_BM.any(axis=0).sum() / 2)
    ]
    machines = np.flatnonzero(told_BM.any(axis=0))
    if len(machines) >= 2:
        choices = [np.flatnonzero(told_BM[:, machine]) for machine in machines]
        drawn = []
        for _ in range(COMMON_DRAWS):
            blocks = [int(own[rng.integers(len(own))]) for own in choices]
            drawn.append(size_of(common_shift(shift_BMKD[blocks, machines])))
        found.append(float(np.quantile(drawn, 0.999)))
    return found


def column_limits(
    reference: Heard, block_N: IntN, margin: float, rng: np.random.Generator
) -> dict[str, tuple[float, ...]]:
    """Limit of each column for each size of group: the largest of many drawn windows, with a margin."""
    names = reference.compared
    found: dict[str, list[float]] = {name: [] for name in names}
    machines = np.unique(reference.machine_N)
    blocks = int(block_N.max(initial=0)) + 1
    apart = _apart(blocks)
    for size in SIZES:
        worst = dict.fromkeys(names, 0.0)
        for draw in range(COLUMN_DRAWS):
            few = rng.permutation(machines)[: max(1, round(size * len(machines)))]
            # every other window is one day of the fleet as it was, the others mix days
            chosen = np.full(len(reference.machines), -9, np.int64)
            chosen[few] = rng.integers(blocks) if draw % 2 else rng.integers(blocks, size=len(few))
            away_N = chosen[reference.machine_N] - block_N
            here_N, past_N = away_N == 0, (np.abs(away_N) > apart) & (chosen[reference.machine_N] >= 0)
            if min(here_N.sum(), past_N.sum()) < MIN_MACHINE_ROWS:
                continue
            window, past = reference.take(here_N), reference.take(past_N)
            for name, value in column_distances(window, past, names, {}, rng).items():
                worst[name] = max(worst[name], value)
        for name in names:
            found[name].append(_rounded(max(margin * worst[name], LEAST_COLUMN_LIMIT)))
    # fewer machines never have a lower limit
    return {name: tuple(np.maximum.accumulate(values).tolist()) for name, values in found.items()}


def column_distances(
    current: Heard,
    reference: Heard,
    names: Sequence[str],
    methods: Mapping[str, str],
    rng: np.random.Generator,
) -> dict[str, float]:
    """The statistic of each column between a window and as many reference rows of the same mix."""
    frames = paired_columns(current, reference, names, rng)
    return {name: DISTANCES[method_of(name, methods)](now, then) for name, (now, then) in frames.items()}


def method_of(name: str, methods: Mapping[str, str]) -> str:
    """The method of a column."""
    return methods.get(name, METHODS.get(name, DEFAULT_METHOD))


def paired_columns(
    current: Heard, reference: Heard, names: Sequence[str], rng: np.random.Generator
) -> dict[str, tuple[Any, Any]]:
    """Values of each column: of the window, and of as many reference rows with the same machines and conditions.

    Context columns stand beside reference rows of the same machines in whatever condition: their mix is what they tell.
    """
    now = current.in_codes_of(reference)
    matched = reference.take(matched_rows(now, reference, rng, by_condition=True))
    mixed = reference.take(matched_rows(now, reference, rng, by_condition=False))
    pairs: dict[str, tuple[Any, Any]] = {}
    for name in names:
        if name == CONDITION:
            known = np.array(now.conditions, dtype=str)
            pairs[name] = (known[now.condition_N], known[mixed.condition_N])
        elif name in current.columns and name in reference.columns:
            pairs[name] = (now.column(name), (mixed if name == SPEED else matched).column(name))
    return pairs


def matched_rows(now: Heard, reference: Heard, rng: np.random.Generator, *, by_condition: bool) -> IntN:
    """A reference row for each row of a window, drawn with replacement.

    Of the same machine and condition where there is one, else of the same condition, else of the same machine, else
    any. Without `by_condition` of the same machine, else any.
    """
    conditions = max(len(now.conditions), len(reference.conditions))
    share_N = rng.random(len(now))
    whole = np.zeros(len(reference), np.int64), np.zeros(len(now), np.int64)
    keys: list[tuple[Codes, Codes]] = [whole, (reference.machine_N, now.machine_N)]
    if by_condition:
        keys += [
            (reference.condition_N, now.condition_N),
            (
                reference.machine_N.astype(np.int64) * conditions + reference.condition_N,
                now.machine_N.astype(np.int64) * conditions + now.condition_N,
            ),
        ]
    row_N = np.zeros(len(now), np.int64)
    for past_M, key_N in keys:  # the narrowest last: it has the last word
        order = np.argsort(past_M, kind="stable")
        first_N, last_N = (np.searchsorted(past_M[order], key_N, side=side) for side in ("left", "right"))
        known_N: BoolN = last_N > first_N
        drawn_N = first_N + (share_N * (last_N - first_N)).astype(np.int64)
        row_N[known_N] = order[drawn_N[known_N]]
    return row_N


def is_evidence(name: str) -> bool:
    """Whether a column says how machines sound; context only says what they were asked to do.

    >>> is_evidence("band_1"), is_evidence("condition")
    (True, False)
    """
    return name not in CONTEXT
