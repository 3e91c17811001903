"""One self-contained HTML page, without scripts and without external fonts or pictures."""

import base64
from collections.abc import Sequence
from html import escape

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1200px; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: .35rem .6rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid #e3e3e3; }
th { border-bottom: 2px solid #888; } td:first-child, th:first-child { text-align: left; }
td.better { color: #00664b; font-weight: 600; } td.worse { color: #a34700; font-weight: 600; }
figure { margin: 1rem 0; } img { max-width: 100%; } figcaption, .note { color: #555; }
details { margin: .4rem 0; } summary { cursor: pointer; }
"""


def page(title: str, parts: Sequence[str]) -> str:
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    icon = '<link rel="icon" href="data:,">'  # without it a browser requests one
    return (
        f'<!doctype html><html lang="en"><head>{head}{icon}<title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1>{''.join(parts)}</body></html>\n"
    )


def heading(text: str) -> str:
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{top}</tr>{body}</table></div>'


def _cell(text: str) -> str:
    kind = {"better": "better", "rose": "better", "worse": "worse", "fell": "worse"}.get(text)
    look = f' class="{kind}"' if kind else ""
    return f"<td{look}>{escape(text)}</td>"


def picture(png: bytes, caption: str) -> str:
    data = base64.b64encode(png).decode()
    text = escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}">' + (
        f"<figcaption>{text}</figcaption></figure>"
    )


def details(summary: str, inside: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{inside}</details>"
