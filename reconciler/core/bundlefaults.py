"""What is wrong with a bundle's config.json as far as its network is concerned, each with its remedy.

Pure: the shell says what lies at the paths that the file names, this file judges.
"""

import posixpath
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from itertools import pairwise

import msgspec

from reconciler.core.flags import FORM, interface_of
from reconciler.core.jsonbytes import Scanner, SpliceError, root_of
from reconciler.core.request import NETWORKS
from reconciler.core.wiring import WIRED, is_ours, path_of

IN_CONTAINER = "startContainer"
"""The one stage whose programs are looked for in the container."""
POWER = "CAP_NET_ADMIN"
SETS = ("bounding", "effective", "permitted")
WITHOUT_ROOT = "declare it with mode: host, or run all of it in a user namespace: docs/rootless.md"


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Something that will go wrong, or (not `serious`) is good to know."""

    object: str
    action: str
    cause: str
    remedy: str
    serious: bool = True

    def __str__(self) -> str:
        return f"{self.object}: {self.action}: {self.cause} ({self.remedy})"


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """The container that is declared with this bundle."""

    name: str
    mode: str
    netns: str
    """The netns file of its namespace, or of that which it joins."""
    place: str
    """FILE:LINE."""


class Around(msgspec.Struct, frozen=True, kw_only=True):
    """What the machine says."""

    netns_dir: str
    programs: Mapping[str, str]
    """Path of a hook → why it cannot be run; empty: it can."""
    space: str
    """What lies at the namespace's path: see `reconciler.host.netns.lies_at`."""
    holder: Holder | None
    spaces: Mapping[str, str] | None
    """netns file → container, of all that are declared; None: not all files can be read."""
    networks: Collection[str]


class _Hook(msgspec.Struct):
    path: str = ""
    args: list[str] | None = None

    @property
    def ours(self) -> bool:
        return is_ours(self.path, list(self.args or ()))

    @property
    def programs(self) -> list[str]:
        """What is run: runcnet-hook goes on to the program that args[0] names."""
        args = self.args or []
        return [self.path, *args[:1]] if self.ours and args[0].startswith("/") else [self.path]


class _Namespace(msgspec.Struct):
    type: str = ""
    path: str = ""


class _Ids(msgspec.Struct):
    hostID: int = 0  # noqa: N815 - as the OCI runtime spec writes it
    size: int = 0


class _Linux(msgspec.Struct):
    namespaces: list[_Namespace] = []
    uidMappings: list[_Ids] = []  # noqa: N815


class _Mount(msgspec.Struct):
    type: str = ""


class _Process(msgspec.Struct):
    capabilities: dict[str, list[str]] = {}


class Config(msgspec.Struct):
    """The parts of config.json that are judged."""

    hooks: dict[str, list[_Hook]] = {}
    linux: _Linux = msgspec.field(default_factory=_Linux)
    mounts: list[_Mount] = []
    process: _Process = msgspec.field(default_factory=_Process)
    annotations: dict[str, str] = {}

    @property
    def programs(self) -> list[str]:
        """The programs of hooks that the runtime starts outside of the container."""
        outside = [h for s, all_ in self.hooks.items() if s != IN_CONTAINER for h in all_]
        return sorted({program for hook in outside for program in hook.programs})

    @property
    def network(self) -> _Namespace | None:
        """The entry of type network."""
        return next((n for n in self.linux.namespaces if n.type == "network"), None)

    @property
    def user(self) -> bool:
        """Whether it gets a user namespace of its own."""
        return any(n.type == "user" for n in self.linux.namespaces)

    @property
    def rootless(self) -> bool:
        """Whether it is made for a runtime that an ordinary user starts: one id, and not root's."""
        ids = self.linux.uidMappings
        return self.user and bool(ids) and all(one.size == 1 and one.hostID for one in ids)


def read(content: bytes) -> Config:
    """The file, by its shape. Raises SpliceError."""
    scanner = Scanner(content)
    root = scanner.members(root_of(scanner), "config.json")
    if "hooks" in root:
        scanner.members(root["hooks"], "hooks")
    path_of(content)
    try:
        config = msgspec.json.decode(content, type=Config)
    except msgspec.MsgspecError as error:
        raise SpliceError(f"not as the OCI runtime spec has it: {error}") from None
    if sum(n.type == "network" for n in config.linux.namespaces) > 1:
        raise SpliceError("linux.namespaces holds two entries of type network (drop one)")
    return config


