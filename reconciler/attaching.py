"""What attaching a runtime's namespace asks, and what may stand in its way; whoever does it."""

import os
from collections.abc import Callable

import msgspec

from reconciler.core.attached import Attachment
from reconciler.core.errors import RuncnetError
from reconciler.core.model import Loaded
from reconciler.core.observed import INTENT
from reconciler.core.report import Report
from reconciler.core.request import Request
from reconciler.core.schema import unknown
from reconciler.host import netns, procs, rtnl
from reconciler.host.machine import boot_id
from reconciler.host.record import Record
from reconciler.host.store import Store
from reconciler.prospect import Prospect


def attachment_of(request: Request) -> Attachment:
    """What is to be attached, from the process that the runtime names. Raises RuncnetError."""
    name, pid = request.name, request.pid
    path = f"/proc/{pid}/ns/net"
    began = procs.started(pid)
    if began is None:
        raise RuncnetError(
            f"{name}: there is no process {pid} (the state's pid is the container's)"
        )
    space, first = rtnl.owners([path, "/proc/1/ns/net"])
    if space.error:
        why = os.strerror(space.error)
        raise RuncnetError(f"{name}: the namespace of process {pid} cannot be entered: {why}")
    host = rtnl.cookie()
    if space.cookie in (host, first.cookie):  # one may be inside of the other, in a user namespace
        raise RuncnetError(
            f"{name}: process {pid} lives in the host's own network namespace (the bundle's "
            "linux.namespaces needs an entry of type network without a path)"
        )
    if procs.started(pid) != began:
        raise RuncnetError(f"{name}: process {pid} ended meanwhile")
    return Attachment(
        name=name,
        body=msgspec.json.encode(request.body).decode(),
        boot=boot_id(),
        host=host,
        cookie=space.cookie,
        pid=pid,
        started=began,
        ip_file=os.path.join(request.bundle, request.ip_file) if request.ip_file else "",
    )


def check_free(one: Attachment, store: Store, record: Record) -> None:
    """Refuse a namespace that is somebody else's, and an id that lives elsewhere. Raises RuncnetError."""
    for name, other in store.attachments({one.name, *store.attached_as(one.cookie)}).items():
        if name != one.name and (other.boot, other.cookie) == (one.boot, one.cookie):
            raise RuncnetError(f"{one.name}: its namespace was attached already, as {name}")
        elsewhere = name == one.name and (other.boot, other.cookie) != (one.boot, one.cookie)
        if elsewhere and other.boot == one.boot and procs.started(other.pid) == other.started:
            raise RuncnetError(
                f"{name}: a container of that id runs already, as process {other.pid} "
                "(take another id, or stop that one)"
            )
    for name in record.container_at(one.cookie):
        if name != one.name:
            raise RuncnetError(
                f"{one.name}: its namespace is that of container {name} (a declared container needs "
                "no hook: drop one of the two)"
            )


def holder(one: Attachment, store: Store, record: Record, netns_dir: str) -> str:
    """Why its id is somebody else's who was not attached; empty: it is free. The record must be there.

    Such a one may be declared nowhere (any more), and still be in use.
    """
    cookie = record.spaces([one.name]).get(one.name, INTENT)
    if cookie in (INTENT, one.cookie) or store.attachments([one.name]):
        return ""
    places = [f"{netns_dir}/{file}" for file in netns.read(netns_dir, ())[1]]
    for space in rtnl.owners([*places, *procs.namespaces().values()]):
        if not space.error and space.cookie == cookie:
            return f"another container of that name stands (see `runcnet status {one.name}`)"
    return ""


def scope(one: Attachment) -> frozenset[str]:
    """What is looked at for an attachment: it, its networks, and the host."""
    interfaces = msgspec.json.decode(one.body)["interfaces"]
    near = {f"network/{i['network']}" for i in interfaces}
    return frozenset({f"container/{one.name}", "host", *near})


def refusal(prospect: Prospect, one: Attachment, alone: Callable[[], Loaded]) -> str:
    """Why it cannot be attached; empty: it can. `alone` judges everything else without it."""
    loaded = prospect.declared.loaded
    for near in sorted(scope(one)):
        kind, _, network = near.partition("/")
        if kind == "network" and network not in prospect.spec.networks:
            return unknown("network", network, prospect.spec.networks)
    text = loaded.orphans.get(one.name)
    if text:
        return text
    if loaded.rejections or loaded.stuck:
        before = alone()
        for rejection in loaded.rejections:
            if rejection not in before.rejections:
                return rejection.message
        if loaded.stuck != before.stuck:
            return loaded.stuck
    for name in sorted(scope(one)):
        problems = prospect.problems.get(name)
        if problems:
            return problems[0] if name == f"container/{one.name}" else f"{name}: {problems[0]}"
    member = prospect.desired.members.get(one.name)
    if member is None:
        return "it cannot be judged while a file is rejected (see `runcnet validate`)"
    if prospect.wall.problem:
        return prospect.wall.problem
    return ""


def failure(report: Report, one: Attachment) -> str:
    """What went wrong with it when it was made; empty: nothing."""
    near = {*scope(one), "firewall"}
    for each in report.operations:
        if each.ok is False and each.operation.object in near:
            return f"{each.operation.object}: {each.operation.describe()}: {each.error}"
    return ""


def first_address(prospect: Prospect, one: Attachment) -> str:
    """Its first address; empty where it has none."""
    member = prospect.desired.members[one.name]
    carried = [a for e in member.endpoints for a in e.addresses if not a.is_link_local]
    return str(carried[0].address) if carried else ""
