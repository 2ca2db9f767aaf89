"""Free addresses: as many as can still be handed out, and counted without looking at each."""

import json

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core.leases import Book, Key, assign
from reconciler.core.model import Address, Interface, Range, Spec, parse_address
from reconciler.core.room import Pool, room
from tests.core.documents import loaded

EMPTY = Book(held={}, freed={})
FIRST = parse_address("10.0.0.0").value


def spec(network: str, **containers: object) -> Spec:
    result = loaded(f=f"networks: {{n: {{{network}}}}}\ncontainers: {json.dumps(containers)}\n")
    assert not result.rejections, result.rejections
    return result.spec


def held(*addresses: str) -> Book:
    parsed = [parse_address(a) for a in addresses]
    return Book(held={Key(str(a), "n", "eth0", a.version): a for a in parsed}, freed={})


def free(network: str, book: Book = EMPTY, **containers: object) -> int:
    (count,) = room(spec(network, **containers), book)[1].values()
    return count


def test_gateway_declared_addresses_and_leases_are_taken() -> None:
    net = "subnets: 10.0.0.0/28"
    assert free(net) == 13
    assert free(net, held("10.0.0.2", "10.0.0.9")) == 11
    one = {"interfaces": [{"network": "n", "addresses": ["10.0.0.9"]}]}
    assert free(net, held("10.0.0.2"), a=one) == 11
    assert free(net, held("10.0.0.9"), a=one) == 12
    assert free(net + ", gateways: none") == 14


def test_of_ranges_only_what_a_member_can_carry_counts_and_once() -> None:
    net = "subnets: 10.0.0.0/28, ranges: "
    assert free(net + "10.0.0.0/28") == 13
    assert free(net + "[10.0.0.4-10.0.0.7, 10.0.0.6-10.0.0.9]") == 6
    assert free(net + "[10.0.0.8-10.0.0.9, 10.0.0.4-10.0.0.7]", held("10.0.0.3", "10.0.0.9")) == 5
    assert free("subnets: 10.0.0.0/31") == 1
    assert free("subnets: 10.0.0.0/32, gateways: none") == 1


def test_a_freed_address_is_free() -> None:
    book = Book(held={}, freed={("n", parse_address("10.0.0.5")): 1}, serial=1)
    assert free("subnets: 10.0.0.0/28", book) == 13


def test_an_ipv6_subnet_is_counted_beside_ipv4_and_not_walked_through() -> None:
    two = spec("subnets: ['fd00::/64', 10.0.0.0/30]", a={"interfaces": "n"})
    used, left = room(two, held("fd00::2", "10.0.0.2"))
    assert used == {Pool("n", 6): 1, Pool("n", 4): 1}
    assert left == {Pool("n", 6): 2**64 - 3, Pool("n", 4): 0}


def test_leases_of_networks_that_are_gone_do_not_count() -> None:
    book = Book(held={Key("a", "gone", "eth0", 4): Address(4, FIRST + 2)}, freed={})
    assert room(spec("subnets: 10.0.0.0/30"), book) == ({Pool("n", 4): 0}, {Pool("n", 4): 1})


HOSTS = st.integers(1, 14)


@settings(max_examples=200)
@given(
    ranges=st.lists(st.tuples(st.integers(0, 15), st.integers(0, 15)), min_size=1, max_size=4),
    gateway=st.none() | HOSTS,
    declared=st.sets(HOSTS, max_size=5),
    leased=st.sets(HOSTS, max_size=5),
)
def test_free_is_how_many_newcomers_get_an_address(
    ranges: list[tuple[int, int]], gateway: int | None, declared: set[int], leased: set[int]
) -> None:
    base = spec("subnets: 10.0.0.0/28", a={"interfaces": "n"})
    network = msgspec.structs.replace(
        base.networks["n"],
        gateways=() if gateway is None else (Address(4, FIRST + gateway),),
        ranges=tuple(Range(4, FIRST + min(r), FIRST + max(r)) for r in ranges),
    )
    one = base.containers["a"]

    def container(name: str, **more: object) -> object:
        interface: Interface = msgspec.structs.replace(one.interfaces[0], **more)
        return msgspec.structs.replace(one, name=name, netns=name, interfaces=(interface,))

    fixed = {
        f"d{value}": container(f"d{value}", addresses=(Address(4, FIRST + value),), automatic=())
        for value in declared
    }
    newcomers = {f"z{i}": container(f"z{i}") for i in range(17)}
    book = Book(
        held={Key(f"k{v}", "n", "eth0", 4): Address(4, FIRST + v) for v in leased}, freed={}
    )

    def whole(containers: dict[str, object]) -> Spec:
        return Spec(networks={"n": network}, containers=containers)  # type: ignore[arg-type]

    given_ = assign(
        whole(fixed | newcomers), book, standing={}, busy=lambda name: False,
        kept={key.container for key in book.held},
    )  # fmt: skip
    assert len(given_.addresses) + len(given_.problems) == 17
    used, left = room(whole(fixed), book)
    assert left == {Pool("n", 4): len(given_.addresses)}
    assert used == {Pool("n", 4): len(leased)}
