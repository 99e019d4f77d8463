"""Documents that are generated say what the program says today."""

import re
from pathlib import Path

import pytest

from docs import cli_page, generate
from worker import cli, options

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])
LINK = re.compile(r"\]\((?!https?:)([^)#]+)(#[^)]*)?\)")
SECTION = re.compile(r"\]\((?!https?:)([^)#]*)#([^)]+)\)")
NAMED_TEST = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def test_the_command_line_page_is_what_the_program_prints() -> None:
    assert generate.CLI_PAGE.read_text() == cli_page.page(), "run `make docs`"


def test_the_metrics_page_is_what_the_registry_holds() -> None:
    assert generate.METRICS_PAGE.read_text() == generate.metrics_page(), "run `make docs`"


def test_exit_codes_are_told_of_commands_that_exist() -> None:
    known = {" ".join(path) for path, _ in options.commands(cli.cli)}
    assert set(cli_page.EXIT_CODES) <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target, _ in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_section_finds_its_heading(page: Path) -> None:
    for target, anchor in SECTION.findall(page.read_text()):
        assert anchor in anchors(page.parent / target if target else page), f"{target}#{anchor}"


def anchors(page: Path) -> set[str]:
    """Name the sections as GitHub does."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


def test_the_readme_leads_to_every_page() -> None:
    named = {target for target, _ in LINK.findall((ROOT / "README.md").read_text())}
    assert {f"docs/{page.name}" for page in ROOT.glob("docs/*.md")} <= named


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    for path, name in NAMED_TEST.findall(page.read_text()):
        text = (ROOT / path).read_text()
        assert not name or f"def {name}(" in text, f"{path}::{name}"


def test_every_claim_about_security_names_the_test_that_shows_it() -> None:
    """And the test is one that a run of pytest finds: not in a comment, not inside of another."""
    page = (ROOT / "docs" / "security.md").read_text()
    tables = [table for table in page.split("\n\n") if table.startswith("| claim | shown by |")]
    rows = [row for table in tables for row in table.splitlines()[2:]]
    assert len(rows) > 40
    for row in rows:
        _, claim, shown_by, _ = row.split("|")
        ((path, name),) = NAMED_TEST.findall(shown_by)
        assert claim.strip()
        assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE), row


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 150
