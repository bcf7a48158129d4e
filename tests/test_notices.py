"""Notices through Apprise to a real HTTP receiver, on SQLite and PostgreSQL."""

from __future__ import annotations

import datetime as dt
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from http_receiver import receiving
from pydantic import SecretStr
from service_rows import HOUR, NOON, alert_of, announced
from sqlalchemy.orm import Session

from flows.database import Base
from flows.service.delivery import Addresses, Message, deliver
from flows.service.notice_text import MOST_CHARACTERS, digest_text, page_text, pages_text
from flows.service.notices import MOST_PAGES, send_pending
from flows.service.tables import Alert, AlertEvent, Answer, EventKind, Notice, NoticeKind, NoticeState, Standing
from pipeline.alert_details import NOT_A_DIAGNOSIS
from pipeline.params import NotifyParams

SETTINGS = NotifyParams()
HOSTILE = "pump <img src=x onerror=alert(1)>\n@everyone"


@pytest.fixture
def receiver():
    with receiving() as receiver:
        yield receiver


def send(engine, now, *, page="", low="", settings=SETTINGS):
    return send_pending(engine, Addresses.of(page=page, low=low), settings, clock=lambda: now)


def notices(engine):
    with Session(engine, expire_on_commit=False) as session, session.begin():
        return list(session.scalars(sa.select(Notice).order_by(Notice.id)))


def story(engine):
    with Session(engine) as session, session.begin():
        return [(event.kind, event.note) for event in session.scalars(sa.select(AlertEvent).order_by(AlertEvent.id))]


def test_a_page_is_told_once_at_once_and_says_what_a_crew_needs(engine, receiver):
    number = announced(engine, alert_of(HOSTILE))
    sending = send(engine, NOON, page=receiver.address)
    assert (sending.messages, sending.sent, sending.problems) == (1, 1, [])
    (post,) = receiver.posts
    assert post["title"].endswith(f"pages (alert {number})")
    assert "\n" not in post["title"]
    for words in (
        "pages since 2025-03-01 11:00 UTC, open since 2025-03-01 10:00 UTC",
        "as unusual as 1 in 10,000 healthy rows",
        "autoencoder, pca",
        "600-800 Hz (near BPFO (640 Hz))",
        f"hearken alerts ack {number}",
        post["key"],
    ):
        assert words in post["text"]
    assert post["text"].endswith("\n" + NOT_A_DIAGNOSIS)
    assert "@everyone" not in post["text"]  # a chat program would call everybody
    (notice,) = notices(engine)
    assert (notice.state, notice.sent_at, notice.attempts, notice.error) == (NoticeState.SENT, NOON, 1, None)
    assert story(engine) == [(EventKind.NOTIFIED, "page: to json, address 1 of 1")]
    assert send(engine, NOON + 48 * HOUR, page=receiver.address).messages == 0
    assert len(receiver.posts) == 1


def test_a_receiver_that_wants_html_gets_names_escaped(receiver):
    message = Message(title="t", body=HOSTILE + "\nline", key="k", urgent=True)
    assert deliver(SecretStr(receiver.address + "?format=html"), message) is None
    text = receiver.posts[0]["text"]
    assert "<img" not in text
    assert "&lt;img" in text
    assert "<br" in text


def test_the_digest_is_once_a_day_by_tier_and_rarity(engine, receiver):
    for machine, tier, rarity in (("quiet", "low", 3.0), ("loud", "low", 5.0), ("mute", None, 0.0)):
        announced(engine, alert_of(machine, tier, rarity))
    announced(engine, alert_of("paged"), NOON, NoticeKind.DIGEST, NoticeKind.PAGE)
    before = NOON.replace(hour=5) + 24 * HOUR
    assert send(engine, before, page=receiver.address, low=receiver.address).messages == 1  # the page
    morning = before + HOUR
    assert send(engine, morning, page=receiver.address, low=receiver.address).messages == 1
    page, digest = receiver.posts
    assert (page["type"], digest["type"]) == ("warning", "info")
    assert digest["title"] == "Hearken: digest of 3 alerts"
    order = [digest["text"].index(word) for word in ("Low (2):", "loud", "quiet", "No data (1):", "mute")]
    assert order == sorted(order)
    assert "paged" not in digest["text"]  # its page told it
    announced(engine, alert_of("later", "low"), morning + dt.timedelta(minutes=5))
    assert send(engine, morning + 23 * HOUR, low=receiver.address).messages == 0
    assert send(engine, morning + 24 * HOUR, low=receiver.address).messages == 1
    assert len(receiver.posts) == 3


