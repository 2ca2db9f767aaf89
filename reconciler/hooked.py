"""What hooks attached, as a pass sees it: who is known, who is over, who is found again by marks."""

from collections.abc import Callable, Collection, Mapping

import msgspec

from reconciler.core.attached import Attachment, left_over, over, rebuilt, unknown
from reconciler.core.leases import Book
from reconciler.core.model import Address, Spec
from reconciler.core.observed import Observed
from reconciler.core.policy import Lead
from reconciler.host import procs
from reconciler.host.machine import boot_id
from reconciler.host.store import Store


class Hooked:
    """The attachments of one pass. What it finds out is written to the store."""

    def __init__(self, store: Store, *, machine: str, names: Collection[str] | None = None) -> None:
        """`names`: those that are looked at; None: all. Only who looks at all may drop any."""
        self._whole = names is None
        self._store = store
        self._machine = machine
        self.known: dict[str, Attachment] = store.attachments(names)
        self.gone: dict[str, Attachment | None] = {}
        """Those that this pass takes away, whatever else may stay."""

    @property
    def going(self) -> frozenset[str]:
        """The objects that go."""
        return frozenset(f"container/{name}" for name in self.gone)

    @property
    def met(self) -> dict[str, Attachment]:
        """Those that are known, and those that go: no file of the netns dir is theirs."""
        return self.known | {name: one for name, one in self.gone.items() if one is not None}

    def leave(self, name: str) -> None:
        """One is to go."""
        self._store.drop_attachments([name])
        self.gone[name] = self.known.pop(name, None)

    def clear(self, run_dir: str) -> None:
        """Take away the files that were written for those that went."""
        if not self.gone:
            return
        from reconciler.host import dnsfiles, ipfile

        for name, one in self.gone.items():
            dnsfiles.remove(run_dir, name)
            if one is not None and one.ip_file:
                ipfile.drop(one.ip_file)

    def freed(self, book: Book) -> frozenset[Address]:
        """The addresses that those had."""
        if not self.gone:
            return frozenset()
        found = {address for key, address in book.held.items() if key.container in self.gone}
        return frozenset(found.union(*(one.addresses() for one in self.gone.values() if one)))

    def settle(
        self,
        spec: Spec,
        observed: Observed,
        published: Callable[[], Mapping[str, tuple[Lead, ...]]],
    ) -> bool:
        """Drop those whose namespace is gone, and take those in that a lost state dir no longer knows.

        `published` reads back which ports lead where (by `NETWORK/CONTAINER`).
        Answers whether what is declared is another now.
        """
        boot = boot_id()
        ended = over(self.known.values(), observed, boot)
        # One whose process is there and cannot be looked into may well live.
        ended -= {n for n in ended if procs.shut(self.known[n].pid, self.known[n].started)}
        known = self.known.keys() | self.gone.keys()
        found = unknown(known, observed, spec.containers)
        # What a kill between the books and the kernel has left, with a mount that keeps it.
        left = {seen.name for seen in left_over(known, observed, spec.containers)}
        ended |= left if left and not procs.veiled() else set()
        if not self._whole:
            return bool(ended or found)
        for name in ended:
            self.leave(name)
        leads = published() if found else {}
        for seen in found:
            assert seen.space is not None  # it has a source
            pid = min(procs.pids_by_inode().get(seen.space.inode, ()), default=0)
            body = rebuilt(seen, spec.networks, leads, self._machine)
            one = Attachment(
                name=seen.name,
                body=msgspec.json.encode(body).decode(),
                boot=boot,
                host=observed.host.cookie,
                cookie=seen.space.cookie,
                pid=pid,
                started=procs.started(pid) or 0,
            )
            self.known[one.name] = one
            self._store.save_attachment(one)
        return bool(ended or found)
