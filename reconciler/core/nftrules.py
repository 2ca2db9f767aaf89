"""The rules of the table `inet runcnet`, in the order in which packets meet them. Pure.

They are the same whatever is declared; where the sets that a rule looks up are empty, it is left
out. Each is written in nft's language and in the JSON that `nft -j` prints for it.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from reconciler.core.nftset import ADDRESS, HOST, ND_TARGET, Rule, rule_code

SIDES = {"": "ifname", "_group": "devgroup"}
"""What tells a network's links: how its sets' names end, and the type of the key."""
PAIRS = {("", ""): "", ("", "_group"): "_to_group", ("_group", ""): "_from_group",
         ("_group", "_group"): "_groups"}  # fmt: skip
SWITCHED = "switched"
"""Bridges that switch packets which br_netfilter shows: (link, link)."""


class Word(NamedTuple):
    """A part of a rule: as nft takes it, as `nft -j` prints it, and the set that it looks up."""

    text: str
    code: Any
    set: str = ""


def _meta(key: str) -> Word:
    plain = key if key.startswith(("iif", "oif")) and key != "iifkind" else f"meta {key}"
    return Word(plain, {"meta": {"key": key}})


def _payload(protocol: str, field: str) -> Word:
    return Word(f"{protocol} {field}", {"payload": {"protocol": protocol, "field": field}})


def _joined(words: Sequence[Word]) -> Word:
    text = " . ".join(word.text for word in words)
    code = words[0].code if len(words) == 1 else {"concat": [word.code for word in words]}
    return Word(text, code)


def _is(left: Word, right: Any, text: str = "", op: str = "==") -> Word:
    sign = "!= " if op == "!=" else ""
    code = {"match": {"op": op, "left": left.code, "right": right}}
    return Word(f"{left.text} {sign}{text or right}", code)


def _among(name: str, *keys: Word) -> Word:
    """The packet's key is in the set."""
    return _is(_joined(keys), f"@{name}")._replace(set=name)


def _decided(name: str, *keys: Word) -> Word:
    """What the map says about the packet's key."""
    key = _joined(keys)
    code = {"vmap": {"key": key.code, "data": f"@{name}"}}
    return Word(f"{key.text} vmap @{name}", code, name)


def _led(name: str, version: int, *keys: Word) -> Word:
    """To where the map leads."""
    key = _joined(keys)
    family = {4: "ip", 6: "ip6"}[version]
    goal = {"map": {"key": key.code, "data": f"@{name}"}}
    code = {"dnat": {"family": family, "addr": goal}}
    return Word(f"dnat {family} to {key.text} map @{name}", code, name)


def to(verb: str, chain: str) -> Word:
    return Word(f"{verb} {chain}", {verb: {"target": chain}})


ACCEPT, DROP, RETURN, MASQUERADE = (
    Word(name, {name: None}) for name in ("accept", "drop", "return", "masquerade")
)
REPLIES = Word(
    "ct state established,related",
    {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "related"]}},
)
TRANSLATED = Word(
    "ct status dnat", {"match": {"op": "in", "left": {"ct": {"key": "status"}}, "right": "dnat"}}
)
LOCAL = Word(
    "fib daddr type local",
    {"match": {"op": "==", "left": {"fib": {"result": "type", "flags": ["daddr"]}},
               "right": "local"}},
)  # fmt: skip
ASTRAY = Word(
    "fib saddr . iif oif missing",
    {"match": {"op": "==", "left": {"fib": {"result": "oif", "flags": ["saddr", "iif"]}},
               "right": False}},
)  # fmt: skip
PORTED = _is(_meta("l4proto"), {"set": ["tcp", "udp", "sctp"]}, "{ tcp, udp, sctp }")
SOLICITED = _is(
    _payload("icmpv6", "type"),
    {"set": ["nd-neighbor-solicit", "nd-neighbor-advert"]},
    "{ nd-neighbor-solicit, nd-neighbor-advert }",
)
PROTOCOL, PORT = _meta("l4proto"), _payload("th", "dport")
IN = {"": _meta("iifname"), "_group": _meta("iifgroup")}
OUT = {"": _meta("oifname"), "_group": _meta("oifgroup")}
SEEN_SWITCHED = Word(
    f"add @{SWITCHED} {{ iif . iif }}",
    {"set": {"op": "add", "elem": {"concat": [{"meta": {"key": "iif"}}] * 2},
             "set": f"@{SWITCHED}"}},
)  # fmt: skip

Words = tuple[Word, ...]


def rule(words: Words) -> Rule:
    text = " ".join(word.text for word in words)
    return Rule(rule_code([word.code for word in words], HOST), f'{text} comment "{HOST}"')


GUARD = rule((DROP,))


def _address(version: int, field: str) -> Word:
    return _payload({4: "ip", 6: "ip6"}[version], field)


def version_is(version: int) -> Word:
    return _is(_meta("nfproto"), f"ipv{version}")


def forward(v: int) -> Iterator[Words]:
    """What settles a packet first, then what leaves a network, then what enters one."""
    for side in SIDES:
        yield (_decided(f"within_sealed{side}{v}", IN[side], OUT[side]),)
    for side in SIDES:
        yield _among(f"sealed{side}{v}", IN[side]), DROP
        yield _among(f"sealed{side}{v}", OUT[side]), DROP
    for side in SIDES:
        yield REPLIES, _among(f"members{side}{v}", OUT[side]), ACCEPT
        yield REPLIES, _among(f"published{side}{v}", IN[side]), ACCEPT
    for side in SIDES:
        yield (_decided(f"within{side}{v}", IN[side], OUT[side]),)
    for side in SIDES:
        yield _among(f"denied{side}{v}", IN[side], _address(v, "daddr")), DROP
    for side in SIDES:
        yield _among(f"members{side}{v}", IN[side]), to("goto", f"leaving{v}")
    for side in SIDES:
        yield _among(f"members{side}{v}", OUT[side]), to("goto", f"entering{v}")


