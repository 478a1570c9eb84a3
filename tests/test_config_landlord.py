"""net.conf of a landlord becomes LettingSettings, or one ConfigError that says what would be right."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from ngp.config import changes, keep_until_restart, load, parse, refuse_shown_secret, unwise
from ngp.core.rental.terms import MONTH_S, LettingSettings, Offer, Pool, TunnelSettings
from ngp.daemon.landlord import endpoints_of
from ngp.errors import ConfigError
from tests.test_config import FILE, modules, settings

SAT = 1000
BOTH = "LANDLORD_POOLS: [203.0.113.0/29, '2001:db8::/56']"
LEAST = ("LANDLORD: yes", BOTH, "LANDLORD_OUTSIDE: eth0")


def landlord(*lines: str) -> LettingSettings:
    """Parse a good file of a landlord without mesh; lines replace those of the smallest file that have their key."""
    got = parse(text_of(*lines), FILE, modules=modules).letting
    assert got is not None
    return got


def text_of(*lines: str) -> str:
    given = {line.partition(":")[0] for line in lines}
    return "\n".join((*(line for line in LEAST if line.partition(":")[0] not in given), *lines))


def problems(*lines: str) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        landlord(*lines)
    return str(refused.value).split("\n")


# --- good files -------------------------------------------------------------------------------------------------------


def test_the_smallest_file_has_the_documented_terms() -> None:
    got = landlord()
    offer = Offer(
        name="default", ipv4_bits=32, ipv6_bits=64, pools=(), rent_msat=24_000 * SAT, price_msat_per_gib=0,
        rate_bytes_s=None, activation_fee_msat=48_000 * SAT, initial_credit_min_msat=1000 * SAT,
        payment_min_msat=500 * SAT, credit_max_msat=72_000 * SAT, reserved_s=2 * MONTH_S,
    )  # fmt: skip
    assert got.pools == (Pool(ip_network("203.0.113.0/29")), Pool(ip_network("2001:db8::/56")))
    assert got.offers == (offer,)
    assert got.tunnel == TunnelSettings("ngp-let", 51820, "eth0", "routed", "auto", 1420)
    assert (got.invoice_s, got.invoices_max, got.hold, got.mesh) == (600, 100, "auto", True)
    assert (got.https, got.https_certificate, got.https_key, got.grpc) == ((), "", "", ())
    assert (got.endpoints, got.dns, got.keepalive_s) == ((), (), 25)


def test_without_landlord_nothing_is_let_whatever_the_other_keys_say() -> None:
    assert settings().letting is None and not settings().lets
    assert settings(BOTH, "LANDLORD_RENT: 0", "LANDLORD_CREDIT_MAX: 1 sat").letting is None


def test_a_landlord_needs_no_neighbours() -> None:
    got = parse(text_of("SELL: no", "BUY: no"), FILE)
    assert got.mesh_interfaces == () and got.lets
    assert parse(text_of("MESH_INTERFACES: eth1"), FILE).mesh_interfaces == ("eth1",)


def test_the_tunnel_is_no_mesh_interface() -> None:
    got = parse(text_of("MESH_INTERFACES: all", "LANDLORD_INTERFACE: let0"), FILE)
    assert "let0" in got.never_mesh


def test_the_usual_offer_has_the_families_of_the_pools() -> None:
    (ipv4,) = landlord("LANDLORD_POOLS: 203.0.113.0/29").offers
    assert (ipv4.ipv4_bits, ipv4.ipv6_bits) == (32, None)
    (ipv6,) = landlord("LANDLORD_POOLS: ['2001:db8::/56']").offers
    assert (ipv6.ipv4_bits, ipv6.ipv6_bits) == (None, 64)


def test_pools_leave_out_parts() -> None:
    got = landlord(
        "LANDLORD_POOLS:",
        "  - {prefix: 203.0.113.0/28, except: [203.0.113.0/31, 203.0.113.15]}",
        "  - {prefix: '2001:db8::/48', except: '2001:db8::/64'}",
    )
    assert got.pools[0].excluded == (ip_network("203.0.113.0/31"), ip_network("203.0.113.15/32"))
    assert got.pools[1].excluded == (ip_network("2001:db8::/64"),)


def test_an_offer_has_the_terms_of_the_keys_where_it_has_none_of_its_own() -> None:
    small, large = landlord(
        "LANDLORD_POOLS: [203.0.113.0/28, 198.51.100.0/28, '2001:db8::/48']",
        "LANDLORD_RENT: 9000 sat", "LANDLORD_RATE: 1 MB/s",
        "LANDLORD_OFFERS:",
        "  - {name: small, rent: 100 sat, pools: 198.51.100.0/28}",
        "  - {name: large, ipv4: 29, ipv6: /56, rate: none, activation_fee: 0, credit_max: 5000 sat,",
        "     payment_min: 9 sat, initial_credit_min: 7 sat, reserved_time: 1 day}",
    ).offers  # fmt: skip
    assert (small.rent_msat, small.rate_bytes_s, small.activation_fee_msat) == (100 * SAT, 1 << 20, 48_000 * SAT)
    assert (small.ipv4_bits, small.ipv6_bits, small.pools) == (32, None, (1,)), "its pool has no IPv6"
    assert (large.rent_msat, large.rate_bytes_s, large.activation_fee_msat) == (9000 * SAT, None, 0)
    assert (large.ipv4_bits, large.ipv6_bits, large.pools) == (29, 56, ())
    assert (large.credit_max_msat, large.payment_min_msat, large.initial_credit_min_msat) == (5_000_000, 9000, 7000)
    assert large.reserved_s == 86_400


def test_listeners_endpoints_and_name_servers_are_read_in_each_of_their_forms() -> None:
    got = landlord(
        "LANDLORD_HTTPS: [203.0.113.1:443, '[2001:DB8::1]:8443', '[::]:443']",
        "LANDLORD_ENDPOINT: ['2001:db8::1', '[2001:db8::2]:4500', vpn.example.org, 198.51.100.1:4500]",
        "LANDLORD_DNS: [192.0.2.53, '2001:db8::53']", "LANDLORD_KEEPALIVE: 0",
    )  # fmt: skip
    assert got.https == (("203.0.113.1", 443), ("2001:db8::1", 8443), ("::", 443))
    assert got.endpoints == (
        ("2001:db8::1", None), ("2001:db8::2", 4500), ("vpn.example.org", None), ("198.51.100.1", 4500),
    )  # fmt: skip
    told = ("[2001:db8::1]:51820", "[2001:db8::2]:4500", "vpn.example.org:51820", "198.51.100.1:4500")
    assert endpoints_of(got, [ip_address("192.0.2.9")]) == told
    assert (got.dns, got.keepalive_s) == (("192.0.2.53", "2001:db8::53"), 0)


def test_without_an_endpoint_tenants_are_told_the_addresses_that_there_are_ipv4_first() -> None:
    addresses = [ip_address("2001:db8::9"), ip_address("192.0.2.9")]
    assert endpoints_of(landlord(), addresses) == ("192.0.2.9:51820", "[2001:db8::9]:51820")


def test_files_start_at_the_files_folder() -> None:
    got = landlord("LANDLORD_HTTPS_CERT: tls/cert.pem", "LANDLORD_HTTPS_KEY: /srv/key.pem")
    assert (got.https_certificate, got.https_key) == ("/etc/ngp/tls/cert.pem", "/srv/key.pem")


# --- bad values -------------------------------------------------------------------------------------------------------

# The line, the key and value that the problem names, and a part of its message.
BAD_LINES = [
    ("LANDLORD_POOLS: none", "LANDLORD: 'yes'", "needs LANDLORD_POOLS: write the prefixes that are let"),
    ("LANDLORD_OUTSIDE: none", "LANDLORD: 'yes'", "needs LANDLORD_OUTSIDE: write the interface"),
    ("LANDLORD_POOLS: []", "LANDLORD_POOLS: []", "is empty"),
    ("LANDLORD_POOLS: [203.0.113.1/29]", "LANDLORD_POOLS: '203.0.113.1/29'", "write 203.0.113.0/29"),
    ("LANDLORD_POOLS: [203.0.113.0/29, 203.0.113.4/30]", "LANDLORD_POOLS: '203.0.113.4/30'", "overlaps 203.0.113.0/29"),
    ("LANDLORD_POOLS: [203.0.113.0/29, 203.0.113.0/29]", "LANDLORD_POOLS", "overlaps 203.0.113.0/29"),
    ("LANDLORD_POOLS: 0.0.0.0/0", "LANDLORD_POOLS: '0.0.0.0/0'", "routers forward nothing to"),
    ("LANDLORD_POOLS: 64.0.0.0/2", "LANDLORD_POOLS: '64.0.0.0/2'", "is wider than /8"),
    ("LANDLORD_POOLS: ['fe80::/64']", "LANDLORD_POOLS: 'fe80::/64'", "routers forward nothing to"),
    ("LANDLORD_POOLS: [{except: 203.0.113.0/30}]", "LANDLORD_POOLS", "has no prefix"),
    ("LANDLORD_POOLS: [{prefix: 203.0.113.0/29, except: 203.0.114.0/30}]", "LANDLORD_POOLS", "isn't inside"),
    ("LANDLORD_POOLS: [{prefix: 203.0.113.0/29, except: '2001:db8::/64'}]", "LANDLORD_POOLS", "isn't inside"),
    ("LANDLORD_POOLS: [{prefix: 203.0.113.0/29, except: 203.0.113.0/29}]", "LANDLORD_POOLS", "leaves nothing"),
    ("LANDLORD_OFFERS: 5", "LANDLORD_OFFERS: '5'", "is not a list of offers"),
    ("LANDLORD_OFFERS: [5]", "LANDLORD_OFFERS: '5'", "is not an entry"),
    ("LANDLORD_OFFERS: [{rent: 5 sat}]", "LANDLORD_OFFERS", "has no name"),
    ("LANDLORD_OFFERS: [{name: a}, {name: a}]", "LANDLORD_OFFERS", "second offer a"),
    ("LANDLORD_OFFERS: [{name: 'a b'}]", "LANDLORD_OFFERS: name: 'a b'", "is not a name"),
    ("LANDLORD_OFFERS: [{name: a, cost: 5}]", "LANDLORD_OFFERS: 'cost'", "known are name, ipv4, ipv6, pools, rent"),
    ("LANDLORD_OFFERS: [{name: a, ipv4: 33}]", "LANDLORD_OFFERS: ipv4: '33'", "from 8 to 32"),
    ("LANDLORD_OFFERS: [{name: a, ipv4: 28}]", "LANDLORD_OFFERS", "for a promises an IPv4 /28, which none of"),
    ("LANDLORD_OFFERS: [{name: a, ipv4: none, ipv6: none}]", "LANDLORD_OFFERS", "for a has no network"),
    ("LANDLORD_OFFERS: [{name: a, pools: 198.51.100.0/24}]", "LANDLORD_OFFERS", "198.51.100.0/24, which isn't in"),
    ("LANDLORD_OFFERS: [{name: a, pools: 203.0.113.0/29, ipv6: 64}]", "LANDLORD_OFFERS", "promises an IPv6 /64"),
    ("LANDLORD_OFFERS: [{name: a, activation_fee: 5 msat}]", "LANDLORD_OFFERS: activation_fee: '5 msat'", "or 1 sat"),
    ("LANDLORD_OFFERS: [{name: a, credit_max: 999 sat, payment_min: 1 sat}]", "LANDLORD_OFFERS", "the least first"),
    ("LANDLORD_OFFERS: [{name: a, rent: 0}]", "LANDLORD_OFFERS", "a: rent is 0, and so is the price"),
    ("LANDLORD_RENT: 0", "LANDLORD_RENT: '0'", "write a rent, or a price per kilobyte"),
    ("LANDLORD_RATE: 5 bytes", "LANDLORD_RATE: '5 bytes'", "write 1 kB/s to 16 GB/s"),
    ("LANDLORD_ACTIVATION_FEE: 1500 msat", "LANDLORD_ACTIVATION_FEE: '1500 msat'", "write 1 sat or 2 sat"),
    ("LANDLORD_INITIAL_CREDIT_MIN: 0", "LANDLORD_INITIAL_CREDIT_MIN: '0'", "write 1 sat or more"),
    ("LANDLORD_PAYMENT_MIN: 0 sat", "LANDLORD_PAYMENT_MIN: '0 sat'", "write 1 sat or more"),
    ("LANDLORD_PAYMENT_MIN: 40000 sat", "LANDLORD_CREDIT_MAX: 72000 sat (the default)", "less than two payments"),
    ("LANDLORD_INITIAL_CREDIT_MIN: 72001 sat", "LANDLORD_CREDIT_MAX: 72000 sat (the default)", "first credit (72001"),
    ("LANDLORD_RESERVED_TIME: 0", "LANDLORD_RESERVED_TIME: '0'", "write 1 min or more"),
    ("LANDLORD_INVOICE_TIME: 1 s", "LANDLORD_INVOICE_TIME: '1 s'", "write 1 min to 1 day"),
    ("LANDLORD_INVOICES_MAX: 0", "LANDLORD_INVOICES_MAX: '0'", "from 1 to 100000"),
    ("LANDLORD_HOLD: maybe", "LANDLORD_HOLD: 'maybe'", "auto or yes or no"),
    ("LANDLORD_HTTPS: 443", "LANDLORD_HTTPS: '443'", "is not address:port"),
    ("LANDLORD_HTTPS: example.org:443", "LANDLORD_HTTPS", "is not address:port"),
    ("LANDLORD_HTTPS: 2001:db8::1:443", "LANDLORD_HTTPS", "'[::]:443'"),
    ("LANDLORD_HTTPS: 192.0.2.1:0", "LANDLORD_HTTPS", "has the port '0'"),
    ("LANDLORD_HTTPS: [192.0.2.1:443, 192.0.2.1:443]", "LANDLORD_HTTPS", "twice"),
    ("LANDLORD_HTTPS_CERT: /cert.pem", "LANDLORD_HTTPS_CERT: '/cert.pem'", "needs LANDLORD_HTTPS_KEY too"),
    ("LANDLORD_HTTPS_KEY: ~/key.pem", "LANDLORD_HTTPS_KEY: '~/key.pem'", "write the whole path"),
    ("LANDLORD_GRPC: 192.0.2.1", "LANDLORD_GRPC: '192.0.2.1'", "is not address:port"),
    ("LANDLORD_ENDPOINT: 'http://x'", "LANDLORD_ENDPOINT: 'http://x'", "has the port '//x'"),
    ("LANDLORD_ENDPOINT: '-x'", "LANDLORD_ENDPOINT: '-x'", "is neither a host nor host:port"),
    ("LANDLORD_ENDPOINT: 192.0.2", "LANDLORD_ENDPOINT: '192.0.2'", "is neither a host nor host:port"),
    ("LANDLORD_ENDPOINT: 'a:b:c'", "LANDLORD_ENDPOINT: 'a:b:c'", "is neither a host nor host:port"),
    ("LANDLORD_ENDPOINT: 'a:'", "LANDLORD_ENDPOINT: 'a:'", "has the port"),
    ("LANDLORD_ENDPOINT: '[2001:db8::1]x'", "LANDLORD_ENDPOINT", "has the port 'x'"),
    ("LANDLORD_ENDPOINT: 127.0.0.1", "LANDLORD_ENDPOINT: '127.0.0.1'", "tenants can't reach"),
    ("LANDLORD_PORT: 10325", "LANDLORD_PORT: '10325'", "ngp's own messages"),
    ("LANDLORD_INTERFACE: eth0", "LANDLORD_OUTSIDE: 'eth0'", "is LANDLORD_INTERFACE"),
    ("LANDLORD_OUTSIDE: 'eth*'", "LANDLORD_OUTSIDE: 'eth*'", "name of one interface"),
    ("LANDLORD_ROUTING: nat", "LANDLORD_ROUTING: 'nat'", "routed or proxy"),
    ("LANDLORD_TUNNEL: 1", "LANDLORD_TUNNEL: '1'", "auto or kernel or userspace"),
    ("LANDLORD_MTU: 1279", "LANDLORD_MTU: '1279'", "from 1280 to 9000"),
    ("LANDLORD_DNS: dns.example.org", "LANDLORD_DNS: 'dns.example.org'", "is not the address of a name server"),
    ("LANDLORD_KEEPALIVE: 1 day", "LANDLORD_KEEPALIVE: '1 day'", "0 to 65535 s"),
    ("WHEN_STOPPED: closed", "WHEN_STOPPED: 'closed'", "there are none: write open"),
    ("LANDLORD: maybe", "LANDLORD: 'maybe'", "write yes or no"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "named", "right"), BAD_LINES, ids=[line[:60] for line, _, _ in BAD_LINES])
def test_a_bad_line_is_refused_with_file_key_value_and_remedy(line: str, named: str, right: str) -> None:
    (problem,) = problems(line)
    place, _, said = problem.partition(": ")
    assert place.partition(":")[0] == str(FILE) and (":" in place or "(the default)" in named), problem
    assert said.startswith(named) and right in said, problem


def test_over_https_the_first_offer_needs_a_rent() -> None:
    offers = "LANDLORD_OFFERS: [{name: a, rent: 0, price: 1}, {name: b, rent: 0, price: 1}]"
    found = [problem for problem in problems(offers, "LANDLORD_HTTPS: 192.0.2.1:443") if "LANDLORD_HTTPS" in problem]
    assert len(found) == 1 and "for a: rent is 0, but over LANDLORD_HTTPS" in found[0]
    assert [offer.rent_msat for offer in landlord(offers).offers] == [0, 0]


def test_over_https_the_first_offer_has_no_price() -> None:
    https = "LANDLORD_HTTPS: 192.0.2.1:443"
    (problem,) = problems("LANDLORD_PRICE: 5", https)
    assert "LANDLORD_PRICE: '5' is above 0, but LANDLORD_HTTPS sells the first offer, by time alone" in problem
    (problem,) = problems("LANDLORD_OFFERS: [{name: a, price: 1}, {name: b}]", https)
    assert "for a: price is above 0, but LANDLORD_HTTPS" in problem
    first, second = landlord("LANDLORD_OFFERS: [{name: a}, {name: b, price: 1}]", https).offers
    assert (first.price_msat_per_gib, second.price_msat_per_gib) == (0, 1 << 20)
    assert landlord("LANDLORD_PRICE: 5").offers[0].price_msat_per_gib == 5 << 20


def test_two_faces_have_two_places() -> None:
    https = "LANDLORD_HTTPS: [192.0.2.1:443, '[::]:443']"
    (problem,) = problems(https, "LANDLORD_GRPC: '[::]:443'")
    assert "LANDLORD_GRPC: '[::]:443' has [::]:443, where LANDLORD_HTTPS listens: write another port" in problem
    assert landlord(https, "LANDLORD_GRPC: 192.0.2.1:50051").grpc == (("192.0.2.1", 50051),)


def test_over_https_the_tunnel_is_found_by_ipv4_or_a_name() -> None:
    https = "LANDLORD_HTTPS: 192.0.2.1:443"
    (problem,) = problems(https, "LANDLORD_ENDPOINT: ['2001:db8::1', '[2001:db8::1]:51']")
    assert "has IPv6 addresses only" in problem
    assert landlord("LANDLORD_ENDPOINT: '2001:db8::1'").endpoints
    assert landlord(https, "LANDLORD_ENDPOINT: ['2001:db8::1', a.example]").endpoints


def test_the_tunnel_named_as_a_mesh_interface_is_refused() -> None:
    (problem,) = problems("MESH_INTERFACES: [eth1, ngp-let]")
    assert problem == (
        f"{FILE}: LANDLORD_INTERFACE: ngp-let (the default) is in MESH_INTERFACES too, but tenants aren't neighbours: "
        "remove it there"
    )


def test_a_bad_pool_is_reported_once() -> None:
    assert len(problems("LANDLORD_POOLS: [203.0.113.1/29]", "LANDLORD_OFFERS: [{name: a, pools: 192.0.2.0/24}]")) == 1


def test_without_landlord_mesh_interfaces_is_still_required() -> None:
    with pytest.raises(ConfigError, match="MESH_INTERFACES: is missing.*needs LANDLORD: yes.*ngp rentals release"):
        parse("LANDLORD: no\n", FILE)


def test_a_ledgers_url_is_never_shown() -> None:
    for line in (
        "LEDGER: mysql://ann:s3cret@db/x",
        "LEDGER: s3cret\nLEDGER: x",
    ):
        with pytest.raises(ConfigError) as refused:
            settings(line)
        assert "s3cret" not in str(refused.value) and "LEDGER" in str(refused.value)
    for line in ("LEGDER: postgresql://ann:s3cret@db/x", "STATE_DIR: ~postgresql://ann:s3cret@db/x"):
        with pytest.raises(ConfigError) as refused:
            settings(line)
        assert "s3cret" not in str(refused.value)
    assert settings("LEDGER: none").ledger is None
    found = settings("LEDGER: postgresql://ann:s3cret@db/x")
    assert found.ledger == "postgresql://ann:s3cret@db/x" and "s3cret" not in repr(found)


# --- reload and advice ------------------------------------------------------------------------------------------------


def test_a_reload_takes_terms_and_keeps_the_tunnel_that_there_is() -> None:
    old = parse(text_of(), FILE)
    new = parse(
        text_of("LANDLORD_RENT: 1 sat", "LANDLORD_PORT: 7", "LANDLORD_INTERFACE: x", "LANDLORD_MTU: 1400"), FILE
    )
    found = changes(old, new)
    assert found.applied == ("LANDLORD_OFFERS", "LANDLORD_RENT", "LANDLORD_MTU"), "offers follow the rent"
    assert found.needs_restart == ("LANDLORD_PORT", "LANDLORD_INTERFACE")
    kept = keep_until_restart(old, new).letting
    assert kept is not None and kept.tunnel == TunnelSettings("ngp-let", 51820, "eth0", "routed", "auto", 1400)
    assert kept.offers[0].rent_msat == SAT


def test_letting_begins_and_ends_with_a_reload() -> None:
    mesh = "MESH_INTERFACES: eth1"
    off, on = parse(mesh, FILE), parse(text_of(mesh, "LANDLORD_PORT: 7"), FILE)
    for old, new in ((off, on), (on, off)):
        assert changes(old, new).applied == ("LANDLORD",)
        assert changes(old, new).needs_restart == ()
        assert keep_until_restart(old, new).letting == new.letting


def test_a_file_that_others_read_may_have_no_ledgers_url(tmp_path: Path) -> None:
    path = tmp_path / "net.conf"
    path.write_text("MESH_INTERFACES: eth1\n")
    path.chmod(0o644)
    refuse_shown_secret(load(path), path)
    path.write_text("MESH_INTERFACES: eth1\nLEDGER: postgresql://ann:s3cret@db/x\n")
    with pytest.raises(ConfigError, match="chmod 600") as refused:
        refuse_shown_secret(load(path), path)
    assert "s3cret" not in str(refused.value)
    path.chmod(0o600)
    refuse_shown_secret(load(path), path)


def test_terms_that_the_published_client_does_not_take_are_named() -> None:
    usual = ["LANDLORD_HTTPS: 192.0.2.1:443"]
    bad = [
        "LANDLORD_RENT: 48001 sat", "LANDLORD_ACTIVATION_FEE: 64001 sat", "LANDLORD_INITIAL_CREDIT_MIN: 2001 sat",
        "LANDLORD_PAYMENT_MIN: 1501 sat", "LANDLORD_CREDIT_MAX: 5999 sat",
    ]  # fmt: skip
    assert not unwise(parse(text_of(*usual), FILE))
    assert not unwise(parse(text_of(*bad), FILE)), "other programs may take them"
    found = unwise(parse(text_of(*usual, *bad), FILE))
    assert sorted(line.name for line in found) == sorted(line.partition(":")[0] for line in bad)
    assert all(line.ok and line.remedy for line in found)