def faults(config: Config, bundle: str, around: Around) -> list[Fault]:
    """Judge a file."""
    return [
        *_programs(config, bundle, around),
        *_hooks(config, bundle, around),
        *_namespace(config, bundle, around),
        *_declared(config, bundle, around),
        *_power(config, bundle),
    ]


def _programs(config: Config, bundle: str, around: Around) -> Iterator[Fault]:
    for stage, hooks in config.hooks.items():
        if stage == "prestart" and hooks:
            yield Fault(
                object=f"{bundle}: hooks.prestart",
                action="run hooks",
                cause="the OCI runtime spec calls this stage deprecated",
                remedy="createRuntime takes its place",
                serious=False,
            )
        for hook in hooks:
            program, why = hook.path, ""
            if not program.startswith("/"):
                why = "the path is not absolute"
            elif stage != IN_CONTAINER:
                whys = {path: around.programs.get(path, "") for path in hook.programs}
                program, why = next(((p, w) for p, w in whys.items() if w), (program, ""))
            if why:
                fix = _anew(bundle) if hook.ours else "install it, or drop it"
                yield Fault(
                    object=f"{bundle}: hooks.{stage}",
                    action=f"run {program or 'a hook without a path'}",
                    cause=why,
                    remedy=fix,
                )


def _hooks(config: Config, bundle: str, around: Around) -> Iterator[Fault]:
    ours = {
        stage: mine
        for stage, hooks in config.hooks.items()
        if (mine := [hook for hook in hooks if hook.ours])
    }
    if not ours:
        return
    starts = [stage for stage in ours if stage in ("createRuntime", "prestart")]

    first = starts[0] if starts else WIRED[0]
    fault = partial(_hook_fault, bundle)
    if not starts:
        yield fault("createRuntime", "there is no such hook, while poststop is there")
    if "poststop" not in ours:
        yield fault("poststop", f"there is no such hook, while {first} is there")
    if sum(len(ours[stage]) for stage in starts) > 1:
        yield fault(starts[0], "runcnet is called more than once")
    for stage, hooks in ours.items():
        for hook in hooks:
            said = (hook.args or ["", "", ""])[2]
            if said != stage:
                yield fault(stage, f"its args say {said}")
            elif stage in starts:
                for cause, remedy in _networks(config, hook, around):
                    yield fault(stage, cause, remedy)
    if config.network is None:
        cause = "there is no network namespace: the container would use the host's"
        yield fault(first, cause)
    elif config.network.path:
        cause = "the network namespace has a path, and is not the container's alone"
        yield fault(first, cause)
    if config.rootless:
        cause = "runc that an ordinary user starts runs its hooks without rights"
        yield fault(first, cause, WITHOUT_ROOT)


def _anew(bundle: str, way: str = "--network NAME") -> str:
    return f"wire it anew: runcnet bundle {bundle} {way}"


def _hook_fault(bundle: str, stage: str, cause: str, remedy: str = "") -> Fault:
    remedy = remedy or _anew(bundle)
    action = "attach the container" if stage != "poststop" else "take it away at its end"
    return Fault(object=f"{bundle}: hooks.{stage}", action=action, cause=cause, remedy=remedy)


def _networks(config: Config, hook: _Hook, around: Around) -> Iterator[tuple[str, str]]:
    """What is wrong with the networks that a hook is given, and the remedy."""
    args = hook.args or []
    named = [word for flag, word in pairwise(args) if flag == "--network"]
    named += [word.partition("=")[2] for word in args if word.startswith("--network=")]
    if "--no-annotations" not in args and config.annotations.get(NETWORKS):
        named = config.annotations[NETWORKS].replace(";", " ").split()
    if not named:
        yield "no network is named", f"give it --network, or the file the annotation {NETWORKS}"
    for word in named:
        try:
            network = interface_of(word).network
        except ValueError as error:
            yield str(error), f"write it as {FORM}"
            continue
        if around.spaces is not None and network not in around.networks:
            yield f"no network {network} is declared", "declare it in /etc/runcnet.d"


