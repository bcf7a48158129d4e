"""The registry of releases on SQLite, and on PostgreSQL where HEARKEN_TEST_POSTGRES_URL names a server."""

from __future__ import annotations

import datetime as dt
import itertools
import subprocess
import sys

import alembic.command
import pytest
import sqlalchemy as sa

from flows import registry
from flows.database import UtcDateTime, alembic_config, make_engine, migrate, open_database
from flows.registry import (
    ReleaseRow,
    ReleaseState,
    find_release,
    in_service,
    list_releases,
    promote,
    promotions,
    put_in_shadow,
    refuse,
    rollback,
)
from pipeline import store
from pipeline.errors import ReleaseError, WorkspaceError


@pytest.fixture
def add(engine, tmp_path):
    def add(text, **options):
        folder = tmp_path / "built" / text
        (folder / "models").mkdir(parents=True, exist_ok=True)
        (folder / "models" / "weights").write_text(text)
        manifest = {"provisional": "provisional" in text, "metrics": {"caught": 3}}
        store.write_json(folder / "manifest.json", manifest)
        return registry.register_release(engine, tmp_path / "releases", folder, commit="abc", **options)

    return add


def test_a_release_is_copied_under_its_hash_and_entered_once(add, engine, tmp_path):
    row = add("one", branch="build/a")
    place = tmp_path / "releases" / row.id
    assert store.sha256_folder(place).startswith(row.id)
    assert (place / "models" / "weights").read_text() == "one"
    assert (row.version, row.state, row.provisional, row.metrics) == (1, ReleaseState.CANDIDATE, False, {"caught": 3})
    assert row.created_at.utcoffset() == dt.timedelta(0)
    again = add("one", branch="build/b")
    assert (again.id, again.branch) == (row.id, "build/a")
    assert add("provisional").provisional
    assert [row.version for row in list_releases(engine)] == [1, 2]


def test_a_changed_copy_is_noticed(add, tmp_path):
    row = add("one")
    (tmp_path / "releases" / row.id / "models" / "weights").write_text("other")
    with pytest.raises(ReleaseError, match="expected them unchanged"):
        add("one")


def test_a_folder_that_is_no_release_is_refused(engine, tmp_path):
    with pytest.raises(ReleaseError, match=r"got no manifest\.json"):
        registry.register_release(engine, tmp_path / "releases", tmp_path, commit="abc")
    assert list_releases(engine) == []


def test_a_taken_version_becomes_the_next(add):
    assert add("one", version=5).version == 5
    assert add("two", version=5).version == 6


def test_promotion_and_rollback_keep_one_in_service(add, engine):
    one, two = add("one"), add("two")
    assert in_service(engine) is None
    promote(engine, one.id)
    first = in_service(engine)
    assert first.id == one.id
    promote(engine, 2, note="better")
    assert {row.id: row.state for row in list_releases(engine)} == {
        one.id: ReleaseState.RETIRED,
        two.id: ReleaseState.IN_SERVICE,
    }
    assert in_service(engine).note == "better"
    back = promote(engine, "v1")
    assert back.promoted_at > first.promoted_at
    assert in_service(engine).id == one.id
    assert promote(engine, "v1").promoted_at == back.promoted_at  # in service already: nothing changes


def test_rollbacks_undo_promotions_and_the_history_keeps_all(add, engine):
    for text in ("one", "two", "three"):
        add(text)
    with pytest.raises(ReleaseError, match="rollback: got none"):
        rollback(engine)
    promote(engine, 1, who="ann", note="first")
    with pytest.raises(ReleaseError, match=r"got none before v1 \("):
        rollback(engine)
    promote(engine, 2)
    promote(engine, 3)
    assert rollback(engine, who="ben", note="shouts").version == 2
    assert rollback(engine).version == 1
    with pytest.raises(ReleaseError, match="got none before v1"):
        rollback(engine)
    assert in_service(engine).version == 1
    promote(engine, 3)
    assert rollback(engine, "v2").version == 2
    assert [(line.version, line.rollback) for line in promotions(engine)] == [
        (1, False), (2, False), (3, False), (2, True), (1, True), (3, False), (2, True),
    ]  # fmt: skip
    first, fourth = promotions(engine)[0], promotions(engine)[3]
    assert (first.who, first.note, fourth.who, fourth.note) == ("ann", "first", "ben", "shouts")
    assert find_release(engine, 2).note == ""  # why it came back stands in the history


def test_only_what_was_in_service_can_come_back(add, engine):
    add("one")
    add("two")
    promote(engine, 1)
    with pytest.raises(ReleaseError, match=r"got v2 \(\w+\), which was never in service"):
        rollback(engine, 2)
    assert in_service(engine).version == 1


def test_who_decides_on_a_release_that_is_gone_by_then_is_told(add, engine):
    one, two, three = add("one"), add("two"), add("three")
    promote(engine, one.id)
    promote(engine, two.id, instead_of=one.id)
    with pytest.raises(ReleaseError, match=rf"got v2 \({two.id}\), expected {one.id}"):
        promote(engine, three.id, instead_of=one.id)
    with pytest.raises(ReleaseError, match="another has entered service since"):
        rollback(engine, instead_of=one.id)
    with pytest.raises(ReleaseError, match="got one that is candidate, expected another, or --force"):
        promote(engine, three.id, but_not=[ReleaseState.CANDIDATE])
    assert in_service(engine).id == two.id


