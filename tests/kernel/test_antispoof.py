"""What a container can send in another's name: nothing. Forged frames are made here, byte by byte."""

import json
import socket
import struct

import pytest

from tests.kernel.test_part import kinds
from tests.support.host import PrivateHost, wait_for
from tests.support.talk import inside

DEFINITION = """
networks:
  red: {subnets: [10.60.0.0/24, "fd00:60::/64"]}
  open: {subnets: 10.61.0.0/24, antispoof: false}
  four: {subnets: 10.62.0.0/24}
containers:
  liar: {interfaces: {network: red, addresses: [10.60.0.11, "fd00:60::11"]}}
  mate: {interfaces: {network: red, addresses: [10.60.0.12, "fd00:60::12"]}}
  loose: {interfaces: {network: red, addresses: [10.60.0.13, "fd00:60::13"], antispoof: false}}
  wild: {interfaces: open}
  prey: {interfaces: open}
  plain: {interfaces: four}
  rogue: {interfaces: four}
  two: {interfaces: [four, red]}
"""
EVERYBODY = b"\xff" * 6
FORGED = bytes.fromhex("020000006601")
MINE = 0x88B5
"""The ethertype for experiments (IEEE 802)."""
PATIENCE_S = 5.0


def mac(host: PrivateHost, netns: str, link: str = "eth0") -> bytes:
    return bytes.fromhex(str(host.link(link, netns)["address"]).replace(":", ""))


def arrives(host: PrivateHost, sender: str, frame: bytes, receiver: str) -> bool:
    """Whether a frame gets from one container to the other.

    Behind it goes an honest one: what has not come before that one does not come.
    """
    honest = EVERYBODY + mac(host, sender) + struct.pack("!H", MINE)
    with inside(host, receiver):
        ear = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    with inside(host, sender):
        mouth = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with ear, mouth:
        ear.bind(("eth0", 3))
        mouth.bind(("eth0", 0))
        ear.settimeout(PATIENCE_S)
        mouth.send(frame)
        mouth.send(honest + b"honest")
        came = False
        while True:
            found = ear.recv(2048)
            came = came or found.startswith(frame)
            if found.startswith(honest + b"honest"):
                return came


def frame(target: bytes, source: bytes) -> bytes:
    return target + source + struct.pack("!H", MINE) + b"forged"


def table(host: PrivateHost, container: str) -> list[str]:
    """The MACs that the bridge is told to be behind a container's port."""
    port = host.host_end(container, "eth0")["ifname"]
    rows = json.loads(host.run("bridge", "-j", "fdb", "show", "dev", port).out)
    return [r["mac"] for r in rows if r.get("state") == "static" and "sticky" in r["flags"]]


def test_a_container_sends_from_its_own_mac_alone(bare: PrivateHost) -> None:
    bare.write("a.yaml", DEFINITION)
    assert bare.reconcile().report["converged"]
    own, mate, gateway = mac(bare, "liar"), mac(bare, "mate"), mac(bare, "", "red")
    assert arrives(bare, "liar", frame(mate, own), "mate")
    for source in (FORGED, mate, gateway):
        for target in (mate, EVERYBODY):
            assert not arrives(bare, "liar", frame(target, source), "mate")
    # Whoever is exempt sends what it likes, yet cannot take what others are told to have.
    for source in (FORGED, own):
        assert arrives(bare, "loose", frame(mate, source), "mate")
    assert bare.ping("liar", "10.60.0.12") and bare.ping("mate", "10.60.0.11")
    assert bare.ping("liar", "10.60.0.1") and bare.ping("liar", "fd00:60::12")
    for source in (FORGED, mac(bare, "prey"), mac(bare, "", "open")):
        assert arrives(bare, "wild", frame(EVERYBODY, source), "prey")
    assert bare.reconcile().changes == []


