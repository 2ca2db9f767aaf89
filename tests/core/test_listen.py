"""Where to listen: what is understood, and what is refused with which sentence."""

import pytest

from reconciler.core.listen import PATH_BYTES, UnixAddress, listen_address


@pytest.mark.parametrize(
    "text,meaning",
    [
        ("127.0.0.1:9533", "127.0.0.1:9533"),
        ("localhost:9533", "127.0.0.1:9533"),
        ("0.0.0.0:0", "0.0.0.0:0"),
        ("[::1]:9533", "[::1]:9533"),
        ("[::]:65535", "[::]:65535"),
        ("/run/runcnet/metrics.sock", "/run/runcnet/metrics.sock"),
        ("unix:/run/runcnet/metrics.sock", "/run/runcnet/metrics.sock"),
        ("/" + "x" * (PATH_BYTES - 1), "/" + "x" * (PATH_BYTES - 1)),
    ],
)
def test_addresses_that_are_understood(text: str, meaning: str) -> None:
    found = listen_address(text)
    assert str(found) == meaning
    assert isinstance(found, UnixAddress) == meaning.startswith("/")


@pytest.mark.parametrize(
    "text,why",
    [
        (":9534", "':9534' names no address (127.0.0.1:9534 is reached"),
        ("9534", "'9534' names no address (127.0.0.1:9534 is reached"),
        ("", "names no address"),
        (":", "names no address"),
        ("127.0.0.1", "'127.0.0.1' names no port (127.0.0.1:9533)"),
        ("127.0.0.1:", "names no port"),
        ("[::1]", "'[::1]' names no port ([::1]:9533)"),
        ("::1", "stands in brackets"),
        ("::1:9533", "stands in brackets"),
        ("[127.0.0.1]:9533", "only an IPv6 address stands in brackets"),
        ("[fe80::1%eth0]:9533", "is no IP address"),
        ("metrics.example:9533", "names are not looked up"),
        ("127.0.0.1:65536", "'65536' is no port"),
        ("127.0.0.1:-1", "'-1' is no port"),
        ("127.0.0.1:http", "'http' is no port"),
        ("unix:run/x.sock", "'run/x.sock' is no absolute path of a socket"),
        ("/run/runcnet/", "is no absolute path of a socket"),
        ("/" + "ä" * 54, "has 109 bytes"),
    ],
)
def test_addresses_that_are_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError) as error:
        listen_address(text)
    assert why in str(error.value)
