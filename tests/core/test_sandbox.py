"""The file that `runcnet add` writes."""

import string

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.sandbox import declaration, declares
from reconciler.core.schema import RawContainer, RawFile, RawInterface
from reconciler.core.tree import Map
from reconciler.host.yamlfile import parse

TEXT = st.one_of(
    st.text(min_size=1, max_size=20),
    st.text(string.printable, min_size=1, max_size=20),
    st.sampled_from(
        ["null", "~", "on", "1e3", "22:22", "<<", "- x", "# x", "a: b", "'", '"', "\\"]
    ),
)


@given(
    name=TEXT,
    body=st.builds(
        RawContainer,
        mode=st.none() | TEXT,
        interfaces=st.lists(
            st.builds(
                RawInterface,
                network=TEXT,
                name=st.none() | TEXT,
                addresses=st.lists(TEXT, max_size=2),
                mac=st.none() | TEXT,
            ),
            max_size=2,
        ),
        ports=st.lists(TEXT, max_size=2),
        bundle=st.none() | TEXT,
    ),
)
def test_what_is_written_is_read_as_it_was_meant(name: str, body: RawContainer) -> None:
    tree, errors = parse(declaration(name, body).encode(), "x.yaml")
    assert tree is not None, errors
    assert list(declares(tree)) == [("containers", name)]
    assert msgspec.convert(tree.root, RawFile) == RawFile(containers={name: body})
    assert isinstance(tree.root, Map) and tree.root["containers"].keys_at[name][0] == 3
