"""Only what pyproject.toml cannot say: the C layer, a C program, and that the wheel is abi3."""

import os

from setuptools import setup
from setuptools.command.build_ext import build_ext


class WithClient(build_ext):
    """Builds `runcnet-hook` beside the C layer, into the package."""

    def run(self) -> None:
        super().run()
        if self.inplace or self.editable_mode:
            folder = self.get_finalized_command("build_py").get_package_dir("reconciler")
        else:
            folder = os.path.join(self.build_lib, "reconciler")
        objects = self.compiler.compile(
            ["_netlink/client.c"],
            output_dir=self.build_temp,
            extra_postargs=["-std=gnu11", "-O2"],
        )
        self.compiler.link_executable(objects, "runcnet-hook", output_dir=folder)
        if not self.editable_mode:
            # Hooks write it (reconciler/bytecode.py); what came with the package goes with it.
            with open(os.path.join(folder, "hook.pack"), "wb"):
                pass


setup(
    cffi_modules=["_netlink/build.py:ffibuilder"],
    cmdclass={"build_ext": WithClient},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
