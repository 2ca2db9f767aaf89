"""The iptables backend on a real kernel: rules as iptables-legacy shows them."""

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest

from reconciler.core.errors import UsageError
from reconciler.core.model import parse_subnet
from reconciler.core.policy import Policy
from reconciler.host.firewall import backend
from tests.kernel.town import BOTH, DRIVER, ask, network, saved, tables
from tests.support import need
from tests.support.host import PrivateHost, Run, wait_for


def test_a_second_run_commits_nothing(host: PrivateHost) -> None:
    first = ask(host, "commit")
    tables_made = ["filter (IPv4)", "nat (IPv4)", "filter (IPv6)"]
    assert first == {"committed": tables_made, "created": tables_made}
    before = saved(host)
    assert ask(host, "look")["differences"] == []
    assert ask(host, "commit") == {"committed": [], "created": []}
    assert saved(host) == before


def test_what_is_seen(host: PrivateHost) -> None:
    seen = ask(host, "look")
    assert seen["networks"] == [] and seen["guards"] == []
    assert len(seen["differences"]) == 10
    assert "do not exist yet: filter (IPv4), nat (IPv4), filter (IPv6)" in seen["notes"][0]
    assert "created its legacy tables filter (IPv4)" in ask(host, "replace")[0]
    seen = ask(host, "look")
    assert sorted(seen["networks"]) == ["blue", "red"] and sorted(seen["guards"]) == [4, 6]
    assert seen["notes"] == []


def test_looking_creates_no_table(host: PrivateHost) -> None:
    ask(host, "look")
    ask(host, "commands")
    ask(host, "warnings")
    ask(host, "remove")
    assert ask(host, "commit", Policy()) == {"committed": [], "created": []}
    assert tables(host) == set()
    ask(host, "replace", Policy(guards=(6,)))
    assert tables(host) == {"filter"}


DRIFT = {
    "flushed": "iptables-legacy -F RUNCNET-FORWARD",
    "all flushed": "iptables-legacy -F; iptables-legacy -t nat -F; ip6tables-legacy -F",
    "all gone": "iptables-legacy -F; iptables-legacy -X; ip6tables-legacy -F; ip6tables-legacy -X",
    "rule removed": "ip6tables-legacy -D RUNCNET-FORWARD 3",
    "rule doubled": "iptables-legacy -A RUNCNET-CROSS -o red0 -m comment --comment runcnet:red -j DROP",
    "order": "iptables-legacy -D RUNCNET-FORWARD 1;"
    " iptables-legacy -A RUNCNET-FORWARD -m comment --comment runcnet:host -j RUNCNET-USER",
    "foreign rule in ours": "iptables-legacy -I RUNCNET-FORWARD -p tcp --dport 80 -j ACCEPT",
    "goto": "iptables-legacy -R FORWARD 1 -m comment --comment runcnet:host -g RUNCNET-FORWARD",
    "jump removed": "iptables-legacy -D FORWARD 1",
    "jump doubled": "iptables-legacy -A FORWARD -j RUNCNET-FORWARD",
    "jump narrowed": "iptables-legacy -R FORWARD 1 -i eth0"
    " -m comment --comment runcnet:host -j RUNCNET-FORWARD",
    "jump behind an accept": "iptables-legacy -I FORWARD -j ACCEPT",
    "nat jump removed": "iptables-legacy -t nat -D POSTROUTING 1",
    "masquerade with ports": "iptables-legacy -t nat -R RUNCNET-POSTROUTING 6 -s 10.1.0.0/24"
    " -m comment --comment runcnet:red -j MASQUERADE --random",
    "negated": "iptables-legacy -R RUNCNET-CROSS 1 ! -o blue0"
    " -m comment --comment runcnet:blue -j DROP",
    "pattern": "iptables-legacy -R RUNCNET-CROSS 1 -o blue+"
    " -m comment --comment runcnet:blue -j DROP",
    "other states": "iptables-legacy -R RUNCNET-FORWARD 2 -o blue0 -m conntrack --ctstate NEW"
    " -m comment --comment runcnet:blue -j ACCEPT",
    "no target": "iptables-legacy -R RUNCNET-FORWARD 2 -o blue0",
    "old chain": "iptables-legacy -N RUNCNET-OLD; iptables-legacy -A RUNCNET-OLD -j RUNCNET-CROSS",
    "user chain gone": "iptables-legacy -D RUNCNET-FORWARD 1; iptables-legacy -X RUNCNET-USER",
}


