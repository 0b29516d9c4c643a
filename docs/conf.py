"""The configuration of the site: ``sphinx-build -W --keep-going -b html docs build/site``, without a network.

Pages are Markdown (MyST). The pages below ``docs/api`` and ``docs/methods`` are written before each build by
``docs/_ext/generated_pages.py``, from the public names and from the table of methods.
"""

import sys
from pathlib import Path

import ppgen

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS / "_ext"))

project = "ppgen"
author = "The ppgen developers"
copyright = author
version = release = ppgen.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "docstrings",
    "generated_pages",
    "mathml",
    "site_links",
]
exclude_patterns = ["_ext", "examples", "Thumbs.db"]
suppress_warnings = ["myst.header"]  # the pages of tutorials begin with a comment

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

default_role = "code"  # single backticks in docstrings
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings describe the arguments, the signatures show the types
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True
maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"ppgen {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_math_renderer = "mathml"
pygments_style = "friendly"
pygments_dark_style = "github-dark"
