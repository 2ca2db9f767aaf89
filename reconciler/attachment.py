"""What is attached to a container from outside the kernel: its bundle and its dns files."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from reconciler.core import ops
from reconciler.core.model import Container, Spec
from reconciler.core.ops import Operation
from reconciler.host.apply import Outcome

if TYPE_CHECKING:  # most runs wire no bundle, and a hook none
    from reconciler.core.resolver import Hosts
    from reconciler.host.bundle import Wiring


class Attachments:
    """Bundles and dns files, compared with what they are to be; then written."""

    def __init__(self, *, run_dir: str, netns_dir: str) -> None:
        self.run_dir = run_dir
        self.netns_dir = netns_dir
        self.operations: list[Operation] = []
        self.problems: list[tuple[str, str]] = []
        self._wirings: dict[str, Wiring] = {}
        self._files: dict[str, dict[str, bytes]] = {}

    def look(
        self, spec: Spec, hosts_of: "Callable[[], Hosts]", *, only: frozenset[str] | None
    ) -> None:
        """Compare all (or `only` these objects) and note what is to be done."""
        hosts: Hosts | None = None
        host_text: str | None = None
        for container in spec.containers.values():
            name = f"container/{container.name}"
            if only is not None and name not in only:
                continue
            serving = spec.containers.get(container.join or "", container)
            places: dict[str, str] = {}
            dns = serving.dns
            if dns is not None and serving.mode in ("network", "none"):
                from reconciler.core.resolver import resolv_conf
                from reconciler.host import dnsfiles

                if dns.host and host_text is None:
                    host_text = dnsfiles.host_resolv_conf()
                hosts = hosts or hosts_of()
                wanted = {
                    "resolv.conf": resolv_conf(dns, host_text or "").encode(),
                    "hosts": hosts.text(serving, dns),
                }
                place = f"{self.run_dir}/dns/{serving.name}"
                places = {f"/etc/{file}": f"{place}/{file}" for file in wanted}
                differing = dnsfiles.differing(self.run_dir, serving.name, wanted)
                if differing and serving is container:
                    self._files[container.name] = wanted
                    self.operations.append(ops.WriteDns(object=name, files=differing))
            if container.bundle is not None:
                self._look_at_bundle(container, container.bundle, serving, places)

    def _look_at_bundle(
        self, container: Container, folder: str, serving: Container, places: Mapping[str, str]
    ) -> None:
        """`places`: where in the container which file is to be seen."""
        from reconciler.core.splice import Mount
        from reconciler.host import bundle

        name = f"container/{container.name}"
        found = bundle.look(
            folder,
            mode=serving.mode,
            netns_path=f"{self.netns_dir}/{serving.netns}",
            mounts=[Mount(*place) for place in places.items()],
            ours=f"{self.run_dir}/dns/",
        )
        if isinstance(found, str):
            self.problems.append((name, found))
        elif found.old != found.new:
            self._wirings[name] = found
            self.operations.append(ops.WireBundle(object=name, bundle=folder))

    def carry_out(self, operations: Iterable[Operation]) -> Iterator[Outcome]:
        """Write what `look` has noted."""
        for op in operations:
            if isinstance(op, ops.WriteDns):
                from reconciler.host import dnsfiles

                name = op.object.partition("/")[2]
                yield Outcome(op, dnsfiles.write(self.run_dir, name, self._files[name]))
            else:
                from reconciler.host import bundle

                yield Outcome(op, bundle.write(self._wirings[op.object]))

    def sweep(self, kept: Iterable[str]) -> None:
        """Take away the dns files of containers that are gone."""
        from reconciler.host import dnsfiles

        for name in dnsfiles.standing(self.run_dir) - set(kept):
            dnsfiles.remove(self.run_dir, name)


def renew_hosts(run_dir: str, hosts: "Hosts", readers: Iterable[Container]) -> None:
    """Bring the hosts files of these containers up to date: a fellow has come or gone, or has another
    address."""
    from reconciler.host import dnsfiles

    for container in readers:
        if container.dns is not None and container.mode in ("network", "none"):
            dnsfiles.renew_hosts(run_dir, container.name, hosts.text(container, container.dns))