def test_a_frame_that_only_the_bridge_hears_opens_no_door(bare: PrivateHost) -> None:
    """Frames to the bridge's own groups are taken in before a port is found to be locked."""
    bare.write("a.yaml", DEFINITION)
    bare.reconcile()
    mate = mac(bare, "mate")
    lldp = bytes.fromhex("0180c200000e") + FORGED + struct.pack("!H", 0x88CC)
    assert not arrives(bare, "liar", lldp, "mate")
    assert not arrives(bare, "liar", frame(mate, FORGED), "mate")
    port = bare.host_end("liar", "eth0")["ifname"]
    bare.run("ip", "link", "set", port, "type", "bridge_slave", "learning", "on")
    arrives(bare, "liar", lldp, "mate")
    assert arrives(bare, "liar", frame(mate, FORGED), "mate")  # why `learning` is looked at
    assert bare.reconcile().report["converged"]
    assert not arrives(bare, "liar", frame(mate, FORGED), "mate")


def test_a_container_that_changes_its_mac_is_cut_off_and_another_goes_on(bare: PrivateHost) -> None:
    bare.write("a.yaml", DEFINITION)
    bare.reconcile()
    was = bare.link("eth0", "liar")["address"]
    bare.run("ip", "-n", "liar", "link", "set", "eth0", "address", "02:00:00:00:66:02")
    assert not bare.ping("liar", "10.60.0.12") and bare.ping("mate", "10.60.0.1")
    assert bare.reconcile().report["converged"]
    assert bare.link("eth0", "liar")["address"] == was and bare.ping("liar", "10.60.0.12")


def test_what_a_bridge_is_told_is_kept(bare: PrivateHost) -> None:
    bare.write("a.yaml", DEFINITION)
    bare.reconcile()
    assert bare.reconcile().changes == []  # from here on nothing but digests is compared
    own = bare.link("eth0", "liar")["address"]
    port = bare.host_end("liar", "eth0")["ifname"]
    assert table(bare, "liar") == [own] and table(bare, "loose") == table(bare, "wild") == []
    told = f"tell the bridge of {port} that {own} is behind it"
    bare.run("bridge", "fdb", "del", own, "dev", port, "master")
    assert bare.reconcile().changes == [f"container/liar: {told}"]
    assert bare.ping("liar", "10.60.0.12")
    bare.run("bridge", "fdb", "add", "02:00:00:00:66:03", "dev", port, "master", "static", "sticky")
    assert bare.reconcile().changes == [f"container/liar: forget 02:00:00:00:66:03 behind {port}"]
    there = bare.host_end("mate", "eth0")["ifname"]
    bare.run("bridge", "fdb", "replace", own, "dev", there, "master", "static", "sticky")
    assert bare.reconcile().changes == [f"container/liar: {told}"]
    assert table(bare, "liar") == [own] and bare.ping("liar", "10.60.0.1")
    # What the administrator adds is theirs, and counts.
    other = "02:00:00:00:66:01"
    bare.run("bridge", "fdb", "add", other, "dev", port, "master", "static")
    assert bare.reconcile().changes == []
    assert arrives(bare, "liar", frame(EVERYBODY, FORGED), "mate")
    bare.run("bridge", "fdb", "del", other, "dev", port, "master")
    bare.run("ip", "link", "set", port, "type", "bridge_slave", "locked", "off", "learning", "on")
    assert arrives(bare, "liar", frame(EVERYBODY, FORGED), "mate")
    assert len(bare.reconcile().changes) == 1
    assert not arrives(bare, "liar", frame(EVERYBODY, FORGED), "mate")
    bare.run("ip", "link", "set", port, "nomaster")
    assert bare.reconcile().report["converged"] and bare.reconcile().changes == []
    assert table(bare, "liar") == [own] and bare.ping("liar", "10.60.0.12")


