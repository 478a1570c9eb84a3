"""BOLT11 as in the specification and in the bolt11 package; hostile input becomes PeerError and nothing else."""

from __future__ import annotations

import secrets
import time

import bolt11
import pytest
from bech32 import bech32_decode, bech32_encode
from coincurve import PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from ngp import invoice
from ngp.core import networks
from ngp.errors import PeerError

KEY = bytes.fromhex("e126f68f7eafcc8b74f54d269fe206be715000f94dac067d1c04a8ca3b2db734")  # BOLT11's examples
PAYEE = "03e7156ae33b0a208d0744199163177e909e80176e55d97a2f221ede0f934dd9ad"
HASH = bytes.fromhex("0001020304050607080900010203040506070809000102030405060708090102")
COFFEE = (
    "lnbc2500u1pvjluezsp5zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zygspp5qqqsyqcyq5rqwzqfqqqsyqcyq"
    "5rqwzqfqqqsyq"
    "cyq5rqwzqfqypqdq5xysxxatsyp3k7enxv4jsxqzpu9qrsgquk0rl77nj30yxdy8j9vdx85fkpmdla2087ne0xh8nhedh8w27kyk"
    "e0lp53ut353s06f"
    "v3qfegext0eh0ymjpf39tuven09sam30g4vgpfna3rh"
)
METADATA = (
    "lnbc10m1pvjluezpp5qqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqypqdp9wpshjmt9de6zqmt9w3skgct5vys"
    "xjmnnd9jx2mq8q"
    "8a04uqsp5zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zygs9q2gqqqqqqsgq7hf8he7ecf7n4ffphs6awl9t66"
    "76rrclv9ckg3d3"
    "ncn7fct63p6s365duk5wrk202cfy3aj5xnnp5gs3vrdvruverwwq7yzhkf5a3xqpd05wjc"
)


def made(**changes: object) -> str:
    values: dict[str, object] = {
        "key": KEY, "prefix": "bcrt", "amount_msat": 123_456, "timestamp_s": 1_700_000_000, "expiry_s": 600,
        "payment_hash": HASH, "payment_secret": b"\x11" * 32, "memo": "ngp", "metadata": b"ngp1" + b"m" * 32,
    }  # fmt: skip
    return invoice.write(**{**values, **changes})  # type: ignore[arg-type]


def test_the_specifications_examples_are_read() -> None:
    coffee = invoice.read(COFFEE)
    assert coffee == invoice.ParsedInvoice("bc", 250_000_000, 1496314658, 60, HASH, PAYEE, "1 cup coffee", b"")
    metadata = invoice.read(METADATA)
    assert (metadata.amount_msat, metadata.metadata) == (1_000_000_000, bytes.fromhex("01fafaf0"))
    assert (metadata.memo, metadata.payee, metadata.expiry_s) == ("payment metadata inside", PAYEE, 3600)


CHAINS = {"mainnet": "bc", "testnet": "tb", "testnet3": "tb", "testnet4": "tb", "signet": "tbs", "mutinynet": "tbs",
          "regtest": "bcrt", "simnet": "sb"}  # fmt: skip
"""The names that LND and Electrum give their chains, and how invoices on them begin."""


@pytest.mark.parametrize("chain", CHAINS)
def test_an_invoice_is_of_the_chain_of_the_node_that_made_it(chain: str) -> None:
    for prefix in set(CHAINS.values()):
        named = invoice.read(made(prefix=prefix)).decoded(0).network
        assert networks.takes_invoice(chain, named) is (prefix == CHAINS[chain])


def test_upper_case_is_the_same_invoice() -> None:
    assert invoice.read(COFFEE.upper()) == invoice.read(COFFEE)


