"""The simulator: books that add up or fail the run, the same result for the same seed, and liars that gain little."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from core_tests.shell import await_until
from core_tests.simulate import scenarios
from core_tests.simulate.__main__ import LIMITS, main
from core_tests.simulate.audit import BooksError, audit
from core_tests.simulate.figures import Cost, figures, grace_msat, losses_msat
from core_tests.simulate.graph import Edge, WantedFlow, grid, read_graph
from core_tests.simulate.lies import Lie
from core_tests.simulate.scenarios import SCENARIOS, Run, run
from ngp.core.messages import Role

ROOT = Path(__file__).resolve().parents[2]
TENTH = 10


@cache
def traffic() -> Run:
    return run(replace(SCENARIOS["traffic"], time_s=120.0, flows_an_hour=60.0), grid(25), 1)


@cache
def lied_to() -> Run:
    return run(replace(SCENARIOS["liars"], time_s=300.0, flows_an_hour=60.0, liars=0.36), grid(25), 2)


def test_all_is_served_and_all_ledgers_sum_to_zero() -> None:
    found = figures(traffic(), 1, Cost(1.0, 1.0))
    assert found["served"]["flows"] == found["served"]["complete"] == 50 and found["served"]["share"] == 1.0
    assert sum(int(some.split()[0]) for some in found["served"]["answered_by_hops"].values()) == 50
    books = found["books"]
    assert books["paid_msat"] == books["received_msat"] > 0 and books["wallets_msat"] == 0
    assert books["charged_msat"] > 0 and books["uncharged_bytes"] == 0
    json.dumps(found)


def test_each_byte_is_charged_once_by_each_node_that_sells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighbours know each other: while first top-ups grow, a server may refuse a packet that was charged before it."""
    known = replace(scenarios.shipped_settings(), trust_amount_msat=200_000)
    monkeypatch.setattr(scenarios, "shipped_settings", lambda: known)
    done = run(replace(SCENARIOS["traffic"], time_s=120.0, flows_an_hour=60.0), grid(25), 1)
    mesh, flows = done.mesh, done.traffic.flows
    sold = sum(
        one.used_to_bytes + one.used_from_bytes
        for node in mesh.nodes for one in node.ledger.contracts.values() if one.role is Role.SERVER
    )  # fmt: skip
    assert sold == sum((flow.hops - 1) * (flow.delivered_bytes + 2 * 60) for flow in flows)


def test_on_perfect_links_the_way_is_the_cheapest_and_a_detour_costs_more() -> None:
    found = figures(traffic(), 1, Cost(1.0, 1.0))["price"]
    assert found["priced_bytes"] > 0 and found["mean_msat_per_kb"] == found["cheapest_msat_per_kb"] > 5
    assert found["above_cheapest"] == 1.0
    graph = grid(4)
    graph.edges[0][1] = graph.edges[1][0] = Edge(0.05, 0.0, 0.001)  # all routes but these two nodes' own avoid it
    graph.flows = (WantedFlow(1, 2, 100_000), WantedFlow(0, 1, 100_000))
    dear = figures(run(replace(SCENARIOS["traffic"], time_s=60.0), graph, 1), 1, Cost(1.0, 1.0))["price"]
    assert dear["above_cheapest"] > 1


def test_a_ledger_that_differs_by_one_msat_fails_the_run() -> None:
    done = run(replace(SCENARIOS["traffic"], time_s=60.0, flows_an_hour=60.0), grid(9), 1)
    audit(done.mesh)
    node, key = next((n, k) for n in done.mesh.nodes for k, a in n.ledger.accounts.items() if a.paid_msat)
    accounts, before = node.ledger.accounts, node.ledger.accounts[key]
    for field in ("paid_msat", "charged_msat"):
        if field == "charged_msat" and before.role is Role.CLIENT:
            continue
        accounts[key] = replace(before, **{field: getattr(before, field) + 1})
        with pytest.raises(BooksError, match=f"node .*{node.number}"):
            audit(done.mesh)
    accounts[key] = before
    wallet = done.mesh.wallets.wallet(node.name)
    wallet.sent_msat += 1
    with pytest.raises(BooksError, match=f"node {node.number} booked"):
        audit(done.mesh)
    wallet.sent_msat -= 1
    seller = next(n for n in done.mesh.nodes if any(c.role is Role.SERVER for c in n.ledger.contracts.values()))
    contract = next(c for c in seller.ledger.contracts.values() if c.role is Role.SERVER)
    seller.kernel.passed[contract.contract] += 1
    with pytest.raises(BooksError, match=f"node {seller.number}'s contract {contract.contract.hex()[:8]}"):
        audit(done.mesh)


