"""The policy as nftables: the same verdict on every packet as the iptables chains, and its changes."""

import json
from typing import Any, NamedTuple

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core import chains, nft, nftset, xtables
from reconciler.core.model import Address, HostPort, Subnet, parse_address, parse_subnet
from reconciler.core.nftset import EMPTY, Chain, Element, Table
from reconciler.core.policy import NetworkPolicy, Policy, Publication

ENDS = {
    "red": ("red0", 0),
    "blue": ("blue0", 0),
    "far": ("rnfar", 0x72000001),
    "near": ("rnnear", 7),
}
SUBNETS = {name: (parse_subnet(f"10.{i}.0.0/24"), parse_subnet(f"fd0{i}::/64"))
           for i, name in enumerate(ENDS, 1)}  # fmt: skip
OUTSIDE = ("eth0", "eth1", "lo")
DENIED = tuple(
    map(parse_subnet, ("10.2.0.0/24", "10.0.0.0/8", "203.0.113.0/24", "fd03::/64", "::/0"))
)
PORTS = (22, 53, 54, 80, 8080, 8081)
PROTOCOLS = ("tcp", "udp", "sctp")
HOSTS = {4: ("192.0.2.2", "127.0.0.1", "203.0.113.7"), 6: ("2001:db8::2", "2001:db8:9::7")}


class Packet(NamedTuple):
    """What a rule can ask about."""

    version: int
    in_link: str
    out_link: str
    source: int
    target: int
    protocol: str
    port: int
    icmp: int
    replies: bool
    translated: bool
    astray: bool

    def group(self, link: str) -> int:
        return next((group for name, group in ENDS.values() if name == link), 0)


# -- iptables, walked through -------------------------------------------------------------------


def matches(rule: xtables.Rule, p: Packet) -> bool:
    """Whether an iptables rule of ours meets the packet."""

    def inside(subnet: Subnet | None, value: int) -> bool:
        return subnet is None or subnet.value <= value <= subnet.last

    return (
        rule.in_link in ("", p.in_link)
        and rule.out_link in ("", p.out_link)
        and (not rule.not_in_link or rule.not_in_link != p.in_link)
        and rule.in_group in (0, p.group(p.in_link))
        and rule.out_group in (0, p.group(p.out_link))
        and inside(rule.source, p.source)
        and inside(rule.destination, p.target)
        and (not rule.replies or p.replies)
        and (not rule.translated or p.translated)
        and (not rule.astray or p.astray)
        and not rule.bridged
        and rule.protocol in ("", p.protocol)
        and (rule.ports == (0, 0) or rule.ports[0] <= p.port <= rule.ports[1])
        and rule.icmp in (0, p.icmp)
    )


def walk(have: xtables.Chains, chain: str, p: Packet) -> tuple[str, object] | None:
    """The verdict of a chain, and where DNAT leads."""
    for rule in have.get(chain, ()):
        if not matches(rule, p):
            continue
        if rule.target == "RETURN":
            return None
        if rule.to is not None:
            address, first, _, base = rule.to
            run = rule.ports[1] > rule.ports[0]
            return "DNAT", (address.value, first + p.port - base if run else first)
        if rule.target in ("ACCEPT", "DROP", "MASQUERADE"):
            return rule.target, None
        found = walk(have, rule.target, p)
        if found is not None:
            return found
    return None


# -- nftables, walked through -------------------------------------------------------------------


