"""Challengers in shadow on a small plant: taken in, scored and judged once a day of the data, and no more."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import sqlalchemy as sa
from service_plant import ServicePlant
from sqlalchemy.orm import Session
from test_releases import other_weights, register

from flows import registry
from flows.registry import ReleaseState
from flows.service.retrainings import Wish, ask, list_retrainings
from flows.service.tables import Retraining, RetrainingState
from flows.shadows import DATA, LOG, judge_shadows, shadow_folder
from pipeline.params import GateParams, ValidateParams
from pipeline.store import day_files, read_json

DAY = dt.timedelta(days=1)


class Shadowed(ServicePlant):
    """A plant whose newest release waits in shadow; its rows come again `later`, after those that made it."""

    @property
    def span(self) -> dt.timedelta:
        """From the first day of the build to the day after its last."""
        return len(self.days) * DAY

    def live(self, day: int) -> None:
        """Rows of a day arrive, later than all that made the releases, and are scored."""
        table = self.all_rows(slice(day, day + 1))
        index = table.column_names.index("timestamp")
        times = pc.add(table["timestamp"], pa.scalar(self.span, pa.duration("us")))
        self.upload(f"live {day}", table.set_column(index, table.schema.field("timestamp"), times))
        assert self.score().shards

    def judged(self) -> str:
        """What a run of the monitor says of the shadow."""
        (line,) = judge_shadows(self.engine, self.settings, self.params)
        return line


@pytest.fixture
def plant(tmp_path: Path, built: Path, engine: sa.Engine) -> Shadowed:
    plant = Shadowed.of(tmp_path, built, engine)
    assert isinstance(plant, Shadowed)
    plant.params = plant.params.model_copy(update={"gate": GateParams(seeds=1)})  # of no other seed is there a release
    return plant


def test_a_shadow_is_judged_once_a_day_of_the_data_and_at_its_deadline(
    plant: Shadowed, built: Path, tmp_path: Path
) -> None:
    row = register(plant, other_weights(built, tmp_path))
    ask(plant.engine, Wish("ann", "another winter"))
    with Session(plant.engine) as session, session.begin():
        mine = {"state": RetrainingState.SHADOW, "champion_id": plant.release, "challenger_id": row.id}
        session.execute(sa.update(Retraining).values(**mine))
    newest = dt.datetime.fromisoformat(read_json(built / "data/raw/snapshot.json")["last"])
    registry.put_in_shadow(plant.engine, row.id, newest + 4.5 * DAY, "too few rows")
    folder = shadow_folder(plant.settings, row.id)

    plant.live(0)
    assert "waits: There are too few later rows yet" in plant.judged()
    assert len(day_files(folder / DATA)) == 1
    assert any((folder / LOG).iterdir())
    assert plant.judged() == f"shadow {row.id}: waits: it was judged with rows of less than a day ago"
    plant.live(1)
    assert "waits: There are too few later rows yet" in plant.judged()
    assert len(day_files(folder / DATA)) == 2

    # other thresholds of the same weights: what the challenger is compared with is another
    anew = register(plant, other_weights(built, tmp_path, 1.0, recalibrated_from=plant.release))
    registry.promote(plant.engine, anew.id, who="recalibrate")
    assert "too few later rows" in plant.judged()
    assert "less than a day ago" in plant.judged()

    plant.live(2)
    usual = plant.params
    plant.params = usual.model_copy(update={"validate_": ValidateParams(max_energy=1e-12)})
    assert "quarantined rows" in plant.judged(), "by the plant's own limits"
    plant.params = usual

    plant.live(4)
    assert "its deadline has passed" in plant.judged()
    assert registry.find_release(plant.engine, row.id).state == ReleaseState.REFUSED
    assert list_retrainings(plant.engine)[0].state is RetrainingState.REFUSED
    assert judge_shadows(plant.engine, plant.settings, plant.params) == []
    assert not folder.exists() or not any(folder.iterdir())
