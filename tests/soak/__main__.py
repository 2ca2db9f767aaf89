"""`python -m tests.soak`: ten minutes of random edits, sabotage, kills and restarts."""

import argparse
import random
import sys
import time

from tests.soak.course import Course, WrongError
from tests.support.host import PrivateHost


def main() -> int:
    """Run one soak; 0 where all was always as declared."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long (600)")
    parser.add_argument("--seed", type=int, help="draws the same steps again (a random one)")
    parser.add_argument("--steps", type=int, help="so many steps, however long they take")
    parser.add_argument("--containers", type=int, default=60, help="at most so many (60)")
    parser.add_argument(
        "--firewall",
        choices=["iptables", "nftables", "none"],
        help="who writes the rules (drawn from the first two)",
    )
    parser.add_argument("--log", help="where the daemon's log is kept in the end")
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(1 << 32)
    firewall = given.firewall or random.Random(seed).choice(["iptables", "nftables"])
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:7.1f} {text}", flush=True)

    say(f"seed {seed}, {firewall}")
    host = PrivateHost()
    host.firewall = firewall
    course = Course(host, seed=seed, containers=given.containers, say=say)
    try:
        soaked = course.run(seconds=given.seconds, steps=given.steps)
    except WrongError as failure:
        print(failure)
        again = f"--seed {seed} --steps {course.step} --containers {given.containers}"
        print(f"\nFAILED; again: python -m tests.soak {again} --firewall {firewall}")
        return 1
    finally:
        if given.log:
            with open(given.log, "w", encoding="utf-8") as file:
                file.write(course.served.said())
        host.close()
    rss = [weight.rss_kib for weight in soaked.weights]
    print(
        f"{soaked.steps} steps, {soaked.quiet} quiet moments, {soaked.lives} lives of the daemon; "
        f"memory {rss[0]} to {max(rss)} KiB; {len(soaked.late)} times late"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
