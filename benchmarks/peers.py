"""What people would use instead: each makes N containers on one bridge, in a process of its own.

Run as a program (`python peers.py NAME NETNS_DIR N`), since the whole process is timed.
"""

import ctypes
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

CLONE_NEWNET, MS_BIND = 0x40000000, 4096
CNI = Path("/usr/lib/cni")
NETAVARK = next(
    (p for p in ("/usr/lib/podman/netavark", "/usr/libexec/podman/netavark") if os.path.exists(p)),
    "",
)
BRIDGE = [
    "link add br0 type bridge",
    "link set br0 up",
    "addr add 10.0.0.1/16 dev br0",
]


def address(number: int) -> str:
    """The n-th container's."""
    return f"10.0.{(number + 2) >> 8}.{(number + 2) & 255}"


def by_hand(directory: str, count: int) -> None:
    """The commands that an operator types, one process each."""
    lines = ["set -e", *(f"ip {words}" for words in BRIDGE)]
    for i in range(count):
        lines += [
            f"ip link add vh{i} type veth peer name vg{i}",
            f"ip link set vh{i} up",
            f"ip link set vh{i} master br0",
            f"ip netns add c-{i}",
            f"ip link set vg{i} netns c-{i}",
            f"ip -n c-{i} link set vg{i} name eth0",
            f"ip -n c-{i} addr add {address(i)}/16 dev eth0",
            f"ip -n c-{i} link set eth0 up",
            f"ip -n c-{i} link set lo up",
            f"ip -n c-{i} route add default via 10.0.0.1",
        ]
    subprocess.run(["sh"], input="\n".join(lines), text=True, check=True)


def batch(directory: str, count: int) -> None:
    """`ip -batch` on the host, and one for each namespace: it cannot change over within a batch."""
    host = list(BRIDGE)
    for i in range(count):
        host += [
            f"netns add c-{i}",
            f"link add vh{i} type veth peer name eth0 netns c-{i}",
            f"link set vh{i} master br0 up",
        ]
    subprocess.run(["ip", "-batch", "-"], input="\n".join(host), text=True, check=True)
    for i in range(count):
        inside = (
            f"addr add {address(i)}/16 dev eth0\nlink set eth0 up\nlink set lo up\n"
            "route add default via 10.0.0.1\n"
        )
        subprocess.run(["ip", "-n", f"c-{i}", "-batch", "-"], input=inside, text=True, check=True)


def with_pyroute2(directory: str, count: int) -> None:
    """The netlink library of Python."""
    from pyroute2 import IPRoute as Route
    from pyroute2 import NetNS, netns

    with Route() as host:
        host.link("add", ifname="br0", kind="bridge")
        bridge = host.link_lookup(ifname="br0")[0]
        host.link("set", index=bridge, state="up")
        host.addr("add", index=bridge, address="10.0.0.1", prefixlen=16)
        for i in range(count):
            name = f"c-{i}"
            netns.create(name)
            host.link(
                "add",
                ifname=f"vh{i}",
                kind="veth",
                peer={"ifname": "eth0", "net_ns_fd": name},
            )
            end = host.link_lookup(ifname=f"vh{i}")[0]
            host.link("set", index=end, master=bridge, state="up")
            with NetNS(name) as inside:
                eth0 = inside.link_lookup(ifname="eth0")[0]
                inside.link("set", index=1, state="up")
                inside.addr("add", index=eth0, address=address(i), prefixlen=16)
                inside.link("set", index=eth0, state="up")
                inside.route("add", dst="default", gateway="10.0.0.1")


def spaces(directory: str, count: int) -> None:
    """Bare namespaces, as an engine makes them before it asks a plugin."""
    libc = ctypes.CDLL(None, use_errno=True)
    own = os.open("/proc/self/ns/net", os.O_RDONLY)
    for i in range(count):
        path = f"{directory}/c-{i}"
        Path(path).touch(mode=0)
        if libc.unshare(CLONE_NEWNET) or libc.mount(
            b"/proc/self/ns/net", path.encode(), None, MS_BIND, None
        ):
            raise OSError(ctypes.get_errno(), path)
    libc.setns(own, CLONE_NEWNET)
    os.close(own)


