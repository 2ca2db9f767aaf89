"""Metrics: what the daemon tells is what a scrape shows, and no client can do harm at the door."""

import http.client
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from reconciler import __version__
from reconciler.core import ops
from reconciler.core.errors import ObjectError, UsageError
from reconciler.core.listen import UnixAddress
from reconciler.core.meter import Meter, NoMetrics, operation_kind, operation_kinds
from reconciler.core.model import InterfaceAddress
from reconciler.core.report import Done, Report
from reconciler.core.room import Pool
from reconciler.host.listen import listen
from reconciler.host.pages import CLIENTS, REQUEST_BYTES, Page, PageServer
from reconciler.metrics import Metrics, serve
from tests.support import need
from tests.support.host import ROOT, PrivateHost, wait_for

OP = ops.AddAddress(
    object="container/a", link="eth0", address=InterfaceAddress(4, 0x0A000005, 24)
)  # fmt: skip


def report(*outcomes: bool | None, **more: object) -> Report:
    empty = {"problems": {}, "held": (), "rejections": (), "notes": (), "duration_s": 0.1}
    done = tuple(Done(operation=OP, ok=ok) for ok in outcomes)
    return Report(operations=done, declared=frozenset(), **{**empty, **more})  # type: ignore[arg-type]


def values(page: str) -> dict[str, float]:
    """`name{label=value,...}` → value."""
    found = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def shown(metrics: Metrics) -> dict[str, float]:
    return values(metrics.page().decode())


class OverUnix(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=10)
        self.path = path

    def connect(self) -> None:
        self.sock = dial(self.path)


