"""What the documents show is true: YAML loads, commands parse, units are good."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.core.documents import loaded, messages
from tests.support import need, unitfile
from tests.support.host import ENTRY, ROOT

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(kind: str) -> list[tuple[str, str]]:
    return [
        (path.name, block)
        for path in DOCUMENTS
        for block in re.findall(rf"```{kind}\n(.*?)```", path.read_text(), re.S)
    ]


@pytest.mark.parametrize("name,block", blocks("yaml"))
def test_yaml_in_the_documents_loads(name: str, block: str) -> None:
    result = loaded(f=block)
    assert not result.rejections, (name, messages(result))


def test_commands_in_the_readme_parse() -> None:
    lines = [
        line.split("#")[0].strip()
        for _, block in blocks("sh")
        for line in block.splitlines()
        if "bin/runcnet" in line
    ]
    assert len(lines) >= 3
    for line in lines:
        words = shlex.split(line)
        name = words[0].rpartition("/")[2]
        command = [sys.executable, "-c", ENTRY, name, *words[1:], "--help"]
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT)


def test_hooks_in_the_documents_call_what_there_is() -> None:
    calls = [
        (stage, hook)
        for _, block in blocks("json")
        for stage, hooks in json.loads(block).get("hooks", {}).items()
        for hook in hooks
    ]
    assert len(calls) >= 3
    for stage, hook in calls:
        program, *words = hook["args"]
        assert Path(program).is_absolute() and Path(hook["path"]).name in (
            "runcnet",
            "runcnet-hook",
        )
        assert words[:2] == ["hook", stage]
        command = [sys.executable, "-c", ENTRY, "runcnet", *words, "--help"]
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT)


def test_every_option_is_documented() -> None:
    for name in ("runcnet-reconcile", "runcnet plan"):
        words = shlex.split(name)
        command = [sys.executable, "-c", ENTRY, *words, "--help"]
        out = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
        text = (ROOT / "docs" / "commands.md").read_text()
        for option in set(re.findall(r"--[a-z-]+", out)) - {
            "--help",
            "--version",
            "--verbose",
            "--quiet",
        }:
            assert option in text, option


def test_unit_files_in_the_documents_are_good(tmp_path: Path) -> None:
    need.program("systemd-analyze")
    units = {path.name: path.read_text() for path in (unitfile.SERVICE, unitfile.TARGET)}
    shown = dict(
        re.fullmatch(r"# /etc/systemd/system/(\S+)\n(.*)", block, re.S).groups()  # type: ignore[union-attr]
        for _, block in blocks("ini")
    )
    assert len(shown) >= 2
    done = unitfile.verify(tmp_path, units | shown)
    assert (done.code, done.err) == (0, "")


def test_links_between_documents_lead_somewhere() -> None:
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
            assert (path.parent / target).exists(), (path.name, target)


def test_the_json_schema_is_current() -> None:
    import json

    from reconciler.core.schema import json_schema

    assert json.loads((ROOT / "config" / "runcnet.schema.json").read_text()) == json_schema()
