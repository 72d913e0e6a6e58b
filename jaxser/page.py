"""One self-contained HTML page: its blocks, its style, nothing from the network, no script."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

STYLE = Path(__file__).with_name("page.css")


def document(title: str, blocks: Sequence[str]) -> str:
    """The whole page."""
    style = STYLE.read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title><style>
{style}</style></head><body>
<h1>{html.escape(title)}</h1>
{"".join(block for block in blocks if block)}</body></html>
"""


def section(title: str, *blocks: str) -> str:
    """A heading and what stands below it; empty where nothing does."""
    inside = "".join(blocks)
    return f"<h2>{html.escape(title)}</h2>\n{inside}" if inside else ""


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text; `kind` is `soft`, `mark` or `score`."""
    return f"<p{_class(kind)}>{html.escape(text)}</p>\n" if text else ""


def table(header: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[int] = (0,), total: int | None = None) -> str:
    """A table that scrolls sideways where it must. Columns in `words` are text, others numbers, with what is in brackets after
    them on a line of its own; row `total` is set off. A first column of text names its rows."""

    def shown(cell: str, words: bool) -> str:
        number, bracket, beside = cell.partition(" (")
        if words or not bracket:
            return html.escape(cell)
        return f'{html.escape(number)}<br><span class="soft">({html.escape(beside)}</span>'

    def cell(text: str, column: int, scope: str) -> str:
        tag, of = ("th", f' scope="{scope}"') if scope else ("td", "")
        return f"<{tag}{of}{_class('text' * (column in words))}>{shown(text, column in words)}</{tag}>"

    def line(cells: Sequence[str], kind: str = "") -> str:
        inside = "".join(cell(text, i, "row" if i == 0 and 0 in words else "") for i, text in enumerate(cells))
        return f"<tr{_class(kind)}>{inside}</tr>\n"

    total = total if total is None else total % len(rows)
    names = "".join(cell(text, i, "col") for i, text in enumerate(header))
    body = "".join(line(row, "total" * (i == total)) for i, row in enumerate(rows))
    return f'<div class="wide"><table>\n<tr>{names}</tr>\n{body}</table></div>\n'


def facts(known: Mapping[str, str | Sequence[str]]) -> str:
    """Names and what they are, several lines of one name below each other; names without anything are not shown."""
    lines = {name: [value] if isinstance(value, str) else value for name, value in known.items()}
    listed = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{'<br>'.join(map(html.escape, values))}</dd>\n"
        for name, values in lines.items()
        if any(values)
    )
    return f"<dl>{listed}</dl>\n" if listed else ""


def image(png: bytes, alternative: str, whole: bool = False) -> str:
    """A picture inside the page; a `whole` one is as wide as the page."""
    data = base64.b64encode(png).decode()
    kind = _class("whole" * whole)
    return f'<div class="wide"><img{kind} alt="{html.escape(alternative)}" src="data:image/png;base64,{data}"></div>\n'


def copyable(text: str) -> str:
    """Text to be taken elsewhere, selected by one click."""
    return f"<pre>{html.escape(text)}</pre>\n"


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
