"""Configuration of Sphinx. `make docs` builds the pages."""

from importlib.metadata import version as version_of

from sphinx.ext.napoleon import GoogleDocstring
from sphinx.util.inspect import TypeAliasForwardRef

project = "trio_gokugen"
author = "trio_gokugen contributors"
copyright = "2026, trio_gokugen contributors"  # noqa: A001 - the name is Sphinx's
release = version_of("trio_gokugen")
version = release

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinxcontrib_trio",
]
exclude_patterns = ["_build"]
# Headings are targets for links.
myst_heading_anchors = 3
# Single backquotes are code, as in Markdown.
default_role = "code"
# sphinxcontrib-trio shows `await f()` and `async with f()` only by way of these.
autodoc_use_legacy_class_based = True
autodoc_member_order = "bysource"
autodoc_typehints = "description"
# Shown by their names, not as what they stand for. Within another type Sphinx would
# show how it represents such a name.
autodoc_type_aliases = {
    name: name for name in ("JSON", "Listener", "Maybe", "Moments", "Operation", "Recover")
}
TypeAliasForwardRef.__repr__ = lambda self: self.name
# What is said of an attribute may have a colon in it, and before that stands no type: those
# are in annotations. Napoleon has no option for it.
GoogleDocstring._consume_inline_attribute = lambda self: (  # noqa: SLF001 (see above)
    "",
    type(self)(self._consume_to_end(), self._config).lines(),
)
html_theme = "furo"
html_title = f"trio_gokugen {release}"