def test_edits_move_what_a_bridge_is_told(bare: PrivateHost) -> None:
    bare.write("a.yaml", DEFINITION)
    bare.reconcile()
    new = "02:00:00:00:77:01"
    edited = DEFINITION.replace('"fd00:60::11"]', f'"fd00:60::11"], mac: "{new}"')
    for text, told in ((edited, [new]), (DEFINITION, None)):
        bare.write("a.yaml", text)
        assert bare.reconcile().report["converged"] and bare.reconcile().changes == []
        assert table(bare, "liar") == (told or [bare.link("eth0", "liar")["address"]])
        assert bare.ping("liar", "10.60.0.12")
    # Two that swap theirs.
    one, two = (bare.link("eth0", name)["address"] for name in ("liar", "mate"))
    swapped = DEFINITION.replace('"fd00:60::11"]', f'"fd00:60::11"], mac: "{two}"')
    swapped = swapped.replace('"fd00:60::12"]', f'"fd00:60::12"], mac: "{one}"')
    bare.write("a.yaml", swapped)
    assert bare.reconcile().report["converged"] and bare.reconcile().changes == []
    assert (table(bare, "liar"), table(bare, "mate")) == ([two], [one])
    assert bare.ping("liar", "10.60.0.12")
    off = DEFINITION.replace('"fd00:60::11"]', '"fd00:60::11"], antispoof: false')
    bare.write("a.yaml", off)
    assert bare.reconcile().report["converged"] and bare.reconcile().changes == []
    assert table(bare, "liar") == []
    assert arrives(bare, "liar", frame(mac(bare, "mate"), FORGED), "mate")
    bare.write("a.yaml", DEFINITION)
    assert bare.reconcile().report["converged"] and bare.reconcile().changes == []
    # What was learned while it was open is forgotten.
    assert not arrives(bare, "liar", frame(mac(bare, "mate"), FORGED), "mate")


def advertise(host: PrivateHost, sender: str, receiver: str) -> None:
    """A router advertisement with a prefix, from a neighbour; waits until it has arrived."""
    source = mac(host, sender)
    link_local = bytes.fromhex("fe80000000000000") + bytes.fromhex("0000000000000066")
    group = bytes.fromhex("ff02" + "00" * 13 + "01")
    prefix = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 86400, 86400, 0)
    prefix += bytes.fromhex("fd00066600000000") + bytes(8)
    body = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + prefix
    pseudo = link_local + group + struct.pack("!II", len(body), 58)
    words = struct.unpack(f"!{(len(pseudo) + len(body)) // 2}H", pseudo + body)
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    body = body[:2] + struct.pack("!H", ~total & 0xFFFF) + body[4:]
    header = struct.pack("!IHBB", 6 << 28, len(body), 58, 255) + link_local + group
    whole = bytes.fromhex("333300000001") + source + struct.pack("!H", 0x86DD) + header + body
    with inside(host, receiver):
        ear = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    with inside(host, sender):
        mouth = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with ear, mouth:
        ear.bind(("eth0", 3))
        mouth.bind(("eth0", 0))
        ear.settimeout(PATIENCE_S)
        mouth.send(whole)
        while ear.recv(2048) != whole:
            pass


def six(host: PrivateHost, netns: str, link: str = "eth0") -> list[str]:
    return [a for a in host.addresses(link, netns) if ":" in a]


def test_a_container_of_an_ipv4_network_has_no_ipv6(bare: PrivateHost) -> None:
    bare.write("a.yaml", DEFINITION)
    bare.reconcile()
    advertise(bare, "rogue", "plain")
    assert six(bare, "plain") == []
    assert bare.run("ip", "-n", "plain", "-6", "route", "show", "dev", "eth0").out == ""
    assert six(bare, "two") == [] and six(bare, "two", "eth1")
    # A network with IPv6 hands out all of it: no router is believed there, either.
    before = six(bare, "mate")
    advertise(bare, "liar", "mate")
    assert six(bare, "mate") == before
    assert "ra" not in bare.run("ip", "-n", "mate", "-6", "route", "show", "default").out.split()
    # The kernel does believe one where it is let.
    key = "net.ipv6.conf.eth0.disable_ipv6"
    bare.run("ip", "netns", "exec", "plain", "sysctl", "-qw", f"{key}=0")
    advertise(bare, "rogue", "plain")
    assert any(a.startswith("fd00:666:") for a in six(bare, "plain"))
    assert bare.reconcile().changes == ["container/plain: set net/ipv6/conf/eth0/disable_ipv6 to 1"]
    assert six(bare, "plain") == []


