"""Settings of Sphinx for the documentation.

``sphinx-build -W --keep-going -b html docs docs/_build/html`` builds it, without any network.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_extensions"))

import unitednet_mu  # noqa: E402

# ------------------------------------------------------------------ project

project = "unitednet_mu"
author = "the authors of unitednet_mu"
copyright = f"2026, {author}"
version = release = unitednet_mu.__version__

# ------------------------------------------------------------------ sources

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.bibtex",
    "unitednet_docs",  # in _extensions
]
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["_build", "_extensions", "_templates", "figures", "**.ipynb_checkpoints"]
templates_path = ["_templates"]
bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"

nitpicky = True
#: Other packages' names: links where their inventories can be read, plain text elsewhere.
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"(anndata|collections|matplotlib|mudata|muon|numpy|os|pandas|pathlib|scanpy|shap|squidpy|torch"
        r"|typing)\b.*|Ellipsis",
    ),
    (r"py:class", r"unitednet_mu\._data\.Dataset"),  # the aligned form, for code of our own
]

# ------------------------------------------------------------------ text

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
html_math_renderer = "mathml"  # no script and no font from elsewhere: see _extensions
default_role = "api"
nb_execution_mode = "off"  # notebooks come with their outputs
nb_merge_streams = True
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# ------------------------------------------------------------------ reference

autosummary_generate = True
add_module_names = False
autodoc_member_order = "bysource"
napoleon_google_docstring = False
#: What functions write is a list of slots, which the usual form of Returns would take apart.
napoleon_custom_sections = ["Returns"]
python_maximum_signature_line_length = 88
typehints_defaults = "comma"
typehints_document_rtype = False
always_use_bars_union = True

#: Other projects' inventories come from the network, which a build elsewhere need not have.
intersphinx_mapping = (
    {
        "anndata": ("https://anndata.scverse.org/en/stable/", None),
        "matplotlib": ("https://matplotlib.org/stable/", None),
        "mudata": ("https://mudata.scverse.org/en/stable/", None),
        "numpy": ("https://numpy.org/doc/stable/", None),
        "pandas": ("https://pandas.pydata.org/docs/", None),
        "python": ("https://docs.python.org/3/", None),
        "scanpy": ("https://scanpy.scverse.org/en/stable/", None),
        "shap": ("https://shap.readthedocs.io/en/stable/", None),
    }
    if os.environ.get("READTHEDOCS") == "True"
    else {}
)

# ------------------------------------------------------------------ pages

html_theme = "sphinx_book_theme"
html_title = "unitednet_mu"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_copy_source = False
html_show_sourcelink = False
html_context = {"default_mode": "auto"}  # without it the theme logs an error on a first visit
html_theme_options = {
    "footer_content_items": ["copyright"],
    "navigation_with_keys": False,
    "show_navbar_depth": 1,
    "use_download_button": False,
    "use_fullscreen_button": False,
}
