"""Small passes of the daemon: what they leave to a look at everything."""

import contextlib
import json
from pathlib import Path

import pytest

from tests.kernel.test_daemon import BASE, EXTRA, NETS, stands
from tests.support.host import PrivateHost, page, wait_for

UP = "net.ipv4.ip_forward"


def wired(bundle: Path) -> str:
    """The network namespace that a bundle is wired to."""
    config = json.loads((bundle / "config.json").read_text())
    spaces = config["linux"]["namespaces"]
    return str(next((n.get("path", "") for n in spaces if n["type"] == "network"), ""))


def test_a_sidecar_alone_is_wired_to_whom_it_joins(bare: PrivateHost) -> None:
    bundle = bare.bundle("side", "sleep", "1")
    bare.write("a.yaml", BASE)
    with bare.daemon("--resync", "3600") as daemon:
        bare.write("side.yaml", f"containers: {{side: {{join: a, bundle: {bundle}}}}}\n")
        wait_for(lambda: wired(bundle), what=daemon.log)
        assert wired(bundle) == "/run/netns/a"
        # Nothing but the sidecar's own bundle changes.
        other = bare.bundle("other", "sleep", "1")
        bare.write("side.yaml", f"containers: {{side: {{join: a, bundle: {other}}}}}\n")
        wait_for(lambda: wired(other), what=daemon.log)
        assert wired(other) == "/run/netns/a"


def test_forwarding_comes_back_behind_its_guard_alone(host: PrivateHost) -> None:
    host.firewall = "iptables"
    host.write("a.yaml", BASE)
    with host.daemon("--resync", "3600") as daemon:
        assert "RUNCNET-FORWARD" in host.run("iptables-legacy", "-S").out
        watch = host.start(
            "sh", "-c",
            "while sleep 0.01; do if [ $(cat /proc/sys/net/ipv4/ip_forward) = 1 ]; then "
            "iptables-legacy -S FORWARD | grep -c RUNCNET; exit; fi; done",
        )  # fmt: skip
        host.sh(
            "sysctl -qw net.ipv4.ip_forward=0; iptables-legacy -F; iptables-legacy -X; "
            "sysctl -qw net.ipv4.ip_forward=0"
        )
        text, _ = watch.communicate(timeout=30)
        assert text.strip() == "1", daemon.log


def test_forwarding_that_was_not_ours_and_is_now_gets_its_guard(host: PrivateHost) -> None:
    host.firewall = "iptables"
    host.sh(f"sysctl -qw {UP}=1")
    host.write("a.yaml", BASE)

    def guard() -> bool:
        run = host.run("iptables-legacy", "-S", "RUNCNET-FORWARD", check=False)
        return run.out.strip().endswith("-j DROP") and " -i " not in run.out.splitlines()[-1]

    with host.daemon("--resync", "3600") as daemon:
        assert not guard()
        host.sh(f"sysctl -qw {UP}=0")
        wait_for(lambda: host.sh(f"sysctl -n {UP}").out.strip() == "1", what=daemon.log)
        assert guard(), host.run("iptables-legacy", "-S").out


def test_the_guard_outlives_state_and_rules_under_a_daemon(host: PrivateHost) -> None:
    host.firewall = "nftables"
    host.write("a.yaml", BASE)

    def guard() -> bool:
        return "@switched accept" in host.run("nft", "list", "ruleset").out

    with host.daemon("--resync", "3600") as daemon:
        assert guard()
        host.sh(f"rm {host.state}/state.db*; nft delete table inet runcnet")
        wait_for(
            lambda: "chain forward4" in host.run("nft", "list", "ruleset").out, what=daemon.log
        )
        assert guard(), daemon.log


def kinds(host: PrivateHost) -> dict[str, float]:
    """How many passes of each kind a daemon with `--metrics` has made."""
    found = {"full": 0.0, "part": 0.0}
    for line in page(host.dir / "m.sock").splitlines():
        if line.startswith("runcnet_passes_total{"):
            found["full" if '"full"' in line else "part"] += float(line.split()[-1])
    return found


TAKEN = {
    "address": ("addresses: 10.1.0.77", "interfaces: {network: runc0, addresses: 10.1.0.77}"),
    "mac": ("mac: '02:00:00:00:00:77'", "interfaces: {network: runc0, mac: '02:00:00:00:00:77'}"),
    "link": ("host_interface: here0", "interfaces: {network: runc0, host_interface: here0}"),
    "file": ("name: eth7", "netns: one, interfaces: runc0"),
}


