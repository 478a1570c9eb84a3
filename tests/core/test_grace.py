"""Grace, given once before a neighbour pays, and top-ups afterwards; all contracts of a neighbour share both."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from playbook import Sim, account, settings, states, tell
from scripted_neighbour import ScriptedNeighbour

from ngp.core import events as ev
from ngp.core.messages import Ask, Cancel, Invoice
from ngp.core.selling import metering
from ngp.core.selling.grace import READ_WITHIN_S
from ngp.core.topups import add_top_up

HOST = "198.51.100.1"
GRACE = 256 << 10
PRICES = (
    "default_msat_per_gib",
    "sell_msat_per_gib",
    "sell_min_msat_per_gib",
    "buy_msat_per_gib",
    "buy_max_msat_per_gib",
)


def pay(sim: Sim, identity: bytes, msat: int) -> None:
    """Credit a payment, as when a client pays an older invoice."""
    world = sim.gateway.world
    world.now, world.effects = sim.clock(), []
    add_top_up(world, world.clients[identity], msat)
    metering.paid_for(world, world.clients[identity])
    world.save_account(world.clients[identity])
    sim.carry_out(sim.gateway, world.effects)


def outlast(neighbour: ScriptedNeighbour) -> None:
    """Wait until the grace that was opened last has ended and the kernel's counters were read."""
    for seconds in (neighbour.victim.settings.grace_time_s, READ_WITHIN_S, 1.0):
        neighbour.wait(seconds)


def test_grace_is_used_to_its_end_then_cut_and_not_given_again() -> None:
    sim = Sim()
    sim.silenced = {Invoice}
    sim.flow(HOST, 100_000, 8, size=512)
    assert sim.passed == 256 << 10
    sim.run(5)
    assert states(sim) == [("closed", "unpaid")]
    sim.flow("198.51.100.2", 100_000, 5)
    assert sim.passed == 256 << 10
    sim.run(20)
    assert not sim.gateway.held


@pytest.mark.parametrize("is_known", [True, False])
def test_a_client_that_may_prepay_only_little_yet_keeps_its_grace_beside_its_money(is_known: bool) -> None:
    keys = {} if is_known else {"trust_amount_msat": None}
    sim = Sim(settings(**keys), settings(sells=False, **keys))
    sim.flow(HOST, 20_000, 1)
    sim.run(3)
    books = account(sim)
    assert books.balance_msat > 0 and not books.debt_msat
    assert (books.credit is None) is is_known
    sim.run(100)
    assert books.credit is None, "nobody sends"


def small_payments() -> Sim:
    """Return a gateway and a client that pays a sat at a time."""
    small = {"payment_amount_msat": 1000}
    return Sim(settings(**small), settings(sells=False, **small))


def nothing_passes(sim: Sim) -> bool:
    """Say whether the client's packets are dropped, also after a while."""
    passed = sim.passed
    sim.run(15)
    sim.flow(HOST, 100_000, 3, size=512)
    return sim.passed == passed


def test_a_payer_gets_grace_too_and_again_when_it_is_paid_for() -> None:
    sim = small_payments()
    for _ in range(2):
        sim.silenced = set()
        sim.run(5)
        sim.flow(HOST, 50_000, 3, size=512)
        books = account(sim)
        assert books.paid_msat > 0 and books.balance_msat > 0 and not books.debt_msat
        sim.silenced = {Invoice}
        sim.flow(HOST, 100_000, 20, size=512)
        assert books.balance_msat == -256 * 5  # in kB and msat
        assert books.grace_left_bytes(256 << 10) == 0
        assert nothing_passes(sim)