def leaving(v: int) -> Iterator[Words]:
    """From a network to another one, or out."""
    for (one, other), pair in PAIRS.items():
        yield _among(f"allowed{pair}{v}", IN[one], OUT[other]), ACCEPT
    for side in SIDES:
        yield TRANSLATED, _among(f"published{side}{v}", OUT[side]), ACCEPT
        yield _among(f"members{side}{v}", OUT[side]), DROP
    for side in SIDES:
        yield _among(f"exits{side}{v}", IN[side], OUT[""]), ACCEPT
        yield _among(f"exit_any{side}{v}", IN[side]), ACCEPT
    yield (DROP,)


def entering(v: int) -> Iterator[Words]:
    """Into a network from what is none."""
    for side in SIDES:
        yield _among(f"entrances{side}{v}", IN[""], OUT[side]), ACCEPT
        yield _among(f"entrance_any{side}{v}", OUT[side]), ACCEPT
        yield TRANSLATED, _among(f"published{side}{v}", OUT[side]), ACCEPT
    yield (DROP,)


def input_(v: int) -> Iterator[Words]:
    yield REPLIES, ACCEPT
    if v == 6:
        yield SOLICITED, ACCEPT
    for side in SIDES:
        yield PORTED, _among(f"open{side}{v}", IN[side], PROTOCOL, PORT), ACCEPT
        yield _among(f"closed{side}{v}", IN[side]), DROP


def ports() -> Iterator[Words]:
    for v in ADDRESS:
        yield PORTED, _led(f"ports_at{v}", v, _address(v, "daddr"), PROTOCOL, PORT)
        yield PORTED, _led(f"runs_at{v}", v, _address(v, "daddr"), PROTOCOL, PORT)
        yield PORTED, _led(f"ports{v}", v, PROTOCOL, PORT)
        yield PORTED, _led(f"runs{v}", v, PROTOCOL, PORT)


def postrouting(v: int) -> Iterator[Words]:
    source, target = _address(v, "saddr"), _address(v, "daddr")
    for side in SIDES:
        yield TRANSLATED, _among(f"hairpin{side}{v}", OUT[side], source), MASQUERADE
    yield TRANSLATED, _among(f"selves{v}", OUT["_group"], source, target), MASQUERADE
    # What goes to a network of ours keeps its source address, wherever it comes from.
    yield _among(f"subnets{v}", target), RETURN
    for side in SIDES:
        yield _among(f"homes{side}{v}", OUT[side]), RETURN
    yield _among(f"masquerade{v}", source, OUT[""]), MASQUERADE
    yield _among(f"masquerade_any{v}", source), MASQUERADE


def raw(v: int) -> Iterator[Words]:
    if v == 6:
        # Who looks for a duplicate of its address has none yet.
        yield _is(_address(6, "saddr"), "::"), RETURN
    yield _among(f"astray{v}", IN["_group"]), ASTRAY, DROP


CHECKED: Words = (_among("checked", _meta("iifname")), to("jump", "checked"))


def senders() -> Iterator[Words]:
    """What a port of a bridge may send from. Tagged frames are in no set: a tag of no VLAN is taken off
    by whoever receives it, and what is inside is believed."""
    port = IN[""]
    yield _among("addresses4", port, _address(4, "saddr")), RETURN
    arp = _payload("arp", "saddr ip")
    yield _among("addresses4", port, arp), RETURN
    yield _is(arp, "0.0.0.0"), RETURN  # who looks for a duplicate of its address
    kind = _payload("icmpv6", "type")
    routers = ["nd-router-advert", "nd-redirect"]
    yield _is(kind, {"set": routers}, f"{{ {', '.join(routers)} }}"), DROP
    target = Word(ND_TARGET, {"payload": {"base": "th", "offset": 64, "len": 128}})
    advert = _is(kind, "nd-neighbor-advert")
    yield (
        advert,
        _among("targets6", port, target),
        _among("addresses6", port, _address(6, "saddr")),
        RETURN,
    )
    yield advert, DROP
    yield _among("addresses6", port, _address(6, "saddr")), RETURN
    asked = ["nd-neighbor-solicit", "nd-router-solicit", "mld2-listener-report"]
    unnamed = _is(_address(6, "saddr"), "::")
    yield unnamed, _is(kind, {"set": asked}, f"{{ {', '.join(asked)} }}"), RETURN
    known = ["ip", "ip6", "arp", "8021q", "8021ad"]
    yield _is(_meta("protocol"), {"set": known}, f"{{ {', '.join(known)} }}"), DROP


LOOPBACK_GUARD: Words = (
    _is(_meta("iifname"), "lo", '"lo"', "!="),
    _is(_address(4, "daddr"), {"prefix": {"addr": "127.0.0.0", "len": 8}}, "127.0.0.0/8"),
    DROP,
)
"""What is routed to 127.0.0.0/8 from outside: nothing honest (CVE-2020-8558)."""


def bridged() -> Iterator[Words]:
    # A switched packet shows its bridge as the link in and the link out. nft cannot compare two
    # keys with each other, but can look (in, out) up among pairs that it has just made of (in, in).
    yield _is(_meta("iifkind"), "bridge", '"bridge"'), SEEN_SWITCHED
    yield (
        _is(_joined((_meta("iif"), _meta("oif"))), f"@{SWITCHED}"),
        ACCEPT,
    )
