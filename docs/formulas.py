"""Formulas as MathML, which browsers draw themselves: no script, no font, no other host.

A page has them as fenced code of the language ``math``, in LaTeX; GitHub draws the same fences.
"""

import html
import re
from typing import Any

from latex2mathml.converter import convert

FENCE = re.compile(r"^( *)```math\n(.*?)\n\1```$", re.MULTILINE | re.DOTALL)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by MkDocs for every page."""
    return FENCE.sub(_formula, markdown)


def _formula(fence: re.Match[str]) -> str:
    indent, text = fence[1], " ".join(fence[2].split())
    label = html.escape(text, quote=True)
    math = convert(text, display="block").replace("<math ", f'<math alttext="{label}" ', 1)
    return f'{indent}<div class="formula">{math}</div>\n'