def test_a_receiver_that_fails_is_tried_again_and_recovers(engine, receiver):
    announced(engine, alert_of("pump"))
    receiver.status = 503
    sending = send(engine, NOON, page=receiver.address)
    assert (sending.messages, sending.sent) == (0, 0)
    (notice,) = notices(engine)
    assert (notice.state, notice.attempts) == (NoticeState.PENDING, 1)
    assert notice.error == "json, address 1 of 1: it could not be reached, or refused the message"
    assert notice.lease_until == NOON + dt.timedelta(minutes=1)
    assert story(engine) == []
    assert send(engine, NOON + dt.timedelta(seconds=59), page=receiver.address).problems == []  # not yet
    assert len(receiver.posts) == 1
    receiver.status = 200
    assert send(engine, NOON + dt.timedelta(minutes=1), page=receiver.address).sent == 1
    assert len(set(receiver.keys)) == 1
    assert "Try 2" in receiver.posts[1]["text"]
    assert [(n.state, n.error) for n in notices(engine)] == [(NoticeState.SENT, None)]


def test_what_cannot_be_sent_is_given_up_and_the_story_says_so(engine, receiver):
    announced(engine, alert_of("pump"))
    receiver.status = 500
    settings, now = NotifyParams(retry_minutes=(1, 5)), NOON
    for pause in (1, 5, 5):
        send(engine, now, page=receiver.address, settings=settings)
        (notice,) = notices(engine)
        assert notice.lease_until - now == dt.timedelta(minutes=pause)
        now = notice.lease_until
    assert send(engine, NOON + 24 * HOUR, page=receiver.address).given_up == 1
    assert len(receiver.posts) == 3
    ((kind, note),) = story(engine)
    assert kind is EventKind.NOT_NOTIFIED
    assert note.startswith("page: given up after 24 h (json, address 1 of 1: it could not be reached")
    receiver.status = 200
    assert send(engine, NOON + 25 * HOUR, page=receiver.address).messages == 0
    assert [n.state for n in notices(engine)] == [NoticeState.UNSENT]


def test_only_the_address_that_failed_is_tried_again(engine, receiver):
    number = announced(engine, alert_of("pump"))
    with receiving() as other:
        other.status = 500
        both = f"{receiver.address} {other.address}"
        send(engine, NOON, page=both)
        assert notices(engine)[0].sent_at == NOON
        other.status = 200
        send(engine, NOON + HOUR, page=both)
        assert (len(receiver.posts), len(other.posts)) == (1, 2)
    assert [n.state for n in notices(engine)] == [NoticeState.SENT]
    assert [note for _, note in story(engine)] == ["page: to json, address 1 of 2", "page: to json, address 2 of 2"]
    assert receiver.posts[0]["title"].endswith(f"(alert {number})")


def test_what_was_withdrawn_or_dismissed_before_is_not_sent(engine, receiver):
    announced(engine, alert_of("a", standing=Standing.WITHDRAWN))
    announced(engine, alert_of("b", answer=Answer.DISMISSED))
    announced(engine, alert_of("c", "low", standing=Standing.WITHDRAWN), NOON - 24 * HOUR)
    announced(engine, alert_of("d", answer=Answer.ACKNOWLEDGED, standing=Standing.CLOSED))
    sending = send(engine, NOON, page=receiver.address, low=receiver.address)
    assert (sending.sent, sending.given_up) == (1, 3)
    assert ["d pages" in post["text"] for post in receiver.posts] == [True]
    assert "closed (2025-03-01 10:00 UTC to 2025-03-01 12:00 UTC)" in receiver.posts[0]["text"]
    assert [n.state for n in notices(engine)] == [NoticeState.UNSENT] * 3 + [NoticeState.SENT]


def test_a_page_that_waits_is_not_sent_once_a_drift_explains_its_alert(engine, receiver):
    announced(engine, alert_of("a", drift_id=7))
    assert send(engine, NOON, page=receiver.address).given_up == 1
    assert receiver.posts == []
    assert "drift 7 explains the alert" in story(engine)[0][1]


