"""`make demo`: the main job in a private host; nothing of this machine is changed."""

import shutil
import sys
import time

from tests.support.host import ROOT, SERVER, PrivateHost

HIDDEN = ("sandbox-", "cell-")
"""Replicas: what one line of each would not tell better."""
HIDDEN_PLAN = tuple(f"+ container {name}" for name in HIDDEN)


def say(text: str) -> None:
    """A heading."""
    print(f"\n\x1b[1m== {text}\x1b[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


def main() -> int:
    """Declare, apply, look, start a real container, ping."""
    started = time.monotonic()
    host = PrivateHost()
    try:
        for path in sorted((ROOT / "config").glob("*.yaml")):
            shutil.copy(path, host.config / path.name)
        bundle = host.bundle("shop", "sleep", "600")
        host.write(
            "90-shop.yaml",
            f"containers:\n  shop:\n    interfaces: runc0\n    bundle: {bundle}\n",
        )
        host.age(5)
        say("the plan (runcnet-reconcile --dry-run)")
        words = host.command("runcnet-reconcile")
        plan = host.run(*words, "--dry-run", *host.options).out.splitlines()
        print("\n".join(line for line in plan if not line.startswith(HIDDEN_PLAN)))
        say("runcnet-reconcile --once")
        began = time.monotonic()
        first = host.run(*words, "--once", *host.options)
        print("\n".join(first.out.splitlines()[-1:] + first.err.splitlines()))
        print(f"whole process: {time.monotonic() - began:.2f} s")
        say("runcnet status")
        lines = host.runcnet("status").out.splitlines()
        print("\n".join(line for line in lines if not line.startswith(HIDDEN)))
        say("a real runc container, wired by `bundle:`")
        with host.container("shop", bundle):
            for what, target in (
                ("its gateway", "176.10.0.1"),
                ("a sibling", "176.10.0.101"),
                ("a server beyond the uplink", SERVER),
            ):
                out = host.runc("exec", "shop", "ping", "-c1", "-W2", target).out.splitlines()
                print(f"{what:<27} {out[1]}")
        say("runcnet-reconcile --once, again: nothing to do")
        second = host.reconcile()
        print(host.run(*words, "--once", *host.options).out, end="")
        assert second.report["changed"] == 0
        say(f"done in {time.monotonic() - started:.1f} s; the private host is gone")
        return 0
    finally:
        host.close()


if __name__ == "__main__":
    raise SystemExit(main())
