"""`runcnet add` and `rm`."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.host import PrivateHost, Run

NETS = """
networks:
  red: {subnets: 10.1.0.0/24}
  far: {type: routed, subnets: 10.2.0.0/16}
"""


def folder(host: PrivateHost) -> Path:
    """Where `add` writes: the last config dir. (The host's own /run is not ours to look into.)"""
    return host.dir / "run.d"


def call(host: PrivateHost, *words: str, check: bool = True) -> Run:
    """A command with both folders."""
    return host.runcnet(words[0], "-v", "--config-dir", str(folder(host)), *words[1:], check=check)


def start(host: PrivateHost, *words: str) -> "subprocess.Popen[str]":
    """The same, not waited for."""
    more = ["--config-dir", str(folder(host))]
    return host.start(*host.command("runcnet", words[0], *host.options, *more, *words[1:]))


def files(host: PrivateHost) -> list[str]:
    """Everything in that folder, hidden files too."""
    return sorted(os.listdir(folder(host))) if folder(host).exists() else []


def addresses(run: Run) -> list[str]:
    return [a for c in run.report["containers"] for i in c["interfaces"] for a in i["addresses"]]


def test_a_sandbox_comes_stays_changes_and_goes(bare: PrivateHost) -> None:
    bare.write("10.yaml", NETS)
    run = call(
        bare, "add", "s1", "--network", "red", "--network", "far:interface_name=up", "--json"
    )
    (one,) = run.report["containers"]
    assert (one["name"], one["state"]) == ("s1", "ok")
    assert [(i["name"], i["addresses"]) for i in one["interfaces"]] == [
        ("eth0", ["10.1.0.2/24"]),
        ("up", ["10.2.0.2/32"]),
    ]
    assert one["declared"] == f"{folder(bare)}/s1.yaml:3"
    assert (folder(bare).stat().st_mode & 0o777, files(bare)) == (0o755, ["s1.yaml"])
    assert bare.ping("s1", "10.1.0.1")
    assert bare.sh("sysctl -n net.ipv4.ip_forward").out.strip() == "1"
    before = (folder(bare) / "s1.yaml").stat().st_ino
    index = bare.host_end("s1", "eth0")["ifindex"]
    # Again: no change, not of the file either.
    again = call(
        bare, "add", "s1", "--network", "red", "--network", "far:interface_name=up", "--json"
    )
    assert again.report["containers"] == run.report["containers"]
    assert (folder(bare) / "s1.yaml").stat().st_ino == before
    assert bare.host_end("s1", "eth0")["ifindex"] == index
    # With other words: what differs.
    run = call(bare, "add", "s1", "--network", "red:ip=10.1.0.77,mac=02:42:00:00:00:01")
    assert "eth0 10.1.0.77/24 in red" in run.out
    assert bare.addresses("eth0", "s1") == ["10.1.0.77/24"]
    report = call(bare, "rm", "s1", "--json").report
    assert [(o["object"], o["action"], o["ok"]) for o in report["operations"]] == [
        ("container/s1", "remove", True)
    ]
    assert bare.ours()["netns"] == [] and files(bare) == []
    # What it had is free again, once; and what the file said is forgotten.
    assert addresses(call(bare, "add", "s2", "--network", "far", "--json")) == ["10.2.0.3/32"]
    assert call(bare, "status", "--json").report["rejected"] == []
    gone = call(bare, "rm", "s1", check=False)
    assert gone.code == 64 and "unknown name 's1'" in gone.err
    assert call(bare, "rm", "s1", "--force").code == 0


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (["x", "--network", "blue"], 2, "unknown network 'blue'"),
        (["x", "--network", "red:ip=10.9.0.5"], 2, "10.9.0.5 is outside 10.1.0.0/24 of network red"),
        (["x", "--network", "red:ip=10.1.0.50"], 2, "10.1.0.50 is container b's already"),
        (["x"], 64, "no network is named"),
        (["x", "--mode", "none", "--port", "80:80"], 2, "`ports` makes no sense with mode none"),
        (["x", "--network", "red", "--port", "8080:80"], 2, "host port 8080/tcp is container b's"),
        (["x", "--network", "red:ip=1"], 64, "is the form"),
        (["x", "--network", "red", "--port", "80"], 64, "is no published port"),
        (["../x", "--network", "red"], 64, "is no container name"),
        (["b", "--network", "red"], 1, "container b is declared at {config}/10.yaml:6 (edit it there)"),
        (["w-1", "--network", "red"], 1, "container w-1 is declared at {config}/10.yaml:7"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_before_anything_is_written(
    bare: PrivateHost, words: list[str], code: int, why: str
) -> None:
    bare.write(
        "10.yaml",
        NETS
        + 'containers:\n  b: {interfaces: {network: red, addresses: 10.1.0.50}, ports: "8080:80"}\n'
        "  w: {replicas: 3, mode: none}\n",
    )
    run = call(bare, "add", *words, check=False)
    assert (run.code, files(bare)) == (code, [])
    assert why.format(config=bare.config) in run.err
    assert bare.ours()["netns"] == []


def test_a_name_declared_elsewhere_is_not_taken_away(bare: PrivateHost) -> None:
    bare.write("10.yaml", NETS + "containers: {a: {mode: none}}\n")
    bare.reconcile()
    call(bare, "add", "s", "--mode", "none")
    run = call(bare, "rm", "s", "a", "--force", check=False)
    assert run.code == 1 and f"container a is declared at {bare.config}/10.yaml:5" in run.err
    assert (bare.ours()["netns"], files(bare)) == (["a", "s"], ["s.yaml"])
    # A file of that name which says more than that is somebody's work.
    text = "containers: {s: {mode: none}, t: {mode: none}}\n"
    (folder(bare) / "s.yaml").write_text(text)
    for words in (["rm", "s"], ["add", "s", "--mode", "host"]):
        run = call(bare, *words, check=False)
        assert run.code == 1 and f"{folder(bare)}/s.yaml:1" in run.err
    assert (folder(bare) / "s.yaml").read_text() == text


def test_what_is_in_use_goes_by_force_alone(bare: PrivateHost) -> None:
    bare.write("10.yaml", NETS)
    call(bare, "add", "s", "--network", "red")
    with bare.process("s"):
        run = call(bare, "rm", "s", "--json", check=False)
        assert run.code == 1 and "in use by pid" in run.report["held_back"][0]["reason"]
        assert files(bare) == [] and bare.addresses("eth0", "s") == ["10.1.0.2/24"]
        # It stands, and is nobody's: its address is not given to another.
        assert addresses(call(bare, "add", "t", "--network", "red", "--json")) == ["10.1.0.3/24"]
        assert call(bare, "rm", "s", "--force").code == 0
        assert bare.ours()["netns"] == ["t"]
        assert len([x for x in bare.ours()["links"] if x != "red"]) == 1
    call(bare, "rm", "t")
    assert bare.ours()["links"] == ["red"]


def test_many_at_once_get_an_address_each(bare: PrivateHost) -> None:
    bare.write("10.yaml", NETS)
    count = 12
    children = [start(bare, "add", f"s{i}", "--network", "far", "--json") for i in range(count)]
    outs = [child.communicate(timeout=60)[0] for child in children]
    assert [child.returncode for child in children] == [0] * count, outs
    given = [json.loads(out)["containers"][0]["interfaces"][0]["addresses"][0] for out in outs]
    assert len(set(given)) == count
    assert bare.ours()["netns"] == sorted(f"s{i}" for i in range(count))
    children = [start(bare, "rm", f"s{i}") for i in range(count)]
    outs = [child.communicate(timeout=60)[0] for child in children]
    assert [child.returncode for child in children] == [0] * count, outs
    assert bare.ours()["netns"] == [] and files(bare) == []
    assert [c for c in bare.reconcile().changes if "red" not in c] == []
