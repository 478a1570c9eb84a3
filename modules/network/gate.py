"""The gate: a chain of our own through which every forwarded packet of a neighbour goes, after the operator's filter.

It is in the `security` table, whose FORWARD hook comes after the filter table's. So packets that the operator drops are
never charged, and an early `ESTABLISHED -j ACCEPT` in the filter table doesn't bypass the meter. A paid packet returns
from our chains and isn't accepted, so the operator's own security rules still apply. Our jumps, one for each mesh
interface, are FORWARD's first rules, since an ACCEPT before them would let traffic pass unpaid. Each `apply` checks
that they are, and moves them back if not. Packets from other interfaces, above all downloads, don't enter the gate:
they only cost one comparison for each mesh interface.

A charging program (unpaid_up, unpaid_mesh, unpaid_lan) charges a packet whenever it is asked about the packet. So a
packet must meet exactly one of them: the one for the class of the interface by which it leaves, since who pays depends
on that class (meter.bpf.c has the rules). An interface that isn't listed is upstream. If there are fewer upstream
interfaces than others, they are listed, and come first: most packets go there, and each comparison of an interface's
name costs as much as a look-up in a table. If the program says that the packet is paid, its rule doesn't match, and the
packet leaves the gate. In NGP_UNPAID the program `unknown` says whether the daemon should see the packet. If so, the
packet is queued without bypass, which means that it is dropped if nobody listens. All others are dropped. Packets to
the mesh have a chain of their own for that, since a contract for a default route doesn't cover all of them.

    FORWARD      -i mesh ->     NGP_GATE
    NGP_GATE     -o upstream                 goto NGP_TO_UP
                 -o mesh                     goto NGP_TO_MESH
                 -o lan                      goto NGP_TO_LAN
                                unpaid_up    goto NGP_UNPAID
    NGP_TO_UP                   unpaid_up    goto NGP_UNPAID
    NGP_TO_MESH                 unpaid_mesh  goto NGP_UNPAID_MESH
    NGP_TO_LAN                  unpaid_lan   goto NGP_UNPAID
    NGP_UNPAID                  unknown      NFQUEUE
                                             DROP
    NGP_UNPAID_MESH             unknown_mesh NFQUEUE
                                             DROP

With UNPAID_RATE, packets to upstream and LANs that nobody pays for, and that aren't queued, may pass slowly:

    NGP_GATE, NGP_TO_UP         unpaid_up    goto NGP_SLOW
    NGP_TO_LAN                  unpaid_lan   goto NGP_SLOW
    NGP_SLOW                    unknown      NFQUEUE
                                slowed       RETURN
                                             DROP

Payment services on this host are reached through INPUT, where the operator's rules alone say who may use them. If there
is such a service, our chain NGP_OWN in INPUT drops packets above a neighbour's rate, and nothing else: without it one
neighbour's flood would burden the payment node by which all others pay. The service's answers are limited in
ngp_tc_out.

    INPUT        -i mesh ->   NGP_OWN
    NGP_OWN                   over_rate      DROP

On a host whose rules rewrite destinations, packets that are forwarded to the mesh are also tested by `forged`. At
egress of such a host, a packet with our own address as its source is free, as it is the answer of a forwarded port. So
a forwarded packet that has such a source already in FORWARD is dropped there. It can't be an answer, whose source is
rewritten only later, at POSTROUTING. (Linux accepts packets from elsewhere under its own address over IPv6.)

    FORWARD      -o mesh ->   NGP_FORGED
    NGP_FORGED                forged         DROP

The landlord's tunnel isn't a mesh interface. Packets from and to it are charged to the tenants whose traffic is
metered. The two chains for that are there whenever addresses are let, in both families, whether or not we sell. A
packet between two tenants meets both chains, so each tenant pays its own side. What a tenant exchanges with this host
itself isn't forwarded, and so is free.

    FORWARD      -i tunnel -> NGP_FROM_TENANT
                 -o tunnel -> NGP_TO_TENANT
    NGP_FROM_TENANT           unpaid_from    DROP
    NGP_TO_TENANT             unpaid_to      DROP
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

from ngp.errors import KernelError
from ngp.modules.network import xtables
from ngp.modules.network.host import ALL_INTERFACES
from ngp.modules.network.xtables import (
    FORWARD,
    INPUT,
    LEGACY,
    NFT,
    TABLE_MARK,
    Chains,
    Change,
    Jumps,
    Rule,
    Standing,
    Tables,
)
from ngp.ports.network import DesiredNetwork

FROM_TENANT, TO_TENANT = "NGP_FROM_TENANT", "NGP_TO_TENANT"
GATE, OWN, FORGED = "NGP_GATE", "NGP_OWN", "NGP_FORGED"
UNPAID, UNPAID_MESH, SLOW = "NGP_UNPAID", "NGP_UNPAID_MESH", "NGP_SLOW"
TO_UP, TO_MESH, TO_LAN = "NGP_TO_UP", "NGP_TO_MESH", "NGP_TO_LAN"
CLOSED, CLOSED_OUT = "NGP_CLOSED", "NGP_CLOSED_OUT"
_TO_CLOSED: Jumps = {FORWARD: (Rule(CLOSED),)}
# The names that iptables takes as they are: no "+" at the end (its wildcard), nothing that could break a quoted line.
_PLAIN_INTERFACE = re.compile(r"[A-Za-z0-9_.@-]{1,15}")
_WILDCARDS = re.compile(r"[*?\[]")
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9_./@+-]{1,510}")


@dataclass(frozen=True, slots=True)
class GatePaths:
    """Where the socket filters are pinned. A rule matches a packet if its filter returns anything but 0.

    Attributes:
        unpaid_up, unpaid_mesh, unpaid_lan: find who pays for a packet to an upstream, mesh or LAN interface, and charge
            it if its sender pays. They match if nobody pays.
        unknown, unknown_mesh: match if the daemon should be asked about the packet; the second is for packets to mesh
            interfaces.
        over_rate: matches if the packet is for a payment service of this host, and its neighbour's lane has no room.
        forged: matches if the packet came from elsewhere, under an address of this host.
        slowed: matches if a packet that nobody pays for passes by UNPAID_RATE.
        unpaid_from, unpaid_to: charge the tenant that sends a packet, or that gets it. They match if that tenant's
            traffic is metered and it can't pay.
    """

    unpaid_up: Path
    unpaid_mesh: Path
    unpaid_lan: Path
    unknown: Path
    unknown_mesh: Path
    over_rate: Path
    forged: Path
    unpaid_from: Path
    unpaid_to: Path
    slowed: Path


def gate_chains(desired: DesiredNetwork, paths: GatePaths, rewrites: bool = False) -> Chains:
    """Return the chains and rules of the gate, which are the same for both families. Pure.

    Args: rewrites: whether rules of this host may rewrite destinations.
    Raises: KernelError for an interface name or a path that iptables would misread.
    """
    for name in (*desired.mesh_interfaces, *filter(None, [desired.tunnel])):
        _require_plain_interface(name)
    for path in astuple(paths):
        if not _PLAIN_PATH.fullmatch(str(path)):
            raise KernelError(f"iptables can't take the path {str(path)!r}; use letters, digits, . _ - in STATE_DIR")
    tenants = {FROM_TENANT: paths.unpaid_from, TO_TENANT: paths.unpaid_to} if desired.tunnel else {}
    found = {chain: [Rule("DROP", program=str(path))] for chain, path in tenants.items()}
    return {**_neighbours_chains(desired, paths, rewrites), **found} if desired.sells else found


def _neighbours_chains(desired: DesiredNetwork, paths: GatePaths, rewrites: bool) -> dict[str, list[Rule]]:
    if_unpaid = SLOW if desired.unpaid_bytes_s else UNPAID
    up, lan = (Rule(if_unpaid, program=str(path), goto=True) for path in (paths.unpaid_up, paths.unpaid_lan))
    mesh = Rule(UNPAID_MESH, program=str(paths.unpaid_mesh), goto=True)
    near = len(desired.mesh_interfaces) + len(desired.lan_interfaces)
    known = desired.upstream_interfaces if len(desired.upstream_interfaces) < near else ()
    classes = {TO_UP: known, TO_MESH: desired.mesh_interfaces, TO_LAN: desired.lan_interfaces}
    by_class = [
        Rule(chain, "", name, goto=True) for chain, names in classes.items() for name in names if is_plain(name)
    ]
    asked, asked_mesh = (
        Rule("NFQUEUE", program=str(path), queue_number=desired.queue_number)
        for path in (paths.unknown, paths.unknown_mesh)
    )
    drop = Rule("DROP")
    unpaid = {UNPAID: [asked, drop], UNPAID_MESH: [asked_mesh, drop]}
    slow = {SLOW: [asked, Rule("RETURN", program=str(paths.slowed)), drop]} if desired.unpaid_bytes_s else {}
    own = {OWN: [Rule("DROP", program=str(paths.over_rate))]} if desired.own_services else {}
    forged = {FORGED: [Rule("DROP", program=str(paths.forged))]} if rewrites else {}
    return {GATE: [*by_class, up], TO_UP: [up], TO_MESH: [mesh], TO_LAN: [lan], **unpaid, **slow, **own, **forged}


def gate_jumps(desired: DesiredNetwork, rewrites: bool = False) -> Jumps:
    """Return the jumps that send packets to the gate, by hook. Pure. Args: rewrites: as in `gate_chains`."""
    names = sorted(set(desired.mesh_interfaces)) if desired.sells else []
    forward = [*(Rule(GATE, name) for name in names), *(Rule(FORGED, "", name) for name in names if rewrites)]
    if desired.tunnel:
        forward += [Rule(FROM_TENANT, desired.tunnel), Rule(TO_TENANT, "", desired.tunnel)]
    own = [Rule(OWN, name) for name in names if desired.own_services]
    return {hook: tuple(rules) for hook, rules in ((FORWARD, forward), (INPUT, own)) if rules}


def closed_chains(mesh: Sequence[str], ignored: Sequence[str] = ()) -> Chains:
    """Return the chains that drop traffic forwarded from or to mesh interfaces, whether these exist yet or not. Pure.

    Args: mesh, ignored: names and patterns as in MESH_INTERFACES and in IGNORE_INTERFACE, which takes precedence. Of a
        pattern iptables can only use the beginning: `mesh[01]` closes all interfaces whose names begin with `mesh`.
    Raises: KernelError for a name that iptables would misread.
    """
    names, others = [_as_iptables(each) for each in mesh], [_as_iptables(each) for each in ignored]
    inward, outward = [Rule("DROP", name) for name in names], [Rule("DROP", "", name) for name in names]
    if not others:
        return {CLOSED: [*inward, *outward]}
    first = [Rule(CLOSED_OUT, name, goto=True) for name in others]
    spared = [Rule("RETURN", "", name) for name in others]
    return {CLOSED: [*first, *inward, Rule(CLOSED_OUT, goto=True)], CLOSED_OUT: [*spared, *outward]}


def _as_iptables(name: str) -> str:
    """Write an interface's name or pattern in the form of `-i`; "" for all."""
    wildcard = _WILDCARDS.search(name)
    start = "" if name == ALL_INTERFACES else name[: wildcard.start()] if wildcard else name
    if start:
        _require_plain_interface(start)
    return f"{start}+" if start and wildcard else start


