"""What stands, compared with what is declared. Each check answers with findings; none: all is right."""

import contextlib
import ipaddress
import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from tests.soak.declared import Declared, LeaseKey, Member, given_addresses
from tests.soak.edits import ANCHOR
from tests.soak.sabotage import end_name
from tests.support.host import PrivateHost

PROTOCOL = "0x72"
FOREIGN = """
ip netns add stranger; ip -n stranger link set lo up; ip -n stranger addr add 10.250.9.1/32 dev lo
ip link add dock0 type bridge; ip addr add 10.250.0.1/24 dev dock0; ip link set dock0 up
ip link add v0 type veth peer name v1; ip link set v0 master dock0; ip link set v0 up; ip link set v1 up
ip link set v1 alias 'somebody:1'; ip addr add 10.250.1.1/32 dev lo
ip route add 10.251.0.0/16 via 10.250.0.9 proto 99; ip rule add from 10.250.0.0/24 lookup 77 pref 77
ip neigh add 10.250.0.7 lladdr 02:00:00:00:00:07 dev dock0 nud permanent
"""
FOREIGN_RULES = {
    "none": ":",
    "iptables": """
iptables-legacy -N MINE; iptables-legacy -A MINE -s 10.250.0.0/24 -j ACCEPT
iptables-legacy -A FORWARD -j MINE; iptables-legacy -t nat -A POSTROUTING -s 10.250.0.0/24 -j MASQUERADE
""",
    "nftables": """
nft add table inet mine; nft 'add chain inet mine forward { type filter hook forward priority 1; }'
nft add rule inet mine forward ip saddr 10.250.0.0/24 accept
nft 'add set inet mine homes4 { type ifname; elements = { "dock0" }; }'
nft add table bridge mine; nft 'add chain bridge mine c { type filter hook prerouting priority -251; }'
nft add rule bridge mine c iifname dock0 accept
""",
}
FOREIGN_INSIDE = f"""
ip -n {ANCHOR} link add vpn type bridge; ip -n {ANCHOR} addr add 10.252.0.1/24 dev vpn
ip -n {ANCHOR} link set vpn up; ip -n {ANCHOR} route add 10.253.0.0/16 dev vpn
ip -n {ANCHOR} rule add from 10.252.0.0/24 lookup 78 pref 78
"""
GUARD = (
    '"chain": "forward4", "comment": "runcnet:host", "expr": [{"drop": null}]',
    '"chain": "forward6", "comment": "runcnet:host", "expr": [{"drop": null}]', "switched", '"iifkind"', "--physdev-is-bridged",
    '-A RUNCNET-FORWARD -m comment --comment "runcnet:host" -j DROP',
)  # fmt: skip
"""What only the rules of the router guard say."""
LOOK_FOREIGN = f"""
ip -o addr show dev dock0; ip -o link show dev v0; ip -o link show dev v1
ip -o addr show dev v1; ip -n stranger -o addr; ip -n stranger -br link; ip -o addr show dev lo | grep 10.250
ip route show 10.251.0.0/16; ip rule show pref 77; ip neigh show dev dock0 nud permanent
ip -n {ANCHOR} -o addr show dev vpn; ip -n {ANCHOR} route show 10.253.0.0/16
ip -n {ANCHOR} rule show pref 78; stat -Lc %i /run/netns/{ANCHOR}
"""
OWN_LINKS = {"lo", "eth0", "dock0", "v0", "v1"}
FILES = {"internet", "stranger"}


def rules(host: PrivateHost) -> list[str]:
    """Our rules in their order, without counters and dates; where nftables have them, all else too."""
    if host.firewall == "nftables":
        return [line for table in ("inet", "bridge") for line in _table(host, table)]
    return list(_chains(host))


def _chains(host: PrivateHost) -> Iterator[str]:
    # A table that was used once stays, empty, as long as the host does.
    for program in ("iptables-legacy-save", "ip6tables-legacy-save"):
        table = ""
        for line in host.run(program).out.splitlines():
            if line.startswith("*"):
                table = line
            elif "RUNCNET" in line:
                yield f"{program} {table} {line.split(' [')[0]}"


def _nft(host: PrivateHost, family: str) -> list[tuple[str, dict[str, Any]]]:
    """What our table of that family holds, by kind; nothing where there is none."""
    run = host.run("nft", "-j", "list", "table", family, "runcnet", check=False)
    found = json.loads(run.out)["nftables"] if run.code == 0 else []
    return [(kind, body) for item in found for kind, body in item.items() if kind != "metainfo"]


