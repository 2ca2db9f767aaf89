"""`runcnet bundle`: bundles wired by hand, run by a real runc, and judged."""

import json
import os

import pytest

from tests.support import need
from tests.support.host import SERVER, PrivateHost
from tests.support.rootless import User

FILE = """
networks: {runc0: {subnets: 176.10.0.0/16}}
containers: {web: {interfaces: {network: runc0, addresses: 176.10.0.7}}}
"""


@pytest.mark.parametrize(
    "way", [["--network", "runc0:ip=176.10.0.7"], ["--netns", "--name", "web"]]
)
def test_a_bundle_wired_by_hand_runs_and_comes_back_as_it_was(
    host: PrivateHost, way: list[str]
) -> None:
    need.program("runc")
    hooked = way[0] == "--network"
    host.write("a.yaml", FILE.splitlines()[1] if hooked else FILE)
    host.reconcile()
    bundle = host.bundle("app", "ping", "-c1", "-W2", SERVER)
    made = (bundle / "config.json").read_bytes()
    (bundle / "config.json").chmod(0o640)

    assert host.runcnet("bundle", str(bundle), "--check").out.startswith("note")
    assert "wired" in host.runcnet("bundle", str(bundle), *way).out
    wired = (bundle / "config.json").read_bytes()
    assert "nothing to do" in host.runcnet("bundle", str(bundle), *way).out
    assert (bundle / "config.json").read_bytes() == wired != made
    assert (bundle / "config.json").stat().st_mode & 0o777 == 0o640
    assert "is fine" in host.runcnet("bundle", str(bundle), "--check").out

    done = host.runc("run", "-b", str(bundle), host.dir.name, check=False)
    assert "1 packets received" in done.out, done
    if hooked:
        assert not json.loads(host.runcnet("status", "--json").out)["containers"]
    host.runcnet("bundle", str(bundle), "--unwire")
    assert (bundle / "config.json").read_bytes() == made


def test_check_tells_anybody_what_is_wrong_and_what_to_do(bare: PrivateHost) -> None:
    user = User(bare)
    bundle = user.bundle("tool", "true")
    words = ["runcnet", "bundle", str(bundle), "--config-dir", str(bare.config)]
    bare.write("a.yaml", FILE)

    def check(*more: str) -> tuple[int, list[str]]:
        run = user.run(*bare.command(*words, "--check", *more), check=False)
        assert "Traceback" not in run.err, run.err
        return run.code, run.out.splitlines()

    assert check()[0] == 0
    placeholder = bare.dir / "netns"
    placeholder.mkdir()
    bare.dir.chmod(0o755)
    (placeholder / "tool").touch(mode=0o000)
    os.chmod(placeholder / "tool", 0)
    dirs = ["--netns-dir", str(placeholder)]
    user.run(*bare.command(*words, "--netns", *dirs))
    code, lines = check(*dirs)
    assert code == 1
    for text in (
        "cannot join a network namespace of root's (declare it with mode: host",
        "an empty file of mode 000 is there, and no namespace (run runcnet-reconcile --once)",
        "no declared container has it (declare one, or drop the path)",
    ):
        assert any(text in line for line in lines), lines

    run = user.run(
        *bare.command(*words, "--network", "runc0", "--program", "/nowhere"), check=False
    )
    assert run.code == 64 and "/nowhere: nothing is there" in run.err
    program = user.home / "runcnet"
    user.sh(f"printf '#!/bin/sh\\n' >{program}; chmod 755 {program}")
    user.run(*bare.command(*words, "--network", "runc0", "--program", str(program)))
    user.sh(f"chmod 644 {program}")
    found = json.loads(user.run(*bare.command(*words, "--check", "--json"), check=False).out)
    causes = [fault["cause"] for fault in found["faults"]]
    assert causes.count("it is not executable") == 2, causes
    assert "runc that an ordinary user starts runs its hooks without rights" in causes
    assert all(fault["remedy"] and fault["object"] and fault["action"] for fault in found["faults"])


def test_a_link_in_the_place_of_the_file_is_not_followed(bare: PrivateHost) -> None:
    bundle = bare.dir / "linked"
    bundle.mkdir()
    target = bare.dir / "target.json"
    target.write_text("{}")
    (bundle / "config.json").symlink_to(target)
    run = bare.runcnet("bundle", str(bundle), "--netns", check=False)
    assert run.code == 1 and "no link" in run.err
    assert target.read_text() == "{}"
