"""Imports go downwards only, and the core touches nothing."""

import ast
from pathlib import Path

from tests.support.host import ROOT

IMPURE = {"os", "socket", "subprocess", "threading", "time", "logging", "yaml", "cffi", "iptc", "sqlite3",
          "watchdog", "random", "pathlib", "sys"}  # fmt: skip
ONLY = {
    "yaml": "yamlfile.py",
    "sqlite3": "damage.py store.py trials.py record.py index.py",
    "iptc": "worker.py",
    "rich": "terminal.py",
    "watchdog": "watch.py",
    "prometheus_client": "metrics.py",
}
UPPER = {
    "telling",
    "books",
    "reconcile",
    "once",
    "part",
    "keeper",
    "world",
    "daemon",
    "prospect",
    "wall",
    "doctor",
    "cli",
    "verbs",
    "hook",
    "joining",
    "attaching",
    "commands",
    "options",
    "load",
    "metrics",
    "attachment",
    "status",
    "overview",
    "watching",
    "troubles",
    "teardown",
    "terminal",
    "trial",
    "rehearsal",
    "prompt",
    "validate",
    "entering",
    "fellows",
    "scoped",
    "alone",
    "sandboxes",
    "listing",
}


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_the_core_is_pure_and_imports_go_downwards() -> None:
    for path in (ROOT / "reconciler").rglob("*.py"):
        modules = imported(path)
        layer = path.relative_to(ROOT / "reconciler").parts[0]
        if layer == "core":
            assert not {m.split(".")[0] for m in modules} & IMPURE, path
            assert not any(m.startswith("reconciler.host") for m in modules), path
        if layer in ("core", "host"):
            assert not any(m == f"reconciler.{u}" for m in modules for u in UPPER), path
        for library, files in ONLY.items():
            if any(m.split(".")[0] == library for m in modules):
                assert path.name in files.split(), f"{path} imports {library}"


def test_no_module_has_grown_too_long() -> None:
    for path in (ROOT / "reconciler").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 430, path
