"""The command line. Every command is a few lines around one function; imports wait until a command needs them.

A person's mistake ends with one line on stderr and exit code 2, never with a traceback.
"""

from __future__ import annotations

import datetime as dt
import errno
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from typer.exceptions import TyperException

from flows.alerts_command import alerts
from flows.checkout import checkout_above, chosen_params, database, installation
from flows.chosen_release import chosen_release
from flows.codes_command import decode, encode
from flows.drift_command import drifts, monitor, retrain
from flows.history_command import history
from flows.layout_options import GivenLayout, takes_layout
from flows.plant_commands import down, up
from flows.quarantine_commands import quarantine
from flows.recalibrate_command import recalibrate
from flows.releases_command import releases
from flows.score_command import score
from flows.status_command import metrics, status
from flows.terminal import JsonOption, say, say_markup, shown, wide_console
from flows.tune_command import tune
from flows.what_if_command import what_if
from pipeline.errors import HearkenError, UserError, printable

if TYPE_CHECKING:
    from pipeline.params import Section

    S = TypeVar("S", bound=Section)

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, help=__doc__.split("\n")[0]
)
app.add_typer(releases, name="releases")
app.add_typer(quarantine, name="quarantine")
app.add_typer(alerts, name="alerts")
app.add_typer(drifts, name="drifts")
app.add_typer(tune, name="tune")

ParamsOption = Annotated[
    Path | None,
    typer.Option(
        "--params",
        help="Settings; default: params.yaml here or of the checkout above, else the built-in ones, which are the same "
        "but for section simulate.",
    ),
]
FULL = (errno.ENOSPC, errno.EDQUOT)


@app.command()
def simulate(
    out: Annotated[Path, typer.Option(help="Folder of the data set or landing zone.")],
    from_day: Annotated[float, typer.Option(help="First day to write; continues the same fleet.")] = 0.0,
    days: Annotated[float | None, typer.Option(help="How many days; default: up to the planned end.")] = None,
    preset: Annotated[str | None, typer.Option(help="A fleet with a name instead of params.yaml: harbor.")] = None,
    machines: Annotated[int | None, typer.Option(help="Instead of simulate.machines.")] = None,
    firmware_day: Annotated[float | None, typer.Option(help="Day of a firmware change that no log tells.")] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of simulate.seed.")] = None,
    max_rows: Annotated[int | None, typer.Option(min=1, help="Keep whole hours and horizons up to this.")] = None,
    params: ParamsOption = None,
) -> None:
    """Simulate a fleet of machines as a data set, seeded: the same settings give the same bytes."""
    from pipeline.params import Params, SimulateParams
    from pipeline.simulate import simulate as run
    from pipeline.simulation.presets import preset_of

    chosen = Params(simulate=preset_of(preset)) if preset is not None else chosen_params(params)
    given = {"machines": machines, "firmware_day": firmware_day, "seed": seed}
    settings = _with_options(chosen.simulate, SimulateParams, given)
    horizon = chosen.split.horizon_hours
    summary = run(settings, out, from_day=from_day, days=days, max_rows=max_rows, horizon_hours=horizon)
    say(f"{summary.rows:,} spectra of {summary.machines} machines in {summary.days} days: {out}")


@app.command()
def init(
    plant: Annotated[Path, typer.Argument(help="A new folder, outside of the checkout or below its data/.")],
    name: Annotated[str | None, typer.Option(help="Of the fleet; default: the folder's.")] = None,
    timezone: Annotated[str | None, typer.Option(help="IANA name of local times.")] = None,
) -> None:
    """Make a plant's own data folder: commented fleet.yaml and maintenance.csv, and a place for spectra."""
    from pipeline.plant import init_plant

    written = init_plant(plant, name=name, timezone=timezone)
    say(f"{plant}: spectra/, {', '.join(path.name for path in written)}")
    say(f"put files into {plant}/spectra, then: hearken check {shlex.quote(str(plant))}")


@app.command()
def check(
    plant: Annotated[Path, typer.Argument(help="A plant's folder.")],
    timezone: Annotated[str | None, typer.Option(help="IANA name for times without a zone.")] = None,
    as_json: JsonOption = False,
    params: ParamsOption = None,
) -> None:
    """Say everything that is wrong with a plant's folder, line by line; exit code 2 where there are errors."""
    from flows.findings import findings_json, findings_table, summary_line
    from pipeline.check import check_plant
    from pipeline.findings import Severity

    settings = chosen_params(params)
    checked = check_plant(
        plant,
        horizon_hours=settings.split.horizon_hours,
        future_hours=settings.validate_.future_hours,
        timezone=timezone or settings.ingest.timezone,
        now=dt.datetime.now(dt.UTC),
    )
    if as_json:
        typer.echo(findings_json(checked))
    else:
        if checked.findings:
            wide_console().print(findings_table(checked.findings))
        say(summary_line(checked))
    if checked.count(Severity.ERROR):
        raise typer.Exit(UserError.exit_code)


