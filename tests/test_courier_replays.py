"""The courier: nothing twice, nothing from before a restart, nothing caught on one link and played on another."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from two_couriers import ALICE, BOB, HELLO, MALLORY, TO_A, TO_B, TO_M, A, B, greet, note, only, pair, refused

from ngp.core.events import Undelivered
from ngp.courier import Courier
from ngp.delivery import Limits
from ngp.replay import WINDOW, ReplayWindow


def test_a_replay_on_another_link_is_refused_and_the_first_copy_too() -> None:
    alice, bob = pair()
    datagram = only(alice.send(B, TO_B, note(1), 0.0))
    assert refused(bob, datagram, TO_M) == "unknown"
    assert bob.receive(datagram, TO_A, 0.0) is not None
    assert refused(bob, datagram, TO_M) == "replayed"


def test_nothing_from_before_our_restart_is_taken() -> None:
    alice, bob = pair()
    recorded = [only(alice.send(B, TO_B, note(number), 0.0)) for number in range(3)]
    recorded.append(only(alice.send(B, TO_B, HELLO, 0.0)))
    broadcast = only(alice.send(None, None, HELLO, 0.0))
    bob = Courier(BOB, 2)
    assert {refused(bob, datagram, TO_M) for datagram in recorded} == {"stale"}
    played = bob.receive(broadcast, TO_M, 0.0)
    assert played is not None and not played.proven and not bob.is_proven(A, TO_M)
    assert refused(bob, broadcast, TO_M) == "replayed"
    assert {refused(bob, datagram, TO_M) for datagram in recorded} == {"stale"}
    greet(bob, alice, TO_A, TO_B)
    assert {refused(bob, datagram, TO_A) for datagram in recorded} == {"stale"}
    assert bob.receive(only(alice.send(B, TO_B, note(9), 0.0)), TO_A, 0.0) is not None


def test_a_neighbours_restart_resets_its_window_and_ends_what_was_under_way() -> None:
    alice, bob = pair(boot_a=5)
    old = [only(alice.send(B, TO_B, note(1), 0.0)), only(alice.send(None, None, HELLO, 0.0))]
    bob.send(A, TO_A, note(7), 0.0)
    reborn = Courier(ALICE, 6)
    greet(reborn, bob, TO_B, TO_A)
    assert bob.outcomes() == [Undelivered(A, TO_A, note(7))]
    assert [refused(bob, datagram, TO_A) for datagram in old] == ["stale", "stale"]
    assert bob.receive(only(reborn.send(B, TO_B, note(2), 0.0)), TO_A, 0.0) is not None


def test_a_new_life_begins_with_a_hello() -> None:
    """A message of a later boot that comes before its hello isn't accepted because an earlier boot was proven."""
    _, bob = pair(boot_a=1)
    other = Courier(ALICE, 2)
    greet(other, Courier(BOB, 1), TO_B, TO_A)
    assert refused(bob, only(other.send(B, TO_B, note(1), 0.0)), TO_A) == "unknown"


def test_a_forgotten_neighbours_messages_stay_used_up() -> None:
    alice, bob = pair()
    hello = only(alice.send(B, TO_B, HELLO, 0.0))
    message = only(alice.send(B, TO_B, note(1), 0.0))
    bob.receive(hello, TO_A, 0.0)
    bob.receive(message, TO_A, 0.0)
    bob.forget(A)
    assert refused(bob, message, TO_A) == "unknown"
    bob.send(A, TO_A, HELLO, 0.0)  # remembers it again
    assert refused(bob, hello, TO_A) == "replayed"
    greet(alice, bob, TO_B, TO_A)
    assert bob.receive(only(alice.send(B, TO_B, note(2), 0.0)), TO_A, 0.0) is not None


def test_our_sequences_go_on_after_forgetting() -> None:
    alice, bob = pair()
    alice.forget(B)
    greet(alice, bob, TO_B, TO_A)
    assert bob.receive(only(alice.send(B, TO_B, note(2), 0.0)), TO_A, 0.0) is not None


def test_our_own_and_foreign_datagrams() -> None:
    alice, bob = pair()
    mallory = Courier(MALLORY, 1)
    assert refused(alice, only(alice.send(None, None, HELLO, 0.0)), TO_B) == "own"
    assert refused(mallory, only(alice.send(B, TO_B, note(1), 0.0)), TO_A) == "foreign"
    assert refused(bob, b"\0" * 1281, TO_A) == "oversized"


def test_a_malformed_message_leaves_its_sequence_unused() -> None:
    alice, bob = pair()
    datagram = only(alice.send(B, TO_B, note(1), 0.0))
    junk = datagram[:-1] + bytes([datagram[-1] ^ 1])
    assert refused(bob, junk, TO_A) == "signature"
    assert bob.receive(datagram, TO_A, 0.0) is not None


# --- replay window ----------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 3 * WINDOW), max_size=300))
def test_the_replay_window_knows_the_same_counts_as_a_set(counts: list[int]) -> None:
    window, seen, highest = ReplayWindow(), set[int](), 0
    for count in counts:
        assert window.is_stale(count) == (count <= highest - WINDOW)
        if not window.is_stale(count):
            assert window.has(count) == (count in seen)
            if count not in seen:
                window.add(count)
                seen.add(count)
                highest = max(highest, count)


def test_limits_keep_a_message_under_way_inside_the_window() -> None:
    assert Limits().in_flight <= WINDOW // 2
