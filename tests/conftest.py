"""Fixtures: a private host a test."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.support import need
from tests.support.host import PrivateHost

# How long an example takes says something of the machine, not of the code.
settings.register_profile(
    "busy",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("busy")


@pytest.fixture
def host() -> Iterator[PrivateHost]:
    """A host of the test's own, with the legacy xtables."""
    need.root()
    need.kernel()
    need.legacy_tables()
    private = PrivateHost()
    try:
        yield private
    finally:
        private.close()


@pytest.fixture(params=["iptables", "nftables"])
def either(host: PrivateHost, request: pytest.FixtureRequest) -> PrivateHost:
    """The same with each of the two firewalls."""
    need.program("nft")
    host.firewall = request.param
    return host


@pytest.fixture
def bare() -> Iterator[PrivateHost]:
    """A host on which runcnet leaves the firewall alone: quicker, where rules do not matter."""
    need.root()
    need.kernel()
    private = PrivateHost()
    private.firewall = "none"
    try:
        yield private
    finally:
        private.close()
