"""Prometheus metrics of the daemon, and the door at which they are fetched (docs/metrics.md).

prometheus-client is imported when a `Metrics` is made and not before: most installations have none.
"""

import collections
import threading
from collections.abc import Callable, Mapping

from reconciler import __version__
from reconciler.core.errors import UsageError
from reconciler.core.listen import listen_address
from reconciler.core.meter import STATES, operation_kind, operation_kinds
from reconciler.core.report import Report
from reconciler.core.room import Pool
from reconciler.host.listen import listen
from reconciler.host.pages import Page, PageServer

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""The text format that every scraper reads."""

REPAIR_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
PASS_S = (*REPAIR_S, 30.0, 60.0)


class Metrics:
    """A `Meter` that adds up what it is told, and shows it as a page.

    Everything that can be counted begins at 0, so that the first failure is an increase already.
    Raises UsageError where prometheus-client is not installed.
    """

    def __init__(self) -> None:
        try:
            import prometheus_client as client
        except ImportError:
            raise UsageError(
                "--metrics needs prometheus-client (pip install 'runcnet[metrics]')"
            ) from None
        # Beside each counter and histogram it would show a gauge of when that began. There is no such
        # choice for a single registry, and nothing else in this process uses the library.
        client.disable_created_metrics()  # type: ignore[no-untyped-call]
        registry = client.CollectorRegistry()
        process = client.CollectorRegistry()
        client.ProcessCollector(registry=process)
        self._own: Callable[[], bytes] = lambda: client.generate_latest(registry)
        self._process: Callable[[], bytes] = lambda: client.generate_latest(process)
        self._lock = threading.Lock()
        """Held for each change and for the page, which so shows a pass whole or not at all. What the
        process has open is counted without it: that takes long where it is much."""
        self._passes = client.Counter(
            "runcnet_passes_total",
            "Counts passes by kind (full: everything; part: what an event named) and result (converged: "
            "the kernel matches all that the pass looked at; failed: something could not be applied, "
            "was held back or was rejected).",
            ["kind", "result"],
            registry=registry,
        )
        self._durations = client.Histogram(
            "runcnet_pass_duration_seconds",
            "Tells how long passes took, by kind.",
            ["kind"],
            buckets=PASS_S,
            registry=registry,
        )
        self._operations = client.Counter(
            "runcnet_operations_total",
            "Counts the changes that passes made or tried to make, by kind and outcome (ok or failed).",
            ["kind", "outcome"],
            registry=registry,
        )
        self._latencies = client.Histogram(
            "runcnet_repair_latency_seconds",
            "Tells how long it took from an event to the repair of what it told of.",
            buckets=REPAIR_S,
            registry=registry,
        )
        self._containers = client.Gauge(
            "runcnet_containers",
            "Tells how many containers are in each state, as runcnet status calls it.",
            ["state"],
            registry=registry,
        )
        self._rejected = client.Gauge(
            "runcnet_rejected_files",
            "Tells how many definition files are rejected now.",
            registry=registry,
        )
        self._rejections = client.Counter(
            "runcnet_file_rejections_total",
            "Adds up every rise of runcnet_rejected_files: how often a file became a rejected one.",
            registry=registry,
        )
        self._used = client.Gauge(
            "runcnet_leases_used",
            "Tells how many automatic addresses are in use, by network and IP version.",
            ["network", "ip_version"],
            registry=registry,
        )
        self._free = client.Gauge(
            "runcnet_leases_free",
            "Tells how many automatic addresses can still be handed out, by network and IP version.",
            ["network", "ip_version"],
            registry=registry,
        )
        self._events = client.Counter(
            "runcnet_events_total",
            "Counts the notifications of the kernel and of the file system that came in.",
            registry=registry,
        )
        self._losses = client.Counter(
            "runcnet_event_losses_total",
            "Counts how often notifications were lost, so that everything was looked at instead.",
            registry=registry,
        )
        build = client.Gauge(
            "runcnet_build_info",
            "Is always 1 and has the version of runcnet as a label.",
            ["version"],
            registry=registry,
        )
        build.labels(__version__).set(1)
        for kind in ("full", "part"):
            self._durations.labels(kind)
            for result in ("converged", "failed"):
                self._passes.labels(kind, result)
        for kind in operation_kinds():
            for outcome in ("ok", "failed"):
                self._operations.labels(kind, outcome)
        self._rejected_files = 0
        self.containers({})

    # -- what the daemon tells (Meter) ----------------------------------------------------------

    def passed(self, kind: str, seconds: float, report: Report | None) -> None:
        """A pass of `kind` full or part is over; `report` None: an error stopped it before its end."""
        done = collections.Counter(
            (operation_kind(type(one.operation)), one.ok)
            for one in (report.operations if report is not None else ())
            if one.ok is not None
        )
        converged = report is not None and report.converged
        with self._lock:
            self._passes.labels(kind, "converged" if converged else "failed").inc()
            self._durations.labels(kind).observe(seconds)
            for (operation, ok), count in done.items():
                self._operations.labels(operation, "ok" if ok else "failed").inc(count)

    def repaired(self, seconds: float) -> None:
        """What an event told of is as declared again, `seconds` after the event."""
        with self._lock:
            self._latencies.observe(seconds)

    def containers(self, states: Mapping[str, int]) -> None:
        """How many containers are in each state now; a state that is absent has none."""
        with self._lock:
            for state in STATES:
                self._containers.labels(state).set(states.get(state, 0))

    def rejected(self, files: int) -> None:
        """How many files are rejected now."""
        with self._lock:
            self._rejected.set(files)
            self._rejections.inc(max(0, files - self._rejected_files))
            self._rejected_files = files

    def leases(self, used: Mapping[Pool, int], free: Mapping[Pool, int]) -> None:
        """How many automatic addresses are in use and left now; networks that are absent have gone."""
        with self._lock:
            for gauge, counts in ((self._used, used), (self._free, free)):
                gauge.clear()
                for pool, count in counts.items():
                    gauge.labels(pool.network, pool.version).set(count)

    def events(self, count: int, lost: bool) -> None:
        """`count` events came in; `lost`: and others were lost on the way."""
        with self._lock:
            self._events.inc(count)
            self._losses.inc(lost)

    # -- what others see ------------------------------------------------------------------------

    def page(self) -> bytes:
        """All of it in the Prometheus text format. Any thread may ask."""
        with self._lock:
            own = self._own()
        return own + self._process()


def serve(metrics: Metrics, address: str) -> PageServer:
    """Answer `GET /metrics` at `IP:PORT`, `[IPV6]:PORT`, `/PATH` or `unix:/PATH` until it is closed.

    Raises UsageError where that is no address, ObjectError where nothing can listen there.
    """
    try:
        where = listen_address(address)
    except ValueError as error:
        raise UsageError(f"--metrics: {error}") from None
    pages = {
        "/metrics": Page(CONTENT_TYPE, metrics.page),
        "/": Page("text/plain; charset=utf-8", lambda: b"runcnet: the metrics are at /metrics\n"),
    }
    return PageServer(listen(where, purpose="metrics"), pages)
