"""params.yaml and the settings that hold where there is none."""

from pathlib import Path

from pipeline.params import Params, load_params

ROOT = Path(__file__).resolve().parent.parent


def test_a_command_outside_of_a_checkout_has_the_settings_of_params_yaml() -> None:
    """But for the fleet that the demo simulates."""
    shipped, built_in = (
        params.model_dump(exclude={"simulate"}) for params in (load_params(ROOT / "params.yaml"), Params())
    )
    shipped["calibrate"]["ensemble"]["members"] = None  # spelled out there
    assert shipped == built_in


def test_the_members_that_are_spelled_out_are_those_that_no_word_means() -> None:
    shipped, built_in = load_params(ROOT / "params.yaml"), Params()
    assert shipped.calibrate.ensemble.members == built_in.calibrate.ensemble.heard(shipped.detectors)
