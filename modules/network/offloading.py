"""Flow offloading: finds software and network cards that forward packets without FORWARD, and so past the meter.

Nothing else would show that such packets aren't metered. So `ngp check` reports flow offloading, and a start or a
reload refuses it: nft's flowtables, OpenWrt's iptables rule, and traffic control in hardware, on mesh interfaces and on
all devices that carry their frames.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping

from ngp.core.values import Check
from ngp.modules.commands import find_command
from ngp.modules.network import layers, rights, xtables
from ngp.modules.rtnetlink import Interface
from ngp.ports.network import DesiredNetwork

_NAME = "flow offloading"


def check(desired: DesiredNetwork, known: Mapping[str, Interface]) -> Iterator[Check]:
    """Look for flow offloading on mesh interfaces, on the landlord's tunnel, and on all devices beneath them.

    Args: known: all interfaces by name.
    """
    if not rights.holds(rights.NET_ADMIN):  # without this right all rule sets look empty
        yield rights.not_tried(_NAME)
        return
    beneath = layers.beneath(known, [*desired.mesh_interfaces, *({desired.tunnel} & known.keys())])
    for table, name, devices in _flowtables():
        both = _named(beneath, devices)
        if both:
            found = f"nft flowtable {name} in {table} offloads {both}: offloaded flows go round the meter"
            yield Check(_NAME, False, found, f"nft delete flowtable {table} {name} (after the rules that use it)")
            return
    for line in xtables.saved_rules(4, 6):
        if "-j FLOWOFFLOAD" in line:
            remedy = f"iptables {line.replace('-A ', '-D ', 1)} (OpenWrt: option flow_offloading '0' in firewall)"
            yield Check(_NAME, False, f"iptables rule: {line}", remedy)
            return
    ethtool = find_command("ethtool")
    hardware = [name for name in sorted(beneath) if ethtool and _is_in_hardware(ethtool, name)]
    if hardware:
        names = _named(beneath, hardware)
        found = f"hardware offload is on for {names}: what the card forwards is never metered"
        yield Check(_NAME, False, found, f"ethtool -K {hardware[0]} hw-tc-offload off")
        return
    yield Check(_NAME, True, "none on mesh interfaces, nor beneath them")


def _is_in_hardware(ethtool: str, name: str) -> bool:
    return "hw-tc-offload: on" in xtables.run_or_nothing([ethtool, "-k", name])


def _named(beneath: Mapping[str, str], devices: Iterable[str]) -> str:
    """Name the devices that carry a mesh interface's traffic, each with its mesh interface."""
    named = [each for each in sorted(devices) if each in beneath]
    return ", ".join(each if beneath[each] == each else f"{each} (beneath {beneath[each]})" for each in named)


def _flowtables() -> list[tuple[str, str, frozenset[str]]]:
    nft = find_command("nft")
    return parse_flowtables(xtables.run_or_nothing([nft, "-j", "list", "flowtables"])) if nft else []


def parse_flowtables(text: str) -> list[tuple[str, str, frozenset[str]]]:
    """Read `nft -j list flowtables`: family and table, name, devices of each. Pure."""
    entries = json.loads(text).get("nftables", []) if text.strip() else []
    found = []
    for flowtable in (entry["flowtable"] for entry in entries if "flowtable" in entry):
        devices = flowtable.get("dev", [])  # a lone device is given without a list
        names = frozenset([devices] if isinstance(devices, str) else devices)
        found.append((f"{flowtable['family']} {flowtable['table']}", flowtable["name"], names))
    return found