class Nft:
    """Interprets a table, as far as ours go; what it does not know it refuses."""

    def __init__(self, table: Table, p: Packet) -> None:
        self.table, self.p = table, p

    def value(self, left: Any) -> Any:
        ((kind, what),) = left.items()
        p = self.p
        if kind == "concat":
            return tuple(self.value(one) for one in what)
        if kind == "meta":
            return {
                "iifname": p.in_link, "oifname": p.out_link, "iifgroup": p.group(p.in_link),
                "oifgroup": p.group(p.out_link), "l4proto": p.protocol, "nfproto": f"ipv{p.version}",
                "iif": p.in_link, "oif": p.out_link, "iifkind": "veth",
            }[what["key"]]  # fmt: skip
        if kind == "payload":
            protocol, field = what["protocol"], what["field"]
            if protocol in ("ip", "ip6"):
                fits = p.version == {"ip": 4, "ip6": 6}[protocol]
                return {"saddr": p.source, "daddr": p.target}[field] if fits else None
            if protocol == "th":
                return p.port
            kinds = {135: "nd-neighbor-solicit", 136: "nd-neighbor-advert"}
            return kinds.get(p.icmp) if p.protocol == "ipv6-icmp" else None
        if kind == "ct":
            word = {"state": ("established", p.replies), "status": ("dnat", p.translated)}[
                what["key"]
            ]
            return word[0] if word[1] else None
        assert kind == "fib", left
        return not p.astray if what["result"] == "oif" else "local"

    def found(self, name: str, value: Any) -> Element | None:
        """The element of a set that a value is in."""
        key = value if isinstance(value, tuple) else (value,)
        if None in key:
            return None
        for one, element in self.table.elements[name].items():
            if all(
                a[0] <= b <= a[1] if isinstance(a, tuple) else a == b
                for a, b in zip(one, key, strict=True)
            ):
                return element
        return None

    def holds(self, match: Any) -> bool:
        value, right = self.value(match["left"]), match["right"]
        if isinstance(right, str) and right.startswith("@"):
            return self.found(right[1:], value) is not None if right != "@switched" else False
        if isinstance(right, dict):
            subnet = parse_subnet(f"{right['prefix']['addr']}/{right['prefix']['len']}")
            same = value is not None and subnet.value <= value <= subnet.last
        elif right == "::":
            same = value == 0 and self.p.version == 6
        else:
            same = value in right if isinstance(right, list) else value == right
        return same if match["op"] == "==" else not same

    def walk(self, chain: str) -> tuple[str, object] | None:
        for rule in self.table.chains.get(chain, Chain()).rules:
            for expression in json.loads(rule.code)[0]:
                ((kind, what),) = expression.items()
                if kind == "match":
                    if not self.holds(what):
                        break
                elif kind == "vmap":
                    element = self.found(what["data"][1:], self.value(what["key"]))
                    if element is None:
                        break
                    assert isinstance(element.data, str)
                    return element.data.upper(), None
                elif kind == "dnat":
                    lead = what["addr"]["map"]
                    element = self.found(lead["data"][1:], self.value(lead["key"]))
                    fits = {"ip": 4, "ip6": 6}[what["family"]] == self.p.version
                    if element is None or not fits:
                        break
                    assert isinstance(element.data, tuple)
                    goal = element.data if element.data[1:] else (*element.data, self.p.port)
                    return "DNAT", goal
                elif kind in ("jump", "goto"):
                    verdict = self.walk(what["target"])
                    if verdict is not None or kind == "goto":
                        return verdict
                elif kind == "return":
                    return None
                elif kind in ("accept", "drop", "masquerade"):
                    return kind.upper(), None
                else:
                    raise AssertionError(expression)
        return None


# -- policies and packets -----------------------------------------------------------------------


def network(name: str, **changes: object) -> NetworkPolicy:
    """A network with every default."""
    link, group = ENDS[name]
    values: dict[str, object] = {
        "name": name, "link": "" if group else link, "group": group, "subnets": SUBNETS[name],
        "uplinks": (), "masquerade": (4,), "inbound": "established", "internal": False,
        "isolate_members": False,
    }  # fmt: skip
    return NetworkPolicy(**{**values, **changes})  # type: ignore[arg-type]


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    names = sorted(draw(st.sets(st.sampled_from(sorted(ENDS)), min_size=1)))
    ports = st.tuples(st.sampled_from(PROTOCOLS), st.sampled_from(PORTS), st.sampled_from(PORTS))
    opened = st.lists(ports, max_size=3).map(
        lambda found: tuple(HostPort(n, min(a, b), max(a, b)) for n, a, b in found)
    )
    networks = [
        network(
            name,
            subnets=draw(st.sampled_from((SUBNETS[name], SUBNETS[name][:1], SUBNETS[name][1:]))),
            uplinks=draw(st.sampled_from(((), ("eth0",), ("eth0", "eth1")))),
            masquerade=draw(st.sampled_from(((), (4,), (4, 6)))),
            inbound=draw(st.sampled_from(("established", "open"))),
            internal=draw(st.booleans()),
            isolate_members=draw(st.booleans()),
            allow=tuple(sorted(draw(st.sets(st.sampled_from(sorted(ENDS)))) - {name})),
            host_access=draw(st.one_of(st.booleans(), opened)),
            denied=tuple(sorted(draw(st.sets(st.sampled_from(DENIED))))),
        )
        for name in names
    ]
    found: dict[object, Publication] = {}
    for n in networks:
        if n.internal:
            continue
        for version in (s.version for s in n.subnets):
            subnet = next(s for s in n.subnets if s.version == version)
            for _ in range(draw(st.integers(0, 2))):
                count = draw(st.sampled_from((1, 1, 2)))
                at = draw(st.sampled_from((None, *HOSTS[version])))
                one = Publication(
                    network=n.name,
                    container="c",
                    version=version,
                    protocol=draw(st.sampled_from(PROTOCOLS)),
                    host_ip=parse_address(at) if at else None,
                    host_port=draw(st.sampled_from(PORTS)),
                    count=count,
                    target=Address(version, subnet.value + draw(st.sampled_from((10, 11)))),
                    target_port=draw(st.sampled_from((80, 8080))),
                )
                if not any(one.lead.meets(other.lead) for other in found.values()):
                    found[one.lead] = one
    return Policy(
        networks=tuple(networks),
        guards=draw(st.sampled_from(((), (4,), (4, 6)))),
        publications=tuple(sorted(found.values(), key=lambda p: p.rank)),
    )


