"""The documents agree with the code: keys, states, timers, report rows, links, names of files and tests."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from ngp.config import Key, parse, shipped_keys, units
from ngp.config.keys import MESH_INTERFACES, guide_row
from ngp.daemon.api.rentals import OfferRow, RentalRow
from ngp.daemon.api.rows import AccountRow, ContractRow, JournalRow

KEYS = shipped_keys()
ROOT = Path(__file__).resolve().parent.parent
SHIPPED = (ROOT / "net.conf").read_text()
GUIDE = (ROOT / "docs" / "operators-guide.md").read_text()
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
PACKAGES = ("ngp.core", "ngp.daemon", "ngp", "ngp.modules.network")  # where the modules in the table of timers may be
UNITS = {"": 1, "s": 1, "bytes": 1, "kB": 1 << 10, "MB": 1 << 20}


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_key_is_in_the_shipped_file_with_its_default_and_a_comment(key: Key[Any]) -> None:
    lines = SHIPPED.splitlines()
    pattern = re.compile(rf"(# )?{key.name}: *(\S.*)")
    found = [(index, match) for index, line in enumerate(lines) if (match := pattern.fullmatch(line))]
    assert len(found) == 1, f"net.conf must hold {key.name} once, as a setting or a commented example"
    index, match = found[0]
    if not match[1]:
        assert match[2] == key.default
    if key.name not in ("SELL_PRICE_MIN", "BUY_PRICE_MAX", "GRACE_TIME"):  # these have one comment above the pair
        assert lines[index - 1].startswith("# "), f"{key.name} has no comment above it"


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_key_is_in_the_operators_guide(key: Key[Any]) -> None:
    assert guide_row(key) in GUIDE.splitlines(), f"put this row into docs/operators-guide.md:\n{guide_row(key)}"


def test_the_guide_has_no_key_that_does_not_exist() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \|", GUIDE, re.MULTILINE)
    assert set(rows) == {key.name for key in KEYS}


def test_the_shipped_file_works_when_mesh_interfaces_is_uncommented() -> None:
    shipped = parse(SHIPPED.replace("# MESH_INTERFACES:", "MESH_INTERFACES:"), ROOT / "net.conf")
    assert shipped == parse("MESH_INTERFACES: [eth1, wlan0]", ROOT / "net.conf"), "shipped values and defaults differ"


def test_the_shipped_files_examples_work() -> None:
    text = SHIPPED.replace("# MESH_INTERFACES:", "MESH_INTERFACES:").replace("# IGNORE_INTERFACE:", "IGNORE_INTERFACE:")
    text = text.replace("# LANDLORD_OUTSIDE:", "LANDLORD_OUTSIDE:").replace("LANDLORD: no", "LANDLORD: yes")
    lists = "PRICES", "FREE_DESTINATIONS", "PAYMENT_SERVICES", "LANDLORD_POOLS", "LANDLORD_OFFERS", "TENANT_BESIDE"
    for key in lists:
        text = text.replace(f"\n{key}: none\n", "\n")
    text = re.sub(r"^#   ", "", text, flags=re.MULTILINE)
    settings = parse(text, ROOT / "net.conf")
    assert len(settings.prices) == 3
    assert len(settings.free_destinations) == 2
    assert len(settings.payment_services) == 2
    assert len(settings.tenant.beside) == 2
    assert settings.ignore_interfaces == ("eth0",)
    assert settings.letting is not None
    assert (len(settings.letting.pools), len(settings.letting.offers)) == (2, 2)


def test_the_guides_table_of_units_has_each_quantity_with_examples_that_are_read() -> None:
    quantities: dict[str, Callable[[str], int]] = {
        "money": units.money_msat, "price": units.price_msat_per_gib, "data": units.data_bytes,
        "data a second": units.data_rate_bytes_s, "time": units.time_s,
    }  # fmt: skip
    chapter = GUIDE.partition("\n### Units\n")[2].partition("\n### ")[0]
    rows = dict(re.findall(r"^\| ([a-z ]+) \| [^|]+ \| ([^|]+) \|", chapter, re.MULTILINE))
    assert rows.keys() == quantities.keys()
    for name, examples in rows.items():
        assert all(quantities[name](example) for example in re.findall("`([^`]+)`", examples))


def test_required_keys_are_those_without_default() -> None:
    assert [key for key in KEYS if not key.default] == [MESH_INTERFACES]


# --- protocol ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "document"), [("contract", "protocol.md"), ("rental", "rental-protocol.md")])
def test_the_state_diagram_is_that_of_the_table(name: str, document: str) -> None:
    tool = [sys.executable, str(ROOT / "tools" / "state-diagram"), name]
    drawn = subprocess.run(tool, capture_output=True, text=True, check=True).stdout.strip("\n")
    text = (ROOT / "docs" / document).read_text()
    begin, end = (f"<!-- {word}: tools/state-diagram -->" for word in ("begin", "end"))
    assert text.count(begin) == text.count(end) == 1
    embedded = text.partition(begin)[2].partition(end)[0].strip("\n")
    assert embedded == drawn, f"docs/{document} is stale: tools/state-diagram --write"


def test_timers_and_limits_are_those_of_the_code() -> None:
    chapter = PROTOCOL.partition("\n## Timers and limits\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| [^|]+ \| ([\d,.]+) ?(\w*) \| `([\w.]+)\.(\w+)` \|$", chapter, re.MULTILINE)
    assert len(rows) == chapter.count("\n|") - 2 > 30, "a row of the table can't be read"
    for number, unit, module, name in rows:
        written = float(number.replace(",", "")) * UNITS[unit]
        package = next(each for each in PACKAGES if find_spec(f"{each}.{module}"))
        assert getattr(import_module(f"{package}.{module}"), name) == pytest.approx(written), f"{module}.{name}"


# --- reports ----------------------------------------------------------------------------------------------------------


def row_keys(heading: str) -> set[str]:
    """Return the keys that the guide's table of report rows explains under a verb."""
    chapter = GUIDE.partition(f"\n#### {heading}\n")[2].partition("\n#")[0]
    cells = re.findall(r"^\| (`[^|]+) \|", chapter, re.MULTILINE)
    return {key for cell in cells for key in re.findall(r"`(\w+)`", cell)}


