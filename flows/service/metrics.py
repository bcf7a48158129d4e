"""Prometheus metrics of the service, counted from the database at every scrape, so that any process can serve them.

Labels are states, tiers and causes, whose values are few; no name from the data becomes one.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import asdict

import sqlalchemy as sa
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy.engine import Engine

from flows.database import utc_now
from flows.service.standing import Figures, figures_of

ROWS = {
    "scored": "Rows written to the score log.",
    "unusable": "Rows of the score log without a score.",
    "early": "Rows of the score log from the future, which raise no alert.",
    "late": "Rows of the score log that came too late for the alert policy.",
    "repeated": "Rows that stood in the score log already.",
}


class ServiceCollector(Collector):
    """Metrics of one database; where it does not answer, only `hearken_database_up 0`."""

    def __init__(self, engine: Engine, clock: Callable[[], dt.datetime] = utc_now) -> None:
        self.engine, self.clock = engine, clock

    def describe(self) -> list[Metric]:
        """Nothing: registering asks no database."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Count everything anew."""
        try:
            figures = figures_of(self.engine, self.clock())
        except sa.exc.OperationalError:
            figures = None
        yield GaugeMetricFamily("hearken_database_up", "Does the database answer?", value=float(figures is not None))
        if figures is not None:
            yield from metrics_of(figures)


def registry_of(engine: Engine, clock: Callable[[], dt.datetime] = utc_now) -> CollectorRegistry:
    """A registry that holds the service's metrics and no others.

    >>> from prometheus_client import generate_latest
    >>> from flows.database import make_engine
    >>> print(generate_latest(registry_of(make_engine("sqlite://"))).decode().splitlines()[-1])  # no tables in it
    hearken_database_up 0.0
    """
    registry = CollectorRegistry()
    registry.register(ServiceCollector(engine, clock))
    return registry


def metrics_of(figures: Figures) -> Iterator[Metric]:
    """Figures as metrics."""
    for name, count in asdict(figures.rows).items():
        yield CounterMetricFamily(f"hearken_rows_{name}", ROWS[name], value=count)
    yield GaugeMetricFamily(
        "hearken_lag_seconds",
        "From the newest row that was scored to the newest row of an upload, in the data's time.",
        value=figures.lag_seconds,
    )
    yield GaugeMetricFamily("hearken_uploads_waiting", "Uploads that are not scored yet.", value=figures.waiting)
    yield GaugeMetricFamily(
        "hearken_oldest_waiting_seconds",
        "Age of the oldest upload that is not scored yet, since it was seen; 0: none waits.",
        value=figures.oldest_waiting_seconds,
    )
    if figures.last_finished_at is not None:
        yield GaugeMetricFamily(
            "hearken_last_finished_timestamp_seconds",
            "When the last shard was finished.",
            value=figures.last_finished_at.timestamp(),
        )
    uploads = GaugeMetricFamily("hearken_uploads", "Uploads by state, the newest of each path.", labels=["state"])
    for state, count in figures.uploads.items():
        uploads.add_metric([state], count)
    yield uploads
    shards = GaugeMetricFamily("hearken_shards", "Shards by state.", labels=["state"])
    for state, count in figures.shards.items():
        shards.add_metric([state], count)
    yield shards
    yield CounterMetricFamily("hearken_shard_attempts", "Times that a shard was begun.", value=figures.shard_attempts)
    yield GaugeMetricFamily("hearken_shards_failing", "Unfinished shards with an error.", value=figures.shards_failing)
    yield GaugeMetricFamily(
        "hearken_leases_expired", "Unfinished shards whose scorer is silent.", value=figures.leases_expired
    )
    alerts = GaugeMetricFamily(
        "hearken_alerts_open", "Open alerts, without dismissed and explained ones.", labels=["tier", "cause"]
    )
    for pair, count in figures.open_alerts.items():
        alerts.add_metric(pair, count)
    yield alerts
    notices = GaugeMetricFamily("hearken_notices", "Notices by kind and state.", labels=["kind", "state"])
    for pair, count in figures.notices.items():
        notices.add_metric(pair, count)
    yield notices
    for name, help_text, counts in (
        ("hearken_drifts", "Changes of the plant by state.", figures.drifts),
        ("hearken_retrainings", "Wishes for new releases by state.", figures.retrainings),
    ):
        gauge = GaugeMetricFamily(name, help_text, labels=["state"])
        for state, count in counts.items():
            gauge.add_metric([state], count)
        yield gauge
    yield GaugeMetricFamily("hearken_shadows", "Challengers that wait for rows.", value=figures.shadows)
    if figures.release is not None:
        labels = {"id": figures.release["id"], "version": f"v{figures.release['version']}"}
        yield InfoMetricFamily("hearken_release", "The release in service.", value=labels)
