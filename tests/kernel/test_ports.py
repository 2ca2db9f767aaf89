"""Published ports, seen by real clients: from outside, the host, its loopback, siblings, and within.

outside (internet) --- eth0 [host] --- red (bridge): web, mate
                                   --- blue (bridge): other
                                   --- green (routed): far, near
"""

from collections.abc import Iterator

import pytest

from tests.support.host import PrivateHost
from tests.support.talk import reached

HOST = {4: "192.0.2.2", 6: "2001:db8:ffff::2"}
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
GATEWAY = {4: "10.1.0.1", 6: "fd01::1"}
WEB = {4: "10.1.0.10", 6: "fd01::10"}
FAR = {4: "10.3.0.10", 6: "fd03::10"}
FILE = """
networks:
  red: {subnets: [10.1.0.0/24, "fd01::/64"]}
  blue: {subnets: [10.2.0.0/24, "fd02::/64"]}
  green: {type: routed, subnets: [10.3.0.0/24, "fd03::/64"]}
containers:
  web:
    interfaces: {network: red, addresses: [10.1.0.10, "fd01::10"]}
    ports: [PORTS, "8000-8010:9000-9010", "127.0.0.1:8100:80", "192.0.2.2:8200:80"]
  mate: {interfaces: red}
  other: {interfaces: blue}
  far:
    interfaces: {network: green, addresses: [10.3.0.10, "fd03::10"]}
    ports: [PORTS9]
  near: {interfaces: green}
"""
PROTOCOLS = ("tcp", "udp", "sctp")
CLIENTS = ("internet", "", "mate", "other", "near", "web")


def declared() -> str:
    """The file: port 8080 leads to web and 9080 to far, in every protocol."""
    ports = ", ".join(f'"8080:80/{p}"' for p in PROTOCOLS)
    return FILE.replace("PORTS9", ports.replace("8080", "9080")).replace("PORTS", ports)


@pytest.fixture(scope="module")
def town() -> Iterator[PrivateHost]:
    """All of that on one host: the tests below only look at it."""
    private = PrivateHost()
    try:
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


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("client", CLIENTS)
def test_a_port_is_reached_from_everywhere_and_sees_who_asks(
    town: PrivateHost, client: str, protocol: str, version: int
) -> None:
    source = reached(town, client, (HOST[version], 8080), server="web", port=80, protocol=protocol)
    # Who would be answered without the host, and the container itself, come from the gateway.
    hidden = client in ("mate", "web")
    assert source == (GATEWAY[version] if hidden else own(town, client, version))


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("client", ["internet", "", "mate", "near", "far"])
def test_a_port_of_a_routed_member_too(town: PrivateHost, client: str, version: int) -> None:
    source = reached(town, client, (HOST[version], 9080), server="far", port=80)
    gateway = {4: "10.3.0.1", 6: "fd03::1"}[version]
    assert source == (gateway if client == "far" else own(town, client, version))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "port,server,gateway", [(8080, "web", "10.1.0.1"), (9080, "far", "10.3.0.1")]
)
def test_the_loopback_leads_there_for_ipv4_alone(
    town: PrivateHost, protocol: str, port: int, server: str, gateway: str
) -> None:
    seen = reached(town, "", ("127.0.0.1", port), server=server, port=80, protocol=protocol)
    assert seen == gateway
    assert reached(town, "", ("::1", port), server=server, port=80, protocol=protocol) is None


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


def test_a_port_of_one_address_is_open_there_alone(town: PrivateHost) -> None:
    assert reached(town, "", ("127.0.0.1", 8100), server="web", port=80)
    assert not reached(town, "internet", (HOST[4], 8100), server="web", port=80)
    assert not reached(town, "", (HOST[4], 8100), server="web", port=80)
    for client in ("internet", "", "mate", "other"):
        assert reached(town, client, (HOST[4], 8200), server="web", port=80), client
    assert not reached(town, "", ("127.0.0.1", 8200), server="web", port=80)


@pytest.mark.parametrize("version", [4, 6])
def test_what_is_not_published_stays_closed(town: PrivateHost, version: int) -> None:
    for client in ("internet", "other", "near"):
        assert not reached(town, client, (WEB[version], 80), server="web", port=80), client
        assert not reached(town, client, (WEB[version], 81), server="web", port=81), client
        assert not reached(town, client, (HOST[version], 81), server="web", port=81), client
    assert reached(town, "", (WEB[version], 81), server="web", port=81)
    assert reached(town, "mate", (WEB[version], 81), server="web", port=81)
