"""The proof of a WireGuard key: good for one landlord, method, request and session, and once."""

from __future__ import annotations

import hmac
from dataclasses import replace
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from ngp.calls import proof as proofs
from ngp.calls.proof import MOST_AHEAD_US, Proofs, prove
from ngp.core.rental.calls import Call
from ngp.errors import ProofError

CALL = Call("GetStatus", b"request")
NOW_S = 1000.0


def new_key() -> tuple[X25519PrivateKey, bytes]:
    made = X25519PrivateKey.generate()
    return made, made.public_key().public_bytes_raw()


TENANT, KEY = new_key()
OTHER, OTHERS_KEY = new_key()
TUNNEL, _ = new_key()
LANDLORD = bytes(range(32))


@pytest.fixture
def landlord() -> Proofs:
    return Proofs(LANDLORD, TUNNEL, NOW_S)


def test_whoever_has_the_key_proves_it(landlord: Proofs) -> None:
    landlord.check(CALL, 1, [(KEY, prove(TENANT, landlord.session(NOW_S), CALL))], NOW_S)


def test_the_proof_is_what_the_protocol_says() -> None:
    """Computed a second time, from the standards alone: others must be able to implement it."""
    landlord = Proofs(LANDLORD, TUNNEL, NOW_S)
    session = landlord.session(NOW_S)
    product = TENANT.exchange(X25519PublicKey.from_public_bytes(session.tunnel_key))
    extracted = hmac.digest(session.id, product, sha256)
    label = b"ngp proof of a WireGuard key v1" + LANDLORD + KEY + session.tunnel_key
    key = hmac.digest(extracted, label + b"\x01", sha256)
    assert prove(TENANT, session, CALL) == hmac.digest(key, b"\x09GetStatus" + CALL.request, sha256)


@pytest.mark.parametrize("what", ["method", "request", "key", "landlord", "tunnel", "session", "none", "long"])
def test_a_proof_of_something_else_is_refused(landlord: Proofs, what: str) -> None:
    session = landlord.session(NOW_S)
    another = Proofs(LANDLORD, OTHER if what == "tunnel" else TUNNEL, NOW_S).session(NOW_S)
    shown = {
        "method": lambda: prove(TENANT, session, Call("Rekey", CALL.request)),
        "request": lambda: prove(TENANT, session, Call(CALL.method, CALL.request + b"\0")),
        "key": lambda: prove(OTHER, session, CALL),
        "landlord": lambda: prove(TENANT, replace(session, landlord=bytes(32)), CALL),
        "tunnel": lambda: prove(TENANT, another, CALL),
        "session": lambda: prove(TENANT, another, CALL),
        "none": lambda: b"",
        "long": lambda: prove(TENANT, session, CALL) + b"\0",
    }[what]()
    with pytest.raises(ProofError, match="doesn't fit"):
        landlord.check(CALL, 1, [(KEY, shown)], NOW_S)
    assert not landlord._last, "something is remembered of a stranger"


def test_the_method_can_not_be_moved_into_the_request(landlord: Proofs) -> None:
    shown = prove(TENANT, landlord.session(NOW_S), Call("Get", b"StatusX"))
    with pytest.raises(ProofError):
        landlord.check(Call("GetStatus", b"X"), 1, [(KEY, shown)], NOW_S)


@pytest.mark.parametrize("key", [bytes(32), b"\x01" + bytes(31)])
def test_a_key_whose_product_is_always_zero_is_refused(landlord: Proofs, key: bytes) -> None:
    with pytest.raises(ProofError):
        landlord.check(CALL, 1, [(key, bytes(32))], NOW_S)


def test_a_request_is_accepted_once_and_numbers_only_grow(landlord: Proofs) -> None:
    shown = [(KEY, prove(TENANT, landlord.session(NOW_S), CALL))]
    landlord.check(CALL, 500, shown, NOW_S)
    for again in (500, 499, 1, 0):
        with pytest.raises(ProofError, match="isn't above"):
            landlord.check(CALL, again, shown, NOW_S)
    landlord.check(CALL, 501, shown, NOW_S)


def test_no_number_is_ahead_of_the_clock(landlord: Proofs) -> None:
    shown = [(KEY, prove(TENANT, landlord.session(NOW_S), CALL))]
    for ahead in (2**64 - 1, 5_000_000 + MOST_AHEAD_US + 1):
        with pytest.raises(ProofError, match="ahead"):
            landlord.check(CALL, ahead, shown, NOW_S + 5)
    landlord.check(CALL, 5_000_000, shown, NOW_S + 5)


def test_two_keys_are_accepted_together_or_not_at_all(landlord: Proofs) -> None:
    session = landlord.session(NOW_S)
    right, wrong = prove(OTHER, session, CALL), bytes(32)
    with pytest.raises(ProofError):
        landlord.check(CALL, 7, [(KEY, prove(TENANT, session, CALL)), (OTHERS_KEY, wrong)], NOW_S)
    landlord.check(CALL, 7, [(KEY, prove(TENANT, session, CALL)), (OTHERS_KEY, right)], NOW_S)
    with pytest.raises(ProofError):
        landlord.check(CALL, 7, [(OTHERS_KEY, right)], NOW_S)


@effort(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 60)), max_size=40))
def test_nothing_is_accepted_twice_however_many_keys_come_between(calls: list[tuple[int, int]]) -> None:
    """A key that was forgotten, as others came, can't use its numbers again."""
    tenants = [new_key() for _ in range(6)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proofs, "_MOST_KEYS", 2)
        landlord, used = Proofs(LANDLORD, TUNNEL, NOW_S), set[tuple[int, int]]()
        session = landlord.session(NOW_S)
        for who, nonce in calls:
            secret, public = tenants[who]
            try:
                landlord.check(CALL, nonce, [(public, prove(secret, session, CALL))], NOW_S)
            except ProofError:
                continue
            assert (who, nonce) not in used
            used.add((who, nonce))
        assert len(landlord._last) <= 2


def test_a_flood_of_keys_can_not_lock_others_out_for_longer_than_a_moment(landlord: Proofs) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proofs, "_MOST_KEYS", 2)
        session = landlord.session(NOW_S)
        for nonce in range(MOST_AHEAD_US - 4, MOST_AHEAD_US + 1):
            secret, public = new_key()
            landlord.check(CALL, nonce, [(public, prove(secret, session, CALL))], NOW_S)
        later_s = NOW_S + MOST_AHEAD_US / 1e6 + 0.001
        nonce = landlord.session(later_s).clock_us
        landlord.check(CALL, nonce, [(KEY, prove(TENANT, session, CALL))], later_s)