def shut(mesh: Sequence[str], ignored: Sequence[str], families: Iterable[int]) -> None:
    """Set up NGP_CLOSED, as `closed_chains` says, on a host without a gate. Raises KernelError."""
    chains = closed_chains(mesh, ignored)
    for family in sorted(families):
        _apply_change(xtables.tables(xtables.detect().variant, family), chains, _TO_CLOSED, False)


def render(desired: DesiredNetwork, paths: GatePaths, family: int, rewrites: bool = False) -> str:
    """Return the gate of a family as text for `iptables-restore --noflush`; "" if no gate is wanted. Pure."""
    wanted = _of_family(desired, family)
    chains, jumps = gate_chains(wanted, paths, rewrites), gate_jumps(wanted, rewrites)
    return xtables.restore_text(Change(chains=chains, jumps=jumps)) if chains else ""


def _of_family(desired: DesiredNetwork, family: int) -> DesiredNetwork:
    """Return what is wanted for one IP version: tenants are metered in it even if neighbours aren't."""
    return desired if family in desired.families else replace(desired, sells=False)


class Gate:
    """Keeps the gate as desired, by one atomic change for each family, in the tables that the host uses."""

    def __init__(self, paths: GatePaths, desired: DesiredNetwork) -> None:
        self.desired = desired
        self._paths = paths
        self._rewrites = False
        self._choice = xtables.detect()
        self._elsewhere_cleared = False

    def apply(
        self, desired: DesiredNetwork | None = None, programs_changed: bool = False, rewrites: bool = False
    ) -> bool:
        """Make the kernel's tables match the settings; return whether anything had to be changed.

        The change that sets up the gate also removes NGP_CLOSED. So the meter's egress programs must be attached
        before, or downloads would pass unmetered.

        Args:
            desired: the new settings; None: as before.
            programs_changed: write the rules again even if their text is the same, because other programs are now
                pinned at the same paths. (A rule keeps the program with which it was made.)
            rewrites: whether rules of this host may rewrite destinations.
        Raises: KernelError; the family that failed is as it was before.
        """
        self.desired = desired or self.desired
        self._rewrites = rewrites
        changed = False
        for family in (4, 6):
            chains, jumps = self._wanted(family)
            if chains:
                tables = xtables.tables(self._choice.variant, family)
                changed |= _apply_change(tables, chains, jumps, programs_changed)
            else:
                changed |= _remove(self._choice.variant, family, True)
        if not self._elsewhere_cleared:  # the host may have changed its iptables since an earlier start
            for family in (4, 6):
                changed |= _remove(LEGACY if self._choice.variant == NFT else NFT, family, False)
            self._elsewhere_cleared = True
        return changed

    def standing(self) -> bool:
        """Say whether the gate in the kernel is exactly as desired, with its jumps first. Raises KernelError."""
        for family in (4, 6):
            chains, jumps = self._wanted(family)
            if chains and _difference(xtables.tables(self._choice.variant, family).read(), chains, jumps) is not None:
                return False
        return True

    def describe(self) -> str:
        """Name the variant in use and why."""
        return f"{self._choice.variant}: {self._choice.why}"

    def _wanted(self, family: int) -> tuple[Chains, Jumps]:
        wanted = _of_family(self.desired, family)
        return gate_chains(wanted, self._paths, self._rewrites), gate_jumps(wanted, self._rewrites)


