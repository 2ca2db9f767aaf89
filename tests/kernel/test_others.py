"""Living with other tools: what they flush comes back, what they wrote keeps its place, nobody fights."""

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.test_beside import DOCKER, FILE, state
from tests.kernel.town import ruleset
from tests.support import need
from tests.support.host import PrivateHost, RunningDaemon, wait_for

BACKENDS = pytest.mark.parametrize("backend", ["iptables", "nftables"])
SMALL = """
networks:
  red: {subnets: [10.1.0.0/24, "fd01::/64"]}
containers:
  web: {interfaces: red, ports: "8080:80"}
"""
FOREIGN = """
for p in iptables-legacy ip6tables-legacy iptables-nft ip6tables-nft; do
    $p -P FORWARD DROP
    $p -A FORWARD -i docker0 -o docker0 -j ACCEPT
    $p -A FORWARD -j LOG --log-prefix gone
    $p -A INPUT -p tcp --dport 22 -j ACCEPT
    $p -A OUTPUT -o eth9 -j DROP
    $p -t nat -A PREROUTING -p tcp --dport 81 -j REDIRECT --to-ports 82
    $p -t nat -A INPUT -p tcp --dport 99 -j ACCEPT
    $p -t nat -A OUTPUT -p tcp --dport 83 -j REDIRECT --to-ports 84
    $p -t nat -A POSTROUTING -o eth9 -j MASQUERADE
    $p -t raw -A PREROUTING -i eth9 -j DROP
    $p -t raw -A OUTPUT -o eth9 -j DROP
    for c in PREROUTING INPUT FORWARD OUTPUT POSTROUTING; do
        $p -t mangle -A $c -j MARK --set-mark 7
    done
done
"""


def begun(host: PrivateHost, backend: str, text: str = SMALL) -> None:
    """The first pass over a file."""
    need.program("nft")
    host.firewall = backend
    host.write("a.yaml", text)
    host.reconcile()


def rules(host: PrivateHost, program: str, chain: str) -> list[str]:
    """The rules of a chain of the filter table."""
    found = host.run(program, "-S", chain, check=False).out.splitlines()
    return [line for line in found if line.startswith("-A")]


def drop_in_both(host: PrivateHost) -> None:
    """FORWARD of both variants drops."""
    host.sh(
        DOCKER.replace("PROGRAMS", "iptables-legacy ip6tables-legacy iptables-nft ip6tables-nft")
    )


# -- one pass after the other -----------------------------------------------------------------------


@BACKENDS
def test_rules_of_others_keep_their_place_through_fifty_passes(
    host: PrivateHost, backend: str
) -> None:
    def theirs() -> list[str]:
        return [line for line in state(host)[:-1] if "RUNCNET" not in line]

    host.sh(FOREIGN)
    before = theirs()
    begun(host, backend)
    standing = state(host)
    for turn in range(50):
        # Every other pass has something to change.
        host.write("b.yaml", f"networks: {{n{turn // 2}: {{subnets: 10.9.0.0/24}}}}")
        host.reconcile()
        assert theirs() == before, turn
    host.drop("b.yaml")
    host.reconcile()
    assert state(host) == standing


@BACKENDS
@pytest.mark.parametrize(
    "script",
    [
        "PROGRAM -F",
        "PROGRAM -F RUNCNET-FORWARD",
        "PROGRAM -D FORWARD -m comment --comment COMMENT -j RUNCNET-FORWARD",
        "PROGRAM -I FORWARD -j DROP",
        "PROGRAM -D RUNCNET-FORWARD 2",
        "PROGRAM -A RUNCNET-CROSS -p tcp -j ACCEPT",
        "PROGRAM -A FORWARD -j RUNCNET-FORWARD",
        "PROGRAM -F; PROGRAM -X",
    ],
)
def test_what_others_change_beside_comes_back(host: PrivateHost, backend: str, script: str) -> None:
    drop_in_both(host)
    begun(host, backend, FILE)
    programs = ["iptables-nft", "ip6tables-nft"]
    programs += ["iptables-legacy", "ip6tables-legacy"] if backend == "nftables" else []
    wanted = {p: [rules(host, p, f"RUNCNET-{c}") for c in ("FORWARD", "CROSS")] for p in programs}
    assert all(len(found) > 5 for p in programs for found in wanted[p][:1])
    for program in programs:
        host.sh(script.replace("PROGRAM", program).replace("COMMENT", "runcnet:beside"))
    assert host.reconcile("--once", "--check", check=False).code == 3
    host.reconcile()
    for p in programs:
        assert [rules(host, p, f"RUNCNET-{c}") for c in ("FORWARD", "CROSS")] == wanted[p]
        targets = [line.split(" -j ")[1] for line in rules(host, p, "FORWARD")]
        assert targets.count("RUNCNET-FORWARD") == 1
        assert "DROP" not in targets[: targets.index("RUNCNET-FORWARD")]
    assert host.reconcile("--once", "--check").code == 0


