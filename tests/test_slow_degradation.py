"""A machine degrades over months, on a real server: it is paged, it is no drift, and it teaches no later release."""

from __future__ import annotations

import datetime as dt
import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session
from test_drift_story import SMALL, Story, begun

from flows import registry
from flows.service.drifts import list_drifts
from flows.service.retrainings import list_retrainings
from flows.service.tables import Alert, Notice, NoticeKind
from pipeline.schema import spectra_view
from pipeline.simulation.plan import plan_fleet
from pipeline.split import SPELL_HOURS
from pipeline.store import read_table, write_table

FIRST_RELEASE, ONSET, LAST = 24, 26, 104  # days
GROWTH = 0.012  # of the log magnitude above a quarter of the band, a day: 2.5 times as loud after eleven weeks
STEP = 13
MONTHS = SMALL | {
    "simulate.days": LAST,
    "simulate.machines": 14,
    "simulate.failures": 12,
    "simulate.mislabelled_share": 0.01,
    "split.train_share": 0.6,
    "split.calibration_share": 0.2,
    "evaluate.false_episodes_per_machine_day": 0.15,
    "train.autoencoder.optimiser.max_epochs": 4,
    "train.autoencoder.optimiser.batch_rows": 256,
}
LEARNS = {"train", "validation", "baseline"}
SPELL = dt.timedelta(hours=SPELL_HOURS)


def sound_machine(story: Story) -> str:
    """One that is well from the first release on, but for what is done to it here."""
    history = plan_fleet(story.simulated)
    ill = {fault.machine for fault in history.faults if fault.end > FIRST_RELEASE - 7}
    return next(name for code, name in enumerate(history.names) if code not in ill)


def degrade(story: Story, machine: str, since: float, until: float) -> None:
    """The machine's rows of some whole days grow louder, a little more each day from ONSET on."""
    for day in range(int(since), int(until)):
        path = story.plant.landing / "spectra" / f"{story.moment(day):%Y-%m-%d}.parquet"
        table = read_table(path)
        mine = np.array(table["machine_id"].to_pylist()) == machine
        spectra = spectra_view(table["spectrum"], story.simulated.bins).copy()
        high = np.arange(story.simulated.bins) >= story.simulated.bins // 4
        spectra[np.ix_(mine, high)] *= np.exp(GROWTH * max(0.0, day - ONSET))
        column = pa.FixedSizeListArray.from_arrays(pa.array(spectra.ravel(), pa.float32()), story.simulated.bins)
        place = table.schema.get_field_index("spectrum")
        write_table(path, table.set_column(place, "spectrum", column.cast(table.schema.field(place).type)))


def paged(story: Story, machine: str) -> list[Alert]:
    """Its alerts that people were paged of, the first one first."""
    told = sa.select(Notice.alert_id).where(Notice.kind == NoticeKind.PAGE)
    with Session(story.engine) as session:
        query = sa.select(Alert).where(Alert.id.in_(told), Alert.machine_id == machine).order_by(Alert.opened_at)
        return list(session.scalars(query))


@pytest.mark.server
@pytest.mark.slow
def test_a_machine_that_degrades_over_months_is_paged_and_teaches_nothing(tmp_path: Path) -> None:
    with begun(f"sqlite:///{tmp_path / 'hearken.db'}", tmp_path, MONTHS) as story:
        story.firmware_day = None
        machine = sound_machine(story)
        story.arrive(FIRST_RELEASE)
        here = {"source.path": str(story.plant.landing)}
        story.run("build/build", gpu_deployment=None, params_overrides=here)
        registry.promote(story.engine, "v1")
        story.run("score/score")
        before = {alert.id for alert in paged(story, machine)}

        while story.day < LAST:
            begin = story.day
            story.arrive(min(LAST, begin + STEP))
            degrade(story, machine, begin, story.day)
            story.run("score/score")
            story.run("monitor/monitor")
            assert not [drift for drift in list_drifts(story.engine) if set(drift.machines) == {machine}]
        assert not list_retrainings(story.engine), [drift.verdict for drift in list_drifts(story.engine)]
        alerts = [alert for alert in paged(story, machine) if alert.opened_at > story.moment(ONSET)]
        last = [alert for alert in alerts if alert.opened_at > story.moment(LAST - STEP)]
        a_day, then = len(last) / STEP, len(before) / FIRST_RELEASE
        assert a_day > 2 * then, "it was heard, and to the end: nobody has mended it"

        story.run("build/build", gpu_deployment=None, params_overrides=here)
        assert len(registry.list_releases(story.engine)) == 2
        (path,) = (story.plant.folder / "default" / "home" / "workspaces").glob("*/data/status/split.parquet")
        split = read_table(path).select(["machine_id", "timestamp", "role"]).to_pandas()
        learns = split[split["role"].isin(LEARNS)]
        assert learns["timestamp"].max() > alerts[0].opened_at + dt.timedelta(days=STEP), "others teach by then"
        mine = (split["machine_id"] == machine) & (split["timestamp"] >= last[0].opened_at)
        assert mine.any()
        assert not set(split["role"][mine & (split["timestamp"] <= last[-1].opened_at)]) & LEARNS
        for earlier, later in itertools.pairwise(alerts):
            if later.opened_at - earlier.opened_at <= SPELL:
                mine = (split["machine_id"] == machine) & split["timestamp"].between(earlier.opened_at, later.opened_at)
                assert not set(split["role"][mine]) & LEARNS