def entered() -> frozenset[str]:
    """Return the names of our chains to which FORWARD leads now, in one family or both. Raises KernelError."""
    variant = xtables.detect().variant
    standing = (xtables.tables(variant, family).read() for family in (4, 6))
    by_family = [{jump.target for jump in each.jumps.get(FORWARD, ())} for each in standing]
    return frozenset(by_family[0] | by_family[1])


def clean_up(leave_closed: bool, mesh_interfaces: Sequence[str], families: Iterable[int] = frozenset({4, 6})) -> None:
    """Remove every chain and jump whose name starts with NGP_, in both variants and families, and nothing else.

    Needs no record of what was set up; safe to call twice.

    Args:
        leave_closed: leave NGP_CLOSED, which drops traffic forwarded from or to the mesh interfaces. It is set up in
            the same change that removes the gate, so nothing slips through in between. If no mesh interface or family
            is known, a NGP_CLOSED that exists stays as it is.
        families: the IP versions for which NGP_CLOSED is left.
    Raises: KernelError.
    """
    wanted = frozenset(families) if leave_closed and mesh_interfaces else frozenset()
    if leave_closed and not wanted and CLOSED in entered():
        return
    chains = closed_chains(mesh_interfaces) if wanted else {}
    chosen = xtables.detect().variant
    for variant in (chosen, LEGACY if chosen == NFT else NFT):
        for family in (4, 6):
            if variant == chosen and family in wanted:
                _apply_change(xtables.tables(variant, family), chains, _TO_CLOSED, False)
            else:
                _remove(variant, family, variant == chosen)


