"""What a landlord signs, byte by byte as docs/rental-protocol.md has it."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import ngp.calls.landlord_pb2 as pb
from ngp.calls.proof import _LABEL
from ngp.calls.signature import PROOF, SERVICE, SIGNATURE, signed_bytes
from ngp.core.rental.calls import Call

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "rental-protocol.md"


def test_the_signature_covers_method_certificate_request_and_reply() -> None:
    certificate = bytes(range(32))
    found = signed_bytes(Call("GetStatus", b"question"), b"answer", certificate)
    label, asked = b"ngp reply of a landlord v1\n", sha256(b"question").digest()
    assert found == label + b"\x09GetStatus" + certificate + asked + b"answer"


def test_the_document_has_all_names_that_others_need() -> None:
    text = DOCUMENT.read_text()
    service = pb.DESCRIPTOR.services_by_name["Landlord"]
    assert service.full_name == SERVICE and f"`/{SERVICE}/METHOD`" in text
    assert not [one.name for one in service.methods if f"| `{one.name}` |" not in text]
    assert f'"{_LABEL.decode()}"' in text and '"ngp reply of a landlord v1\\n"' in text
    assert f"`{PROOF}`" in text and f"`{SIGNATURE}`" in text