def test_a_first_packet_waits_for_one_round_trip_more_at_each_gate(tmp_path: Path) -> None:
    links = [[node, node + 1, 1, 1, "vpn"] for node in range(4)]
    file = tmp_path / "line.json"
    file.write_text(json.dumps({"nodes": 5, "links": links, "flows": [[0, 4, 100_000]]}))
    done = run(replace(SCENARIOS["traffic"], time_s=60.0), read_graph(file), 1)
    (flow,) = done.traffic.flows
    assert flow.complete and flow.hops == 4 and flow.answered_at is not None
    assert flow.answered_at - flow.began_at == pytest.approx((4 + 3) * 0.020)  # nobody haggles over a resold price


def test_after_a_cold_start_all_pairs_are_served_though_all_begin_at_once() -> None:
    """A client may want its contract renewed before the server has room for it; that must not end one side alone."""
    done = run(replace(SCENARIOS["cold-start"], time_s=60.0), grid(25), 1)
    found = figures(done, 1, Cost(1.0, 1.0))
    assert (found["cold_start"]["pairs"], found["served"]["answered"]) == (600, 600)
    assert found["cold_start"]["all_s"] < 60.0


def test_who_pays_nothing_costs_each_neighbour_at_most_the_grace() -> None:
    mesh = lied_to().mesh
    audit(mesh)
    losses = losses_msat(mesh, Lie.PAYS_NOTHING)
    assert max(losses.values()) > 0, "nobody lied to anybody"
    assert max(losses.values()) <= grace_msat(mesh)


def test_who_bills_too_much_gains_the_grace_or_as_much_as_it_carried_and_a_tenth() -> None:
    mesh = lied_to().mesh
    losses = losses_msat(mesh, Lie.BILLS_TOO_MUCH)
    assert max(losses.values()) > 0, "nobody lied to anybody"
    for (client, liar), loss in losses.items():
        account = mesh.nodes[client].ledger.accounts[mesh.nodes[liar].identity, Role.CLIENT]
        assert loss <= max(grace_msat(mesh), account.metered_msat) + account.metered_msat // TENTH


def test_who_carries_nothing_costs_each_neighbour_at_most_the_grace() -> None:
    mesh = lied_to().mesh
    losses = losses_msat(mesh, Lie.CARRIES_NOTHING)
    assert max(losses.values(), default=0) <= grace_msat(mesh)


def test_liars_are_reported_by_kind() -> None:
    told = figures(lied_to(), 2, Cost(1.0, 1.0))["liars"]
    assert [told[lie.value]["nodes"] for lie in Lie] == [3, 3, 3]


def test_nodes_that_were_off_come_back_with_their_books() -> None:
    done = run(replace(SCENARIOS["churn"], time_s=300.0, flows_an_hour=60.0, outages_an_hour=6.0), grid(16), 3)
    assert all(node.awake for node in done.mesh.nodes) and sum(node.boot > 1 for node in done.mesh.nodes) >= 5
    audit(done.mesh)
    late = [flow for flow in done.traffic.flows if flow.began_at > done.mesh.began + 240]
    assert late and sum(flow.complete for flow in late) > len(late) // 2


def test_dry_channels_refuse_payments_until_they_are_refilled_at_a_cost() -> None:
    done = run(replace(SCENARIOS["liquidity"], time_s=300.0, flows_an_hour=240.0), grid(16), 3)
    audit(done.mesh)
    wallets = done.mesh.wallets.of.values()
    assert sum(one.refusals for one in wallets) > 0 and sum(one.swaps for one in wallets) > 0
    assert sum(one.fees_msat for one in wallets) > 0 and sum(one.coins_msat for one in wallets) == 0
    mesh, size = done.mesh, SCENARIOS["liquidity"].channel_msat
    for node in mesh.nodes:
        for number in node.edges:
            ends = (node.name, mesh.nodes[number].name)
            assert mesh.wallets.end_msat(*ends) + mesh.wallets.end_msat(*reversed(ends)) == size
            assert mesh.wallets.end_msat(*ends) >= 0


