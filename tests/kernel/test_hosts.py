"""Hosts files as members come and go, and who sees them."""

from pathlib import Path

from tests.kernel.test_part import kinds
from tests.kernel.test_sandboxes import call, folder
from tests.kernel.test_scoped import settled, small, why
from tests.support.host import PrivateHost, wait_for

NETS = """
networks:
  n: {subnets: 10.5.0.0/16, dns: {servers: 9.9.9.9, hosts: {db.corp: 10.0.0.7}}}
  m: {type: routed, subnets: 10.6.0.0/16}
"""


def hosts(host: PrivateHost, name: str) -> tuple[str, list[str]]:
    """The inode of a container's hosts file, and its lines beyond those for localhost."""
    path = f"/run/runcnet/dns/{name}"
    text = host.sh(f"stat -c%i {path}/hosts; tail -n+3 {path}/hosts").out.splitlines()
    return text[0], text[1:]


def test_fellows_learn_of_who_comes_and_goes(bare: PrivateHost) -> None:
    bare.write("10.yaml", NETS + "containers: {a: {interfaces: n}, b: {interfaces: [n, m]}}\n")
    bare.reconcile()
    inode, lines = hosts(bare, "a")
    own = ["10.0.0.7 db.corp", "10.5.0.2 a", "10.5.0.3 b"]
    assert lines == own
    assert why(call(bare, "add", "s1", "--network", "n"))
    assert hosts(bare, "a") == (inode, [*own, "10.5.0.4 s1"])
    small(bare, "add", "s2", "--network", "m", "--network", "n")
    assert hosts(bare, "a") == (inode, [*own, "10.5.0.4 s1", "10.5.0.5 s2"])
    assert hosts(bare, "b")[1][-1] == "10.6.0.3 s2" and hosts(bare, "s2")[1][1] == "10.6.0.2 b"
    settled(bare)
    # One that has left a network is not named there any more.
    small(bare, "add", "s2", "--network", "m")
    assert hosts(bare, "a") == (inode, [*own, "10.5.0.4 s1"])
    small(bare, "rm", "s1")
    assert hosts(bare, "a") == (inode, own)
    assert "s1" not in bare.run("ls", "/run/runcnet/dns").out.split()
    settled(bare)


def test_exec_shows_the_same_files_also_to_who_joins(bare: PrivateHost) -> None:
    bare.write(
        "10.yaml", NETS + "containers: {a: {interfaces: n}, side: {join: a}, host: {mode: host}}\n"
    )
    bare.reconcile()
    for name in ("a", "side"):
        seen = bare.runcnet("exec", name, "--", "cat", "/etc/hosts", "/etc/resolv.conf").out
        assert seen.splitlines()[2:] == ["10.0.0.7 db.corp", "10.5.0.2 a", "nameserver 9.9.9.9"]
    assert bare.runcnet("exec", "side", "--", "true").code == 0
    call(bare, "add", "s", "--network", "n")
    assert "10.5.0.3 s" in bare.runcnet("exec", "side", "--", "cat", "/etc/hosts").out


def test_the_daemon_tells_hundreds_of_fellows_without_a_look_at_everything(
    bare: PrivateHost,
) -> None:
    count = 300
    text = NETS.replace("m: {", "m: {dns: host, ")
    bare.write("10.yaml", text + f"containers: {{w: {{replicas: {count}, interfaces: m}}}}\n")
    bare.reconcile()

    def told(name: str) -> bool:
        last = [hosts(bare, f"w-{i}")[1][-1] for i in (0, count - 1)]
        return all(line.endswith(f" {name}") for line in last)

    with bare.daemon("--resync", "3600", "--metrics", str(bare.dir / "m.sock")) as daemon:
        before = kinds(bare)["full"]
        bare.write("20.yaml", "containers: {new: {interfaces: m}}\n")
        wait_for(lambda: told("new"), what=daemon.log)
        bare.write("20.yaml", "containers: {newer: {interfaces: m}, new: {interfaces: m}}\n")
        wait_for(lambda: told("newer"), what=daemon.log)
        assert kinds(bare)["full"] == before
    assert bare.reconcile().changes == []
    assert not Path(folder(bare)).exists()