@BACKENDS
def test_a_policy_that_no_longer_drops_needs_no_rules_beside_it(
    host: PrivateHost, backend: str
) -> None:
    drop_in_both(host)
    begun(host, backend)
    other = ["iptables-nft", "ip6tables-nft"]
    other += ["iptables-legacy", "ip6tables-legacy"] if backend == "nftables" else []
    assert all("RUNCNET" in host.run(p, "-S").out for p in other)
    for program in other:
        host.run(program, "-P", "FORWARD", "ACCEPT")
    host.reconcile()
    assert not any("RUNCNET" in host.run(p, "-S").out for p in other)
    assert host.reconcile("--once", "--check").code == 0
    for program in other:
        host.run(program, "-P", "FORWARD", "DROP")
    host.reconcile()
    assert all("RUNCNET" in host.run(p, "-S").out for p in other)


@BACKENDS
def test_the_administrators_chain_beside_is_asked_first_and_never_written(
    host: PrivateHost, backend: str
) -> None:
    drop_in_both(host)
    begun(host, backend)
    host.run("iptables-nft", "-A", "RUNCNET-USER", "-p", "tcp", "--dport", "7", "-j", "DROP")
    assert host.reconcile("--once", "--check").code == 0
    mine = rules(host, "iptables-nft", "RUNCNET-USER")
    assert rules(host, "iptables-nft", "RUNCNET-FORWARD")[0].endswith("-j RUNCNET-USER")
    host.run("iptables-nft", "-F", "RUNCNET-FORWARD")
    host.write("a.yaml", FILE)
    host.reconcile()
    assert rules(host, "iptables-nft", "RUNCNET-USER") == mine
    host.runcnet("teardown", "--yes")
    assert rules(host, "iptables-nft", "RUNCNET-USER") == mine
    assert "RUNCNET-FORWARD" not in host.run("iptables-nft", "-S").out


@BACKENDS
def test_chains_of_firewalld_and_the_like_are_named_and_never_written(
    host: PrivateHost, backend: str
) -> None:
    need.program("nft")
    host.sh(
        """
        nft add table inet firewalld
        nft 'add chain inet firewalld filter_FORWARD { type filter hook forward priority 10; policy drop; }'
        nft add rule inet firewalld filter_FORWARD ct state established accept
        nft add table ip filter
        nft 'add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }'
        nft add rule ip filter FORWARD iifname docker0 tcp dport 80 ct state new accept
        """
    )
    before = ruleset(host)
    begun(host, backend)
    after = host.run("nft", "list", "table", "inet", "firewalld").out
    after += host.run("nft", "list", "table", "ip", "filter").out
    assert after == before
    notes = host.run(
        *host.command("runcnet", "status", *host.options, "--json"), check=False
    ).report["notes"]
    doctor = host.runcnet("doctor", check=False).out
    for chain in ("inet firewalld filter_FORWARD", "ip filter FORWARD"):
        assert any(f"nftables chain {chain}" in note for note in notes), notes
        assert f"nft insert rule {chain} iifname" in re.sub(r"\s+", " ", doctor)
    host.runcnet("teardown", "--yes")
    assert "RUNCNET" not in ruleset(host)


@BACKENDS
def test_a_table_that_nft_wrote_into_keeps_our_rules_while_they_are_needed(
    host: PrivateHost, backend: str
) -> None:
    host.sh("iptables-nft -N DOCKER-USER; iptables-nft -A FORWARD -j DOCKER-USER")
    host.sh("iptables-nft -P FORWARD DROP")
    before = ruleset(host)
    begun(host, backend)
    mine = "ip filter FORWARD tcp dport 80 ct state new accept"
    host.run("nft", "add", "rule", *mine.split())
    assert "incompatible" in host.run("iptables-nft-save", "-t", "filter").out
    run = host.reconcile()
    assert run.report["changed"] == 0
    assert any("nftables chain ip filter FORWARD" in note for note in run.report["notes"])
    assert "RUNCNET-FORWARD" in host.run("nft", "list", "table", "ip", "filter").out
    host.runcnet("teardown", "--yes")
    assert "RUNCNET" not in ruleset(host)
    handle = host.run("nft", "-a", "list", "chain", "ip", "filter", "FORWARD").out
    (number,) = re.findall("new accept # handle ([0-9]+)", handle)
    host.run("nft", "delete", "rule", "ip", "filter", "FORWARD", "handle", number)
    assert ruleset(host) == before


@BACKENDS
def test_a_program_that_fails_takes_no_rule_away(host: PrivateHost, backend: str) -> None:
    drop_in_both(host)
    # All of iptables-nft is one program.
    host.sh("mount --bind /bin/false $(readlink -f /usr/sbin/iptables-nft-save)")
    need.program("nft")
    host.firewall = backend
    host.write("a.yaml", SMALL)
    run = host.reconcile()
    assert run.report["converged"]
    assert any("nftables chain ip filter FORWARD" in note for note in run.report["notes"])


