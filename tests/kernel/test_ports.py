"""Published ports, seen by real clients: from outside, the host, its loopback, siblings, and within.

outside (internet) --- eth0 [host] --- red (bridge): web, mate
                                   --- blue (bridge): other
                                   --- green (routed): far, near
                                   --- lonely (isolate_members): hermit, recluse
                                   --- closed (internal): shut
"""

import shutil
import socket
from collections.abc import Iterator

import pytest

from tests.support import need
from tests.support.host import ROOT, PrivateHost
from tests.support.talk import inside, reached, serving

HOST = {4: "192.0.2.2", 6: "2001:db8:ffff::2"}
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
WEB = {4: "10.1.0.10", 6: "fd01::10"}
FAR = {4: "10.3.0.10", 6: "fd03::10"}
FILE = """
networks:
  red: {subnets: [10.1.0.0/24, "fd01::/64"]}
  blue: {subnets: [10.2.0.0/24, "fd02::/64"]}
  green: {type: routed, subnets: [10.3.0.0/24, "fd03::/64"]}
  lonely: {subnets: [10.4.0.0/24, "fd04::/64"], isolate_members: true}
  closed: {subnets: [10.5.0.0/24, "fd05::/64"], internal: true}
containers:
  web:
    interfaces: {network: red, addresses: [10.1.0.10, "fd01::10"]}
    ports: [PORTS, "8000-8010:9000-9010", "8300-8310:8300-8310", "127.0.0.1:8100:80", "192.0.2.2:8200:80"]
  mate: {interfaces: red}
  other: {interfaces: blue}
  far:
    interfaces: {network: green, addresses: [10.3.0.10, "fd03::10"]}
    ports: [PORTS9]
  near: {interfaces: green}
  hermit:
    interfaces: {network: lonely, addresses: [10.4.0.10, "fd04::10"]}
    ports: [PORTS7]
  recluse: {interfaces: lonely}
  shut: {interfaces: closed}
"""
PROTOCOLS = ("tcp", "udp", "sctp")


def declared() -> str:
    """The file: ports 8080, 9080 and 7080 lead to web, far and hermit, in every protocol."""
    ports = ", ".join(f'"8080:80/{p}"' for p in PROTOCOLS)
    text = FILE.replace("PORTS9", ports.replace("8080", "9080"))
    return text.replace("PORTS7", ports.replace("8080", "7080")).replace("PORTS", ports)


@pytest.fixture(
    scope="module",
    params=[("iptables", 0), ("iptables", 1), ("nftables", 0), ("nftables", 1)],
    ids=["iptables", "iptables-br_netfilter", "nftables", "nftables-br_netfilter"],
)
def town(request: pytest.FixtureRequest) -> Iterator[PrivateHost]:
    """All of that on one host: the tests below only look at it."""
    need.program("nft")
    private = PrivateHost()
    try:
        private.firewall, shown = request.param
        for name in ("iptables", "ip6tables"):
            private.sh(f"sysctl -qw net.bridge.bridge-nf-call-{name}={shown}")
        private.write("a.yaml", declared())
        assert private.reconcile().report["converged"]
        private.sh("ip -n internet route add 10.0.0.0/8 via 192.0.2.2")
        private.sh("ip -n internet -6 route add fd00::/8 via 2001:db8:ffff::2")
        yield private
    finally:
        private.close()


def own(host: PrivateHost, name: str, version: int) -> str:
    """A container's address."""
    if name in ("", "internet"):
        return {"": HOST, "internet": {4: "192.0.2.1", 6: "2001:db8:ffff::1"}}[name][version]
    found = host.addresses("eth0", name)
    return next(a.split("/")[0] for a in found if (":" in a) == (version == 6))


def documented() -> list[tuple[str, str, dict[int, str]]]:
    """The table of docs/firewall.md: from where, to what, and what comes of it by IP version."""
    text = (ROOT / "docs" / "firewall.md").read_text()
    table = text.split("<!-- who reaches a port -->")[1].split("<!--")[0]
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in table.strip().splitlines()[2:]
    ]
    return [(row[0], row[1], {4: row[2], 6: row[3]}) for row in rows]


CLIENT = {
    "outside": "internet",
    "the host": "",
    "a fellow on the same bridge": "mate",
    "a fellow in a routed network": "near",
    "a fellow, with `isolate_members`": "recluse",
    "a member of another network": "other",
    "a member of an `internal` network": "shut",
    "the container itself": "web",
    "the container itself, routed": "far",
}
SERVERS = {
    "": ("web", 8080),
    "near": ("far", 9080),
    "far": ("far", 9080),
    "recluse": ("hermit", 7080),
}


