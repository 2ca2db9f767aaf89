"""`--network NET[:ip=A,mac=M,interface_name=I]` → the interface as a definition file would write it.

`add`, `hook` and `bundle` take it; podman and netavark have it in the same form.
"""

from collections.abc import Callable
from typing import Any

from reconciler.core import fields
from reconciler.core.schema import RawInterface

FORM = "NET[:ip=A,mac=M,interface_name=I]"


def interface_of(text: str) -> RawInterface:
    """Read one flag. Raises ValueError with a whole sentence.

    `ip=` may stand once for each IP version. What only the network can tell (whether it is there,
    whether the address lies inside) is judged with the files.
    """
    network, colon, rest = text.partition(":")
    try:
        fields.name(network, 64, "network")
        found = RawInterface(network=network)
        words = rest.split(",") if colon else []
        addresses: dict[int, str] = {}
        for word in words:
            key, equals, value = word.partition("=")
            if not equals or key not in _READ:
                known = ", ".join(f"{name}=" for name in _READ)
                raise ValueError(f"{word!r} is no option ({known})")
            _READ[key](value)
            if key == "ip":
                version = fields.address(value).version
                if version in addresses:
                    raise ValueError(f"{value} is a second IPv{version} address (give one of each)")
                addresses[version] = value
                continue
            field = _FIELDS[key]
            if getattr(found, field) is not None:
                raise ValueError(f"{key}= stands there twice (give one)")
            setattr(found, field, value)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}; {FORM} is the form") from None
    if addresses:
        found.addresses = list(addresses.values())
    return found


_READ: dict[str, Callable[[str], Any]] = {
    "ip": fields.address,
    "mac": fields.mac,
    "interface_name": fields.interface,
}
_FIELDS = {"mac": "mac", "interface_name": "name"}
