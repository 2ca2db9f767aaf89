"""The code of all modules that hooks load, in one file: a container's start waits for a hook.

Python keeps the code of a module in a file of its own, and looks for each of some 120 in several
folders. `hook.pack` in the folder of this package holds the same code in one piece. A module is taken from
it as long as its source is the same file, with the same size and times; what is not in it, or another by
now, is loaded as usual, and is in the next one. It comes empty with the package, so that whoever
takes the package away takes it, too.
"""

import _imp
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

    State = tuple[int, int, int, int]
    """Of a source: inode, size, times of change (nanoseconds)."""
    Entry = tuple[str, bool, State, int, int, bytes]
    """Source, whether it is a package, its state, where behind the table of all the code begins, its
    length and digest."""

FILE = "hook.pack"
LEAD = 12
"""The length of the table, and its digest, before it (bytes)."""
LIMIT = 16 << 20
"""A larger file is none of ours (bytes)."""


class Pack:
    """A finder and loader of modules (`sys.meta_path`): of those that are in the file."""

    def __init__(self, path: str = "") -> None:
        """A file that is not there, or not to be trusted, is an empty one."""
        self._path = path or os.path.join(os.path.dirname(os.path.abspath(__file__)), FILE)
        self._fd = -1
        self._begin = 0
        self._known: dict[str, Entry] = {}
        # What code is made for, and where it was found.
        self._maker = (sys.version, list(sys.path))
        self._before = frozenset(sys.modules)
        try:
            self._open()
        except Exception:  # whatever is wrong with it, Python finds its modules without it
            self._known = {}

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        found = os.fstat(self._fd)
        owners = (0, os.geteuid(), os.stat(__file__).st_uid)
        if not stat.S_ISREG(found.st_mode) or found.st_mode & 0o022 or found.st_uid not in owners:
            return
        lead = os.pread(self._fd, LEAD, 0)
        size = int.from_bytes(lead[:4], "little")
        if not size < found.st_size <= LIMIT:
            return
        self._begin = LEAD + size
        table = os.pread(self._fd, size, LEAD)
        if _digest(table) != lead[4:]:
            return
        maker, known = marshal.loads(table)
        if maker == self._maker:
            self._known = known

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """The spec of a module that can be had from here; None: it cannot."""
        if name not in self._known:
            return None
        try:
            return self._spec(name, self._known[name])
        except Exception:  # as above
            return None

    def _spec(self, name: str, entry: "Entry") -> "ModuleSpec | None":
        file, is_package, state, *_ = entry
        if _state(file) != state:
            return None
        raw = self._raw(entry)
        if raw is None:
            return None
        code: CodeType = marshal.loads(raw)
        # importlib.machinery would have to be loaded.
        spec: ModuleSpec = type(__spec__)(name, self, origin=file, is_package=is_package)  # type: ignore[arg-type]
        spec.has_location = True
        spec.loader_state = code
        if spec.submodule_search_locations is not None:
            spec.submodule_search_locations.append(os.path.dirname(file))
        return spec

    def _raw(self, entry: "Entry") -> bytes | None:
        """None: it is not what was written."""
        *_, at, length, digest = entry
        found = os.pread(self._fd, length, self._begin + at)
        return found if _digest(found) == digest else None

    def create_module(self, spec: "ModuleSpec") -> None:
        """As any module is made."""

    def exec_module(self, module: "ModuleType") -> None:
        """Run the code that was found."""
        assert module.__spec__ is not None  # the import system gives it one
        exec(module.__spec__.loader_state, module.__dict__)  # noqa: S102 - as any loader

    def keep(self) -> None:
        """Write the file anew if something was loaded that is not in it, or is another by now.

        Raises OSError where that cannot be done, and whatever a source does that is being replaced.
        """
        fresh = {
            name: spec
            for name, module in list(sys.modules.items())
            if name not in self._before
            and (spec := getattr(module, "__spec__", None)) is not None
            and spec.name == name
            and type(spec.loader) is type(__spec__.loader)  # it has a source
        }
        folder, file = os.path.split(self._path)
        if not fresh or not os.access(folder, os.W_OK):
            return
        codes = {
            one: (entry[:3], raw)
            for one, entry in self._known.items()
            if one not in fresh
            and os.path.exists(entry[0])
            and (raw := self._raw(entry)) is not None
        }
        for one, spec in fresh.items():
            assert spec.origin is not None  # it has a file
            # Whoever replaces it meanwhile has the code of a file that is there no more.
            before = _state(spec.origin)
            code = marshal.dumps(spec.loader.get_code(one))
            codes[one] = ((spec.origin, spec.submodule_search_locations is not None, before), code)
        from reconciler.host import files

        with files.folder(folder) as fd:
            for name in os.listdir(fd):
                if name.startswith(f".{file}."):  # of a process that was killed while it wrote
                    os.unlink(name, dir_fd=fd)
            files.write_at(fd, file, self._packed(codes), 0o644)

    def _packed(self, codes: "dict[str, tuple[tuple[str, bool, State], bytes]]") -> bytes:
        places, at = {}, 0
        for one, (entry, code) in codes.items():
            places[one] = (*entry, at, len(code), _digest(code))
            at += len(code)
        head = marshal.dumps((self._maker, places))
        lead = len(head).to_bytes(4, "little") + _digest(head)
        return b"".join([lead, head, *(code for _, code in codes.values())])


def _digest(code: bytes) -> bytes:
    """Against damage alone: whoever may write the file may write all else."""
    return _imp.source_hash(0x72756E63, code)


def _state(source: str) -> "State":
    found = os.stat(source)
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def entry() -> "NoReturn":
    """`runcnet hook`, as the client runs it in an interpreter that has loaded nothing yet."""
    pack = None
    if sys.argv[1:2] == ["hook"]:
        gc.disable()  # it lives for a moment, and what is loaded in it stays to the end
        pack = Pack()
        sys.meta_path.insert(0, pack)
    from reconciler import cli

    code = cli.main()
    if pack is not None and not code:
        try:  # noqa: SIM105 - contextlib would be loaded before all else
            pack.keep()
        except Exception:  # the hook has done its work; the next one may
            pass
    cli.leave(code)
