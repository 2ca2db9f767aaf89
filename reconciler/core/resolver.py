"""The text of a container's resolv.conf and hosts."""

from collections.abc import Iterator, Mapping

from reconciler.core.leases import Key
from reconciler.core.model import Address, Container, Dns, Spec

LOCAL = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"


def listens_on_loopback_only(resolv_conf: str) -> bool:
    """Whether every name server in it is on the host's loopback, out of a container's reach."""
    servers = [
        words[1]
        for line in resolv_conf.splitlines()
        if len(words := line.split()) > 1 and words[0] == "nameserver"
    ]
    return bool(servers) and all(_is_loopback(server) for server in servers)


def _is_loopback(server: str) -> bool:
    from ipaddress import ip_address

    try:
        return ip_address(server.partition("%")[0]).is_loopback
    except ValueError:
        return False


def resolv_conf(dns: Dns, host: str) -> str:
    """`host` is the text that the host's own servers stand in."""
    if dns.host:
        return host
    lines = [f"nameserver {server}" for server in dns.servers]
    lines += [f"search {' '.join(dns.search)}"] if dns.search else []
    lines += [f"options {' '.join(dns.options)}"] if dns.options else []
    return "".join(line + "\n" for line in lines)


class Hosts:
    """Builds hosts files. Each network's members are written once, and containers that are alike have
    one text between them.

    Members stand in the order of their addresses, behind all else: who is new has the highest one
    as a rule, and a line more at the end is all that the files of thousands get.
    """

    def __init__(self, spec: Spec, addresses: Mapping[Key, Address]) -> None:
        self._addresses = addresses
        self._blocks: dict[str, str] = {}
        self._members: dict[str, list[Container]] = {}
        self._last: tuple[tuple[str, ...], bytes] = ((), b"")
        for container in spec.containers.values():
            for network in dict.fromkeys(i.network for i in container.interfaces):
                self._members.setdefault(network, []).append(container)

    def _carried(self, container: Container, network: str) -> Iterator[Address]:
        for interface in container.interfaces:
            if interface.network != network:
                continue
            for version in (4, 6):
                given = [a for a in interface.addresses if a.version == version]
                key = Key(container.name, network, interface.name, version)
                if not given and version in interface.automatic and key in self._addresses:
                    given = [self._addresses[key]]
                yield from given

    def _block(self, network: str) -> str:
        if network not in self._blocks:
            members = self._members.get(network, ())
            lines = sorted((a, m.name) for m in members for a in self._carried(m, network))
            self._blocks[network] = "".join(f"{address} {name}\n" for address, name in lines)
        return self._blocks[network]

    def text(self, container: Container, dns: Dns) -> bytes:
        """Own name, what the definition adds, and fellow members."""
        networks = dict.fromkeys(i.network for i in container.interfaces)
        own = "" if networks else f"127.0.1.1 {container.name}\n"
        extra = "".join(f"{address} {name}\n" for name, address in dns.hosts)
        key = (own, extra, *networks)
        if self._last[0] != key:
            whole = LOCAL + own + extra + "".join(self._block(n) for n in networks)
            self._last = (key, whole.encode())
        return self._last[1]
