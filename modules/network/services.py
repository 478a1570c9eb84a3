"""Payment services: what `ngp check` and the log say about them. Neighbours reach them without a contract, to pay."""

from __future__ import annotations

import socket
from collections.abc import Iterator

from ngp.core.values import Check
from ngp.modules.network import layout
from ngp.modules.network.host import Host
from ngp.ports.network import DesiredNetwork, FreeRule
from ngp.ports.services import SERVICES_A_HOST

NO_ROOM = f"its host has more than {SERVICES_A_HOST} services and free ports"
LESS = "name fewer in PAYMENT_SERVICES: all of this router's addresses are one host"


def check(desired: DesiredNetwork, host: Host) -> Iterator[Check]:
    """Say of each payment service whether neighbours reach it."""
    if not desired.sells:
        return
    each = f"{desired.lane_bytes_s / 1024:g} kB/s for each"
    missing = layout.left_out(desired.free, desired.services, desired.own_services)
    for service in desired.own_services:
        if service in missing:
            yield Check(name_of(service), True, f"is on this router, but {NO_ROOM}: has no rate limit", LESS)
            continue
        found = f"is on this router: traffic with this port is limited to {each}; your INPUT rules decide who gets in"
        yield Check(name_of(service), True, found)
    rate = f"let through for every neighbour, uncharged, {each}"
    for service in desired.services:
        address, name = service.prefix.network_address, name_of(service)
        out = host.interface_towards(address)
        if service in missing:
            yield Check(name, False, f"{NO_ROOM}: not let through", LESS)
        elif not out:
            remedy = f"ip route add {address} via ROUTER, or correct PAYMENT_SERVICES"
            yield Check(name, False, "is not routed", remedy)
        elif out in desired.mesh_interfaces and desired.buys:
            yield Check(name, True, f"{rate}; by {out}, a mesh interface: needs a neighbour there that lets us through")
        elif out in desired.mesh_interfaces:
            found = f"goes by {out}, a mesh interface, but BUY is no: the service's answers are held there"
            yield Check(name, False, found, f"ip route get {address} says why; or name a service elsewhere")
        else:
            yield Check(name, True, f"{rate}; by {out}")


def name_of(service: FreeRule) -> str:
    """Return a payment service's name for `ngp check` and the log."""
    protocol = "udp" if service.protocol == socket.IPPROTO_UDP else "tcp"
    return f"payment service {service.prefix.network_address} {protocol} {service.port}"
