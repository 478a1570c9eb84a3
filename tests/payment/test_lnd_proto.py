"""Our part of LND's interface agrees with LND's own description: names, types and numbers of every field."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import FieldDescriptor
from grpc_tools import protoc

from core_tests.lightning.build import lnd_source
from ngp.modules.payment import lnd_pb2 as pb

SOURCES = (
    "lightning.proto",
    "stateservice.proto",
    "routerrpc/router.proto",
    "invoicesrpc/invoices.proto",
    "wtclientrpc/wtclient.proto",
)
# From the macaroon library, not from LND's interface.
ELSEWHERE = {"Op", "MacaroonId"}
OURS = sorted(set(pb.DESCRIPTOR.message_types_by_name) - ELSEWHERE)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, descriptor_pb2.DescriptorProto]:
    """Return LND's messages by name, compiled from the sources of the laboratory's nodes."""
    made = tmp_path_factory.mktemp("lnd") / "lnd.set"
    folder = lnd_source() / "lnrpc"
    well_known = Path(protoc.__file__).parent / "_proto"
    words = ["protoc", f"-I{folder}", f"-I{well_known}", f"--descriptor_set_out={made}", *SOURCES]
    assert protoc.main(words) == 0
    described = descriptor_pb2.FileDescriptorSet.FromString(made.read_bytes())
    return {message.name: message for file in described.file for message in file.message_type}


@pytest.mark.parametrize("name", OURS)
def test_every_field_is_lnds(name: str, theirs: dict[str, descriptor_pb2.DescriptorProto]) -> None:
    lnds = {field.number: field for field in theirs[name].field}
    for field in pb.DESCRIPTOR.message_types_by_name[name].fields:
        one = lnds[field.number]
        assert (field.name, field.type) == (one.name, one.type)
        assert field.is_repeated == (one.label == descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED)
        if field.type in (FieldDescriptor.TYPE_MESSAGE, FieldDescriptor.TYPE_ENUM):
            kind = field.message_type or field.enum_type
            assert kind.name == one.type_name.rpartition(".")[2]


@pytest.mark.parametrize("name", ["Invoice.InvoiceState", "Payment.PaymentStatus"])
def test_every_state_is_lnds(name: str, theirs: dict[str, descriptor_pb2.DescriptorProto]) -> None:
    message, _, inner = name.partition(".")
    ours = pb.DESCRIPTOR.message_types_by_name[message].enum_types_by_name[inner]
    (lnds,) = [enum for enum in theirs[message].enum_type if enum.name == inner]
    assert {value.name: value.number for value in ours.values} == {value.name: value.number for value in lnds.value}
