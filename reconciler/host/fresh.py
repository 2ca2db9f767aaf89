"""Namespaces that a pass has just made, looked at while the kernel is at work on the next ones.

Each is looked at through its path, after it was bound there as the last step of its making; nothing
that the pass does later concerns what is inside it.
"""

from collections.abc import Sequence
from functools import partial

from reconciler.core.rows import Space
from reconciler.host import rtnl
from reconciler.host.ahead import Ahead


class Fresh:
    """Looks begun one after another; what could not be read is to be looked at again."""

    def __init__(self, netns_dir: str, sysctls: tuple[str, ...], *, key: bytes) -> None:
        self.netns_dir = netns_dir
        self.sysctls = sysctls
        self.key = key
        self._looks: list[tuple[Sequence[str], Ahead[list[Space]]]] = []

    def look(self, files: Sequence[str]) -> None:
        """Begin to look at these files of the netns dir."""
        if files:
            self._looks.append((files, Ahead(partial(self._scan, files))))

    def _scan(self, files: Sequence[str]) -> list[Space]:
        paths = [f"{self.netns_dir}/{file}" for file in files]
        spaces = rtnl.scan(paths, sysctls=self.sysctls, key=self.key)
        for space in spaces:
            space.rows  # noqa: B018 - decoded here and now, when there is time
        return spaces

    def spaces(self) -> dict[str, Space]:
        """Wait for all; by file, as far as they could be read."""
        return {
            file: space
            for files, look in self._looks
            for file, space in zip(files, look.result(), strict=True)
            if not space.error
        }