def test_auto_stays_with_nftables_while_legacy_rules_only_help_out(host: PrivateHost) -> None:
    begun(host, "auto")
    assert "table inet runcnet" in ruleset(host)
    drop_in_both(host)
    host.reconcile()
    assert rules(host, "iptables-legacy", "RUNCNET-FORWARD")
    assert "RUNCNET" not in host.run("iptables-legacy", "-t", "nat", "-S").out
    assert host.reconcile("--once", "--check").code == 0
    host.run("nft", "delete", "table", "inet", "runcnet")
    host.reconcile()
    assert "table inet runcnet" in ruleset(host)
    assert "RUNCNET" not in host.run("iptables-legacy", "-t", "nat", "-S").out


@pytest.mark.parametrize("first,second", [("iptables", "nftables"), ("nftables", "iptables")])
def test_another_backend_beside_chains_that_drop(
    host: PrivateHost, first: str, second: str
) -> None:
    drop_in_both(host)
    begun(host, second, FILE)
    wanted = state(host)
    host.firewall = first
    host.reconcile()
    host.firewall = second
    report = host.reconcile().report
    assert f"the rules have moved from {first} to {second}" in report["notes"]
    assert sorted(state(host)[:-1]) == sorted(wanted[:-1])
    assert ("table inet runcnet" in ruleset(host)) == (second == "nftables")


# -- the daemon -------------------------------------------------------------------------------------


def rest(daemon: RunningDaemon) -> Callable[[], bool]:
    """Whether the daemon has not woken up while it was asked for the last twenty times."""
    seen: list[str] = []

    def rests() -> bool:
        status = Path(f"/proc/{daemon.child.pid}/status").read_text()
        seen.append(status.partition("\nvoluntary_ctxt_switches:")[2])
        return len(seen) > 20 and len(set(seen[-20:])) == 1

    return rests


@BACKENDS
def test_the_daemon_hears_what_others_do_to_nftables(host: PrivateHost, backend: str) -> None:
    drop_in_both(host)
    need.program("nft")
    host.firewall = backend
    host.write("a.yaml", SMALL)
    with host.daemon("--resync", "600") as daemon:
        scripts = ["iptables-nft -F RUNCNET-FORWARD", "ip6tables-nft -F FORWARD"]
        if backend == "nftables":
            scripts += ["nft flush chain inet runcnet forward4", "nft delete table inet runcnet"]
        for turn, script in enumerate(scripts):
            said = daemon.log.count("~ firewall")
            host.sh(script)
            # Long before the check that comes every ten seconds.
            wait_for(lambda said=said: daemon.log.count("~ firewall") > said, 3.0, script)
            assert host.reconcile("--once", "--check").code == 0
            assert daemon.log.count("~ firewall") == turn + 2
        # Its own changes ring as well, and come to nothing.
        wait_for(rest(daemon), 5.0, daemon.log)
        assert daemon.log.count("~ firewall") == len(scripts) + 1


TOOL = """
import re, subprocess, sys, time
program, rule = sys.argv[1], "-i red0 -j ACCEPT"
while True:
    found = [l for l in subprocess.run([program, "-S", "FORWARD"], capture_output=True, text=True).stdout.splitlines()
             if l.startswith("-A")]
    if not found or not found[0].endswith(rule):
        print("first again", flush=True)
        subprocess.run([program, "-D", "FORWARD", *rule.split()], stderr=subprocess.DEVNULL)
        subprocess.run([program, "-I", "FORWARD", *rule.split()])
    time.sleep(0.01)
"""
"""A tool that puts its rule first whenever it is not."""


def test_two_tools_that_want_to_be_first_do_not_fight(host: PrivateHost) -> None:
    drop_in_both(host)
    need.program("nft")
    host.firewall = "nftables"
    host.write("a.yaml", SMALL)
    with host.daemon("--resync", "4") as daemon:
        tool = host.start(sys.executable, "-c", TOOL, "iptables-nft")
        began = time.monotonic()
        daemon.says("jump from FORWARD (IPv4 filter of iptables-nft): out of place", 3)
        took = time.monotonic() - began
        tool.kill()
        # At once, and then at most once in four seconds.
        assert took > 7.0
        assert daemon.log.count("out of place") == 3
        # A jump that is gone is put back without patience, and once the other has left, so is order.
        host.sh("iptables-nft -F FORWARD")
        wait_for(
            lambda: rules(host, "iptables-nft", "FORWARD"),
            3.0,
            daemon.log + host.run("iptables-nft", "-S").out,
        )
        assert host.reconcile("--once").report["converged"]


def test_who_takes_rules_away_without_end_does_not_keep_the_daemon_busy(host: PrivateHost) -> None:
    need.program("nft")
    host.firewall = "nftables"
    host.write("a.yaml", SMALL)
    with host.daemon("--resync", "600") as daemon:
        strikes = host.dir / "strikes"
        script = (
            f"while sleep 0.02; do nft flush chain inet runcnet forward4; echo >> {strikes}; done"
        )
        vandal = host.start("sh", "-c", script)
        daemon.says("rules that differ", 10)
        count = daemon.log.count("rules that differ")
        struck = strikes.stat().st_size
        wait_for(lambda: strikes.stat().st_size > struck + 50, 20.0, "fifty strikes more")
        assert daemon.log.count("rules that differ") <= count + 2
        vandal.kill()
