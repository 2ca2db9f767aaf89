"""Mounts in the netns dir, and who is on them."""

import sys

from tests.support.host import PrivateHost

ASK = """
import subprocess, sys
from reconciler.host.mounts import Mounts
mounts = Mounts("/run/netns")
for script in sys.argv[1:]:
    subprocess.run(["sh", "-ec", script], check=True)
    print(sorted(mounts.changed()))
"""


def test_one_that_took_anothers_place_is_told(bare: PrivateHost) -> None:
    bare.sh("ip netns add a; ip netns add 'b c'; ip netns add d")
    scripts = {
        "true": [],
        "umount /run/netns/a; mount --bind /run/netns/d /run/netns/a": ["a"],
        "mount --bind /run/netns/d '/run/netns/b c'": ["b c"],
        "umount '/run/netns/b c'": ["b c"],
        "ip netns del d; ip netns add e": ["d", "e"],
        "mount -t tmpfs none /mnt": [],
    }
    said = bare.run(sys.executable, "-c", ASK, *scripts).out.splitlines()
    assert said == [str(files) for files in scripts.values()]
