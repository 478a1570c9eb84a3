"""Echo requests: right to the bit, and answered by a host as any other's are."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

from ngp.modules.network import echo
from ngp.modules.network.icmp import checksum


def test_a_request_is_that_of_the_standard() -> None:
    four, six = echo.request(4), echo.request(6)
    assert (four[:2], six[:2]) == (b"\x08\x00", b"\x80\x00")
    assert checksum(four) == 0  # RFC 1071: with the right checksum inside, the sum is 0
    assert six[2:4] == b"\x00\x00"  # the kernel adds it


def test_one_goes_out_and_is_answered() -> None:
    for address, answers in (("127.0.0.1", answers_v4), ("::1", answers_v6)):
        before = answers()
        echo.ask(ip_address(address))
        assert answers() > before


def answers_v4() -> int:
    """Return how many echo replies the kernel has counted."""
    lines = Path("/proc/net/snmp").read_text().splitlines()
    names, values = (line.split() for line in lines if line.startswith("Icmp:"))
    return int(values[names.index("InEchoReps")])


def answers_v6() -> int:
    """Return how many echo replies the kernel has counted."""
    lines = (line.split() for line in Path("/proc/net/snmp6").read_text().splitlines())
    return int(dict(lines)["Icmp6InEchoReplies"])
