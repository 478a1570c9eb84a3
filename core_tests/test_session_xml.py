"""Session files that can't be built are refused with the element and the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from core_tests.lab import Lab
from core_tests.session_namespaces import in_namespaces
from core_tests.session_xml import Interface, SessionError, read

GOOD = """<?xml version="1.0"?>
<scenario>
  <networks>
    <network id="3" name="cell" type="WIRELESS_LAN"/>
    <network id="4" name="switch" type="SWITCH"/>
  </networks>
  <devices>
    <device id="1" name="ann" type="router" class=""><position x="10" y="20"/>
      <services><service name="IPForward"/><service name="ngp"/></services></device>
    <device id="2" name="bob" type="PC"><services><service name="DefaultRoute"/></services></device>
  </devices>
  <links>
    <link node1="1" node2="2">
      <iface1 id="0" name="mesh0" mac="02:00:00:00:00:01" ip4="192.0.2.1" ip4_mask="24"/>
      <iface2 id="0" name="mesh0" ip6="2001:db8::2" ip6_mask="64"/>
      <options delay="5000" loss="1.5" dup="0"/>
    </link>
    <link node1="4" node2="2"><iface2 id="1" name="lan0"/></link>
  </links>
  <mobility_configurations>
    <mobility_configuration node="3" model="basic_range">
      <configuration name="range" value="275"/>
    </mobility_configuration>
  </mobility_configurations>
  <service_configurations>
    <service name="ngp" node="1"><templates><template name="net.conf"><![CDATA[
      MESH_INTERFACES: mesh0
      PRICES:
        - {prefix: 0.0.0.0/0, sell: 1}
    ]]></template></templates></service>
  </service_configurations>
  <session_options><configuration name="controlnet" value=""/></session_options>
