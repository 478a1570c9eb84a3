"""What the core backend says when CORE refuses, and the messages that both exchange. CORE is played here, since the
real one has to be installed (docs/scenarios.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from xml.etree import ElementTree

import grpc
import pytest

from core_tests import scenarios, session_core, session_xml
from core_tests.lab import Lab
from core_tests.ports import free_ports
from core_tests.session import MissingError
from core_tests.shell import LabError

FILE = scenarios.FOLDER / "pings_cut.xml"


class Refusing(grpc.GenericRpcHandler):
    """Answers every call with an error, and notes what was asked."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self.code, self.details = code, details
        self.asked: list[tuple[str, bytes]] = []

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        def refuse(request: bytes, context: grpc.ServicerContext) -> bytes:
            self.asked.append((call.method, request))
            context.abort(self.code, self.details)

        return grpc.unary_unary_rpc_method_handler(refuse)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Refusing], None]]:
    """Let a handler answer where CORE would."""
    server = grpc.server(ThreadPoolExecutor(1))

    def start(handler: Refusing) -> None:
        address = f"127.0.0.1:{free_ports(1)[0]}"
        server.add_generic_rpc_handlers((handler,))
        server.add_insecure_port(address)
        server.start()
        monkeypatch.setattr(session_core, "ADDRESS", address)

    yield start
    server.stop(None).wait()


def test_a_core_without_ngp_is_named_with_the_remedy(lab: Lab, serve: Callable[[Refusing], None]) -> None:
    core = Refusing(grpc.StatusCode.UNKNOWN, "Exception calling application: service does not exist ngp")
    serve(core)
    with pytest.raises(MissingError, match="(?s)OpenXml: UNKNOWN: .*service does not exist ngp\nInstall CORE 9"):
        session_core.in_core(lab, session_xml.read(FILE))
    ((method, request),) = core.asked
    assert method == "/core.CoreApi/OpenXml"
    path = str(FILE).encode()
    # OpenXmlRequest: data = 1, start = 2, file = 3.
    end = b"\x10\x01\x1a" + bytes([len(path)]) + path
    text = request[3 : -len(end)]
    size = bytes([len(text) & 0x7F | 0x80, len(text) >> 7])
    assert request == b"\x0a" + size + text + end
    hooks, *others = ElementTree.fromstring(text)
    assert [(hook.get("state"), hook.text) for hook in hooks] == [("3", session_core.HOOK)]
    assert list(map(ElementTree.tostring, others)) == list(map(ElementTree.tostring, ElementTree.parse(FILE).getroot()))


def test_what_core_cannot_build_is_no_missing_backend(lab: Lab, serve: Callable[[Refusing], None]) -> None:
    serve(Refusing(grpc.StatusCode.UNKNOWN, "Error: Specified qdisc kind is unknown."))
    with pytest.raises(LabError, match="OpenXml: UNKNOWN: Error: Specified qdisc") as refused:
        session_core.in_core(lab, session_xml.read(FILE))
    assert not isinstance(refused.value, MissingError)


def test_an_answer_is_read() -> None:
    read = session_core._read_numbers
    assert read(b"\x08\x01\x10\xac\x02") == {1: 1, 2: 300}  # OpenXmlResponse: result = 1, session_id = 2
    with pytest.raises(ValueError, match="not numbers alone: 0a0161"):
        read(b"\x0a\x01a")