def test_links_of_a_workload_follow_or_do_as_is_said(bare: PrivateHost) -> None:
    said = "sysctls: {net.ipv6.conf.default.disable_ipv6: 0}"
    bare.write("a.yaml", DEFINITION + f"  vpn: {{interfaces: four, {said}}}\n")
    assert bare.reconcile().report["converged"] and bare.reconcile().changes == []
    for name, has in (("plain", False), ("vpn", True), ("two", True)):
        assert six(bare, name) == []
        bare.run("ip", "-n", name, "link", "add", "own", "type", "bridge")
        run = bare.run("ip", "-n", name, "addr", "add", "fd00:77::1/64", "dev", "own", check=False)
        assert (run.code == 0) == has, name
    assert bare.reconcile().changes == []


def test_ipv6_comes_and_goes_with_the_network(bare: PrivateHost) -> None:
    bare.write("a.yaml", DEFINITION)
    bare.reconcile()
    both = DEFINITION.replace("10.62.0.0/24", '[10.62.0.0/24, "fd00:62::/64"]')
    bare.write("a.yaml", both)
    assert bare.reconcile().report["converged"] and bare.reconcile().changes == []
    assert bare.ping("plain", "fd00:62::1")
    bare.write("a.yaml", DEFINITION)
    assert bare.reconcile().report["converged"] and bare.reconcile().changes == []
    assert six(bare, "plain") == [] and bare.ping("plain", "10.62.0.1")
    # What a workload has given itself stays.
    bare.sh(
        "ip netns exec plain sysctl -qw net.ipv6.conf.eth0.disable_ipv6=0; "
        "ip -n plain addr add fd00:99::1/64 dev eth0 nodad"
    )
    assert bare.reconcile().changes == [] and "fd00:99::1/64" in six(bare, "plain")


@pytest.mark.parametrize(
    "network, interface, said",
    [
        (
            "type: routed, ",
            ", antispoof: false",
            "checks all members of the routed network n alike",
        ),
        ("type: routed, antispoof: false, ", ", antispoof: true", "say antispoof: true there"),
        ("external: true, ", ", antispoof: true", "nothing is checked on somebody else's bridge"),
        ("external: true, antispoof: true, ", "", "nothing is checked on somebody else's bridge"),
    ],
)
def test_what_cannot_be_is_refused(
    bare: PrivateHost, network: str, interface: str, said: str
) -> None:
    bare.write(
        "a.yaml",
        f"networks: {{n: {{{network}subnets: 10.63.0.0/24}}}}\n"
        f"containers: {{c: {{interfaces: {{network: n{interface}}}}}}}\n",
    )
    result = bare.reconcile(check=False)
    assert result.code == 2 and said in result.report["rejected"][0]["message"]


def test_the_daemon_hears_what_bridges_are_told(bare: PrivateHost) -> None:
    bare.write("a.yaml", DEFINITION)
    with bare.daemon("--resync", "3600", "--metrics", str(bare.dir / "m.sock")) as daemon:
        own = bare.link("eth0", "liar")["address"]
        port = bare.host_end("liar", "eth0")["ifname"]
        before = kinds(bare)
        for script in (
            f"bridge fdb del {own} dev {port} master",
            f"bridge fdb add 02:00:00:00:66:03 dev {port} master static sticky",
            f"bridge fdb replace {own} dev {bare.host_end('mate', 'eth0')['ifname']} master static sticky",
        ):
            bare.sh(script)
            wait_for(lambda: table(bare, "liar") == [own], what=daemon.log)
            assert bare.ping("liar", "10.60.0.12")
        # Traffic, and what an administrator adds, are nothing to it.
        between = kinds(bare)
        assert between["full"] == before["full"] and between["part"] >= before["part"] + 3
        bare.sh(f"bridge fdb add 02:00:00:00:66:04 dev {port} master static")
        for name in ("wild", "loose", "mate"):
            assert bare.ping(name, str(bare.addresses("eth0", name)[0]).partition("/")[0])
        bare.sh(f"bridge fdb del {own} dev {port} master")
        wait_for(lambda: own in table(bare, "liar"), what=daemon.log)
        assert kinds(bare)["part"] <= between["part"] + 2, daemon.log
