"""Two runc containers in one network namespace."""

from tests.support import need
from tests.support.host import SERVER, PrivateHost, wait_for

TEXT = """
networks: {{runc0: {{subnets: 176.10.0.0/16}}}}
containers:
  web: {{interfaces: runc0, ports: "8080:80", bundle: {web}}}
  side: {{join: web, bundle: {side}}}
"""


def test_a_sidecar_lives_where_it_joins_and_outlives_whom_it_joined(host: PrivateHost) -> None:
    need.program("runc")
    web, side = host.bundle("web", "sleep", "600"), host.bundle("side", "sleep", "600")
    host.write("10.yaml", TEXT.format(web=web, side=side))
    host.reconcile()
    with host.container("side", side) as pid:
        with host.container("web", web):
            for name in ("web", "side"):
                host.runc("exec", name, "ping", "-c1", "-W2", SERVER)
                files = host.runc("exec", name, "cat", "/etc/hosts", "/etc/resolv.conf").out
                assert "176.10.0.2 web" in files
            # What one of them opens, the other one reaches on its own loopback, and the world by the port.
            serve = "runc --root /run/oci exec -d side sh -c 'echo hello | nc -l -p 80'"
            host.sh(f"{serve} >/dev/null 2>&1 </dev/null")
            wait_for(
                lambda: (
                    ":0050"
                    in host.runc("exec", "web", "cat", "/proc/net/tcp", "/proc/net/tcp6").out
                )
            )
            assert host.runc("exec", "web", "nc", "-w2", "127.0.0.1", "80").out == "hello\n"
        found = host.runcnet("status", "web", "--json").report["containers"][0]
        assert found["pids"] == [pid]
        # The one that made it is gone from the files, and its namespace is still lived in.
        host.write("10.yaml", "networks: {runc0: {subnets: 176.10.0.0/16}}\n")
        report = host.reconcile(check=False).report
        assert [h["object"] for h in report["held_back"]] == ["container/web"]
        assert f"pid {pid}" in report["held_back"][0]["reason"]
        host.runc("exec", "side", "ping", "-c1", "-W2", SERVER)
    assert host.reconcile().report["removed"] == 1
    assert host.ours()["netns"] == []
