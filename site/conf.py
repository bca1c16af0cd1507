"""Settings of Sphinx. tools/build_site.py gathers the pages; nothing is fetched, and warnings are errors."""

import dataclasses
from typing import Any

import sasrec

project = "sasrec"
copyright = "the authors of sasrec, Apache-2.0"  # noqa: A001
version = release = sasrec.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
highlight_language = "none"  # a block says its language; most show a terminal
copybutton_prompt_text = r">>> |\$ "
copybutton_prompt_is_regexp = True

myst_heading_anchors = 6  # links name headings as on a forge: page.md#a-heading
myst_enable_extensions = ["colon_fence"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = False
autodoc_default_options = {"members": True}
maximum_signature_line_length = 88
python_use_unqualified_type_names = True
add_module_names = False
napoleon_numpy_docstring = False
napoleon_use_rtype = False
default_role = "code"  # names in single backquotes, as in docstrings
# Types of other packages, and types that are no public names, are text: there is nothing to link to.
nitpick_ignore_regex = [(r"py:.*", r".*")]

html_theme = "furo"
html_title = f"sasrec {version}"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}


def shorter(app: Any, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None) -> Any:
    """A signature without fields, which are told elsewhere."""
    if signature and isinstance(obj, type) and obj.__module__ == "sasrec.core.config":
        return "(**settings)", None
    if signature and dataclasses.is_dataclass(obj):
        return "", None  # its fields are listed, and only the package makes one
    return signature, returns


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-signature", shorter)