@pytest.mark.parametrize(("dismissed_at", "sent"), [(NOON - HOUR, 1), (NOON, 0)], ids=["before", "after"])
def test_an_alert_that_pages_only_after_it_was_dismissed_is_told(engine, receiver, dismissed_at, sent):
    number = announced(engine, alert_of("pump", answer=Answer.DISMISSED), NOON - HOUR / 2)
    with Session(engine) as session, session.begin():
        session.add(AlertEvent(alert_id=number, kind=EventKind.DISMISSED, at=dismissed_at, of=None, who="ada", note=""))
    assert send(engine, NOON + HOUR, page=receiver.address).sent == sent
    assert len(receiver.posts) == sent


def test_many_pages_at_once_are_one_message(engine, receiver):
    for number in range(MOST_PAGES + 1):
        announced(engine, alert_of(f"pump {number}"))
    sending = send(engine, NOON, page=receiver.address)
    assert (sending.messages, sending.sent) == (1, MOST_PAGES + 1)
    assert receiver.posts[0]["title"] == f"Hearken: {MOST_PAGES + 1} pages at once"
    assert {n.state for n in notices(engine)} == {NoticeState.SENT}
    assert len(story(engine)) == MOST_PAGES + 1


def test_without_addresses_notices_wait_for_a_while_and_then_never_come(engine, receiver):
    announced(engine, alert_of("pump"))
    assert send(engine, NOON).problems == ["no address: HEARKEN_NOTIFY_PAGE is not set where this ran"]
    (notice,) = notices(engine)
    assert (notice.state, notice.attempts) == (NoticeState.PENDING, 0)
    announced(engine, alert_of("fan"), NOON + 20 * HOUR)
    assert send(engine, NOON + 24 * HOUR).given_up == 1
    assert story(engine) == [
        (
            EventKind.NOT_NOTIFIED,
            "page: given up after 24 h (no address: HEARKEN_NOTIFY_PAGE is not set where this ran)",
        )
    ]
    assert send(engine, NOON + 25 * HOUR, page=receiver.address).sent == 1
    assert ["fan pages" in post["text"] for post in receiver.posts] == [True]


def test_a_receiver_that_never_ends_its_answer_is_given_up_in_time(receiver):
    receiver.trickle_seconds = 0.2
    began = time.monotonic()
    message = Message(title="t", body="b", key="k", urgent=True)
    assert deliver(SecretStr(receiver.address), message, 1.0) == "no answer within 1 s"
    assert time.monotonic() - began < 30


SENDER = """
import datetime as dt, logging, sys
from flows.database import open_database
from flows.service.delivery import Addresses
from flows.service.notices import send_pending
from pipeline.params import NotifyParams
logging.basicConfig(level=1)
now = dt.datetime.fromisoformat(sys.argv[2])
print(send_pending(open_database(sys.argv[1]), Addresses.of(page=sys.stdin.read(), low=None), NotifyParams(),
                   clock=lambda: now))
"""


def sender(url, address, now=NOON):
    program = [sys.executable, "-c", SENDER, url, now.isoformat()]
    process = subprocess.Popen(
        program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    process.stdin.write(address)
    process.stdin.close()
    return process


def test_senders_at_once_send_each_notice_once(engine, url, receiver):
    for number in range(5):
        announced(engine, alert_of(f"pump {number}"))
    senders = [sender(url, receiver.address) for _ in range(2)]
    said = [process.stdout.read() for process in senders]
    assert [process.wait(60) for process in senders] == [0, 0], said
    assert len(receiver.keys) == len(set(receiver.keys)) == 5
    assert {n.state for n in notices(engine)} == {NoticeState.SENT}
    assert len(story(engine)) == 5


def test_a_sender_killed_before_it_could_note_the_answer_leaves_a_repeat_with_the_same_key(engine, url, receiver):
    announced(engine, alert_of("pump"))
    receiver.go_on.clear()
    process = sender(url, receiver.address)
    assert receiver.arrived.wait(60)
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    process.stdout.close()
    receiver.go_on.set()
    (notice,) = notices(engine)
    assert notice.state is NoticeState.PENDING
    assert send(engine, NOON + dt.timedelta(seconds=60), page=receiver.address).messages == 0  # its lease still holds
    assert send(engine, notice.lease_until, page=receiver.address).sent == 1
    assert len(receiver.posts) == 2
    assert len(set(receiver.keys)) == 1
    assert "Try 2: if you have had this key" in receiver.posts[1]["text"]
    assert send(engine, NOON + 9 * HOUR, page=receiver.address).messages == 0


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)  # a file does not go away
def test_a_database_that_goes_away_before_the_answer_is_noted_is_asked_again(engine, url, receiver):
    announced(engine, alert_of("pump"))
    receiver.go_on.clear()
    with ThreadPoolExecutor() as pool:
        sending = pool.submit(send, engine, NOON, page=receiver.address)
        assert receiver.arrived.wait(60)
        with unreachable(url):
            receiver.go_on.set()
            wait([sending], timeout=2)
        assert sending.result(60).sent == 1
    assert (len(receiver.posts), len(story(engine))) == (1, 1)


