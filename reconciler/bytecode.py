"""The code of all modules that hooks load, in one file: a container's start waits for a hook.

Python keeps the code of a module in a file of its own, `__pycache__/NAME.pyc`, and looks for each of some
150 in several folders. `hook.TAG.pack`, beside the pyc files of this package, holds the same code in one
piece. A module is taken from it as long as its source has the time and the size that it had then, which
is Python's own rule for a pyc; what is not in it, or another by now, is loaded as usual, and is in the
next one.
"""

import gc
import marshal
import os
import stat
import sys

# What is imported here cannot come out of the pack: it is what an interpreter has loaded as it begins.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import CodeType, ModuleType
    from typing import NoReturn

    Entry = tuple[str, bool, int, int, int, int]
    """Source, whether it is a package, time (nanoseconds) and size of the source, and where behind the
    table of all the code begins, and its length."""

LIMIT = 16 << 20
"""A larger file is none of ours (bytes)."""


class Pack:
    """A finder and loader of modules (`sys.meta_path`): of those that are in the file."""

    def __init__(self, path: str = "") -> None:
        """A file that is not there, or not to be trusted, is an empty one."""
        self._path = path or _usual()
        self._fd = -1
        self._begin = 0
        self._known: dict[str, Entry] = {}
        # What code is made for, and where it was found.
        self._maker = (sys.version, list(sys.path))
        self._before = frozenset(sys.modules)
        try:
            self._open()
        except (OSError, EOFError, ValueError, TypeError):
            self._known = {}

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        found = os.fstat(self._fd)
        owners = (0, os.geteuid(), os.stat(__file__).st_uid)
        if not stat.S_ISREG(found.st_mode) or found.st_mode & 0o022 or found.st_uid not in owners:
            return
        size = int.from_bytes(os.pread(self._fd, 4, 0), "little")
        if not size < found.st_size <= LIMIT:
            return
        self._begin = 4 + size
        maker, known = marshal.loads(os.pread(self._fd, size, 4))
        if maker == self._maker:
            self._known = known

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """The spec of a module that can be had from here; None: it cannot."""
        entry = self._known.get(name)
        code = self._code(entry) if entry is not None else None
        if entry is None or code is None:
            return None
        file, is_package, *_ = entry
        # importlib.machinery would have to be loaded.
        spec: ModuleSpec = type(__spec__)(name, self, origin=file, is_package=is_package)  # type: ignore[arg-type]
        spec.has_location = True
        spec.loader_state = code
        if spec.submodule_search_locations is not None:
            spec.submodule_search_locations.append(os.path.dirname(file))
        return spec

    def _code(self, entry: "Entry") -> "CodeType | None":
        file, _, modified, size, *_ = entry
        try:
            found = os.stat(file)
            if (found.st_mtime_ns, found.st_size) != (modified, size):
                return None
            code: CodeType = marshal.loads(self._raw(entry))
        except (OSError, EOFError, ValueError, TypeError):
            return None
        return code

    def _raw(self, entry: "Entry") -> bytes:
        *_, at, length = entry
        return os.pread(self._fd, length, self._begin + at)

    def create_module(self, spec: "ModuleSpec") -> None:
        """As any module is made."""

    def exec_module(self, module: "ModuleType") -> None:
        """Run the code that was found."""
        assert module.__spec__ is not None  # the import system gives it one
        exec(module.__spec__.loader_state, module.__dict__)  # noqa: S102 - as any loader

    def keep(self) -> None:
        """Write the file anew if something was loaded that is not in it, or is another by now.

        Raises OSError where that cannot be done.
        """
        fresh = {
            name: spec
            for name, module in list(sys.modules.items())
            if name not in self._before
            and (spec := getattr(module, "__spec__", None)) is not None
            and spec.name == name
            and type(spec.loader) is type(__spec__.loader)  # it has a source and a pyc
        }
        folder, name = os.path.split(self._path)
        if not fresh or not os.access(folder, os.W_OK):
            return
        codes = {
            one: (entry[:4], self._raw(entry))
            for one, entry in self._known.items()
            if one not in fresh and self._code(entry) is not None
        }
        for one, spec in fresh.items():
            assert spec.origin is not None  # it has a file
            before = os.stat(spec.origin)
            code = spec.loader.get_code(one)
            whose = (spec.origin, spec.submodule_search_locations is not None)
            codes[one] = ((*whose, before.st_mtime_ns, before.st_size), marshal.dumps(code))
        from reconciler.host import files

        with files.folder(folder) as fd:
            files.write_at(fd, name, self._packed(codes), 0o644)

    def _packed(self, codes: "dict[str, tuple[tuple[str, bool, int, int], bytes]]") -> bytes:
        places, at = {}, 0
        for one, (entry, code) in codes.items():
            places[one] = (*entry, at, len(code))
            at += len(code)
        head = marshal.dumps((self._maker, places))
        return b"".join(
            [len(head).to_bytes(4, "little"), head, *(code for _, code in codes.values())]
        )


def entry() -> "NoReturn":
    """`runcnet hook`, as the client runs it in an interpreter that has loaded nothing yet."""
    gc.disable()  # it lives for a moment, and what is loaded in it stays to the end
    pack = Pack()
    sys.meta_path.insert(0, pack)
    from reconciler import cli

    code = cli.main()
    try:  # noqa: SIM105 - contextlib would be loaded before all else
        pack.keep()
    except OSError:
        pass  # the next one may
    cli.leave(code)


def _usual() -> str:
    folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "__pycache__")
    return os.path.join(folder, f"hook.{sys.implementation.cache_tag}.pack")
