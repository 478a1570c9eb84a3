"""Whatever bytes are in net.conf, the result is Settings that make sense, or ConfigError, and never anything else."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from ngp.config import load, parse, shipped_keys
from ngp.config.units import (
    ALL_MONEY_MSAT,
    MOST_DATA_BYTES,
    MOST_PRICE_MSAT_PER_GIB,
    MOST_TIME_S,
    data_bytes,
    money_msat,
    price_msat_per_gib,
    time_s,
)
from ngp.core.pricing import KILOBYTES_PER_GIB
from ngp.core.rental.pools import FreeNetworks
from ngp.core.rental.terms import LettingSettings
from ngp.core.settings import Settings
from ngp.errors import ConfigError

KEYS = shipped_keys()
FILE = Path("/etc/ngp/net.conf")
SHIPPED = (Path(__file__).resolve().parent.parent / "net.conf").read_text()
GOOD = SHIPPED.replace("# MESH_INTERFACES:", "MESH_INTERFACES:")
LINES = [line for line in GOOD.split("\n") if line and not line.startswith("#")]

KEYS_AND_DEFAULTS = [*(key.name for key in KEYS), *(key.default for key in KEYS)]
SIGNS = ["[", "]", "{", "}", ": ", ", ", "- ", "? ", "#", "'", '"', ">", "&a ", "*a", "!!int ", "<<"] + [
    "\n",
    "\n  ",
    "\t",
    "|\n ",
    "---\n",
]
WORDS = [
    "0",
    "-1",
    "5 msat",
    "1 h",
    "20 MB",
    "none",
    "auto",
    "no",
    "~",
    "0123",
    "10:30",
    "1e9",
    ".inf",
    "2026-01-01",
    "eth0",
    "all",
    "eth*",
]
PARTS = ["10.0.0.0/8", "10.0.0.1/8", "::/0", "fe80::1%eth0", "prefix: ", "sell: ", "buy: ", "interface: "]
ODD = ["\\UFFFFFFFF", "\x00", "\ufeff", "\x85", "\u2028", "\ud800", "%YAML 1.1\n", "%TAG ! x\n"]
PIECES = st.sampled_from([*KEYS_AND_DEFAULTS, *SIGNS, *WORDS, *PARTS, *ODD])
TEXTS = st.lists(st.one_of(PIECES, st.text(max_size=5)), max_size=40).map("".join)
LIKELY = st.builds(
    "{} {}".format, st.integers(0, 200), st.sampled_from(["", "msat", "sat", "kB", "MB", "s", "min", "h"])
).map(str.strip)
VALUES = st.one_of(LIKELY, PIECES, TEXTS, st.integers().map(str), st.floats().map(str), st.text(max_size=20))


def outcome(text: str) -> Settings | None:
    """Parse the text. None if it was refused, with a printable message that names the file."""
    try:
        settings = parse(text, FILE)
    except ConfigError as refused:
        message = str(refused)
        assert message.startswith(str(FILE))
        message.encode("utf-8")
        assert len(message) < 100_000
        return None
    return sound(settings)


def sound(got: Settings) -> Settings:
    """Assert what all code that uses the settings relies on."""
    assert got.link_modules and (got.mesh_interfaces or got.letting)
    assert got.sells or got.buys or got.letting
    if got.letting is not None:
        sound_letting(got.letting)
    assert 0 <= got.sell_min_msat_per_gib <= got.sell_msat_per_gib <= MOST_PRICE_MSAT_PER_GIB
    assert 0 <= got.buy_msat_per_gib <= got.buy_max_msat_per_gib <= MOST_PRICE_MSAT_PER_GIB
    for rule in got.prices:
        sell = got.sell_msat_per_gib if rule.sell_msat_per_gib is None else rule.sell_msat_per_gib
        sell_min = got.sell_min_msat_per_gib if rule.sell_min_msat_per_gib is None else rule.sell_min_msat_per_gib
        buy = got.buy_msat_per_gib if rule.buy_msat_per_gib is None else rule.buy_msat_per_gib
        buy_max = got.buy_max_msat_per_gib if rule.buy_max_msat_per_gib is None else rule.buy_max_msat_per_gib
        assert 0 <= sell_min <= sell and 0 <= buy <= buy_max
    assert 0 < got.contract_data_bytes <= MOST_DATA_BYTES and 0 < got.contract_time_s <= MOST_TIME_S
    assert got.data_renewal_bytes is None or 0 <= got.data_renewal_bytes < got.contract_data_bytes
    assert got.time_renewal_s is None or 0 <= got.time_renewal_s < got.contract_time_s
    budgets = (got.budgets.payment_msat, got.budgets.neighbour_msat, got.budgets.hour_msat, got.budgets.day_msat)
    for budget in (*budgets, got.budgets.total_msat):
        assert budget is None or 0 <= budget <= ALL_MONEY_MSAT
        assert budget is None or not got.buys or 0 < got.payment_amount_msat <= budget
    assert 0 <= got.queue_number <= 65535 and got.contracts_max > 0
    assert Path(got.state_dir).is_absolute()
    return got


def sound_letting(got: LettingSettings) -> None:
    """Assert what the landlord relies on."""
    assert got.pools and got.offers and len({one.name for one in got.offers}) == len(got.offers)
    free = FreeNetworks(got.pools)
    for offer in got.offers:
        sizes = [(version, bits) for version, bits in ((4, offer.ipv4_bits), (6, offer.ipv6_bits)) if bits is not None]
        assert sizes and all(free.count(version, bits, offer.pools) for version, bits in sizes)
        amounts = (offer.activation_fee_msat, offer.initial_credit_min_msat, offer.payment_min_msat)
        assert all(amount % 1000 == 0 for amount in (*amounts, offer.credit_max_msat))
        assert 0 < offer.initial_credit_min_msat <= offer.credit_max_msat <= ALL_MONEY_MSAT
        assert 0 < 2 * offer.payment_min_msat <= offer.credit_max_msat
        assert 0 < offer.rent_msat <= ALL_MONEY_MSAT and offer.reserved_s > 0
        assert offer.rate_bytes_s is None or offer.rate_bytes_s > 0
    assert got.tunnel is not None and got.tunnel.outside and got.tunnel.interface != got.tunnel.outside
    assert got.tunnel.mtu >= 1280 and 0 < got.tunnel.port < 65536
    assert got.invoice_s > 0 and got.invoices_max > 0 and got.keepalive_s >= 0
    assert bool(got.https_certificate) == bool(got.https_key)


@given(TEXTS)
def test_any_text_gives_settings_or_an_error(text: str) -> None:
    outcome(text)


@given(
    st.lists(st.tuples(st.sampled_from([key.name for key in KEYS]), VALUES), max_size=4, unique_by=lambda pair: pair[0])
)
def test_any_values_of_real_keys_give_settings_or_an_error(pairs: list[tuple[str, str]]) -> None:
    outcome("\n".join(("MESH_INTERFACES: eth1", *(f"{name}: {value}" for name, value in pairs))))


OFFER_WORDS = ["ipv4: 32", "ipv4: none", "ipv6: 56", "ipv6: 129", "pools: 10.9.0.0/24", "rent: 0", "rent: 1 sat"]
OFFER_WORDS += ["pools: [10.9.0.0/24, '2001:db8::/48']", "price: 0", "rate: 1 MB/s", "rate: none", "except: 1"]
OFFER_WORDS += ["credit_max: 1000 sat", "payment_min: 500 sat", "payment_min: 1 msat", "reserved_time: 1 day"]
TERMS = st.lists(st.sampled_from(OFFER_WORDS), max_size=3, unique_by=lambda word: word.partition(":")[0])
NAMES = st.sampled_from(["a", "b", "c", "d"])
OFFERS = st.lists(st.tuples(NAMES, TERMS), max_size=3, unique_by=lambda offer: offer[0])
POOL_WORDS = ["10.9.0.0/24", "10.8.0.0/28", "'2001:db8::/48'", "{prefix: 10.7.0.0/24, except: 10.7.0.0/25}"]
ODD_POOLS = ["{prefix: 10.9.0.0/24, except: [10.9.0.0/25, 10.9.0.128/25]}", "10.9.0.1/24", "10.9.0.0/25", "::/0"]
POOLS = st.lists(st.sampled_from([*POOL_WORDS * 4, *ODD_POOLS]), min_size=1, max_size=3, unique=True)
LANDLORD_KEYS = [key for key in KEYS if key.name.startswith("LANDLORD_")]
PAIRS = st.sampled_from(LANDLORD_KEYS).flatmap(
    lambda key: st.tuples(st.just(key.name), st.one_of(st.just(key.default), VALUES))
)


@given(POOLS, OFFERS, st.lists(PAIRS, max_size=2, unique_by=lambda pair: pair[0]))
def test_any_landlord_gives_settings_or_an_error(
    pools: list[str], offers: list[tuple[str, list[str]]], pairs: list[tuple[str, str]]
) -> None:
    entries = [f"{{{', '.join((f'name: {name}', *terms))}}}" for name, terms in offers]
    lines = {"LANDLORD_POOLS": f"[{', '.join(pools)}]", "LANDLORD_OUTSIDE": "eth0"}
    lines |= {"LANDLORD_OFFERS": f"[{', '.join(entries)}]"} if entries else {}
    outcome("\n".join(("LANDLORD: yes", *(f"{name}: {value}" for name, value in {**lines, **dict(pairs)}.items()))))


@given(st.data())
def test_the_shipped_file_with_some_lines_changed(data: st.DataObject) -> None:
    lines = list(LINES)
    for _ in range(data.draw(st.integers(1, 4))):
        index = data.draw(st.integers(0, len(lines) - 1))
        change = data.draw(st.sampled_from(["cut", "insert", "replace value", "remove", "repeat", "swap"]))
        line = lines[index]
        place = data.draw(st.integers(0, len(line)))
        if change == "cut":
            lines[index] = line[:place]
        elif change == "insert":
            lines[index] = line[:place] + data.draw(PIECES) + line[place:]
        elif change == "replace value":
            lines[index] = f"{line.partition(':')[0]}: {data.draw(VALUES)}"
        elif change == "remove":
            lines[index] = ""
        elif change == "repeat":
            lines.append(line)
        else:
            lines.insert(0, lines.pop(index))
    outcome("\n".join(lines))


@given(st.binary(max_size=200), st.integers(0, len(GOOD)))
def test_any_bytes_in_a_file_give_settings_or_an_error(noise: bytes, place: int) -> None:
    raw = GOOD.encode()
    with tempfile.NamedTemporaryFile() as file:
        for content in (noise, raw[-2000:][: place % 2000] + noise):
            file.seek(0)
            file.truncate()
            file.write(content)
            file.flush()
            try:
                sound(load(file.name))
            except ConfigError as refused:
                assert str(refused).startswith(file.name)


@given(st.one_of(st.text(max_size=30), st.from_regex(r"[0-9]{1,30}(\.[0-9]{1,30})? ?[A-Za-z/]{0,6}", fullmatch=True)))
def test_any_text_as_a_quantity(text: str) -> None:
    for read, most in (
        (money_msat, ALL_MONEY_MSAT),
        (price_msat_per_gib, MOST_PRICE_MSAT_PER_GIB),
        (data_bytes, MOST_DATA_BYTES),
        (time_s, MOST_TIME_S),
    ):
        try:
            value = read(text)
        except ConfigError:
            continue
        assert isinstance(value, int) and 0 <= value <= most


@given(st.integers(0, MOST_PRICE_MSAT_PER_GIB))
def test_every_price_can_be_written_exactly(price: int) -> None:
    """Per GB directly, and per kB with the 20 decimals that 1/1,048,576 needs."""
    assert price_msat_per_gib(f"{price} msat/GB") == price
    whole, rest = divmod(price, KILOBYTES_PER_GIB)
    assert price_msat_per_gib(f"{whole}.{rest * 10**20 // KILOBYTES_PER_GIB:020} msat") == price