@contextmanager
def unreachable(url):
    """A database of PostgreSQL that ends its connections and takes no new ones."""
    name = sa.make_url(url).database
    administrator = sa.create_engine(sa.make_url(url).set(database="postgres"), isolation_level="AUTOCOMMIT")
    with administrator.connect() as connection:
        connection.exec_driver_sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        connection.exec_driver_sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        try:
            yield
        finally:
            connection.exec_driver_sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    administrator.dispose()


def test_what_a_dead_sender_may_have_sent_is_not_told_when_it_is_withdrawn_meanwhile(engine, receiver):
    announced(engine, alert_of("pump"))
    with Session(engine) as session, session.begin():
        notice = session.scalar(sa.select(Notice))
        notice.owner, notice.lease_until, notice.attempts = "dead", NOON, 1
        session.scalar(sa.select(Alert)).standing = Standing.WITHDRAWN
    assert send(engine, NOON, page=receiver.address).given_up == 1
    assert receiver.posts == []
    assert story(engine)[0][1] == "page: the alert was withdrawn before; a try that was cut off may have arrived"


def everything_in(engine):
    with engine.begin() as connection:
        return "\n".join(
            repr(tuple(row)) for table in Base.metadata.sorted_tables for row in connection.execute(sa.select(table))
        )


def test_no_address_reaches_a_log_an_error_or_the_database(engine, url, receiver):
    announced(engine, alert_of("pump"))
    with receiving() as refusing:
        refusing.status = 403
        given = [
            f"json://crew:s3cr3tpass@localhost:{receiver.port}/t0ken/?+X-Key=h3aderkey",
            f"json://crew:s3cr3tpass@localhost:{refusing.port}/t0ken/",
            "json://crew:s3cr3tpass@localhost:1/t0ken/",  # nobody listens
            "gossip://s3cr3tpass@localhost/t0ken",  # no such kind
        ]
        process = sender(url, " ".join(given))  # with every logger at its most talkative
        said = process.stdout.read()
        assert process.wait(60) == 0
        assert (len(receiver.posts), len(refusing.posts)) == (1, 1)
        assert receiver.posts[0]["path"].startswith("/t0ken")
    addresses = Addresses.of(page=" ".join(given), low=None)
    seen = "\n".join([said, everything_in(engine), repr(addresses), str(addresses), addresses.model_dump_json()])
    assert "Sending(messages=1" in seen
    assert "address 4 of 4: Apprise knows no such kind of address" in seen
    for secret in ("s3cr3tpass", "t0ken", "h3aderkey", "localhost", str(receiver.port), str(refusing.port)):
        assert secret not in seen


def test_texts_are_bounded_and_end_with_what_a_high_score_does_not_say():
    alerts = [alert_of("машина @x <" + "y" * 300 + f" {n}", "low", id=n, standing=Standing.CLOSED) for n in range(400)]
    alerts.append(alert_of("rarest", "low", 9.0, id=999))
    for message in (digest_text(alerts, 2), pages_text(alerts, 2), page_text(alert_of("z" * 9000, id=1), 3)):
        assert len(message.body) <= MOST_CHARACTERS
        assert len(message.title) <= 150
        assert message.body.endswith(NOT_A_DIAGNOSIS)
    lines = digest_text(alerts, 1).body.splitlines()
    assert lines[2].startswith("- 999: rarest")
    listed = sum(line.startswith("- ") for line in lines)
    assert f"and {401 - listed} more: hearken alerts list" in lines
