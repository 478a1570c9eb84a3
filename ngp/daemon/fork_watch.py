"""Fork watch: tells the core where the routes lead through several neighbours (CHOOSE_ROUTES)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ngp.core.events import Event, ForksSeen
from ngp.core.kernel import Fork
from ngp.core.listing import listed
from ngp.core.settings import Settings
from ngp.core.values import Check
from ngp.daemon.route_follower import RouteFollower
from ngp.errors import KernelError
from ngp.ports import Network
from ngp.ports.network import DesiredNetwork

RULES_BELOW = 257  # of ROUTE_PRIORITY: two numbers for each length of an IPv6 prefix


class ForkWatch(RouteFollower):
    """Follows the host's routes.

    Args: settings, desired: return what is in force. tell: receives the events.
    """

    def __init__(
        self,
        network: Network,
        settings: Callable[[], Settings],
        desired: Callable[[], DesiredNetwork],
        tell: Callable[[Event], None],
    ) -> None:
        super().__init__()
        self._network, self._settings, self._desired, self._tell = network, settings, desired, tell

    async def follow(self) -> None:
        """Look at the routes now and after each change, for ever. Raises KernelError."""
        if not self._settings().choose_routes:  # a daemon that was killed may have left some
            self._network.set_routes({}, self._settings().route_table, self._settings().route_priority)
        await super().follow()

    def _look(self) -> bool:
        if not self._settings().choose_routes:
            return False
        if (lacks := occupied(self._settings(), self._network)) is not None:
            raise KernelError(f"{lacks.found}; {lacks.remedy}")
        desired = self._desired()
        forks = self._network.forks(desired.mesh_interfaces, desired.families)
        self._tell(ForksSeen(forks))
        return any(router.link_address is None for fork in forks for router in fork.routers)


def occupied(settings: Settings, network: Network) -> Check | None:
    """Say that nothing can be chosen, as ROUTE_TABLE is in use; None: it is free. Raises KernelError."""
    table = settings.route_table
    theirs = network.others_in(table) if settings.buys else None
    if theirs is None:
        return None
    found = f"no route is chosen: routing table {table} has a route to {theirs} that isn't ours"
    flush = f"if nothing needs its routes: ip route flush table {table}"
    remedy = f"set ROUTE_TABLE to the number of an unused table, or, {flush}"
    return Check("choice of routes", False, found, remedy, "configuration")


def passed_by(settings: Settings, network: Network) -> list[Check]:
    """Warn of a rule of the operator's behind ours, as wg-quick makes one for a VPN. Raises KernelError."""
    rule = network.rule_behind(settings.route_priority) if settings.buys else None
    if rule is None:
        return []
    priority, table = rule
    found = f"a chosen route leads packets past the rule {priority} (lookup {table}); a VPN makes such rules"
    before = settings.route_priority - RULES_BELOW
    own = f"`ip rule` with a priority below {before}, or " if before > 1 else ""  # 0 is the rule of the table `local`
    remedy = f"if it is to come first: {own}another ROUTE_PRIORITY"
    return [Check("rules of others", True, found, remedy)]


def line(settings: Settings, forks: Sequence[Fork]) -> Check:
    """Say in `ngp check` what there is to choose. Pure."""
    there = [str(fork.prefix) for fork in forks if len(fork.routers) > 1]
    if not settings.buys:
        return Check("choice of routes", True, "CHOOSE_ROUTES chooses whom to pay, but BUY is no", "CHOOSE_ROUTES: no")
    if there:
        return Check("choice of routes", True, f"several routers lead to {listed(there)}")
    remedy = "add a route through each neighbour (ip route add default via ADDRESS metric NUMBER); or CHOOSE_ROUTES: no"
    return Check("choice of routes", True, "no route in the mesh leads through several routers: no choice", remedy)
