"""What goes wrong on a host: shell scripts against one interface, one network, or the host as a whole.

Each may fail: what it is against may just be away. Where only an operator can mend it, the way to do so
stands beside it.
"""

import random
from typing import NamedTuple

from reconciler.core.names import host_interface
from tests.soak.declared import Declared, Member, Net, Port
from tests.soak.edits import ANCHOR


class Blow(NamedTuple):
    """One sabotage. The script may name {end}, {netns}, {name}, {other}, {link}, {gateway}."""

    script: str
    mend: str = ""
    """What the operator has to do about it; must do no harm where it is not needed."""
    kills: bool = False
    """The namespace may be another one afterwards."""
    strips: bool = False
    """Addresses of it may be nowhere but in the state dir."""
    unguards: bool = False
    """The rules go that say that the program itself turned forwarding on."""
    unmarks: bool = False
    """One of the two witnesses of ownership goes: nobody can know whose it is without the other."""


END = {
    "host end down": Blow("ip link set {end} down"),
    "host end deleted": Blow("ip link del {end}", strips=True),
    "host end renamed": Blow("ip link set {end} down; ip link set {end} name zz{number}"),
    "host end without a bridge": Blow("ip link set {end} nomaster"),
    "host end in another bridge": Blow("ip link set {end} master br1"),
    "host end unlocked": Blow("ip link set {end} type bridge_slave locked off learning on"),
    "what the bridge is told": Blow("bridge fdb show dev {end} | while read m rest; do bridge fdb del $m dev {end} master; done"),
    "the bridge told too much": Blow(
        "bridge fdb add 02:00:00:00:06:{byte} dev {end} master static sticky"
    ),
    "host end's MTU": Blow("ip link set {end} mtu 1200"),
    "host end's MAC": Blow("ip link set {end} address 02:00:00:00:09:{byte}"),
    "host end's group": Blow("ip link set {end} group 7"),
    "host end's alias": Blow("ip link set {end} alias nobody", unmarks=True),
    "host end's alias gone": Blow("ip link set {end} alias ''", unmarks=True),
    "host end elsewhere": Blow("ip link set {end} netns stranger", strips=True),
    "host end's neighbours": Blow("ip neigh flush dev {end} nud permanent"),
    "host end's routes": Blow("ip route flush dev {end}; ip -6 route flush dev {end}"),
    "a route too many": Blow("ip route add 10.200.{number}.9/32 dev {end} proto 0x72"),
    "an address on the host end": Blow("ip addr add 10.201.{number}.1/32 dev {end}"),
    "another link in its place": Blow(
        # By that name it is found again, whatever it is called meanwhile.
        "ip link del {end} && ip link add {end} type bridge && ip link property add dev {end} altname their-{end}",
        "ip link del their-{end}",
        strips=True,
    ),
    "inner end down": Blow("ip -n {netns} link set {inner} down", strips=True),
    "inner end deleted": Blow("ip -n {netns} link del {inner}", strips=True),
    "inner end renamed": Blow("ip -n {netns} link set {inner} down; ip -n {netns} link set {inner} name zz9", strips=True),
    "inner end's MTU": Blow("ip -n {netns} link set {inner} mtu 1290"),
    "inner end's MAC": Blow("ip -n {netns} link set {inner} address 02:00:00:00:08:{byte}"),
    "inner end hears routers": Blow(
        "ip netns exec {netns} sysctl -qw net/ipv6/conf/{inner}/disable_ipv6=0 net/ipv6/conf/{inner}/accept_ra=1"
    ),
    "inner addresses": Blow("ip -n {netns} addr flush dev {inner}", strips=True),
    "inner routes": Blow("ip -n {netns} route flush dev {inner}; ip -n {netns} -6 route flush dev {inner}"),
    "inner neighbours": Blow("ip -n {netns} neigh flush dev {inner} nud permanent"),
    "inner end on the host": Blow(
        "ip -n {netns} link set {inner} down; ip -n {netns} link set {inner} name yy{number}; "
        "ip -n {netns} link set yy{number} netns $$",
        strips=True,
    ),
    "churn of its address": Blow(
        "for i in 1 2 3 4 5 6 7 8; do ip -n {netns} addr add 10.202.0.$i/32 dev {inner}; "
        "ip -n {netns} addr del 10.202.0.$i/32 dev {inner}; done"
    ),
}  # fmt: skip
SPACE = {
    "lo down": Blow("ip -n {netns} link set lo down"),
    "lo's alias": Blow("ip -n {netns} link set lo alias x", unmarks=True),
    "default routes": Blow("ip -n {netns} route del default; ip -n {netns} -6 route del default"),
    "a default route of somebody": Blow(
        "ip -n {netns} route del default; ip -n {netns} route add default dev lo",
        "ip -n {netns} route del default dev lo",
    ),
    "rules": Blow("ip -n {netns} rule flush protocol 114; ip -n {netns} -6 rule flush protocol 114"),
    "ping groups": Blow("ip netns exec {netns} sysctl -qw net.ipv4.ping_group_range='1 0'"),
    "somaxconn": Blow("ip netns exec {netns} sysctl -qw net.core.somaxconn=99"),
    "path unmounted": Blow("umount -l /run/netns/{netns}", kills=True),
    "namespace deleted": Blow("ip netns del {netns}", kills=True),
    "all namespaces of w deleted": Blow(
        "for f in /run/netns/w-* /run/netns/ns-w-*; do ip netns del ${{f##*/}}; done", kills=True
    ),
    "another namespace in its place": Blow(
        "ip netns del {netns} && ip netns add {netns}",
        "ip -n {netns} link show lo | grep -q 'alias runcnet:' || ip netns del {netns}",
        kills=True,
    ),
    "a file in its place": Blow(
        "umount -l /run/netns/{netns}; rm /run/netns/{netns}; echo x >/run/netns/{netns}",
        "test \"$(cat /run/netns/{netns} 2>/dev/null)\" = x && rm /run/netns/{netns}",
        kills=True,
    ),
}  # fmt: skip
NETWORK = {
    "bridge down": Blow("ip link set {link} down"),
    "bridge deleted": Blow("ip link del {link}"),
    "bridge renamed": Blow("ip link set {link} down; ip link set {link} name zz{link}"),
    "bridge's addresses": Blow("ip addr flush dev {link}"),
    "bridge's MTU": Blow("ip link set {link} mtu 1333"),
    "bridge's MAC": Blow("ip link set {link} address 02:00:00:00:07:{byte}"),
    "bridge's alias": Blow("ip link set {link} alias x", unmarks=True),
    "bridge's neighbours": Blow("ip neigh flush dev {link} nud permanent"),
    "another link in the bridge's place": Blow(
        "ip link del {link} && ip link add {link} type bridge && ip link property add dev {link} altname their-{link}",
        "ip link del their-{link}",
    ),
    "gateway": Blow("ip addr del {gateway}/32 dev lo; ip addr del {gateway}/16 dev {link}"),
}
HOST = {
    "forwarding": Blow("sysctl -qw net.ipv4.ip_forward=0"),
    "IPv6 forwarding": Blow("sysctl -qw net.ipv6.conf.all.forwarding=0"),
    "link churn": Blow(
        "for i in $(seq {number}); do echo link add ch$i type veth peer name dh$i; "
        "echo link set ch$i up; echo link del ch$i; done | ip -force -batch -"
    ),
    "address churn": Blow(
        "for i in $(seq 250); do echo addr add 10.203.0.$i/32 dev lo; "
        "echo addr del 10.203.0.$i/32 dev lo; done | ip -force -batch -"
    ),
}
RULES = {
    "none": {},
    "iptables": {
        "NAT rules flushed": Blow("iptables-legacy -t nat -F RUNCNET-POSTROUTING"),
        "forward rules flushed": Blow(
            "iptables-legacy -F RUNCNET-FORWARD; ip6tables-legacy -F RUNCNET-FORWARD", unguards=True
        ),
        "jump gone": Blow("iptables-legacy -D FORWARD -j RUNCNET-FORWARD"),
        "a rule too many": Blow("iptables-legacy -A RUNCNET-FORWARD -j ACCEPT"),
    },
    "nftables": {
        "NAT rules flushed": Blow("nft flush chain inet runcnet postrouting4"),
        "forward rules flushed": Blow(
            "nft flush chain inet runcnet forward4; nft flush chain inet runcnet forward6", unguards=True
        ),
        "jumps gone": Blow("nft flush chain inet runcnet forward"),
        "a rule too many": Blow("nft add rule inet runcnet forward4 accept"),
        "the same rules twice": Blow("nft list table inet runcnet | nft -f -"),
        "a chain too many": Blow("nft add chain inet runcnet strange"),
        "table gone": Blow("nft delete table inet runcnet", unguards=True),
        "elements gone": Blow("nft flush set inet runcnet members4; nft flush set inet runcnet homes6"),
        "elements too many": Blow("nft add element inet runcnet members4 '{{ \"zz{number}\" }}'"),
        "the bridges' table gone": Blow("nft delete table bridge runcnet"),
        "addresses gone": Blow("nft flush set bridge runcnet addresses4; nft flush set bridge runcnet targets6"),
        "addresses too many": Blow(
            "nft add element bridge runcnet addresses4 '{{ \"zz{number}\" . 10.204.0.{number} }}'"
        ),
        "nobody is checked": Blow("nft flush set bridge runcnet checked; nft flush chain bridge runcnet prerouting"),
    },
}  # fmt: skip


