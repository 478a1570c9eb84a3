"""A tenant changes its rental's key, whatever is killed or lost in between: one of the keys always opens the rental."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from shop import Shop, terms_by_grpc

from ngp.core.rental.events import ReleaseRental
from ngp.core.tenant.terms import TenantSettings
from ngp.errors import KernelError, LandlordError, LedgerError
from ngp.tenant import autopay, calls, files, interface, rekey
from ngp.tenant.books import Books, BooksFile
from ngp.tenant.calls import CallingLandlord
from ngp.tenant.grpc import GrpcPlace, grpc_landlord
from ngp.tenant.home import Home, Tunnel
from ngp.tenant.https import HttpsLandlord, LandlordPlace
from ngp.tenant.landlord import RefusedError


class Killed(BaseException):
    """The process dies."""


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    (tmp_path / "shop").mkdir()
    with closing(Shop(tmp_path / "shop", terms_by_grpc())) as made:
        yield made


@pytest.fixture
def landlord(shop: Shop) -> CallingLandlord:
    return grpc_landlord(GrpcPlace(*shop.terms.grpc[0], shop.identity.hex()))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "tenant")


@pytest.fixture
def tunnel(shop: Shop, home: Home, landlord: CallingLandlord) -> Tunnel:
    """A paid rental, beside another tunnel."""
    home.trust("x", landlord.place)  # type: ignore[arg-type]
    home.add_tunnel("other", landlord.place, "x")  # type: ignore[arg-type]
    made = home.add_tunnel("mine", landlord.place, "x")  # type: ignore[arg-type]
    assert shop.pay(landlord.ask(made, 24_000).bolt11)
    home.keep_conf(made, f"[Interface]\nPrivateKey = {made.private_key}\nMTU = 1420\n")
    return made


def present(home: Home) -> Tunnel:
    """Return the tunnel as the next process finds it."""
    found = Home(home.folder).tunnel("mine")
    assert found is not None
    return found


def test_all_but_the_key_stays(home: Home, landlord: CallingLandlord, tunnel: Tunnel) -> None:
    books, conf = home.state_path(tunnel), home.conf_path(tunnel)
    done = rekey.change(home, landlord, tunnel)
    assert done == present(home) and done.private_key != tunnel.private_key
    assert (done.interface, home.state_path(done), home.conf_path(done)) == (tunnel.interface, books, conf)
    assert conf.read_text() == f"[Interface]\nPrivateKey = {done.private_key}\nMTU = 1420\n"
    assert conf.stat().st_mode & 0o777 == 0o600
    assert tunnel.private_key not in (home.folder / "Config.yaml").read_text()
    assert landlord.status(done).payments == 1
    with pytest.raises(RefusedError):
        landlord.status(tunnel)
    again = rekey.change(home, landlord, done)
    assert again.interface == tunnel.interface and landlord.status(again).payments == 1


@pytest.mark.parametrize("place", ["kept", "asked", "answered", "tunnel", "file", "config"])
def test_a_kill_at_any_step_leaves_a_key_that_opens_the_rental(
    home: Home, landlord: CallingLandlord, tunnel: Tunnel, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(deed: Callable[..., Any], before: bool) -> Callable[..., Any]:
        def instead(*args: Any, **kwargs: Any) -> Any:
            if before:
                raise Killed
            deed(*args, **kwargs)
            raise Killed

        return instead

    with monkeypatch.context() as patch:
        if place == "kept":
            patch.setattr(landlord, "rekey", dying(landlord.rekey, before=True))
        elif place in ("asked", "answered"):
            patch.setattr(landlord, "rekey", dying(landlord.rekey, before=False))
        elif place == "tunnel":
            patch.setattr(interface, "change_key", dying(interface.change_key, before=True))
        elif place == "file":
            patch.setattr(files, "replace", dying(files.replace, before=False))
            home.begin_rekey = _without_patch(home, files.replace, patch)  # type: ignore[method-assign]
        else:
            patch.setattr(home, "end_rekey", dying(home.end_rekey, before=False))
        with pytest.raises(Killed):
            rekey.change(home, landlord, tunnel)
    later = Home(home.folder)
    found = rekey.present(later, landlord, present(home))
    assert landlord.status(found).payments == 1, "no key that is kept opens the rental"
    done = rekey.change(later, landlord, found) if found.private_key == tunnel.private_key else found
    assert landlord.status(done).payments == 1 and not present(home).next_private_key
    assert f"PrivateKey = {done.private_key}\n" in later.conf_path(done).read_text()


def _without_patch(home: Home, dying: Any, patch: pytest.MonkeyPatch) -> Callable[[Tunnel], Tunnel]:
    """Let the next key be kept before files can't be written any more."""
    begin = home.begin_rekey

    def instead(tunnel: Tunnel) -> Tunnel:
        with pytest.MonkeyPatch.context() as whole:
            whole.setattr(files, "replace", _replace)
            return begin(tunnel)

    return instead


_replace = files.replace


def test_a_lost_answer_is_asked_for_with_the_new_key(
    home: Home, landlord: CallingLandlord, tunnel: Tunnel, monkeypatch: pytest.MonkeyPatch
) -> None:
    carry = landlord._carry

    def losing(call: Any, proof: bytes) -> bytes:
        answer = carry(call, proof)
        if call.method == "Rekey":
            raise LandlordError("the line broke")
        return answer

    monkeypatch.setattr(landlord, "_carry", losing)
    done = rekey.change(home, landlord, tunnel)
    assert landlord.status(done).payments == 1 and done.private_key != tunnel.private_key