def test_a_payment_of_a_part_of_the_debt_opens_that_part_again_and_no_more() -> None:
    """Else who pays a sat at a time would see nothing for it, and pay no more: a debt may be a sat and a little."""
    sim = small_payments()
    sim.flow(HOST, 50_000, 3, size=512)
    sim.silenced = {Invoice}
    sim.flow(HOST, 100_000, 20, size=512)
    books, passed = account(sim), sim.passed
    assert books.balance_msat == -256 * 5
    for part in (1000, 100, 0):
        pay(sim, sim.client.identity, part)
        sim.flow(HOST, 100_000, 6, size=512)
        assert books.balance_msat == -256 * 5
        assert sim.passed - passed == part * 1024 // 5 // 512 * 512
        passed = sim.passed
        assert nothing_passes(sim)


def test_a_part_of_the_debt_that_is_paid_in_time_begins_the_time_anew() -> None:
    sim = small_payments()
    sim.flow(HOST, 50_000, 3, size=512)
    sim.silenced = {Invoice}
    books, world = account(sim), sim.gateway.world
    while not books.debt_msat:
        sim.flow(HOST, 100_000, 0.1, size=512)
    sim.run(5)
    assert books.credit is not None and books.credit.until_mono_s < world.now.monotonic_s + 6
    metering.paid_for(world, books)
    assert books.credit.until_mono_s == world.now.monotonic_s + world.settings.grace_time_s


def test_a_second_identity_on_the_same_link_gets_no_second_grace() -> None:
    sim = Sim()
    sim.silenced = {Invoice}
    sim.flow(HOST, 100_000, 8, size=512)
    sim.run(80)
    sim.client.identity = b"D" * 32
    sim.run(21)
    for number in range(30):
        sim.up(HOST if number else "198.51.100.9", 512)
        sim.run(0.1)
    assert sim.passed == 256 << 10


def test_an_identity_has_one_grace_which_counts_on_the_link_that_opened_it() -> None:
    """Three identities on two links get grace twice altogether, once for each link, whichever contracts use it."""
    sim = Sim()
    world = sim.gateway.world

    def neighbour(identity: bytes, address: bytes) -> ScriptedNeighbour:
        sim.now += 61  # nobody else was heard on that link since
        return ScriptedNeighbour(sim, sim.gateway, identity * 32, address)

    first, second = neighbour(b"V", b"\2vvvv\1"), neighbour(b"V", b"\2vvvv\2")
    assert first.buy("203.0.113.1/32") and (contract := second.buy("203.0.113.2/32"))
    assert world.credit.outstanding == {first.link: GRACE}
    second.use(contract, GRACE)
    second.wait(30)
    second.wait(5)
    assert world.clients[second.identity].debt_msat and world.credit.outstanding == {first.link: GRACE}
    other = neighbour(b"W", b"\2vvvv\2")
    assert other.buy("203.0.113.3/32") and world.credit.outstanding == {first.link: GRACE, other.link: GRACE}
    last = neighbour(b"X", b"\2vvvv\1")
    assert last.buy("203.0.113.4/32") and world.clients[last.identity].credit is None


def test_grace_counts_on_the_link_that_opened_it_after_a_restart_too() -> None:
    """If the grace counted on another link of the identity, a new key would get grace on the first link again."""
    sim = Sim(settings(default_msat_per_gib=0, sell_msat_per_gib=0, sell_min_msat_per_gib=0))
    first, second = (ScriptedNeighbour(sim, sim.gateway, b"V" * 32, address) for address in (b"\2vvvv\1", b"\2vvvv\2"))
    assert first.buy("203.0.113.1/32") and not sim.gateway.world.credit.outstanding, "it costs nothing"
    first.tell(ev.SettingsChanged(settings()))
    assert second.buy("203.0.113.2/32")
    assert sim.gateway.world.credit.outstanding == {second.link: GRACE}
    sim.crash(sim.gateway)
    assert sim.gateway.world.credit.outstanding == {second.link: GRACE}


