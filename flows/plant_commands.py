"""`hearken up` and `hearken down`: everything that a plant needs on one machine, in the background."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from flows.checkout import checkout_above
from pipeline.errors import printable

if TYPE_CHECKING:
    from flows.plant_services import PlantServices


def up(
    port: Annotated[
        int, typer.Option(min=1, max=65535, envvar="HEARKEN_PREFECT_PORT", help="Of the Prefect server.")
    ] = 4200,
) -> None:
    """Start Prefect server, workers of both pools and the deployments on this machine, and wait until they are well."""
    from pipeline.landing.places import without_credentials

    services = _services()
    address = services.up(port, _say)
    _say(f"Prefect: {address}")
    landing = services.environment["HEARKEN_LANDING"]
    missing = (
        "" if "://" in landing or Path(landing).is_dir() else " (no such folder yet: scoring fails until there is)"
    )
    _say(f"landing zone: {without_credentials(landing)}{missing}")
    _say(f"logs: {services.logs}; to stop: hearken down, or make down")


def down() -> None:
    """Stop what `hearken up` started, and nothing else."""
    _services().down(_say)


def _services() -> PlantServices:
    from flows.plant_services import services_of
    from flows.settings import Settings
    from pipeline.params import load_params

    settings = Settings.of(checkout_above())
    params = load_params(settings.checkout / "params.yaml")
    return services_of(settings, settings.landing_place(params.source.path))


def _say(line: str) -> None:
    Console(soft_wrap=True).print(escape(printable(line)), highlight=False)