def test_a_shadow_waits_until_it_is_refused_or_promoted(add, engine):
    until = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
    add("one")
    add("two")
    record = {"verdict": "shadow", "checks": []}
    row = put_in_shadow(engine, 1, until, "too few rows", record)
    assert (row.state, row.shadow_until, row.note, row.decision) == ("shadow", until, "too few rows", record)
    assert refuse(engine, 1, "worse").state == ReleaseState.REFUSED
    assert find_release(engine, 1).decision == record
    put_in_shadow(engine, 2, until, "too few rows")
    assert promote(engine, 2, decision={"verdict": "promoted"}).shadow_until is None
    assert put_in_shadow(engine, 2, until, "late").state == ReleaseState.IN_SERVICE
    assert find_release(engine, 2).decision == {"verdict": "promoted"}


def test_a_refused_release_says_why_and_one_in_service_stays(add, engine):
    one = add("one")
    add("two")
    promote(engine, one.id)
    assert refuse(engine, 2, "twice the false alarms").state == ReleaseState.REFUSED
    assert refuse(engine, 1, "late").state == ReleaseState.IN_SERVICE
    assert find_release(engine, 2).note == "twice the false alarms"


def test_names_of_releases(add, engine):
    with pytest.raises(ReleaseError, match="the registry \\(it is empty\\)"):
        find_release(engine, "v1")
    row = add("one")
    for name in (1, "1", "v1", "release/v1", row.id, row.id[:6]):
        assert find_release(engine, name).id == row.id
    for name in ("v2", "zzzz", "", "%"):
        with pytest.raises(ReleaseError, match=rf"v1 \({row.id}\)"):
            find_release(engine, name)


def test_the_database_itself_allows_one_in_service_and_known_states(add, engine):
    add("one")
    add("two")
    with pytest.raises(sa.exc.IntegrityError), engine.begin() as connection:
        connection.execute(sa.update(ReleaseRow).values(state=ReleaseState.IN_SERVICE))
    with pytest.raises(sa.exc.IntegrityError), engine.begin() as connection:
        connection.execute(sa.text("UPDATE releases SET state = 'gone'"))


RACER = """
import sys
from flows.database import open_database
from flows.registry import promote, rollback
engine = open_database(sys.argv[1])
for turn in range(20):
    promote(engine, 1 + (turn + int(sys.argv[2])) % 3)
    if turn % 3 == 0:
        rollback(engine, 1 + turn % 3)
"""


def test_processes_that_promote_at_once_leave_one_in_service(add, engine, url):
    for text in ("one", "two", "three"):
        add(text)
        promote(engine, len(list_releases(engine)))
    racers = [subprocess.Popen([sys.executable, "-c", RACER, url, str(number)]) for number in range(3)]
    assert [racer.wait(60) for racer in racers] == [0, 0, 0]
    assert sorted(row.state for row in list_releases(engine)) == ["in_service", "retired", "retired"]
    history = promotions(engine)
    assert history[-1].release_id == in_service(engine).id
    # each line is a change: nobody entered service who was in it
    assert all(one.release_id != then.release_id for one, then in itertools.pairwise(history))


def test_the_schema_goes_down_and_up_again_and_agrees_with_the_models(add, engine):
    add("one")
    with engine.begin() as connection:
        alembic.command.check(alembic_config(connection))
    migrate(engine, "base")
    assert sa.inspect(engine).get_table_names() == ["alembic_version"]
    migrate(engine)
    assert list_releases(engine) == []


def test_releases_of_before_the_history_are_its_first_lines(url):
    engine = make_engine(url)
    migrate(engine, "0003")
    columns = 'id, version, state, provisional, "commit", branch, created_at, promoted_at, metrics, note'
    with engine.begin() as connection:
        for version, state, day in ((1, "retired", "'2025-01-01 00:00:00'"), (2, "in_service", "'2025-02-01 00:00:00'"),
                                    (3, "candidate", "NULL")):  # fmt: skip
            values = f"'{version:016x}', {version}, '{state}', false, '', '', '2025-01-01 00:00:00', {day}, '{{}}', 'n'"
            connection.execute(sa.text(f"INSERT INTO releases ({columns}) VALUES ({values})"))
    migrate(engine)
    assert [(line.version, line.note, line.rollback) for line in promotions(engine)] == [
        (1, "n", False),
        (2, "n", False),
    ]
    assert rollback(engine).version == 1
    engine.dispose()


def test_processes_that_migrate_at_once_all_succeed(url):
    program = "import sys; from flows.database import open_database; open_database(sys.argv[1])"
    openers = [subprocess.Popen([sys.executable, "-c", program, url]) for _ in range(3)]
    assert [opener.wait(60) for opener in openers] == [0, 0, 0]


def test_a_database_of_a_newer_version_is_one_message(engine, url):
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(WorkspaceError, match="a newer version has migrated it"):
        open_database(url)


def test_a_naive_time_is_refused():
    with pytest.raises(ValueError, match="naive time"):
        UtcDateTime().process_bind_param(dt.datetime(2025, 1, 1), sa.create_engine("sqlite://").dialect)


def test_a_bad_address_is_one_message():
    with pytest.raises(WorkspaceError, match="expected a folder that can be written to"):
        open_database("sqlite:////proc/none/h.db")
    with pytest.raises(WorkspaceError, match="HEARKEN_DATABASE_URL"):
        make_engine("nonsense")
    with pytest.raises(WorkspaceError, match=r"expected one that answers, at postgresql\+psycopg://me:\*\*\*@"):
        open_database("postgresql+psycopg://me:secret@127.0.0.1:1/none")
