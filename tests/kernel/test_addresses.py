"""From which addresses a member of a bridge can send, where nftables check that. Frames are made here."""

import socket
import struct

import pytest

from tests.kernel.test_antispoof import DEFINITION, EVERYBODY, arrives, mac
from tests.kernel.test_part import kinds
from tests.support.host import PrivateHost, wait_for
from tests.support.talk import inside

OWN, MATE, GATEWAY, WORLD = "10.60.0.11", "10.60.0.12", "10.60.0.1", "192.0.2.9"
OWN6, MATE6, GATEWAY6 = "fd00:60::11", "fd00:60::12", "fd00:60::1"
NONE6, NODES, MATES = "::", "ff02::1", "ff02::1:ff00:12"
NA, NS, RA = 136, 135, 134


@pytest.fixture
def nft(bare: PrivateHost) -> PrivateHost:
    bare.firewall = "nftables"
    bare.write("a.yaml", DEFINITION)
    assert bare.reconcile().report["converged"]
    return bare


def total(data: bytes) -> int:
    """The Internet's checksum (RFC 1071)."""
    found = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while found >> 16:
        found = (found & 0xFFFF) + (found >> 16)
    return ~found & 0xFFFF


UDP = struct.pack("!HHHH", 7, 7, 8, 0)


def ip(source: str, target: str) -> tuple[int, bytes]:
    """A UDP datagram: its ethertype and itself. With br_netfilter the header must be right."""
    if ":" in source:
        six = [socket.inet_pton(socket.AF_INET6, a) for a in (source, target)]
        return 0x86DD, struct.pack("!IHBB", 6 << 28, 8, 17, 64) + b"".join(six) + UDP
    ends = b"".join(socket.inet_aton(a) for a in (source, target))
    head = struct.pack("!BBHIBB", 0x45, 0, 28, 0, 64, 17)
    return 0x0800, head + struct.pack("!H", total(head + bytes(2) + ends)) + ends + UDP


def arp(source: str, target: str, sender: bytes, kind: int = 2) -> tuple[int, bytes]:
    one, other = (socket.inet_aton(a) for a in (source, target))
    head = struct.pack("!HHBBH", 1, 0x0800, 6, 4, kind)
    return 0x0806, head + sender + one + EVERYBODY + other


def icmp6(
    kind: int, source: str, target: str, about: str = NONE6, options: bytes = b""
) -> tuple[int, bytes]:
    """Neighbour discovery; behind `options`, where there are any, comes what it is."""
    ends = [socket.inet_pton(socket.AF_INET6, a) for a in (source, target)]
    body = struct.pack("!BBHI", kind, 0, 0, 0) + socket.inet_pton(socket.AF_INET6, about)
    first = options[0] if options else 58
    whole = (bytes([58]) + options[1:] if options else b"") + body
    return 0x86DD, struct.pack("!IHBB", 6 << 28, len(whole), first, 255) + b"".join(ends) + whole


HOP = bytes([0, 0, 5, 2, 0, 0, 1, 0])
"""A hop-by-hop header: an empty router alert, and padding."""


def frame(target: bytes, source: bytes, packet: tuple[int, bytes], *, tags: int = 0) -> bytes:
    kind, body = packet
    return target + source + struct.pack("!HH", 0x8100, 0) * tags + struct.pack("!H", kind) + body