def simulated(out: Path, hash_seed: int, seed: int) -> dict[str, Any]:
    """Return what a run of the command reports, without what depends on the machine."""
    words = ["liars", "--nodes", "16", "--time", "60", "--flows", "60", "--seed", str(seed), "--out", str(out)]
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, "-m", "core_tests.simulate", *words], check=True, env=environment, capture_output=True
    )
    found: dict[str, Any] = json.loads((out / "liars.json").read_text())
    assert found.pop("machine")["wall_s"] > 0
    assert {file.suffix for file in out.iterdir()} == {".json", ".png"} and len(list(out.iterdir())) == 5
    return found


def test_the_same_seed_gives_the_same_result(tmp_path: Path) -> None:
    first, again = (simulated(tmp_path / str(number), number, 5) for number in (1, 2))
    assert first == again
    assert simulated(tmp_path / "other", 1, 6) != first


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (["traffic", "--nodes", "50"], 3, "--nodes 50: a grid is a square of 4 to 100000 nodes; 49 and 64 are such"),
        (["traffic", "--graph", "/nowhere.json"], 3, "/nowhere.json: can't be read: "),
        (["traffic", "--time", "1"], 2, "--time 1: must be from 60 to 86400"),
        (["liars", "--liars", "95"], 2, "--liars 95: must be from 0 to 90"),
        (["traffic", "--flows", "0"], 2, "--flows 0: must be from 0.01 to 10000"),
        (["cold-start", "--flows", "5"], 2, "--flows 5: cold-start has none, each pair is pinged; leave it out"),
        (["traffic", "--time", "nan"], 2, "--time nan: must be from 60 to 86400"),
        (["traffic", "--out", "/dev/null/here"], 1, "--out /dev/null/here: "),
    ],
)
def test_what_cannot_be_run_is_refused(
    capsys: pytest.CaptureFixture[str], words: list[str], code: int, why: str
) -> None:
    assert main(words) == code
    assert f"simulate: {why}" in capsys.readouterr().err


def test_a_file_that_names_flows_gets_no_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "graph.json"
    file.write_text(json.dumps({"nodes": 2, "links": [[0, 1, 1, 1, "wifi"]], "flows": [[0, 1, 9]]}))
    assert main(["traffic", "--graph", str(file), "--flows", "5"]) == 3
    assert f"simulate: --flows 5: {file} names its flows; leave one of both out" in capsys.readouterr().err


def test_a_file_with_an_empty_list_of_flows_gets_none_and_a_link_that_carries_nothing_is_told(tmp_path: Path) -> None:
    links = [[0, 1, 1, 1, "wifi"], [1, 2, 0, 0, "wifi"]]
    (tmp_path / "graph.json").write_text(json.dumps({"nodes": 3, "links": links, "flows": []}))
    arguments = ["traffic", "--graph", f"{tmp_path}/graph.json", "--time", "60", "--out", str(tmp_path)]
    told = subprocess.run([sys.executable, "-m", "core_tests.simulate", *arguments], check=True, capture_output=True,
                          text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}).stdout  # fmt: skip
    assert "flows: 0 of 0 answered" in told
    assert "left out: 1 of the file's links, whose quality is 0 in both directions" in told
    assert json.loads((tmp_path / "traffic.json").read_text())["graph"]["links_left_out"] == 1


def test_an_interruption_is_told_in_a_word(tmp_path: Path) -> None:
    words = ["liars", "--nodes", "2500", "--time", "86400", "--out", str(tmp_path / "out")]
    process = subprocess.Popen([sys.executable, "-m", "core_tests.simulate", *words], stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    await_until((tmp_path / "out").exists, what="its folder")
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1].endswith("\nsimulate: interrupted\n")
    assert process.returncode == 130


def test_help_names_each_scenario_and_what_values_may_be(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    told = capsys.readouterr().out
    assert all(f"  {name}" in told and one.about in told for name, one in SCENARIOS.items())
    words = " ".join(told.split())
    assert all(f", {least} to {most} (" in words for least, most in LIMITS.values())
