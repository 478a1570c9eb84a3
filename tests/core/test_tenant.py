"""The tenant's rules: what a landlord may say, what is paid when, and that no answer becomes a command."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ngp.core.tenant.account import Account, Order, disagreements, follow, paid
from ngp.core.tenant.answers import (
    LEAST_RATE_SAT_S,
    MOST_RATE_SAT_S,
    MOST_SAT,
    AnswerError,
    Status,
    read_asked,
    read_status,
    read_terms,
)
from ngp.core.tenant.configuration import interface_name, read_configuration, wg_quick_text, with_dns
from ngp.core.tenant.terms import (
    Limit,
    SaleTerms,
    TenantSettings,
    lasts_until_due_s,
    refusals,
    stricter,
    top_up_msat,
)

SAT = 1000
RATE = 24_000 / 2_629_800
TERMS = SaleTerms(RATE, 48_000 * SAT, 1000 * SAT, 500 * SAT, 72_000 * SAT)
LIMITS = TenantSettings().limits
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
STATUS = {
    "Networks": ["192.0.2.7/32"], "start_time": 1, "current_time": 2, "TimeRemaining": 3.5, "Credit": -4.25,
    "CurrentRate": RATE, "total_paid": 49_000, "NumberOfPayments": 1, "ActivationFee": 48_000, "unpaid_invoice": None,
}  # fmt: skip
ASKED = {
    "Invoice": "lnbc1", "InitialInvoice": True, "AddedCredit": 1000, "Status": STATUS,
    "SellOfferTerms": {"Rate": RATE, "ActivationFee": 48_000, "MinimumInitialCredit": 1000,
                       "MinRegularPaymentSize": 500, "MaximumCredit": 72_000},
}  # fmt: skip
CONF = {
    "addresses": ["192.0.2.7/32", "2001:db8::1/128"], "dns": ["192.0.2.53"], "mtu": 1420,
    "peers": [{"public_key": "A" * 43 + "=", "preshared_key": None, "endpoint_host": "2001:db8:1::1",
               "endpoint_port": 51820, "persistent_keepalive": 25, "allowed_ips": ["0.0.0.0/0", "::/0"]}],
}  # fmt: skip
KEY = "B" * 43 + "="


# --- answers ----------------------------------------------------------------------------------------------------------


def test_numbers_are_taken_as_they_are() -> None:
    status = read_status(STATUS)
    assert (status.credit_msat, status.left_s, status.rate_sat_s) == (-4250, 3, RATE)
    assert read_asked(ASKED).terms == TERMS == read_terms(ASKED["SellOfferTerms"])  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", [5e-324, 1e-310, 1e-11])
def test_a_rent_that_is_too_small_to_reckon_with(rate: float) -> None:
    with pytest.raises(AnswerError, match="CurrentRate"):
        read_status(STATUS | {"CurrentRate": rate})
    terms: dict[str, Any] = ASKED["SellOfferTerms"]  # type: ignore[assignment]
    with pytest.raises(AnswerError, match="Rate"):
        read_terms(terms | {"Rate": rate})


@given(st.floats(LEAST_RATE_SAT_S, MOST_RATE_SAT_S), st.integers(-MOST_SAT * SAT, MOST_SAT * SAT))
def test_each_rent_that_may_be_said_can_be_reckoned_with(rate: float, credit_msat: int) -> None:
    terms = read_terms(ASKED["SellOfferTerms"] | {"Rate": rate})  # type: ignore[operator]
    assert lasts_until_due_s(credit_msat, terms, LIMITS) >= 0 and top_up_msat(credit_msat, terms, LIMITS, False) >= 0


@given(st.sampled_from(["status", "asked", "conf"]), st.data())
def test_any_answer_is_a_value_or_an_error(kind: str, data: st.DataObject) -> None:
    good: dict[str, Any] = {"status": STATUS, "asked": ASKED, "conf": CONF}[kind]
    read: Any = {"status": read_status, "asked": read_asked, "conf": read_configuration}[kind]
    spoilt = json.loads(json.dumps(good))
    for _ in range(data.draw(st.integers(1, 3))):
        place = spoilt
        while True:
            inner = [one for one in place.values() if isinstance(one, dict)]
            inner += [one for each in place.values() if isinstance(each, list) for one in each if isinstance(one, dict)]
            if not inner or data.draw(st.booleans()):
                break
            place = data.draw(st.sampled_from(inner))
        key = data.draw(st.sampled_from([*place, "more"]))
        place[key] = data.draw(JSON)
    with contextlib.suppress(AnswerError):
        read(spoilt)


@given(JSON, st.sampled_from(["addresses", "dns", "mtu", "peers", "postup", "PostUp", "table"]))
def test_no_configuration_becomes_a_command(value: object, key: str) -> None:
    with contextlib.suppress(AnswerError):
        text = wg_quick_text(read_configuration({**CONF, key: value}), KEY, True)
        known = ("PrivateKey", "Address", "MTU", "DNS", "PublicKey", "PresharedKey", "Endpoint", "AllowedIPs")
        for line in filter(None, text.splitlines()):
            assert line in ("[Interface]", "[Peer]") or line.split(" = ")[0] in (*known, "PersistentKeepalive"), line


@pytest.mark.parametrize(
    "host",
    [
        *("a b", "x\nPostUp = y", "", "-", "a..b", "[", "::1%eth0", "fe80::1%a\nPostUp = y", "é", "a" * 254, "x]"),
        *("a/b", 5, None, ["h"]),
    ],
)
def test_an_endpoint_that_is_none(host: object) -> None:
    peer = {**CONF["peers"][0], "endpoint_host": host}  # type: ignore[dict-item,call-overload]
    with pytest.raises(AnswerError):
        read_configuration({**CONF, "peers": [peer]})


def test_a_tunnel_has_one_end_and_it_is_no_name_server() -> None:
    """What is sent to the ends may leave beside the tunnel, under TENANT_ALL_TRAFFIC too."""
    (peer,) = CONF["peers"]
    with pytest.raises(AnswerError, match="peers"):
        read_configuration({**CONF, "peers": [peer, peer]})
    for port in (53, 853):
        with pytest.raises(AnswerError, match="endpoint_port"):
            read_configuration({**CONF, "peers": [peer | {"endpoint_port": port}]})  # type: ignore[operator]


@pytest.mark.parametrize(
    ("endpoint", "written"),
    [
        ("192.0.2.1:51820", "192.0.2.1:51820"),
        ("[2001:db8::1]:51820", "[2001:db8::1]:51820"),
        ("2001:db8::1:51820", "[2001:db8::1]:51820"),
        ("vpn.example:1", "vpn.example:1"),
    ],
)
def test_an_endpoint_in_one_text(endpoint: str, written: str) -> None:
    peer = {"public_key": KEY, "endpoint": endpoint, "allowed_ips": ["::/0"]}
    (end,) = read_configuration({**CONF, "peers": [peer]}).ends
    assert (end.endpoint, end.keepalive_s, end.preshared_key) == (written, 0, None)


def test_the_file_brackets_ipv6_and_leaves_unused_name_servers_out() -> None:
    configuration = read_configuration(CONF)
    text = wg_quick_text(configuration, KEY, False)
    assert "Endpoint = [2001:db8:1::1]:51820\n" in text and "\nDNS" not in text and "# DNS = 192.0.2.53" in text
    assert "\nDNS = 192.0.2.53\n" in wg_quick_text(configuration, KEY, True)


def test_no_address_brings_a_route_to_more_than_itself() -> None:
    """wg-quick gives an interface its addresses, and the kernel a route to the network of each."""
    found = read_configuration(CONF | {"addresses": ["8.8.1.9/5", "2001:db8::1/4"]})
    assert "\nAddress = 8.8.1.9/32, 2001:db8::1/128\n" in wg_quick_text(found, KEY, False)


def test_name_servers_are_used_and_left_out_again() -> None:
    configuration = read_configuration(CONF | {"dns": ["192.0.2.53", "2001:db8::53"]})
    unused, used = (wg_quick_text(configuration, KEY, uses_dns) for uses_dns in (False, True))
    assert "\nDNS = 192.0.2.53, 2001:db8::53\n" in used and "\nDNS" not in unused
    for text in (unused, used):
        assert (with_dns(text, False), with_dns(text, True)) == (unused, used)


def test_an_interface_has_a_name_that_linux_takes() -> None:
    assert interface_name("ab+/cd" + "A" * 37 + "=") == "sw_ab-_cdAAAAAA"
    assert len(interface_name(KEY)) == 15


@pytest.mark.parametrize(
    "network",
    ["2001:db8::%x; reboot/128", "fe80::%a\nPostUp = y/64", "192.0.2.7/24", 5, "", "::/129", "0.0.0.0/0", "::/0"],
)
def test_networks_that_are_none(network: object) -> None:
    with pytest.raises(AnswerError, match="Networks"):
        read_status({**STATUS, "Networks": [network]})


# --- terms ------------------------------------------------------------------------------------------------------------


def test_of_two_limits_the_stricter_one_holds_with_its_name() -> None:
    other = replace(LIMITS, rent_max=Limit(1, "a"), payment_min=Limit(10**9, "b"), payment_max=Limit(10**9, "c"))
    joined = stricter(LIMITS, other)
    assert (joined.rent_max.name, joined.payment_min.name) == ("a", "b")
    assert joined.payment_max.name == "TENANT_PAYMENT_MAX"


def test_terms_that_contradict_each_other_are_refused() -> None:
    assert not refusals(TERMS, LIMITS, True)
    for most_msat in (999 * SAT, 1):
        odd = replace(TERMS, credit_max_msat=most_msat)
        assert "contradict" in refusals(odd, LIMITS, True)[0]


@example(0, 1, 0, 1000 * SAT, 0, SAT, 0)  # neither side asks for more than nothing
@given(
    st.integers(-(10**9), 10**9),
    st.integers(1, 10**6),
    st.integers(0, 3000).map(lambda sat: sat * SAT),
    st.integers(1000, 10**6).map(lambda sat: sat * SAT),
    st.integers(0, 3_000_000),
    st.integers(0, 3_000_000),
    st.integers(0, 10**8),
)
def test_a_payment_keeps_every_limit(
    credit: int, rate: int, least: int, most_credit: int, low: int, high: int, target: int
) -> None:
    terms = SaleTerms(rate / 10**6, 0, least, least, most_credit)
    limits = replace(
        LIMITS, payment_min=Limit(low, ""), payment_max=Limit(high, ""), target_credit=Limit(target, ""),
        rent_max=Limit(10**18, ""), initial_max=Limit(10**18, ""),
    )  # fmt: skip
    if refusals(terms, limits, False):
        return
    amount = top_up_msat(credit, terms, limits, False)
    assert amount % SAT == 0
    if amount:
        assert max(low, least) <= amount <= high and max(0, credit) + amount <= most_credit
        assert credit + amount < max(target, 2 * (max(low, least) + SAT)) + SAT
    elif lasts_until_due_s(credit, terms, limits) == 0:
        room = most_credit - max(0, credit)
        assert min(room, high) < max(low, least) + SAT, "due, but nothing is paid"


# --- books ------------------------------------------------------------------------------------------------------------


def order(number: int, is_first: bool, added: int, at_s: int, rate: float = RATE) -> Order:
    amount = added + (48_000 * SAT if is_first else 0)
    return Order(bytes([number]) * 32, amount, added, is_first, rate, at_s, "node", 1000, at_s)


def test_credit_is_what_was_paid_less_the_rent_since_then() -> None:
    account = paid(Account(), order(1, True, 1000 * SAT, 100))
    assert account.credit_msat(100) == 1000 * SAT
    account = paid(account, order(2, False, 2000 * SAT, 100 + 2_629_800 // 24, RATE / 2))
    at_s = 100 + 2_629_800 // 24
    assert abs(account.credit_msat(at_s) - 2000 * SAT) <= 1
    assert abs(account.credit_msat(at_s + 2_629_800 // 24) - 1500 * SAT) <= 1
    assert (account.paid_msat, account.payments) == (51_000 * SAT, 2)


def status(account: Account, at_s: int, **changes: Any) -> Status:
    fitting = Status(
        account.networks, account.started_at_s, at_s, 0, account.credit_msat(at_s), account.rate_sat_s,
        account.paid_msat, account.payments, account.activation_fee_msat, "",
    )  # fmt: skip
    return replace(fitting, **changes)


@given(st.integers(0, 10**7), st.integers(-30, 30), st.sampled_from((RATE, 100 * RATE, RATE / 100)))
def test_a_landlord_may_be_short_by_20_s_of_rent_or_a_sat_and_ahead_by_10_s(
    after_s: int, ahead_s: int, rate: float
) -> None:
    account = paid(Account(), replace(order(1, True, 1000 * SAT, 100), rate_sat_s=rate))
    said = disagreements(account, status(account, 100 + after_s + ahead_s), 100 + after_s)
    assert bool(said) == (ahead_s > 10)
    ours = account.credit_msat(100 + after_s)
    most_msat = max(SAT, 20 * rate * SAT)
    for part in (0.95, 1.1):
        less = status(account, 100 + after_s, credit_msat=round(ours - part * most_msat))
        assert bool(disagreements(account, less, 100 + after_s)) == (part > 1)


def test_where_traffic_has_a_price_the_credit_is_the_landlords_word_and_all_else_is_compared() -> None:
    account = paid(Account(), order(1, True, 1000 * SAT, 100))
    metered = status(account, 200, credit_msat=10 * SAT, price_msat_per_gib=5 << 20)
    assert not disagreements(account, metered, 200)
    assert disagreements(account, status(account, 200, credit_msat=10 * SAT), 200)
    assert "payments" in disagreements(account, replace(metered, payments=0), 200)[0]


def test_a_payment_by_hand_accepts_what_traffic_was_charged_and_the_fee_is_charged_once() -> None:
    account = paid(Account(), order(1, True, 1000 * SAT, 100))
    account = paid(account, replace(order(2, False, 500 * SAT, 200), carried_msat=10 * SAT))
    assert account.credit_msat(200) == 510 * SAT
    assert not disagreements(account, status(account, 200, credit_msat=510 * SAT), 200)
    first = replace(order(1, True, 1000 * SAT, 100), carried_msat=7)
    assert paid(Account(), first).credit_msat(100) == 1000 * SAT


def test_what_others_paid_is_taken_over_and_nothing_else() -> None:
    account = paid(Account(), order(1, True, 1000 * SAT, 100))
    same = status(account, 200, credit_msat=10**9)
    assert follow(account, same) == account
    paid_msat = account.paid_msat + 5 * SAT
    more = status(account, 200, paid_msat=paid_msat, payments=2, credit_msat=1004 * SAT, rate_sat_s=1.0)
    assert not disagreements(account, more, 200)
    followed = follow(account, more)
    assert (followed.credit_msat(200), followed.rate_sat_s, followed.payments) == (1004 * SAT, 1.0, 2)
    assert follow(Account(), status(Account(), 5)) == Account()
    rented = replace(account, networks=(ip_network("192.0.2.7/32"),))
    assert follow(rented, replace(more, networks=())).networks == rented.networks, "else the next look took any others"
