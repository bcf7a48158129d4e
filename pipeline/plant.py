"""A plant's own data folder, made ready: a commented fleet.yaml and maintenance.csv, and a place for the spectra."""

from __future__ import annotations

import json
import os
import re
import shlex
from importlib.resources import files
from pathlib import Path

from pipeline.errors import UserError
from pipeline.schema import FleetSpec
from pipeline.store import write_text
from pipeline.yaml_model import checked_model

FLEET_FILE = "fleet.yaml"
TEMPLATES = (FLEET_FILE, "maintenance.csv", "README.txt")
SPECTRA = "spectra"


def init_plant(plant: Path, *, name: str | None = None, timezone: str | None = None) -> list[Path]:
    """Make the folder of a plant's data; the files written. Nothing that exists is touched.

    Args:
        plant: the folder, new or there.
        name: of the fleet, for reports; by default that of the folder.
        timezone: IANA name of the plant's local time; by default it is not stated.

    Raises:
        UserError: a file is there already, the folder lies inside the checkout, or a name or zone is none.
    """
    folder = plant.resolve()
    _refuse_checkout(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{plant}: got a file, expected a new folder.")
    there = [entry for entry in (*TEMPLATES, "maintenance.parquet") if os.path.lexists(folder / entry)]
    if there:
        raise UserError(f"{plant}: got {there[0]}, which exists, expected a folder without it; nothing was written.")
    stated = {"name": name or fleet_name(folder.name)} | ({"timezone": timezone} if timezone else {})
    _, findings = checked_model(json.dumps(stated), FleetSpec, FLEET_FILE)  # JSON is YAML
    if findings:
        raise UserError(f"{findings[0].what}: got {findings[0].got}, expected {findings[0].expected}.")
    values = {"NAME": stated["name"], "PLANT": shlex.quote(str(folder))}
    values["TIMEZONE"] = f"timezone: {timezone}" if timezone else "# timezone: Europe/Berlin"
    texts = {template: _filled(template, values) for template in TEMPLATES}
    (folder / SPECTRA).mkdir(parents=True, exist_ok=True)
    for template, text in texts.items():
        write_text(folder / template, text)
    return [folder / template for template in TEMPLATES]


def fleet_name(text: str) -> str:
    """A fleet's name from any text: small letters, digits and -.

    >>> fleet_name("Werk Süd (2)"), fleet_name("工場")
    ('werk-s-d-2', 'plant')
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:63].strip("-") or "plant"


def _filled(template: str, values: dict[str, str]) -> str:
    text = (files("pipeline") / "plant_template" / template).read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text


def _refuse_checkout(folder: Path) -> None:
    """Data inside a checkout would end in git; below its data/ git does not look."""
    for parent in folder.parents:
        if (parent / "dvc.yaml").exists() and (parent / "params.yaml").exists():
            if parent / "data" in folder.parents:
                return
            expected = f"a folder outside of it, or below {parent / 'data'}"
            raise UserError(f"{folder}: got a folder inside the checkout {parent}, expected {expected}.")