@pytest.mark.parametrize(
    ("verb", "row"), [("contracts", ContractRow), ("accounts", AccountRow), ("ledger", JournalRow)]
)
def test_keys_of_rows_are_explained(verb: str, row: type) -> None:
    assert row_keys(f"ngp {verb}") == {field.name for field in fields(row)}


@pytest.mark.parametrize(("verb", "row"), [("rentals", RentalRow), ("rentals offers", OfferRow)])
def test_keys_of_a_landlords_rows_are_listed(verb: str, row: type) -> None:
    (line,) = re.findall(rf"^\| `{verb}` \| (list of .*) \|$", GUIDE, re.MULTILINE)
    assert re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", line)) == [field.name for field in fields(row)]


# --- links ------------------------------------------------------------------------------------------------------------


def anchors(document: Path) -> set[str]:
    """Return the names that headings can be linked by (as GitHub makes them)."""
    titles = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        file = (document.parent / name).resolve() if name else document
        assert file.exists(), f"{document.name} links to {target}"
        assert not anchor or anchor in anchors(file), f"{document.name} links to {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_are_named_exist(document: Path) -> None:
    for name in re.findall(r"`((?:ngp|modules|tools|tests|core_tests|docs)/[\w./-]+)(?:::\w+)?`", document.read_text()):
        assert (ROOT / name).exists(), f"{document.name} names {name}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_tests_that_are_named_exist(document: Path) -> None:
    for file, name in re.findall(r"`((?:core_)?tests/[\w./-]+\.py)::(\w+)`", document.read_text()):
        assert f"def {name}(" in (ROOT / file).read_text(), f"{document.name} names {file}::{name}"
