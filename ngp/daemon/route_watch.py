"""Route watch: tells the core where our routes lead, while a default route is resold, or a network sold."""

from __future__ import annotations

from collections.abc import Callable

from ngp.core.default_resale import is_in_use
from ngp.core.events import Event, RoutesLookedUp, RoutesSeen
from ngp.core.parts import sold_whole
from ngp.core.world import World
from ngp.daemon.route_follower import RouteFollower
from ngp.ports import Network


class RouteWatch(RouteFollower):
    """Follows the host's routes. Args: tell: receives the events."""

    def __init__(self, network: Network, world: World, tell: Callable[[Event], None]) -> None:
        super().__init__()
        self._network, self._world, self._tell = network, world, tell

    def _look(self) -> bool:
        if networks := sold_whole(self._world):
            onward = self._network.onward_whole
            self._tell(RoutesLookedUp(tuple((contract, onward(prefix, fresh=True)) for contract, prefix in networks)))
        if not is_in_use(self._world):
            return False
        routes = self._network.mesh_routes()
        self._tell(RoutesSeen(routes))
        routers = [router for one in routes for router in (one.default, *(router for _, router in one.others))]
        return any(router is not None and router.link_address is None for router in routers)
