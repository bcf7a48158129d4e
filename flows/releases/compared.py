"""Two releases side by side: what made them, settings, members, thresholds, policy, figures, epochs, files."""

from __future__ import annotations

from typing import Any

from flows.releases.described import Described, different
from flows.terminal import DASH
from pipeline.errors import ContractError
from pipeline.store import read_json

MANIFEST_FACTS = ("detector", "bins", "device", "threads", "batch_rows", "provisional", "changed_at", "seed")
Sides = tuple[str, str]


def compare(one: Described, other: Described, versions: dict[str, int]) -> dict[str, dict[str, Sides]]:
    """What differs, by section and name, in words; sections without a difference are left out."""
    sections = {
        "made by": _plain(_made_by(one, versions), _made_by(other, versions)),
        "settings": _plain(one.settings(), other.settings()),
        "detectors": _plain(_members(one), _members(other)),
        "thresholds": _thresholds(one, other),
        "alert policy": _plain({"policy": one.policy()}, {"policy": other.policy()}),
        "figures": _plain(one.figures(), other.figures()),
        "epochs": _plain(_epochs(one), _epochs(other)),
        "files": _files(one, other),
    }
    return {name: found for name, found in sections.items() if found}


def _made_by(each: Described, versions: dict[str, int]) -> dict[str, Any]:
    facts = {name: each.manifest.get(name) for name in MANIFEST_FACTS}
    newest = each.newest_row()
    return {
        "commit": each.row.commit[:12] or None,
        "came from": each.origin(versions),
        "newest row": None if newest is None else f"{newest:%Y-%m-%d %H:%M}",
        **{f"input {name}": digest[:12] for name, digest in (each.manifest.get("inputs") or {}).items()},
        **facts,
    }


def _members(each: Described) -> dict[str, Any]:
    """Weights of every detector, and the members of the ensemble."""
    weights = {f"{name}, weights": digest[:12] for name, digest in (each.manifest.get("models") or {}).items()}
    ensemble = each.calibration.get("ensemble") or {}
    return weights | {"ensemble": ", ".join(ensemble.get("members") or []) or None}


def _thresholds(one: Described, other: Described) -> dict[str, Sides]:
    def told(tier: dict[str, Any] | None) -> str:
        return DASH if tier is None else f"{tier['threshold']:.10g} at {tier['percentile']:g} ({tier['basis']})"

    kept = ("percentile", "threshold", "basis")
    sides = [
        {name: {key: tier.get(key) for key in kept} for name, tier in each.thresholds().items()}
        for each in (one, other)
    ]
    return {name: (told(a), told(b)) for name, (a, b) in different(*sides).items()}


def _epochs(each: Described) -> dict[str, Any]:
    """How many baseline epochs each machine has, and how many changes the fleet."""
    try:
        epochs = read_json(each.folder / "epochs.json")
    except ContractError:
        return {}
    machines = epochs.get("machines") or {}
    counts: dict[str, Any] = {f"starts of {name}": len(starts) for name, starts in machines.items()}
    return {"starts of the fleet": len(epochs.get("fleet") or []), **counts}


def _files(one: Described, other: Described) -> dict[str, Sides]:
    found = different(one.manifest.get("files") or {}, other.manifest.get("files") or {})
    return {name: ((a or DASH)[:12], (b or DASH)[:12]) for name, (a, b) in found.items()}


def _plain(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Sides]:
    return {name: (value_text(a), value_text(b)) for name, (a, b) in different(one, other).items()}


def value_text(value: Any) -> str:
    """A setting as it would stand in params.yaml.

    >>> value_text([1, 2]), value_text(None), value_text(True), value_text({"k": 1})
    ('[1, 2]', '—', 'true', '{k: 1}')
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(value_text(each) for each in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {value_text(each)}" for key, each in value.items()) + "}"
    return DASH if value is None else str(value)