@settings(max_examples=settings.default.max_examples // 4)
@given(
    amount_msat=st.integers(1, invoice.AMOUNT_MSAT_MAX),
    memo=st.text(max_size=150),
    expiry_s=st.integers(1, invoice.EXPIRY_S_MAX),
    metadata=st.binary(min_size=1, max_size=64),
    prefix=st.sampled_from(["bc", "tb", "tbs", "bcrt"]),
)
def test_the_package_reads_what_we_write_as_we_do(
    amount_msat: int, memo: str, expiry_s: int, metadata: bytes, prefix: str
) -> None:
    key, now_s = PrivateKey(), int(time.time())
    text = made(key=key.secret, prefix=prefix, amount_msat=amount_msat, timestamp_s=now_s, expiry_s=expiry_s,
                memo=memo, metadata=metadata)  # fmt: skip
    ours = invoice.read(text)
    payee = key.public_key.format().hex()
    assert ours == invoice.ParsedInvoice(prefix, amount_msat, now_s, expiry_s, HASH, payee, memo, metadata)
    theirs = bolt11.decode(text, ignore_exceptions=not memo)  # the package takes an empty description for none
    assert (theirs.currency, theirs.date, theirs.expiry) == (prefix, now_s, expiry_s)
    assert (theirs.payment_hash, theirs.payee) == (HASH.hex(), payee)
    assert (theirs.description, theirs.metadata) == (memo, metadata.hex())
    assert bolt11.decode(bolt11.encode(theirs, key.to_hex(), ignore_exceptions=True)).payee == payee if memo else True
    assert theirs.features is not None
    # BOLT 9's bits 8, 14 and 48. The package has option_payment_metadata at 32, and no name for 48.
    assert theirs.features.readable == dict.fromkeys(["var_onion_optin", "payment_secret", "extra_24"], "required")


@settings(max_examples=settings.default.max_examples // 6)
@given(amount_msat=st.integers(1, 10**14 - 1), memo=st.text(min_size=1, max_size=50), keep_payee=st.booleans())
def test_we_read_what_the_package_writes(amount_msat: int, memo: str, keep_payee: bool) -> None:
    # from 1,000 bitcoin on the package writes a thousandth of the amount
    tags = bolt11.Tags()
    tags.add(bolt11.TagChar.payment_hash, HASH.hex())
    tags.add(bolt11.TagChar.payment_secret, "22" * 32)
    tags.add(bolt11.TagChar.description, memo)
    tags.add(bolt11.TagChar.payee, PAYEE)
    written = bolt11.Bolt11("tbs", 1_700_000_000, tags, bolt11.MilliSatoshi(amount_msat))
    read = invoice.read(bolt11.encode(written, KEY.hex(), keep_payee=keep_payee))
    assert read == invoice.ParsedInvoice("tbs", amount_msat, 1_700_000_000, 3600, HASH, PAYEE, memo, b"")


@pytest.mark.parametrize(
    ("amount_msat", "beginning"),
    [(1, "lnbcrt10p1"), (100, "lnbcrt1n1"), (100_000, "lnbcrt1u1"), (10**8, "lnbcrt1m1"), (10**11, "lnbcrt11"),
     (123_456, "lnbcrt1234560p1"), (25 * 10**11, "lnbcrt251"),
     (5000 * 10**11, "lnbcrt50001")],
)  # fmt: skip
def test_amounts_are_written_in_the_shortest_form(amount_msat: int, beginning: str) -> None:
    text = made(amount_msat=amount_msat)
    assert text.startswith(beginning)
    assert invoice.read(text).amount_msat == amount_msat


# --- hostile ----------------------------------------------------------------------------------------------------------


def signed(readable: str, body: list[int]) -> str:
    signature = bolt11.Signature.from_private_key(readable, KEY.hex(), invoice._padded(body))
    return str(bech32_encode(readable, body + invoice._fives(signature.signature_data)))


def parts(text: str) -> tuple[str, list[int]]:
    readable, data = bech32_decode(text)
    assert readable is not None
    assert data is not None
    return readable, data[:-104]


STAMP = [0] * 7
PAIR = invoice._field("p", invoice._fives(HASH)) + invoice._field("s", invoice._fives(b"s" * 32))
MEMO = invoice._field("d", invoice._fives(b"memo"))
WRONG = {
    "no network": ("lnxx1u", STAMP + PAIR + MEMO),
    "a tenth of a msat": ("lnbcrt1p", STAMP + PAIR + MEMO),
    "zero": ("lnbcrt0u", STAMP + PAIR + MEMO),
    "more than all bitcoin": ("lnbcrt21000001", STAMP + PAIR + MEMO),
    "letters": ("lnbcrt1x", STAMP + PAIR + MEMO),
    "no fields": ("lnbcrt1u", STAMP),
    "no time": ("lnbcrt1u", [0] * 3),
    "nothing": ("lnbcrt1u", []),
    "no secret": ("lnbcrt1u", STAMP + invoice._field("p", invoice._fives(HASH)) + MEMO),
    "no description": ("lnbcrt1u", STAMP + PAIR),
    "two hashes": ("lnbcrt1u", STAMP + PAIR + PAIR[:55] + MEMO),
    "hash of another length": ("lnbcrt1u", STAMP + invoice._field("p", [1] * 51) + PAIR[55:] + MEMO),
    "field past the end": ("lnbcrt1u", STAMP + PAIR + MEMO + [13, 31, 31, 1]),
    "half a field": ("lnbcrt1u", STAMP + PAIR + MEMO + [13]),
    "not UTF-8": ("lnbcrt1u", STAMP + PAIR + invoice._field("d", invoice._fives(b"\xff\xfe"))),
    "for ever": ("lnbcrt1u", STAMP + PAIR + MEMO + invoice._field("x", [31] * 300)),
    "another payee": ("lnbcrt1u", STAMP + PAIR + MEMO + invoice._field("n", invoice._fives(b"\x02" + b"\x11" * 32))),
    "no point": ("lnbcrt1u", STAMP + PAIR + MEMO + invoice._field("n", invoice._fives(b"\x09" * 33))),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_under_a_good_signature_is_refused(name: str) -> None:
    with pytest.raises(PeerError) as caught:
        invoice.read(signed(*WRONG[name]))
    assert caught.value.reason == "invoice"


def test_unknown_fields_and_an_own_key_are_fine() -> None:
    payee = invoice._field("n", invoice._fives(bytes.fromhex(PAYEE)))
    route = invoice._field("r", [1] * 80) * 2
    read = invoice.read(signed("lnbcrt1u", STAMP + PAIR + MEMO + payee + route + invoice._field("l", [7] * 9)))
    assert (read.payee, read.memo, read.amount_msat) == (PAYEE, "memo", 100_000)
    assert invoice.read(signed("lntb", STAMP + PAIR + MEMO)).amount_msat is None


def test_oversized_text_is_refused_before_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invoice, "bech32_decode", lambda _: pytest.fail("was parsed"))
    with pytest.raises(PeerError, match="characters"):
        invoice.read("q" * (invoice.INVOICE_CHARS_MAX + 1))


@given(text=st.one_of(st.text(), st.text("023456789acdefghjklmnpqrstuvwxyz", max_size=400).map("lnbcrt1".__add__)))
def test_any_text_is_an_invoice_or_a_peer_error(text: str) -> None:
    with pytest.raises(PeerError):
        invoice.read(text)


@given(position=st.integers(0, 10_000), digit=st.integers(0, 31), cut=st.integers(0, 30))
def test_a_changed_invoice_with_a_mended_checksum_is_not_the_payees(position: int, digit: int, cut: int) -> None:
    readable, data = bech32_decode(made())
    assert readable is not None
    assert data is not None
    changed = list(data)
    changed[position % len(data)] = digit
    del changed[len(changed) - 104 - cut : len(changed) - 104]
    if changed == data:
        return
    try:
        read = invoice.read(bech32_encode(readable, changed))
    except PeerError:
        return
    assert read.payee != PAYEE  # the key is recovered from the signature, so other content gives another key


@given(fives=st.lists(st.integers(0, 31), max_size=500))
def test_any_signed_fields_are_an_invoice_or_a_peer_error(fives: list[int]) -> None:
    try:
        read = invoice.read(signed("lnbcrt1u", STAMP + PAIR + MEMO + fives))
    except PeerError:
        return
    assert read.payment_hash == HASH


def test_random_signatures_never_crash() -> None:
    readable, body = parts(made())
    for _ in range(50):
        try:
            read = invoice.read(str(bech32_encode(readable, body + invoice._fives(secrets.token_bytes(65)))))
        except PeerError:
            continue
        assert read.payee != PAYEE