class Saboteur:
    """Draws sabotage, and remembers what it has done since the last quiet moment."""

    def __init__(self, rng: random.Random, declared: Declared, *, firewall: str) -> None:
        self.rng = rng
        self.declared = declared
        self.host = {**HOST, **RULES[firewall]}
        self.mends: list[str] = []
        self.killed: set[str] = set()
        self.wounded: set[str] = set()
        """Containers whose addresses may be nowhere but in the state dir."""
        self.unmarked = False
        self.unguarded = False

    def quiet(self) -> None:
        """All is mended."""
        self.mends.clear()
        self.killed.clear()
        self.wounded.clear()
        self.unmarked = False
        self.unguarded = False

    def draw(self, *, may_unmark: bool) -> tuple[str, str]:
        """What is done, and the script that does it."""
        table = self.rng.choices([END, SPACE, NETWORK, self.host], [5, 4, 2, 1])[0]
        fit = {k: blow for k, blow in table.items() if may_unmark or not blow.unmarks}
        kind = self.rng.choice(sorted(fit))
        blow = fit[kind]
        if table is END:
            target, values = self._of_an_end()
        elif table is SPACE:
            target, values = self._of_a_space(blow)
        elif table is NETWORK:
            target, values = self._of_a_network()
        else:
            target, values = "the host", {"number": str(self.rng.randrange(10, 200))}
        self.unmarked |= blow.unmarks
        self.unguarded |= blow.unguards
        if blow.mend:
            self.mends.append(blow.mend.format(**values))
        if blow.kills:
            self.killed.add(target)
        if "w-*" in blow.script:
            self._hit_replicas()
        if blow.strips or blow.kills:
            self.wounded.add(target)
        return f"{kind} ({target})", blow.script.format(**values)

    def _hit_replicas(self) -> None:
        names = {m.name for m in self.declared.members() if m.box.replicas is not None}
        self.killed |= names
        self.wounded |= names

    def _of_an_end(self) -> tuple[str, dict[str, str]]:
        ends = [(m, name, port) for m in self.declared.members() for name, port in m.ports]
        member, inner, port = self.rng.choice(ends)
        values = {
            "end": end_name(member, inner, port),
            "inner": inner,
            "netns": member.netns,
            "number": str(member.box.number),
            "byte": f"{self.rng.randrange(256):02x}",
        }
        return member.name, values

    def _of_a_space(self, blow: Blow) -> tuple[str, dict[str, str]]:
        members = [m for m in self.declared.members() if not blow.mend or m.name != ANCHOR]
        if "unmount" not in blow.script and blow.kills:
            members = [m for m in members if m.name != ANCHOR]
        member = self.rng.choice(members)
        return member.name, {"netns": member.netns}

    def _of_a_network(self) -> tuple[str, dict[str, str]]:
        net: Net = self.rng.choice(list(self.declared.networks.values()))
        values = {
            "link": net.name,
            "gateway": net.gateways[0],
            "byte": f"{self.rng.randrange(256):02x}",
        }
        return f"network {net.name}", values


def end_name(member: Member, interface: str, port: Port) -> str:
    """The host's end of an interface."""
    if port.host_name:
        return f"h-{member.box.name}-{port.network}"
    return host_interface(port.network, member.name, interface)