def forgeries(sender: bytes) -> dict[str, tuple[int, bytes]]:
    return {
        "a fellow's address": ip(MATE, GATEWAY),
        "the gateway's address": ip(GATEWAY, MATE),
        "an address of the world": ip(WORLD, MATE),
        "no address": ip("0.0.0.0", MATE),
        "a fellow's IPv6 address": ip(MATE6, OWN6),
        "an IPv6 address of the world": ip("2001:db8::1", MATE6),
        "no IPv6 address": ip(NONE6, MATE6),
        "another link-local address": ip("fe80::66", MATE6),
        "ARP for the gateway": arp(GATEWAY, GATEWAY, sender),
        "a question as the gateway": arp(GATEWAY, MATE, sender, 1),
        "ARP for a fellow": arp(MATE, GATEWAY, sender),
        "an advertisement for the gateway": icmp6(NA, OWN6, NODES, GATEWAY6),
        "one as the gateway": icmp6(NA, GATEWAY6, NODES, GATEWAY6),
        "one behind other headers": icmp6(NA, OWN6, NODES, GATEWAY6, HOP),
        "a router advertisement": icmp6(RA, OWN6, NODES),
        "a solicitation as the gateway": icmp6(NS, GATEWAY6, MATES, MATE6),
    }  # fmt: skip


def test_nothing_forged_gets_through(nft: PrivateHost) -> None:
    own, loose = mac(nft, "liar"), mac(nft, "loose")
    for name, packet in forgeries(own).items():
        assert not arrives(nft, "liar", frame(EVERYBODY, own, packet), "mate"), name
    for name, packet in forgeries(loose).items():
        assert arrives(nft, "loose", frame(EVERYBODY, loose, packet), "mate"), name
    # A tag of no VLAN is taken off by who receives it.
    for tags in (1, 2):
        tagged = frame(EVERYBODY, own, ip(MATE, GATEWAY), tags=tags)
        assert not arrives(nft, "liar", tagged, "mate")


def test_what_is_its_own_gets_through(nft: PrivateHost) -> None:
    own = mac(nft, "liar")
    for packet in (
        ip(OWN, MATE),
        ip(OWN6, MATE6),
        arp(OWN, OWN, own),
        arp("0.0.0.0", OWN, own, 1),
        icmp6(NA, OWN6, NODES, OWN6),
        icmp6(NS, NONE6, MATES, MATE6),
        icmp6(NS, OWN6, MATES, MATE6),
    ):
        assert arrives(nft, "liar", frame(EVERYBODY, own, packet), "mate"), packet
    for address in (MATE, GATEWAY, MATE6, GATEWAY6):
        assert nft.ping("liar", address)
    # An address that the workload gives itself is not its own.
    nft.run("ip", "-n", "liar", "addr", "add", "10.60.0.99/24", "dev", "eth0")
    assert not nft.ping("liar", MATE, "-I", "10.60.0.99") and nft.ping("liar", MATE)
    assert nft.reconcile().changes == []


def test_what_is_checked_is_kept_and_goes(nft: PrivateHost) -> None:
    own = mac(nft, "liar")
    forged = frame(EVERYBODY, own, ip(MATE, GATEWAY))
    for damage in ("delete table bridge runcnet", "flush chain bridge runcnet checked",
                   "flush set bridge runcnet checked"):  # fmt: skip
        nft.run("nft", *damage.split())
        assert arrives(nft, "liar", forged, "mate")
        assert nft.reconcile().report["converged"]
        assert not arrives(nft, "liar", forged, "mate") and nft.ping("liar", MATE)
    moved = DEFINITION.replace(OWN, "10.60.0.21").replace(OWN6, "fd00:60::21")
    nft.write("a.yaml", moved)
    assert nft.reconcile().report["converged"] and nft.reconcile().changes == []
    assert nft.ping("liar", MATE) and nft.ping("liar", MATE6)
    own = mac(nft, "liar")
    assert not arrives(nft, "liar", frame(EVERYBODY, own, ip(OWN, GATEWAY)), "mate")
    with nft.process("liar"):
        gone = "\n".join(line for line in moved.splitlines() if "liar" not in line)
        nft.write("a.yaml", gone)
        assert "is in use" in nft.reconcile("--once", check=False).report["held_back"][0]["reason"]
        assert nft.ping("liar", MATE)
        assert not arrives(nft, "liar", frame(EVERYBODY, own, ip(MATE, GATEWAY)), "mate")
    assert nft.reconcile().report["converged"]
    assert "10.60.0.21" not in nft.run("nft", "list", "table", "bridge", "runcnet").out
    nft.runcnet("teardown", "--yes")
    assert nft.run("nft", "list", "ruleset").out == ""


