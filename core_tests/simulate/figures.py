"""Figures: what a run shows, as plain values for JSON. All but those under `machine` are the same for the same seed."""

from __future__ import annotations

import resource
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from core_tests.simulate.audit import audit
from core_tests.simulate.flows import Flow
from core_tests.simulate.lies import Lie
from core_tests.simulate.mesh import Mesh, MeshNode
from core_tests.simulate.scenarios import Run
from ngp.core.messages import Role
from ngp.core.pricing import GIB, KILOBYTES_PER_GIB

SERVED_SHARE = 0.99
HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run took on this machine, in seconds."""

    wall_s: float
    cpu_s: float


def figures(run: Run, seed: int, cost: Cost) -> dict[str, Any]:
    """Return all figures of a run. Raises: BooksError if the ledgers don't add up."""
    mesh, flows = run.mesh, run.traffic.flows
    sums = audit(mesh)
    parts = mesh.graph.parts()
    found: dict[str, Any] = {
        "graph": {
            "name": mesh.graph.name, "nodes": mesh.graph.nodes, "links": mesh.graph.links,
            "links_left_out": mesh.graph.left_out, "parts": len(parts), "largest_part": len(parts[0]),
        },
        "seed": seed,
        "mesh_time_s": round(mesh.elapsed_s, 3),
        "books": asdict(sums),
        "served": _served(flows),
        "first_packet": _first_packets(flows),
        "price": price_level(mesh, flows),
        "settlement": _settlement(mesh),
        "nodes": _trade(mesh),
        "steps": mesh.steps,
        "messages": mesh.messages,
        "machine": {
            "wall_s": round(cost.wall_s, 1), "cpu_s": round(cost.cpu_s, 1),
            "steps_a_cpu_second": round(mesh.steps / max(cost.cpu_s, 0.001)),
            "memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        },
    }  # fmt: skip
    if run.scenario.pings:
        found["cold_start"] = cold_start(mesh, flows)
    if any(node.lie for node in mesh.nodes):
        found["liars"] = _liars(mesh)
    return found


def share(values: Sequence[float], part: float) -> float:
    """Return the value below which a part of the values lies, rounded. Args: values: at least one."""
    ranked = sorted(values)
    return round(ranked[min(len(ranked) - 1, int(len(ranked) * part))], 3)


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    if not values:
        return {"median": None, "p95": None, "most": None}
    return {"median": share(values, 0.5), "p95": share(values, 0.95), "most": share(values, 1.0)}


def _served(flows: Sequence[Flow]) -> dict[str, Any]:
    wanted = sum(flow.size_bytes for flow in flows)
    delivered = sum(flow.delivered_bytes for flow in flows)
    tried = sorted(Counter(flow.hops for flow in flows if flow.hops).items())
    return {
        "flows": len(flows),
        "answered": sum(flow.answered_at is not None for flow in flows),
        "complete": sum(flow.complete for flow in flows),
        "wanted_bytes": wanted,
        "delivered_bytes": delivered,
        "share": round(delivered / wanted, 4) if wanted else None,
        "answered_by_hops": {str(hops): f"{len(by_hops(flows).get(hops, ()))} of {many}" for hops, many in tried},
    }


def latency_ms(flow: Flow) -> float:
    """Return how long a flow's first packet and its answer took, in milliseconds."""
    assert flow.answered_at is not None
    return (flow.answered_at - flow.began_at) * 1000


def by_hops(flows: Sequence[Flow]) -> dict[int, list[Flow]]:
    """Sort the answered flows by the links of their paths."""
    found: dict[int, list[Flow]] = defaultdict(list)
    for flow in flows:
        if flow.answered_at is not None:
            found[flow.hops].append(flow)
    return dict(sorted(found.items()))


def _first_packets(flows: Sequence[Flow]) -> dict[str, Any]:
    answered = [flow for flow in flows if flow.answered_at is not None]
    return {
        "ms": _spread([latency_ms(flow) for flow in answered]),
        "by_hops": {
            str(hops): {
                "flows": len(some),
                "median_ms": share([latency_ms(flow) for flow in some], 0.5),
                "p95_ms": share([latency_ms(flow) for flow in some], 0.95),
                "links_alone_ms": share([flow.round_trip_s * 1000 for flow in some], 0.5),
            }
            for hops, some in by_hops(flows).items()
        },
    }


def price_level(mesh: Mesh, flows: Sequence[Flow]) -> dict[str, Any]:
    """Return what flows cost for each byte beside the cheapest possible: that of a way with the fewest links.

    All nodes ask the same price, and add the same margin to what they pay. So what a flow costs more comes from routes
    that lead by the quality of links instead of by price (the price of anarchy). Neighbours pay nothing to each other.
    """
    fewest = cache(mesh.graph.distances)
    paid = cheapest = priced = 0
    for flow in flows:
        price = _paid_msat_per_gib(flow)
        if price is None or flow.answered_at is None:
            continue
        links = fewest(flow.source.number)
        paid += price * flow.delivered_bytes
        cheapest += _least_msat_per_gib(mesh, links[flow.target.number]) * flow.delivered_bytes
        priced += flow.delivered_bytes
    return {
        "priced_bytes": priced,
        "mean_msat_per_kb": round(paid / priced / KILOBYTES_PER_GIB, 3) if priced else None,
        "cheapest_msat_per_kb": round(cheapest / priced / KILOBYTES_PER_GIB, 3) if priced else None,
        "above_cheapest": round(paid / cheapest, 4) if cheapest else None,
    }


def _paid_msat_per_gib(flow: Flow) -> int | None:
    """Return the price at which a flow's source last bought its target; None if it bought nothing."""
    prices = [
        one.prices[-1][1] for one in flow.source.ledger.contracts.values()
        if one.role is Role.CLIENT and one.destination == f"{flow.target.address}/32"
    ]  # fmt: skip
    return prices[-1] if prices else None


def _least_msat_per_gib(mesh: Mesh, links: int) -> int:
    """Return the price of a way of so many links: those of its nodes that sell, the last at the usual price."""
    settings = mesh.nodes[0].settings
    price = settings.sell_msat_per_gib if links > 1 else 0
    for _ in range(links - 2):
        price = settings.resale_margin.least_msat_per_gib(price)
    return price


def answered_after(mesh: Mesh, flows: Sequence[Flow]) -> list[float]:
    """Return when pairs got their first answer, in seconds from the start, in rising order."""
    return sorted(flow.answered_at - mesh.began for flow in flows if flow.answered_at is not None)


def cold_start(mesh: Mesh, flows: Sequence[Flow]) -> dict[str, Any]:
    """Return when parts of all pairs had been served."""
    times = answered_after(mesh, flows)

    def until(part: float) -> float | None:
        needed = max(1, -(-len(flows) * int(part * 100) // 100))
        return round(times[needed - 1], 3) if needed <= len(times) else None

    return {"pairs": len(flows), "half_s": until(0.5), "p99_s": until(SERVED_SHARE), "all_s": until(1.0)}


def payments_an_hour(mesh: Mesh) -> list[float]:
    """Return how many payments each node sent and received in an hour of mesh time."""
    wallets = [mesh.wallets.wallet(node.name) for node in mesh.nodes]
    return [(one.payments + one.arrivals) * HOUR_S / mesh.elapsed_s for one in wallets]


def _settlement(mesh: Mesh) -> dict[str, Any]:
    wallets = [mesh.wallets.wallet(node.name) for node in mesh.nodes]
    payments = sum(one.payments for one in wallets)
    moved = sum(one.sent_msat for one in wallets)
    return {
        "payments": payments,
        "mean_msat": round(moved / payments) if payments else 0,
        "payments_an_hour_of_a_node": _spread(payments_an_hour(mesh)),
        "refused_as_dry": sum(one.refusals for one in wallets),
        "swaps": sum(one.swaps for one in wallets),
        "swap_fees_msat": sum(one.fees_msat for one in wallets),
    }


def earned_msat(node: MeshNode) -> int:
    """Return what a node's neighbours used of it, less what it used of them, by the ledger."""
    accounts = node.ledger.accounts.values()
    return sum(one.charged_msat if one.role is Role.SERVER else -one.charged_msat for one in accounts)


def _trade(mesh: Mesh) -> dict[str, Any]:
    honest = [node for node in mesh.nodes if node.lie is None]
    prepaid = [
        sum(one.paid_msat - one.charged_msat - one.refunded_msat for one in node.ledger.accounts.values()
            if one.role is Role.CLIENT)
        for node in honest
    ]  # fmt: skip
    return {
        "earned_msat": _spread([earned_msat(node) for node in honest]),
        "earned_least_msat": min(earned_msat(node) for node in honest),
        "prepaid_and_unused_msat": _spread(prepaid),
        "contracts_sold": _spread([_sold(node) for node in honest]),
    }


def _sold(node: MeshNode) -> int:
    return sum(one.role is Role.SERVER for one in node.ledger.contracts.values())


def grace_msat(mesh: Mesh) -> int:
    """Return what the grace is worth at most, at the highest price that was agreed."""
    contracts = (one for node in mesh.nodes for one in node.ledger.contracts.values())
    price = max((price for one in contracts for _, price in one.prices), default=0)
    return -(-mesh.nodes[0].settings.grace_data_bytes * price // GIB)


def losses_msat(mesh: Mesh, lie: Lie) -> dict[tuple[int, int], int]:
    """Return what each liar of a kind cost each honest neighbour, by (honest node, liar).

    A client that pays nothing costs what it used and didn't pay. A server that bills too much costs what it was paid
    beyond what its client's own meter counted; one that carries nothing, all that it was paid.
    """
    by_identity = {node.identity: node for node in mesh.nodes}
    found = {}
    for node in mesh.nodes:
        for account in node.ledger.accounts.values() if node.lie is None else ():
            other = by_identity[account.identity]
            if other.lie is not lie:
                continue
            if lie is Lie.PAYS_NOTHING and account.role is Role.SERVER:
                found[node.number, other.number] = max(0, account.charged_msat - account.paid_msat)
            elif lie is Lie.BILLS_TOO_MUCH and account.role is Role.CLIENT:
                found[node.number, other.number] = max(0, account.paid_msat - account.metered_msat)
            elif lie is Lie.CARRIES_NOTHING and account.role is Role.CLIENT:
                found[node.number, other.number] = account.paid_msat
    return found


def _liars(mesh: Mesh) -> dict[str, Any]:
    prepayment_msat = mesh.nodes[0].settings.payment_amount_msat
    told: dict[str, Any] = {"grace_msat": grace_msat(mesh), "prepayment_msat": prepayment_msat}
    for lie in Lie:
        losses = list(losses_msat(mesh, lie).values())
        told[lie.value] = {
            "nodes": sum(node.lie is lie for node in mesh.nodes),
            "cost_honest_msat": sum(losses),
            "most_between_two_msat": max(losses, default=0),
        }
    return told