@st.composite
def packets(draw: st.DrawFn) -> Packet:
    version = draw(st.sampled_from((4, 6)))
    links = [*(link for link, _ in ENDS.values()), *OUTSIDE, "eth9"]
    addresses = [s.value + host for subnets in SUBNETS.values() for s in subnets
                 if s.version == version for host in (10, 11)]  # fmt: skip
    addresses += [parse_address(a).value for a in HOSTS[version]]
    return Packet(
        version,
        draw(st.sampled_from(links)),
        draw(st.sampled_from(links)),
        draw(st.sampled_from([*addresses, 0] if version == 6 else addresses)),
        draw(st.sampled_from(addresses)),
        draw(st.sampled_from((*PROTOCOLS, "ipv6-icmp"))),
        draw(st.sampled_from((*PORTS, 9))),
        draw(st.sampled_from((135, 136, 128))),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.booleans()),
    )


HOOKS = {
    "filter": (("forward", xtables.FORWARD), ("input", xtables.INPUT)),
    "nat": (("prerouting", xtables.PORTS), ("postrouting", xtables.POSTROUTING)),
    "raw": (("raw", xtables.PREROUTING),),
}


@settings(max_examples=200)
@given(policies(), st.lists(packets(), min_size=12, max_size=12))
def test_every_packet_meets_the_same_verdict(policy: Policy, many: list[Packet]) -> None:
    table = nft.wanted(policy, have=EMPTY, bridged=())
    for name, hooks in HOOKS.items():
        both = {
            v: chains.wanted(policy, version=v, table=name, have={}, bridged=False) for v in (4, 6)
        }
        for packet in many:
            # Who has no address yet is let pass by xt_rpfilter itself.
            if packet.astray and packet.version == 6 and not packet.source:
                packet = packet._replace(astray=False)
            for base, chain in hooks:
                if base == "input" and packet.protocol == "ipv6-icmp" and packet.version == 4:
                    continue
                one = walk(both[packet.version], chain, packet)
                other = Nft(table, packet).walk(base)
                if base in ("input", "raw") or one is None or other is None:
                    # To say nothing and to accept are the same, at the end.
                    one = one if one is not None and one[0] != "ACCEPT" else None
                    other = other if other is not None and other[0] != "ACCEPT" else None
                assert one == other, (base, packet, policy)


def test_the_walk_tells_verdicts_apart() -> None:
    # The property above would hold of two walks that always say the same.
    policy = Policy(networks=(network("blue"), network("red")), guards=(4, 6))
    table = nft.wanted(policy, have=EMPTY, bridged=())
    red, blue, out = SUBNETS["red"][0].value + 10, SUBNETS["blue"][0].value + 10, 1
    base = Packet(4, "red0", "eth0", red, out, "tcp", 80, 0, False, False, False)
    assert Nft(table, base).walk("forward") == ("ACCEPT", None)
    assert Nft(table, base).walk("postrouting") == ("MASQUERADE", None)
    across = base._replace(out_link="blue0", target=blue)
    assert Nft(table, across).walk("forward") == ("DROP", None)
    assert Nft(table, across).walk("postrouting") is None
    assert Nft(table, base._replace(in_link="eth1")).walk("forward") == ("DROP", None)


# -- what changes ---------------------------------------------------------------------------------


@settings(max_examples=60)
@given(policies(), policies())
def test_a_table_that_is_as_wanted_asks_for_nothing(one: Policy, other: Policy) -> None:
    have = nft.wanted(one, have=EMPTY, bridged=())
    assert nftset.script(nft.wanted(one, have=have, bridged=()), have) == []
    want = nft.wanted(other, have=have, bridged=())
    lines, told = nftset.script(want, have), nftset.differences(want, have)
    assert bool(lines) == bool(told) == (want != have)
    assert nftset.script(nft.wanted(Policy(), have=EMPTY, bridged=()), EMPTY) == []


def shown(text: str) -> bytes:
    """The code of a rule as nft would print it."""
    return nftset.rule_code(json.loads(text), nftset.HOST)


