"""A container's routes and rules, as they stand beside those declared."""

from collections.abc import Collection, Iterable, Mapping

from reconciler.core import ops
from reconciler.core.hostview import METRICS, Group
from reconciler.core.model import PROTOCOL
from reconciler.core.observed import SeenEnd
from reconciler.core.rows import RouteRow, RuleRow, Space
from reconciler.core.wanted import DesiredRoute, DesiredRule, Member

RTN_UNICAST = 1


class Routes:
    """A container's routes and rules, as they stand beside those declared."""

    def __init__(
        self,
        member: Member,
        space: Space,
        matched: Mapping[str, SeenEnd],
        doomed: Collection[int],
    ) -> None:
        self.member = member
        names = {link.index: link.name for link in space.links}
        names |= {end.inner.index: name for name, end in matched.items() if end.inner is not None}
        self.seen = [
            (row, _route(row, names.get(row.index, "")))
            for row in space.routes
            if row.type == RTN_UNICAST and row.index not in doomed
        ]
        self.rules = [(row, _rule(row)) for row in space.rules if row.source is not None]

    def _in_the_way(
        self, route: DesiredRoute, reset: Collection[tuple[str, int]]
    ) -> RouteRow | None:
        """A foreign route to the same place: the kernel keeps one of them for each metric."""
        for row, seen in self.seen:
            same = (seen.to, seen.table) == (route.to, route.table) and row.metric in METRICS
            if (
                same
                and row.protocol != PROTOCOL
                and (seen.link, seen.to.version) not in reset
                and seen != route
            ):
                return row
        return None

    def problems(self, reset: Collection[tuple[str, int]]) -> list[str]:
        standing = {route for _, route in self.seen}
        return [
            f"a route to {route.to} that is not runcnet's stands in the place of `{route}` "
            "(remove it inside the container)"
            for route in self.member.routes
            if route not in standing and self._in_the_way(route, reset)
        ]

    def stale(self, link: str, versions: Iterable[int]) -> Group:
        """Routes of ours through that link that are not declared."""
        return [
            ops.RemoveRoute(object=self.member.object, netns=self.member.netns, route=route)
            for row, route in self.seen
            if row.protocol == PROTOCOL
            and route.link == link
            and route.to.version in versions
            and route not in self.member.routes
        ]

    def groups(self, reset: Collection[tuple[str, int]], blocked: set[str]) -> list[Group]:
        """Those through a link in `reset` are gone by the time that these are carried out."""
        owner, netns = self.member.object, self.member.netns
        wanted = set(self.member.routes)
        standing = {route for _, route in self.seen if (route.link, route.to.version) not in reset}
        result: list[Group] = [
            [ops.RemoveRoute(object=owner, netns=netns, route=route)]
            for row, route in self.seen
            if row.protocol == PROTOCOL
            and route not in wanted
            and (route.link, route.to.version) not in reset
        ]
        result += [
            [ops.AddRoute(object=owner, netns=netns, route=route)]
            for route in self.member.routes
            if route not in standing
            and route.link not in blocked
            and not self._in_the_way(route, reset)
        ]
        declared = set(self.member.rules)
        result += [
            [ops.RemoveRule(object=owner, netns=netns, rule=rule)]
            for row, rule in self.rules
            if row.protocol == PROTOCOL and rule not in declared
        ]
        shown = {rule for row, rule in self.rules if row.plain}
        result += [
            [ops.AddRule(object=owner, netns=netns, rule=rule)]
            for rule in self.member.rules
            if rule not in shown
        ]
        return result


def _route(row: RouteRow, link: str) -> DesiredRoute:
    return DesiredRoute(to=row.to, via=row.via, link=link, table=row.table)


def _rule(row: RuleRow) -> DesiredRule:
    assert row.source is not None  # rules without a source are passed over
    return DesiredRule(source=row.source, table=row.table, priority=row.priority)
