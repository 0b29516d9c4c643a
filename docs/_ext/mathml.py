"""Writes formulas as MathML, which browsers draw by themselves: no script, no font and no network is needed."""

import re
from html import escape

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

FUNCTION = re.compile(r"<mi>(log|exp|det|tanh|sinh|cosh|sin|cos)</mi>(?=(<mo[^>]*>&#x00028;)?)")


def mathml(formula: str, display: str) -> str:
    """A formula with the space that TeX has around the names of functions, which the converter leaves out."""

    def spaced(match: re.Match) -> str:
        return f'<mo form="prefix" lspace="0.17em" rspace="{0 if match[2] else 0.17}em">{match[1]}</mo>'

    formula = formula.strip().replace("{aligned}", "{split}")  # which it does not know, and is the same
    return FUNCTION.sub(spaced, convert(formula, display=display))


def inline(translator, node: nodes.math) -> None:
    translator.body.append(f'<span class="math">{mathml(node.astext(), "inline")}</span>')
    raise nodes.SkipNode


def block(translator, node: nodes.math_block) -> None:
    formula = mathml(node.astext(), "block")
    translator.body.append(f'<div class="math" role="math" aria-label="{escape(node.astext())}">{formula}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
