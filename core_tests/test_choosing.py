"""CHOOSE_ROUTES: a client with two gateways pays the better one, and goes on through the other one when that fails."""

from __future__ import annotations

import time

import pytest

from core_tests.diamond import CHOOSING, HANG_S, NAMES, REMOTE, REMOTES, Diamond, diamond, fail_over, gateway
from core_tests.host import Host
from core_tests.lab import Lab
from core_tests.shell import await_until
from core_tests.trade import MSAT_PER_KB


def shown(host: Host) -> str:
    """Return the host's rules and routes, as `ip` shows them."""
    words = (("-4", "rule"), ("-6", "rule"), ("-4", "route", "show", "table", "all"))
    return "".join(host.run("ip", *each).stdout for each in words)


def test_the_cheaper_gateway_is_chosen_and_left_when_it_renews_at_a_higher_price(lab: Lab) -> None:
    net = diamond(lab, gateway("5 msat"), gateway("2 msat", CONTRACT_DATA="100 kB"))
    with net.conversation() as talk:
        await_until(lambda: net.leads_through("east"), HANG_S, "the cheaper way")
        talk.await_echoes()
        assert net.client.json("status")["routes"] == [
            {"destination": "0.0.0.0/0", "interface": "east0", "router": "10.0.2.2", "neighbour": net.key("east")}
        ]
        rows = {row["neighbour"]: row for row in net.client.json("neighbours")}
        east, west = rows[net.key("east")], rows[net.key("west")]
        assert (east["chosen_for"], west["chosen_for"]) == (["0.0.0.0/0"], [])
        offer = {"destination": f"{REMOTE}/32", "price_msat_per_gib": 2 * MSAT_PER_KB}
        assert east["offers"] == [offer] and 0.5 < east["quality"] <= 1.0
        assert net.daemons["east"].reload(gateway("9 msat", CONTRACT_DATA="100 kB")).returncode == 0
        await_until(lambda: net.leads_through("west"), HANG_S, "the way that is cheaper now")
        talk.await_echoes()
        assert net.daemons["east"].reload(gateway("20 msat")).returncode == 0  # above what the client pays
        assert net.daemons["west"].reload(gateway("8 msat")).returncode == 0
        talk.await_echoes()
    assert net.leads_through("west")
    assert talk.longest_pause_s(talk.echoes[0]) < HANG_S


def test_a_gateway_whose_link_fails_is_left(lab: Lab) -> None:
    pause_s = fail_over(diamond(lab, gateway("5 msat"), gateway("2 msat")), Diamond.cut_off)
    assert pause_s < HANG_S
    print(f"pause {pause_s:.2f} s")


def test_a_choice_that_ends_with_the_clients_own_link_is_in_its_log(lab: Lab) -> None:
    net = diamond(lab, gateway("5 msat"), gateway("2 msat"))
    with net.conversation() as talk:
        await_until(lambda: net.leads_through("east"), HANG_S, "the cheaper way")
        talk.await_echoes()
        net.hosts["client"].ip("link", "set", "east0", "down")
        await_until(lambda: net.leads_through("west"), HANG_S, "the other way")
        talk.await_echoes()
    await_until(lambda: net.client.json("status")["routes"] == [], what="no route of ours")
    net.client.await_logged("no route of ours leads packets to 0.0.0.0/0 through ")


def test_a_gateway_that_vanishes_behind_a_link_that_stays_up_is_left(lab: Lab) -> None:
    pause_s = fail_over(diamond(lab, gateway("5 msat"), gateway("2 msat")), Diamond.silence)
    assert pause_s < HANG_S
    print(f"pause {pause_s:.2f} s")


@pytest.mark.parametrize("version", [4, 6])
def test_a_tcp_stream_goes_on_where_addresses_stay_and_each_gateway_is_paid_for_what_it_carried(
    lab: Lab, version: int
) -> None:
    net = diamond(lab, gateway("5 msat"), gateway("2 msat"), hides=False)
    onward, back = ({name: net.hosts[name].counter(at, "out") for name in NAMES} for at in ("wan0", "mesh0"))
    with net.stream(version) as stream:
        for name in ("east", "west"):  # the cheaper way, then the one that is left
            await_until(lambda name=name: net.leads_through(name, version), HANG_S, f"the way through {name}")  # type: ignore[misc]
            net.answer_through(name)
            stream.await_bytes()
            if name == "east":
                net.silence(name)
    assert stream.broken is None
    net.silence("east", "-D")
    for name in NAMES:
        deal = net.deal(name)
        await_until(deal.acquainted, what=f"{name} and the client know each other")
        deal.assert_books_agree(refused=True)  # the client's meter has counted what it sent to the silent gateway
        sold = deal.sold()
        for key, carried in (
            ("used_to_bytes", onward[name].total(destination=REMOTES[version])),
            ("used_from_bytes", back[name].total(source=REMOTES[version])),
        ):
            assert sum(row[key] for row in sold) == carried.bytes > 50_000


