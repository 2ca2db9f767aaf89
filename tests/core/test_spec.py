"""YAML → Spec: each mistake with its place, each default, and never another exception."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core.leases import Key
from reconciler.core.model import Address, Spec, parse_address
from reconciler.core.show import render
from reconciler.core.spec import Candidate, load
from reconciler.host.yamlfile import parse
from tests.core.documents import loaded, messages
from tests.support.host import ROOT

NET = "networks:\n  n: {subnets: [10.0.0.0/24, 'fd00::/64']}\n"
MISTAKES = [
    ("networks: {n: {subnets: 10.0.0.0/24, gatways: 10.0.0.1}}",
     "f:1:38: networks.n.gatways: unknown key 'gatways' (did you mean gateways?)"),
    ("networks: {n: {}}", "f:1:12: networks.n: `subnets` is missing (as in subnets: 176.10.0.0/16)"),
    ("networks: {n: {subnets: 10.0.0.5/24}}",
     "f:1:25: networks.n.subnets: '10.0.0.5/24' is no subnet (10.0.0.0/24 is the network)"),
    ("networks: {n: {subnets: [10.0.0.0/24, 10.1.0.0/24]}}",
     "f:1:39: networks.n.subnets[1]: 10.1.0.0/24 is a second IPv4 subnet (one is possible)"),
    ("networks: {n: {subnets: 10.0.0.0/24, gateways: 10.0.1.1}}",
     "f:1:48: networks.n.gateways: 10.0.1.1 is outside 10.0.0.0/24"),
    ("networks: {n: {subnets: 10.0.0.0/24, gateways: 10.0.0.255}}",
     "f:1:48: networks.n.gateways: 10.0.0.255 is the network or broadcast address of 10.0.0.0/24"),
    ("networks: {n: {subnets: 10.0.0.0/24, ranges: 10.0.0.9-10.0.0.5}}",
     "f:1:46: networks.n.ranges: '10.0.0.9-10.0.0.5' is no range "
     "(the first address must not be above the last)"),
    ("networks: {n: {subnets: 10.0.0.0/24, internal: on}}",
     "f:1:48: networks.n.internal: 'on' is neither true nor false"),
    ("networks: {n: {subnets: 10.0.0.0/24, type: vxlan}}",
     "f:1:44: networks.n.type: reserved, not built yet (bridge or routed)"),
    ("networks: {n: {subnets: 10.0.0.0/24, mtu: 67}}",
     "f:1:43: networks.n.mtu: '67' is no MTU in bytes (68 to 65535)"),
    ("networks: {n: {subnets: 'fd00::/64'}}\ncontainers:\n"
     "  c: {interfaces: {network: n, mtu: 1000}}\n",
     "containers.c.interfaces.mtu: '1000' is no MTU up to the network's (1280 to 65535)"),
    ("networks: {n: {subnets: 10.0.0.0/24, uplink: all}}", "f:1:46: networks.n.uplink: 'all' is no"),
    ("networks: {n: {subnets: 10.0.0.0/24, uplink: n}}",
     "f:1:46: networks.n.uplink: n is the bridge of network n (name a link that leads out)"),
    ("networks: {-n: {subnets: 10.0.0.0/24}}", "f:1:12: networks.-n: '-n' is no network name"),
    ("networks: {a: {subnets: 10.0.0.0/24}, b: {subnets: 10.0.0.128/25}}",
     "f:1:52: networks.b.subnets: 10.0.0.128/25 overlaps 10.0.0.0/24 of network a"),
    ("networks: {a: {subnets: 10.0.0.0/24}, b: {bridge: a, subnets: 10.1.0.0/24}}",
     "f:1:51: networks.b.bridge: the bridge a is network a's"),
    ("networks: {n: {subnets: 10.0.0.0/24, routes: {to: 10.9.0.0/16, via: 10.5.0.1}}}",
     "networks.n.routes.via: via 10.5.0.1 is in no subnet of network n"),
    ("networks: {n: {external: true, masquerade: true, subnets: 10.0.0.0/24}}",
     "networks.n.masquerade: an external network is not masqueraded (drop the key)"),
    (NET + "containers:\n  c: {interfaces: m}\n",
     "f:4:19: containers.c.interfaces: unknown network 'm' (known: n)"),
    (NET + "containers:\n  c: {interfaces: [{network: n, addresses: 10.1.0.1}]}\n",
     "f:4:44: containers.c.interfaces[0].addresses: 10.1.0.1 is outside 10.0.0.0/24 of network n"),
    (NET + "containers:\n  c: {interfaces: [{network: n, addresses: 10.0.0.1}]}\n",
     "f:4:44: containers.c.interfaces[0].addresses: 10.0.0.1 is the gateway of network n"),
    (NET + "containers:\n  c: {interfaces: {network: n, addresses: 10.0.0.255}}\n",
     "is the network or broadcast address of 10.0.0.0/24"),
    (NET + "containers:\n  c: {interfaces: {network: n, addresses: dhcp}}\n",
     "f:4:43: containers.c.interfaces.addresses: reserved, not built yet"),
    (NET + "containers:\n  c: {interfaces: {network: n, mac: '01:00:00:00:00:01'}}\n",
     "is a group address or zero"),
    (NET + "containers:\n  c: {interfaces: {network: n, name: lo}}\n", "'lo' is no interface name"),
    (NET + "containers:\n  c: {interfaces: [{network: n, name: x}, {network: n, name: x}]}\n",
     "containers.c.interfaces[1].name: two interfaces are named x"),
    (NET + "containers:\n  c: {interfaces: [{network: n, default_route: true}, {network: n, default_route: true}]}\n",
     "a second default route for IPv4 (one interface can have it)"),
    (NET + "containers:\n  c: {interfaces: n, routes: {to: 10.9.0.0/16, via: 10.7.0.1}}\n",
     "containers.c.routes.via: via 10.7.0.1 is on no link of the container"),
    (NET + "containers:\n  c: {interfaces: n, ports: 22:22:22:22}\n", "is no published port"),
    (NET + "containers:\n  c: {interfaces: n, ports: 0:80}\n", "'0' is no port (1 to 65535)"),
    (NET + "containers:\n  a: {interfaces: n, ports: '80:80'}\n  b: {interfaces: n, ports: '127.0.0.1:80:8'}\n",
     "f:5:29: containers.b.ports: 127.0.0.1:80:8: host port 80/tcp is container a's already (publish it on another port or address)"),
    (NET + "containers:\n  c: {mode: none, ports: '80:80'}\n", "`ports` makes no sense with mode none"),
    (NET + "containers:\n  c: {mode: host, interfaces: n}\n", "`interfaces` makes no sense with mode host"),
    (NET + "containers:\n  c: {mode: none, sysctls: {kernel.pid_max: 1}}\n", "it must begin with net."),
    (NET + "containers:\n  c: {join: d}\n", "containers.c.join: unknown container 'd' (known: c)"),
    (NET + "containers:\n  c: {join: c}\n", "a container cannot join itself"),
    (NET + "containers:\n  a: {mode: none, netns: x}\n  b: {mode: none, netns: x}\n",
     "f:5:26: containers.b.netns: the netns file x is container a's"),
    (NET + "containers:\n  a: {mode: none, netns: ../x}\n", "'../x' is no file name"),
    (NET + "containers:\n  a: {mode: none, bundle: srv}\n", "'srv' is no absolute path"),
    (NET + "containers:\n  a: {mode: none, bundle: /s}\n  b: {mode: none, bundle: /s/}\n",
     "the bundle /s is container a's"),
    (NET + "containers:\n  a: {interfaces: {network: n, addresses: 10.0.0.9}}\n"
     "  b: {interfaces: {network: n, addresses: 10.0.0.9}}\n", "10.0.0.9 is container a's already"),
    (NET + "containers:\n  a: {replicas: 2, interfaces: {network: n, mac: '02:00:00:00:00:01'}}\n",
     "replicas cannot share one `mac`"),
    (NET + "containers:\n  a: {replicas: 3, interfaces: n, ports: '80-81:80'}\n",
     "2 host ports cannot be shared by 3 replicas"),
    (NET + "containers:\n  a: {replicas: 2, interfaces: n}\n  a-1: {mode: none}\n",
     "f:5:3: containers.a-1: container a-1 is declared at f:4 already"),
    ("networks: {n: {subnets: 10.0.0.0/29}}\ncontainers: {a: {replicas: 6, interfaces: n}}\n",
     "6 members want an IPv4 address and 5 are there"),
    ("networks: {n: {subnets: 10.0.0.0/16}}\ncontainers: {a: {replicas: 1024, interfaces: n}}\n",
     "1024 members, and a bridge takes 1023 ports (spread them over several networks, or use type: routed)"),
    ("networks: [a]", "f:1:11: networks: a list is not possible here (a map is needed)"),
    ("- a", "f:1:1: a list is not possible here"),
    ("containers: {a: {mode: }}", "f:1:24: containers.a.mode: a value is missing"),
    ("? [a]\n: b\n", "a key must be text"),
]  # fmt: skip


@pytest.mark.parametrize("text,expected", MISTAKES)
def test_a_mistake_is_named_with_its_place(text: str, expected: str) -> None:
    result = loaded(f=text)
    assert any(expected in message for message in messages(result)), messages(result)
    assert result.spec == Spec(networks={}, containers={})


def test_all_mistakes_are_told_at_once() -> None:
    result = loaded(
        a="networks: {n: {subnets: 10.0.0.0/33, mtu: x, inbound: no}}",
        b="containers: {c: {mode: bridge, bundle: x}}",
    )
    assert len(messages(result)) == 5


def test_scalars_are_text() -> None:
    result = loaded(
        f="networks: {010: {subnets: 10.0.0.0/24}}\ncontainers:\n  on: {interfaces: 010, ports: 22:22}\n"
        "  1e3: {mode: none}\n"
    )
    assert not result.rejections
    assert set(result.spec.containers) == {"on", "1e3"}
    assert str(result.spec.containers["on"].ports[0]) == "22:22"


def test_a_remembered_file_stands_in_and_loaded_ones_give_way() -> None:
    def tree(text: str):  # type: ignore[no-untyped-def]
        return parse(text.encode(), "a")[0]

    broken = Candidate(
        file="a", tree=None, rejections=parse(b"x: [", "a")[1],
        remembered=tree("networks: {n: {subnets: 10.0.0.0/24}}\ncontainers: {c: {interfaces: n}}"),
    )  # fmt: skip
    other = Candidate(file="b", tree=parse(b"containers: {d: {interfaces: n}}", "b")[0])
    clash = Candidate(file="c", tree=parse(b"networks: {m: {subnets: 10.0.0.0/25}}", "c")[0])
    result = load([broken, other, clash])
    assert set(result.spec.containers) == {"c", "d"}
    assert result.accepted == {"b"} and result.remembered == {"a"} and result.lost == {"c"}


def test_what_refers_to_an_unreadable_file_waits() -> None:
    result = loaded(a="networks: {", b="containers: {c: {interfaces: n}, d: {mode: none}}")
    assert [r.place.file for r in result.rejections] == ["a"]
    assert set(result.waiting) == {"c"} and set(result.spec.containers) == {"d"}


VALID = (
    ROOT / "config" / "20-dual-stack.yaml"
).read_bytes() + b"  x: {replicas: 3, interfaces: front}\n"


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_any_bytes_load_or_are_rejected(content: bytes) -> None:
    loaded(f=content)


@settings(max_examples=400)
@given(st.integers(0, 2**32))
def test_any_damage_to_a_valid_file_loads_or_is_rejected(seed: int) -> None:
    dice = random.Random(seed)
    content = bytearray(VALID)
    for _ in range(dice.randrange(1, 6)):
        at = dice.randrange(len(content))
        change = dice.randrange(4)
        if change == 0:
            del content[at : at + dice.randrange(1, 20)]
        elif change == 1:
            content[at] = dice.randrange(256)
        elif change == 2:
            content[at:at] = dice.choice(
                [b"[", b"{", b"]", b": ", b"\n- ", b"&a ", b"*a", b"%", b"~"]
            )
        else:
            other = dice.randrange(len(content))
            content[at:at] = content[other : other + dice.randrange(1, 40)]
    loaded(f=bytes(content))


def test_what_show_prints_loads_to_the_same() -> None:
    files = {p.name: p.read_text() for p in sorted((ROOT / "config").glob("*.yaml"))}
    spec = loaded(**files).spec
    addresses = {}
    for number, container in enumerate(spec.containers.values()):
        for interface in container.interfaces:
            for version in interface.automatic:
                subnet = spec.networks[interface.network].subnet(version)
                assert subnet
                key = Key(container.name, interface.network, interface.name, version)
                addresses[key] = Address(version, subnet.value + 900 + number)
                if subnet.prefix == 24:
                    addresses[key] = Address(version, subnet.value + 100 + number % 100)
    again = loaded(f=render(spec, addresses))
    assert not again.rejections, messages(again)
    assert list(again.spec.containers) == list(spec.containers)
    assert render(again.spec, {}) == render(spec, addresses)


def test_the_examples_load_together() -> None:
    files = {p.name: p.read_text() for p in sorted((ROOT / "config").glob("*.yaml"))}
    result = loaded(**files)
    assert not result.rejections and len(result.spec.containers) == 60
    web = result.spec.containers["web"]
    assert web.interfaces[0].default_versions == (4, 6) and not web.interfaces[1].default_versions
    assert parse_address("10.20.0.1") in result.spec.networks["front"].gateways
