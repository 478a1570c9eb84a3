"""Verbs: the table of all commands of `ngp`.

The command line, its help and the chapter "Verbs" of docs/operators-guide.md come from here. A test compares the three,
so there is no undocumented verb. A verb's module is imported only when it is used: on a router with slow flash
`ngp status` must not load what `ngp top` needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import click

from ngp.cli import aftermath
from ngp.cli.client import Absent
from ngp.cli.place import Place


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb.

    Attributes:
        name: as typed; ngp/cli/<name>.py has its `command`.
        words: the words that may follow, for usage and guide, without --state-dir and --config, which every verb has.
        summary: one line.
        teaching: a paragraph on what the verb does, and on its exit code.
        examples: commands to copy, with explanations.
    """

    name: str
    words: str
    summary: str
    teaching: str
    examples: tuple[tuple[str, str], ...]

    @property
    def reads(self) -> bool:
        """Say whether it takes --json."""
        return "[--json]" in self.words


VERBS = (
    Verb(
        "start", "[-v] [--foreground]", "start the daemon; returns when gate and link are ready",
        "Starts the daemon and returns 0 when traffic is gated and neighbours are answered. The daemon runs on in "
        "the background and writes STATE_DIR/ngp.log. A second daemon on the same state directory, or in the same "
        "network namespace, is refused.",
        (("sudo ngp start -v", "start, with the daemon's messages on this terminal"),
         ("sudo ip netns exec lab ngp start --config ./net.conf --state-dir /run/ngp-test", "one more, in a namespace"),
         ("ngp start --foreground", "stay in the foreground: for systemd (Type=notify) and containers")),
    ),
    Verb(
        "stop", "", "stop the daemon and remove all that it put into the kernel",
        "Returns when the daemon has ended and nothing of it is left in the kernel. If the daemon was killed, this "
        "command cleans up itself. WHEN_STOPPED in net.conf says whether traffic passes afterwards; if it is open, "
        "what an earlier stop closed is opened too, although no daemon runs.",
        (("sudo ngp stop", "stop, or clean up after a daemon that was killed"),),
    ),
    Verb(
        "close", "", "drop traffic from and to mesh interfaces until ngp starts, if WHEN_STOPPED is closed",
        "For a machine that boots: with WHEN_STOPPED closed `ngp stop` leaves a firewall rule, which a reboot loses. "
        "The interfaces needn't exist yet. With WHEN_STOPPED open the command does nothing. If a daemon runs, or was "
        "killed, the command is refused.",
        (("sudo ngp close", "what ngp-closed.service does before the network is up"),),
    ),
    Verb(
        "server", "COMMAND",
        "give the daemon a command in one string: test, stop, payment ACCOUNT AMOUNT, fault NAME VALUE",
        "`test` prints `Test OK` if the daemon answers. `payment ACCOUNT AMOUNT` credits a neighbour's account with "
        "play money, in the sandbox only; an amount without unit is msat. `fault NAME VALUE` makes the sandbox "
        "misbehave like a real node on a bad day: slow SECONDS, and stuck, failed, lost reply, duplicate, down, each "
        "on or off. "
        "`stop` is `ngp stop`.",
        (("ngp server test", "ask whether the daemon answers"),
         ('ngp server "payment 02ab34 1000 sat"', "credit a neighbour in the sandbox"),
         ('ngp server "fault slow 3"', "sandbox payments take 3 s more, until `fault slow off`")),
    ),
    Verb(
        "check", "[--json]", "look for what is missing, and say how to mend it",
        "Looks at net.conf, the kernel, forwarding, NAT, the way back, your firewall, payment node, ledger and its "
        "sums, with or without a running daemon, and changes nothing. Without a daemon, a gate that is still in force "
        "and interfaces that are kept closed count as faults. With a running daemon it checks the file's settings, in "
        "force or not, and says what `ngp reload` or a restart would change; but it can't try another payment node. "
        "The exit code is 0 if all is well, else that of the first fault: 3 configuration, 4 kernel or rights, 5 "
        "payment, 6 ledger.",
        (("sudo ngp check", "before the first start"),
         ("sudo ngp check --config ./net.conf", "check a file before it is put in place")),
    ),
    Verb(
        "status", "[--json]", "show the daemon's state: interfaces, queue, payment, counters",
        "One page about the running daemon. If none runs, it says what a killed daemon left in the kernel, and the "
        "exit code is 7.",
        (("ngp status", "for you"), ("ngp status --json", "for a script")),
    ),
    Verb(
        "contracts", "[--all] [--by-destination] [--json]", "list the contracts that run",
        "A contract is one destination bought from, or sold to, one neighbour. Bytes are those on the wire; `to` is "
        "towards the destination in both roles. In a client's rows `billed` is what the server's statement says.",
        (("ngp contracts", "running contracts"),
         ("ngp contracts --all --json", "also closed ones; works without a daemon"),
         ("ngp contracts --by-destination", "sums for each destination")),
    ),
    Verb(
        "accounts", "[--json]", "list what neighbours paid and owe, and what we paid them",
        "One line for each neighbour and role, never netted: `server` where it buys from us, `client` where we buy. "
        "Paid is always charged + refunded + balance; the balance is negative while grace is used. Where we sell, the "
        "line shows the grace that we give; where we buy, the server's bill beside the count of our own meter.",
        (("ngp accounts", "works without a daemon too"),),
    ),
    Verb(
        "neighbours", "[--json]", "list the neighbours that were heard",
        "A neighbour is a key on a link; the same key on two links has one account. A blocked neighbour is listed even "
        "if it is on no link.",
        (("ngp neighbours", "who is there, and where"),),
    ),
    Verb(
        "ledger", "[--csv] [--since TIME] [--json]", "list payments, charges, refunds and contract changes",
        "Oldest first. TIME is an age (`90 min`, `2 days`; a bare number is seconds) or a date and time in UTC "
        "(`2030-01-31`, `2030-01-31T08:00`). Works without a daemon too.",
        (("ngp ledger --since '1 day'", "the last 24 hours"),
         ("ngp ledger --csv > ledger.csv", "everything, for a spreadsheet")),
    ),
    Verb(
        "reload", "", "apply a changed net.conf without touching live contracts",
        "The daemon reads its file again; so does SIGHUP. A bad file changes nothing and ends with 3. Keys that need a "
        "restart are named.",
        (("sudo ngp reload", "after net.conf was edited"),),
    ),
    Verb(
        "top", "[--interval S] [--count N]", "watch contracts and accounts with their rates",
        "A live view; without a terminal, one line per refresh. Ctrl-C ends it.",
        (("ngp top", "watch"), ("ngp top --interval 5 --count 12 >> rates.log", "a minute's rates for a script")),
    ),
    Verb(
        "block", "NEIGHBOUR", "stop all trade with a neighbour",
        "Closes the neighbour's contracts and ignores its messages, also after restarts, until `ngp unblock`. What it "
        "prepaid stays its money: see `ngp refund`. NEIGHBOUR is the key, its first letters, or an address.",
        (("ngp block 7f3a", "by the first letters of its key"), ("ngp block 192.0.2.7", "by its address")),
    ),
    Verb(
        "unblock", "NEIGHBOUR", "allow trade with a blocked neighbour again",
        "Undoes `ngp block`. NEIGHBOUR is the key, its first letters, or an address.",
        (("ngp unblock 7f3a", ""),),
    ),
    Verb(
        "refund", "NEIGHBOUR [--ask]", "pay a neighbour's remaining balance back, or ask for ours",
        "Asks the neighbour for an invoice over the money that no contract needs, and pays it within the budgets. "
        "--ask: asks the neighbour for our remaining balance; the neighbour pays at once if its REFUND_WHEN_ASKED is "
        "yes, else its operator decides. NEIGHBOUR is the key, its first letters, or an address.",
        (("ngp refund 7f3a", "when a neighbour leaves for good"),
         ("ngp block 7f3a; ngp refund 7f3a --ask", "when we leave: `block` ends the contracts, which reserve money")),
    ),
    Verb(
        "rentals", "[offers] [off RENTAL] [on RENTAL] [release RENTAL] [--all] [--yes] [--json]",
        "list what this router lets, and what tenants may rent; switch a rental off or on, or end it",
        "Without more words: the rentals, with credit and traffic; --all: released ones too. `offers` shows the terms, "
        "and how many rentals the pools have room for. `off` stops a rental's tunnel, and no rent is owed meanwhile; "
        "`on` undoes it. `release` gives the addresses back, and others may rent them; credit that is left stays the "
        "tenant's. `off` and `release` ask first (--yes: don't). RENTAL is the id, the tenant's WireGuard key, the "
        "first letters of either, or an address.",
        (("ngp rentals", "works without a daemon too"),
         ("ngp rentals offers --json", "what tenants may rent, for a script"),
         ("ngp rentals off 203.0.113.7", "a tenant sends spam, for example"),
         ("ngp rentals release 7f3a --yes", "for good, without a question")),
    ),
    Verb(
        "lightning",
        "COMMAND [--amount SAT] [--push SAT] [--csv-delay BLOCKS] [--host HOST:PORT] [--untried] [--json]",
        "the Lightning node behind the payments: status, open NEIGHBOUR, tower, connect",
        "`status` shows the node, its channels, what they can send and receive, how long each side waits for its "
        "coins (CSV delay), which watchtowers have our backups, and the next command if something doesn't suit. "
        "`open` connects to a neighbour's node and opens a private channel with it. `tower add PUBKEY@HOST:PORT` lets "
        "a watchtower punish old states of our channels while our node is away; `tower list` shows the backups that "
        "each watchtower got; after `tower remove PUBKEY` it gets no more. `open` and `tower` need a macaroon that "
        "allows them; without that right the error says how to make such a macaroon. `connect` asks for an "
        "lndconnect:// URI, tries it once (not with --untried), and keeps it in the state directory, mode 0600; the "
        "previous one is kept as lnd-connect.before.",
        (("ngp lightning status", "what can be sent and received"),
         ("ngp lightning open 7f3a --amount 500000", "a channel of 500,000 sat with a neighbour"),
         ("ngp lightning tower add 02ab...@192.0.2.1:9911", "a watchtower; `lncli tower info` there shows its key"),
         ("sudo ngp lightning connect", "paste the URI of an LND node, once")),
    ),
    Verb(
        "rent",
        "COMMAND [--amount SAT] [--name NAME] [--offer NAME] [--face FACE] [--invoice BOLT11] [--no-pay] [--up] "
        "[--once] [--yes] [--json]",
        "rent static addresses from landlords: trust, offers, new, add, status, up, rekey, refund, autopay",
        "`trust NAME HOST[:PORT] PIN` keeps a landlord, if it answers as PIN demands: PIN is the SHA-256 of its "
        "certificate or, with --face grpc, its identity or its Lightning node's key. `trust NAME KEY` keeps a "
        "neighbour in the mesh, which our daemon asks. `landlords` lists them, `distrust NAME` forgets one. `offers "
        "[LANDLORD]` shows terms, and which TENANT_ limit of net.conf refuses them. `new LANDLORD` rents, with the "
        "landlord's least credit unless --amount says more; `add RENTAL` adds credit, a month's rent unless --amount "
        "says otherwise. Both show the sum, ask, and pay by the node of PAYMENT_INTERFACE within FEE_LIMIT and the "
        "budgets; with --no-pay they show the invoice with its QR code, and wait. `status [RENTAL]` shows networks, "
        "credit, and whether the tunnel works. `conf RENTAL` gets the WireGuard file again, `up` and `down` bring the "
        "tunnel up and down: only packets from the rented networks use it, or everything with TENANT_ALL_TRAFFIC. "
        "`refund RENTAL` fetches what is left of a rental that is over, to our node, or with the --invoice of another "
        "wallet; --amount takes a part. `rekey "
        "RENTAL` changes its WireGuard key, `forget RENTAL` drops it. `autopay [RENTAL...]` keeps the credit within "
        "the TENANT_ limits, for as long as the tunnel works; it reads net.conf again when the file changes, and never "
        "ends with 0 unless --once was given. RENTAL is the name, the interface, the first letters of the key, or an "
        "address. `staticIP` does the same with the files of the published StaticWire client.",
        (("sudo ngp rent trust example 192.0.2.1 873c30...b2d", "the fingerprint comes from the landlord"),
         ("sudo ngp rent trust next 94a5271e", "a neighbour, by the first letters of its key"),
         ("sudo ngp rent new example --name shop", "rent, paid by our node"),
         ("sudo ngp rent up shop; sudo ngp rent autopay shop", "use it, and keep the credit")),
    ),
    Verb(
        "backup", "FILE", "copy the ledger, also while the daemon runs",
        "The copy is complete and checked before FILE appears. An older backup of that name is replaced, any other "
        "file is not. A backup shows who has paid what, so only its owner can read it.",
        (("sudo ngp backup /var/backups/ledger-$(date +%F).db", "a backup per day"),),
    ),
)  # fmt: skip

