"""Only what pyproject.toml cannot say: the C layer, and that its wheel is abi3."""

from setuptools import setup

setup(
    cffi_modules=["_netlink/build.py:ffibuilder"],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
