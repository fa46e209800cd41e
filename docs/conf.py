"""Configuration of the documentation: ``make docs``."""

import captum_iba

project = "captum_iba"
author = "The captum_iba developers"
project_copyright = author
release = version = captum_iba.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "myst_nb",
]
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]

html_theme = "furo"
html_title = "captum_iba"
html_static_path = []

# notebooks come with their outputs, which the tests compare with a run of their own
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_typehints = "none"  # types stand in the docstrings
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True, "inherited-members": False}
autosummary_generate = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_custom_sections = [
    ("Class attributes", "params_style"),
    ("Reference", "notes_style"),
    ("Shape", "notes_style"),
]
