"""A user without rights on a private host, and a user namespace of that user's own."""

import contextlib
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from tests.support import need
from tests.support.host import ROOT, PrivateHost, Run, wait_for

UID = 65534
BECOME = ("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "--")


def _open_way(path: Path) -> str:
    """Shell words that make a folder reachable for everybody, in a mount namespace of one's own."""
    shut = next((p for p in reversed(path.parents) if not p.stat().st_mode & 0o001), None)
    if shut is None:
        return ""
    return f"""
mkdir -p /run/aside && mount --bind {path} /run/aside
mount -t tmpfs -o mode=755 none {shut} && mkdir -p {path}
mount --bind /run/aside {path} && umount /run/aside
"""


class User:
    """Runs commands as a user without rights, who has a folder of his own."""

    def __init__(self, host: PrivateHost) -> None:
        need.program("setpriv")
        self.host = host
        self.home = Path("/run/home")
        self.id = f"{host.dir.name}-web"
        """A container's id that no other test has: cgroups are the machine's, and where one of that name
        is there already, it cannot be used without root."""
        host.run("install", "-d", "-o", str(UID), "-g", str(UID), str(self.home))
        # The interpreter, what it imports and the tests may lie in root's home.
        ways = (Path(sys.base_prefix), Path(sysconfig.get_path("purelib")), ROOT)
        for way in ways:
            if host.run(*BECOME, "test", "-r", f"{way}/.", check=False).code:
                host.sh(_open_way(way))

    def run(self, *words: str, check: bool = True) -> Run:
        """Run a command to its end."""
        home = [f"HOME={self.home}", "PYTHONDONTWRITEBYTECODE=1"]
        return self.host.run(*self.lead(), "env", *home, *words, check=check)

    def sh(self, script: str, check: bool = True) -> Run:
        """Run a shell script in the user's folder."""
        return self.run("sh", "-ec", f"cd {self.home}; {script}", check=check)

    def lead(self) -> tuple[str, ...]:
        """What stands before each command."""
        return BECOME

    @property
    def options(self) -> list[str]:
        """Folders of the user's own."""
        words = []
        for option in ("config", "state", "run", "netns"):
            words += [f"--{option}-dir", str(self.home / option)]
        return words

    def runcnet(self, name: str, *words: str, check: bool = True) -> Run:
        """A command of runcnet's, with these folders."""
        run = self.run(*self.host.command("runcnet", name, *self.options, *words), check=False)
        assert "Traceback" not in run.err, run.err
        assert run.code == 0 or not check, f"{run.code}\n{run.out}\n{run.err}"
        return run

    def reconcile(self, *words: str, check: bool = True) -> Run:
        """`runcnet-reconcile --once --json` with these folders."""
        command = self.host.command("runcnet-reconcile", "--once", "--json", *self.options, *words)
        run = self.run(*command, check=False)
        assert "Traceback" not in run.err, run.err
        assert run.code == 0 or not check, f"{run.code}\n{run.out}\n{run.err}"
        return run

    def write(self, text: str) -> None:
        """A definition file that was left alone for a while."""
        config = self.home / "config"
        script = (
            f"mkdir -p {config}; cat >{config}/a.yaml; touch -d '1 minute ago' {config}/* {config}"
        )
        words = [*BECOME, "sh", "-ec", script]
        self.host.run(*words, stdin=text)

    def bundle(self, name: str, *command: str) -> Path:
        """A bundle as `runc spec --rootless` makes it for this user, whose process runs `command`."""
        ready = self.host.bundle(name, *command)
        bundle = self.home / name
        self.host.sh(
            f"cp -r {ready} {bundle}; rm {bundle}/config.json; chown -R {UID}:{UID} {bundle}"
        )
        self.run("runc", "spec", "--rootless", "-b", str(bundle))
        edit = """
import json, sys
path, *words = sys.argv[1:]
config = json.load(open(path))
config["process"].update(terminal=False, args=words)
config["root"]["readonly"] = False
for held in config["process"]["capabilities"].values():
    held.append("CAP_NET_RAW")
config["mounts"] = [m for m in config["mounts"] if m["type"] != "cgroup"]
config["linux"]["namespaces"] = [n for n in config["linux"]["namespaces"] if n["type"] != "cgroup"]
open(path, "w").write(json.dumps(config, indent=2))
"""
        self.run(sys.executable, "-c", edit, str(bundle / "config.json"), *command)
        return bundle


class Inside(User):
    """The same in a user namespace of the user's own, with network and mount namespaces (`flags`)."""

    def __init__(self, host: PrivateHost, flags: str) -> None:
        super().__init__(host)
        words = [*BECOME, "unshare", flags, "sleep", "infinity"]
        self._holder = subprocess.Popen(host.enter(*words), stderr=subprocess.DEVNULL)
        outer = os.readlink("/proc/self/ns/user")

        def there() -> bool:
            if self._holder.poll() is not None:
                need.missing("this kernel lets no ordinary user make user namespaces")
            return "0" in self._map().split()[:1] and self._space() != outer

        wait_for(there, what="the user namespace")
        self._flags = ["-U", "--preserve-credentials"]
        self._flags += [f"-{letter}" for letter in "nm" if letter in flags]

    def _map(self) -> str:
        return Path(f"/proc/{self._holder.pid}/uid_map").read_text()

    def _space(self) -> str:
        with contextlib.suppress(OSError):
            return os.readlink(f"/proc/{self._holder.pid}/ns/user")
        return ""

    def lead(self) -> tuple[str, ...]:
        """What stands before each command."""
        return (*BECOME, "nsenter", "-t", str(self._holder.pid), *self._flags, "--")

    def close(self) -> None:
        """End it."""
        self._holder.kill()
        self._holder.wait(10)


@contextlib.contextmanager
def inside(host: PrivateHost, flags: str = "-Urnm") -> Iterator[Inside]:
    """A user namespace that ends with the block."""
    found = Inside(host, flags)
    try:
        yield found
    finally:
        found.close()
