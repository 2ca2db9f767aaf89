"""Programs that write rules: found where root's are, run with nothing of the caller's about them."""

import os

from reconciler.core.errors import FirewallError

PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
TIMEOUT_S = 60.0


def path_of(name: str) -> str | None:
    """Where the program is, if it is installed."""
    for folder in f"{PATH}:/usr/local/sbin:/usr/local/bin".split(":"):
        path = f"{folder}/{name}"
        # Not shutil.which: a pass with nothing to do imports as little as it can.
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def run(action: str, name: str, *words: str, text: str = "", remedy: str = "") -> str:
    """What the program says. Raises FirewallError: `remedy` is for where there is none of that name."""
    import subprocess

    path = path_of(name)
    if path is None:
        raise FirewallError(f"firewall: {action}: there is no {name} program ({remedy})")
    # A session of its own: an interrupt from the terminal is for us, who let the change end.
    try:
        done = subprocess.run(
            [path, *words],
            input=text,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            cwd="/",
            start_new_session=True,
            timeout=TIMEOUT_S,
            env={"PATH": PATH, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired:
        raise FirewallError(f"firewall: {action}: {name} took over {TIMEOUT_S:g} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        said = lines[0] if lines else f"it ended with {done.returncode}"
        raise FirewallError(f"firewall: {action}: {name}: {said}")
    return done.stdout
