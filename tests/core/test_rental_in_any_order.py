"""Whatever happens to rentals, in any order: money is conserved, and no address is let twice."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis import strategies as st
from let import RENT, Landlord, PaymentNodeOfLandlord, key, letting, offer

from ngp.core.rental.events import ReleaseRental, SwitchRental
from ngp.core.rental.terms import Offer

ACTIONS = st.one_of(
    st.tuples(st.just("ask"), st.integers(1, 5), st.sampled_from((400, 600, 1000, 5000, 70_000))),
    st.tuples(st.just("ask"), st.integers(1, 5), st.just(5000), st.sampled_from(("default", "other"))),
    st.tuples(st.just("pay"), st.integers(0, 3)),
    st.tuples(st.just("pay"), st.integers(0, 3)),
    st.tuples(st.just("at"), st.sampled_from((0.5, 30.0, 601.0, 86_400.0, 5e5, 2e6, 6e6))),
    st.tuples(st.just("jump"), st.sampled_from((-1e6, 1e4, 1e8))),
    st.tuples(st.just("crash"), st.booleans(), st.sampled_from((0.0, 100.0, 1e6))),
    st.tuples(st.just("crash after"), st.integers(0, 4)),
    st.tuples(st.just("switch"), st.integers(1, 5), st.booleans()),
    st.tuples(st.just("release"), st.integers(1, 5)),
    st.tuples(st.just("cancel"), st.integers(1, 5)),
    st.tuples(st.just("away"), st.booleans()),
    st.tuples(st.just("carry"), st.integers(1, 5), st.sampled_from((100, 10**6, 10**8)), st.booleans()),
    st.tuples(st.just("carry"), st.integers(1, 3), st.sampled_from((10**7, 10**8)), st.booleans()),
    st.tuples(st.just("read")),
    st.tuples(st.just("price_msat_per_gib"), st.sampled_from((0, 1 << 20, 50 << 20))),
    st.tuples(st.just("rent_msat"), st.sampled_from((RENT // 20, RENT, 3 * RENT))),
    st.tuples(st.just("tunnel"), st.sampled_from(("", "no such device"))),
    st.tuples(st.just("fetch"), st.integers(1, 5), st.sampled_from((1, 400, 5000))),
    st.tuples(st.just("others"), st.sets(st.sampled_from(("203.0.113.0/31", "203.0.113.2/32", "2001:db8:0:1::/64")))),
)


@given(st.booleans(), st.sampled_from((0, 5 << 20)), st.lists(ACTIONS, max_size=40))
@effort(
    max_examples=effort.default.max_examples // 2,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_money_is_conserved_and_no_address_is_let_twice(
    holds: bool, price: int, actions: list[tuple[object, ...]]
) -> None:
    """Also if traffic is metered, at prices that change, by a kernel that goes on while no daemon runs."""
    pools, node = ("203.0.113.0/30", "2001:db8::/62"), PaymentNodeOfLandlord(holds=holds)
    with (
        TemporaryDirectory(prefix="ngp-let-") as name,
        closing(Landlord(Path(name), letting(*_offers(price), pools=pools), node=node)) as landlord,
    ):
        landlord.face = "mesh"
        invoices: list[str] = []
        for name, *words in actions:
            _act(landlord, invoices, str(name), words)
            landlord.check()
        landlord.crash()
        landlord.crash_after = -1
        landlord.check()
        landlord.tunnel_fails, node.away = "", False
        landlord.at(1000)
        assert not node.held, "every payment was taken or went back"
        paid = sum(amount for _, amount in landlord.node.paid)
        assert paid == sum(one.paid_msat for one in landlord.ledger.load(landlord.clock().utc_s).accounts)


def _offers(price: int) -> tuple[Offer, ...]:
    return offer(price_msat_per_gib=price), offer(name="other", ipv6_bits=None, price_msat_per_gib=price)


def _act(landlord: Landlord, invoices: list[str], name: str, words: list[object]) -> None:
    letting = landlord.world.letting
    if name == "ask":
        answer = landlord.ask(*words)  # type: ignore[arg-type]
        if answer is not None and answer.bolt11:
            invoices.append(answer.bolt11)
    elif name == "pay" and invoices:
        landlord.pay(invoices[-1 - int(words[0]) % len(invoices)])  # type: ignore[call-overload]
    elif name == "at":
        landlord.at(words[0])  # type: ignore[arg-type]
    elif name == "carry":
        landlord.carry(*words)  # type: ignore[arg-type]
    elif name == "read":
        landlord.read()
    elif name in ("price_msat_per_gib", "rent_msat"):
        offers = tuple(replace(one, **{name: words[0]}) for one in landlord.terms.offers)  # type: ignore[arg-type]
        landlord.reload(replace(landlord.terms, offers=offers))
    elif name == "away":
        landlord.node.away = bool(words[0])
    elif name == "tunnel":
        landlord.tunnel_fails = str(words[0])
    elif name == "jump":
        landlord.at(1.0, words[0])  # type: ignore[arg-type]
    elif name == "others":
        landlord.let_by_others(words[0])  # type: ignore[arg-type]
    elif name == "crash":
        landlord.crash(*words)  # type: ignore[arg-type]
    elif name == "crash after":
        landlord.crash_after = words[0]  # type: ignore[assignment]
    elif name == "cancel":
        landlord.cancel(*words)  # type: ignore[arg-type]
    elif name == "fetch":
        landlord.fetch(*words)  # type: ignore[arg-type]
    elif name in ("switch", "release"):
        rental = letting.by_key.get(key(words[0]))  # type: ignore[arg-type]
        if rental is not None:
            event = SwitchRental(rental.id, bool(words[1])) if name == "switch" else ReleaseRental(rental.id)
            landlord.happen(event)