def place(who: str, what: str, server: str, version: int, port: int) -> tuple[str, int, int]:
    """Address, port, and the port at which the server listens."""
    inner = {"web": WEB, "far": FAR, "hermit": {4: "10.4.0.10", 6: "fd04::10"}}[server][version]
    return {
        "a port of the host": (HOST[version], port, 80),
        "the port at 127.0.0.1 or ::1": (LOOPBACK[version], port, 80),
        "a port of 127.0.0.1 alone, at the host's address": (HOST[4], 8100, 80),
        "the published port, at the container": (inner, 80, 80),
        "another port, at the container": (inner, 81, 81),
    }[what]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("row", documented(), ids=lambda row: f"{row[0]} to {row[1]}")
def test_who_reaches_a_port_and_as_whom(
    town: PrivateHost, row: tuple[str, str, dict[int, str]], protocol: str, version: int
) -> None:
    who, what, outcome = row
    client = CLIENT[who]
    server, port = SERVERS.get(client, SERVERS[""])
    address, port, inner = place(who, what, server, version, port)
    if not outcome[version]:
        return  # 127.0.0.1 is of IPv4
    patience_s = 0.3 if outcome[version] == "refused" else 2.0
    seen = reached(
        town,
        client,
        (address, port),
        server=server,
        port=inner,
        protocol=protocol,
        patience_s=patience_s,
    )
    gateway = own(town, server, version).rpartition("10")[0] + "1"
    expected = {"as itself": own(town, client, version), "as the gateway": gateway, "refused": None}
    assert seen == expected[outcome[version]]


def test_the_table_knows_every_client() -> None:
    assert {who for who, _, _ in documented()} == set(CLIENT)


@pytest.mark.parametrize("version", [4, 6])
def test_a_run_of_ports_leads_to_the_same_place_in_the_other_run(
    town: PrivateHost, version: int
) -> None:
    for step in (0, 7, 10):
        to = (HOST[version], 8000 + step)
        assert reached(town, "internet", to, server="web", port=9000 + step)
        assert reached(town, "", to, server="web", port=9000 + step)
        assert not reached(town, "internet", to, server="web", port=9000 + (step + 1) % 11)
    assert not reached(town, "internet", (HOST[version], 8011), server="web", port=9011)
    for port in (8300, 8305, 8310):
        assert reached(town, "internet", (HOST[version], port), server="web", port=port)
        assert not reached(town, "internet", (HOST[version], port), server="web", port=8301)
    assert not reached(town, "internet", (HOST[version], 8311), server="web", port=8311)


def test_a_port_of_one_address_is_open_there_alone(town: PrivateHost) -> None:
    assert reached(town, "", ("127.0.0.1", 8100), server="web", port=80)
    assert not reached(town, "internet", (HOST[4], 8100), server="web", port=80)
    assert not reached(town, "", (HOST[4], 8100), server="web", port=80)
    for client in ("internet", "", "mate", "other"):
        assert reached(town, client, (HOST[4], 8200), server="web", port=80), client
    assert not reached(town, "", ("127.0.0.1", 8200), server="web", port=80)


# -- what changes ---------------------------------------------------------------------------------

ONE = """
networks:
  red: {{subnets: 10.1.0.0/24}}
  blue: {{subnets: 10.2.0.0/24{blue}}}
containers:
  web: {{interfaces: {{network: red, addresses: 10.1.0.10}}, ports: [{ports}]}}
  other: {{interfaces: blue}}
"""


@pytest.fixture
def host(either: PrivateHost) -> PrivateHost:
    """Each of the tests below runs with either firewall."""
    return either


def flush(host: PrivateHost, table: str, chain: str, nft_chain: str) -> None:
    """Take the rules out of one of our chains."""
    if host.firewall == "nftables":
        host.run("nft", "flush", "chain", "inet", "runcnet", nft_chain)
    else:
        host.run("iptables-legacy", "-t", table, "-F", chain)


def write(host: PrivateHost, ports: str = "", blue: str = "", red: str = "") -> None:
    """The file, with these ports of web."""
    text = ONE.format(ports=ports, blue=blue)
    host.write("a.yaml", text.replace("10.1.0.0/24", f"10.1.0.0/24{red}"))


def localnet(host: PrivateHost) -> str:
    """Whether the bridge lets 127.0.0.0/8 pass."""
    return host.run("cat", "/proc/sys/net/ipv4/conf/red/route_localnet").out.strip()


