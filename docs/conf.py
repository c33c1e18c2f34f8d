"""The documentation site; `make docs` builds it (docs/decisions/0016-documentation-site.md).

The root of the repository is Sphinx's source folder, so that a link from one page to another reads
the same on the site and on a plain Git host.
"""

import sys
from pathlib import Path

import cris_deploy

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

project = "cris-deploy"
author = "the cris-deploy authors"
project_copyright = author
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md", "*/README.md"]
exclude_patterns = [".*", "build", "demo", "data", "runs", "dist", "tests", ".github"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinxarg.ext",
    "sphinxcontrib.mermaid",
    "site_extension",
]
myst_enable_extensions = ["colon_fence"]
myst_fence_as_directive = ["mermaid"]
myst_heading_anchors = 3

# Words in single backticks are names where the site has them, and code where it has not.
default_role = "py:obj"
nitpicky = True
nitpick_ignore_regex = [
    ("py:obj", ".*"),
    ("py:class", r"(collections|concurrent|msgspec|numpy|os|pathlib|PIL|types)\..*"),
    # What lies behind the public classes: no caller makes or reads it.
    ("py:class", r"cris_deploy\.execution\.(steps|cuda\.memory)\..*"),
    ("py:class", r"cris_deploy\.bundle\.(contents\.FileState|manifest\.(Manifest|Sample|Route))"),
]
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"cris-deploy {cris_deploy.__version__}"
html_extra_path = ["start"]
smartquotes = False  # they would make a dash of --int8
html_show_copyright = False
