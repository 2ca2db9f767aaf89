"""How many bytes have gone over each link, read at once for all (proc_net(5))."""

import msgspec

DEV = "/proc/self/net/dev"
"""Of the network namespace that we are in; /sys shows that of whoever mounted it."""


class Counters(msgspec.Struct, frozen=True):
    """Bytes that a link has taken in and sent out since it was made."""

    rx: int
    tx: int


def of_links() -> dict[str, Counters]:
    """Link → its counters."""
    found = {}
    with open(DEV, encoding="utf-8", errors="replace") as file:
        for line in file.readlines()[2:]:
            name, _, rest = line.rpartition(":")
            numbers = rest.split()
            found[name.strip()] = Counters(int(numbers[0]), int(numbers[8]))
    return found


def inside(outer: Counters | None) -> dict[str, int | None]:
    """What the inner end of a pair has taken in is what the outer one has sent, and the other way
    round; None: there is no such link."""
    return {
        "rx_bytes": outer.tx if outer is not None else None,
        "tx_bytes": outer.rx if outer is not None else None,
    }
