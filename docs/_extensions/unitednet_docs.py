"""What Sphinx does not bring: formulas as MathML, names that link themselves, tutorials."""

from __future__ import annotations

import importlib
import re
import shutil
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxRole

MODULES = ("tl", "pp", "pl", "get", "datasets", "metrics")
#: Classes that users meet without importing them.
CLASSES = {
    "Model": "unitednet_mu._model.Model",
    "NetworkConfig": "unitednet_mu._config.NetworkConfig",
    "TrainingConfig": "unitednet_mu._config.TrainingConfig",
}
#: Pages of the landing page's list that need not be there.
OPTIONAL = ("reliability", "tutorials/index")
TUTORIALS = """\
# Tutorials

Notebooks, shown with the outputs of their last run. The first cell of each installs the package
in a hosted notebook. Data are real where they ship with the package and simulated otherwise, and
each says which. After a change `python tests/run_tutorials.py` runs them and stores their outputs.

```{toctree}
:glob:
:maxdepth: 1

*
```
"""


def public_names() -> dict[str, str]:
    """Full name of everything public, by the name that docstrings and pages use."""
    return CLASSES | {
        f"{module}.{name}": f"unitednet_mu.{module}.{name}"
        for module in MODULES
        for name in importlib.import_module(f"unitednet_mu.{module}").__all__
    }


class ApiRole(SphinxRole):
    """A public name as a link to its page, anything else as code."""

    names = public_names()

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return the node for what stands between the backticks."""
        code = nodes.literal(self.rawtext, self.text)
        if self.text not in self.names:
            return [code], []
        link = addnodes.pending_xref(
            self.rawtext,
            code,
            refdoc=self.env.docname,
            refdomain="py",
            reftype="obj",
            reftarget=self.names[self.text],
            refexplicit=True,
            refwarn=True,
        )
        return [link], []


def mathml(node: nodes.Element, *, as_block: bool = False) -> str:
    """Return a formula as MathML; bars of norms stay as high as letters, which browsers stretch."""
    formula = tex2mathml(node.astext(), as_block=as_block)
    return re.sub("<mo([^>]*)>([‖|])</mo>", r'<mo\1 stretchy="false">\2</mo>', formula)


def visit_math(translator: Any, node: nodes.math) -> None:
    """Write a formula within a line."""
    translator.body.append(mathml(node))
    raise nodes.SkipNode


def visit_math_block(translator: Any, node: nodes.math_block) -> None:
    """Write a formula of its own."""
    formula = mathml(node, as_block=True)
    translator.body.append(f'<div class="math-block">{formula}</div>\n')
    raise nodes.SkipNode


def gather_tutorials(source: Path, target: Path) -> list[str]:
    """Copy notebooks to where Sphinx reads them, with a page that lists them; none, no page."""
    shutil.rmtree(target, ignore_errors=True)
    notebooks = sorted(source.glob("*.ipynb"))
    if notebooks:
        target.mkdir()
        (target / "index.md").write_text(TUTORIALS, "utf-8")
    for notebook in notebooks:
        shutil.copy(notebook, target)
    return [notebook.stem for notebook in notebooks]


def drop_colon(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Take out what sphinx_autodoc_typehints puts on top of Returns for napoleon's own parser."""
    if ".. rubric:: Returns" in lines:
        top = lines.index(".. rubric:: Returns") + 2
        if lines[top : top + 1] == [":"]:
            del lines[top]


def drop_absent_pages(app: Sphinx, docname: str, source: list[str]) -> None:
    """Leave pages out of the landing page's list that are not there (yet)."""
    if docname == app.config.root_doc:
        absent = [page for page in OPTIONAL if page not in app.env.found_docs]
        source[0] = "".join(
            line for line in source[0].splitlines(keepends=True) if line.strip() not in absent
        )


def reread_landing_page(app: Sphinx, *_: Any) -> list[str]:
    """Read the landing page at every build: pages may have come or gone."""
    return [app.config.root_doc]


def _gather(app: Sphinx, config: Any) -> None:
    gather_tutorials(app.srcdir.parent / "tutorials", app.srcdir / "tutorials")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register all of it."""
    app.add_role("api", ApiRole())
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    app.connect("config-inited", _gather)
    app.connect("autodoc-process-docstring", drop_colon, priority=900)
    app.connect("env-get-outdated", reread_landing_page)
    app.connect("source-read", drop_absent_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
