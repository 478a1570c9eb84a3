"""The barrier while a landlord's name is looked up, with a kernel that is played."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from ngp.core.tenant.account import Account
from ngp.core.tenant.way import Way
from ngp.errors import ConfigError, MomentError
from ngp.tenant import policy, routing
from ngp.tenant.books import Books, BooksFile
from ngp.tenant.home import Home, Tunnel
from ngp.tenant.https import read_place

NAME_SERVER = Way(ip_network("192.168.7.1"), "udp", 53)
TO_NAME_SERVER = "ip daddr 192.168.7.1/32 udp dport 53 accept"
TO_LANDLORD = "ip daddr 203.0.113.1/32 udp dport 51820 accept"


class Host:
    """A machine with one rental, whose tunnel ends at a name. Attributes: barrier: "" if there is none."""

    def __init__(self, folder: Path) -> None:
        self.home = Home(folder)
        self.tunnel: Tunnel = self.home.add_tunnel("shop", read_place("9.9.9.1", "00" * 32))
        self.ran: list[str] = []
        self.home.keep_conf(self.tunnel, "[Interface]\nAddress = 198.51.100.1/32\nEndpoint = landlord.example:51820\n")
        self.rules: list[policy.Rule] = []
        self.barrier = ""
        self.asked: list[str] = []
        """The barrier whenever a name was looked up."""
        self.answers = False

    def up(self, *beside: Way) -> None:
        routing.bring_up(self.home, self.tunnel, True, beside)

    def run(self, words: Sequence[str], text_in: str = "", needed: bool = True) -> str:
        self.ran.append(" ".join(words))
        match list(words):
            case ["nft", "-f", "-"]:
                self.barrier = text_in
            case ["nft", "list", *_]:
                return self.barrier
            case ["ip", "-N", "-j", version, "rule"]:
                return json.dumps([_row(one) for one in self.rules if one.version == int(version[1:])])
        return ""

    def look_up(self, *_: object, **__: object) -> list[tuple[Any, ...]]:
        self.asked.append(self.barrier)
        if not self.answers:
            raise socket.gaierror(-3, "Temporary failure in name resolution")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("203.0.113.1", 51820))]


def _row(rule: policy.Rule) -> dict[str, Any]:
    row: dict[str, Any] = {"priority": rule.priority, "src": "all", "table": str(rule.table), "protocol": "110"}
    if rule.destination:
        address, _, length = rule.destination.partition("/")
        row |= {"dst": address, "dstlen": int(length)}
    row |= {"ipproto": f"ipproto-{rule.ip_protocol}"} if rule.ip_protocol else {}
    row |= {"dport": rule.port} if rule.port else {}
    return row | ({"suppress_prefixlen": 0} if rule.not_default else {})


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    played = Host(tmp_path)
    with ExitStack() as stack:
        for name, by in (
            ("ngp.tenant.routing._run", played.run),
            ("ngp.tenant.interface.refuse_unless_possible", lambda *_: None),
            ("ngp.tenant.interface.bring_up", lambda *_, **__: None),
            ("socket.getaddrinfo", played.look_up),
        ):
            stack.enter_context(mock.patch(name, by))
        yield played


def test_a_name_server_that_is_opened_after_a_refusal_can_be_asked(host: Host) -> None:
    with pytest.raises(ConfigError, match="write your name server into TENANT_BESIDE"):
        host.up()
    assert host.barrier and TO_NAME_SERVER not in host.barrier and not host.asked
    with pytest.raises(MomentError, match="landlord's name .* can't be resolved"):
        host.up(NAME_SERVER)
    host.answers = True
    host.up(NAME_SERVER)
    assert len(host.asked) == 2 and all(TO_NAME_SERVER in one and TO_LANDLORD not in one for one in host.asked)
    assert TO_NAME_SERVER in host.barrier and TO_LANDLORD in host.barrier


@pytest.mark.parametrize("left", ["", "table inet ngp_rent"])
def test_a_tunnel_that_is_up_goes_on_while_the_name_is_looked_up_again(host: Host, left: str) -> None:
    """A firewall's restart may have removed the barrier. The name may be asked through the tunnel."""
    landlord = Way(ip_network("203.0.113.1"), "udp", 51820)
    host.rules, host.barrier = policy.rules_of_all(policy.table_of(host.tunnel.root_key), [landlord]), left
    with pytest.raises(MomentError):
        host.up(NAME_SERVER)
    assert len(host.asked) == 1 and TO_LANDLORD in host.asked[0] and TO_NAME_SERVER in host.asked[0]
    assert host.barrier == host.asked[0]


