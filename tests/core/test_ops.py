"""Operations say all that they do."""

from reconciler.core import ops


def test_a_rename_says_what_else_it_sets() -> None:
    op = ops.SetLink(
        object="container/a", link="one", index=7, host=True, name="two", mac=bytes(6), mtu=1400
    )
    assert op.describe() == "rename one to two, address 00:00:00:00:00:00, mtu 1400"
    assert op.commands()[1] == "ip link set one name two"
    assert op.commands()[-1] == "ip link set two mtu 1400"
