"""What never happens: nothing is lost by a broken file, an empty folder, a lost state dir, a file that
drops what is in use."""

import shutil
import time

import pytest

from tests.support.host import SERVER, PrivateHost

NETS = "networks: {runc0: {subnets: 176.10.0.0/16}}\n"
BROKEN = {
    "half of a flow map": ("networks: {side: {subnets: 10.9.0.0/24", 1),
    "a tab": ("networks:\n\tside:\n", 2),
    "an unknown key": ("networks:\n  side:\n    subnet: 10.9.0.0/24\n", 3),
    "a bad subnet": ("networks:\n  side:\n    subnets: 10.9.0.1/24\n", 3),
    "an alias": ("networks:\n  side: &a\n    subnets: 10.9.0.0/24\n  b: *a\n", 2),
    "a tag": ("networks:\n  side:\n    subnets: !!str 10.9.0.0/24\n", 3),
    "a repeated key": ("networks:\n  side: {subnets: 10.9.0.0/24}\n  side: {subnets: 10.8.0.0/24}\n", 3),
    "a second document": ("networks:\n  side: {subnets: 10.9.0.0/24}\n---\ncontainers:\n", 3),
    "a merge key": ("networks:\n  side:\n    <<: {subnets: 10.9.0.0/24}\n", 3),
    "a list for a map": ("networks:\n  - side\n", 2),
    "a bad address": (
        "networks:\n  side: {subnets: 10.9.0.0/24}\ncontainers:\n  c:\n    interfaces:\n"
        "      - network: side\n        addresses: 10.10.0.1\n", 7),
    "an unknown network": ("containers:\n  c:\n    interfaces: nowhere\n", 3),
    "a name declared twice": ("networks:\n\n  runc0: {subnets: 10.9.0.0/24}\n", 3),
    "an overlap": ("networks:\n  side:\n    subnets: 176.10.1.0/24\n", 3),
    "a reserved word": ("networks:\n  side:\n    type: vxlan\n    subnets: 10.9.0.0/24\n", 3),
    "a bad mode": ("containers:\n  c: {mode: bridge}\n", 2),
    "a sysctl of the host": ("containers:\n  c:\n    mode: none\n    sysctls: {kernel.hostname: x}\n", 4),
    "a version to come": ("version: 2\n", 1),
    "nesting": ("a: " + "[" * 40 + "]" * 40 + "\n", 1),
    "no UTF-8": ("networks: {}\n# \udcff\n", 2),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_named_and_takes_nothing_away(bare: PrivateHost, kind: str) -> None:
    text, line = BROKEN[kind]
    bare.write("a.yaml", NETS + "containers: {web: {interfaces: runc0}}\n")
    bare.write(
        "b.yaml",
        "networks: {side: {subnets: 10.9.0.0/24}}\ncontainers: {x: {interfaces: side}}\n",
    )
    bare.reconcile()
    before = bare.ours()
    path = bare.config / "b.yaml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    bare.age(5)
    run = bare.reconcile(check=False)
    assert run.code == 2
    first = run.report["rejected"][0]
    assert (first["file"], first["line"]) == (str(path), line), run.report["rejected"]
    assert f"{path}:{line}:" in run.err
    assert bare.ours() == before
    assert run.report["removed"] == 0 and run.report["failed"] == 0


def test_the_broken_files_network_is_repaired_and_still_translated(host: PrivateHost) -> None:
    host.write(
        "a.yaml", "networks: {one: {subnets: 10.9.0.0/24}}\ncontainers: {x: {interfaces: one}}\n"
    )
    host.reconcile()
    host.write("a.yaml", "networks: {one: {subnets")
    host.write(
        "b.yaml", "networks: {two: {subnets: 10.8.0.0/24}}\ncontainers: {y: {interfaces: two}}\n"
    )
    host.sh("ip -n x link set eth0 down")
    run = host.reconcile(check=False)
    assert run.code == 2 and any(c.startswith("firewall") for c in run.changes)
    assert host.ping("x", SERVER) and host.ping("y", SERVER)


def test_without_a_memory_of_the_broken_file_nothing_is_removed(host: PrivateHost) -> None:
    host.write(
        "a.yaml", "networks: {one: {subnets: 10.9.0.0/24}}\ncontainers: {x: {interfaces: one}}\n"
    )
    host.reconcile()
    shutil.rmtree(host.state)
    host.write("a.yaml", "networks: {one: {subnets")
    host.write(
        "b.yaml", "networks: {two: {subnets: 10.8.0.0/24}}\ncontainers: {y: {interfaces: two}}\n"
    )
    run = host.reconcile(check=False)
    assert run.code == 2 and run.report["removed"] == 0
    assert host.ping("x", SERVER) and host.ping("y", SERVER)


def test_losing_the_state_dir_changes_nothing(bare: PrivateHost) -> None:
    bare.write("a.yaml", NETS + "containers: {a: {interfaces: runc0}, b: {interfaces: runc0}}\n")
    bare.reconcile()
    bare.write("a.yaml", NETS + "containers: {b: {interfaces: runc0}}\n")
    bare.reconcile()
    before = bare.addresses("eth0", "b")
    shutil.rmtree(bare.state)
    assert bare.reconcile().changes == []
    bare.write("a.yaml", NETS + "containers: {b: {interfaces: runc0}, c: {interfaces: runc0}}\n")
    bare.reconcile()
    assert bare.addresses("eth0", "b") == before != bare.addresses("eth0", "c")


def test_a_renamed_interface_is_known_by_its_new_name(bare: PrivateHost) -> None:
    lan = "{network: runc0, name: lan}"
    bare.write("a.yaml", NETS + "containers: {a: {interfaces: runc0}, b: {interfaces: runc0}}\n")
    bare.reconcile()
    bare.write("a.yaml", NETS + "containers: {b: {interfaces: runc0}}\n")
    bare.reconcile()
    before = bare.addresses("eth0", "b"), bare.link("eth0", "b")["ifindex"]

    def now() -> tuple[list[str], int]:
        return bare.addresses("lan", "b"), bare.link("lan", "b")["ifindex"]

    shutil.rmtree(bare.state)
    bare.write("a.yaml", NETS + f"containers: {{b: {{interfaces: {lan}}}}}\n")
    bare.reconcile()
    assert now() == before
    shutil.rmtree(bare.state)
    assert bare.reconcile().changes == [] and now() == before
    # Somebody else may have the old name.
    more = "{network: runc0, name: eth0, default_route: false}"
    bare.write("a.yaml", NETS + f"containers: {{b: {{interfaces: [{more}, {lan}]}}}}\n")
    assert bare.reconcile().report["converged"] and now() == before
    assert bare.addresses("eth0", "b") != before[0]


def test_losing_the_record_changes_nothing(bare: PrivateHost) -> None:
    bare.write("a.yaml", NETS + "containers: {a: {interfaces: runc0}, b: {mode: none}}\n")
    bare.reconcile()
    bare.sh("rm -r /run/runcnet")
    assert bare.reconcile().changes == []
    bare.write("a.yaml", NETS + "containers: {b: {mode: none}}\n")
    assert bare.reconcile().report["removed"] == 1


@pytest.mark.parametrize("way", ["empty folder", "no folder", "empty file"])
def test_nothing_declared_removes_nothing(bare: PrivateHost, way: str) -> None:
    bare.write("a.yaml", NETS + "containers: {a: {interfaces: runc0}}\n")
    bare.reconcile()
    before = bare.ours()
    if way == "empty file":
        bare.write("a.yaml", "")
    else:
        bare.drop("a.yaml")
        if way == "no folder":
            bare.config.rmdir()
    run = bare.reconcile("--once", "--max-removals", "all", check=False)
    assert run.code == 1 and run.report["removed"] == 0 and run.report["held_back"]
    assert bare.ours() == before


def test_a_container_in_use_is_held_back_until_its_last_process_left(bare: PrivateHost) -> None:
    bare.write("a.yaml", NETS + "containers: {a: {interfaces: runc0}, b: {interfaces: runc0}}\n")
    bare.reconcile()
    bare.write("a.yaml", NETS + "containers: {b: {interfaces: runc0}}\n")
    with bare.process("a") as child:
        run = bare.reconcile(check=False)
        held = run.report["held_back"]
        assert run.code == 1 and held[0]["object"] == "container/a"
        assert str(child.pid) in held[0]["reason"]
        assert bare.ping("a", "176.10.0.1")
    run = bare.reconcile()
    assert run.report["removed"] == 1 and "a" not in bare.ours()["netns"]


def test_a_network_is_held_with_its_member_and_its_rules(host: PrivateHost) -> None:
    host.write("a.yaml", NETS)
    host.write(
        "b.yaml", "networks: {old: {subnets: 10.9.0.0/24}}\ncontainers: {a: {interfaces: old}}\n"
    )
    host.reconcile()
    host.drop("b.yaml")
    with host.process("a"):
        run = host.reconcile(check=False)
        assert {h["object"] for h in run.report["held_back"]} == {"container/a", "network/old"}
        assert host.ping("a", SERVER)
    assert host.reconcile().report["removed"] == 2
    assert "old" not in str(host.ours())


def test_too_many_removals_remove_nothing(bare: PrivateHost) -> None:
    many = "containers: {keep: {interfaces: runc0}, w: {replicas: 9, interfaces: runc0}}\n"
    bare.write("a.yaml", NETS + many)
    bare.reconcile()
    bare.write("a.yaml", NETS + "containers: {keep: {interfaces: runc0}}\n")
    run = bare.reconcile(check=False)
    assert run.code == 1 and run.report["removed"] == 0
    assert "--max-removals 9" in run.report["held_back"][0]["reason"]
    assert bare.reconcile("--once", "--max-removals", "9").report["removed"] == 9


def test_a_file_that_just_changed_is_read_again_before_anything_goes(bare: PrivateHost) -> None:
    bare.write("a.yaml", NETS + "containers: {a: {interfaces: runc0}, b: {interfaces: runc0}}\n")
    bare.reconcile()
    path = bare.write("a.yaml", NETS + "containers: {a: {interfaces: runc0}}\n", age_s=0.0)
    assert bare.reconcile().report["removed"] == 1
    assert time.time() - path.stat().st_mtime >= 1.0


def test_foreign_objects_in_the_way_are_named_and_left(bare: PrivateHost) -> None:
    bare.sh(
        "ip link add taken type bridge; ip netns add mine; ip netns exec mine ip link set lo up"
    )
    bare.write(
        "a.yaml",
        "networks: {taken: {subnets: 10.9.0.0/24}, good: {subnets: 10.8.0.0/24}, "
        "lan: {subnets: 192.0.2.128/25}}\n"
        "containers: {mine: {mode: none}, x: {interfaces: taken}, y: {interfaces: good}}\n",
    )
    run = bare.reconcile(check=False)
    said = {p["object"]: p["message"] for p in run.report["problems"]}
    assert run.code == 1
    assert "taken exists and is not runcnet's" in said["network/taken"]
    assert "external: true" in said["network/taken"]
    assert "overlaps 192.0.2.2/24 on eth0" in said["network/lan"]
    assert "ip netns del mine" in said["container/mine"]
    assert "taken" in said["container/x"]
    assert bare.ping("y", "10.8.0.1")
    assert "ifalias" not in bare.link("taken")


@pytest.mark.parametrize("kind", ["bridge", "routed"])
@pytest.mark.parametrize("subnets", ["192.0.2.0/24", '[10.50.0.0/24, "2001:db8:ffff::/64"]'])
def test_a_standing_network_is_not_moved_onto_what_the_host_has(
    bare: PrivateHost, kind: str, subnets: str
) -> None:
    """The new gateway would be the address of the host's own router."""
    text = f"networks: {{n: {{type: {kind}, subnets: %s}}}}\ncontainers: {{a: {{interfaces: n}}}}\n"
    bare.write("a.yaml", text % "10.50.0.0/24")
    bare.reconcile()

    def state() -> str:
        shown = [bare.run("ip", *lead, "-6", "route").out for lead in ([], ["-n", "a"])]
        shown += [bare.run("ip", *lead, "route").out for lead in ([], ["-n", "a"])]
        shown += [bare.run("ip", *lead, "addr").out for lead in ([], ["-n", "a"])]
        return "\n".join(shown)

    before = state()
    bare.write("a.yaml", text % subnets)
    for _ in range(2):
        run = bare.reconcile(check=False)
        assert run.code == 1 and not [o for o in run.report["operations"] if o["error"]]
        said = {p["object"]: p["message"] for p in run.report["problems"]}
        assert "on eth0, which is not runcnet's" in said["network/n"]
        assert "network n: " in said["container/a"]
        assert state() == before
    bare.write("a.yaml", text % "10.50.0.0/24")
    assert bare.reconcile().report["converged"] and bare.ping("a", "10.50.0.1")


@pytest.mark.parametrize("kind", ["bridge", "routed"])
def test_a_network_that_stood_before_somebody_overlapped_it_is_repaired(
    bare: PrivateHost, kind: str
) -> None:
    bare.write(
        "a.yaml",
        f"networks: {{n: {{type: {kind}, subnets: 10.50.0.0/24}}}}\n"
        "containers: {a: {interfaces: n}}\n",
    )
    bare.reconcile()
    bare.sh("ip route add 10.0.0.0/8 via 192.0.2.1")  # a tunnel's, say
    link, prefix = ("n", 24) if kind == "bridge" else ("lo", 32)
    bare.sh(f"ip addr del 10.50.0.1/{prefix} dev {link}")
    assert bare.reconcile().report["converged"] and bare.ping("a", "10.50.0.1")


def test_a_bridge_with_a_foreign_port_is_not_removed(bare: PrivateHost) -> None:
    bare.write("a.yaml", NETS)
    bare.write("b.yaml", "networks: {old: {subnets: 10.9.0.0/24}}\n")
    bare.reconcile()
    bare.sh("ip link add own0 type veth peer name own1; ip link set own0 master old")
    bare.drop("b.yaml")
    run = bare.reconcile(check=False)
    assert "own0" in run.report["held_back"][0]["reason"]
    assert bare.link("old")["ifname"] == "old"


def test_a_foreign_link_with_a_forged_mark_is_left_alone(bare: PrivateHost) -> None:
    bare.write("a.yaml", NETS + "containers: {a: {interfaces: runc0}}\n")
    bare.reconcile()
    bare.sh("ip link add f0 type veth peer name f1; ip link set f0 alias runcnet:runc0/gone/eth0")
    assert bare.reconcile().changes == []
    assert bare.link("f0")["ifname"] == "f0"


def test_one_failing_container_leaves_the_others_alone(bare: PrivateHost) -> None:
    bare.write(
        "a.yaml",
        NETS
        + "containers:\n  bad: {interfaces: runc0, sysctls: {net.ipv4.ping_group_range: 9 1 x}}\n"
        "  good: {interfaces: runc0}\n",
    )
    run = bare.reconcile(check=False)
    broken = [o for o in run.report["operations"] if not o["ok"]]
    assert run.code == 1 and [o["object"] for o in broken] == ["container/bad"]
    assert "net.ipv4.ping_group_range" in broken[0]["error"]
    assert bare.ping("good", "176.10.0.1")
    assert "bad" not in bare.ours()["netns"]


def test_a_sysctl_that_no_namespace_has_is_refused_before_anything_is_made(
    bare: PrivateHost,
) -> None:
    text = NETS + "containers:\n  bad: {interfaces: runc0%s}\n  good: {interfaces: runc0}\n"
    bare.write("a.yaml", text % "")
    bare.reconcile()
    path = bare.write("a.yaml", text % ", sysctls: {net.core.rmem_max: 1, net.no.such: 1}")
    run = bare.reconcile(check=False)
    assert run.code == 2 and run.changes == []
    found = [(r["file"], r["line"], r["path"]) for r in run.report["rejected"]]
    assert (str(path), 3, "containers.bad.sysctls.net.no.such") in found
    assert bare.ping("bad", "176.10.0.1") and bare.ping("good", "176.10.0.1")


def test_a_run_with_another_netns_dir_forgets_nobody(bare: PrivateHost) -> None:
    bare.write("a.yaml", NETS + "containers: {a: {interfaces: runc0}, b: {mode: none}}\n")
    bare.reconcile()
    run = bare.reconcile("--once", "--netns-dir", "/run/elsewhere", check=False)
    assert run.code == 1 and "still holds its old namespace" in run.out
    bare.reconcile("--once", check=False)
    assert bare.ping("a", "176.10.0.1")
    status = bare.runcnet("status", "--json", check=False).report
    assert {c["name"]: c["state"] for c in status["containers"]}["a"] == "ok"


def test_a_namespace_that_somebody_holds_keeps_its_link_for_a_pass(bare: PrivateHost) -> None:
    bare.write("a.yaml", NETS + "containers: {a: {interfaces: runc0}, b: {mode: none}}\n")
    bare.reconcile()
    holder = bare.start("sh", "-c", "exec 9</run/netns/a; echo ready; exec sleep infinity")
    assert holder.stdout and holder.stdout.readline() == "ready\n"
    bare.write("a.yaml", NETS + "containers: {b: {mode: none}}\n")
    run = bare.reconcile(check=False)
    assert run.code == 1 and "still lives" in run.out
    assert len(bare.ours()["links"]) == 2
    bare.reconcile()
    assert len(bare.ours()["links"]) == 1
    assert bare.reconcile().changes == []
