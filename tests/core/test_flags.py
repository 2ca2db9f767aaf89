"""`--network NET[:ip=A,mac=M,interface_name=I]`."""

import pytest

from reconciler.core.flags import interface_of
from reconciler.core.schema import RawInterface


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("runc0", RawInterface(network="runc0")),
        ("a+b.c:ip=10.0.0.5", RawInterface(network="a+b.c", addresses=["10.0.0.5"])),
        (
            "runc0:ip=fd00::5,mac=02:42:0a:58:00:65,interface_name=eth7,ip=10.0.0.5",
            RawInterface(
                network="runc0",
                addresses=["fd00::5", "10.0.0.5"],
                mac="02:42:0a:58:00:65",
                name="eth7",
            ),
        ),
    ],
)
def test_a_flag_says_what_a_file_would(text: str, found: RawInterface) -> None:
    assert interface_of(text) == found


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "'' is no network name"),
        ("../x", "'../x' is no network name"),
        ("runc0:", "'' is no option (ip=, mac=, interface_name=)"),
        ("runc0:ip=10.0.0.5,", "'' is no option"),
        ("runc0:10.0.0.5", "'10.0.0.5' is no option"),
        ("runc0:alias=x", "'alias=x' is no option"),
        ("runc0:ip=", "'' is no IP address"),
        ("runc0:ip=10.0.0.5/24", "'10.0.0.5/24' is no IP address"),
        ("runc0:ip=10.0.0.5,ip=10.0.0.6", "10.0.0.6 is a second IPv4 address"),
        ("runc0:mac=03:42:0a:58:00:65", "is a group address"),
        ("runc0:mac=02:42:0a:58:00:65,mac=02:42:0a:58:00:65", "mac= stands there twice"),
        ("runc0:interface_name=all", "'all' is no interface name"),
        ("runc0:interface_name=", "'' is no interface name"),
    ],
)
def test_what_is_wrong_with_a_flag_is_said_with_the_right_form(text: str, why: str) -> None:
    with pytest.raises(ValueError, match="is the form") as caught:
        interface_of(text)
    assert why in str(caught.value)
    assert "NET[:ip=A,mac=M,interface_name=I] is the form" in str(caught.value)
