"""net.conf becomes Settings, or one ConfigError that names file, line, key, value and what would be right."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields, replace
from ipaddress import ip_network
from pathlib import Path

import pytest

from ngp.config import KEYS, changes, installed_modules, keep_until_restart, load, parse
from ngp.config.units import (
    ALL_MONEY_MSAT,
)
from ngp.core.rental.terms import LettingSettings, Terms, TunnelSettings
from ngp.core.settings import Budgets, FreeDestination, Hours, LoadPrice, Margin, PriceRule, Settings
from ngp.core.tenant.terms import TenantSettings
from ngp.errors import ConfigError, ExitCode

FILE = Path("/etc/ngp/net.conf")
KB_PRICE = 1024 * 1024  # 1 msat per kB, in msat per GiB


def modules(group: str) -> Collection[str]:
    payment = ("sandbox", "electrum", "lnd")
    link, face = ("udp", "ethernet", "grpc"), ("https", "grpc")
    known = {"ngp.link": link, "ngp.network": ("ip",), "ngp.payment": payment, "ngp.face": face}
    return known[group]


def settings(*lines: str) -> Settings:
    """Parse a good file: MESH_INTERFACES in line 1, the given lines after it."""
    return parse("\n".join(("MESH_INTERFACES: eth1", *lines)), FILE, modules=modules)


def problems(*lines: str) -> list[str]:
    """Parse a bad file, whose given lines begin at line 2."""
    with pytest.raises(ConfigError) as refused:
        settings(*lines)
    assert refused.value.exit_code is ExitCode.CONFIGURATION
    return str(refused.value).split("\n")


# --- good files -------------------------------------------------------------------------------------------------------


def test_the_smallest_file_has_the_documented_defaults() -> None:
    got = settings()
    assert got.mesh_interfaces == ("eth1",)
    assert (got.link_modules, got.network_module, got.payment_module) == (("udp",), "ip", "sandbox")
    assert got.sells and got.buys
    assert {got.sell_msat_per_gib, got.sell_min_msat_per_gib, got.buy_msat_per_gib} == {5_242_880}
    assert (got.buy_max_msat_per_gib, got.resale_margin) == (2 * 5_242_880, Margin(100_000, 0))
    assert (got.contract_data_bytes, got.contract_time_s) == (100 << 20, 3600)
    assert (got.data_renewal_bytes, got.time_renewal_s, got.never_renews) == (None, None, False)
    assert (got.payment_amount_msat, got.grace_data_bytes, got.grace_time_s) == (100_000, 256 << 10, 10)
    assert (got.queue_number, got.state_dir, got.contracts_max) == (10325, "/var/lib/ngp", 131_072)
    assert got.verify_tolerance_ppm == 10_000
    assert got.budgets.neighbour_msat is None and got.budgets.total_msat is None
    assert (got.unpaid_bytes_s, settings("UNPAID_RATE: 16 kB/s").unpaid_bytes_s) == (0, 16 << 10)


@pytest.mark.parametrize(
    ("text", "margin"),
    [
        ("10 %", Margin(100_000, 0)),
        ("1 msat", Margin(0, KB_PRICE)),
        ("0.5 % + 1.5 msat", Margin(5_000, KB_PRICE * 3 // 2)),
        ("1 msat + 10 %", Margin(100_000, KB_PRICE)),
        ("0", Margin(0, 0)),
    ],
)
def test_a_margin_is_a_share_an_amount_or_both(text: str, margin: Margin) -> None:
    assert settings(f"RESALE_MARGIN: {text}").resale_margin == margin


def test_the_original_demonstration_file_keeps_its_meaning() -> None:
    got = settings(
        "LINK_INTERFACE: 1", "NETWORK_INTERFACE: 1", "PAYMENT_INTERFACE: 1", "ACCOUNT_ID: 1Abc", "DEFAULT_PRICE: 5",
        "CONTRACT_DATA: 1", "CONTRACT_TIME: 60", "PAYMENT_AMOUNT: 1000", "DATA_RENEWAL: 0", "TIME_RENEWAL: 5",
        "IGNORE_INTERFACE: eth2",
    )  # fmt: skip
    assert (got.link_modules, got.network_module, got.payment_module) == (("udp",), "ip", "sandbox")
    assert (got.contract_data_bytes, got.contract_time_s, got.payment_amount_msat) == (1024, 60, 1000)
    assert (got.data_renewal_bytes, got.time_renewal_s, got.never_renews) == (0, 5, False)
    assert (got.account_id, got.ignore_interfaces) == ("1Abc", ("eth2",))


def test_data_renewal_counts_bytes_where_the_others_count_kilobytes() -> None:
    got = settings("CONTRACT_DATA: 20", "DATA_RENEWAL: 512", "GRACE_DATA: 3")
    assert (got.contract_data_bytes, got.data_renewal_bytes, got.grace_data_bytes) == (20_480, 512, 3072)


@pytest.mark.parametrize(
    ("written", "amount_msat", "most_msat"),
    [
        ("1 %", 1_000_000, 10_000),
        ("1 %", 5_000, 1_000),
        ("0.25 %", 4_000_000, 10_000),
        ("3 sat", 5_000, 3_000),
        ("3 sat", 50_000_000, 3_000),
        ("0 %", 50_000_000, 0),
        ("0", 50_000_000, 0),
    ],
)
def test_fee_limit_is_a_share_or_an_amount(written: str, amount_msat: int, most_msat: int) -> None:
    limit = settings(f"FEE_LIMIT: {written}").fee_limit
    assert limit.of_msat(amount_msat) == most_msat
    fits = limit.fits_msat(amount_msat + most_msat)
    assert fits + limit.of_msat(fits) <= amount_msat + most_msat


def test_both_renewals_zero_never_renew() -> None:
    assert settings("DATA_RENEWAL: 0", "TIME_RENEWAL: 0").never_renews


def test_keys_may_be_in_any_order() -> None:
    lines = ["MESH_INTERFACES: [eth1, 'wg*']", "DEFAULT_PRICE: 2 msat", "SELL_PRICE: 3 msat", "BUY: no"]
    assert parse("\n".join(lines), FILE) == parse("\n".join(reversed(lines)), FILE)


def test_modules_by_name_number_and_list() -> None:
    got = settings("LINK_INTERFACE: [udp, 2]", "NETWORK_INTERFACE: ip6", "PAYMENT_INTERFACE: 3")
    assert (got.link_modules, got.network_module, got.payment_module) == (("udp", "ethernet"), "ip6", "lnd")


def test_prices_that_are_not_written_never_contradict_those_that_are() -> None:
    assert settings("SELL_PRICE: 3").sell_min_msat_per_gib == 3 * KB_PRICE
    assert settings("SELL_PRICE_MIN: 7").sell_msat_per_gib == 7 * KB_PRICE
    assert settings("BUY_PRICE_MAX: 3").buy_msat_per_gib == 3 * KB_PRICE
    assert settings("SELL_PRICE: 9").sell_min_msat_per_gib == 5 * KB_PRICE
    assert settings("BUY_PRICE: 2").buy_max_msat_per_gib == 10 * KB_PRICE


def test_each_entry_of_prices_becomes_a_price_rule() -> None:
    got = settings(
        "PRICES:",
        "  - {prefix: 198.51.100.0/24, sell: 2 msat}",
        "  - {prefix: '2001:db8::/32', buy: 1, buy_max: 9 msat, interface: eth1}",
        "  - prefix: 192.0.2.1",
        "    sell_min: 5 msat",
    )
    assert got.prices == (
        PriceRule(ip_network("198.51.100.0/24"), 2 * KB_PRICE, 2 * KB_PRICE, None, None, None),
        PriceRule(ip_network("2001:db8::/32"), None, None, KB_PRICE, 9 * KB_PRICE, "eth1"),
        PriceRule(ip_network("192.0.2.1/32"), None, 5 * KB_PRICE, None, None, None),
    )


def test_a_price_by_load_has_a_beginning_a_factor_and_perhaps_what_the_interface_carries() -> None:
    assert settings().load_price is None
    assert settings("SELL_PRICE_LOAD: {from: 70 %, factor: 3}").load_price == LoadPrice(700_000, 3_000_000)
    got = settings("SELL_PRICE_LOAD: {rate: 6 MB/s, factor: 1.125, from: 0 %}").load_price
    assert got == LoadPrice(0, 1_125_000, 6 << 20)


def test_prices_for_a_neighbour_a_time_of_day_and_with_a_margin() -> None:
    net, who = ip_network("192.0.2.0/24"), "7f" * 8
    got = settings(
        "PRICES:",
        "  - {prefix: 192.0.2.0/24, margin: 5 % + 1 msat}",
        "  - {prefix: 192.0.2.0/24, sell: 1, from: 22:00, to: 6:30}",
        "  - {prefix: 192.0.2.0/24, sell: 2, from: 06:30, to: 12:00}",
        "  - {prefix: 192.0.2.0/24, sell: 3, from: '12:00', to: 24:00, interface: eth1}",
        f"  - {{prefix: 192.0.2.0/24, sell: 4, neighbour: {who.upper()}}}",
        f"  - {{prefix: 192.0.2.0/24, sell: 5, neighbour: {'70' * 8}}}",
    ).prices
    assert got[0] == PriceRule(net, margin=Margin(50_000, KB_PRICE))
    assert got[1] == PriceRule(net, KB_PRICE, KB_PRICE, hours=Hours(22 * 3600, 6 * 3600 + 1800))
    assert got[3] == PriceRule(net, 3 * KB_PRICE, 3 * KB_PRICE, hours=Hours(12 * 3600, 24 * 3600), interface="eth1")
    assert got[4] == PriceRule(net, 4 * KB_PRICE, 4 * KB_PRICE, neighbour=who)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("from: 22:00, to: 6:30", "from: 05:00, to: 9:00"),
        ("neighbour: 7f7f7f7f7f7f7f7f", "neighbour: 7f7f7f7f7f7f7f7f01"),
        ("interface: eth1, from: 9:00, to: 10:00", "interface: eth1, from: 9:59, to: 9:00"),
    ],
)
def test_entries_of_prices_between_which_nothing_decides_are_refused_with_both_lines(one: str, other: str) -> None:
    lines = problems(
        "PRICES:", f"  - {{prefix: 10.0.0.0/8, sell: 1, {one}}}", "  - {prefix: 10.0.0.0/8, sell: 2}",
        f"  - {{prefix: 10.0.0.0/8, sell: 2, {other}}}",
    )  # fmt: skip
    assert len(lines) == 1 and lines[0].startswith("/etc/ngp/net.conf:5: PRICES")
    assert "the entry gives 10.0.0.0/8 a second price, as the entry in line 3" in lines[0] and "remove one" in lines[0]


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (
            "18:00, to: 23:00", "22:00, to: 02:00",
            "neighbour and interface at times of day that overlap (18:00 to 23:00 there and 22:00 to 02:00 here both "
            "hold 22:00 to 23:00): remove one, or change its times",
        ),
        ("20:00, to: 24:00", "22:00, to: 9:00", "both hold 22:00 to 24:00)"),
        ("22:00, to: 10:00", "08:00, to: 23:00", "both hold 22:00 to 23:00 and 08:00 to 10:00)"),
        ("18:00, to: 23:00", "18:00, to: 23:00", "neighbour, interface and time of day: remove one"),
        ("09:00, to: 12:00", "09:00, to: 11:00", "both hold 09:00 to 11:00)"),
    ],
)  # fmt: skip
def test_entries_of_prices_at_times_that_overlap_are_refused_with_what_they_share(
    one: str, other: str, said: str
) -> None:
    (line,) = problems(
        "PRICES:", f"  - {{prefix: 10.0.0.0/8, sell: 1, from: {one}}}",
        f"  - {{prefix: 10.0.0.0/8, sell: 2, from: {other}}}",
    )  # fmt: skip
    assert said in line


def test_free_destinations_are_read_in_each_of_their_forms() -> None:
    got = settings(
        "FREE_DESTINATIONS: ['::/0 icmpv6', 10.0.0.0/8, 192.0.2.53 udp 53,",
        "  {prefix: 192.0.2.9, protocol: tcp, port: 22}]",
    )
    assert got.free_destinations == (
        FreeDestination(ip_network("::/0"), "icmpv6", None),
        FreeDestination(ip_network("10.0.0.0/8"), None, None),
        FreeDestination(ip_network("192.0.2.53/32"), "udp", 53),
        FreeDestination(ip_network("192.0.2.9/32"), "tcp", 22),
    )
    assert settings("FREE_DESTINATIONS: 192.0.2.0/24").free_destinations[0].prefix == ip_network("192.0.2.0/24")


def test_payment_services_are_read_in_each_of_their_forms() -> None:
    got = settings(
        "PAYMENT_SERVICES: [192.0.2.7 9735, 2001:db8::7 udp 9911, {address: 192.0.2.7, port: 9911}]",
        "PAYMENT_SERVICES_RATE: 1 MB/s",
    )
    assert got.payment_services == (
        FreeDestination(ip_network("192.0.2.7/32"), "tcp", 9735),
        FreeDestination(ip_network("2001:db8::7/128"), "udp", 9911),
        FreeDestination(ip_network("192.0.2.7/32"), "tcp", 9911),
    )
    assert got.payment_services_bytes_s == 1 << 20
    assert settings("PAYMENT_SERVICES_RATE: 48").payment_services_bytes_s == 48 << 10


def test_more_ports_of_a_host_than_can_be_told_apart_are_refused() -> None:
    eight = [f"192.0.2.7 {port}" for port in range(1, 9)]
    assert len(settings(f"PAYMENT_SERVICES: [{', '.join([*eight, '192.0.2.8 9'])}]").payment_services) == 9
    nine = f"PAYMENT_SERVICES: [{', '.join([*eight, '192.0.2.7 9'])}]"
    assert settings(nine, "SELL: no").payment_services, "nothing is let through, so nothing is told apart"
    (problem,) = problems(nine)
    assert "opens 9 ports of 192.0.2.7/32 (PAYMENT_SERVICES and FREE_DESTINATIONS together): name 8 at most" in problem
    wider = "FREE_DESTINATIONS: [192.0.2.0/24 udp 53]"
    (problem,) = problems(f"PAYMENT_SERVICES: [{', '.join(eight)}]", wider)
    assert problem.startswith(f"{FILE}:2: PAYMENT_SERVICES")
    all_free = "FREE_DESTINATIONS: [192.0.2.0/24 udp 53, 192.0.2.7]"
    assert settings(f"PAYMENT_SERVICES: [{', '.join(eight)}]", all_free).free_destinations
    (problem,) = problems(f"FREE_DESTINATIONS: [{', '.join(f'192.0.2.7 udp {port}' for port in range(1, 10))}]")
    assert problem.startswith(f"{FILE}:2: FREE_DESTINATIONS")


def test_credit_is_the_sellers_and_hinders_no_buyer() -> None:
    assert settings("GRACE_TIME: 0", "SELL: no").grace_time_s == 0


def test_ngp_interface_takes_ip_addresses_and_macs() -> None:
    got = settings("NGP_INTERFACE: [192.0.2.1, 'fe80::1%eth0', 2001:DB8::1]")
    assert got.ngp_addresses == ("192.0.2.1", "fe80::1%eth0", "2001:db8::1")
    # this MAC is a base-60 number to YAML
    assert settings("LINK_INTERFACE: ethernet", "NGP_INTERFACE: 12:34:56:12:34:56").ngp_addresses == (
        "12:34:56:12:34:56",
    )


def test_budgets_take_none() -> None:
    budgets = settings(*(f"BUDGET_{name}: none" for name in ("PAYMENT", "NEIGHBOUR", "HOUR", "DAY", "TOTAL"))).budgets
    assert (budgets.neighbour_msat, budgets.total_msat) == (None, None)
    assert {budgets.payment_msat, budgets.hour_msat, budgets.day_msat} == {ALL_MONEY_MSAT}
    assert settings("BUDGET_TOTAL: 1000 sat").budgets.total_msat == 1_000_000


def test_mesh_interfaces_takes_all_patterns_and_names() -> None:
    def mesh(value: str, *more: str) -> tuple[str, ...]:
        return parse("\n".join((f"MESH_INTERFACES: {value}", *more)), FILE).mesh_interfaces

    assert mesh("all", "IGNORE_INTERFACE: [eth0, 'br*']") == ("all",)
    assert mesh("'*'") == ("*",)
    assert mesh("[wlan0, 'eth[12]', 'no']", "IGNORE_INTERFACE: eth1") == ("wlan0", "eth[12]", "no")


def test_lan_interfaces_are_never_mesh_interfaces() -> None:
    def got(*lines: str) -> Settings:
        return parse("\n".join(("MESH_INTERFACES: all", *lines)), FILE)

    assert got().lan_interfaces is None and got("LAN_INTERFACE: auto").lan_interfaces is None
    assert got("LAN_INTERFACE: none").lan_interfaces == ()
    ours = got("LAN_INTERFACE: [lan0, 'br-*']", "IGNORE_INTERFACE: eth0")
    assert ours.lan_interfaces == ("lan0", "br-*")
    assert ours.never_mesh == ("eth0", "lan0", "br-*"), "what is ours isn't mesh by `all`"


def test_yes_and_no_in_all_of_yamls_words() -> None:
    assert [settings(f"SELL: {word}").sells for word in ("yes", "true", "on", "'yes'", "Yes")] == [True] * 5
    assert [settings(f"SELL: {word}").sells for word in ("no", "false", "off", "NO")] == [False] * 4


def test_when_stopped_is_open_or_closed() -> None:
    assert settings("WHEN_STOPPED: closed").closed_when_stopped
    assert not settings("WHEN_STOPPED: open").closed_when_stopped


def test_relative_paths_start_at_the_files_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "net.conf").write_text("MESH_INTERFACES: eth1\nSTATE_DIR: state/gateway\n")
    monkeypatch.chdir(tmp_path)
    assert load("sub/net.conf").state_dir == str(tmp_path / "sub" / "state" / "gateway")
    assert load(tmp_path / "sub" / "net.conf") == load(Path("sub/net.conf"))


def test_a_byte_order_mark_and_windows_lines_are_read(tmp_path: Path) -> None:
    (tmp_path / "net.conf").write_bytes(b"\xef\xbb\xbfMESH_INTERFACES: eth1\r\nDEFAULT_PRICE: 3\r\n")
    assert load(tmp_path / "net.conf").sell_msat_per_gib == 3 * KB_PRICE


# --- bad values -------------------------------------------------------------------------------------------------------

# The text of line 2, the key that the problem names, and a part of its message.
BAD_LINES = [
    ("DEFAULT_PRIZE: 5", "DEFAULT_PRIZE: '5'", "did you mean DEFAULT_PRICE?"),
    ("default_price: 5", "default_price: '5'", "did you mean DEFAULT_PRICE?"),
    ("COLOUR: red", "COLOUR: 'red'", "operators-guide.md"),
    ("LND_MACAROON: 0201036c6e64", "LND_MACAROON", "value not shown"),
    ("MESH_INTERFACES: eth2", "MESH_INTERFACES: 'eth2'", "given twice, first in line 1"),
    ("DEFAULT_PRICE: five", "DEFAULT_PRICE: 'five'", "write for example 5 msat"),
    ("DEFAULT_PRICE: -5", "DEFAULT_PRICE: '-5'", "is negative"),
    ("DEFAULT_PRICE: 0123", "DEFAULT_PRICE: '0123'", "no leading zero"),
    ("DEFAULT_PRICE:", "DEFAULT_PRICE", "has no value"),
    ("DEFAULT_PRICE: ~", "DEFAULT_PRICE: '~'", "has no value"),
    ("DEFAULT_PRICE: [5]", "DEFAULT_PRICE", "not a single value"),
    ("DEFAULT_PRICE: {a: 5}", "DEFAULT_PRICE", "not a single value"),
    ("DEFAULT_PRICE: yes", "DEFAULT_PRICE: 'yes'", "is not a price"),
    ("CONTRACT_TIME: 10:30", "CONTRACT_TIME: '10:30'", "is not a duration"),
    ("CONTRACT_TIME: 2026-01-01", "CONTRACT_TIME", "is not a duration"),
    ("CONTRACT_TIME: 0", "CONTRACT_TIME: '0'", "more than 0"),
    ("CONTRACT_DATA: 0", "CONTRACT_DATA: '0'", "more than 0"),
    ("CONTRACT_DATA: 10000000 TB", "CONTRACT_DATA", "is too high"),
    ("PAYMENT_AMOUNT: 0", "PAYMENT_AMOUNT: '0'", "more than 0"),
    ("PAYMENT_AMOUNT: 20001 sat", "PAYMENT_AMOUNT: '20001 sat'", "above BUDGET_PAYMENT (20000 sat)"),
    ("CONTRACT_DATA: 83 B", "CONTRACT_DATA: '83 B'", "is less than a packet (a ping has 84 bytes)"),
    ("GRACE_TIME: 0", "GRACE_TIME: '0'", "on credit (GRACE_DATA: 256 kB) before a packet passes"),
    ("FEE_LIMIT: 20000 sat", "BUDGET_PAYMENT: 20000 sat (the default)", "whose fee may be 20000 sat, so none"),
    ("FEE_LIMIT: 101 %", "FEE_LIMIT: '101 %'", "the most is 100 %"),
    ("FEE_LIMIT: 0.00001 %", "FEE_LIMIT: '0.00001 %'", "four decimals"),
    ("FEE_LIMIT: 1 MB", "FEE_LIMIT: '1 MB'", "unknown unit 'MB'"),
    ("FEE_LIMIT: 1", "FEE_LIMIT: '1'", "write 1 %, 1 sat or 1 msat"),
    ("FEE_LIMIT: -1 %", "FEE_LIMIT: '-1 %'", "negative"),
    ("BUDGET_TOTAL: 99 sat", "PAYMENT_AMOUNT: 100 sat (the default)", "above BUDGET_TOTAL (99 sat)"),
    ("BUDGET_DAY: 20,000 sat", "BUDGET_DAY: '20,000 sat'", "no thousands separator"),
    ("DATA_RENEWAL: 100 MB", "DATA_RENEWAL: '100 MB'", "less than CONTRACT_DATA (100 MB)"),
    ("TIME_RENEWAL: 1 h", "TIME_RENEWAL: '1 h'", "less than CONTRACT_TIME (1 h)"),
    ("TIME_RENEWAL: none", "TIME_RENEWAL: 'none'", "is not a duration"),
    ("BUY_PRICE: 11", "BUY_PRICE: '11'", "above BUY_PRICE_MAX (10 msat/kB)"),
    ("VERIFY_TOLERANCE: 51 %", "VERIFY_TOLERANCE: '51 %'", "the most is 50 %"),
    ("VERIFY_TOLERANCE: -1 %", "VERIFY_TOLERANCE: '-1 %'", "negative"),
    ("VERIFY_TOLERANCE: 1 msat", "VERIFY_TOLERANCE: '1 msat'", "unknown unit 'msat'"),
    ("RESALE_MARGIN: 10", "RESALE_MARGIN: '10'", "has no unit: write 10 % or 10 msat"),
    ("RESALE_MARGIN: 101 %", "RESALE_MARGIN: '101 %'", "the most is 100 %"),
    ("RESALE_MARGIN: 1 msat + 2 msat", "RESALE_MARGIN", "one share and one amount"),
    ("RESALE_MARGIN: none", "RESALE_MARGIN: 'none'", "write for example"),
    ("BUY_PRICE_MAX: DEFAULT_PRICE", "BUY_PRICE_MAX: 'DEFAULT_PRICE'", "is not a price"),
    ("CHOOSE_ROUTES: auto", "CHOOSE_ROUTES: 'auto'", "write yes or no"),
    ("ROUTE_TABLE: 254", "ROUTE_TABLE: '254'", "a table of the kernel's own"),
    ("ROUTE_TABLE: 0", "ROUTE_TABLE: '0'", "from 1 to 4294967295"),
    ("ROUTE_PRIORITY: 257", "ROUTE_PRIORITY: '257'", "from 258 to 32765"),
    ("ROUTE_PRIORITY: 32766", "ROUTE_PRIORITY: '32766'", "from 258 to 32765"),
    ("SELL: maybe", "SELL: 'maybe'", "write yes or no"),
    ("SELL: 1", "SELL: '1'", "write yes or no"),
    ("WHEN_STOPPED: shut", "WHEN_STOPPED: 'shut'", "open or closed"),
    ("QUEUE_NUMBER: 65536", "QUEUE_NUMBER: '65536'", "from 0 to 65535"),
    ("QUEUE_NUMBER: -1", "QUEUE_NUMBER: '-1'", "from 0 to 65535"),
    ("QUEUE_NUMBER: 010325", "QUEUE_NUMBER: '010325'", "from 0 to 65535"),
    ("QUEUE_NUMBER: 0x10", "QUEUE_NUMBER: '0x10'", "from 0 to 65535"),
    ("CSV_DELAY: 0", "CSV_DELAY: '0'", "from 1 to 10000"),
    ("CSV_DELAY: 1 week", "CSV_DELAY: '1 week'", "from 1 to 10000"),
    ("CONTRACTS_MAX: 0", "CONTRACTS_MAX: '0'", "from 1 to 16777216"),
    ("CONTRACTS_MAX: 99999999999999999999999999999999999999999", "CONTRACTS_MAX", "from 1 to 16777216"),
    ("LINK_INTERFACE: pigeon", "LINK_INTERFACE", "pigeon, which is not installed: available are ethernet, grpc, udp"),
    ("LINK_INTERFACE: [udp, pigeon]", "LINK_INTERFACE", "is not installed: available are ethernet, grpc, udp"),
    ("LINK_INTERFACE: [udp, 1]", "LINK_INTERFACE: '1'", "twice"),
    ("LINK_INTERFACE: []", "LINK_INTERFACE: []", "is empty"),
    ("LINK_INTERFACE: ../../x", "LINK_INTERFACE: '../../x'", "udp (or 1)"),
    ("NETWORK_INTERFACE: ipx", "NETWORK_INTERFACE: 'ipx'", "available are ip, ip4, ip6"),
    ("PAYMENT_INTERFACE: onchain", "PAYMENT_INTERFACE: 'onchain'", "available are electrum, lnd, sandbox"),
    ("ELECTRUM_HOST: ~/.electrum", "ELECTRUM_HOST: '~/.electrum'", "write the whole path"),
    ("ELECTRUM_HOST: electrum.example/", "ELECTRUM_HOST: 'electrum.example/'", "is not host:port"),
    ("ELECTRUM_PASSWORD_FILE: q7Zk3v_9xK2mB4nL8pR1tA", "ELECTRUM_PASSWORD_FILE", "value not shown"),
    ("ELECTRUM_PASSWORD_FILE: 20301234", "ELECTRUM_PASSWORD_FILE", "value not shown"),
    ("ELECTRUM_PASSWORD_FILE: ~/pw", "ELECTRUM_PASSWORD_FILE: '~/pw'", "write the whole path"),
    ("PAYMENT_INTERFACE: yes", "PAYMENT_INTERFACE: 'yes'", "which is not installed"),
    ("IGNORE_INTERFACE: eth1", "IGNORE_INTERFACE: 'eth1'", "as MESH_INTERFACES does"),
    ("IGNORE_INTERFACE: 'eth*'", "IGNORE_INTERFACE: 'eth*'", "covers eth1"),
    ("LAN_INTERFACE: eth1", "LAN_INTERFACE: 'eth1'", "as MESH_INTERFACES does"),
    ("LAN_INTERFACE: 'eth*'", "LAN_INTERFACE: 'eth*'", "covers eth1"),
    ("LAN_INTERFACE: all", "LAN_INTERFACE: 'all'", "the upstream isn't ours"),
    ("LAN_INTERFACE: [auto, auto]", "LAN_INTERFACE: 'auto'", "twice"),
    ("IGNORE_INTERFACE: all", "IGNORE_INTERFACE: 'all'", "nothing would be left"),
    ("IGNORE_INTERFACE: no", "IGNORE_INTERFACE: 'no'", "to make it a name, write"),
    ("IGNORE_INTERFACE: [eth0, 0123]", "IGNORE_INTERFACE: '0123'", "to make it a name, write"),
    ("IGNORE_INTERFACE: 10:30", "IGNORE_INTERFACE: '10:30'", "to make it a name, write"),
    ("IGNORE_INTERFACE: '10:30'", "IGNORE_INTERFACE: '10:30'", "not the name of an interface"),
    ("IGNORE_INTERFACE: eth0, eth2", "IGNORE_INTERFACE: 'eth0, eth2'", "[eth0, eth1]"),
    ("IGNORE_INTERFACE: eth0@if3", "IGNORE_INTERFACE: 'eth0@if3'", "write eth0"),
    ("IGNORE_INTERFACE: averyveryverylongname", "IGNORE_INTERFACE", "longer than 15"),
    ("IGNORE_INTERFACE: 'a/b'", "IGNORE_INTERFACE: 'a/b'", "not the name of an interface"),
    ("IGNORE_INTERFACE: ['eth0', eth0]", "IGNORE_INTERFACE: 'eth0'", "twice"),
    ("NGP_INTERFACE: eth0", "NGP_INTERFACE: 'eth0'", "is not an address"),
    ("NGP_INTERFACE: 192.0.2.1:10325", "NGP_INTERFACE", "no port"),
    ("NGP_INTERFACE: fe80::1", "NGP_INTERFACE: 'fe80::1'", "fe80::1%eth0"),
    ("NGP_INTERFACE: 224.0.0.1", "NGP_INTERFACE", "not the address of one host"),
    ("NGP_INTERFACE: 02:00:00:00:00:01", "NGP_INTERFACE", "needs an IP address"),
    (
        "ACCOUNT_ID: no",
        "ACCOUNT_ID: 'no'",
        "as bool, not as an account's name: if the payment node has no accounts, write the word none; if an account "
        "has this name, write it with quotes: 'no'",
    ),
    ("ACCOUNT_ID: two words", "ACCOUNT_ID: 'two words'", "without spaces"),
    ("STATE_DIR: ~/ngp", "STATE_DIR: '~/ngp'", "only a shell knows"),
    ("STATE_DIR: /", "STATE_DIR: '/'", "can't be ngp's own directory"),
    ('STATE_DIR: "a\\0b"', "STATE_DIR: 'a\\x00b'", "not a directory's name"),
    ("UNPAID_RATE: 100 bytes", "UNPAID_RATE: '100 bytes'", "write 1 kB/s to 1 GB/s, or 0 for none"),
    ("UNPAID_RATE: 2 GB/s", "UNPAID_RATE: '2 GB/s'", "write 1 kB/s to 1 GB/s, or 0 for none"),
    ("UNPAID_RATE: -1", "UNPAID_RATE: '-1'", "is negative"),
    ("UNPAID_RATE: none", "UNPAID_RATE: 'none'", "write for example"),
    ("SELL_PRICE_LOAD: 3", "SELL_PRICE_LOAD: '3'", "write {from: 70 %, factor: 3}, or none"),
    ("SELL_PRICE_LOAD: {factor: 3}", "SELL_PRICE_LOAD", "has no `from`: add it"),
    ("SELL_PRICE_LOAD: {from: 70 %}", "SELL_PRICE_LOAD", "has no `factor`: add it"),
    ("SELL_PRICE_LOAD: {from: 100 %, factor: 3}", "SELL_PRICE_LOAD: from: '100 %'", "write less than 100 %"),
    ("SELL_PRICE_LOAD: {from: 0.7, factor: 3}", "SELL_PRICE_LOAD: from: '0.7'", "has no unit: write a share"),
    ("SELL_PRICE_LOAD: {from: 70 %, factor: 1}", "SELL_PRICE_LOAD: factor: '1'", "a number above 1, up to 100"),
    ("SELL_PRICE_LOAD: {from: 70 %, factor: 101}", "SELL_PRICE_LOAD: factor: '101'", "a number above 1, up to 100"),
    ("SELL_PRICE_LOAD: {from: 70 %, factor: -3}", "SELL_PRICE_LOAD: factor: '-3'", "a number above 1, up to 100"),
    ("SELL_PRICE_LOAD: {from: 70 %, factor: 3, rate: 0}", "SELL_PRICE_LOAD", "what the upstream interface carries"),
    ("SELL_PRICE_LOAD: {from: 70 %, factor: 3, floor: 1}", "SELL_PRICE_LOAD: 'floor'", "known are from, factor"),
    ("PRICES: 5", "PRICES: '5'", "not a list"),
    ("PRICES: [5]", "PRICES: '5'", "not an entry"),
    ("PRICES: [{sell: 5}]", "PRICES", "has no prefix"),
    ("PRICES: [{prefix: 10.0.0.0/8}]", "PRICES", "has no price"),
    ("PRICES: [{prefix: 10.0.0.1/8, sell: 5}]", "PRICES: prefix: '10.0.0.1/8'", "write 10.0.0.0/8"),
    ("PRICES: [{prefix: 10.0.0.0/33, sell: 5}]", "PRICES: prefix: '10.0.0.0/33'", "is not a prefix"),
    ("PRICES: [{prefix: 10.0.0.0/8, sell: 5, sell: 6}]", "PRICES: 'sell'", "given twice"),
    ("PRICES: [{prefix: 10.0.0.0/8, rent: 5}]", "PRICES: 'rent'", "known are prefix, sell"),
    ("PRICES: [{prefix: 10.0.0.0/8, sell: 5, interface: 'eth*'}]", "PRICES: interface: 'eth*'", "name of one"),
    ("PRICES: [{prefix: 10.0.0.0/8, sell: 5, sell_min: 6}]", "PRICES", "5 msat/kB: lower sell_min, or raise sell"),
    ("PRICES: [{prefix: 10.0.0.0/8, buy: 11}]", "PRICES", "buy_max 10 msat/kB: lower buy, or write a higher buy_max"),
    ("PRICES: [{prefix: 10.0.0.0/8, buy: 1}, {prefix: 10.0.0.0/8, buy: 2}]", "PRICES", "second price"),
    ("PRICES: [{prefix: 10.0.0.0/8, sell: -1}]", "PRICES: sell: '-1'", "is negative"),
    ("PRICES: [{prefix: 10.0.0.0/8, sell: 2000 sat}]", "PRICES: sell: '2000 sat'", "the highest price is"),
    ("PRICES: [{prefix: 10.0.0.0/8, margin: 10}]", "PRICES: margin: '10'", "has no unit: write 10 % or 10 msat"),
    ("PRICES: [{prefix: 10.0.0.0/8, sell: 1, neighbour: bob}]", "PRICES: neighbour: 'bob'", "16 to 64 of its"),
    ("PRICES: [{prefix: 10.0.0.0/8, sell: 1, neighbour: 7f7f}]", "PRICES: neighbour: '7f7f'", "16 to 64 of its"),
    ("PRICES: [{prefix: 10.0.0.0/8, neighbour: 7f7f7f7f7f7f7f7f}]", "PRICES", "has no price"),
    ("PRICES: [{prefix: 10.0.0.0/8, sell: 1, from: 18:00}]", "PRICES", "`from` without `to`: write both"),
    ("PRICES: [{prefix: 10.0.0.0/8, sell: 1, to: 18:00}]", "PRICES", "`to` without `from`: write both"),
    ("PRICES: [{prefix: 10.0.0.0/8, sell: 1, from: 24:01, to: 1:00}]", "PRICES: from: '24:01'", "hours and minutes"),
    ("PRICES: [{prefix: 10.0.0.0/8, sell: 1, from: 6, to: 7:00}]", "PRICES: from: '6'", "hours and minutes"),
    ("PRICES: [{prefix: 10.0.0.0/8, sell: 1, from: 9:00, to: 9:00}]", "PRICES: the entry", "at the same time of day"),
    ("PRICES: [{prefix: 10.0.0.0/8, sell: 1,5 msat}]", "PRICES: '5 msat'", "decimals take a point (1.5), not a comma"),
    ("PRICES: [{prefix: 10.0.0.0/8, sell_min: 1, buy: -2}]", "PRICES: buy: '-2'", "is negative"),
    ("PRICES: [{prefix: 10.0.0.0/8, sell: 1, from: 0:00, to: 24:00}]", "PRICES", "leave out both `from` and `to`"),
    ("FREE_DESTINATIONS: 192.0.2.1 80", "FREE_DESTINATIONS: '192.0.2.1 80'", "port without its protocol"),
    ("FREE_DESTINATIONS: [{prefix: 192.0.2.1, port: 80}]", "FREE_DESTINATIONS", "port without its protocol"),
    ("FREE_DESTINATIONS: 192.0.2.1 icmp 80", "FREE_DESTINATIONS", "port without its protocol"),
    ("FREE_DESTINATIONS: 192.0.2.1 icmpv6", "FREE_DESTINATIONS", "write icmp"),
    ("FREE_DESTINATIONS: 192.0.2.1 tpc 80", "FREE_DESTINATIONS: 'tpc'", "write one of icmp"),
    ("FREE_DESTINATIONS: 192.0.2.1 tcp 65536", "FREE_DESTINATIONS: '65536'", "from 1 to 65535"),
    ("FREE_DESTINATIONS: 192.0.2.1/24", "FREE_DESTINATIONS: '192.0.2.1/24'", "write 192.0.2.0/24"),
    ("PAYMENT_SERVICES: 192.0.2.7", "PAYMENT_SERVICES: '192.0.2.7'", "write 192.0.2.7 9735"),
    ("PAYMENT_SERVICES: [{address: 192.0.2.7}]", "PAYMENT_SERVICES", "is not a port of a host"),
    ("PAYMENT_SERVICES: 192.0.2.0/24 9735", "PAYMENT_SERVICES: '192.0.2.0/24'", "is not one host"),
    ("PAYMENT_SERVICES: 127.0.0.1 9735", "PAYMENT_SERVICES: '127.0.0.1'", "is an address that routers"),
    ("PAYMENT_SERVICES: 192.0.2.7 icmp 1", "PAYMENT_SERVICES: 'icmp'", "write tcp or udp"),
    ("PAYMENT_SERVICES: 192.0.2.7 8080-8090", "PAYMENT_SERVICES: '8080-8090'", "protocol: write tcp or udp, and one"),
    ("PAYMENT_SERVICES: lnd.example 9735", "PAYMENT_SERVICES: 'lnd.example'", "names aren't looked up"),
    ("PAYMENT_SERVICES: fe80::7 9735", "PAYMENT_SERVICES: 'fe80::7'", "is an address that routers forward nothing to"),
    ("PAYMENT_SERVICES_RATE: 100 bytes", "PAYMENT_SERVICES_RATE: '100 bytes'", "write 1 kB/s to 1 GB/s"),
    ("PAYMENT_SERVICES_RATE: 5 kB/min", "PAYMENT_SERVICES_RATE: '5 kB/min'", "unknown unit"),
    ("UNPAID_RATE: 128 kbit/s", "UNPAID_RATE: '128 kbit/s'", "write for example 16 kB/s or 2 MB/s"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "named", "right"), BAD_LINES, ids=[line[:50] for line, _, _ in BAD_LINES])
def test_a_bad_line_is_refused_with_file_line_key_value_and_remedy(line: str, named: str, right: str) -> None:
    (problem,) = problems(line)
    place = str(FILE) if "(the default)" in named else f"{FILE}:2"
    assert problem.startswith(f"{place}: {named}"), problem
    assert right in problem


@pytest.mark.parametrize("lines", [[], ["SELL: yes"], ["SELL: no", "BUY: no", "LANDLORD: yes"]])
def test_a_default_route_is_bought_only_by_a_router_that_buys_and_sells_nothing(lines: list[str]) -> None:
    refused = [text for text in problems("BUY_DEFAULT_ROUTE: yes", *lines) if "BUY_DEFAULT_ROUTE: 'yes'" in text]
    assert len(refused) == 1 and "write SELL: no and BUY: yes" in refused[0]


def test_a_router_that_sells_nothing_may_buy_its_default_route() -> None:
    assert settings("BUY_DEFAULT_ROUTE: yes", "SELL: no").buys_default_route
    assert not settings("SELL: no").buys_default_route


def test_neither_selling_nor_buying_is_refused() -> None:
    (problem,) = problems("SELL: no", "BUY: no")
    assert problem.startswith(f"{FILE}:3: BUY: 'no' leaves nothing to do")


def test_prices_that_contradict_each_other_are_refused() -> None:
    assert problems("SELL_PRICE: 3", "SELL_PRICE_MIN: 4") == [
        f"{FILE}:3: SELL_PRICE_MIN: '4' is above SELL_PRICE (3 msat/kB): lower it, or raise SELL_PRICE"
    ]
    assert problems("BUY_PRICE: 4", "BUY_PRICE_MAX: 3")[0].startswith(
        f"{FILE}:2: BUY_PRICE: '4' is above BUY_PRICE_MAX"
    )


def test_a_seller_without_buying_has_no_budget_to_fit() -> None:
    assert settings("BUY: no", "PAYMENT_AMOUNT: 30000 sat").payment_amount_msat == 30_000_000


def test_a_lightning_account_is_a_public_key() -> None:
    assert settings("PAYMENT_INTERFACE: lnd", f"ACCOUNT_ID: 02{'11' * 32}").account_id == f"02{'11' * 32}"
    assert settings("PAYMENT_INTERFACE: lnd", f"ACCOUNT_ID: 02{'AB' * 32}").account_id == f"02{'ab' * 32}"
    assert settings("PAYMENT_INTERFACE: lnd", f"ACCOUNT_ID: '03{'A1' * 32}'").account_id == f"03{'a1' * 32}"
    assert settings("ACCOUNT_ID: Alice").account_id == "Alice"
    (problem,) = problems("PAYMENT_INTERFACE: lnd", "ACCOUNT_ID: alice")
    assert "66 hexadecimal digits" in problem


def test_mesh_interfaces_is_required() -> None:
    for text in ("", "# nothing\n", "SELL: yes\n", "---\n"):
        with pytest.raises(ConfigError, match=r"^/etc/ngp/net.conf: MESH_INTERFACES: is missing: write "):
            parse(text, FILE)


@pytest.mark.parametrize("value", ["lo", "none", "no", "[all, eth1]", "''", "[[eth1]]", "{a: b}", "[eth1, eth1]"])
def test_mesh_interfaces_that_cannot_be(value: str) -> None:
    with pytest.raises(ConfigError, match=r"^/etc/ngp/net.conf:1: MESH_INTERFACES"):
        parse(f"MESH_INTERFACES: {value}", FILE)


def test_all_problems_come_together_in_the_order_of_the_file() -> None:
    found = problems(
        "SELL_PRICE: -1", "NOISE: 1", "PRICES: [{prefix: 10.0.0.1/8, sell: x}, {sell: 1}]", "QUEUE_NUMBER: 99999",
        "TIME_RENEWAL: 2 h", "SELL_PRICE: 3",
    )  # fmt: skip
    assert [problem.split(":")[1] for problem in found] == ["2", "3", "4", "4", "4", "5", "6", "7"]


def test_a_bad_value_is_not_reported_again_by_the_checks_that_need_it() -> None:
    assert len(problems("BUY_PRICE: 9", "BUY_PRICE_MAX: ten")) == 1


@pytest.mark.parametrize(
    ("slip", "beside"),
    [
        ("BUDGET_DAY: much", "PAYMENT_AMOUNT: 30000 sat"),
        ("BUY_PRICE: much", "SELL_PRICE: 1 msat\nSELL_PRICE_MIN: 2 msat"),
        ("SELL_PRICE: much", "BUY_PRICE: 2 msat\nBUY_PRICE_MAX: 1 msat"),
        ("BUY_PRICE: much", "PRICES: [{prefix: 192.0.2.0/24, sell: 1 msat, sell_min: 2 msat}]"),
        ("SELL_PRICE: much", "PRICES: [{prefix: 192.0.2.0/24, buy: 2 msat, buy_max: 1 msat}]"),
        ("SELL_PRICE: much", "PRICES: [{prefix: 192.0.2.0/24, sell: 1 msat, sell_min: 2 msat}]"),
        ("SELL_PRICE: 5\nSELL_PRICE_MIN: 9", "PRICES: [{prefix: 192.0.2.0/24, sell: 1 msat, sell_min: 2 msat}]"),
        ("BUY_PRICE: 9\nBUY_PRICE_MAX: 5", "PRICES: [{prefix: 192.0.2.0/24, buy: 2 msat, buy_max: 1 msat}]"),
    ],
)
def test_a_bad_value_hides_nothing_that_is_wrong_between_other_keys(slip: str, beside: str) -> None:
    assert len(problems(slip, beside)) == 2


@pytest.mark.parametrize("general", ["SELL_PRICE: much", "SELL_PRICE: 1\nSELL_PRICE_MIN: 9"])
def test_an_entry_that_only_bad_general_prices_contradict_is_no_problem_of_its_own(general: str) -> None:
    assert len(problems(general, "PRICES: [{prefix: 192.0.2.0/24, sell_min: 7}]")) == 1


def test_a_bad_entry_of_prices_hides_nothing_that_is_wrong_in_the_others() -> None:
    found = problems(
        "PRICES:",
        "  - {prefix: 198.51.100.0/24, sell: 2 msat, sell_min: 3 msat}",
        "  - {prefix: 0.0.0.0/0, buy: 4 msat, buy_max: 2 msat}",
        "  - {prefix: 198.51.100.7/24, sell: 2 msat}",
        "  - {prefix: 0.0.0.0/0, buy: 1 msat}",
        "  - {prefix: 0.0.0.0/0, buy: 2 msat}",
    )
    assert [problem.split(":")[1] for problem in found] == ["3", "4", "5", "6", "7"]
    says = ("sell_min 3 msat/kB above sell", "buy 4 msat/kB above buy_max", "198.51.100.0/24", "second", "second price")
    assert all(words in problem for words, problem in zip(says, found, strict=True))


def test_very_many_problems_are_cut_short() -> None:
    found = problems(*(f"KEY_{number}: 1" for number in range(1000)))
    assert found[-1] == f"{FILE}: and {1001 - len(found)} more"


def test_a_message_never_repeats_control_characters_or_endless_text() -> None:
    (problem,) = problems('SELL: "\\e[31m\\u202e' + "x" * 5000 + '"')
    assert problem.isascii() and problem.isprintable() and len(problem) < 300
    (problem,) = problems('"\\e[31mKEY": 1')
    assert problem.isascii() and problem.isprintable()


def test_module_names_come_from_entry_points_or_from_the_checkout() -> None:
    assert {"udp", "ethernet"} <= set(installed_modules("ngp.link"))
    assert "ip" in installed_modules("ngp.network")
    assert "sandbox" in installed_modules("ngp.payment")
    assert not installed_modules("ngp.nonsense")


# --- reload -----------------------------------------------------------------------------------------------------------


def test_changes_are_named_by_key_and_by_when_they_take_effect() -> None:
    old = settings()
    new = settings("BUDGET_DAY: 1000 sat", "GRACE_TIME: 5", "QUEUE_NUMBER: 7", "CONTRACTS_MAX: 9", "STATE_DIR: /x")
    got = changes(old, new)
    assert got.applied == ("GRACE_TIME", "BUDGET_DAY")
    assert got.needs_restart == ("QUEUE_NUMBER", "STATE_DIR", "CONTRACTS_MAX")
    kept = keep_until_restart(old, new)
    assert changes(old, kept).applied == got.applied
    assert changes(old, kept).needs_restart == ()
    assert changes(old, replace(old)) == changes(new, new)


def test_a_changed_default_price_shows_with_the_prices_that_follow_it() -> None:
    got = changes(settings("SELL_PRICE_MIN: 1"), settings("SELL_PRICE_MIN: 1", "DEFAULT_PRICE: 6"))
    assert got.applied == ("DEFAULT_PRICE", "SELL_PRICE", "BUY_PRICE", "BUY_PRICE_MAX")


def test_every_field_of_settings_belongs_to_exactly_one_key() -> None:
    named = sorted(field for key in KEYS for field in key.fields)
    parts = {"": Settings, "budgets.": Budgets, "letting.": LettingSettings}
    parts |= {"letting.terms.": Terms, "letting.tunnel.": TunnelSettings, "tenant.": TenantSettings}
    every = {f"{part}{field.name}" for part, kind in parts.items() for field in fields(kind)}
    every -= {"budgets", "modules", "letting", "letting.terms", "letting.tunnel", "tenant"}
    assert named == sorted(every | {"lets"}), "`lets` says whether there is a `letting`"


def test_a_machine_that_only_rents_needs_no_mesh(tmp_path: Path) -> None:
    text = "TENANT_RENT_MAX: 30000 sat\n"
    assert parse(text, tmp_path / "net.conf", for_daemon=False).tenant.rent_max_msat == 30_000_000
    with pytest.raises(ConfigError, match="MESH_INTERFACES: is missing"):
        parse(text, tmp_path / "net.conf")
    with pytest.raises(ConfigError, match="TENANT_RENT_MAX"):
        parse("TENANT_RENT_MAX: much\n", tmp_path / "net.conf", for_daemon=False)
