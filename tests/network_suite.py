"""What every network must do with contracts and accounts: the real kernel and its stand-in both pass this suite.

Tests subclass `NetworkContract` and say in `bench` how to send packets and receive hints. Sizes are bytes as the meter
counts them. A packet passes if its contract has room and its account has money; otherwise it is refused.
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Sequence
from ipaddress import ip_network

import pytest

from ngp.core.kernel import AccountLimit, AccountReading, Adopted, Grant, Hint, HintKind, Reading
from ngp.core.messages import Role
from ngp.core.prefixes import PackedPrefix
from ngp.errors import KernelError

NEIGHBOUR = 7
"""The only neighbour: it buys from us the destination SOLD, and sells us the destination BOUGHT."""
SOLD = ("10.77.2.2", "10.77.2.3")
BOUGHT = "10.77.5.5"
ALICE, BOB = b"alice" + bytes(27), b"bob" + bytes(29)
PLENTY = 1 << 40


class Bench(ABC):
    """A network with one neighbour, and what tests do with it. Methods of the port are as in `ngp.ports`."""

    @abstractmethod
    def limit_accounts(self, limits: Sequence[AccountLimit]) -> None: ...

    @abstractmethod
    def forget_accounts(self, accounts: Sequence[bytes]) -> None: ...

    @abstractmethod
    def grant(self, grants: Sequence[Grant]) -> None: ...

    @abstractmethod
    def revoke(self, contracts: Sequence[bytes]) -> None: ...

    @abstractmethod
    def read(self, contracts: Sequence[bytes] | None = None) -> Sequence[Reading]: ...

    @abstractmethod
    def read_accounts(self, accounts: Sequence[bytes] | None = None) -> Sequence[AccountReading]: ...

    @abstractmethod
    def settled(self) -> None:
        """Await `Network.settled`."""

    @abstractmethod
    def upload(self, address: str, size_bytes: int, number: int = 1) -> int:
        """Send packets of the neighbour to SOLD; returns how many passed."""

    @abstractmethod
    def download(self, address: str, size_bytes: int, number: int = 1) -> int:
        """Send packets from SOLD to the neighbour; returns how many passed."""

    @abstractmethod
    def upload_ours(self, size_bytes: int, number: int = 1) -> int:
        """Send packets of our own to BOUGHT; returns how many passed."""

    @abstractmethod
    def hints(self) -> list[Hint]:
        """Return the hints that came since the last call."""

    @abstractmethod
    def restart(self) -> Adopted:
        """Let the daemon die and another one begin; returns what that one adopts."""


class NetworkContract:
    """The suite. Subclasses bring a fixture `bench`."""

    def test_a_contract_passes_its_bytes_in_both_directions_and_not_one_more(self, bench: Bench) -> None:
        limit(bench)
        contract = sell(bench, limit_bytes=1000)
        assert bench.upload(SOLD[0], 300) == 1 and bench.download(SOLD[0], 400) == 1
        assert not read(bench, contract).exhausted
        assert bench.upload(SOLD[0], 301) == 0 and read(bench, contract) == Reading(contract, 300, 400, exhausted=True)
        assert bench.download(SOLD[0], 300) == 1 and bench.upload(SOLD[0], 100) == 0
        sell(bench, contract=contract, limit_bytes=1100)
        assert not read(bench, contract).exhausted, "nothing was refused at this limit"
        assert bench.upload(SOLD[0], 100) == 1 and read(bench, contract) == Reading(contract, 400, 700)

    def test_contracts_share_what_is_on_their_account(self, bench: Bench) -> None:
        limit(bench, 5000)
        dear, cheap = sell(bench, price_msat_per_gib=3), sell(bench, SOLD[1], price_msat_per_gib=1)
        assert bench.upload(SOLD[0], 1000) == 1 and bench.upload(SOLD[1], 900) == 1
        assert bench.upload(SOLD[0], 400) == 0 and bench.upload(SOLD[1], 500, number=3) == 2
        assert account(bench) == AccountReading(ALICE, 4900, exhausted=True)
        assert read(bench, dear) == Reading(dear, 1000, 0) and read(bench, cheap) == Reading(cheap, 1900, 0)

    def test_each_account_pays_for_its_own(self, bench: Bench) -> None:
        limit(bench, 1000)
        limit(bench, 500, BOB)
        sell(bench)
        sell(bench, SOLD[1], account=BOB)
        assert bench.upload(SOLD[0], 500, number=3) == 2 and bench.upload(SOLD[1], 500, number=3) == 1
        assert account(bench).spent_units == 1000 and account(bench, BOB).spent_units == 500

    @pytest.mark.parametrize("changes", [{"limit_bytes": 0}, {"expires_in_s": -1}, {"blocked": True}])
    def test_what_a_contract_refuses_costs_nothing(self, bench: Bench, changes: dict[str, int]) -> None:
        limit(bench)
        contract = sell(bench, **changes)
        assert bench.upload(SOLD[0], 100, number=3) == 0 == bench.download(SOLD[0], 100, number=3)
        assert account(bench) == AccountReading(ALICE, 0) and read(bench, contract).used_to_bytes == 0
        assert len(bench.hints()) == read(bench, contract).exhausted == ("limit_bytes" in changes)

    def test_what_costs_nothing_passes_without_money(self, bench: Bench) -> None:
        limit(bench, 0)
        sell(bench, price_msat_per_gib=0)
        sell(bench, SOLD[1], price_msat_per_gib=0, account=b"")
        assert bench.upload(SOLD[0], 1000) == 1 == bench.upload(SOLD[1], 1000)
        assert account(bench) == AccountReading(ALICE, 0)

    def test_a_limit_may_fall_below_what_was_spent_and_rise_again(self, bench: Bench) -> None:
        limit(bench, 2000)
        contract = sell(bench)
        assert bench.upload(SOLD[0], 1500) == 1
        limit(bench, 700)
        bench.settled()
        assert bench.upload(SOLD[0], 100) == 0 and account(bench) == AccountReading(ALICE, 1500, exhausted=True)
        limit(bench, -300)
        assert bench.upload(SOLD[0], 100) == 0
        limit(bench, 1600)
        assert bench.upload(SOLD[0], 100, number=2) == 1 and read(bench, contract).used_to_bytes == 1600

    def test_credit_counts_above_the_limit_until_it_ends(self, bench: Bench) -> None:
        limit(bench, 1000, credit_units=500, credit_ends_in_s=600)
        sell(bench)
        assert bench.upload(SOLD[0], 700, number=3) == 2 and account(bench) == AccountReading(ALICE, 1400, True)
        limit(bench, 1000, credit_units=500, credit_ends_in_s=0)
        assert not account(bench).exhausted and bench.upload(SOLD[0], 100) == 0
        assert account(bench) == AccountReading(ALICE, 1400, exhausted=True), "at the limit alone"
        limit(bench, 1500)
        assert bench.upload(SOLD[0], 100) == 1

    def test_hints_come_once_for_each_mark_and_limit(self, bench: Bench) -> None:
        limit(bench, 2000, low_water_units=1000)
        contract = sell(bench, low_water_bytes=600, limit_bytes=1600)
        assert bench.upload(SOLD[0], 500, number=5) == 3
        assert bench.hints() == [
            Hint(HintKind.ACCOUNT_LOW, ALICE),
            Hint(HintKind.LOW, contract),
            Hint(HintKind.EXHAUSTED, contract),
        ]
        sell(bench, contract=contract, low_water_bytes=600)
        assert bench.upload(SOLD[0], 500, number=4) == 1
        assert bench.hints() == [Hint(HintKind.ACCOUNT_EXHAUSTED, ALICE)]
        limit(bench, 2000)
        assert bench.upload(SOLD[0], 500) == 0 and bench.hints() == [], "told for this limit"
        limit(bench, 2000, credit_units=100, credit_ends_in_s=600)
        assert bench.upload(SOLD[0], 500) == 0 and bench.hints() == [Hint(HintKind.ACCOUNT_EXHAUSTED, ALICE)]

    def test_a_contract_of_an_account_that_is_not_known_is_refused_and_nothing_changes(self, bench: Bench) -> None:
        limit(bench)
        known, unknown = grant(), grant(SOLD[1], account=BOB)
        with pytest.raises(KernelError, match=BOB.hex()):
            bench.grant([known, unknown])
        assert not bench.read([known.contract, unknown.contract])

    @pytest.mark.parametrize("prepaid", [True, False])
    def test_a_purchase_is_counted_to_its_limit_and_refused_nothing(self, bench: Bench, prepaid: bool) -> None:
        contract = buy(bench, limit_bytes=1000, low_water_bytes=500, price_msat_per_gib=5 * prepaid)
        assert bench.upload_ours(300, number=5) == 5
        assert read(bench, contract) == Reading(contract, 900, 0, exhausted=True)
        assert bench.hints() == [Hint(HintKind.LOW, contract), Hint(HintKind.EXHAUSTED, contract)]

    @pytest.mark.parametrize("changes", [{"expires_in_s": -1}, {"blocked": True}])
    def test_a_purchase_that_is_over_counts_nothing(self, bench: Bench, changes: dict[str, int]) -> None:
        contract = buy(bench, **changes)
        assert bench.upload_ours(300) == 1 and read(bench, contract) == Reading(contract, 0, 0)
        assert bench.hints() == []

    def test_the_same_again_changes_nothing(self, bench: Bench) -> None:
        changes = {"low_water_bytes": 900, "used_to_base_bytes": 70, "used_from_base_bytes": 30}
        contract = secrets.token_bytes(16)
        for spent in (0, 300, 600):
            limit(bench, 1000, low_water_units=900)
            sell(bench, contract=contract, limit_bytes=1000, **changes)
            assert account(bench).spent_units == spent and read(bench, contract) == Reading(contract, 70 + spent, 30)
            assert bench.upload(SOLD[0], 300) == 1
        assert bench.hints() == [Hint(HintKind.ACCOUNT_LOW, ALICE), Hint(HintKind.LOW, contract)]

    def test_another_contract_of_the_same_destination_takes_its_place(self, bench: Bench) -> None:
        limit(bench)
        former = sell(bench)
        assert bench.upload(SOLD[0], 100) == 1
        later = sell(bench)
        bench.revoke([former, bytes(16)])
        assert bench.read([former]) == [] and bench.upload(SOLD[0], 100) == 1
        assert read(bench, later) == Reading(later, 100, 0) and account(bench).spent_units == 200

    def test_an_account_that_was_forgotten_begins_anew(self, bench: Bench) -> None:
        limit(bench, 500)
        contract = sell(bench)
        assert bench.upload(SOLD[0], 500, number=2) == 1
        bench.revoke([contract])
        bench.forget_accounts([ALICE, BOB])
        assert bench.read_accounts([ALICE]) == []
        limit(bench, 500)
        assert account(bench) == AccountReading(ALICE, 0)
        sell(bench)
        assert bench.upload(SOLD[0], 500, number=2) == 1 and account(bench).spent_units == 500

    def test_only_what_changed_is_read(self, bench: Bench) -> None:
        limit(bench)
        limit(bench, account=BOB)
        contract, other = sell(bench), sell(bench, SOLD[1], account=BOB)
        bench.read(), bench.read_accounts()
        assert not bench.read() and not bench.read_accounts()
        bench.upload(SOLD[0], 100)
        assert bench.read() == [Reading(contract, 100, 0)] and bench.read_accounts() == [AccountReading(ALICE, 100)]
        sell(bench, SOLD[1], contract=other, account=BOB, limit_bytes=0)
        bench.upload(SOLD[1], 100)
        assert bench.read() == [Reading(other, 0, 0, exhausted=True)] and bench.read_accounts() == []

    def test_what_a_killed_daemon_leaves_goes_on_and_is_adopted(self, bench: Bench) -> None:
        limit(bench, 2000, credit_units=50, credit_ends_in_s=600, low_water_units=1900)
        limit(bench, 7, BOB)
        sold = sell(bench, limit_bytes=1500, price_msat_per_gib=2, low_water_bytes=1400)
        bought = buy(bench, used_to_base_bytes=70, used_from_base_bytes=30)
        assert bench.upload(SOLD[0], 300) == 1 == bench.upload_ours(100)
        adopted = bench.restart()
        assert bench.read() == [] and bench.read_accounts() == [], "all of it was read"
        accounts = {each.limit.account: each for each in adopted.accounts}
        assert {name: each.reading for name, each in accounts.items()} == {
            ALICE: AccountReading(ALICE, 600),
            BOB: AccountReading(BOB, 0),
        }
        found = accounts[ALICE].limit
        assert (found.limit_units, found.credit_units, found.low_water_units) == (2000, 50, 1900)
        assert 0 < found.credit_ends_in_s <= 600 and accounts[BOB].limit.low_water_units is None
        contracts = {each.grant.contract: each for each in adopted.contracts}
        assert {name: each.reading for name, each in contracts.items()} == {
            sold: Reading(sold, 300, 0),
            bought: Reading(bought, 170, 30),
        }
        one = contracts[sold].grant
        assert (one.limit_bytes, one.price_msat_per_gib, one.account, one.low_water_bytes) == (1500, 2, ALICE, 1400)
        assert (one.role, one.neighbour, str(one.destination)) == (Role.SERVER, NEIGHBOUR, f"{SOLD[0]}/32")
        assert contracts[bought].grant.account == b"" and contracts[bought].grant.role is Role.CLIENT
        assert bench.upload(SOLD[0], 500, number=2) == 1 and account(bench) == AccountReading(ALICE, 1600, True)


def grant(address: str = SOLD[0], **changes: object) -> Grant:
    """Describe a contract that ALICE buys from us, at one unit a byte."""
    values: dict[str, object] = {
        "contract": secrets.token_bytes(16),
        "neighbour": NEIGHBOUR,
        "role": Role.SERVER,
        "destination": PackedPrefix.of(ip_network(address)),
        "limit_bytes": PLENTY,
        "expires_in_s": 600.0,
        "account": ALICE,
        "price_msat_per_gib": 1,
    }
    return Grant(**{**values, **changes})  # type: ignore[arg-type]


def sell(bench: Bench, address: str = SOLD[0], **changes: object) -> bytes:
    """Grant it; returns the contract's id."""
    made = grant(address, **changes)
    bench.grant([made])
    return made.contract


def buy(bench: Bench, **changes: object) -> bytes:
    """Have a purchase of ours metered; returns the contract's id."""
    values: dict[str, object] = {"role": Role.CLIENT, "account": b"", "price_msat_per_gib": 5}
    return sell(bench, BOUGHT, **{**values, **changes})


def limit(bench: Bench, limit_units: int = PLENTY, account: bytes = ALICE, **changes: object) -> None:
    """Set how much an account may spend."""
    bench.limit_accounts([AccountLimit(account, limit_units, **changes)])  # type: ignore[arg-type]


def account(bench: Bench, which: bytes = ALICE) -> AccountReading:
    """Read one account."""
    (found,) = bench.read_accounts([which])
    return found


def read(bench: Bench, contract: bytes) -> Reading:
    """Read one contract."""
    (found,) = bench.read([contract])
    return found