</scenario>
"""
# What is replaced, by what, and what the error says.
BAD = [
    ("<?xml", "<<", "no XML that can be read: not well-formed"),
    ("</scenario>", "", "no XML that can be read: no element found"),
    ("scenario>", "session>", "<session>: a session of CORE begins with <scenario>"),
    ("session_options>", "emane_configurations>", "<emane_configurations>: no backend builds this"),
    ('id="2"', 'id="1"', '<device id="1" name="bob">: ann has this id or this name already'),
    ('name="bob"', 'name="ann"', '<device id="2" name="ann">: ann has this id or this name already'),
    ('id="2"', 'id="two"', '<device id="two" name="bob">: id="two": not a whole number'),
    ('id="2" ', "", '<device name="bob">: id is missing: a whole number'),
    ('name="bob"', 'name="../bob"', '<device id="2" name="../bob">: name="../bob": letters, digits'),
    ('type="PC"', 'type="toaster"', '<device id="2" name="bob">: type "toaster" is unknown here; a device has'),
    ('class=""', 'class="docker"', '<device id="1" name="ann">: class "docker" is unknown here'),
    ('type="SWITCH"', 'type="RJ45"', '<network id="4" name="switch">: type "RJ45" is unknown here; there are SWITCH,'),
    ('"DefaultRoute"', '"OSPFv2"', '<device id="2" name="bob">: service OSPFv2 is unknown here; there are IPForward,'),
    ('<service name="DefaultRoute"/>', "", '<device id="2" name="bob">: no <services>'),
    ('x="10"', 'x="left"', '<device id="1" name="ann">: <position> x="left": not a number of pixels'),
    ('node2="2">\n', 'node2="9">\n', '<link node1="1" node2="9">: there is no node 9; there are 1, 2, 3, 4'),
    (' node2="2">\n', ">\n", '<link node1="1">: node2 is missing: the id of a node'),
    ('node2="2">\n', 'node2="1">\n', '<link node1="1" node2="1">: both ends are at ann'),
    ('node1="4" node2="2"', 'node1="4" node2="3"', '<link node1="4" node2="3">: switch and cell are both networks'),
    ("iface1", "interface1", '<link node1="1" node2="2">: <iface1> is missing, the interface of ann'),
    ('name="lan0"', 'name="mesh0"', '<link node1="4" node2="2">: <iface2>: bob mesh0 is taken already, by <link'),
    ('id="1" name="lan0"', 'id="0" name="lan0"', "<iface2>: bob id 0 is taken already, by <link"),
    ('id="1" name="lan0"', 'name="lan0"', '<link node1="4" node2="2">: <iface2> id is missing: a whole number'),
    ('name="lan0"', 'name="a/b"', '<link node1="4" node2="2">: <iface2 name="a/b">: no name of an interface'),
    ('name="lan0"', 'name="lan0" mac="02:00:00:00:00:01"', "<iface2>: 02:00:00:00:00:01 is taken already"),
    ('mac="02:00:00:00:00:01"', 'mac="2"', '<iface1 mac="2">: not six bytes'),
    (
        'name="lan0"',
        'name="lan0" ip4="192.0.2.1" ip4_mask="25"',
        '<link node1="4" node2="2">: <iface2>: 192.0.2.1 is taken already, by <link node1="1" node2="2"> at ann',
    ),
    ('ip4="192.0.2.1"', 'ip4="192.0.2.256"', '<iface1 ip4="192.0.2.256" ip4_mask=...>: 192.0.2.256/24 is no address'),
    ('ip6_mask="64"', 'ip6_mask="129"', "2001:db8::2/129 is no address"),
    ("dup=", "colour=", '<link node1="1" node2="2">: <options colour=...>: no option of CORE; there are delay, loss,'),
    ('loss="1.5"', 'loss="101"', '<options loss="101">: out of range'),
    ('loss="1.5"', 'loss="nan"', '<options loss="nan">: out of range'),
    ('delay="5000"', 'delay="5 ms"', 'delay="5 ms": not a number'),
    ('model="basic_range"', 'model="ns2script"', '<mobility_configuration node="3">: model "ns2script" of cell: only'),
    ('value="275"', 'value="far"', 'value="far": not a range in pixels'),
    ('name="ngp" node="1"', 'name="ngp" node="2"', '<service name="ngp" node="2">: bob has no service ngp'),
    ('name="net.conf"', 'name="my.conf"', '<service name="ngp" node="1">: template my.conf: the file of ngp is net'),
    ("prefix:", "prefix: ${x}", "template net.conf: '${' means something else to CORE (Mako)"),
    (
        "MESH_INTERFACES: mesh0",
        "MESH_INTERFACES: mesh0\n      SEL: no",
        '<service name="ngp" node="1">: template net.conf:2: SEL: \'no\' is for a key that net.conf doesn\'t have',
    ),
    ("<templates>", "<configs><config/></configs><templates>", "<configs> of ngp: only <templates> are built"),
    ("templates>", "files>", '<device id="1" name="ann">: service ngp has no net.conf: a <template name="net.conf">'),
]  # fmt: skip


def written(folder: Path, text: str) -> Path:
    path = folder / "one.xml"
    path.write_text(text)
    return path


def test_a_session_is_read(tmp_path: Path) -> None:
    session = read(written(tmp_path, GOOD))
    ann = session.devices["ann"]
    assert (ann.services, ann.position) == (("IPForward", "ngp"), (10.0, 20.0))
    assert ann.files == {"net.conf": "MESH_INTERFACES: mesh0\nPRICES:\n  - {prefix: 0.0.0.0/0, sell: 1}\n"}
    assert {name: medium.range for name, medium in session.media.items()} == {"cell": 275.0, "switch": None}
    cable, drop = session.links
    assert cable.end(0) == ("ann", Interface(0, "mesh0", "192.0.2.1/24", None, "02:00:00:00:00:01"))
    assert cable.end(1) == ("bob", Interface(0, "mesh0", None, "2001:db8::2/64", None))
    assert (cable.options, drop.interfaces[0]) == ({"delay": 5000.0, "loss": 1.5}, None)


@pytest.mark.parametrize(("before", "after", "said"), BAD)
def test_what_cannot_be_built_is_refused_with_element_and_reason(
    tmp_path: Path, before: str, after: str, said: str
) -> None:
    assert before in GOOD
    with pytest.raises(SessionError) as refused:
        read(written(tmp_path, GOOD.replace(before, after)))
    assert said in str(refused.value)
    assert str(refused.value).startswith("one.xml: ")


def test_a_file_that_is_missing_or_blows_up_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="one.xml: no XML that can be read: .*No such file"):
        read(tmp_path / "one.xml")
    entities = "".join(f'<!ENTITY e{n + 1} "{f"&e{n};" * 50}">' for n in range(9))
    bomb = f'<!DOCTYPE scenario [<!ENTITY e0 "{"x" * 1000}">{entities}]><scenario>&e9;</scenario>'
    with pytest.raises(SessionError, match="amplification"):
        read(written(tmp_path, bomb))


def test_an_option_that_namespaces_lack_is_named(lab: Lab, tmp_path: Path) -> None:
    file = read(written(tmp_path, GOOD.replace('dup="0"', 'dup="3"')))
    with pytest.raises(SessionError, match='one.xml: <link node1="1" node2="2">: <options>: .* no dup$'):
        in_namespaces(lab, file)
