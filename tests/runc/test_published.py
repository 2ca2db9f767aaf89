"""Real clients of real containers: curl from beyond the uplink, to a web server under runc."""

import pytest

from tests.support import need
from tests.support.host import PrivateHost, wait_for

FILE = """
networks:
  runc0: {{subnets: [176.10.0.0/16, "fd00:10::/64"]}}
  flat: {{type: routed, subnets: [176.11.0.0/16, "fd00:11::/64"]}}
containers:
  web: {{interfaces: {network}, bundle: {bundle}, ports: ["8080:80", "127.0.0.1:8081:80"]}}
  mate: {{interfaces: {network}}}
  other: {{interfaces: {elsewhere}}}
"""


@pytest.mark.parametrize("network,elsewhere", [("runc0", "flat"), ("flat", "runc0")])
def test_curl_reads_a_page_from_everywhere(host: PrivateHost, network: str, elsewhere: str) -> None:
    need.program("runc")
    need.program("curl")
    bundle = host.bundle("web", "httpd", "-f", "-p", "80", "-h", "/tmp")
    (bundle / "rootfs" / "bin" / "httpd").symlink_to("busybox")
    (bundle / "rootfs" / "tmp" / "index.html").write_text("a page from a container\n")
    text = FILE.format(network=network, elsewhere=elsewhere, bundle=bundle)
    host.write("a.yaml", text)
    assert host.reconcile().report["converged"]

    def page(netns: str, url: str) -> bool:
        lead = ["ip", "netns", "exec", netns] if netns else []
        words = ["curl", "-s", "--max-time", "3", "--noproxy", "*", url]
        return host.run(*lead, *words, check=False).out == "a page from a container\n"

    with host.container("web", bundle):
        wait_for(lambda: page("", "http://127.0.0.1:8080/"), what="the server to listen")
        for netns in ("internet", "", "mate", "other", "web"):
            for address in ("192.0.2.2", "[2001:db8:ffff::2]"):
                assert page(netns, f"http://{address}:8080/"), (netns, address)
        assert page("", "http://127.0.0.1:8081/")
        assert not page("internet", "http://192.0.2.2:8081/")
        assert not page("internet", "http://192.0.2.2:80/")
    assert not page("internet", "http://192.0.2.2:8080/")
    assert host.reconcile().changes == []