def test_rules_of_an_older_version_carry_on_until_new_ones_stand_in_their_place(host: Host) -> None:
    landlord = Way(ip_network("203.0.113.1"), "udp", 51820)
    wanted = policy.rules_of_all(policy.table_of(host.tunnel.root_key), [landlord])
    former = dict(zip(policy.PRIORITIES, policy.FORMER_PRIORITIES, strict=True))
    host.rules = [replace(one, priority=former[one.priority]) for one in wanted]
    with pytest.raises(MomentError):
        host.up(NAME_SERVER)
    assert TO_LANDLORD in host.asked[0], "it carried everything, and what was led beside it stays so"
    host.answers = True
    host.up(NAME_SERVER)
    added = [host.ran.index(f"ip -4 rule add {one.words}") for one in wanted if one.version == 4]
    removed = [host.ran.index(f"ip -4 rule del {one.words}") for one in host.rules if one.version == 4]
    assert max(added) < min(removed)


def test_a_net_conf_that_can_not_be_used_at_a_boot_opens_nothing(host: Host) -> None:
    assert not routing.close(host.home.folder), "nothing carried everything"
    host.answers = True
    host.up(NAME_SERVER)
    host.barrier, host.answers = "", False  # a boot
    assert routing.close(host.home.folder) and host.barrier
    assert TO_NAME_SERVER not in host.barrier and TO_LANDLORD not in host.barrier, "nobody can be asked for names"
    routing.bring_down(host.home, host.tunnel, lambda: ())
    host.barrier = ""
    assert not routing.close(host.home.folder) and not host.barrier, "the user has opened it"


@pytest.mark.parametrize(
    ("name", "text"), [("Config.yaml", "["), ("TunnelState.yaml", "["), ("Config.yaml", "")], ids=str
)
def test_damaged_files_of_the_tenant_open_nothing_at_a_boot(host: Host, name: str, text: str) -> None:
    host.answers = True
    host.up(NAME_SERVER)
    host.barrier = ""
    (host.home.folder / name).write_text(text)
    assert routing.close(host.home.folder) and host.barrier


def test_a_net_conf_that_is_spoiled_meanwhile_changes_nothing_that_stands(host: Host) -> None:
    host.answers = True
    host.up(NAME_SERVER)
    landlord = Way(ip_network("203.0.113.1"), "udp", 51820)
    host.rules = policy.rules_of_all(policy.table_of(host.tunnel.root_key), [landlord, NAME_SERVER])
    before = host.barrier
    assert routing.close(host.home.folder) and host.barrier == before
    host.barrier = ""  # by a firewall's restart
    assert routing.close(host.home.folder) and TO_NAME_SERVER in host.barrier and TO_LANDLORD in host.barrier


def test_a_full_disk_leaves_nothing_open(host: Host) -> None:
    with mock.patch("ngp.durable_file.replace", side_effect=OSError(28, "No space left on device")):
        host.answers = True
        host.up(NAME_SERVER)
    assert host.barrier


def test_networks_of_our_surroundings_that_the_landlord_named_later_are_not_led(host: Host) -> None:
    """The file was written, and its networks were checked, before the landlord said so."""
    books = BooksFile(host.home.state_path(host.tunnel))
    right, wrong = ip_network("9.9.9.9/32"), ip_network("192.168.0.0/16")
    books.write(Books(Account(started=True, networks=(right, wrong))))
    host.answers = True
    host.up(NAME_SERVER)
    assert "ip daddr 9.9.9.9/32 accept" in host.barrier and "ip daddr 192.168.0.0/16 accept" not in host.barrier
    assert any("from 9.9.9.9/32" in one for one in host.ran) and not any("192.168.0.0" in one for one in host.ran)


def test_what_rules_lead_beside_the_tunnel_is_read_back() -> None:
    ways = [NAME_SERVER, Way(ip_network("2001:db8:7::/64")), Way(ip_network("192.0.2.9"), "tcp")]
    ways += [Way(ip_network("0.0.0.0/0"), "tcp", 9735), Way(ip_network("::/0"), "tcp", 9735)]
    standing = [*policy.rules_of_sources([ip_network("198.51.100.1")], 7), *policy.rules_of_all(7, ways)]
    assert not any(one.destination.endswith("/0") for one in standing), "the kernel would show them otherwise"
    assert policy.ways_of(standing) == ways
