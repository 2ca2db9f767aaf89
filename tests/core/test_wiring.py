"""Wiring by hand: what is put in comes out again to the byte, and others' hooks stay where they are."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core.jsonbytes import SpliceError
from reconciler.core.wiring import ADDED, Hook, unwired, with_hooks, with_path

DIR = "/run/netns"
PATH = f"{DIR}/web"
FIRST = {
    "createRuntime": Hook(
        "/usr/bin/runcnet", ("runcnet", "hook", "createRuntime", "--network", "a")
    ),
    "poststop": Hook("/usr/bin/runcnet", ("runcnet", "hook", "poststop")),
}
SECOND = {
    stage: Hook("/opt/bin/runcnet", (*hook.args, "--run-dir", '/r "1"'))
    for stage, hook in FIRST.items()
}
THEIRS = {"path": "/bin/x", "args": ["x", "hook", "poststop"], "timeout": 3}
WAYS = {
    "netns": lambda content: with_path(content, PATH),
    "hooks": lambda content: with_hooks(content, FIRST),
    "others": lambda content: with_hooks(content, SECOND),
    "unwire": lambda content: unwired(content, DIR),
}

hooks = st.dictionaries(
    st.sampled_from(["prestart", "createRuntime", "createContainer", "poststop"]),
    st.lists(st.sampled_from([THEIRS, {"path": "/bin/y"}]), min_size=1, max_size=3),
    min_size=1,
)
spaces = st.lists(
    st.sampled_from([{"type": "pid"}, {"type": "user"}, {"type": "mount", "path": "/a"}]),
    max_size=3,
)
files = st.fixed_dictionaries(
    {"ociVersion": st.just("1.0.2")},
    optional={
        "hooks": hooks,
        "annotations": st.just({"runcnet.networks": "a", "x": "1e3"}),
        "linux": st.one_of(
            st.fixed_dictionaries({}, optional={"cgroupsPath": st.just("c"), "namespaces": spaces}),
            st.just({"namespaces": [{"type": "pid"}, {"type": "network"}]}),
        ),
    },
)


@settings(max_examples=150)
@given(
    files,
    st.lists(st.sampled_from(sorted(WAYS)), min_size=1, max_size=4),
    st.sampled_from([None, 1, "\t"]),
)
def test_whatever_was_wired_comes_out_again_to_the_byte(
    file: dict[str, Any], ways: list[str], indent: int | str | None
) -> None:
    made = json.dumps(file, indent=indent).encode()
    content = made
    for way in ways:
        content = WAYS[way](content)
        assert WAYS[way](content) == content, "twice changes nothing"
        theirs = {
            stage: kept
            for stage, all_ in json.loads(content).get("hooks", {}).items()
            if (kept := [one for one in all_ if "runcnet" not in one["path"]])
        }
        assert theirs == file.get("hooks", {})
    assert unwired(content, DIR) == made


def test_a_hooked_container_gets_a_namespace_of_its_own_and_one_call_a_stage() -> None:
    file = {
        "linux": {"namespaces": [{"type": "network", "path": "/proc/7/ns/net"}]},
        "hooks": {
            "prestart": [{"path": "/old/runcnet", "args": ["runcnet", "hook", "prestart"]}, THEIRS],
            "createRuntime": [
                {"path": "/old/runcnet", "args": ["x", "hook", "createRuntime"], "timeout": 9},
                {"path": "/old/runcnet", "args": ["x", "hook", "createRuntime"]},
            ],
            "startContainer": [THEIRS],
        },
    }
    found = json.loads(with_hooks(json.dumps(file).encode(), FIRST))
    assert found["linux"]["namespaces"] == [{"type": "network"}]
    assert ADDED not in found.get("annotations", {})
    assert found["hooks"] == {
        "prestart": [THEIRS],
        "createRuntime": [
            {"path": "/usr/bin/runcnet", "args": list(FIRST["createRuntime"].args), "timeout": 9}
        ],
        "startContainer": [THEIRS],
        "poststop": [{"path": "/usr/bin/runcnet", "args": list(FIRST["poststop"].args)}],
    }


def test_a_path_elsewhere_is_not_taken_out() -> None:
    made = b'{"linux": {"namespaces": [{"type": "network", "path": "/proc/7/ns/net"}]}}'
    assert unwired(made, DIR) == made


@pytest.mark.parametrize(
    "text",
    ['{"hooks": []}', '{"hooks": {"poststop": 1}}', '{"hooks": {"poststop": [1]}}',
     '{"hooks": {}, "hooks": {}}', '{"annotations": 3}', "{"],
)  # fmt: skip
def test_a_file_of_another_shape_is_refused(text: str) -> None:
    with pytest.raises(SpliceError):
        with_hooks(text.encode(), FIRST)
