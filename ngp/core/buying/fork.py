"""Fork: what we know of a prefix to which several neighbours could carry our traffic, and of these neighbours' quality.

`ngp.core.buying.choosing` has the rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ngp.core.kernel import Fork, Router
from ngp.core.messages import Prefix

GAIN = 1.1
"""Another neighbour is chosen if the present one costs more than this times as much: then equal offers never alternate,
nor do two whose measured quality varies a little."""

_ANSWER_WEIGHT = 1 / 32  # of one question in the share of answers
_DELAY_WEIGHT = 1 / 8  # of one answer in the mean delay
_HALVING_DELAY_S = 0.5  # a delay that halves the quality
_MUTE_SHARE = 0.1
_RECOVERY_S = 3600.0


@dataclass(slots=True, eq=False)
class Quality:
    """How well a neighbour on a link carries our traffic, as far as we can measure it.

    Attributes:
        asked_mono_s: when we sent the oldest hello that it hasn't answered yet; 0: none waits.
        greeted_mono_s: when we sent the latest one.
        unanswered_mono_s: when our meter first saw that we sent something through it and no answer came; 0: one came.
        silent: it answers no hello, and nothing comes back.
    """

    asked_mono_s: float = 0.0
    greeted_mono_s: float = float("-inf")
    unanswered_mono_s: float = 0.0
    silent: bool = False
    _missed: float = 0.0
    _measured_mono_s: float = 0.0
    _delay_s: float = 0.0
    _mute_mono_s: float = float("-inf")

    def value(self, now_mono_s: float) -> float:
        """Return the quality, 0 to 1.

        It is the share of hellos that were answered in time. Half a second of delay halves it. A neighbour that brought
        no answers when another one did has a tenth. What it lost it regains within an hour, also if it isn't asked
        meanwhile: the link may be better by then, and only a neighbour that is chosen is measured.
        """
        if self.silent:
            return 0.0
        answered = 1 - self._missed_by(now_mono_s)
        carries = min(1.0, _MUTE_SHARE + (now_mono_s - self._mute_mono_s) / _RECOVERY_S)
        return answered * carries * _HALVING_DELAY_S / (_HALVING_DELAY_S + self._delay_s)

    def heard(self, now_mono_s: float) -> None:
        """Note that it said hello, which answers ours if one waits."""
        self.silent = False
        if self.asked_mono_s:
            self._delay_s += (now_mono_s - self.asked_mono_s - self._delay_s) * _DELAY_WEIGHT
            self._count(0.0, _ANSWER_WEIGHT, now_mono_s)
            self.asked_mono_s = 0.0

    def missed(self, now_mono_s: float) -> None:
        """Note that a hello wasn't answered in time."""
        self._count(1.0, _ANSWER_WEIGHT, now_mono_s)

    def fell_silent(self, now_mono_s: float) -> None:
        """Note that it is dead, for now: its quality is halved when it is back."""
        self.silent = True
        self._count(1.0, 0.5, now_mono_s)

    def is_mute(self, now_mono_s: float) -> None:
        """Note that it brought no answers from a destination that answers by another way."""
        self._mute_mono_s = now_mono_s

    def _missed_by(self, now_mono_s: float) -> float:
        """Return the share of hellos that weren't answered, as far as that still counts."""
        return self._missed * max(0.0, 1 - (now_mono_s - self._measured_mono_s) / _RECOVERY_S)

    def _count(self, missed: float, weight: float, now_mono_s: float) -> None:
        before = self._missed_by(now_mono_s)
        self._missed, self._measured_mono_s = before + (missed - before) * weight, now_mono_s


@dataclass(frozen=True, slots=True)
class Candidate:
    """A neighbour that could carry what goes to a fork.

    Attributes: price_msat_per_gib: None: not known yet. quality: above 0, up to 1.
    """

    router: Router
    price_msat_per_gib: int | None
    quality: float

    @property
    def cost(self) -> float:
        """What carrying costs, as what is lost is paid for and sent again. The price 0 counts as the smallest one."""
        return float("inf") if self.price_msat_per_gib is None else max(1, self.price_msat_per_gib) / self.quality


def choose(candidates: Sequence[Candidate], present: Candidate | None) -> Candidate:
    """Return the candidate that costs least; of several, the first. The present one stays unless it costs GAIN as much.

    Args: candidates: at least one. present: the one that carries now, one of them; None: it can't carry any more.
    """
    best = min(candidates, key=lambda one: one.cost)
    return present if present is not None and present.cost <= best.cost * GAIN else best


@dataclass(slots=True, eq=False)
class ForkState:
    """A fork, and what we know of it.

    Attributes:
        chosen: the router of our own route; None: the operator's routes lead.
        sample: the destination whose price is compared; None: nothing was sent yet.
        offers: the last word of each neighbour about the sample's price, by identity.
        ask_mono_s: when each neighbour is to be asked next. asked: those whose answer may still come.
        used_mono_s: when something was last sent, or asked for by a client of ours, as far as we know.
        carries: False: since it came into use, nothing was sent; clients only asked.
        sent, returned: whether something was sent, and came back, since `window_mono_s`.
        carried_by: the router by which answers came last.
        unanswered: for how many such times in a row only something was sent.
        judged: False: nobody brought answers from there, so it says nothing about a neighbour that none come.
        suspects: neighbours through which no answers came, until another one shows whether that is their fault.
    """

    fork: Fork
    chosen: Router | None = None
    sample: Prefix | None = None
    offers: dict[bytes, int] = field(default_factory=dict)
    ask_mono_s: dict[bytes, float] = field(default_factory=dict)
    asked: set[bytes] = field(default_factory=set)
    used_mono_s: float = float("-inf")
    carries: bool = False
    sent: bool = False
    returned: bool = False
    carried_by: Router | None = None
    window_mono_s: float = 0.0
    unanswered: int = 0
    judged: bool = True
    suspects: set[bytes] = field(default_factory=set)

    @property
    def router(self) -> Router | None:
        """To which router packets go now; of several routes of the operator that are equal, the first counts."""
        return self.chosen or next(iter(self.fork.routers), None)


@dataclass(slots=True, eq=False)
class Forks:
    """All forks.

    Attributes:
        in_use: those to which something was sent lately. began_mono_s: when they were first seen.
        moved: in this step, the prefixes whose packets go through another neighbour now, or that were bought there: our
            own sales may have become too cheap.
    """

    all: dict[Prefix, ForkState] = field(default_factory=dict)
    in_use: dict[Prefix, ForkState] = field(default_factory=dict)
    began_mono_s: float = 0.0
    moved: list[tuple[Prefix, bytes]] = field(default_factory=list)
    _lengths: dict[int, list[int]] = field(default_factory=dict)

    def take(self, all_: dict[Prefix, ForkState]) -> None:
        """Have these forks, and no others."""
        self.all, lengths = all_, {(prefix.version, prefix.prefixlen) for prefix in all_}
        self._lengths = {each: sorted((bits for of, bits in lengths if of == each), reverse=True) for each in (4, 6)}

    def of(self, destination: Prefix) -> ForkState | None:
        """Return the fork with the longest prefix that covers a destination."""
        for length in self._lengths.get(destination.version, ()):
            if length <= destination.prefixlen and (found := self.all.get(destination.supernet(new_prefix=length))):
                return found
        return None