class Call(NamedTuple):
    """One plugin that a runtime calls."""

    program: str
    stdin: str
    environment: dict[str, str]


def cni_calls(command: str, name: str, netns: str, *, masquerade: bool = False) -> list[Call]:
    """The loopback and bridge plugins for one container, in a runtime's order: backwards for DEL."""
    bridge = {
        "cniVersion": "0.4.0", "name": "n", "type": "bridge", "bridge": "br0", "isGateway": True,
        "ipMasq": masquerade,
        "ipam": {"type": "host-local", "subnet": "10.0.0.0/16", "dataDir": "/run/cni",
                 "routes": [{"dst": "0.0.0.0/0"}]},
    }  # fmt: skip
    loopback = {"cniVersion": "0.4.0", "name": "lo", "type": "loopback"}
    environment = {
        "CNI_COMMAND": command, "CNI_CONTAINERID": name, "CNI_NETNS": netns, "CNI_PATH": str(CNI),
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    }  # fmt: skip
    calls = [
        Call(
            str(CNI / str(config["type"])), json.dumps(config), {**environment, "CNI_IFNAME": link}
        )
        for link, config in (("lo", loopback), ("eth0", bridge))
    ]
    return calls if command == "ADD" else calls[::-1]


def cni(directory: str, count: int, *, masquerade: bool = False) -> None:
    """The bridge and loopback plugins."""
    spaces(directory, count)
    for i in range(count):
        for call in cni_calls("ADD", f"c-{i}", f"{directory}/c-{i}", masquerade=masquerade):
            subprocess.run(
                [call.program],
                input=call.stdin.encode(),
                env=call.environment,
                stdout=subprocess.DEVNULL,
                check=True,
            )


def cni_masquerade(directory: str, count: int) -> None:
    """The same, with masquerade."""
    cni(directory, count, masquerade=True)


def netavark(directory: str, count: int) -> None:
    """Podman's network program (which masquerades in any case)."""
    spaces(directory, count)
    network = {
        "name": "n", "id": "a" * 64, "driver": "bridge", "network_interface": "br0",
        "subnets": [{"subnet": "10.0.0.0/16", "gateway": "10.0.0.1"}], "ipv6_enabled": False,
        "internal": False, "dns_enabled": False, "ipam_options": {"driver": "host-local"},
        "created": "2024-01-01T00:00:00Z",
    }  # fmt: skip
    for i in range(count):
        asked = {
            "container_id": f"{i:064x}",
            "container_name": f"c-{i}",
            "networks": {"n": {"interface_name": "eth0", "static_ips": [address(i)]}},
            "network_info": {"n": network},
        }
        subprocess.run(
            [NETAVARK, "--config", "/run/netavark", "setup", f"{directory}/c-{i}"],
            input=json.dumps(asked).encode(),
            stdout=subprocess.DEVNULL,
            check=True,
        )


PEERS: dict[str, Callable[[str, int], None]] = {
    "ip by hand": by_hand,
    "ip -batch": batch,
    "pyroute2": with_pyroute2,
    "CNI bridge + loopback": cni,
    "CNI with masquerade": cni_masquerade,
    "netavark": netavark,
}
MASQUERADING = frozenset({"CNI with masquerade", "netavark"})
"""Those that write NAT rules, too: held against runcnet with masquerade as well."""


def absent(name: str) -> str:
    """Why a peer cannot run here; empty: it can."""
    if name == "pyroute2":
        import importlib.util

        return "" if importlib.util.find_spec("pyroute2") else "pyroute2 is not installed (pip)"
    if name.startswith("CNI"):
        there = (CNI / "bridge").exists()
        return "" if there else "containernetworking-plugins is not installed (apt)"
    if name == "netavark":
        return "" if NETAVARK else "netavark is not installed (apt)"
    return "" if shutil.which("ip") else "iproute2 is not installed (apt)"


if __name__ == "__main__":
    PEERS[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
