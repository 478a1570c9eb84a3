"""The load watch: how full the fullest way upstream is, in the fuller direction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from ngp.core.events import LoadSeen
from ngp.core.settings import LoadPrice
from ngp.daemon.load_watch import LoadWatch, unmeasured
from ngp.ports.network import InterfaceTraffic


class Network:
    """The counters of two interfaces."""

    def __init__(self) -> None:
        self.now = 100.0
        self.carried = {"up0": (0, 0, 1000), "wlan0": (0, 0, None)}

    def traffic(self, names: Sequence[str]) -> dict[str, InterfaceTraffic]:
        return {name: InterfaceTraffic(*self.carried[name]) for name in names}


def watch(network: Any, wanted: list[LoadPrice | None], told: list[Any]) -> LoadWatch:
    return LoadWatch(network, lambda: wanted[0], lambda: ("wlan0", "up0"), told.append, lambda: network.now)


def test_the_fuller_direction_of_the_fullest_interface_counts_and_news_is_told() -> None:
    network, told, wanted = Network(), list[Any](), [LoadPrice(0, 2_000_000)]
    watching = watch(network, wanted, told)
    watching.look()
    assert not told  # one look shows no rate
    steps = [((9, 3000), [600_000]), ((99, 6000), []), ((2599, 6000), [500_000]), ((99_000, 0), [1_000_000])]
    for up0, seen in steps:
        told.clear()
        network.carried["up0"] = (*up0, 1000)
        network.now += 5
        watching.look()
        assert told == [LoadSeen(load_ppm) for load_ppm in seen]


def test_an_interface_of_unknown_speed_counts_only_if_the_operator_says_what_it_carries(
    caplog: pytest.LogCaptureFixture,
) -> None:
    network, told, wanted = Network(), list[Any](), list[LoadPrice | None]([LoadPrice(0, 2_000_000)])
    watching = watch(network, wanted, told)
    watching.look()
    network.carried["wlan0"] = (0, 2000, None)
    network.now += 5
    watching.look()
    assert not told
    assert [record.message.partition(":")[0] for record in caplog.records] == ["load of wlan0"]
    wanted[0] = LoadPrice(0, 2_000_000, 500)
    network.carried["wlan0"] = (0, 3000, None)
    network.now += 5
    watching.look()
    assert told == [LoadSeen(400_000)]
    assert unmeasured(wanted[0], network.traffic(["wlan0"])) == []
    wanted[0] = None
    watching.look()
    assert told == [LoadSeen(400_000), LoadSeen(0)]
