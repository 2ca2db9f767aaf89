"""`runcnet doctor`: looks at the host's limits with what is declared in mind, and changes nothing."""

import contextlib
import os
import resource
from collections.abc import Iterable

from reconciler.core.checkup import Finding, findings, needs_of
from reconciler.core.desired import desired_state
from reconciler.core.errors import FirewallError
from reconciler.core.policy import Policy
from reconciler.host import firewall, rtnl, userns
from reconciler.load import read_declared
from reconciler.prospect import Settings

SYSCTLS = (
    "user.max_net_namespaces", "fs.mount-max", "kernel.pid_max", "kernel.threads-max",
    "fs.inotify.max_user_instances", "net.ipv6.route.max_size", "net.netfilter.nf_conntrack_max",
    "net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables",
)  # fmt: skip


def examine(settings: Settings) -> list[Finding]:
    """All that would stand in the way of what the files declare."""
    spec = read_declared(settings.config_dirs).loaded.spec
    standing = 0
    with contextlib.suppress(OSError):
        present = set(os.listdir(settings.netns_dir))
        standing = sum(c.netns in present for c in spec.containers.values())
    needs = needs_of(spec, standing=standing)
    found = findings(needs, _values(needs.uplinks))
    if userns.inner():
        text = (
            "limits of the machine (kernel, fs, net.netfilter) are lifted by its root alone, outside "
            "of this user namespace"
        )
        found.append(Finding(topic="user namespace", serious=False, text=text))
    backend = firewall.backend(settings.firewall)
    if backend is not None:
        desired = desired_state(spec, {}, machine="", host=rtnl.scan_host())
        policy = Policy(networks=desired.policies)
        try:
            told, warnings = backend.told(policy), backend.warnings(policy)
        except FirewallError as error:
            told, warnings = (), (str(error),)
        found += [Finding(topic="firewall", serious=False, text=text) for text in told]
        found += [Finding(topic="firewall", serious=True, text=text) for text in warnings]
    return found


def _values(uplinks: Iterable[str]) -> dict[str, str]:
    values = {
        "open_files": str(resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
        "mounts": str(_read("/proc/self/mountinfo").count("\n")),
        "spaces": str(_read("/proc/self/mountinfo").count(" - nsfs ")),
    }
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            values["available_kb"] = line.split()[1]
    names = [*SYSCTLS, "net.ipv4.conf.all.rp_filter"]
    paths = {name: name.replace(".", "/") for name in names}
    # The name of a link may hold a dot, which is no slash.
    paths |= {f"net.ipv4.conf.{u}.rp_filter": f"net/ipv4/conf/{u}/rp_filter" for u in uplinks}
    for name, path in paths.items():
        text = _read(f"/proc/sys/{path}")
        if text:
            values[name] = text
    return values


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""  # the kernel was built without it, or has not loaded it
