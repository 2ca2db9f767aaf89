"""`runcnet teardown`: everything that is owned goes, whatever the files say."""

from reconciler.core import ops
from reconciler.core.leases import Book
from reconciler.core.model import Spec
from reconciler.core.report import Done
from reconciler.host import dnsfiles, firewall, ipfile
from reconciler.host.apply import Kernel, Outcome
from reconciler.host.observe import adopt, busy_in
from reconciler.host.removal import clear_points
from reconciler.once import opened
from reconciler.prospect import Settings
from reconciler.reconcile import Pass


def in_use(settings: Settings) -> tuple[list[str], dict[str, tuple[int, ...]]]:
    """All that is owned, and the pids in those containers that are in use."""
    with opened(settings, change=False) as (store, record):
        observed = Pass(settings, store=store, record=record, changing=False).observe(_NOTHING)
        busy = busy_in(observed)
        names = [f"network/{n}" for n in observed.bridges]
        names += [f"network/{n or a.address}" for a, n in observed.gateways.items()]
        names += [f"container/{n}" for n in observed.containers]
        pids = {n: busy(n) for n in observed.containers}
        return names, {name: found for name, found in pids.items() if found}


_NOTHING = Spec(networks={}, containers={})


def teardown(settings: Settings) -> list[Done]:
    """Remove containers, networks, rules and leases. Definition files stay as they are."""
    outcomes: list[Outcome] = []
    with opened(settings, change=True) as (store, record):
        one = Pass(settings, store=store, record=record, changing=True)
        observed = one.observe(_NOTHING)
        if not record.present:
            adopt(one.record, observed, netns_dir=settings.netns_dir)
        busy = busy_in(observed)
        kernel = Kernel(netns_dir=settings.netns_dir, record=record, links=observed.host.links)
        removals = [
            ops.RemoveContainer(
                object=f"container/{seen.name}",
                netns=seen.netns,
                name=seen.name,
                path=f"{settings.netns_dir}/{seen.netns}" if seen.netns else "",
                ends=tuple(end.host.index for end in seen.ends),
                forced=True,
                in_use=bool(busy(seen.name)),
            )
            for seen in observed.containers.values()
        ]
        outcomes += kernel.remove(removals)
        clear_points(record, settings.netns_dir, observed.files)
        outcomes += kernel.perform(
            [
                ops.RemoveBridge(object=f"network/{network}", link=link.name, index=link.index)
                for network, link in observed.bridges.items()
            ]
            + [
                ops.RemoveGateway(
                    object=f"network/{network or address.address}", address=address, whole=True
                )
                for address, network in observed.gateways.items()
            ]
        )
        backend = firewall.backend(settings.firewall)
        if backend is not None:
            backend.remove()
        for name in dnsfiles.standing(settings.run_dir):
            dnsfiles.remove(settings.run_dir, name)
        with store.transaction():
            old = store.book()
            serial = old.serial
            freed = dict(old.freed)
            for key, address in old.held.items():
                serial += 1
                freed[key.network, address] = serial
            store.save_book(old, Book(held={}, freed=freed, serial=serial))
            store.trials.end()
            attached = store.attachments()
            store.drop_attachments(list(attached))
            store.remember({}, forget=list(store.remembered()))
        for gone in attached.values():
            if gone.ip_file:
                ipfile.drop(gone.ip_file)
    return [Done(operation=o.operation, ok=o.error is None, error=o.error) for o in outcomes]
