"""The landlord's tunnel: one WireGuard interface, to which each tenant is a peer.

The kernel's WireGuard is used if it has one, else wireguard-go; only the `Device` differs. Everything that is made says
by itself that it is ours: the interface by its alias, routes and proxy entries by their protocol number, the rules by
their table. So the tunnel of a killed daemon is taken over, and clean-up needs no record.

A tenant can send from its networks only, since WireGuard drops other sources. A network is routed into the tunnel only
as long as it is let; the rest of the pools is refused by a route of its own. Otherwise our default route would lead
back to the router that sent us the packet, and the packet would go to and fro until its hop limit ends.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

from ngp.core.messages import Address, Prefix
from ngp.core.rental.tunnel import TunnelPeer
from ngp.core.values import Check
from ngp.errors import KernelError, MomentError, refused
from ngp.modules import rtnetlink
from ngp.modules.rtnetlink import Interface
from ngp.modules.tunnel import answers, check, host, limits, rules
from ngp.modules.tunnel.device import Device, Networks, Standing, steps
from ngp.modules.tunnel.host import Entry, Host, is_free, read_sysctl, refuse_taken_port, write_sysctl
from ngp.modules.tunnel.kernel import KernelDevice
from ngp.modules.tunnel.owners import Owners
from ngp.modules.tunnel.userspace import UserspaceDevice
from ngp.ports.letting import DesiredTunnel, PeerReading

DEVICES: dict[str, Device] = {"kernel": KernelDevice(), "userspace": UserspaceDevice()}
# How many addresses of a network we answer for by ARP and NDP at most: the kernel searches its entries one by one.
ANSWERED_MAX = {4: 256, 6: 16}
_PORT_S, _POLL_S = 2.0, 0.01
_SWITCHED_ON = re.compile(r"; proxy_ndp was off on (\S+)$")  # in the tunnel's alias: see `_switch_ndp`


class WireGuard:
    """Implements the port `Tunnel`; use it in one thread."""

    def __init__(self) -> None:
        self._open: Host | None = None
        self._desired: DesiredTunnel | None = None
        self._device: Device | None = None
        self._index = self._outside_index = 0
        self._owners = Owners()

    # --- questions ----------------------------------------------------------------------------------------------------

    def check(self, desired: DesiredTunnel) -> list[Check]:
        """Return what is missing on this host, and whether packets from outside find the pools; changes nothing."""
        with _errors("the host can't be looked at"):
            return list(check.look(desired, self._host(), devices(desired.kind), ANSWERED_MAX))

    def stands(self) -> bool:
        """Say whether what `set_up` made still exists, at little cost. Raises: KernelError.

        What depends on the addresses of LANDLORD_OUTSIDE, which come and go, follows them here.
        """
        desired, _ = self._standing()
        with _errors(f"tunnel {desired.interface} can't be looked at"):
            answers.bring_rules(self._host(), desired.outside, desired.port)
            return self._host().is_up(self._index) and rules.stand()

    def read(self) -> list[PeerReading]:
        """Return what the tunnel knows of its peers. Raises: KernelError."""
        desired, device = self._standing()
        with _errors(f"tunnel {desired.interface} can't be read"):
            return [peer.reading for peer in device.read(desired.interface).peers.values()]

    def addresses(self, interface: str) -> tuple[Address, ...]:
        """Return an interface's own addresses, both families, without link-local ones. Raises: KernelError."""
        with _errors(f"addresses of {interface} can't be listed"):
            found = (each.local for each in self._host().addresses(interface))
            return tuple(address for address in found if not address.is_link_local)

    def describe(self) -> dict[str, str]:
        """Return which implementation is in use, for status; empty if there is no tunnel."""
        if self._desired is None or self._device is None:
            return {}
        return {"interface": self._desired.interface, "implementation": self._device.implementation}

    # --- changes ------------------------------------------------------------------------------------------------------

    def set_up(self, desired: DesiredTunnel, peers: Sequence[TunnelPeer]) -> None:
        """Make the tunnel, or take over the one that a killed daemon left; then its peers are exactly these.

        Peers that are right already aren't disturbed. Raises: KernelError; then nothing of a new set-up is left.
        """
        owners = Owners(peers)
        with _errors(f"tunnel {desired.interface} can't be set up"):
            self._refuse_pools(desired)
            taken_over = self._take_over(desired)
            try:
                self._device, standing = taken_over or (self._make(desired), Standing(b"", 0, {}))
                self._establish(desired, self._device, standing, owners)
            except BaseException:
                if taken_over is None:
                    with suppress(KernelError):
                        self.clean_up()
                raise

    def set_peers(self, peers: Sequence[TunnelPeer]) -> None:
        """Add peers or change them. Raises: KernelError, also if another peer has one of the networks."""
        desired, device = self._standing()
        before = {peer.wireguard_key: self._owners.peers.get(peer.wireguard_key) for peer in peers}
        self._owners.add(peers)
        olds = [peer for peer in before.values() if peer is not None]
        with _errors(f"tunnel {desired.interface} can't be changed"):
            for peer in peers:
                if peer != before[peer.wireguard_key]:
                    limits.change(before[peer.wireguard_key], peer)
            self._change_peers(desired, device, _networks(olds), _networks(peers))
            self._change_ways(olds, peers)

    def remove_peers(self, wireguard_keys: Sequence[bytes]) -> None:
        """Remove peers; unknown ones are ignored. Raises: KernelError."""
        desired, device = self._standing()
        olds = [self._owners.peers[key] for key in dict.fromkeys(wireguard_keys) if key in self._owners.peers]
        self._owners.remove(wireguard_keys)
        with _errors(f"tunnel {desired.interface} can't be changed"):
            self._change_peers(desired, device, _networks(olds), {})
            self._change_ways(olds, ())
            for old in olds:
                limits.change(old, None)

    def close(self) -> None:
        """Close sockets; the tunnel goes on."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def clean_up(self) -> None:
        """Remove all that this port made, and nothing else, without a record of what it made. Safe to call twice."""
        with _errors("the tunnel can't be removed"):
            for interface in self._host().ours():
                self._delete(interface)
            self._host().bring_routes(None, ())
            self._host().bring_entries(())
            answers.remove_rules(self._host())
            rules.clean_up()
        self._desired = self._device = None
        self._owners = Owners()

    # --- parts --------------------------------------------------------------------------------------------------------

    def _host(self) -> Host:
        if self._open is None:
            self._open = Host()
        return self._open

    def _standing(self) -> tuple[DesiredTunnel, Device]:
        if self._desired is None or self._device is None:
            raise KernelError("there is no tunnel; the daemon's log says why it couldn't be set up")
        return self._desired, self._device

    def _take_over(self, desired: DesiredTunnel) -> tuple[Device, Standing] | None:
        """Return the tunnel that exists already; if it can't be used, delete it and return None.

        Raises KernelError if an interface that isn't ours has the name.
        """
        found = None
        for interface in self._host().interfaces().values():
            is_ours = interface.alias.startswith(host.ALIAS)
            if interface.name != desired.interface:
                if is_ours:
                    self._delete(interface)
                continue
            found = self._usable(desired, interface.kind, is_ours)
            if found is not None:
                continue
            if is_ours:
                self._delete(interface)
            else:
                raise KernelError(
                    f"interface {desired.interface}: exists and isn't ngp's; delete it, or name another one in "
                    "LANDLORD_INTERFACE"
                )
        return found

    def _usable(self, desired: DesiredTunnel, kind: str, is_ours: bool) -> tuple[Device, Standing] | None:
        """Return the device and state of an existing interface if it can be the tunnel, else None.

        An interface without our alias can be the tunnel if its key is ours or missing: a daemon may have been killed
        just after it had made the interface.
        """
        for device in devices(desired.kind):
            if device.kind == kind:
                with suppress(KernelError, OSError):
                    standing = device.read(desired.interface)
                    if is_ours or standing.private_key in (b"", desired.private_key):
                        return device, standing
        return None

    def _refuse_pools(self, desired: DesiredTunnel) -> None:
        """Raise KernelError if a pool contains our own address or the router's, which would be led into the tunnel."""
        if desired.proxy or desired.outside in self._host().interfaces():  # if routed, it may come later
            for pool in desired.pools:
                for address, whose in self._host().inhabitants(pool, desired.outside).items():
                    raise KernelError(f"pool {pool}: contains {address}, {whose}; name it in LANDLORD_POOLS (`except`)")

    def _make(self, desired: DesiredTunnel) -> Device:
        refuse_taken_port(desired.port)
        lacks = []
        for device in devices(desired.kind):
            why_not, remedy = device.why_not()
            if not why_not:
                device.make(desired.interface)
                return device
            lacks.append(f"{why_not}: {remedy}")
        raise KernelError(f"there is no WireGuard (LANDLORD_TUNNEL: {desired.kind}): {'; or '.join(lacks)}")

    def _establish(self, desired: DesiredTunnel, device: Device, standing: Standing, owners: Owners) -> None:
        interface, kernel = self._host().interfaces()[desired.interface], self._host().kernel
        self._desired, self._owners, self._index = desired, owners, interface.index
        if not interface.alias.startswith(host.ALIAS):
            rtnetlink.change_link(kernel, interface.index, alias=host.ALIAS)
        rtnetlink.change_link(kernel, interface.index, mtu=desired.mtu, up=True)
        self._set_key_and_port(desired, device, standing)
        if read_sysctl(key := f"ipv4/conf/{desired.interface}/forwarding") == "0":
            write_sysctl(key, "1")
        self._switch_ndp(interface, desired.outside if desired.proxy else "")
        answers.bring_rules(self._host(), desired.outside, desired.port)
        rules.commit(rules.table(desired.interface, desired.mtu, owners.peers.values()))
        before = {key: peer.networks for key, peer in standing.peers.items()}
        self._change_peers(desired, device, before, _networks(owners.peers.values()))
        self._outside_index = self._host().index(desired.outside) if desired.proxy else 0
        refusing = ((pool, None) for pool in desired.pools)
        routes = ((network, interface.index) for peer in owners.peers.values() for network in peer.networks)
        self._host().bring_routes(interface.index, [*refusing, *routes])
        self._host().bring_entries(itertools.chain.from_iterable(map(self._entries, owners.peers.values())))

    def _set_key_and_port(self, desired: DesiredTunnel, device: Device, standing: Standing) -> None:
        if (standing.private_key, standing.port) == (desired.private_key, desired.port):
            return
        if standing.port != desired.port:
            refuse_taken_port(desired.port)
        device.set(desired.interface, desired.private_key, desired.port)
        until = time.monotonic() + _PORT_S
        while is_free(desired.port):  # wireguard-go opens its sockets some milliseconds after the interface is up
            if time.monotonic() > until:
                raise MomentError(f"UDP port {desired.port}: the tunnel doesn't open it; try again")
            time.sleep(_POLL_S)

    def _change_peers(self, desired: DesiredTunnel, device: Device, before: Networks, after: Networks) -> None:
        for step in steps(before, after):
            device.change(desired.interface, step)

    def _change_ways(self, before: Iterable[TunnelPeer], after: Iterable[TunnelPeer]) -> None:
        """Change the routes and proxy entries of some peers."""
        here = self._host()
        old, new = _all_networks(before), _all_networks(after)
        for network in old - new:
            here.remove_route((network, self._index))
        for network in new - old:
            here.add_route((network, self._index))
        old_entries, new_entries = (set(map(self._entry, self._answered(each))) for each in (old, new))
        for entry in old_entries - new_entries:
            here.remove_entry(entry)
        for entry in new_entries - old_entries:
            here.add_entry(entry)

    def _entries(self, peer: TunnelPeer) -> Iterator[Entry]:
        return map(self._entry, self._answered(peer.networks))

    def _entry(self, address: Address) -> Entry:
        return self._outside_index, address

    def _answered(self, networks: Iterable[Prefix]) -> Iterator[Address]:
        """Yield the addresses that are answered for on the outside interface."""
        if self._outside_index:
            for network in networks:
                yield from itertools.islice(network, ANSWERED_MAX[network.version])

    def _switch_ndp(self, tunnel: Interface, wanted: str) -> None:
        """Let the kernel answer NDP by proxy entries on the outside interface ("": none), and nowhere else any more.

        The tunnel's alias names the interface where that was off before, so that clean-up can switch it off again.
        """
        was_off = _SWITCHED_ON.search(tunnel.alias)
        if was_off is not None and was_off[1] == wanted:
            return
        if was_off is not None:
            _switch_off(was_off[1])
            rtnetlink.change_link(self._host().kernel, tunnel.index, alias=host.ALIAS)
        if wanted and read_sysctl(key := f"ipv6/conf/{wanted}/proxy_ndp") == "0":
            rtnetlink.change_link(
                self._host().kernel, tunnel.index, alias=f"{host.ALIAS}; proxy_ndp was off on {wanted}"
            )
            write_sysctl(key, "1")

    def _delete(self, interface: Interface) -> None:
        was_off = _SWITCHED_ON.search(interface.alias)
        if was_off is not None:
            _switch_off(was_off[1])
        rtnetlink.delete_link(self._host().kernel, interface.index)
        for device in DEVICES.values():
            if device.kind == interface.kind:
                device.await_end(interface.name)


def devices(kind: str) -> list[Device]:
    """Return the implementations that LANDLORD_TUNNEL allows, the best first."""
    return list(DEVICES.values()) if kind == "auto" else [DEVICES[kind]]


def _switch_off(interface: str) -> None:
    if read_sysctl(key := f"ipv6/conf/{interface}/proxy_ndp"):
        write_sysctl(key, "0")


def _networks(peers: Iterable[TunnelPeer]) -> Networks:
    return {peer.wireguard_key: peer.networks for peer in peers}


def _all_networks(peers: Iterable[TunnelPeer]) -> set[Prefix]:
    return {network for peer in peers for network in peer.networks}


@contextmanager
def _errors(what: str) -> Iterator[None]:
    """Turn OSErrors of a block into KernelErrors. Args: what: the failure, which begins the message."""
    try:
        yield
    except TimeoutError as error:
        raise MomentError(f"{what}: the kernel doesn't answer; try again") from error
    except OSError as error:
        raise refused(what, error, "run as root; ngp check says what is missing") from error