def dial(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(10)
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    return sock


def fetch(path: str, target: str = "/metrics", method: str = "GET") -> tuple[int, str]:
    connection = OverUnix(path)
    try:
        connection.request(method, target)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def read_all(sock: socket.socket) -> bytes:
    pieces = []
    while piece := sock.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


@contextmanager
def served(
    path: Path, make: Callable[[], bytes] = lambda: b"x 1\n", patience_s: float = 10.0
) -> Iterator[str]:
    """A server of one page of its own."""
    listener = listen(UnixAddress(str(path)), purpose="metrics")
    server = PageServer(listener, {"/metrics": Page("text/plain", make)}, patience_s=patience_s)
    try:
        yield str(path)
    finally:
        server.close()


# -- what is shown --------------------------------------------------------------------------------


def test_a_scrape_shows_what_the_daemon_told(tmp_path: Path) -> None:
    metrics = Metrics()
    meter: Meter = metrics
    meter.passed("full", 0.2, report(True, True))
    meter.passed("part", 0.004, report(True, False))
    meter.passed("part", 0.004, report(None))
    meter.passed("part", 0.004, report(problems={"container/b": ["no"]}))
    meter.passed("full", 3.0, None)
    meter.repaired(0.0009)
    meter.repaired(0.03)
    meter.repaired(99.0)
    meter.containers({"ok": 3, "failed": 1})
    meter.leases({Pool("n", 4): 3, Pool("n", 6): 0}, {Pool("n", 4): 5, Pool("n", 6): 2**64 - 2})
    meter.events(7, False)
    meter.events(2, True)
    server = serve(metrics, f"unix:{tmp_path}/m.sock")
    try:
        status, page = fetch(server.address)
    finally:
        server.close()
    assert status == 200
    found = values(page)
    expected = {
        "runcnet_passes_total{kind=full,result=converged}": 1,
        "runcnet_passes_total{kind=full,result=failed}": 1,
        "runcnet_passes_total{kind=part,result=converged}": 1,
        "runcnet_passes_total{kind=part,result=failed}": 2,
        "runcnet_pass_duration_seconds_count{kind=full}": 2,
        "runcnet_pass_duration_seconds_sum{kind=full}": 3.2,
        "runcnet_pass_duration_seconds_bucket{kind=part,le=0.0025}": 0,
        "runcnet_pass_duration_seconds_bucket{kind=part,le=0.005}": 3,
        "runcnet_operations_total{kind=add_address,outcome=ok}": 3,
        "runcnet_operations_total{kind=add_address,outcome=failed}": 1,
        "runcnet_operations_total{kind=set_link,outcome=failed}": 0,
        "runcnet_repair_latency_seconds_bucket{le=0.001}": 1,
        "runcnet_repair_latency_seconds_bucket{le=0.05}": 2,
        "runcnet_repair_latency_seconds_bucket{le=10.0}": 2,
        "runcnet_repair_latency_seconds_bucket{le=+Inf}": 3,
        "runcnet_containers{state=ok}": 3,
        "runcnet_containers{state=failed}": 1,
        "runcnet_containers{state=held}": 0,
        "runcnet_leases_used{ip_version=4,network=n}": 3,
        "runcnet_leases_free{ip_version=4,network=n}": 5,
        "runcnet_leases_free{ip_version=6,network=n}": 2.0**64,
        "runcnet_events_total": 9,
        "runcnet_event_losses_total": 1,
        f"runcnet_build_info{{version={__version__}}}": 1,
    }
    assert {name: found.get(name) for name in expected} == expected
    assert found["process_resident_memory_bytes"] > 1e6 and found["process_open_fds"] > 3


def test_states_and_networks_that_are_gone_show_so() -> None:
    metrics = Metrics()
    metrics.containers({"differs": 2})
    metrics.leases({Pool("a", 4): 1, Pool("b", 4): 1}, {Pool("a", 4): 1, Pool("b", 4): 1})
    metrics.containers({"ok": 2})
    metrics.leases({Pool("b", 4): 2}, {Pool("b", 4): 0})
    found = shown(metrics)
    states = {name: n for name, n in found.items() if name.startswith("runcnet_containers")}
    assert states.pop("runcnet_containers{state=ok}") == 2
    assert len(states) == 5 and not any(states.values())
    leases = {name: n for name, n in found.items() if name.startswith("runcnet_leases")}
    assert leases == {
        "runcnet_leases_used{ip_version=4,network=b}": 2,
        "runcnet_leases_free{ip_version=4,network=b}": 0,
    }


def test_a_file_that_stays_rejected_counts_once() -> None:
    metrics = Metrics()
    for files, now, ever in [(0, 0, 0), (2, 2, 2), (2, 2, 2), (1, 1, 2), (3, 3, 4), (0, 0, 4)]:
        metrics.rejected(files)
        found = shown(metrics)
        assert found["runcnet_rejected_files"] == now
        assert found["runcnet_file_rejections_total"] == ever


def test_every_kind_of_operation_is_counted_from_zero() -> None:
    types = [getattr(ops, name) for name in ops.__all__]
    kinds = {
        operation_kind(t)
        for t in types
        if isinstance(t, type) and issubclass(t, ops.Operation) and t is not ops.Operation
    }
    assert {"make_container", "add_address", "replace_firewall", "write_dns"} <= kinds
    assert set(operation_kinds()) == kinds
    found = shown(Metrics())
    for kind in kinds:
        for outcome in ("ok", "failed"):
            assert found[f"runcnet_operations_total{{kind={kind},outcome={outcome}}}"] == 0


def test_nothing_but_what_is_documented_is_shown_and_all_of_it() -> None:
    metrics = Metrics()
    metrics.leases({Pool("n", 4): 1}, {Pool("n", 4): 1})
    page = metrics.page().decode()
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", page, re.M))
    labels: dict[str, set[str]] = {name: set() for name in types}
    for family in text_string_to_metric_families(page):
        name = family.name if family.name in types else f"{family.name}_total"
        for sample in family.samples:
            labels[name] |= sample.labels.keys() - {"le"}
    text = (ROOT / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `([a-z_]+)` \| (counter|gauge|histogram) \|([^|]*)\|", text, re.M)
    assert {name: kind for name, kind, _ in rows} == types
    assert {name: set(re.findall(r"`(\w+)`", own)) for name, _, own in rows} == labels
    assert set(re.findall(r"\bruncnet_\w+", text)) <= types.keys()
    helps = re.findall(r"^# HELP (runcnet_\S+) (.+)$", page, re.M)
    assert len(helps) == sum(name.startswith("runcnet_") for name in types)
    assert all(words.endswith(".") for _, words in helps)


def test_without_metrics_all_of_it_is_forgotten() -> None:
    meter: Meter = NoMetrics()
    meter.passed("full", 0.1, None)
    meter.repaired(0.1)
    meter.containers({"ok": 1})
    meter.rejected(1)
    meter.leases({}, {})
    meter.events(1, True)
    assert not vars(meter)


def python(code: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", code]
    return subprocess.run(words, capture_output=True, text=True, timeout=30, cwd=ROOT, check=False)


def test_the_library_is_imported_only_where_metrics_are_wanted() -> None:
    lead = "import sys; from reconciler.metrics import Metrics; "
    done = python(lead + "print('prometheus_client' in sys.modules)")
    assert done.stdout == "False\n", done.stderr
    done = python(
        lead + "sys.modules['prometheus_client'] = None\n"
        "from reconciler.core.errors import UsageError\n"
        "try: Metrics()\nexcept UsageError as error: print(error)"
    )
    want = "--metrics needs prometheus-client (pip install 'runcnet[metrics]')\n"
    assert done.stdout == want, done.stderr


# -- at the door ----------------------------------------------------------------------------------


def test_only_get_and_head_of_known_pages_are_answered(tmp_path: Path) -> None:
    server = serve(Metrics(), f"{tmp_path}/m.sock")
    path = server.address
    try:
        assert "runcnet_build_info" in fetch(path, "/metrics?name=x")[1]
        assert fetch(path, "/") == (200, "runcnet: the metrics are at /metrics\n")
        with dial(path) as sock:
            sock.sendall(b"HEAD /metrics HTTP/1.1\r\n\r\n")
            head = read_all(sock).decode()
        assert head.startswith("HTTP/1.1 200 OK\r\n") and head.endswith("\r\n\r\n")
        assert int(re.findall(r"Content-Length: (\d+)", head)[0]) > 1000
        assert fetch(path, "/etc/passwd")[0] == 404
        assert fetch(path, "/../etc/passwd", "HEAD") == (404, "")
        assert fetch(path, "/metrics", "POST")[0] == 405
        assert fetch(path, "/metrics", "DELETE")[0] == 405
    finally:
        server.close()


@pytest.mark.parametrize(
    "request_,status",
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"400"),
        (b"\r\n\r\n", b"400"),
        (b"GET /metrics\r\n\r\n", b"400"),
        (b"GET  /metrics HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /m\x00 HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/2.0\r\n\r\n", b"400"),
        (b"GET /" + b"x" * 10 * REQUEST_BYTES + b" HTTP/1.1\r\n\r\n", b"431"),
        (b"GET /metrics HTTP/1.1\r\n" + b"A: b\r\n" * REQUEST_BYTES, b"431"),
        (b"GET /metrics HTTP/1.0\n\n", b"200"),
        (b"GET /metrics HTTP/1.1\r\nA: b\r\n\r\nGET /", b"200"),
    ],
)
def test_garbage_gets_an_answer_and_the_next_client_its_page(
    tmp_path: Path, request_: bytes, status: bytes
) -> None:
    with served(tmp_path / "m.sock") as path:
        with dial(path) as sock:
            sock.sendall(request_)
            head = read_all(sock)
        assert head.startswith(b"HTTP/1.1 " + status), head
        assert fetch(path) == (200, "x 1\n")


def test_slow_clients_are_cut_off_and_keep_nobody_waiting(tmp_path: Path) -> None:
    with (
        served(tmp_path / "m.sock", patience_s=10.0) as path,
        dial(path) as silent,
        dial(path) as half,
    ):
        half.sendall(b"GET /metrics HTT")
        begun = time.monotonic()
        assert fetch(path)[0] == 200
        assert time.monotonic() - begun < 5
        half.sendall(b"P/1.1\r\n\r\n")
        assert b"200 OK" in read_all(half)
        silent.sendall(b"\r\n")  # it is still connected: its time is not up
    with served(tmp_path / "m.sock", patience_s=0.3) as path, ExitStack() as stack:
        crowd = [stack.enter_context(dial(path)) for _ in range(CLIENTS + 2)]
        assert fetch(path)[0] == 200  # once the first of the crowd had their time
        assert read_all(crowd[0]) == b""


def test_a_crowd_does_not_take_descriptors_without_end(tmp_path: Path) -> None:
    accepted: list[int] = []

    def make() -> bytes:
        accepted.append(len(os.listdir("/proc/self/fd")) - before)
        return b"x 1\n"

    with served(tmp_path / "m.sock", make, patience_s=0.3) as path, ExitStack() as stack:
        before = len(os.listdir("/proc/self/fd"))
        crowd = [stack.enter_context(dial(path)) for _ in range(CLIENTS + 20)]
        assert fetch(path)[0] == 200
    (count,) = accepted
    assert 1 <= count - (len(crowd) + 1) <= CLIENTS


def test_a_client_has_its_time_however_long_nobody_came(tmp_path: Path) -> None:
    """The time counts from when a client is let in, not from when it was last looked for one."""
    patience_s = 0.3
    with served(tmp_path / "m.sock", patience_s=patience_s) as path:
        assert fetch(path)[0] == 200
        idle_since = time.monotonic()
        wait_for(lambda: time.monotonic() > idle_since + 2 * patience_s)
        # Such a client is slow enough to meet the next look at the deadlines.
        with dial(path) as sock:
            sock.sendall(b"GET /metrics HTTP/1.1\r\n")
            sock.sendall(b"\r\n")
            assert read_all(sock).startswith(b"HTTP/1.1 200")


def test_bytes_that_trickle_in_buy_no_time(tmp_path: Path) -> None:
    with served(tmp_path / "m.sock", patience_s=0.3) as path, dial(path) as sock:
        sock.settimeout(0.02)

        def over() -> bool:
            try:
                sock.sendall(b"G")
                return sock.recv(1) == b""
            except TimeoutError:
                return False
            except OSError:
                return True

        wait_for(over, 5.0, "the end of the connection")


def test_a_client_that_reads_nothing_is_cut_off(tmp_path: Path) -> None:
    size = 50_000_000
    with (
        served(tmp_path / "m.sock", lambda: b"x" * size, patience_s=0.3) as path,
        dial(path) as sock,
    ):
        sock.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        wait_for(lambda: _hung_up(sock), 5.0, "the end of the connection")
        assert len(read_all(sock)) < size


def _hung_up(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, 0)
    return any(event & select.POLLHUP for _, event in poll.poll(0))


def test_a_long_page_arrives_whole(tmp_path: Path) -> None:
    body = b"".join(b"x %d\n" % i for i in range(500_000))
    with served(tmp_path / "m.sock", lambda: body) as path:
        assert fetch(path) == (200, body.decode())


def test_a_page_that_fails_is_reported_and_the_next_one_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[BaseException] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: seen.append(error))
    answers = iter([b"x 1\n"])
    with served(tmp_path / "m.sock", lambda: next(answers)) as path:
        assert fetch(path)[0] == 200
        assert fetch(path)[0] == 500
        assert fetch(path, "/other")[0] == 404
    assert [type(error) for error in seen] == [StopIteration]