def _table(host: PrivateHost, family: str) -> Iterator[str]:
    # A chain's rules keep their order; that of chains and sets means nothing.
    for kind, body in sorted(_nft(host, family), key=lambda item: item[1].get("chain", "")):
        body.pop("handle", None)
        # What the kernel adds by itself, and what containers have, which differs from host to host.
        elements = body.pop("elem", []) if kind in ("set", "map") else []
        yield f"{kind} {'-A ' if kind == 'rule' else ''}{json.dumps(body)}"
        if family == "inet" and elements and body["name"] != "switched":
            yield from (f"{body['name']}: {json.dumps(element)}" for element in elements)


def foreign(host: PrivateHost) -> str:
    """All that is somebody else's, as text."""
    text = host.sh(LOOK_FOREIGN, check=False).out
    if host.firewall == "nftables":
        text += host.sh("nft list table inet mine; nft list table bridge mine").out
    elif host.firewall == "iptables":
        saved = host.run("iptables-legacy-save").out.splitlines()
        text += "\n".join(x for x in saved if "MINE" in x or "10.250" in x)
    # Link-local addresses are tentative at first.
    return "\n".join(line for line in text.splitlines() if "fe80:" not in line)


class Seen:
    """Everything of the host and of its namespaces, read once."""

    def __init__(self, host: PrivateHost, members: Iterable[Member]) -> None:
        self.host = host
        out = host.sh(
            "ip -j -d link; ip -j addr; bridge -j fdb show; ip -j -d neigh show nud all; "
            "ip -j -d -N -4 route show table all; ip -j -d -N -6 route show table all"
        ).out.splitlines()
        self.links, addresses, self.table, self.neighbours, four, six = (
            json.loads(line) for line in out
        )
        self.routes = four + six
        self.host_addresses = {link["ifname"]: _global(link) for link in addresses}
        self.files = set(host.run("ls", "/run/netns").out.split())
        self.spaces: dict[str, dict[str, Any]] = {}
        members = [m for m in members if m.netns in self.files]
        names = " ".join(m.netns for m in members)
        script = (
            f"for f in {names}; do stat -Lc %i /run/netns/$f; ip -n $f -j -d addr || echo '[]'; "
            "ip -n $f -j route show default; ip -n $f -j -6 route show default; "
            "ip netns exec $f sysctl -n net.core.somaxconn net.ipv4.ping_group_range; done"
        )
        lines = host.sh(script, check=False).out.splitlines() if names else []
        for member, at in zip(members, range(0, len(lines), 6), strict=False):
            inode, links, default4, default6, somaxconn, groups = lines[at : at + 6]
            self.spaces[member.name] = {
                "inode": int(inode),
                "links": {x["ifname"]: x for x in json.loads(links) if x},
                "defaults": {4: json.loads(default4 or "[]"), 6: json.loads(default6 or "[]")},
                "sysctls": (int(somaxconn), groups.split()),
            }


def _global(link: dict[str, Any]) -> set[str]:
    return {
        f"{a['local']}/{a['prefixlen']}" for a in link["addr_info"] if a.get("scope") == "global"
    }


def _text(version: int, value: str) -> str:
    """An address as the state dir keeps it, in hexadecimal digits."""
    made = ipaddress.IPv4Address if version == 4 else ipaddress.IPv6Address
    return str(made(int(value, 16)))