def is_plain(name: str) -> bool:
    """Say whether iptables takes an interface's name as it is. Pure."""
    return _PLAIN_INTERFACE.fullmatch(name) is not None


def _require_plain_interface(name: str) -> None:
    if not is_plain(name):
        raise KernelError(f"iptables can't take the interface name {name!r}; rename it: ip link set dev ... name ...")


def _difference(standing: Standing, chains: Chains, jumps: Jumps) -> Change | None:
    """Return the change that makes these chains, and these jumps alone and first; None if nothing has to be changed."""
    texts = {name: tuple(rule.text() for rule in rules) for name, rules in chains.items()}
    kept = {name: rules for name, rules in standing.chains.items() if name != TABLE_MARK}
    heads_stand = all(
        standing.hooks.get(hook, ())[: len(rules)] == tuple(rule.text() for rule in rules)
        for hook, rules in jumps.items()
    )
    if kept == texts and standing.jumps == jumps and heads_stand:
        return None
    return Change(standing.jumps, tuple(name for name in kept if name not in chains), chains, jumps)


def _apply_change(tables: Tables, chains: Chains, jumps: Jumps, rewrite: bool) -> bool:
    standing = tables.read()
    change = _difference(standing, chains, jumps)
    if change is None and rewrite:
        change = Change(standing.jumps, (), chains, jumps)
    if change is None:
        return False
    tables.commit(standing, change)
    return True


def _remove(variant: str, family: int, is_chosen: bool) -> bool:
    """Remove all that is ours from one table. Errors count only in the variant that the host uses (is_chosen)."""
    try:
        tables = xtables.tables(variant, family)
        standing = tables.read()
    except KernelError:
        if is_chosen:
            raise
        return False
    if not (standing.chains or standing.jumps):
        return False
    tables.commit(standing, Change(standing.jumps, tuple(standing.chains)))
    return True
