"""The style sheet of pages, and the page around it: one column, quiet, light and dark."""

from __future__ import annotations

import html

CSS = """\
:root {
  color-scheme: light dark;
  --ink: #1c2128; --soft: #57606a; --ground: #ffffff; --line: #d8dee4; --stripe: #f6f8fa;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e3e8ee; --soft: #9aa5b1; --ground: #14181d; --line: #333b45; --stripe: #1a2027;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; color: var(--ink); background: var(--ground);
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  -webkit-text-size-adjust: 100%;
}
main { max-width: 80rem; margin: 0 auto; padding: 2rem clamp(1rem, 4vw, 3rem) 4rem; }
h1 { margin: 0 0 1rem; font-size: clamp(1.5rem, 1.1rem + 1.8vw, 2.1rem); line-height: 1.2; }
h2 { margin: 2.5rem 0 .75rem; font-size: 1.2rem; line-height: 1.3; }
h1, h2, p, figcaption { overflow-wrap: anywhere; text-wrap: pretty; }
.text { max-width: 68ch; margin: 0 0 1rem; white-space: pre-line; }
figure { margin: 2.25rem 0; }
figcaption { max-width: 68ch; margin-top: .6rem; color: var(--soft); font-size: .9rem; }
.scroll { max-width: 100%; overflow-x: auto; }
.scroll:focus-visible { outline: 2px solid #4c8dd6; outline-offset: 2px; }
.paper {
  width: fit-content; padding: .5rem; border: 1px solid var(--line); border-radius: .5rem;
  background: #fff;
}
img { display: block; max-width: 100%; height: auto; }
table { border-collapse: collapse; font-size: .92rem; line-height: 1.4; }
th, td {
  padding: .45rem .9rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top;
}
th { color: var(--soft); font-weight: 600; vertical-align: bottom; border-bottom-width: 2px; }
tbody tr:nth-child(even) { background: var(--stripe); }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
@media print {
  .scroll { overflow: visible; }
  img { min-width: 0 !important; }
  figure, tr { break-inside: avoid; }
}
"""


def page(title: str, body: str) -> str:
    """A whole HTML page around a body."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{CSS}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )
