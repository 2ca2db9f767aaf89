"""What is wrong with a bundle is said, each with its cause and its remedy; a good one is left in peace."""

import copy
import json
from typing import Any

import msgspec
import pytest

from reconciler.core.bundlefaults import Around, Fault, Holder, faults, read
from reconciler.core.jsonbytes import SpliceError
from reconciler.core.wiring import Hook, with_hooks

RUNCNET = "/usr/bin/runcnet"
HOOKS = {
    "createRuntime": Hook(
        RUNCNET, ("runcnet", "hook", "createRuntime", "--network", "runc0:ip=10.0.0.2")
    ),
    "poststop": Hook(RUNCNET, ("runcnet", "hook", "poststop")),
}
PLAIN: dict[str, Any] = {
    "process": {"capabilities": {"bounding": ["CAP_KILL"]}},
    "mounts": [{"destination": "/sys", "type": "sysfs"}],
    "linux": {"namespaces": [{"type": "pid"}, {"type": "network"}]},
}
HOOKED = json.loads(with_hooks(json.dumps(PLAIN).encode(), HOOKS))
JOINED = copy.deepcopy(PLAIN)
JOINED["linux"]["namespaces"][1]["path"] = "/run/netns/web"
AROUND = Around(
    netns_dir="/run/netns",
    programs={RUNCNET: "", "/old/runcnet": "it went away"},
    space="network",
    holder=None,
    spaces={"web": "web"},
    networks={"runc0"},
)
USER = {"type": "user"}
ONE = [{"containerID": 0, "hostID": 1000, "size": 1}]
MANY = [{"containerID": 0, "hostID": 100000, "size": 65536}]
MINE = Holder(name="web", mode="network", netns="web", place="/etc/runcnet.d/a.yaml:3")


def judge(file: Any, around: Around = AROUND) -> list[Fault]:
    return faults(read(json.dumps(file).encode()), "/srv/web", around)


@pytest.mark.parametrize("file", [HOOKED, JOINED])
def test_a_good_bundle_is_left_in_peace(file: Any) -> None:
    assert judge(file) == []


def _without(stage: str) -> Any:
    return lambda file: file["hooks"].pop(stage)


def _user(ids: Any) -> Any:
    def change(file: Any) -> None:
        file["linux"]["namespaces"].append(USER)
        file["linux"]["uidMappings"] = ids

    return change


def _args(*words: str) -> Any:
    return lambda file: file["hooks"]["createRuntime"][0].update(args=["runcnet", "hook", *words])


def _theirs(stage: str, path: str) -> Any:
    return lambda file: file["hooks"].setdefault(stage, []).append({"path": path})


@pytest.mark.parametrize(
    "file,change,cause,serious",
    [
        (HOOKED, _without("poststop"), "there is no such hook, while createRuntime is there", True),
        (HOOKED, _without("createRuntime"), "there is no such hook, while poststop is there", True),
        (HOOKED, _args("prestart", "--network", "runc0"), "its args say prestart", True),
        (HOOKED, _args("createRuntime"), "no network is named", True),
        (HOOKED, _args("createRuntime", "--network=runc9"), "no network runc9 is declared", True),
        (HOOKED, lambda f: f["hooks"]["createRuntime"].append(f["hooks"]["createRuntime"][0]),
         "runcnet is called more than once", True),
        (HOOKED, lambda f: f["linux"]["namespaces"].pop(), "the container would use the host's", True),
        (HOOKED, lambda f: f["linux"]["namespaces"][1].update(path="/run/netns/web"),
         "is not the container's alone", True),
        (HOOKED, _user(ONE), "runs its hooks without rights", True),
        (HOOKED, _theirs("prestart", RUNCNET), "deprecated", False),
        (HOOKED, _theirs("poststop", "x"), "the path is not absolute", True),
        (HOOKED, lambda f: f["hooks"]["poststop"][0].update(args=["/old/runcnet", "hook", "poststop"]),
         "it went away", True),
        (JOINED, _user(ONE), "cannot join a network namespace of root's", True),
        (JOINED, _user(MANY), "cannot mount /sys", True),
        (JOINED, lambda f: (_user(MANY)(f), f["mounts"].clear()), "cannot exec in it", False),
        (JOINED, lambda f: f["process"]["capabilities"].update(permitted=["CAP_NET_ADMIN"]),
         "as good as on the host's links", True),
        (JOINED, lambda f: f["linux"]["namespaces"][1].update(path="/run/netns/other"),
         "no declared container has it", True),
        (JOINED, lambda f: f["linux"]["namespaces"][1].update(path="/proc/7/ns/net"),
         "runcnet does not look after it", False),
        (PLAIN, lambda f: None, "the container has lo alone", False),
        (PLAIN, lambda f: f["linux"]["namespaces"].pop(), "uses the host's network", False),
    ],
)  # fmt: skip
def test_each_fault_is_the_only_one_and_has_a_remedy(
    file: Any, change: Any, cause: str, serious: bool
) -> None:
    changed = copy.deepcopy(file)
    change(changed)
    (fault,) = judge(changed)
    assert cause in fault.cause and fault.remedy and fault.serious is serious, fault
    assert "\n" not in str(fault) and str(fault).startswith("/srv/web")


@pytest.mark.parametrize(
    "around,cause",
    [
        ({"space": "absent"}, "nothing is there"),
        ({"space": "placeholder"}, "an empty file of mode 000"),
        ({"space": "other"}, "no network namespace"),
        ({"spaces": None}, "not all definition files can be read"),
        ({"holder": msgspec.structs.replace(MINE, netns="x")}, "the file says something else"),
        ({"holder": msgspec.structs.replace(MINE, mode="host")}, "the file says something else"),
        ({"programs": {"/bin/x": "nothing is there"}}, "nothing is there"),
    ],
)
def test_what_the_machine_lacks_is_said(around: dict[str, Any], cause: str) -> None:
    file = copy.deepcopy(JOINED)
    file["hooks"] = {"poststop": [{"path": "/bin/x"}]}
    (fault,) = judge(file, msgspec.structs.replace(AROUND, **around))
    assert cause in fault.cause


def test_a_declared_bundle_needs_no_hooks() -> None:
    assert judge(JOINED, msgspec.structs.replace(AROUND, holder=MINE)) == []
    causes = [fault.cause for fault in judge(HOOKED, msgspec.structs.replace(AROUND, holder=MINE))]
    assert any("there are hooks as well" in cause for cause in causes)


@pytest.mark.parametrize(
    "text",
    ['{"linux": {"namespaces": [{"type": "network"}, {"type": "network"}]}}', '{"hooks": {"poststop": 1}}',
     '{"linux": {}, "linux": {}}', "{"],
)  # fmt: skip
def test_a_file_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SpliceError):
        read(text.encode())
