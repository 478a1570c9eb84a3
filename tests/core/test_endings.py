"""Endings: what a server ended by itself is asked for again, whatever its server, other servers and clients do."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from mesh import HOST, PLENTY, Mesh
from playbook import Sim, account, settings, tell
from scripted_neighbour import ScriptedNeighbour, host, messages

from ngp.core import effects as fx
from ngp.core import events as ev
from ngp.core.contract import CloseReason
from ngp.core.kernel import Reading
from ngp.core.messages import Accept, Ask, Cancel, Reject, RejectReason, Statement
from ngp.core.selling.account import MOST_UNTOLD
from ngp.core.selling.endings import MOST_STRANGER_TOLD_AGAIN

DESTINATION = ip_network(f"{HOST}/32")


def buys(mesh: Mesh, name: str, server: str) -> bool:
    """Say whether a node buys HOST from a server now."""
    found = mesh[name].world.purchases.find(mesh[server].identity, ip_address(HOST))
    return found is not None and found.running


def download(mesh: Mesh, name: str, server: str) -> None:
    """Let a node send a little to HOST by its purchase, and get much from there."""
    at, purchase = mesh[name], mesh[name].purchase(server)
    mesh.count(name, purchase.id, 3000)
    to_bytes, from_bytes = at.counts[purchase.id]
    at.counts[purchase.id] = [to_bytes, from_bytes + 100_000]
    at.step(ev.UsageRead((Reading(purchase.id, to_bytes, from_bytes + 100_000, False),)))


def loses_its_contract(mesh: Mesh) -> None:
    """Let b end a's contract, which carried something, while a's questions get lost."""
    mesh.packet("a", "b")
    mesh.carry("ab", 10_000)
    mesh.lost = {Ask}
    mesh["b"].end("a")
    mesh.lost = set()


def is_refused(mesh: Mesh, reason: RejectReason) -> None:
    """Let a hear that b doesn't sell DESTINATION."""
    refusal = Reject(b"", reason, destination=DESTINATION)
    mesh["a"].step(ev.MessageReceived(mesh["b"].identity, mesh["a"].link("b"), 1, refusal, 1 << 40))


@pytest.mark.parametrize("reason", [RejectReason.BUSY, RejectReason.UPSTREAM])
def test_a_download_goes_on_though_the_first_question_was_refused_for_a_moment(reason: RejectReason) -> None:
    mesh = Mesh("ab")
    loses_its_contract(mesh)
    is_refused(mesh, reason)
    mesh.wait(1)
    assert buys(mesh, "a", "b")


def test_a_refusal_that_lasts_ends_the_questions() -> None:
    mesh = Mesh("ab")
    loses_its_contract(mesh)
    at = mesh["a"]
    is_refused(mesh, RejectReason.NOT_SELLING)
    before = len(at.sent(Ask))
    mesh.wait(5)
    assert len(at.sent(Ask)) == before


def test_a_download_goes_on_when_a_node_in_the_middle_could_not_pay_for_a_moment() -> None:
    mesh = Mesh("abc")
    at = mesh["b"]
    mesh.packet("a", "b")
    mesh.carry("abc", 10_000)
    account = at.world.servers[mesh["c"].identity]
    account.charged_msat += 1 << 40
    account.metered_msat += 1 << 40
    at.save(account)
    account.backoff.failures, account.backoff.not_before_mono_s = 1, mesh.now.monotonic_s + 3
    mesh.count("b", at.purchase("c").id, 1000)
    mesh.settle()
    assert not buys(mesh, "a", "b")
    mesh.wait(2)
    assert at.world.sales.find(mesh["a"].identity, ip_address(HOST)) is None, "a question leaves no refusal behind"
    mesh.wait(1)
    account.paid_msat += 1 << 41
    mesh.wait(2)
    assert buys(mesh, "a", "b")


def test_when_renewal_is_switched_off_nothing_is_asked_for_any_more() -> None:
    """Each offer shows that the destination is in use, which must not prolong the questions that caused it."""
    mesh = Mesh("ab")
    loses_its_contract(mesh)
    at = mesh["a"]
    at.step(ev.SettingsChanged(settings(**PLENTY, data_renewal_bytes=0, time_renewal_s=0)))
    before = len(at.sent(Ask))
    mesh.wait(60)
    assert len(at.sent(Ask)) == before and not at.world.buying.missed


def test_our_own_download_is_asked_for_again_though_an_idle_client_bought_the_same_destination() -> None:
    mesh = Mesh("abc")
    mesh.packet("a", "b")
    mesh.carry("abc", 10_000)
    mesh.wait(11)
    download(mesh, "b", "c")
    mesh["c"].end("b")
    assert buys(mesh, "b", "c")


