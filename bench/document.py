"""A report before it is Markdown or HTML: sections of paragraphs, tables, lists and plots."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Running text, unformatted."""

    text: str


@dataclass(frozen=True, slots=True)
class Items:
    """A list of points, unformatted."""

    points: Sequence[str]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells, unformatted; all columns but the first are numbers.

    Attributes:
        head: of the columns.
        rows: each as long as the head.
        text_columns: further columns that are text.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: frozenset[int] = frozenset()

    def is_text(self, column: int) -> bool:
        """Whether a column is aligned as text."""
        return column == 0 or column in self.text_columns


@dataclass(frozen=True, slots=True)
class Plot:
    """A picture.

    Attributes:
        title: what it shows.
        svg: the picture, an ``<svg>`` element of our own making.
    """

    title: str
    svg: str


Block = Paragraph | Items | Table | Plot


@dataclass(slots=True)
class Section:
    """A heading and what stands under it.

    Attributes:
        title: the heading.
        blocks: in order.
        level: of the heading, from 1.
    """

    title: str
    blocks: list[Block] = field(default_factory=list)
    level: int = 2


# Markdown.


def to_markdown(sections: Sequence[Section]) -> str:
    """One page of Markdown. Plots are left to HTML; a line names each."""
    parts = []
    for section in sections:
        parts.append(f"{'#' * section.level} {section.title}")
        parts += [_markdown_block(block) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def markdown_table(table: Table) -> str:
    """A table as Markdown has it."""
    rules = ["---" if table.is_text(index) else "---:" for index in range(len(table.head))]
    lines = [table.head, rules, *table.rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines
    )


def _markdown_block(block: Block) -> str:
    if isinstance(block, Paragraph):
        return block.text
    if isinstance(block, Items):
        return "\n".join(f"- {point}" for point in block.points)
    if isinstance(block, Table):
        return markdown_table(block)
    return f"*Plot in the HTML report: {block.title}*"


# HTML.

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem;
  color: #1b1b1b; background: #fff }
h1, h2, h3 { line-height: 1.2; margin: 2rem 0 .6rem }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid #ddd; padding: .3rem .7rem; text-align: right;
  vertical-align: top }
th.text, td.text { text-align: left }
th { border-bottom: 2px solid #888 }
td.met { color: #0a6b2d; font-weight: 600 }
td.missed { color: #a11; font-weight: 600 }
td.undecided { color: #8a5a00; font-weight: 600 }
svg { max-width: 100%; height: auto }
figure { margin: 1rem 0 }
figcaption { color: #555 }
"""


def to_html(sections: Sequence[Section], title: str) -> str:
    """One self-contained page: no scripts, nothing loaded from anywhere."""
    parts = []
    for section in sections:
        parts.append(f"<h{section.level}>{html.escape(section.title)}</h{section.level}>")
        parts += [_html_block(block) for block in section.blocks]
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _html_block(block: Block) -> str:
    if isinstance(block, Paragraph):
        return f"<p>{html.escape(block.text)}</p>"
    if isinstance(block, Items):
        points = "".join(f"<li>{html.escape(point)}</li>" for point in block.points)
        return f"<ul>{points}</ul>"
    if isinstance(block, Plot):
        caption = html.escape(block.title)
        return f"<figure>{block.svg}<figcaption>{caption}</figcaption></figure>"
    head = "".join(_cell("th", block, index, text) for index, text in enumerate(block.head))
    rows = "".join(
        "<tr>"
        + "".join(_cell("td", block, index, text) for index, text in enumerate(row))
        + "</tr>"
        for row in block.rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _cell(tag: str, table: Table, column: int, text: str) -> str:
    classes = ["text"] if table.is_text(column) else []
    if (verdict := re.match(r"met|missed|undecided", text)) and tag == "td":
        classes.append(verdict.group())
    chosen = f' class="{" ".join(classes)}"' if classes else ""
    return f"<{tag}{chosen}>{html.escape(text)}</{tag}>"
