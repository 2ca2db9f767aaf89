"""`runcnet ls`: each container with its address, the host's end, who lives in it, and its traffic."""

import argparse
import json
from typing import Any

from reconciler.options import settings_of
from reconciler.running import OK, need_privileges


def run_ls(options: argparse.Namespace) -> int:
    """`runcnet ls`."""
    from reconciler import status
    from reconciler.host import procs, traffic

    need_privileges()
    found = status.look(settings_of(options))["containers"]
    counters = traffic.of_links()
    joined = {one["name"]: one for one in found}
    rows = []
    for one in found:
        # Who lives in another's namespace has what that one has.
        whose = joined.get(one["join"] or "", one)
        rows.append(
            {
                "name": one["name"],
                "mode": one["mode"],
                "join": one["join"],
                "netns": whose["netns"],
                "state": one["state"],
                "pid": procs.init_of(one["pids"]) if whose is one else None,
                "pids": whose["pids"],
                "interfaces": [
                    {
                        "name": interface["name"],
                        "network": interface["network"],
                        "addresses": interface["addresses"],
                        "host_interface": interface["host_interface"],
                        **traffic.inside(counters.get(interface["host_interface"])),
                    }
                    for interface in whose["interfaces"]
                ],
            }
        )
    if options.json:
        print(json.dumps({"version": 1, "containers": rows}))
    else:
        _print(rows)
    return OK


HEADING = ("CONTAINER", "STATE", "ADDRESS", "INTERFACE", "HOST END", "PID", "RX BYTES", "TX BYTES")


def _print(rows: list[dict[str, Any]]) -> None:
    from reconciler.overview import ABSENT, aligned

    lines = []
    for row in rows:
        lead = (row["name"], row["state"])
        pid = _shown(row["pid"])
        for one in row["interfaces"]:
            addresses = ",".join(one["addresses"]) or "-"
            ends = (addresses, one["name"], one["host_interface"], pid)
            lines.append((*lead, *ends, _shown(one["rx_bytes"]), _shown(one["tx_bytes"])))
        if not row["interfaces"]:
            lines.append((*lead, f"({row['mode']})", "-", "-", pid, "-", "-"))
    print("\n".join(aligned([HEADING, *lines]) or [ABSENT]))


def _shown(value: int | None) -> str:
    return "-" if value is None else str(value)