@pytest.mark.parametrize("opened_by", ["an accept", "a low balance"])
def test_grace_that_is_open_and_unused_goes_on_over_a_restart(opened_by: str) -> None:
    small = {"payment_amount_msat": 1000}
    sim = Sim(settings(**small), settings(sells=False, **small))
    if opened_by == "a low balance":
        sim.flow(HOST, 50_000, 3)
        sim.run(5)
        assert account(sim).credit is None
    sim.silenced = {Invoice}
    tell(sim, sim.gateway, Ask(ip_network(HOST), 0, 0))
    sim.run(0.1)
    while account(sim).credit is None:
        sim.flow(HOST, 20_000, 0.2)
    before = account(sim).credit
    sim.crash(sim.gateway)
    after = account(sim).credit
    assert before is not None and after is not None and not account(sim).debt_msat
    assert (after.data_bytes, after.link) == (before.data_bytes, sim.client.link)
    assert 0 < after.until_mono_s <= before.until_mono_s
    assert sim.gateway.world.credit.outstanding == {sim.client.link: GRACE}
    sim.run(0.1)
    while account(sim).balance_msat > 0:
        passed = sim.passed
        sim.down(HOST)
        assert sim.passed == passed + 1000, "nothing has to be asked for"
        sim.run(0.5)


def test_grace_that_nobody_used_before_a_restart_is_taken_back_after_it() -> None:
    sim = Sim()
    sim.silenced = {Invoice}
    tell(sim, sim.gateway, Ask(ip_network(HOST), 0, 0))
    sim.run(0.5)
    sim.crash(sim.gateway)
    assert account(sim).credit is not None
    sim.run(5)
    assert account(sim).credit is None and not sim.gateway.world.credit.outstanding
    sim.crash(sim.gateway)
    assert account(sim).credit is None


def test_a_default_counts_on_its_interface_for_an_hour_and_on_its_link_until_it_is_paid() -> None:
    sim = Sim()
    sim.silenced = {Invoice}
    sim.flow(HOST, 100_000, 8, size=512)
    sim.run(60)
    credit = sim.gateway.world.credit
    for seconds, weighs in ((3500, True), (100, False)):
        sim.run(seconds)
        assert credit.on_interface == ({"eth1": GRACE} if weighs else {})
        assert credit.outstanding == {sim.client.link: GRACE}
    sim.silenced = set()
    sim.flow(HOST, 100_000, 8, size=512)
    sim.run(10)
    assert account(sim).balance_msat > 0 and not credit.outstanding and not credit.on_interface