def test_a_lack_of_descriptors_is_outlived(tmp_path: Path) -> None:
    path = tmp_path / "m.sock"
    code = f"""
import os, resource, sys
from reconciler.metrics import Metrics, serve
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
server = serve(Metrics(), {str(path)!r})
taken = []
try:
    while True:
        taken.append(os.dup(0))
except OSError:
    print("full", flush=True)
sys.stdin.readline()
for fd in taken:
    os.close(fd)
sys.stdin.readline()
server.close()
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        cwd=ROOT,
    )  # fmt: skip
    assert child.stdin is not None and child.stdout is not None
    try:
        assert child.stdout.readline() == "full\n"
        with dial(str(path)) as sock:
            sock.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            child.stdin.write("\n")
            child.stdin.flush()
            assert b"runcnet_build_info" in read_all(sock)
        child.stdin.close()
        assert child.wait(10) == 0
    finally:
        child.kill()
        child.wait(10)
        child.stdout.close()


def test_signals_are_left_to_the_main_thread(tmp_path: Path) -> None:
    with served(tmp_path / "m.sock"):
        (thread,) = (t for t in threading.enumerate() if t.name == "pages")
        text = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
        (blocked,) = re.findall(r"^SigBlk:\s*([0-9a-f]+)$", text, re.M)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            assert int(blocked, 16) >> (number - 1) & 1
        assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_closing_ends_everything_also_beside_a_slow_client(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    server = serve(Metrics(), f"{tmp_path}/m.sock")
    assert (tmp_path / "m.sock").stat().st_mode & 0o7777 == 0o600
    with dial(server.address) as slow:
        assert fetch(server.address, "/")[0] == 200
        begun = time.monotonic()
        server.close()
        server.close()
        assert time.monotonic() - begun < 1
        assert slow.recv(1) == b""
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before
    assert not [t for t in threading.enumerate() if t.name == "pages"]


# -- where it listens -----------------------------------------------------------------------------

LEFT_BEHIND = "from reconciler.metrics import Metrics, serve; server = serve(Metrics(), {!r}); print('served')"


def test_a_process_may_end_beside_it_and_what_it_leaves_behind_is_replaced(tmp_path: Path) -> None:
    path = f"{tmp_path}/m.sock"
    done = python(LEFT_BEHIND.format(path))
    assert (done.returncode, done.stdout) == (0, "served\n"), done.stderr
    assert os.path.lexists(path)
    server = serve(Metrics(), path)
    try:
        assert fetch(path)[0] == 200
    finally:
        server.close()
    assert not os.path.lexists(path)


def refused(address: str) -> str:
    with pytest.raises(ObjectError) as error:
        serve(Metrics(), address).close()
    text = str(error.value)
    assert text.startswith("metrics: listen on ") and "(" in text and "\n" not in text
    return text


def test_an_address_in_use_is_named_with_a_remedy(tmp_path: Path) -> None:
    for address in (f"{tmp_path}/m.sock", "127.0.0.1:0"):
        server = serve(Metrics(), address)
        try:
            text = refused(server.address)
            assert server.address in text and "another program listens there" in text
            if address.startswith("/"):
                assert fetch(address)[0] == 200  # it was left alone
        finally:
            server.close()
        serve(Metrics(), server.address).close()


def test_what_is_not_ours_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "m.sock"
    path.write_text("precious")
    assert "what stands there is no socket (remove it" in refused(str(path))
    assert path.read_text() == "precious"
    path.unlink()
    target = tmp_path / "target"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(target))
    path.symlink_to(target)
    assert "no socket" in refused(str(path))
    assert path.is_symlink() and target.is_socket()
    path.unlink()
    need.root()
    os.chown(target, 12345, 12345)
    assert "belongs to uid 12345" in refused(str(target))
    assert target.is_socket()


def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o1777)
    assert f"others can write to {folder} (give a path" in refused(f"{folder}/m.sock")
    assert list(folder.iterdir()) == []
    assert "its folder does not exist" in refused(f"{tmp_path}/none/at/all.sock")
    serve(Metrics(), f"{tmp_path}/made/m.sock").close()
    assert (tmp_path / "made").stat().st_mode & 0o022 == 0


def test_a_socket_that_took_our_place_is_left(tmp_path: Path) -> None:
    server = serve(Metrics(), f"{tmp_path}/m.sock")
    os.rename(server.address, tmp_path / "moved")
    other = serve(Metrics(), f"{tmp_path}/m.sock")
    try:
        server.close()
        assert fetch(other.address)[0] == 200
    finally:
        other.close()
    assert [p.name for p in tmp_path.iterdir()] == ["moved"]


def test_what_is_no_address_is_an_error_of_the_command_line() -> None:
    with pytest.raises(
        UsageError, match=r"--metrics: ':9533' names no address \(127\.0\.0\.1:9533"
    ):
        serve(Metrics(), ":9533")


CLIENT = """
import sys, urllib.request
print(urllib.request.urlopen(f"http://{sys.argv[1]}/metrics", timeout=10).read().decode())
"""
DAEMON = """
import sys
from reconciler.metrics import Metrics, serve
server = serve(Metrics(), sys.argv[1])
print(server.address, flush=True)
sys.stdin.readline()
server.close()
print("closed", flush=True)
"""


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0", "192.0.2.2:9533"])
def test_over_tcp_of_either_version(bare: PrivateHost, address: str) -> None:
    child = bare.start(sys.executable, "-c", DAEMON, address)
    assert child.stdin is not None and child.stdout is not None
    where = child.stdout.readline().strip()
    assert where.rpartition(":")[0] == address.rpartition(":")[0]
    assert where.rpartition(":")[2] != "0"
    page = bare.run(sys.executable, "-c", CLIENT, where).out
    assert values(page)[f"runcnet_build_info{{version={__version__}}}"] == 1
    child.stdin.write("\n")
    child.stdin.flush()
    assert child.stdout.readline() == "closed\n"
    again = bare.start(sys.executable, "-c", DAEMON, where)
    assert again.stdout is not None
    assert again.stdout.readline().strip() == where


def test_an_address_that_the_host_does_not_have_is_named(bare: PrivateHost) -> None:
    run = bare.run(sys.executable, "-c", DAEMON, "192.0.2.77:9533", check=False)
    assert (
        "metrics: listen on 192.0.2.77:9533: EADDRNOTAVAIL: this host has no such address"
        in run.err
    )
