"""A file in a bundle that holds the container's address, for whoever starts it."""

import contextlib
import os

from reconciler.core.errors import ObjectError
from reconciler.host.files import folder, write_at


def write(path: str, text: str) -> None:
    """Write it, readable by all. Raises ObjectError."""
    place, name = os.path.split(path)
    try:
        with folder(place) as fd:
            write_at(fd, name, f"{text}\n".encode(), 0o644)
    except OSError as error:
        raise ObjectError(path, "write the address", error.strerror or str(error)) from error


def drop(path: str) -> None:
    """Take it away; content where it, or its folder, is gone."""
    place, name = os.path.split(path)
    with contextlib.suppress(OSError), folder(place) as fd:
        os.unlink(name, dir_fd=fd)