@pytest.mark.parametrize("script", DRIFT.values(), ids=DRIFT)
def test_drift_is_seen_and_repaired(host: PrivateHost, script: str) -> None:
    ask(host, "replace")
    before = saved(host)
    host.sh(script)
    assert ask(host, "look")["differences"]
    ask(host, "replace")
    assert ask(host, "look")["differences"] == []
    foreign = ["-A FORWARD -j ACCEPT"] if "-I FORWARD -j ACCEPT" in script else []
    assert sorted(saved(host)) == sorted([*before, *foreign])


def test_what_others_wrote_stays(host: PrivateHost) -> None:
    host.sh(
        """
        for p in iptables-legacy ip6tables-legacy; do
            $p -N DOCKER-USER; $p -A DOCKER-USER -p tcp -m multiport --dports 80,443 -j RETURN
            $p -A FORWARD -j DOCKER-USER; $p -P FORWARD DROP
            $p -A FORWARD -m limit --limit 5/min -j LOG --log-prefix "gone: "
            $p -A INPUT -i eth0 -p udp --dport 53 -j REJECT
            $p -t nat -A POSTROUTING -o eth1 -j MASQUERADE --random
            $p -t nat -A PREROUTING -p tcp --dport 81 -j REDIRECT --to-ports 82
            $p -t mangle -A POSTROUTING -j MARK --set-mark 7
        done
        """
    )
    before = saved(host)
    ask(host, "replace")
    assert [line for line in saved(host) if "RUNCNET" not in line] == before
    ask(host, "replace", Policy(networks=(network("red", internal=True),)))
    ask(host, "remove")
    assert saved(host) == before


def test_a_chain_that_others_jump_to_is_emptied_and_stays(host: PrivateHost) -> None:
    ask(host, "replace")
    host.run("iptables-legacy", "-A", "OUTPUT", "-j", "RUNCNET-CROSS")
    ask(host, "remove")
    left = [line for line in saved(host) if "RUNCNET" in line]
    assert left == [":RUNCNET-CROSS -", "-A OUTPUT -j RUNCNET-CROSS"]
    assert ask(host, "look", Policy())["differences"] == []


def test_kept_rules_stay_as_they_stand(host: PrivateHost) -> None:
    ask(host, "replace")
    before = saved(host)
    # What this version cannot say, a later one may have written.
    later = "-A RUNCNET-FORWARD -d 10.1.0.11/32 ! -i red0 -p tcp -m tcp --dport 80"
    later += ' -m comment --comment "runcnet:red" -j ACCEPT'
    host.sh(f"iptables-legacy {later.replace('-A RUNCNET-FORWARD', '-I RUNCNET-FORWARD 9')}")
    kept = Policy(networks=(network("blue"),), guards=(4, 6), kept=frozenset({"red"}))
    ask(host, "replace", kept)
    after = saved(host)
    assert later in after
    assert sorted(after) == sorted([*before, later])
    host.sh("iptables-legacy -F RUNCNET-CROSS")
    changed = Policy(networks=(network("blue", internal=True),), kept=frozenset({"red"}))
    ask(host, "replace", changed)
    after = saved(host)
    assert later in after
    assert ask(host, "look", changed)["differences"] == []
    assert (
        '-A RUNCNET-POSTROUTING -s 10.1.0.0/24 -m comment --comment "runcnet:red" -j MASQUERADE'
        in after
    )
    ask(host, "replace", Policy(networks=(network("blue"),)))
    assert not [line for line in saved(host) if "runcnet:red" in line]


