"""Nodes trade only on the same chain, by its names in hellos and in invoices; otherwise the log names both chains."""

from __future__ import annotations

import pytest
from playbook import Sim

from ngp.core import effects as fx
from ngp.core.networks import is_same, takes_invoice

HOST = "198.51.100.1"
CHAINS = ("mainnet", "testnet", "testnet4", "signet", "regtest", "simnet", "sandbox")


@pytest.mark.parametrize(
    ("gateway", "client", "invoices"),
    [
        ("testnet4", "testnet4", "testnet"), ("testnet", "testnet3", "testnet"), ("testnet3", "testnet", "testnet"),
        ("signet", "signet", "signet"), ("mutinynet", "signet", "signet"), ("signet", "mutinynet", "signet"),
        ("simnet", "simnet", "simnet"), ("regtest", "regtest", "regtest"), ("mainnet", "mainnet", "mainnet"),
    ],
)  # fmt: skip
def test_contracts_on_one_chain_are_paid_whatever_the_chain_is_called(gateway: str, client: str, invoices: str) -> None:
    sim = Sim(gateway_network=gateway, client_network=client)
    sim.payments.invoices_network = invoices
    sim.flow(HOST, 100_000, 2)
    assert sim.payments.paid and sim.passed > 150_000
    assert not [one for one in sim.gateway.log if isinstance(one, fx.Log) and "network" in one.text]


@pytest.mark.parametrize("gateway", CHAINS)
@pytest.mark.parametrize("client", CHAINS)
def test_only_nodes_on_the_same_chain_trade(gateway: str, client: str) -> None:
    assert is_same(gateway, client) is (gateway == client)
    kinds = {"testnet4": "testnet"}
    assert takes_invoice(gateway, kinds.get(client, client)) is (
        kinds.get(gateway, gateway) == kinds.get(client, client)
    )


def test_testnet_and_testnet4_do_not_trade_though_their_invoices_look_alike() -> None:
    sim = Sim(gateway_network="testnet4", client_network="testnet")
    sim.payments.invoices_network = "testnet"
    sim.flow(HOST, 100_000, 2)
    assert sim.passed == 0 and not sim.payments.paid
    for node, theirs, ours in ((sim.gateway, "testnet", "testnet4"), (sim.client, "testnet4", "testnet")):
        said = f"it pays on network {theirs!r}, we on {ours!r}"
        assert [one for one in node.log if isinstance(one, fx.Log) and said in one.text], node.name
