"""Resale with real money: in a line of three each has a node, and pays the next one over a channel of its own."""

from __future__ import annotations

from itertools import pairwise

import pytest
import yaml

from core_tests import traffic
from core_tests.lab import Lab
from core_tests.lightning.build import programs
from core_tests.lightning.network import LightningNetwork
from core_tests.lightning.trade import backbone, node_settings
from core_tests.routers import REMOTE, Line
from core_tests.session import Deal
from core_tests.shell import await_until
from core_tests.trade import start_all, used

PINGS = 20
PING_BYTES = 1400 + 28


@pytest.mark.first
def test_in_a_line_of_real_nodes_each_pays_the_next_over_its_own_channel(lab: Lab) -> None:
    line = Line(lab, masquerade=True, start=False)
    places, chain = backbone(lab, {host.name: host for host in line.routers})
    with LightningNetwork(programs(), lab.folder / "lightning", places, chain) as network:
        for payer, earner in pairwise(network.nodes):
            network.open(payer, earner, options=["--private"])
            network.await_payable(payer, earner)
        for daemon in line.daemons:
            conf = yaml.safe_load(daemon.config.read_text())
            daemon.configure({**conf, "IGNORE_INTERFACE": "chain0", **node_settings(network.node(daemon.name))})
        before = {name: (node.sent_msat(), node.received_msat()) for name, node in network.nodes.items()}
        start_all(*line.daemons)
        line.await_acquainted()
        keys = {daemon.name: str(daemon.json("status")["identity"]) for daemon in line.daemons}
        deals = [Deal(seller, buyer, keys) for buyer, seller in pairwise(line.daemons)]

        assert traffic.ping(line.household, REMOTE[4], payload_bytes=1400, count=PINGS).received == PINGS
        for deal in deals:
            await_until(lambda deal=deal: deal.earned()["paid_msat"] > 0, what="money")  # type: ignore[misc]
        assert traffic.ping(line.household, REMOTE[4], payload_bytes=1400, count=PINGS).received == PINGS

        for deal in deals:
            deal.assert_books_agree()
            assert sum(map(used, deal.sold())) == 2 * 2 * PINGS * PING_BYTES
            paid = deal.spent()["paid_msat"]
            sent = network.node(deal.client.name).sent_msat() - before[deal.client.name][0]
            received = network.node(deal.gateway.name).received_msat() - before[deal.gateway.name][1]
            assert sent == received == paid == deal.earned()["paid_msat"]
        bought, sold = deals[1].spent(), deals[0].earned()
        assert sold["charged_msat"] > bought["charged_msat"] > 0, "the middle earns its margin"
