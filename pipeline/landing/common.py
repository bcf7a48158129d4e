"""What the files of one fleet have in common: kind, bins, features, bands; and types that a CSV only hints at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pyarrow as pa

from pipeline.errors import ContractError
from pipeline.landing.forms import Form, is_number
from pipeline.landing.places import Place
from pipeline.schema import FleetSpec


def settled_types(forms: Mapping[str, Form]) -> dict[str, Form]:
    """Context of CSV files in one type over all files: text in one is text in all."""
    kinds: dict[str, set[pa.DataType]] = {}
    for form in forms.values():
        for new, old in form.context.items():
            if form.csv is not None:
                kinds.setdefault(new, set()).add(form.csv.types[old])
    settled = {new: _common_type(found) for new, found in kinds.items()}

    def settle(form: Form) -> Form:
        if form.csv is None:
            return form
        types = {**form.csv.types, **{old: settled[new] for new, old in form.context.items()}}
        return replace(form, csv=replace(form.csv, types=types))

    return {name: settle(form) for name, form in forms.items()}


def _common_type(kinds: set[pa.DataType]) -> pa.DataType:
    if len(kinds) == 1:
        return next(iter(kinds))
    return pa.float64() if all(is_number(kind) for kind in kinds) else pa.string()


def of_one_fleet(
    forms: Mapping[str, Form], spec: FleetSpec | None, place: Place
) -> tuple[dict[str, Form], dict[str, str]]:
    """The files of the kind and bins that fleet.yaml states, or else that most files have; and what the others are.

    Raises:
        ContractError: as many files of one kind as of another.
    """
    stated = spec.model_fields_set if spec is not None else set()
    bins = spec.bins if spec is not None and "bins" in stated else None
    rows = [form for form in forms.values() if form.axis is not None or "axis" in form.facts]
    if bins is not None and rows and spec is not None and spec.axes:
        bins //= len(spec.axes)  # a row holds one of them
    wrong = {}
    if bins is not None:
        for name, form in forms.items():
            if form.bins not in (0, bins):
                where = f"{place.where(name)} (fleet.yaml says {bins})"
                wrong[name] = str(ContractError.of("number of bins", got=form.bins, expected=bins, where=where))
        forms = {name: replace(form, bins=bins) for name, form in forms.items() if name not in wrong}
    known = Counter(form.fleet_facts for form in forms.values() if form.bins)
    if not known:
        return dict(forms), wrong
    (best, count), *others = known.most_common()
    if others and others[0][1] == count:
        names = {form.fleet_facts: name for name, form in reversed(list(forms.items()))}
        got = f"{best} in {names[best]} and {count - 1} more, {others[0][0]} in as many"
        expected = "one form; say it in fleet.yaml, or choose files (--files)"
        raise ContractError.of("form of the files", got=got, expected=expected, where=place.label)
    kept = {}
    for name, form in forms.items():
        form = form if form.bins else replace(form, bins=best.bins)
        facts, where = form.fleet_facts, place.where(name)
        if facts == best:
            kept[name] = form
        elif facts.bins != best.bins:
            error = ContractError.of("number of bins", got=facts.bins, expected=best.bins, where=where)
            wrong[name] = str(error)
        else:
            wrong[name] = str(ContractError.of("form of the file", got=facts, expected=best, where=where))
    return kept, wrong
