"""The hosts and resolv.conf of containers, written in place."""

import os
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reconciler.host import dnsfiles

LINES = st.lists(st.sampled_from([b"a\n", b"b\n", b"cc\n", b"\n"]), max_size=8).map(b"".join)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(LINES, min_size=2, max_size=4))
def test_a_file_says_what_was_written_last_and_stays_the_same_file(
    tmp_path: Path, texts: list[bytes]
) -> None:
    run_dir = str(tmp_path)
    assert dnsfiles.write(run_dir, "web", {"hosts": texts[0]}) is None
    file = tmp_path / "dns" / "web" / "hosts"
    inode = file.stat().st_ino
    for text in texts:
        dnsfiles.renew_hosts(run_dir, "web", text)
        assert (file.read_bytes(), file.stat().st_ino) == (text, inode)
        assert dnsfiles.differing(run_dir, "web", {"hosts": text}) == ()
        assert dnsfiles.write(run_dir, "web", {"hosts": text, "resolv.conf": b"x"}) is None
    os.chmod(file, 0o600)
    dnsfiles.renew_hosts(run_dir, "web", b"new")
    assert (file.read_bytes(), file.stat().st_mode & 0o777) == (b"new", 0o644)


def test_nothing_is_begun_for_who_has_none(tmp_path: Path) -> None:
    dnsfiles.renew_hosts(str(tmp_path), "web", b"x")
    (tmp_path / "dns" / "web").mkdir(parents=True)
    dnsfiles.renew_hosts(str(tmp_path), "web", b"x")
    assert list((tmp_path / "dns" / "web").iterdir()) == []
