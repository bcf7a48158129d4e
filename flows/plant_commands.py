"""`hearken up` and `hearken down`: everything that a plant needs on one machine, in the background."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.checkout import installation
from flows.terminal import say

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
    address = services.up(port, say)
    say(f"Prefect: {address}")
    landing = services.environment["HEARKEN_LANDING"]
    missing = (
        "" if "://" in landing or Path(landing).is_dir() else " (no such folder yet: scoring fails until there is)"
    )
    say(f"landing zone: {without_credentials(landing)}{missing}")
    say(f"logs: {services.logs}; to stop: hearken down, or make down")


def down() -> None:
    """Stop what `hearken up` started, and nothing else."""
    _services().down(say)


def _services() -> PlantServices:
    from flows.plant_services import services_of
    from pipeline.params import load_params

    settings = installation()
    params = load_params(settings.checkout / "params.yaml")
    return services_of(settings, settings.landing_place(params.source.path))