def test_the_commands_bring_about_the_same(host: PrivateHost) -> None:
    lines = ask(host, "commands")
    host.sh("\n".join(lines))
    by_hand = saved(host)
    assert ask(host, "look")["differences"] == []
    assert ask(host, "commands") == []
    host.sh("\n".join(ask(host, "commands", Policy())))
    assert not [line for line in saved(host) if "RUNCNET" in line]
    ask(host, "replace")
    assert sorted(saved(host)) == sorted(by_hand)


def test_many_networks(host: PrivateHost) -> None:
    many = tuple(
        network(
            f"n{i}",
            link=f"n{i}",
            subnets=(parse_subnet(f"10.{i}.0.0/16"), parse_subnet(f"fd00:{i}::/64")),
            masquerade=(4, 6),
            uplinks=("eth0", "eth1"),
        )
        for i in range(200)
    )
    ask(host, "replace", Policy(networks=many))
    assert ask(host, "look", Policy(networks=many))["differences"] == []
    assert len(ask(host, "look", Policy(networks=many))["networks"]) == 200


# -- the lock -----------------------------------------------------------------------------------


@contextmanager
def xtables_lock(host: PrivateHost) -> Iterator[None]:
    """The host's lock, held by this process."""
    path = f"/proc/{host._holder.pid}/root/run/xtables.lock"
    descriptor = os.open(path, os.O_RDONLY | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def test_a_lock_that_is_held_ends_in_one_sentence(host: PrivateHost) -> None:
    with xtables_lock(host):
        error = ask(host, "replace", lock_s=0.2)["error"]
    assert error.startswith("firewall: lock /run/xtables.lock: another program held it for 0.2 s")
    assert "\n" not in error
    assert ask(host, "look")["differences"]


def test_a_lock_that_is_released_is_waited_for(host: PrivateHost) -> None:
    with xtables_lock(host):
        child = host.start(sys.executable, "-c", DRIVER, "replace", "30")
        assert child.stdin is not None
        child.stdin.write(msgspec.json.encode(BOTH).decode())
        child.stdin.close()
        inode = os.stat(f"/proc/{host._holder.pid}/root/run/xtables.lock").st_ino

        def waits() -> bool:
            with open("/proc/locks") as file:
                return any("->" in line and f":{inode} " in line for line in file)

        wait_for(waits, what="the worker at the lock")
    assert child.wait(30) == 0
    assert ask(host, "look")["differences"] == []


TURNS = """
import os, signal
from reconciler.core.errors import FirewallError
from reconciler.core.policy import Policy
from reconciler.host.firewall import standby
from reconciler.host.firewall.iptables import Iptables

def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(word) for word in file.read().split()]

wall = Iptables()
three, four, six = (Policy(guards=guards) for guards in ((4, 6), (4,), (6,)))
assert children(os.getpid()) == []
wall.replace(three)
(first,) = children(os.getpid())
wall.replace(four)
assert children(os.getpid()) == [first] and wall.differences(four) == ()

# It ends while it stands by: another one does its work.
os.kill(first, signal.SIGKILL)
wall.replace(six)
(second,) = children(os.getpid())
assert second != first and wall.differences(six) == ()
wall.replace(three)

# It ends in the middle of its work: that is said, nothing has changed, and the lock is free.
ask = standby.Worker.ask
def ended(worker, message):
    if isinstance(message, standby.Change):
        for turn in children(second):
            os.kill(turn, signal.SIGKILL)
    ask(worker, message)
standby.Worker.ask = ended
try:
    wall.replace(four)
except FirewallError as error:
    assert "python-iptables ended with -9" in str(error), error
else:
    raise AssertionError("it went well")
standby.Worker.ask = ask
assert children(os.getpid()) == [] and wall.differences(three) == ()
wall.replace(four)
assert len(children(os.getpid())) == 1 and wall.differences(four) == ()
wall.stand_by(wanted=False)
assert children(os.getpid()) == []
"""


def test_one_process_serves_all_changes_and_another_one_when_it_has_ended(
    host: PrivateHost,
) -> None:
    plain(host, TURNS)


# -- other firewalls, other backends ------------------------------------------------------------


def test_a_dropping_chain_of_nftables_is_named_until_it_accepts(host: PrivateHost) -> None:
    need.program("nft")
    assert ask(host, "warnings") == []
    host.sh(
        """
        nft add table inet guard
        nft 'add chain inet guard pass { type filter hook forward priority 0; policy drop; }'
        nft 'add chain inet guard in { type filter hook input priority 0; policy drop; }'
        nft add table ip mild
        nft 'add chain ip mild pass { type filter hook forward priority 0; policy accept; }'
        """
    )
    (sentence,) = ask(host, "warnings")
    assert "nftables chain inet guard pass" in sentence and "blue0, red0" in sentence
    assert "nft insert rule inet guard pass iifname blue0 accept" in sentence
    host.sh("nft insert rule inet guard pass iifname blue0 accept")
    host.sh("nft add rule inet guard pass iifname red accept")
    (sentence,) = ask(host, "warnings")
    assert "traffic of red0:" in sentence
    host.sh("nft insert rule inet guard pass iifname red0 accept")
    assert ask(host, "warnings") == []
    host.sh("iptables-nft -P FORWARD DROP")
    (sentence,) = ask(host, "warnings")
    assert "nftables chain ip filter FORWARD" in sentence
    host.sh("for l in red0 blue0; do iptables-nft -A FORWARD -i $l -j ACCEPT; done")
    assert ask(host, "warnings") == []


def test_a_dropping_legacy_table_before_filter_is_named(host: PrivateHost) -> None:
    host.sh("iptables-legacy -t mangle -P FORWARD DROP; iptables-legacy -P FORWARD DROP")
    (sentence,) = ask(host, "warnings")
    assert "table mangle (IPv4)" in sentence and "-t mangle -P FORWARD ACCEPT" in sentence
    assert ask(host, "warnings", Policy(networks=(network("red", internal=True),))) == []


def plain(host: PrivateHost, script: str) -> Run:
    """A Python script in the host."""
    return host.run(sys.executable, "-c", script)


def test_none_and_a_look_import_nothing_of_iptables(host: PrivateHost) -> None:
    script = """
import sys
from reconciler.core.policy import Policy
from reconciler.host.firewall import backend
assert backend("none") is None
assert not [m for m in sys.modules if m.startswith(("iptc", "reconciler.host.firewall."))]
backend("auto").look(Policy(guards=(4, 6)))
assert "iptc" not in sys.modules
"""
    plain(host, script)


def test_an_unknown_backend_says_so() -> None:
    with pytest.raises(UsageError, match="unknown"):
        backend("pf")


def test_the_environment_and_the_folder_do_not_reach_the_worker(host: PrivateHost) -> None:
    (host.dir / "iptc.py").write_text("raise SystemExit('not this one')")
    (host.dir / "msgspec.py").write_text("raise SystemExit('not this one')")
    words = " ".join(["env", f"PYTHONSTARTUP={host.dir}/iptc.py", f"IPTABLES_LIBDIR={host.dir}"])
    script = host.dir / "driver"
    script.write_text(DRIVER)
    (host.dir / "policy").write_bytes(msgspec.json.encode(BOTH))
    root = os.getcwd()
    host.sh(
        f"cd {host.dir}; {words} PYTHONPATH={root} {sys.executable} -P driver replace 10 < policy"
    )
    assert ask(host, "look")["differences"] == []


def test_without_the_libraries_there_is_one_sentence(host: PrivateHost) -> None:
    host.sh(
        "for f in /usr/lib/*/libip4tc.so* /usr/lib/*/libip6tc.so*; do mount --bind /dev/null $f; done"
    )
    error = ask(host, "replace")["error"]
    assert error.startswith("firewall: load python-iptables: ")
    assert "--firewall none" in error and "\n" not in error
