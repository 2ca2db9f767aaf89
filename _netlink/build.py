"""Builds the C layer as `reconciler._rtnl` (cffi, API mode, abi3): `python _netlink/build.py`."""

import os
import re
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
ALONE = ("_rtnl.c", "client.c")
"""What is made here, and a program of its own (setup.py)."""


def declarations() -> str:
    """The text of rtnl_api.h as cdef takes it: the same text, so that the two cannot drift apart."""
    text = re.sub(r"/\*.*?\*/", "", (HERE / "rtnl_api.h").read_text(), flags=re.DOTALL)
    return re.sub(r"^#.*$", "", text, flags=re.MULTILINE)


def _relative(path: Path) -> str:
    return os.path.relpath(path, ROOT)


ffibuilder = FFI()
ffibuilder.cdef(declarations())
ffibuilder.set_source(
    "reconciler._rtnl",
    '#include "rtnl_api.h"\n',
    sources=sorted(_relative(path) for path in HERE.glob("*.c") if path.name not in ALONE),
    depends=sorted(_relative(path) for path in HERE.glob("*.h")),
    include_dirs=[_relative(HERE)],
    extra_compile_args=["-std=gnu11", "-O2", "-pthread"],
    extra_link_args=["-pthread"],
    py_limited_api=True,
)

if __name__ == "__main__":
    os.chdir(ROOT)
    ffibuilder.compile(tmpdir=".", verbose=False)