def test_one_network_or_interface_is_exempt(nft: PrivateHost) -> None:
    text = DEFINITION.replace('fd00:60::/64"]', 'fd00:60::/64"], antispoof: false')
    nft.write("a.yaml", text)
    assert nft.reconcile().report["converged"] and nft.reconcile().changes == []
    own = mac(nft, "liar")
    for name, packet in forgeries(own).items():
        assert arrives(nft, "liar", frame(EVERYBODY, own, packet), "mate"), name


def test_small_passes_let_new_addresses_through(nft: PrivateHost) -> None:
    place = f"unix:{nft.dir}/m.sock"
    with nft.daemon("--resync", "3600", "--metrics", place) as daemon:
        before = kinds(nft)
        for address in ("10.60.0.31", "10.60.0.32"):
            body = f"{{interfaces: {{network: red, addresses: {address}}}}}"
            nft.write("b.yaml", f"containers: {{new: {body}}}\n", age_s=0)
            there = f"{address}/24"
            wait_for(lambda there=there: stands(nft, there), what=daemon.log)
            # What it sends from its first packet on: nothing of it was dropped and sent again.
            own = mac(nft, "new")
            assert arrives(nft, "new", frame(EVERYBODY, own, ip(address, MATE)), "mate"), daemon.log
            assert not arrives(nft, "new", frame(EVERYBODY, own, ip(OWN, MATE)), "mate")
        after = kinds(nft)
        assert after["part"] >= before["part"] + 2, after
        # What the first address has left goes, too.
        table = ("nft", "list", "table", "bridge", "runcnet")
        wait_for(lambda: "10.60.0.31" not in nft.run(*table).out, what=daemon.log)
    assert nft.reconcile().changes == []


def stands(host: PrivateHost, address: str) -> bool:
    shown = host.run("ip", "-n", "new", "-j", "addr", "show", "dev", "eth0", check=False)
    return shown.code == 0 and address in host.addresses("eth0", "new")


def test_iptables_says_what_it_does_not_check(host: PrivateHost) -> None:
    host.write("a.yaml", DEFINITION)
    notes = host.reconcile().report["notes"]
    assert any("antispoof: on bridges MACs are checked, and addresses are not" in n for n in notes)
    own = mac(host, "liar")
    assert arrives(host, "liar", frame(EVERYBODY, own, ip(MATE, GATEWAY)), "mate")


@pytest.mark.parametrize("firewall", ["iptables", "nftables"])
@pytest.mark.parametrize("checked", [True, False])
def test_a_routed_network_is_checked_whole_or_not_at_all(
    host: PrivateHost, firewall: str, *, checked: bool
) -> None:
    host.firewall = firewall
    host.write(
        "a.yaml",
        f"networks: {{flat: {{type: routed, subnets: 10.64.0.0/24, antispoof: {str(checked).lower()}}}}}\n"
        "containers: {one: {interfaces: flat}, two: {interfaces: flat}}\n",
    )
    assert host.reconcile().report["converged"] and host.reconcile().changes == []
    with inside(host, ""):
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with inside(host, "one"):
        mouth = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    there = bytes.fromhex(str(host.host_end("one", "eth0")["address"]).replace(":", ""))
    with server, mouth:
        server.bind(("10.64.0.1", 7))
        server.settimeout(5.0)
        mouth.bind(("eth0", 0))
        own = host.addresses("eth0", "one")[0].partition("/")[0]
        for source in (WORLD, own):
            mouth.send(frame(there, mac(host, "one"), ip(source, "10.64.0.1")))
        heard = [server.recvfrom(64)[1][0]]
        if heard == [WORLD]:
            heard.append(server.recvfrom(64)[1][0])
    assert heard == ([own] if checked else [WORLD, own])