def test_behind_another_address_new_streams_take_the_other_way_and_running_ones_end(lab: Lab) -> None:
    net = diamond(lab, gateway("5 msat"), gateway("2 msat"))
    with net.conversation():
        await_until(lambda: net.leads_through("east"), HANG_S, "the cheaper way")
    with net.stream() as running:
        running.await_bytes()
        net.silence("east")
        await_until(lambda: net.leads_through("west"), HANG_S, "the other way")
        with net.stream() as new:
            new.await_bytes()
            await_until(lambda: running.broken, HANG_S, "the end of the running stream")
        assert new.broken is None
    assert isinstance(running.broken, ConnectionResetError)


def test_a_gateway_without_its_daemon_carries_on_until_its_contract_must_be_renewed(lab: Lab) -> None:
    net = diamond(lab, gateway("5 msat"), gateway("2 msat", CONTRACT_DATA="200 kB"))
    with net.conversation() as talk:
        await_until(lambda: net.leads_through("east"), HANG_S, "the cheaper way")
        talk.await_echoes()
        failed_at = time.monotonic()
        net.daemons["east"].kill9()
        talk.await_echoes()
        went_on = net.leads_through("east")
        await_until(lambda: net.leads_through("west"), HANG_S, "the other way")
        talk.await_echoes()
    assert went_on
    assert talk.longest_pause_s(failed_at) < HANG_S
    print(f"pause {talk.longest_pause_s(failed_at):.2f} s")


def test_a_gateway_that_sells_cheaply_and_drops_is_left_and_gets_less_than_grace(lab: Lab) -> None:
    net = diamond(lab, gateway("5 msat"), gateway("1 msat"))
    east = net.hosts["east"]
    east.sh("iptables", "-t", "mangle", "-A", "POSTROUTING", "-o", "wan0", "-j", "DROP")
    with net.conversation() as talk:
        await_until(lambda: net.leads_through("east"), HANG_S, "the cheap way")
        await_until(lambda: net.leads_through("west"), HANG_S, "the way that carries")
        talk.await_echoes(300)
        assert net.leads_through("west")
    assert 0 < net.sold("east") < 256 << 10
    (row,) = [row for row in net.client.json("neighbours") if row["neighbour"] == net.key("east")]
    assert row["quality"] < 0.2


def test_equal_offers_never_alternate(lab: Lab) -> None:
    net = diamond(lab, gateway("5 msat"), gateway("5 msat"))
    with net.conversation() as talk:
        await_until(lambda: "proto 225" in shown(net.hosts["client"]), HANG_S, "a choice")
        talk.await_echoes(700)
    assert net.leads_through("west")
    assert "no longer through" not in net.client.log()


def test_a_killed_daemons_choice_goes_on_and_a_stop_leaves_the_operators_routes(lab: Lab) -> None:
    net = diamond(lab, gateway("5 msat"), gateway("2 msat"), {"MESH_INTERFACES": ["west0", "east0"], "SELL": "no"})
    user = net.hosts["client"]
    before = shown(user)
    assert net.client.reload(CHOOSING).returncode == 0
    with net.conversation() as talk:
        await_until(lambda: net.leads_through("east"), HANG_S, "the cheaper way")
        # A slow machine's next start comes when the grace is used up; then the other way would be right.
        await_until(lambda: net.paid_msat("east"), what="its first payment")
        chosen = shown(user)
        net.client.kill9()
        logged = len(net.client.log())
        talk.await_echoes()
        assert shown(user) == chosen
        net.client.start()
        talk.await_echoes(500)
        assert shown(user) == chosen
        assert "no longer through" not in net.client.log()[logged:]
    assert net.client.reload({**CHOOSING, "ROUTE_TABLE": 300, "ROUTE_PRIORITY": 1000}).returncode == 0
    assert net.leads_through("east") and "lookup 300" in shown(user) and "10325" not in shown(user)
    net.client.kill9()
    net.client.stop()
    assert shown(user) == before