@app.command()
@takes_layout
def ingest(
    source: Annotated[
        str, typer.Argument(help="A file, a folder of them, a data set, or a URI (s3://, gs://, abfs://, file://).")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the data set to write or to bring up to date.")],
    timezone: Annotated[str | None, typer.Option(help="IANA name for times without a zone.")] = None,
    time: Annotated[
        str | None,
        typer.Option(help="absolute, or relative: dates are synthetic, spacing is real; default: as params.yaml says."),
    ] = None,
    label_column: Annotated[str | None, typer.Option(help="1 faulty, 0 healthy, -1 unknown.")] = None,
    params: ParamsOption = None,
    *,
    given: GivenLayout,
) -> None:
    """Bring spectra into the project's form: day files, a maintenance log, fleet.yaml."""
    from pipeline.ingest import ingest_for as run
    from pipeline.params import IngestParams

    if time is not None:
        _check_time(time)
    settings = chosen_params(params)
    stated = {"timezone": timezone, "time": time, "label_column": label_column}
    how = _with_options(settings.ingest, IngestParams, stated)
    summary = run(
        source, out, how, settings.split, layout=given.layout(source), unit=given.unit, kind=given.kind, trains=True
    )
    for warning in summary.warnings:
        say_markup(f"[yellow]warning:[/yellow] {shown(warning)}")
    say(
        f"{summary.rows:,} spectra of {summary.machines} machines, {summary.bins} bins, {summary.days} days "
        f"({summary.written} written, {summary.deleted} deleted), {summary.failures} failures, "
        f"{len(summary.set_aside)} files set aside: {out}"
    )


@app.command()
def build(
    clone: Annotated[bool, typer.Option(help="Build in a private clone; this checkout stays as it is.")] = False,
    name: Annotated[str, typer.Option(help="Name of the private clone.")] = "build",
    promote: Annotated[bool, typer.Option(help="Put the release into service.")] = False,
) -> None:
    """Run every stage of dvc.yaml that is out of date, and show what came out."""
    from flows.build import run_build
    from flows.person import person
    from flows.releases.entry import put_into_service
    from flows.settings import Settings

    checkout, who = checkout_above(), person(None) if promote else ""
    result = run_build(checkout, clone=clone, name=name)
    if promote and result.release_id:
        put_into_service(Settings.of(checkout), database(), result.release_id, who=who)
        say(f"release {result.release_id} is in service")


@app.command()
@takes_layout
def backtest(
    data: Annotated[Path, typer.Argument(help="A file, a folder of them, or a data set, with labels.")],
    out: Annotated[Path, typer.Option(help="Folder for metrics.json and report.html.")],
    label_column: Annotated[str | None, typer.Option(help="1 faulty, 0 healthy, -1 unknown; default: label.")] = None,
    train_query: Annotated[str | None, typer.Option(help="Rows whose healthy part trains and calibrates.")] = None,
    test_query: Annotated[
        str | None, typer.Option(help="Rows that are judged; default: all that do not train.")
    ] = None,
    baseline_query: Annotated[str | None, typer.Option(help="Rows that only describe their machine.")] = None,
    timezone: Annotated[str | None, typer.Option(help="IANA name for times without a zone; default: UTC.")] = None,
    time: Annotated[
        str, typer.Option(help="absolute, or relative: dates are synthetic, spacing is real.")
    ] = "absolute",
    detectors: Annotated[
        list[str] | None, typer.Option(help="Names, repeated or with commas; default: those of params.yaml.")
    ] = None,
    across_machines: Annotated[bool, typer.Option(help="Leave each machine out in turn.")] = False,
    params: ParamsOption = None,
    *,
    given: GivenLayout,
) -> None:
    """Train on the healthy past of a recording, calibrate, and judge what comes after."""
    from flows.summary import comparison_table
    from pipeline.backtest import BacktestRequest, run_backtest

    _check_time(time)
    names = tuple(name.strip() for item in detectors or [] for name in item.split(",") if name.strip())
    request = BacktestRequest(
        source=data,
        label_column=label_column,
        train_query=train_query,
        test_query=test_query,
        baseline_query=baseline_query,
        timezone=timezone,
        time=time,
        detectors=names,
        across_machines=across_machines,
        layout=given.layout(data),
        unit=given.unit,
        kind=given.kind,
    )
    figures = run_backtest(
        request, chosen_params(params), out, say=lambda line: say_markup(f"[dim]{shown(line)}[/dim]")
    )
    for note in figures["notes"]:
        say_markup(f"[yellow]note:[/yellow] {shown(note)}")
    Console().print(comparison_table(figures))
    say(f"{out}/report.html, {out}/metrics.json")


@app.command()
def export(
    out: Annotated[Path, typer.Option(help="A new or empty folder.")],
    release: Annotated[
        str | None, typer.Option(help="A release folder, or an id, v3 or 3; default: the release in service.")
    ] = None,
    detector: Annotated[list[str] | None, typer.Option(help="Names, repeated or with commas; default: all.")] = None,
) -> None:
    """Write a release's detectors as ONNX files, for devices that score where Hearken is not installed."""
    from pipeline.onnx_export import export_release

    names = tuple(name.strip() for item in detector or [] for name in item.split(",") if name.strip())
    loaded = chosen_release(release, device="cpu")
    for file in export_release(loaded, out, names):
        apart, size = file.difference, file.path.stat().st_size / 1000
        line = f"scores differ from the release's by {apart.median:.0e} (median), at most by {apart.largest:.0e}"
        say(f"{file.path} ({size:,.0f} kB): {line}")


app.command("score")(score)
app.command("encode")(encode)
app.command("decode")(decode)
app.command("what-if")(what_if)
app.command("recalibrate")(recalibrate)
app.command("status")(status)
app.command("metrics")(metrics)
app.command("history")(history)
app.command("monitor")(monitor)
app.command("retrain")(retrain)
app.command("up")(up)
app.command("down")(down)


@app.command()
def deploy() -> None:
    """Prepare the Prefect server that PREFECT_API_URL names: pools, training slot, watch, deployments."""
    from flows.deploy import deploy as run
    from flows.settings import configure

    settings = installation()
    configure(settings)
    run(settings)
    say("pools, slot, watch and deployments are in place; start workers with: prefect worker start --pool default")


def main() -> None:
    """Entry point of `hearken`."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is loaded; see flows.settings.QUIET
    try:
        code = app(prog_name="hearken", standalone_mode=False)  # mistakes in the words themselves are ours to tell, too
    except typer.Abort:
        _complain("failed", HearkenError("got no answer."))
        sys.exit(1)
    except TyperException as error:
        if message := _of_the_words(error):
            _complain("error", UserError(message))
        sys.exit(UserError.exit_code)
    except UserError as error:
        _complain("error", error)
        sys.exit(error.exit_code)
    except HearkenError as error:
        _complain("failed", error)
        sys.exit(1)
    except OSError as error:
        if error.filename is None and error.errno not in FULL:
            raise
        _complain("error", UserError(_of_the_system(error)))
        sys.exit(UserError.exit_code)
    sys.exit(code if isinstance(code, int) else 0)


def _of_the_words(error: TyperException) -> str:
    """What is wrong with the words of a command, on one line; empty where its help was shown for want of any."""
    if type(error).__name__ == "NoArgsIsHelpError":
        return ""
    said = " ".join(str(getattr(error, "format_message", error.__str__)()).split())
    context = getattr(error, "ctx", None)
    command = "hearken" if context is None else context.command_path
    return f"{said if said.endswith(('.', '?')) else f'{said}.'} See: {command} --help"


def _of_the_system(error: OSError) -> str:
    """What the system says of a file or of a disk: a write that fails for want of room names no file."""
    reason = os.strerror(error.errno or 0).lower()
    if error.errno in FULL:
        return f"{error.filename or 'disk'}: got {reason!r}, expected room for what is written."
    return f"{error.filename}: got {reason!r}, expected a place that can be used so."


def _complain(kind: str, error: Exception) -> None:
    message = f"[red]{kind}:[/red] {escape(printable(str(error)))}"
    Console(stderr=True, soft_wrap=True).print(message, highlight=False)


def _with_options(section: Section, kind: type[S], given: dict[str, Any]) -> S:
    """A section of the settings with what the options say instead."""
    from pydantic import ValidationError

    from pipeline.errors import ParamsError

    try:
        return kind.model_validate(
            section.model_dump() | {key: value for key, value in given.items() if value is not None}
        )
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][-1]).replace("_", "-")
        expected = first["msg"].removeprefix("Input should be ")
        raise ParamsError(f"--{option}: got {first['input']!r}, expected: {expected}.") from None


def _check_time(time: str) -> None:
    if time not in ("absolute", "relative"):
        raise UserError(f"--time: got {time!r}, expected absolute or relative.")


if __name__ == "__main__":
    main()
