"""The splice: what it must change it changes, everything else stays to the byte."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core.jsonbytes import SpliceError
from reconciler.core.splice import Mount, splice, unjoinable

OURS = "/run/runcnet/dns/"
PATH = "/run/netns/web"


def wire(content: bytes, mode: str = "network", mounts: tuple[Mount, ...] = ()) -> bytes:
    return splice(content, mode=mode, netns_path=PATH, mounts=mounts, ours=OURS)


def networks(content: bytes) -> list[dict[str, Any]]:
    return [n for n in json.loads(content)["linux"]["namespaces"] if n["type"] == "network"]


@pytest.mark.parametrize("mode", ["network", "none"])
@pytest.mark.parametrize(
    "text",
    [
        '{"linux":{"namespaces":[{"type":"pid"},{"type":"network"}]}}',
        '{"linux":{"namespaces":[{"type":"network","path":"/old"},{"type":"pid"}]}}',
        '{ "linux" : { "namespaces" : [ ] } }',
        '{"linux":{}}',
        "{}",
        '{"a": 1e3, "l\\u0069nux": {"namesp\\u0061ces": [{"typ\\u0065": "netw\\u006frk"}]}, "b": 0.10}',
        '{\r\n\t"linux": {\r\n\t\t"namespaces": [\r\n\t\t\t{\r\n\t\t\t\t"type": "network"\r\n\t\t\t}\r\n\t\t]\r\n\t}\r\n}\r\n',
    ],
)
def test_the_path_is_set(text: str, mode: str) -> None:
    wired = wire(text.encode(), mode)
    assert networks(wired) == [{"type": "network", "path": PATH}]
    assert wire(wired, mode) == wired
    for kept in (b"1e3", b"0.10", b"l\\u0069nux"):
        assert (kept in text.encode()) == (kept in wired)


@pytest.mark.parametrize(
    "text,rest",
    [
        ('[{"type":"network"}]', "[]"),
        ('[{"type":"network"}, {"type":"pid"}]', '[{"type":"pid"}]'),
        ('[{"type":"pid"}, {"type":"network","path":"/x"}]', '[{"type":"pid"}]'),
        (
            '[{"type":"a"} ,\n {"type":"network"} ,\n {"type":"b"}]',
            '[{"type":"a"} ,\n {"type":"b"}]',
        ),
    ],
)
def test_mode_host_takes_the_entry_away(text: str, rest: str) -> None:
    lead, tail = '{"linux": {"namespaces": ', "}}"
    assert wire((lead + text + tail).encode(), "host").decode() == lead + rest + tail


BROKEN = [
    "", "{", "[]", '{"a":1,}', '{"a" 1}', '{"linux":{"namespaces":{}}}', '{"linux":1}', "{'a':1}",
    '{"linux":{},"linux":{}}', '{"linux":{"namespaces":[{"type":"network"},{"type":"network"}]}}',
    '{"a": 01}', '{"a": "\x01"}', '{"a": nul}', "\ufeff{}", "{} {}", '{"a": "\\x"}', "[" * 600,
]  # fmt: skip


@pytest.mark.parametrize("text", BROKEN)
def test_what_is_no_valid_config_is_refused(text: str) -> None:
    with pytest.raises(SpliceError):
        wire(text.encode())


def test_bytes_that_are_not_utf8_are_refused() -> None:
    with pytest.raises(SpliceError, match="UTF-8"):
        wire(b'{"a": "\xff"}')


def test_mounts_come_change_and_go_and_the_bundles_own_wins() -> None:
    own = '{"mounts":[{"destination":"/etc/hosts","source":"/mine"},{"destination":"/proc"}],"linux":{}}'
    both = (
        Mount("/etc/resolv.conf", OURS + "web/resolv.conf"),
        Mount("/etc/hosts", OURS + "web/hosts"),
    )
    wired = wire(own.encode(), mounts=both)
    places = {m["destination"]: m.get("source") for m in json.loads(wired)["mounts"]}
    assert places["/etc/hosts"] == "/mine" and places["/etc/resolv.conf"] == both[0].source
    moved = wire(wired, mounts=(Mount("/etc/resolv.conf", OURS + "new/resolv.conf"),))
    assert OURS + "new/resolv.conf" in moved.decode() and OURS + "web" not in moved.decode()
    assert json.loads(wire(moved))["mounts"] == json.loads(own)["mounts"]


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@settings(max_examples=300)
@given(
    st.dictionaries(st.text(), VALUES, max_size=4),
    st.lists(st.sampled_from(["pid", "mount", "ipc"]), max_size=3, unique=True),
    st.sampled_from([None, 0, 2, "\t", "\r\n"]),
    st.booleans(),
    st.sampled_from(["network", "none", "host"]),
    st.booleans(),
)
def test_everything_else_stays(
    rest: dict[str, Any], kinds: list[str], indent: Any, ascii_only: bool, mode: str, there: bool
) -> None:
    entries: list[dict[str, Any]] = [{"type": k} for k in kinds]
    if there:
        entries.insert(len(entries) // 2, {"type": "network", "x": 1})
    rest.pop("mounts", None)
    config = {**rest, "linux": {"namespaces": entries, "more": [1.0]}, "z": [True]}
    text = json.dumps(config, indent=indent, ensure_ascii=ascii_only)
    try:
        content = text.encode()
    except UnicodeEncodeError:
        return  # a lone surrogate cannot stand in a file
    wired = wire(content, mode)
    assert wire(wired, mode) == wired
    after = json.loads(wired)
    others = [n for n in after["linux"]["namespaces"] if n["type"] != "network"]
    assert others == [{"type": k} for k in kinds]
    assert len(networks(wired)) == (mode != "host")
    after["linux"]["namespaces"] = config["linux"]["namespaces"]
    assert json.dumps(after) == json.dumps(json.loads(text))


@settings(max_examples=500)
@given(
    st.binary(max_size=60)
    | st.text(alphabet='{}[]",:\\ \n0123eE+-truefalsnl', max_size=40).map(str.encode)
)
def test_bytes_are_taken_exactly_when_json_takes_them(content: bytes) -> None:
    def strict(text: bytes) -> Any:
        def refuse(_: str) -> None:
            raise ValueError

        return json.loads(text.decode(), parse_constant=refuse)

    try:
        value = strict(content)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or content.startswith(b"\xef\xbb\xbf"):
        with pytest.raises(SpliceError):
            wire(content)
    elif "linux" not in value:
        try:
            assert networks(wire(content)) == [{"type": "network", "path": PATH}]
        except SpliceError as error:
            assert "twice" in str(error) or "mounts" in str(error)


def test_a_huge_file_is_wired_in_good_time() -> None:
    big = json.dumps({"x": [{"y": "z" * 50, "n": i} for i in range(100_000)], "linux": {}}).encode()
    assert networks(wire(big)) == [{"type": "network", "path": PATH}]


@pytest.mark.parametrize(
    "spaces,mounts,refused",
    [(["user"], ["sysfs"], True), (["user"], ["none", "proc"], False), (["pid"], ["sysfs"], False)],
)
def test_a_user_namespace_with_a_sysfs_of_its_own_is_seen(
    spaces: list[str], mounts: list[str], refused: bool
) -> None:
    file = {
        "linux": {"namespaces": [{"type": kind} for kind in spaces]},
        "mounts": [{"destination": "/a", "type": kind} for kind in mounts],
    }
    assert unjoinable(json.dumps(file).encode()) is refused
    assert not unjoinable(b"{}")
