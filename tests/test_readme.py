"""The README's commands are the ones that are tested, and what it links to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")})


def shell_blocks(text: str) -> list[str]:
    return re.findall(r"```sh\n(.*?)```", text, re.DOTALL)


def test_two_commands_stand_first_and_are_one_line_each() -> None:
    run, test = (block.strip() for block in shell_blocks(README)[:2])
    assert "\n" not in run
    assert "\n" not in test
    assert run.endswith("qproxy demo")
    assert test.endswith("pytest")


def test_continuous_integration_ends_with_the_readmes_test_command() -> None:
    test = shell_blocks(README)[1].strip()
    last = (ROOT / ".ci" / "run").read_text(encoding="utf-8").strip().splitlines()[-1]
    assert last.replace(" -q ", " ") == test


def test_the_code_blocks_name_files_that_exist() -> None:
    named = set(re.findall(r"configs/[\w./-]+\.yaml", README))
    assert named
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_the_walk_through_ends_all_that_it_started() -> None:
    (block,) = (block for block in shell_blocks(README) if "\nkill " in block)
    started = len(re.findall(r"&(?= |$)", block, re.MULTILINE))
    ended = re.findall(r"%(\d+)", block)
    assert started
    assert sorted(map(int, ended)) == list(range(1, started + 1))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (document.parent / link).exists()] == []


def anchors(text: str) -> set[str]:
    """What a link may name of a document, as Git hosts make it of headings."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    }


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_into_documents_name_a_heading(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for link, anchor in re.findall(r"\]\(((?:[^)#:]+\.md)?)#([^)]+)\)", text):
        target = document if not link else document.parent / link
        assert anchor in anchors(target.read_text(encoding="utf-8")), f"{link}#{anchor}"
