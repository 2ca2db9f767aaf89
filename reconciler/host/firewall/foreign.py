"""Other stacks at the forward hook: an accept of ours never overrides their policy drop."""

import json
import shutil
import subprocess
from typing import Any


def dropping_chains() -> tuple[str, ...]:
    """One sentence for each nftables base chain at the forward hook whose policy is drop."""
    nft = shutil.which("nft", path="/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")
    if nft is None:
        return ()
    done = subprocess.run(
        [nft, "-j", "list", "chains"], capture_output=True, text=True, timeout=30, check=False
    )
    if done.returncode:
        return ()
    try:
        entries = json.loads(done.stdout).get("nftables", [])
    except ValueError:
        return ()
    return tuple(_sentence(e["chain"]) for e in entries if _drops(e.get("chain", {})))


def _drops(chain: dict[str, Any]) -> bool:
    return chain.get("hook") == "forward" and chain.get("policy") == "drop"


def _sentence(chain: dict[str, Any]) -> str:
    where = f"{chain.get('family')} {chain.get('table')} {chain.get('name')}"
    return (
        f"the nftables chain `{where}` drops at the forward hook whatever it does not accept itself, "
        f"and so the traffic of these networks (accept it there: `nft add rule {where} accept`, "
        "narrowed to the networks' bridges)"
    )