def test_ports_come_change_and_go_and_leave_nothing(host: PrivateHost) -> None:
    write(host)
    host.reconcile()
    before = host.ours()
    write(host, '"8080:80"')
    plan = host.runcnet("plan").out
    chain = "runcnet ports4" if host.firewall == "nftables" else "RUNCNET-PORTS"
    assert chain in host.runcnet("plan", "--commands").out and "route_localnet to 1" in plan
    assert host.reconcile().report["converged"]
    assert reached(host, "internet", (HOST[4], 8080), server="web", port=80)
    assert host.reconcile().changes == []
    assert localnet(host) == "1"
    write(host, '"8081:80"')
    host.reconcile()
    assert reached(host, "internet", (HOST[4], 8081), server="web", port=80)
    assert not reached(host, "internet", (HOST[4], 8080), server="web", port=80)
    write(host, '"192.0.2.2:8081:80"')
    host.reconcile()
    assert localnet(host) == "0"
    write(host)
    host.reconcile()
    assert host.ours() == before
    write(host, '"8080:80"')
    host.reconcile()
    host.runcnet("teardown", "--yes")
    assert host.ours() == {"links": [], "netns": [], "rules": []}


def test_the_plan_as_commands_publishes_the_same(host: PrivateHost) -> None:
    write(host, '"8080:80", "8000-8010:9000-9010/udp"')
    host.sh(host.runcnet("plan", "--commands").out)
    assert host.reconcile("--once", "--dry-run").changes == []
    assert reached(host, "internet", (HOST[4], 8080), server="web", port=80)


def test_a_container_in_use_keeps_its_ports_and_nobody_gets_them(host: PrivateHost) -> None:
    # The longest names that there may be: no comment of nft has room for them.
    net, long = "red" + "d" * 61, "web" + "b" * 125
    member = f"{{netns: web, interfaces: {net}, ports: '8080:80'}}"
    host.write(
        "a.yaml",
        f"networks: {{{net}: {{subnets: 10.1.0.0/24}}}}\ncontainers: {{{long}: {member}}}\n",
    )
    host.reconcile()
    with host.process("web"):
        other = "interfaces: blue, ports: '8080:80'"
        host.write("a.yaml", f"networks: {{{net}: {{subnets: 10.1.0.0/24}}, blue: {{subnets: "
                   f"10.2.0.0/24}}}}\ncontainers: {{other: {{{other}}}}}\n")  # fmt: skip
        run = host.reconcile(check=False)
        assert run.code == 1
        assert [h["object"] for h in run.report["held_back"]] == [f"container/{long}"]
        status = host.runcnet("status", "other", "--json", check=False).report
        assert f"8080/tcp still leads to {long}," in str(status["containers"][0]["problems"])
        assert reached(host, "internet", (HOST[4], 8080), server="web", port=80)
    assert host.reconcile().report["converged"]
    assert reached(host, "internet", (HOST[4], 8080), server="other", port=80)


def test_a_broken_file_takes_no_port_away(host: PrivateHost) -> None:
    write(host, '"8080:80"')
    host.reconcile()
    host.write("a.yaml", "containers: {web: {ports: [")
    assert host.reconcile(check=False).code == 2
    assert reached(host, "internet", (HOST[4], 8080), server="web", port=80)
    flush(host, "nat", "RUNCNET-PORTS", "ports")
    host.reconcile(check=False)
    assert reached(host, "internet", (HOST[4], 8080), server="web", port=80)


def test_nobody_but_the_host_comes_into_its_loopback(host: PrivateHost) -> None:
    write(host, '"8080:80"')
    host.reconcile()
    # A container with every right over its own namespace, and a machine on the uplink's wire, send
    # what is for the host's loopback.
    for netns, gateway, link in (("web", "10.1.0.1", "eth0"), ("internet", "192.0.2.2", "up0")):
        host.sh(
            f"ip netns exec {netns} sysctl -qw net.ipv4.conf.all.route_localnet=1; "
            f"ip -n {netns} addr del 127.0.0.1/8 dev lo; "
            f"ip -n {netns} route replace 127.0.0.0/8 via {gateway} dev {link}"
        )
    assert localnet(host) == "1"
    for netns in ("web", "internet"):
        assert not reached(host, netns, ("127.0.0.1", 7777), server="", port=7777), netns
    # The same without the rule comes through: the attack is a real one.
    flush(host, "raw", "RUNCNET-PREROUTING", "raw")
    assert reached(host, "web", ("127.0.0.1", 7777), server="", port=7777)
    host.reconcile()
    assert not reached(host, "web", ("127.0.0.1", 7777), server="", port=7777)


def test_a_port_that_a_program_of_the_host_has_is_told(host: PrivateHost) -> None:
    write(host, '"8080:80"')
    with serving(host, "", 8080, "tcp", 4):
        notes = host.reconcile().err + str(host.runcnet("status", "--json").report)
    assert "8080/tcp" in notes and "listens" in notes


@pytest.mark.parametrize("access,dns,web", [("false", False, False), ("[53/udp]", True, False),
                                            ("true", True, True)])  # fmt: skip