@pytest.mark.parametrize("killed", ["never", "afterwards", "before it is read"])
def test_grace_that_one_key_left_and_another_took_is_not_given_again_after_a_restart(killed: str) -> None:
    sim = Sim()
    first = ScriptedNeighbour(sim, sim.gateway)
    contract = first.buy("203.0.113.1/32")
    assert contract is not None
    first.use(contract, GRACE // 10)
    if killed == "before it is read":
        sim.gateway.gatekeeper.flush()
        sim.carry_out(sim.gateway, sim.gateway.world.effects)
        sim.now += 20
        sim.crash(sim.gateway)
    else:
        outlast(first)
    sim.now += 61  # nobody else was heard on that link since
    second = ScriptedNeighbour(sim, sim.gateway, b"W" * 32)
    contract, credit = second.buy("203.0.113.2/32"), sim.gateway.world.clients[second.identity].credit
    assert contract is not None and credit is not None and credit.data_bytes < GRACE
    second.use(contract, credit.data_bytes)
    outlast(second)
    if killed == "afterwards":
        sim.crash(sim.gateway)
    world = sim.gateway.world
    assert world.credit.outstanding == {first.link: GRACE}
    pay(sim, first.identity, 1)
    books = world.clients[first.identity]
    assert books.credit is not None and 0 < books.grace_left_bytes(GRACE) <= 205, "what a msat pays for"
    assert world.credit.outstanding == {first.link: GRACE}


def test_grace_that_one_key_gave_back_unused_is_not_restored_beside_that_of_another_key() -> None:
    sim = Sim()
    first = ScriptedNeighbour(sim, sim.gateway)
    contract = first.buy("203.0.113.1/32")
    assert contract is not None
    first.say(Cancel(contract, "cancelled"))
    assert sim.gateway.world.clients[first.identity].credit is None
    sim.crash(sim.gateway)
    assert not sim.gateway.world.credit.outstanding


def test_defaults_of_more_than_an_hour_ago_do_not_weigh_on_their_interface_after_a_restart() -> None:
    """Else newcomers would get no grace for an hour after each start."""
    sim = Sim()
    for number in range(64):
        debtor = ScriptedNeighbour(sim, sim.gateway, b"V" * 31 + bytes([number]), b"\2vvv" + bytes([number, 1]))
        contract = debtor.buy("203.0.113.1/32")
        assert contract is not None
        debtor.use(contract, GRACE)
    outlast(debtor)
    for seconds, weighs in ((15, True), (3500, True), (100, False), (36_000, False)):
        sim.now += seconds
        sim.crash(sim.gateway)
        credit = sim.gateway.world.credit
        assert credit.on_interface == ({"eth1": 64 * GRACE} if weighs else {})
        assert len(credit.outstanding) == 64 and set(credit.outstanding.values()) == {GRACE}
    newcomer = ScriptedNeighbour(sim, sim.gateway, b"N" * 32, b"\2nnnn\1")
    assert newcomer.buy("203.0.113.9/32")
    opened = sim.gateway.world.clients[newcomer.identity].credit
    assert opened is not None and opened.data_bytes == GRACE


def test_an_old_default_does_not_weigh_after_a_restart_though_the_kernel_was_told_of_its_account_since() -> None:
    sim = Sim()
    sim.silenced = {Invoice}
    sim.flow(HOST, 100_000, 8, size=512)
    sim.run(4000)
    tell(sim, sim.gateway, Ask(ip_network(HOST), 0, 0))
    sim.run(0.5)
    assert sim.client.identity in sim.gateway.kernel.accounts and not sim.gateway.world.credit.on_interface
    sim.crash(sim.gateway)
    assert sim.gateway.world.credit.outstanding == {sim.client.link: GRACE}
    assert not sim.gateway.world.credit.on_interface


def test_an_old_default_that_is_paid_in_part_weighs_on_its_interface_again() -> None:
    sim = Sim()
    debtor = ScriptedNeighbour(sim, sim.gateway)
    contract = debtor.buy("203.0.113.1/32")
    assert contract is not None
    debtor.use(contract, GRACE)
    outlast(debtor)
    debtor.wait(3600)
    credit = sim.gateway.world.credit
    assert not credit.on_interface and credit.outstanding == {debtor.link: GRACE}
    pay(sim, debtor.identity, 100)
    assert credit.on_interface == {"eth1": GRACE} and credit.outstanding == {debtor.link: GRACE}
    outlast(debtor)
    owed = GRACE - 100 * 1024 // 5
    assert credit.on_interface == {"eth1": owed} and credit.outstanding == {debtor.link: owed}
    debtor.wait(3600)
    assert not credit.on_interface and credit.outstanding == {debtor.link: owed}


def test_newcomer_prepays_when_the_interface_has_no_credit_left() -> None:
    sim = Sim()
    sim.gateway.world.credit.on_interface["eth1"] = GRACE * 64
    sim.up(HOST)
    sim.run(0.15)
    assert sim.passed == 0
    sim.run(1)
    assert sim.passed == 1000 and states(sim) == [("active", "")]


def test_a_page_of_thirty_destinations_works_on_grace() -> None:
    sim = Sim()
    sim.silenced = {Invoice}
    hosts = [f"198.51.100.{number}" for number in range(1, 31)]
    for host in hosts:
        sim.up(host, 60)
    sim.run(0.1)
    for _ in range(3):
        for host in hosts:
            sim.down(host, 1200)
        sim.run(0.01)
    assert sim.passed == 30 * (60 + 3 * 1200)


def test_a_great_many_contracts_share_a_small_balance() -> None:
    small = {"payment_amount_msat": 1000}
    sim = Sim(settings(**small), settings(sells=False, **small))
    for number in range(300):
        host = f"198.51.{number // 250}.{number % 250 + 1}"
        sim.up(host, 100)
        sim.run(0.05)
        sim.down(host, 900)
        sim.run(0.05)
    assert sim.passed == 300_000


def test_many_new_destinations_at_once_all_find_budget() -> None:
    sim = Sim()
    sim.up("198.51.100.1", 100)
    sim.run(3)
    for number in range(1000):  # 2 s: none of them is idle yet
        sim.up(f"198.51.{101 + number // 250}.{number % 250 + 1}", 100)
        sim.run(0.002)
    sim.run(0.1)
    assert sim.passed == 1001 * 100


def test_one_contract_may_use_the_whole_balance_and_a_new_one_gets_what_is_left() -> None:
    small = {"payment_amount_msat": 1000, "grace_data_bytes": 0}
    sim = Sim(settings(**small), settings(sells=False, **small))
    sim.up(HOST, 100)
    sim.run(3)
    sim.silenced = {Invoice}
    books = account(sim)
    while books.funds_msat > 100:
        sim.flow(HOST, 150_000, 0.05)
    sim.up("203.0.113.1", 100)
    sim.run(1)
    before = sim.passed
    sim.up("203.0.113.1", 100)
    assert sim.passed == before + 100
    sim.flow(HOST, 150_000, 3)
    assert 0 <= books.funds_msat <= 5 and books.balance_msat >= 0  # less than a packet costs


def test_grace_that_nobody_uses_is_taken_back_and_given_again_when_it_is_wanted() -> None:
    sim = Sim()
    sim.silenced = {Invoice}
    tell(sim, sim.gateway, Ask(ip_network(HOST), 0, 0))
    sim.run(0.5)
    books = account(sim)
    assert books.credit is not None and sim.gateway.world.credit.outstanding
    sim.run(4)
    assert books.credit is None and not sim.gateway.world.credit.outstanding
    sim.down(HOST)  # refused, which asks for it
    sim.run(0.1)
    sim.down(HOST)
    assert sim.passed == 1000


def test_grace_that_a_payer_does_not_use_goes_on_only_while_the_daemon_lives() -> None:
    small = {"payment_amount_msat": 1000}
    sim = Sim(settings(**small), settings(sells=False, **small))
    sim.flow(HOST, 50_000, 3)
    sim.silenced = {Invoice}
    books = account(sim)
    while books.balance_msat > 300:
        sim.flow(HOST, 20_000, 0.2)
    assert books.credit is not None  # the balance is low, so credit was given already
    sim.flow(HOST, 100, 30)
    entry = sim.gateway.kernel.accounts[sim.client.identity]
    assert sim.now < entry.credit_until <= sim.now + sim.gateway.settings.grace_time_s


def test_a_small_price_leaves_all_grace_to_many_contracts() -> None:
    """Money is set aside for rounding, but credit isn't: here the whole grace is worth 2.5 msat."""
    price = {name: 10_486 for name in PRICES}
    sim = Sim(settings(**price), settings(sells=False, **price))
    sim.silenced = {Invoice}
    for number in range(1, 11):
        sim.up(f"198.51.100.{number}", 1400)
    sim.run(0.1)
    assert sim.passed == 14_000


def test_top_ups_grow_with_the_rate() -> None:
    small = {"payment_amount_msat": 1000}
    sim = Sim(settings(**small), settings(sells=False, **small))
    sim.flow(HOST, 2_000_000, 6)
    before = sim.passed
    sim.flow(HOST, 2_000_000, 2)
    assert sim.passed - before >= 0.95 * 4_000_000
    assert len(sim.gateway.world.money.invoices) < 30