@pytest.mark.parametrize("what", TAKEN)
def test_what_one_who_is_kept_has_is_asked_for_in_a_look_at_everything(
    bare: PrivateHost, what: str
) -> None:
    own, other = TAKEN[what]
    bare.write("a.yaml", NETS)
    bare.write("one.yaml", f"containers: {{one: {{interfaces: {{network: runc0, {own}}}}}}}\n")
    with bare.daemon("--resync", "3600", "--metrics", str(bare.dir / "m.sock")) as daemon:
        with bare.process("one"):
            bare.drop("one.yaml")
            daemon.says("in use by pid")
            before = kinds(bare)
            bare.write("two.yaml", f"containers: {{two: {{{other}}}}}\n")
            wait_for(lambda: kinds(bare)["full"] > before["full"], 5.0, daemon.log)
        wait_for(lambda: stands(bare, "one" if what == "file" else "two"), 15.0, daemon.log)
        bare.write("three.yaml", EXTRA)
        wait_for(lambda: stands(bare, "extra"), what=daemon.log)


def test_containers_go_in_a_look_at_everything(bare: PrivateHost) -> None:
    bare.write("a.yaml", BASE)
    bare.write("z.yaml", EXTRA)
    with bare.daemon("--resync", "3600", "--metrics", str(bare.dir / "m.sock")) as daemon:
        before = kinds(bare)
        (bare.config / "z.yaml").unlink()
        wait_for(lambda: not stands(bare, "extra"), what=daemon.log)
        wait_for(lambda: kinds(bare)["full"] > before["full"], 5.0, daemon.log)


def test_somebody_elses_route_to_a_member_stays(bare: PrivateHost) -> None:
    bare.write(
        "a.yaml",
        'networks: {far: {type: routed, subnets: [10.50.0.0/24, "fd00:50::/64"]}}\n'
        "containers: {one: {interfaces: {network: far, addresses: [10.50.0.5]}}}\n",
    )
    with bare.daemon("--resync", "3600") as daemon:
        bare.sh("ip route add 10.50.0.9 via 192.0.2.1; ip route add blackhole 10.50.0.10")
        bare.sh("ip -6 route add fd00:50::11 via 2001:db8:ffff::1")
        news = {"late": "10.50.0.9", "dark": "10.50.0.10", "six": "'fd00:50::11'"}
        for name, address in news.items():
            body = f"{{interfaces: {{network: far, addresses: {address}}}}}"
            bare.write(f"{name}.yaml", f"containers: {{{name}: {body}}}\n", age_s=0)
        bare.sh("ip route replace 10.50.0.5 via 192.0.2.1")
        for address in ("10.50.0.5/32", "10.50.0.9/32", "10.50.0.10/32", "fd00:50::11/128"):
            said = f"the host's route to {address} through"
            wait_for(lambda said=said: said in daemon.log, what=daemon.log)
        routes = bare.run("ip", "route").out + bare.run("ip", "-6", "route").out
        for line in ("10.50.0.5 via", "10.50.0.9 via", "blackhole 10.50.0.10", "fd00:50::11 via"):
            assert line in routes, routes
        # What leads elsewhere as a whole is in nobody's way.
        body = "{interfaces: {network: far, addresses: 10.50.0.20}}"
        bare.write("more.yaml", f"containers: {{more: {body}}}\n", age_s=0)
        wait_for(lambda: stands(bare, "more"), what=daemon.log)


def test_small_passes_stand_on_no_book_that_others_have_written(
    bare: PrivateHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reconciler.core.agenda import Agenda
    from reconciler.core.meter import NoMetrics
    from reconciler.host.store import Store
    from reconciler.keeper import Keeper
    from reconciler.prospect import Settings
    from reconciler.terminal import Terminal

    settings = Settings(state_dir=str(bare.state), run_dir=str(bare.dir / "run"))
    monkeypatch.setattr("reconciler.host.lock._bind", lambda deadline: contextlib.ExitStack())
    keeper = Keeper(
        settings, Agenda(lambda: 0.5), terminal=Terminal(), meter=NoMetrics(),
        hear=lambda: None, alive=lambda: None, stop=lambda: False, resync_s=60.0,
    )  # fmt: skip
    made: list[str] = []
    monkeypatch.setattr(keeper, "whole", lambda: made.append("whole"))
    monkeypatch.setattr(keeper, "part", lambda names: made.append("part"))
    monkeypatch.setattr(keeper, "world", object())
    keeper.work(frozenset({"*"}), whole=True)
    keeper.work(frozenset({"container/a"}), whole=False)
    assert made == ["whole", "part"]
    beside = Store.open(str(bare.state))
    with beside.transaction():
        beside.put("somebody", "else")
    beside.close()
    # Though a look at everything has just been made, and is not due by itself yet.
    keeper.work(frozenset({"container/a"}), whole=False)
    keeper.work(frozenset({"container/a"}), whole=False)
    assert made == ["whole", "part", "whole", "part"]
    # Lost in the middle of a pass: the next one has them again, and looks at everything.
    for where in (bare.state / "state.db", bare.dir / "run" / "record.db"):
        monkeypatch.setattr(keeper, "part", lambda names, where=where: where.unlink())
        keeper.work(frozenset({"container/a"}), whole=False)
        assert not where.exists()
        keeper.work(frozenset({"container/a"}), whole=False)
        assert where.exists() and made.pop() == "whole"
    keeper.close()
