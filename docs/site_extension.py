"""Sphinx extension of this site: public names, and the list of decisions.

Annotations say `cris_deploy.results.segmentation.Segmentation`; the reference has it as
`cris_deploy.Segmentation`, which is what a user imports.
"""

from docutils.nodes import Element
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

import cris_deploy

DECISIONS = "docs/decisions/README"
# Behind its table, which is all that a plain Git host should show.
DECISIONS_TREE = "\n\n```{toctree}\n:hidden:\n:glob:\n\n0*\n```\n"


def _link_by_public_name(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, text: Element
) -> Element | None:
    target = node.get("reftarget", "")
    name = target.rpartition(".")[2]
    public = f"cris_deploy.{name}"
    if node.get("refdomain") != "py" or name not in cris_deploy.__all__ or target == public:
        return None
    if not target.startswith("cris_deploy.") and target != name:
        return None
    return env.domains["py"].resolve_xref(
        env, node["refdoc"], app.builder, node["reftype"], public, node, text
    )


def _list_decisions(app: Sphinx, page: str, source: list[str]) -> None:
    if page == DECISIONS:
        source[0] += DECISIONS_TREE


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect."""
    app.connect("missing-reference", _link_by_public_name)
    app.connect("source-read", _list_decisions)
    return {"parallel_read_safe": True}