def test_our_own_download_is_asked_for_again_though_a_neighbour_asked_for_its_price() -> None:
    mesh = Mesh("bc")
    mesh.add_client("x", "b")
    mesh.packet("b", "c")
    download(mesh, "b", "c")
    mesh.lost = {Accept, Reject}
    at = mesh["b"]
    question = Ask(DESTINATION, 0, 0)
    at.step(ev.MessageReceived(mesh["x"].identity, at.link("x"), 1, question, 1 << 41, onward=at.onward))
    mesh.settle()
    mesh.lost = set()
    assert at.world.resting[at.purchase("c").id], "the quote, which x never answers, rests on b's purchase"
    mesh["c"].end("b")
    assert buys(mesh, "b", "c")


def test_what_only_a_client_used_is_asked_for_by_the_client_alone() -> None:
    mesh = Mesh("abc")
    mesh.packet("a", "b")
    mesh.carry("abc", 10_000)
    mesh.lost = {Cancel}  # a doesn't hear of the end
    at, asked = mesh["b"], len(mesh["b"].sent(Ask))
    ended = Cancel(at.purchase("c").id, "upstream")
    at.step(ev.MessageReceived(mesh["c"].identity, at.link("c"), 1, ended, 1 << 40))
    mesh.settle()
    mesh.wait(5)
    assert not buys(mesh, "b", "c") and len(at.sent(Ask)) == asked


def two_servers(contracts: int) -> tuple[Sim, ScriptedNeighbour, ScriptedNeighbour, bytes, list[bytes]]:
    """Return a node that downloads from HOST by an honest server, and from many others by a hostile one."""
    sim = Sim(client=settings(grace_data_bytes=1 << 30))
    hostile = ScriptedNeighbour(sim, sim.client, b"B" * 32, b"\2bbbb\1")
    honest = ScriptedNeighbour(sim, sim.client, b"A" * 32, b"\2aaaa\1")
    honest.names = iter(range(1 << 20, 1 << 21))  # type: ignore[assignment]
    ours = honest.sell(str(DESTINATION))
    theirs = [contract for number in range(contracts) if (contract := hostile.sell(host(number)))]
    assert ours is not None and len(theirs) == contracts
    for contract in theirs:
        hostile.use(contract, 60, 60)
    honest.use(ours, 1000, 100_000)
    return sim, hostile, honest, ours, theirs


def test_a_server_that_ends_many_contracts_again_and_again_leaves_other_servers_their_questions() -> None:
    sim, hostile, honest, ours, theirs = two_servers(contracts=200)
    for contract in theirs:
        hostile.say(Cancel(contract, "upstream"))
    said = honest.say(Cancel(ours, "upstream"))  # asked for at once, and after 1, 3 and 7 s
    for _ in range(100):
        sim.now += 0.1
        said += hostile.tell(ev.Tick())
        for contract in theirs[:10]:
            hostile.say(Cancel(contract, "upstream"))
    assert len([one for one in messages(said, Ask) if one.destination == DESTINATION]) == 4


def test_an_end_that_is_told_again_causes_no_question() -> None:
    sim, hostile, _, _, theirs = two_servers(contracts=1)
    said: list[fx.Effect] = []
    for _ in range(50):
        said += hostile.say(Cancel(theirs[0], "upstream"))
        said += hostile.say(Reject(b"", RejectReason.NOT_SELLING, destination=ip_network(host(0))))
    assert len(messages(said, Ask)) == 1


def test_all_downloads_are_asked_for_again_though_many_end_at_once_and_questions_get_lost() -> None:
    many = 400
    sim, server, _, _, theirs = two_servers(contracts=many)
    said: list[fx.Effect] = []
    for contract in theirs:
        said += server.say(Cancel(contract, "upstream"))
    for _ in range(200):
        sim.now += 0.1
        said += server.tell(ev.Tick())
    assert {one.destination for one in messages(said, Ask)} == {ip_network(host(number)) for number in range(many)}


def downloads(sim: Sim, seconds: int) -> int:
    """Let a host send to the client, which answers nothing. Returns how many bytes passed."""
    before = sim.delivered_down
    for _ in range(seconds * 5):
        sim.down(HOST, 1000)
        sim.run(0.2)
    return sim.delivered_down - before


def ends_at_the_gateway(sim: Sim) -> None:
    """Let the gateway end its contract, which is in use, as when its way upstream is over."""
    (sale,) = sim.gateway.world.contracts.values()
    sim.gateway.world.effects = []
    sim.gateway.world.halt(sale, CloseReason.UPSTREAM)
    sim.carry_out(sim.gateway, sim.gateway.world.effects)


@pytest.mark.parametrize("after", range(8))
@pytest.mark.parametrize("killed", ["client", "gateway"])
def test_a_download_goes_on_whenever_a_side_is_killed_while_its_contract_ends(killed: str, after: int) -> None:
    sim = Sim()
    sim.flow(HOST, 50_000, 5)
    sim.run(0.3)
    getattr(sim, killed).crash_after = after  # so many effects, such as a message, are carried out before
    ends_at_the_gateway(sim)
    downloads(sim, 15)
    assert downloads(sim, 5) > 20_000