class Oracle:
    """Compares. `leases` and `inodes` are what the last comparison has seen."""

    def __init__(self, host: PrivateHost, declared: Declared) -> None:
        self.host = host
        self.declared = declared
        self.leases: dict[LeaseKey, str] = {}
        self.inodes: dict[str, int] = {}
        self._expected_rules: tuple[str, list[str]] = ("", [])

    def findings(self) -> list[str]:
        """Everything that is not as declared."""
        members = list(self.declared.members())
        seen = Seen(self.host, members)
        self.leases = self._book()
        self.inodes = {name: space["inode"] for name, space in seen.spaces.items()}
        return [
            *self._differ("files of the netns dir", {m.netns for m in members} | FILES, seen.files),
            *self._leases(),
            *self._links(seen, members),
            *self._on_the_host(seen, members),
            *(text for member in members for text in self._inside(seen, member)),
            *self._pings(members),
            *self._rules(),
            *self._checked(seen, members),
        ]

    @staticmethod
    def _differ(what: str, wanted: Iterable[Any], seen: Iterable[Any]) -> Iterator[str]:
        """Compared as multisets: twice is one too many."""
        one, other = Counter(list(wanted)), Counter(list(seen))
        for item in sorted((one - other).elements(), key=str):
            yield f"{what}: {item} is missing"
        for item in sorted((other - one).elements(), key=str):
            yield f"{what}: {item} is too much"

    # -- leases ---------------------------------------------------------------------------------

    def _book(self) -> dict[LeaseKey, str]:
        path = self.host.state / "state.db"
        if not path.exists():
            return {}  # it was lost just now
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            rows = db.execute("SELECT container, network, interface, version, address FROM lease")
            return {LeaseKey(*row[:4]): _text(row[3], row[4]) for row in rows}

    def unseen(self) -> set[LeaseKey]:
        """Leases whose address no namespace of the netns dir carries at this moment."""
        script = 'for file in /run/netns/*; do ip -n "${file##*/}" -o addr; done'
        words = self.host.sh(script, check=False).out.split()
        carried = {word.partition("/")[0] for word in words if "/" in word}
        return {key for key, address in self._book().items() if address not in carried}

    def _leases(self) -> Iterator[str]:
        yield from self._differ("leases", self.declared.leases(), self.leases)
        holders = Counter((key.network, address) for key, address in self.leases.items())
        yield from (f"leases: {place} is held twice" for place, n in holders.items() if n > 1)

    def addresses(self, member: Member) -> Iterator[tuple[str, str, str]]:
        """Interface, network and address of everything a container carries."""
        for name, port in member.ports:
            net = self.declared.networks[port.network]
            given = given_addresses(net, member.box, port)
            for version in net.versions:
                key = LeaseKey(member.name, port.network, name, version)
                yield name, port.network, given.get(version) or self.leases.get(key, "no lease")

    # -- the host -------------------------------------------------------------------------------

    def _links(self, seen: Seen, members: list[Member]) -> Iterator[str]:
        nets = self.declared.networks.values()
        wanted = [(n.name, f"runcnet:{n.name}", None) for n in nets if n.kind == "bridge"]
        for member in members:
            for name, port in member.ports:
                bridge = self.declared.networks[port.network].kind == "bridge"
                alias = f"runcnet:{port.network}/{member.name}/{name}"
                wanted.append(
                    (end_name(member, name, port), alias, port.network if bridge else None)
                )
        found = [
            (x["ifname"], x.get("ifalias", ""), x.get("master"))
            for x in seen.links
            if x["ifname"] not in OWN_LINKS
        ]
        yield from self._differ("links", wanted, found)
        ours = {name for name, _, _ in wanted}
        for link in seen.links:
            if link["ifname"] in ours and "UP" not in link["flags"]:
                yield f"links: {link['ifname']} is down"

    def _on_the_host(self, seen: Seen, members: list[Member]) -> Iterator[str]:
        on_lo: set[str] = {a for a in seen.host_addresses["lo"] if a.startswith("10.250.")}
        for net in self.declared.networks.values():
            gateways = {self.declared.prefixed(net.name, a) for a in net.gateways}
            if net.kind == "routed":
                on_lo |= gateways
            else:
                carried = seen.host_addresses.get(net.name, set())
                yield from self._differ(f"addresses of {net.name}", gateways, carried)
        yield from self._differ("addresses of lo", on_lo, seen.host_addresses["lo"])
        neighbours, routes, told = [], [], set()
        for member in members:
            links = seen.spaces.get(member.name, {"links": {}})["links"]
            ends = {name: end_name(member, name, port) for name, port in member.ports}
            for name, network, address in self.addresses(member):
                routed = self.declared.networks[network].kind == "routed"
                mac = links.get(name, {}).get("address", "no MAC")
                neighbours.append((address, ends[name] if routed else network, mac))
                if routed:
                    routes.append((address, ends[name]))
                else:
                    told.add((ends[name], mac))
        yield from self._differ(
            "what bridges are told",
            told,
            [(r["ifname"], r["mac"]) for r in seen.table if "sticky" in r.get("flags", ())],
        )
        yield from self._differ(
            "neighbours",
            neighbours,
            [
                (n["dst"], n["dev"], n.get("lladdr", "no MAC"))
                for n in seen.neighbours
                if str(n.get("protocol", "")) in (PROTOCOL, "114") and "PERMANENT" in n["state"]
            ],
        )
        yield from self._differ(
            "host routes",
            routes,
            [
                (r["dst"], r.get("dev"))
                for r in seen.routes
                if str(r.get("protocol")) in (PROTOCOL, "114")
            ],
        )

    # -- namespaces -----------------------------------------------------------------------------

    def _inside(self, seen: Seen, member: Member) -> Iterator[str]:
        space = seen.spaces.get(member.name)
        if space is None:
            return  # said already
        links = {k: v for k, v in space["links"].items() if k != "vpn"}
        yield from self._differ(
            f"interfaces of {member.name}", ["lo", *(n for n, _ in member.ports)], links
        )
        for name, link in links.items():
            if "UP" not in link["flags"]:
                yield f"{member.name}/{name} is down"
        if links.get("lo", {}).get("ifalias") != f"runcnet:{member.name}":
            yield f"{member.name}: lo carries another mark"
        carried: dict[str, set[str]] = {name: set() for name, _ in member.ports}
        for name, network, address in self.addresses(member):
            carried[name].add(self.declared.prefixed(network, address))
        for name, port in member.ports:
            if name not in links:
                continue
            yield from self._differ(
                f"addresses of {member.name}/{name}", carried[name], _global(links[name])
            )
            net = self.declared.networks[port.network]
            mtu = port.mtu or net.options.get("mtu") or 1500
            if links[name]["mtu"] != mtu:
                yield f"{member.name}/{name} has MTU {links[name]['mtu']}, not {mtu}"
        nets = [self.declared.networks[port.network] for _, port in member.ports]
        for version in (4, 6):
            wanted = any(
                version in n.versions and n.options.get("internal") != "true" for n in nets
            )
            if wanted != (len(space["defaults"][version]) > 0):
                yield f"{member.name}: default routes of IPv{version} {space['defaults'][version]}"
        somaxconn, groups = space["sysctls"]
        if groups != ["0", "2147483647"] or member.box.somaxconn not in (None, somaxconn):
            yield f"{member.name}: sysctls {space['sysctls']}"

    def _pings(self, members: list[Member]) -> Iterator[str]:
        targets = [address for member in members for _, _, address in self.addresses(member)]
        script = "\n".join(
            f"(ping -nqc1 -W1 {a} || ping -nqc1 -W3 {a}) >/dev/null 2>&1 || echo {a} &"
            for a in targets
        )
        for address in self.host.sh(f"{script}\nwait", check=False).out.split():
            yield f"no answer from {address}"

    # -- rules ------------------------------------------------------------------------------------

    def _rules(self) -> Iterator[str]:
        """Those of a host that has never seen anything but these files."""
        if self.host.firewall == "none":
            return
        key = self.declared.text("00-networks.yaml")
        if self._expected_rules[0] != key:
            fresh = PrivateHost()
            try:
                fresh.firewall = self.host.firewall
                for file, text in self.declared.texts().items():
                    fresh.write(file, text)
                fresh.reconcile("--once")
                self._expected_rules = key, rules(fresh)
            finally:
                fresh.close()
        yield from self._differ("rules", self._expected_rules[1], rules(self.host))
        if not list(self._differ("", self._expected_rules[1], rules(self.host))):
            order = [line for line in rules(self.host) if "-A" in line]
            if order != [line for line in self._expected_rules[1] if "-A" in line]:
                yield "rules: their order is another one"

    def _checked(self, seen: Seen, members: list[Member]) -> Iterator[str]:
        """From which addresses members of bridges may send, where nftables look at that."""
        if self.host.firewall != "nftables":
            return
        checked: list[str] = []
        wanted: list[tuple[str, str]] = []
        bridged = {(m.name, name): port for m in members for name, port in m.ports
                   if self.declared.networks[port.network].kind == "bridge"}  # fmt: skip
        for member in members:
            links = seen.spaces.get(member.name, {}).get("links", {})
            for name, port in member.ports:
                if (member.name, name) not in bridged:
                    continue
                end = end_name(member, name, port)
                checked.append(end)
                wanted += [(end, a) for i, _, a in self.addresses(member) if i == name]
                if 6 in self.declared.networks[port.network].versions and name in links:
                    wanted.append((end, _own_link_local(links[name]["address"])))
        sets = {
            body["name"]: _values(body) for kind, body in _nft(self.host, "bridge") if kind == "set"
        }
        six = [(end, address) for end, address in wanted if ":" in address]
        yield from self._differ("checked ends", checked, sets.get("checked", []))
        for name, pairs in (
            ("addresses4", [pair for pair in wanted if pair not in six]),
            ("addresses6", six),
            ("targets6", six),
        ):
            yield from self._differ(name, pairs, sets.get(name, []))


def _own_link_local(mac: str) -> str:
    """The link-local address that follows from a MAC (RFC 4291, EUI-64)."""
    one, *rest = bytes.fromhex(mac.replace(":", ""))
    number = bytes([one ^ 2, *rest[:2], 0xFF, 0xFE, *rest[2:]])
    return str(ipaddress.IPv6Address(bytes.fromhex("fe80000000000000") + number))


def _values(body: dict[str, Any]) -> list[Any]:
    """The elements of a set: links, or links and addresses."""
    found = []
    for element in body.get("elem", []):
        value = element["elem"]["val"] if "elem" in element else element
        if isinstance(value, dict):
            end, address = value["concat"]
            # What packets are asked for at an offset is shown as a number.
            raw = isinstance(address, str) and address.startswith("0x")
            found.append((end, str(ipaddress.ip_address(int(address, 16) if raw else address))))
        else:
            found.append(value)
    return found
