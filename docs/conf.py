"""Configuration of Sphinx. `make docs` builds the pages."""

from importlib.metadata import version as version_of

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
# Single backquotes are code, as in Markdown.
default_role = "code"
# sphinxcontrib-trio shows `await f()` and `async with f()` only by way of these.
autodoc_use_legacy_class_based = True
autodoc_member_order = "bysource"
autodoc_typehints = "description"
html_theme = "furo"
html_title = f"trio_gokugen {release}"
