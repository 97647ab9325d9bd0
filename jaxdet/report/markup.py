"""Pieces of HTML: sections, figures and tables. What data and users named is escaped here."""

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

Rows = Sequence[tuple[str, Sequence[Any]]]


def fraction(value: Any) -> str:
    """A share or a metric, 0 to 1, as eval.json has them; a dash for None and NaN."""
    return "–" if value is None or np.isnan(value) else f"{value:.3f}"


def section(name: str, title: str, body: str, says: str, do: str = "") -> str:
    """A section: its title, what it says, its body, and what to do; all but the title is HTML."""
    advice = f'<p class="do">{do}</p>' if do else ""
    return f'<section id="{name}"><h2>{escape(title)}</h2><p>{says}</p>{body}{advice}</section>'


def charts(figures: Sequence[str]) -> str:
    """Figures side by side, where there is room."""
    return f'<div class="charts">{"".join(figures)}</div>'


def side_by_side(*pieces: str) -> str:
    """Tables side by side, where there is room."""
    return f'<div class="side">{"".join(pieces)}</div>'


def figure(title: str, picture: str, caption: str, as_table: str = "") -> str:
    """A chart with its numbers folded below it."""
    said = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    folded = fold("as a table", as_table) if as_table else ""
    return f"<figure><h3>{escape(title)}</h3>{picture}{said}{folded}</figure>"


def fold(title: str, body: str) -> str:
    """What is seen on a click."""
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def table(head: Sequence[str], rows: Rows, caption: str = "") -> str:
    """A table whose first column names the rows."""
    body = "".join(f"<tr>{_name(name)}{''.join(map(_cell, values))}</tr>" for name, values in rows)
    worded = [False, *map(_is_words, rows[0][1])] if rows else ()
    return _table(head, body, caption, worded=worded)


def class_table(head: Sequence[str], rows: Rows, caption: str) -> str:
    """A table of counts, shares and, last, scores; shares have a bar behind them."""
    body = ""
    for name, (count, *shares, score) in rows:
        cells = "".join(map(_bar, shares))
        last = "–" if np.isnan(score) else f"{score:.2f}"
        body += f"<tr>{_name(name)}{_cell(count)}{cells}{_cell(last)}</tr>"
    return _table(head, body, caption)


def matrix(names: Sequence[str], counts: np.ndarray, caption: str) -> str:
    """A table of counts, darker with their share of the row; wrong ones in a second tone."""
    totals = np.maximum(counts.sum(axis=1), 1)
    body = ""
    for i, name in enumerate(names):
        cells = "".join(
            f'<td style="--tone:var(--{"cell" if i == j else "wrong"});'
            f'--depth:{0.75 * count / totals[i]:.2f}">{count:,}</td>'
            for j, count in enumerate(counts[i].tolist())
        )
        body += f"<tr>{_name(name)}{cells}</tr>"
    return _table(("truth", *names), body, caption, kind=' class="matrix"')


def _table(head, body, caption, kind="", worded=()):
    said = f"<caption>{escape(caption)}</caption>" if caption else ""
    words = [' class="text"' if is_words else "" for is_words in worded] or [""] * len(head)
    heads = "".join(
        f'<th scope="col" title="{escape(name)}"{word}>{escape(name)}</th>'
        for name, word in zip(head, words, strict=True)
    )
    return (
        f'<div class="wide" tabindex="0"><table{kind}>{said}<thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _name(name):
    return f'<th scope="row" title="{escape(name)}">{escape(name)}</th>'


def _bar(share):
    width = f"--share:{100 * np.nan_to_num(share):.0f}%"
    return f'<td class="bar" style="{width}">{fraction(share)}</td>'


def _cell(value):
    if isinstance(value, int):
        return f"<td>{value:,}</td>"
    kind = ' class="text"' if _is_words(value) else ""
    return f"<td{kind}>{escape(str(value))}</td>"


def _is_words(value):
    return any(letter.isalpha() for letter in str(value))