def _namespace(config: Config, bundle: str, around: Around) -> Iterator[Fault]:
    entry = config.network
    if entry is None or not entry.path:
        return
    path, action = entry.path, f"join {entry.path}"

    def fault(cause: str, remedy: str, *, serious: bool = True) -> Fault:
        return Fault(object=bundle, action=action, cause=cause, remedy=remedy, serious=serious)

    if config.rootless:
        cause = "runc that an ordinary user starts cannot join a network namespace of root's"
        yield fault(cause, WITHOUT_ROOT)
    elif config.user and any(mount.type == "sysfs" for mount in config.mounts):
        yield fault(
            "it has a user namespace of its own, in which runc cannot mount /sys for a network "
            "namespace that is not its own",
            f"take hooks: runcnet bundle {bundle} --network NAME; or bind the host's /sys as runc spec "
            "--rootless does",
        )
    elif config.user:
        cause = (
            "it has a user namespace of its own, and older versions of runc (1.1) cannot exec in it"
        )
        yield fault(
            cause,
            f"take a newer one, or hooks: runcnet bundle {bundle} --network NAME",
            serious=False,
        )
    in_dir = posixpath.dirname(path) == around.netns_dir
    remedy = "run runcnet-reconcile --once" if in_dir else "make it, or drop the path"
    if not path.startswith("/"):
        yield fault("the path is not absolute", _anew(bundle, "--netns"))
    elif around.space == "absent":
        yield fault("nothing is there", remedy)
    elif around.space == "placeholder":
        yield fault("an empty file of mode 000 is there, and no namespace", remedy)
    elif around.space == "other":
        yield fault("what is there is no network namespace", remedy)
    if not in_dir:
        cause = f"it is not in {around.netns_dir}: runcnet does not look after it"
        yield fault(cause, f"see --netns-dir, or {_anew(bundle, '--netns')}", serious=False)
    elif around.spaces is None:
        cause = "not all definition files can be read: it is not known whose it is"
        yield fault(cause, "see runcnet validate", serious=False)
    elif posixpath.basename(path) not in around.spaces:
        yield fault("no declared container has it", "declare one, or drop the path")


def _declared(config: Config, bundle: str, around: Around) -> Iterator[Fault]:
    holder, entry = around.holder, config.network
    hooked = any(hook.ours for hooks in config.hooks.values() for hook in hooks)
    if holder is None:
        if entry is None and not hooked:
            cause = "there is no entry of type network: the container uses the host's network"
            remedy = f"if that is not meant: runcnet bundle {bundle} --network NAME, or --netns"
        elif entry is not None and not entry.path and not hooked:
            cause = "nothing wires it: the container has lo alone"
            remedy = f"if that is not meant: runcnet bundle {bundle} --network NAME, or --netns"
        else:
            return
        yield Fault(object=bundle, action="start", cause=cause, remedy=remedy, serious=False)
        return
    whose = f"container {holder.name} ({holder.place}) is declared with this bundle"
    if hooked:
        yield Fault(
            object=bundle,
            action="start",
            cause=f"{whose}, and there are hooks as well",
            remedy=f"drop the bundle there, or the hooks: runcnet bundle {bundle} --unwire",
        )
    wanted = "" if holder.mode == "host" else f"{around.netns_dir}/{holder.netns}"
    wired = entry is None if holder.mode == "host" else entry is not None and entry.path == wanted
    if not wired:
        yield Fault(
            object=bundle,
            action=f"join {wanted}" if wanted else "use the host's network",
            cause=f"{whose}, and the file says something else",
            remedy=f"runcnet apply {holder.name}",
        )


def _power(config: Config, bundle: str) -> Iterator[Fault]:
    held = [kind for kind in SETS if POWER in config.process.capabilities.get(kind, ())]
    if held and not config.user:
        yield Fault(
            object=f"{bundle}: process.capabilities",
            action=f"hold {POWER} ({', '.join(held)})",
            cause="without a user namespace of its own it is as good as on the host's links",
            remedy="drop it there, or give the container a user namespace",
        )