def test_a_request_that_was_lost_leaves_the_former_key(
    home: Home, landlord: CallingLandlord, tunnel: Tunnel, monkeypatch: pytest.MonkeyPatch
) -> None:
    carry = landlord._carry

    def losing(call: Any, proof: bytes) -> bytes:
        if call.method == "Rekey":
            raise LandlordError("the line broke")
        return carry(call, proof)

    with monkeypatch.context() as patch:
        patch.setattr(landlord, "_carry", losing)
        with pytest.raises(LandlordError, match="the old key still holds"):
            rekey.change(home, landlord, tunnel)
    assert present(home).private_key == tunnel.private_key and landlord.status(present(home)).payments == 1
    assert landlord.status(rekey.change(home, landlord, present(home))).payments == 1


def test_a_landlord_that_is_away_is_named_with_the_way_to_finish(
    home: Home, landlord: CallingLandlord, tunnel: Tunnel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(call: Any, proof: bytes) -> bytes:
        raise LandlordError("can't be reached")

    with monkeypatch.context() as patch:
        patch.setattr(landlord, "_carry", away)
        with pytest.raises(LandlordError, match="both keys are kept, and ngp rent rekey mine finishes"):
            rekey.change(home, landlord, tunnel)
    found = present(home)
    assert found.private_key == tunnel.private_key and found.next_private_key
    assert landlord.status(rekey.change(home, landlord, found)).payments == 1


def test_a_refusal_drops_the_next_key(shop: Shop, home: Home, landlord: CallingLandlord, tunnel: Tunnel) -> None:
    rental = shop.do(lambda: next(iter(shop.landlord.world.letting.rentals)))
    shop.do(lambda: shop.landlord.happen(ReleaseRental(rental)))
    with pytest.raises(RefusedError, match="no rental has the WireGuard key that you"):
        rekey.change(home, landlord, tunnel)
    assert not present(home).next_private_key and present(home).private_key == tunnel.private_key


def test_a_tunnel_that_can_not_be_told_is_named_after_the_key_was_changed(
    home: Home, landlord: CallingLandlord, tunnel: Tunnel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interface, "is_up", lambda _interface: True)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(KernelError, match="ngp rent down") as caught:
        rekey.change(home, landlord, tunnel)
    done = present(home)
    assert done.private_key not in str(caught.value) and landlord.status(done).payments == 1


def test_https_says_where_a_key_can_be_changed(home: Home, tunnel: Tunnel) -> None:
    with pytest.raises(LandlordError, match="--face grpc"):
        HttpsLandlord(LandlordPlace("192.0.2.1", 443, "ab" * 32)).rekey(tunnel, tunnel)


def test_no_tenant_hears_of_a_key_that_a_crash_of_the_landlord_would_undo(
    shop: Shop, home: Home, landlord: CallingLandlord, tunnel: Tunnel
) -> None:
    """The landlord's ledger can't be written: it knows the new key, and forgets it if it is killed now."""
    letting, happen = shop.landlord.letting, shop.landlord.happen

    def unwritten(event: Any) -> None:
        shop.landlord.gatekeeper.step(event, shop.landlord.clock())
        raise LedgerError("the disk is full")

    letting._obey = unwritten
    with pytest.raises(LandlordError, match="both keys are kept"):
        rekey.change(home, landlord, tunnel)
    letting._obey = happen
    shop.restart()
    found = rekey.present(Home(home.folder), landlord, present(home))
    assert found.private_key == tunnel.private_key and landlord.status(found).payments == 1


def test_both_keys_prove_the_same_request(landlord: CallingLandlord, tunnel: Tunnel, home: Home) -> None:
    sent: list[tuple[str, int]] = []
    carry = landlord._carry

    def noting(call: Any, proof: bytes) -> bytes:
        sent.append((call.method, len(proof)))
        return carry(call, proof)

    landlord._carry = noting
    rekey.change(home, landlord, tunnel)
    assert (calls.REKEY, 64) in sent


def test_autopay_goes_on_with_a_key_that_another_process_changed(
    home: Home, landlord: CallingLandlord, tunnel: Tunnel
) -> None:
    """Also if that process was killed before it had noted that the landlord knows the key."""

    class NothingPending:
        async def finish(self) -> Books:
            return books.read()

    books, limits = BooksFile(home.state_path(tunnel)), TenantSettings().limits
    payer: Any = NothingPending()
    kept = autopay.Kept(home, tunnel, landlord, books, payer, mock.Mock(), lambda: limits, lambda: 0)
    status = landlord.status(tunnel)
    quote: Any = mock.Mock(asked=mock.Mock(status=status))
    autopay.take_over(home, tunnel, quote, status)
    assert asyncio.run(autopay.look(kept)) > 0
    rekey.change(Home(home.folder), landlord, tunnel)
    assert asyncio.run(autopay.look(kept)) > 0
    changed = present(home)
    landlord.rekey(changed, Home(home.folder).begin_rekey(changed))
    assert asyncio.run(autopay.look(kept)) > 0
    assert present(home).public_key != changed.public_key and not present(home).next_private_key
