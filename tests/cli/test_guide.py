"""Every command is documented: the table of verbs, the command line and docs/operators-guide.md agree."""

from __future__ import annotations

import re

import click
import pytest

from ngp.cli import ngp
from ngp.cli.verbs import VERBS, Verb, guide_row
from ngp.core.selling.statements import STATEMENT_INTERVAL_S
from ngp.errors import ExitCode
from tests.cli.conftest import ROOT

GUIDE = (ROOT / "docs" / "operators-guide.md").read_text()
CHAPTER = GUIDE.partition("\n## Verbs\n")[2].partition("\n## ")[0]
COMMON = {"--state-dir", "--config"}


def command_of(verb: Verb) -> click.Command:
    found = ngp.get_command(click.Context(ngp), verb.name)
    assert found is not None
    return found


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_verb_is_in_the_guide(verb: Verb) -> None:
    assert guide_row(verb) in CHAPTER.splitlines(), f"put this row into docs/operators-guide.md:\n{guide_row(verb)}"


def test_the_guide_has_no_verb_that_does_not_exist() -> None:
    assert re.findall(r"^\| `ngp (\S+)[^`]*` \|", CHAPTER, re.MULTILINE) == [verb.name for verb in VERBS]


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_the_tables_words_are_what_the_command_takes(verb: Verb) -> None:
    options = [each for each in command_of(verb).params if isinstance(each, click.Option)]
    named = set(re.findall(r"-[-a-z]+", verb.words))
    assert named == {each.opts[0] for each in options} - COMMON
    needs_words = any(isinstance(each, click.Argument) and each.required for each in command_of(verb).params)
    assert needs_words == bool(re.search(r"(?<!\S)[A-Z]+(?!\S)", re.sub(r"\[[^]]*\]", "", verb.words)))


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_help_teaches(verb: Verb) -> None:
    text = command_of(verb).get_help(click.Context(command_of(verb), info_name=verb.name))
    assert "Examples:" in text
    for example, _ in verb.examples:
        assert example in text
        assert f"ngp {verb.name}" in example


def test_exit_codes_are_in_the_guide() -> None:
    for code in ExitCode:
        assert re.search(rf"^\| {int(code)} \| ", CHAPTER, re.MULTILINE), f"exit code {int(code)} is missing"


def test_readers_are_told_how_often_bills_come() -> None:
    """Without this, a reader who looks at `billed` right after a transfer takes the gateway's count for wrong."""
    readme, every = (ROOT / "README.md").read_text(), f"every {STATEMENT_INTERVAL_S:g} s"
    assert f"bill, which comes {every}" in " ".join(readme.split())
    listing = GUIDE.partition("#### ngp contracts")[2].partition("#### ")[0]
    assert f"{every} while something is charged" in GUIDE.partition("## Choosing")[0]
    assert f"Bills come {every}" in listing
