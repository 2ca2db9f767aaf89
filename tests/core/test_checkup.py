"""What the doctor makes of a host's limits, and how far the neighbour table is widened."""

from reconciler.core.checkup import Finding, findings, needs_of
from reconciler.core.desired import desired_state
from reconciler.core.forwarding import neighbour_sysctls
from reconciler.core.leases import Book, assign
from reconciler.core.model import NEIGHBOURS, Spec
from tests.core.documents import loaded
from tests.core.simulated import Kernel

ROOMY = {
    "user.max_net_namespaces": "100000", "fs.mount-max": "100000", "kernel.pid_max": "4194304",
    "kernel.threads-max": "100000", "fs.inotify.max_user_instances": "8192", "open_files": "1024",
    "available_kb": "8000000", "spaces": "2", "mounts": "30",
    "net.netfilter.nf_conntrack_max": "262144", "net.ipv4.conf.all.rp_filter": "0",
}  # fmt: skip
TEXT = """
networks: {n: {type: routed, subnets: [10.0.0.0/16, "fd00::/64"], uplink: [eth0, eth1]}, b: {subnets: 10.1.0.0/16}}
containers: {w: {replicas: 2000, interfaces: n}}
"""


def declared() -> Spec:
    result = loaded(f=TEXT)
    assert not result.rejections
    return result.spec


def judged(**changes: str) -> list[Finding]:
    values = {**ROOMY, **{k.replace("__", "."): v for k, v in changes.items()}}
    return findings(needs_of(declared(), standing=500), values)


def test_a_roomy_host_has_nothing_in_the_way() -> None:
    assert judged() == []


def test_each_limit_is_named_with_the_command_that_lifts_it() -> None:
    cases = {
        "user.max_net_namespaces": ("1000", "sysctl -w user.max_net_namespaces=2048"),
        "fs.mount-max": ("1000", "sysctl -w fs.mount-max=2048"),
        "kernel.pid_max": ("4096", "sysctl -w kernel.pid_max=8192"),
        "kernel.threads-max": ("4096", "sysctl -w kernel.threads-max=8192"),
        "fs.inotify.max_user_instances": ("128", "sysctl -w fs.inotify.max_user_instances=2048"),
        "net.ipv6.route.max_size": ("3999", "sysctl -w net.ipv6.route.max_size=4096"),
        "net.netfilter.nf_conntrack_max": (
            "65536",
            "sysctl -w net.netfilter.nf_conntrack_max=131072",
        ),
        "net.bridge.bridge-nf-call-iptables": (
            "1",
            "sysctl -w net.bridge.bridge-nf-call-iptables=0",
        ),
        "open_files": ("64", "ulimit -n 1024"),
        "available_kb": ("100000", ""),
    }
    for name, (value, command) in cases.items():
        found = judged(**{name.replace(".", "__"): value})
        assert [f.command for f in found] == [command], (name, found)
        assert (
            "may need" in found[0].text or "MiB" in found[0].text or "br_netfilter" in found[0].text
        )
    strict = judged(**{"net__ipv4__conf__all__rp_filter": "1"})
    assert [f.topic for f in strict] == ["rp_filter on eth0", "rp_filter on eth1"]


def test_the_neighbour_table_is_raised_and_never_lowered() -> None:
    spec = declared()
    given = assign(spec, Book(held={}, freed={}), standing={}, busy=lambda n: False, kept=set())
    desired = desired_state(spec, given.addresses, machine="m", host=Kernel().host.space(()))

    def raised(*values: str | None) -> dict[str, str]:
        kernel = Kernel()
        for name, value in zip(NEIGHBOURS, values * 2, strict=True):
            if value is not None:
                kernel.sysctls[name] = value
        observed = kernel.observe(())
        return {op.name: op.value for op in neighbour_sysctls(desired, observed)}  # type: ignore[attr-defined]

    first = raised("128", "512", "1024")
    assert set(first.values()) == {"2048", "8192", "16384"} and len(first) == 6
    assert raised("2048", "8192", "16384") == {}
    assert raised("99999", "99999", "99999") == {}
    # Only the initial network namespace has the settings.
    assert raised(None, None, None) == {}
