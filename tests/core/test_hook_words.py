"""The command line of a hook, which is read without argparse where it is a plain one."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.hook import called, options_for, plain
from reconciler.options import Parser, common

WORDS = (
    "createRuntime", "poststop", "prestart", "--network", "n0", "n0:ip=10.0.0.9", "--network=n1", "--port",
    "8080:80", "--port=53:53/udp", "--no-annotations", "--no-annotations=1", "--ip-file", "--ip-file=.addr",
    "--ip-file=", ".ip", "--config-dir", "/etc/x", "rel/./dir/", "--config-dir=/a/../b", "--state-dir", "/s",
    "--run-dir=/r", "--netns-dir", "--firewall", "none", "--firewall=nftables", "--firewall=no", "--net", "-v",
    "-", "--", "", "--json", "--lock-timeout", "2", "-1", "--max-removals=all",
)  # fmt: skip


class StopError(Exception):
    """The command line is wrong, or asks for help."""


class Strict(Parser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise StopError

    def exit(self, status: int = 0, message: str | None = None) -> None:  # type: ignore[override]
        raise StopError


def parser() -> Strict:
    made = Strict(prog="runcnet hook", parents=[common()])
    options_for(made)
    return made


PARSER = parser()


@given(st.lists(st.sampled_from(WORDS), max_size=9).map(lambda rest: ["createRuntime", *rest]))
def test_what_is_read_plainly_is_what_argparse_reads(words: list[str]) -> None:
    found = plain(words)
    if found is not None:
        assert found == called(PARSER.parse_args(words))


def test_what_a_bundle_is_wired_with_is_plain() -> None:
    for words in (
        ["poststop"],
        [
            "createRuntime",
            "--network",
            "n0",
            "--network=n1:ip=10.0.0.1",
            "--port",
            "80:80",
            "--ip-file",
        ],
        ["prestart", "--ip-file", "--no-annotations", "--config-dir", "/a", "--config-dir", "b"],
        [
            "poststop",
            "--state-dir",
            "/s",
            "--run-dir",
            "/r",
            "--netns-dir",
            "/n",
            "--firewall",
            "none",
        ],
    ):
        assert plain(words) is not None
        assert plain(words) == called(PARSER.parse_args(words))
    for words in ([], ["--help"], ["createRuntime", "--net", "n0"], ["start"]):
        assert plain(words) is None


def test_help_is_as_wide_as_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(os, "get_terminal_size", lambda: os.terminal_size((150, 40)))
    widest = [len(line) for line in PARSER.format_help().splitlines()]
    assert 110 < max(widest) <= 148
    monkeypatch.setenv("COLUMNS", "60")
    assert max(len(line) for line in PARSER.format_help().splitlines()) < 80
