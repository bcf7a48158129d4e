"""hearken init: a folder that is right as it is made, and never touches what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from flows import cli
from pipeline.clock import Clock
from pipeline.errors import UserError
from pipeline.layout import ColumnLayout, MaintenanceLayout, SourceLayout, WaveformLayout
from pipeline.maintenance_entries import examine_log
from pipeline.plant import init_plant
from pipeline.schema import FleetSpec, load_fleet_spec
from pipeline.yaml_model import checked_model

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = (ROOT / "pipeline/plant_template/fleet.yaml").read_text().replace("@TIMEZONE@", "timezone: UTC")


def test_what_init_makes_is_right_and_says_nothing_false(tmp_path: Path) -> None:
    plant = tmp_path / "Werk Süd"
    init_plant(plant, timezone="Europe/Berlin")
    spec = load_fleet_spec(plant / "fleet.yaml")
    assert (spec.name, spec.timezone) == ("werk-s-d", "Europe/Berlin")
    assert spec.model_fields_set == {"name", "timezone"}  # what a comment says is not stated
    init_plant(tmp_path / "2024")
    other = load_fleet_spec(tmp_path / "2024" / "fleet.yaml")
    assert (other.name, other.model_fields_set) == ("2024", {"name"})
    log = examine_log(plant / "maintenance.csv", Clock("UTC"))
    assert (log.entries, log.findings) == ((), ())
    assert sorted(path.name for path in plant.iterdir()) == ["README.txt", "fleet.yaml", "maintenance.csv", "spectra"]
    assert f"hearken check '{plant}'" in (plant / "README.txt").read_text()


def test_the_example_entries_are_right_when_their_comment_is_taken_away(tmp_path: Path) -> None:
    init_plant(tmp_path / "p")
    path = tmp_path / "p" / "maintenance.csv"
    path.write_text(re.sub(r"^# (?=(pump|fan) )", "", path.read_text(), flags=re.MULTILINE))
    log = examine_log(path, Clock("UTC"))
    assert log.findings == ()
    assert [entry.tag.value for entry in log.entries] == ["failure", "repair", "off"]


def test_the_template_explains_every_key() -> None:
    for model in (FleetSpec, SourceLayout, ColumnLayout, WaveformLayout, MaintenanceLayout):
        for key in model.model_fields:
            assert re.search(rf"^#? *{key}:", TEMPLATE, flags=re.MULTILINE), key


@pytest.mark.parametrize(
    "wanted",
    [
        "columns:\n    machine_id: Asset",
        "columns:\n    spectrum: {x",
        "columns:\n    axis: Direction",
        "columns:\n    spectrum: [T_oil",
        "waveform:",
    ],
)
def test_each_commented_section_is_right_when_its_comment_is_taken_away(tmp_path: Path, wanted: str) -> None:
    lines = TEMPLATE.replace("@NAME@", "p").splitlines()
    text = "\n".join(re.sub(r"^# ?(?=  |source:|maintenance:)", "", line) for line in lines)
    head, _, rest = text.partition("source:")
    source, _, log = rest.partition("# --- How the maintenance log")
    general, *examples = re.split(r"\n\n(?:# [^\n]*\n)+", source)
    (example,) = [part for part in examples if part.strip("\n").startswith(f"  {wanted}")]
    values = yaml.safe_load(f"{head}source:{general}\n{example}\n")
    values |= yaml.safe_load("maintenance:" + log.split("maintenance:")[1])
    assert FleetSpec.model_validate(values).source is not None
    assert FleetSpec.model_validate(values).maintenance is not None


@pytest.mark.parametrize("name", ["fleet.yaml", "maintenance.csv", "maintenance.parquet", "README.txt"])
def test_nothing_that_exists_is_touched(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to("nowhere")
    with pytest.raises(UserError, match=f"got {name}, which exists"):
        init_plant(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_with_spectra_gets_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "spectra").mkdir()
    (tmp_path / "spectra" / "a.csv").write_text("x")
    init_plant(tmp_path, name="mill")
    assert (tmp_path / "spectra" / "a.csv").read_text() == "x"
    assert load_fleet_spec(tmp_path / "fleet.yaml").name == "mill"


def test_inside_a_checkout_only_below_data(tmp_path: Path) -> None:
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).touch()
    for inside in ("plant", "pipeline/plant", "data"):
        with pytest.raises(UserError, match="inside the checkout"):
            init_plant(tmp_path / inside)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dvc.yaml", "params.yaml"]
    init_plant(tmp_path / "data" / "plant")
    assert (tmp_path / "data" / "plant" / "fleet.yaml").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "Werk Süd"}, "name: got 'Werk Süd'"),
        ({"name": 'a"\nbins: 3\nunit: "g'}, "name: got"),
        ({"timezone": "Berlin"}, "timezone: got 'Berlin', expected an IANA name such as Europe/Berlin"),
        ({"timezone": 'UTC"\nbins: 3'}, "timezone: got"),
    ],
)
def test_a_wrong_option_leaves_nothing(tmp_path: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        init_plant(tmp_path / "p", **options)
    assert not (tmp_path / "p").exists()


def test_a_file_is_no_plant(tmp_path: Path) -> None:
    (tmp_path / "p").touch()
    with pytest.raises(UserError, match="got a file"):
        init_plant(tmp_path / "p")


def test_the_command_says_what_comes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant = tmp_path / "[red]p[/red] 1"
    monkeypatch.setattr("sys.argv", ["hearken", "init", str(plant)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    assert f"hearken check '{plant}'" in capsys.readouterr().out


def test_every_example_of_the_guide_is_right() -> None:
    guide = (ROOT / "docs/your_data.md").read_text()
    examples = re.findall(r"```yaml\n(.*?)```", guide, flags=re.DOTALL)
    assert len(examples) >= 6
    for example in examples:
        spec, findings = checked_model(example, FleetSpec, "docs/your_data.md")
        assert findings == []
        assert spec is not None
    (log,) = re.findall(r"```\n(machine_id,start.*?)```", guide, flags=re.DOTALL)
    read = examine_log(Path("maintenance.csv"), Clock("UTC"), data=log.encode())
    assert (len(read.entries), read.findings) == (3, ())


def test_the_options_of_the_guide_exist() -> None:
    guide = (ROOT / "docs/your_data.md").read_text()
    commands = get_command(cli.app).commands.values()
    known = {option for command in commands for parameter in command.params for option in parameter.opts} | {"--help"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", guide)) <= known