def test_a_download_goes_on_if_the_client_is_killed_before_it_hears_of_the_end() -> None:
    sim = Sim()
    sim.flow(HOST, 50_000, 5)
    sim.run(0.3)
    ends_at_the_gateway(sim)
    sim.run(0.012)  # the gateway's `Cancel` is on its way
    assert account(sim).untold
    sim.crash(sim.client)
    downloads(sim, 25)
    assert downloads(sim, 5) > 20_000
    assert not account(sim).untold, "the client has stored the end"


@pytest.mark.parametrize(("paid_msat", "most"), [(0, MOST_STRANGER_TOLD_AGAIN), (1000, MOST_UNTOLD)])
def test_a_client_that_is_back_hears_of_a_limited_number_of_ends(paid_msat: int, most: int) -> None:
    sim = Sim()
    client = sim.gateway.world.client(sim.client.identity)
    client.paid_msat = paid_msat
    for number in range(2 * MOST_UNTOLD):
        client.untold.note(number.to_bytes(16, "big"), "expired")
    neighbour = sim.gateway.world.peers.any_link(sim.client.identity)
    assert neighbour is not None
    neighbour.up = False
    told = messages(tell(sim, sim.gateway, sim.hello(sim.client, wants_reply=False)), Cancel)
    assert len(told) == most and told[0].contract == (2 * MOST_UNTOLD - 1).to_bytes(16, "big")


def test_a_client_that_never_paid_hears_of_the_other_ends_when_it_has_stored_the_first_ones() -> None:
    sim = Sim()
    client = sim.gateway.world.client(sim.client.identity)
    ends = [number.to_bytes(16, "big") for number in range(MOST_UNTOLD)]
    for end in ends:
        client.untold.note(end, "expired")
    neighbour = sim.gateway.world.peers.any_link(sim.client.identity)
    assert neighbour is not None
    neighbour.up = False
    told = messages(tell(sim, sim.gateway, sim.hello(sim.client, wants_reply=False)), Cancel)
    client.untold.pop(ends[-MOST_STRANGER_TOLD_AGAIN - 1])  # it stored this one meanwhile
    for stored in told:  # the list grows by each next one
        for again in range(2):
            stored_it = ev.Delivered(sim.client.identity, sim.client.link, stored)
            more = messages(sim.gateway.gatekeeper.step(stored_it, sim.clock()), Cancel)
            assert len(more) <= 1 - again, "one for one"
            told += more
    assert [one.contract for one in reversed(told)] == [one for one in ends if one != ends[-17]]
    assert not client.untold and not client.tell_next


@pytest.mark.parametrize("after", range(-1, 8))
def test_a_download_goes_on_though_a_new_contract_ends_unused_and_its_server_is_killed_then(after: int) -> None:
    sim = Sim()
    sim.flow(HOST, 50_000, 5)
    sim.run(0.3)
    ends_at_the_gateway(sim)
    for _ in range(300):
        sim.run(0.01)
        if any(sale.running for sale in sim.gateway.world.contracts.values()):
            break
    sim.run(0.05)
    sim.gateway.crash_after = after
    sim.gateway.world.effects = []
    for sale in [one for one in sim.gateway.world.contracts.values() if one.running]:
        sim.gateway.world.halt(sale, CloseReason.UPSTREAM)
    sim.carry_out(sim.gateway, sim.gateway.world.effects)
    sim.run(0.02)
    downloads(sim, 25)
    assert downloads(sim, 5) > 20_000


def test_our_own_download_is_asked_for_again_though_a_client_uses_the_same_destination_a_little() -> None:
    mesh = Mesh("abc")
    mesh.packet("a", "b")
    mesh.carry("abc", 10_000)
    mesh.wait(11)
    mesh.count("b", mesh["b"].sale("a").id, 60)  # one packet of a's
    mesh.count("b", mesh["b"].purchase("c").id, 60)
    download(mesh, "b", "c")
    mesh["a"].world.settings = settings(**PLENTY, buys=False)  # a doesn't ask
    mesh["c"].end("b")
    mesh.wait(10)
    assert buys(mesh, "b", "c")


@pytest.mark.parametrize("first", [Cancel, Statement])
def test_a_bill_is_acknowledged_whether_its_acknowledgement_or_that_of_the_end_comes_first(first: type) -> None:
    mesh = Mesh("ab")
    mesh.packet("a", "b")
    mesh.carry("ab", 10_000)
    at, sale = mesh["b"], mesh["b"].sale("a")
    at.said.clear()
    at.end("a")
    mesh.wait(1)
    said = [*at.sent(Cancel), *(one for one in at.sent(Statement) if one.lines)]
    for one in sorted(said, key=lambda one: type(one) is not first):
        at.step(ev.Delivered(mesh["a"].identity, at.link("a"), one))
    for _ in range(60):
        mesh.wait(5)
    (record,) = [one for one in at.ledger.contracts.values() if one.contract == sale.id]
    assert record.billed_bytes == record.used_bytes == 10_000