def test_versions_of_nft_that_print_otherwise_say_the_same() -> None:
    state = '[{{"match": {{"op": "{}", "left": {{"ct": {{"key": "state"}}}}, "right": {}}}}}]'
    assert shown(state.format("in", '["established", "related"]')) == shown(
        state.format("==", '{"set": ["related", "established"]}')
    )
    assert shown(state.format("in", '["new"]')) == shown(state.format("==", '"new"'))
    assert shown(state.format("!=", '"new"')) != shown(state.format("==", '"new"'))


def test_a_change_of_elements_is_no_more_than_that() -> None:
    ports = tuple(
        Publication(network="red", container=f"c{i}", version=4, protocol="tcp", host_ip=None,
                    host_port=8000 + i, count=1, target=parse_address("10.1.0.10"), target_port=80)
        for i in range(3)
    )  # fmt: skip
    policy = Policy(networks=(network("red"),), publications=ports)
    have = nft.wanted(policy, have=EMPTY, bridged=())
    fewer = msgspec.structs.replace(policy, publications=ports[:2])
    want = nft.wanted(fewer, have=have, bridged=())
    assert nftset.script(want, have) == ["delete element inet runcnet ports4 { tcp . 8002 }"]
    assert nftset.script(have, want) == [
        'add element inet runcnet ports4 { tcp . 8002 comment "runcnet:red/c2" : 10.1.0.10 . 80 }'
    ]


def test_what_is_the_administrators_is_never_named_in_a_change() -> None:
    have = nft.wanted(Policy(guards=(4,)), have=EMPTY, bridged=())
    written = {**have.chains, "user": Chain((nftset.Rule(b"theirs"),)), "user_more": Chain()}
    have = have._replace(chains=written, shapes={**have.shapes, "user_set": nft.SHAPES["closed4"]})
    for policy in (Policy(), Policy(guards=(6,)), Policy(networks=(network("red"),))):
        want = nft.wanted(policy, have=have, bridged=(4, 6))
        lines = nftset.script(want, have)
        assert lines and not [line for line in lines if "user" in line and "jump user" not in line]
        assert "delete table inet runcnet" not in lines


def test_what_their_rules_need_is_emptied_and_stays() -> None:
    have = nft.wanted(Policy(networks=(network("red"),)), have=EMPTY, bridged=())
    have = have._replace(
        chains={**have.chains, "user": Chain((nftset.Rule(b"theirs"),))},
        held=frozenset({"members4", "leaving6"}),
    )
    lines = nftset.script(nft.wanted(Policy(), have=have, bridged=()), have)
    assert (
        "flush set inet runcnet members4" in lines and "flush chain inet runcnet leaving6" in lines
    )
    assert not [line for line in lines if line.startswith("delete") and line.endswith(" members4")]
    assert (
        "delete set inet runcnet members6" in lines
        and "delete chain inet runcnet leaving4" in lines
    )


def test_a_name_that_is_too_long_for_a_comment_is_still_told_apart() -> None:
    long = [f"{'n' * 64}/{'c' * 127}{i}" for i in range(2)]
    first, second = map(nftset.comment, long)
    assert first != second and max(len(first), len(second)) <= nftset.COMMENT_BYTES
    assert first.startswith("runcnet:" + "n" * 64 + "/")
    assert nftset.comment("red/web") == "runcnet:red/web"


def test_kept_elements_push_wanted_ones_aside() -> None:
    old = Policy(networks=(network("red", denied=(parse_subnet("10.2.0.0/24"),)),))
    have = nft.wanted(old, have=EMPTY, bridged=())
    # The same bridge under another name: a set takes no element inside another one.
    other = msgspec.structs.replace(
        network("red", denied=(parse_subnet("10.0.0.0/8"),)), name="rouge"
    )
    want = nft.wanted(Policy(networks=(other,), kept=frozenset({"red"})), have=have, bridged=())
    assert want.elements["denied4"] == have.elements["denied4"]


def test_elements_as_nft_takes_them() -> None:
    shape = nft.SHAPES["open_group4"]
    assert nftset.element_text(shape, (7, "tcp", (8, 15)), Element("runcnet:x")) == (
        '7 . tcp . 8-15 comment "runcnet:x"'
    )
    shape = nft.SHAPES["denied6"]
    key = ("red0", (0, (1 << 128) - 1))
    assert nftset.element_text(shape, key) == '"red0" . ::/0'
    shape = nft.SHAPES["subnets4"]
    assert nftset.element_text(shape, ((1, 6),)) == "0.0.0.1-0.0.0.6"
    assert nftset.element_text(shape, ((9, 9),)) == "0.0.0.9"
