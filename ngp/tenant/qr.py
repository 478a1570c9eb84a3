"""QR: a code in the terminal, for a wallet's or a phone's camera."""

from __future__ import annotations

import io

import segno


def lines(text: str) -> str:
    """Draw a text as a QR code of half blocks, for a dark terminal; on a light one it is inverted.

    An invoice in capital letters needs a smaller code, and means the same (BOLT 11).
    """
    out = io.StringIO()
    segno.make(text, error="l", micro=False).terminal(out=out, compact=True)
    return out.getvalue()
