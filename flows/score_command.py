"""`hearken score`: what has arrived, once, for the service; or, with `--input`, any spectra with any release."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Annotated

import typer

from flows.arrived import as_data_set
from flows.checkout import chosen_params, installation
from flows.chosen_release import chosen_release
from flows.terminal import say, typed_time
from pipeline.errors import HearkenError, UserError


def score(
    input: Annotated[
        Path | None,
        typer.Option("--input", help="A data set, or anything that ingest takes; default: what has arrived."),
    ] = None,
    release: Annotated[
        str | None, typer.Option(help="With --input: a release folder, or an id, v3 or 3 of the registry.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="With --input: folder of the score log, a Parquet file per day.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="With --input: rows from here on: 2025-03-01T14:30, UTC without a zone.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="With --input: rows before this.")] = None,
) -> None:
    """Score what has arrived with the release in service, and open and close alerts; or score --input alone."""
    given = {"--release": release, "--output": output, "--since": since, "--until": until}
    if input is None:
        for option, value in given.items():
            if value is not None:
                raise UserError(f"{option}: got one without --input, expected both: arrivals go to the score log.")
        score_what_has_arrived()
        return
    if release is None or output is None:
        missing = "--release" if release is None else "--output"
        raise UserError(f"{missing}: got none, expected one with --input.")
    low = None if since is None else typed_time(since, "--since")
    high = None if until is None else typed_time(until, "--until")
    _score_input(input, release, output, low, high)


def score_what_has_arrived() -> None:
    """One run of the service; in this process, or through the flow where Dask workers score.

    Raises:
        UserError: no checkout, no release in service, no landing zone, no database.
        HearkenError: shards could not be scored; the next run tries them again.
    """
    from flows.settings import configure
    from pipeline.params import load_params

    settings = installation()
    params = load_params(settings.checkout / "params.yaml")
    if params.score.engine == "local":  # no Prefect server for a run that a cron job starts every ten minutes
        from flows.score_run import run_scoring

        run = run_scoring(settings, params, say)
        if run.error is not None:
            raise run.error
        return
    configure(settings)
    from flows.score_flow import score as flow  # imports prefect, which configure() has to come before
    from flows.score_run import FinishedRun

    found = flow(checkout=str(settings.checkout))
    if not isinstance(found, FinishedRun):
        raise HearkenError(f"score: {found}")
    say(found.summary.line)


def _score_input(
    source: Path, release: str, output: Path, since: dt.datetime | None, until: dt.datetime | None
) -> None:
    from pipeline.score import score_data_set

    loaded = chosen_release(release)
    with as_data_set(source, chosen_params().ingest) as data_set:
        summary = score_data_set(loaded, data_set, output, since, until)
    say(
        f"{summary.rows:,} spectra of {summary.machines} machines scored by release {loaded.id}, "
        f"{summary.unscored:,} of them unusable, {summary.pages} pages: {output}"
    )
