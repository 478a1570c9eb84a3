"""Lies: how a node cheats its neighbours. Its core is the honest one; what it says, pays or carries is changed."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum

from ngp.core.messages import Message, Statement

OVERBILLED_SHARE = 2


class Lie(StrEnum):
    """What a liar does."""

    PAYS_NOTHING = "pays nothing"  # buys, and pays no invoice
    BILLS_TOO_MUCH = "bills too much"  # bills twice what it carried
    CARRIES_NOTHING = "carries nothing"  # sells, charges what it gets, and drops it


def told_by(lie: Lie | None, message: Message) -> Message:
    """Return a message as its sender tells it."""
    if lie is not Lie.BILLS_TOO_MUCH or not isinstance(message, Statement):
        return message
    lines = tuple(replace(line, charged_msat=line.charged_msat * OVERBILLED_SHARE) for line in message.lines)
    return replace(message, lines=lines, charged_msat=message.charged_msat * OVERBILLED_SHARE)