_BY_NAME = {verb.name: verb for verb in VERBS}

_COMMON = (
    ("--state-dir", "DIR", "state directory of the daemon (also NGP_STATE_DIR)"),
    ("--config", "FILE", "configuration file [/etc/ngp/net.conf, else ./net.conf]"),
)


def guide_row(verb: Verb) -> str:
    """Return the line of the chapter "Verbs" for a verb."""
    return f"| `{' '.join(filter(None, ('ngp', verb.name, verb.words)))}` | {verb.summary} |"


def verb_command(name: str, *parameters: click.Parameter) -> Callable[[Callable[..., int]], click.Command]:
    """Make a function the command of a verb.

    The function gets a `Place`, its parameters by name and, if the verb takes --json, `as_json`; it returns the exit
    code.
    """
    verb = _BY_NAME[name]
    options = [*parameters]
    if verb.reads:
        options.append(click.Option(["--json", "as_json"], is_flag=True, help="print JSON, for scripts"))
    options += [click.Option([flag], metavar=metavar, help=text) for flag, metavar, text in _COMMON]

    def make(function: Callable[..., int]) -> click.Command:
        def callback(state_dir: str | None, config: str | None, **words: Any) -> int:
            place = Place(state_dir, config)
            try:
                return function(place, **words)
            except Absent as absent:
                raise Absent("\n".join(filter(None, (str(absent), aftermath.told(place))))) from absent

        return click.Command(name, params=options, callback=callback, help=_help(verb), short_help=verb.summary)

    return make


def _help(verb: Verb) -> str:
    width = max(len(line) for line, _ in verb.examples)
    examples = "\n".join(f"  {line:{width}}  {what}".rstrip() for line, what in verb.examples)
    return f"{verb.summary[0].upper()}{verb.summary[1:]}.\n\n{verb.teaching}\n\n\b\nExamples:\n{examples}"


class VerbGroup(click.Group):
    """`ngp` itself: takes its verbs from the table and imports only the one that is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name the verbs in the order of the table."""
        return [verb.name for verb in VERBS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a verb's command."""
        if cmd_name not in _BY_NAME:
            return None
        found: click.Command = import_module(f"ngp.cli.{cmd_name}").command
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb of a command line. Raises click.UsageError, with the most similar verb if one is."""
        if args[0] not in _BY_NAME and not ctx.resilient_parsing:
            from difflib import get_close_matches  # late: it is needed for errors only

            near = get_close_matches(args[0].lower(), _BY_NAME, 1)
            ctx.fail(" ".join((f"No such command {args[0]!r}.", *(f"Did you mean {name!r}?" for name in near))))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table's summaries, without importing anything."""
        with formatter.section("Verbs"):
            formatter.write_dl([(verb.name, verb.summary) for verb in VERBS])
