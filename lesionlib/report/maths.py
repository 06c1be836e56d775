"""Notebooks as HTML pages that need no network: LaTeX in Markdown becomes MathML.

Browsers draw MathML themselves; nbconvert's own pages fetch a script that draws LaTeX.
"""

import html

from jinja2 import pass_context
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath, MathInlineParser

from lesionlib.engine.errors import InputError


def mathml(formula: str, display: str = "inline") -> str:
    """A formula in LaTeX as a <math> element; `display` is inline or block.

    InputError for what is no LaTeX, and for commands that have no MathML.
    """
    problem = ""
    try:
        found = convert(html.unescape(formula).strip(), display=display)
    except Exception as error:  # latex2mathml's errors have no common class
        problem = f"it is no LaTeX ({type(error).__name__})"
    else:
        if "\\" in found:
            problem = "it has a command that cannot be converted"
    if problem:
        raise InputError(f"the formula {formula.strip()}", problem, "write it in plain LaTeX")
    return found


class _Formulas(MathInlineParser):
    """Finds $...$ as Pandoc does, so that "$5 and $6" are prices: no blank inside either dollar
    sign, no digit after the second one."""

    SPECIFICATION = MathInlineParser.SPECIFICATION | {
        "inline_math_tex": r"(?<![$\\])\$(?P<math_inline_tex>[^\s$](?:[^$]*[^\s$\\])?)\$(?![$\d])"
    }


class _Renderer(IPythonRenderer):
    def block_math(self, body):
        return f'<span class="equation">{mathml(body, "block")}</span>'

    def inline_math(self, body):
        return mathml(body)


class OfflineExporter(HTMLExporter):
    """nbconvert's exporter with MathML in place of a remote script."""

    @pass_context
    def markdown2html(self, context, source):
        """The Markdown of a cell or an output as HTML; nbconvert's filter of this name."""
        renderer = _Renderer(escape=False, anchor_link_text=self.anchor_link_text)
        return MarkdownWithMath(renderer, inline=_Formulas(hard_wrap=False)).render(source)