def test_members_open_on_the_host_what_they_may(
    host: PrivateHost, access: str, dns: bool, web: bool
) -> None:
    host.write(
        "a.yaml",
        f'networks: {{red: {{subnets: [10.1.0.0/24, "fd01::/64"], host_access: {access}}}}}\n'
        "containers: {web: {interfaces: red, ports: '8080:80'}, mate: {interfaces: red}}\n",
    )
    host.reconcile()
    for gateway in ("10.1.0.1", "fd01::1"):
        assert bool(reached(host, "mate", (gateway, 53), server="", port=53, protocol="udp")) == dns
        assert bool(reached(host, "mate", (gateway, 81), server="", port=81)) == web
        # The other way round, and beyond, nothing changes.
        assert host.ping("", host.addresses("eth0", "mate")[0].split("/")[0])
    assert host.ping("mate", "198.51.100.1") and host.ping("mate", "2001:db8:100::1")
    assert reached(host, "mate", ("10.1.0.1", 8080), server="web", port=80)


def test_denied_destinations_and_networks_that_are_let_in(host: PrivateHost) -> None:
    write(host, blue=", egress: {deny: [198.51.100.1, 10.0.0.0/8]}", red=", allow: blue")
    host.reconcile()
    assert not host.ping("other", "198.51.100.1")
    assert host.ping("web", "198.51.100.1")
    assert host.ping("other", "192.0.2.1")
    assert not host.ping("other", "10.1.0.10")
    write(host, red=", allow: blue")
    host.reconcile()
    assert host.ping("other", "10.1.0.10")
    assert not host.ping("web", host.addresses("eth0", "other")[0].split("/")[0])
    write(host)
    host.reconcile()
    assert not host.ping("other", "10.1.0.10")
    # The file of those who are let in may break while nobody remembers what it said.
    red = "networks: {red: {subnets: 10.1.0.0/24, allow: blue}}\n"
    web = "containers: {web: {interfaces: {network: red, addresses: 10.1.0.10}}}\n"
    blue = "networks: {blue: {subnets: 10.2.0.0/24}}\ncontainers: {other: {interfaces: blue}}\n"
    host.write("a.yaml", red + web)
    host.write("b.yaml", blue)
    assert host.reconcile().report["converged"] and host.ping("other", "10.1.0.10")
    host.write("b.yaml", blue + "networks: [")
    shutil.rmtree(host.state)
    assert host.reconcile(check=False).code == 2
    assert host.ping("other", "10.1.0.10")


def test_a_question_by_udp_finds_the_new_place_at_once(host: PrivateHost) -> None:
    text = """
networks: {red: {subnets: 10.1.0.0/24}}
containers:
  old: {interfaces: {network: red, addresses: 10.1.0.10}OLD}
  new: {interfaces: {network: red, addresses: 10.1.0.11}NEW}
"""
    port = ', ports: "5353:53/udp"'
    host.write("a.yaml", text.replace("OLD", port).replace("NEW", ""))
    host.reconcile()
    with inside(host, "internet"):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with (
        client,
        serving(host, "old", 53, "udp", 4) as old,
        serving(host, "new", 53, "udp", 4) as new,
    ):
        client.settimeout(2.0)
        client.connect((HOST[4], 5353))
        for server, place in ((old, "OLD"), (new, "NEW"), (old, "OLD")):
            host.write("a.yaml", text.replace(place, port).replace("OLD", "").replace("NEW", ""))
            host.reconcile()
            # The same client, from the same port: the kernel remembers where it went.
            client.send(b"who?")
            _, peer = server.recvfrom(100)
            assert peer[0] == "192.0.2.1"
            server.sendto(place.encode(), peer)
            assert client.recv(100) == place.encode()


def test_a_container_that_goes_is_forgotten_by_the_kernel(host: PrivateHost) -> None:
    write(host, '"8080:80"')
    host.reconcile()
    assert reached(host, "internet", (HOST[4], 8080), server="web", port=80)
    assert reached(host, "other", ("198.51.100.1", 99), server="internet", port=99)
    known = host.run("cat", "/proc/net/nf_conntrack").out
    assert "10.1.0.10" in known
    other = host.addresses("eth0", "other")[0].split("/")[0]
    host.write("a.yaml", "networks: {blue: {subnets: 10.2.0.0/24}}\n"
               "containers: {other: {interfaces: blue}}\n")  # fmt: skip
    host.reconcile()
    known = host.run("cat", "/proc/net/nf_conntrack").out
    assert "10.1.0.10" not in known and other in known


def test_a_bridge_of_somebody_else_lets_no_loopback_in(host: PrivateHost) -> None:
    host.sh("ip link add red type bridge; ip link set red up")
    write(host, '"8080:80"')
    assert host.reconcile(check=False).code == 1
    assert localnet(host) == "0"
