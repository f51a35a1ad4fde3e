"""Which role an address needs, by method and path alone, so that a route which this file has never heard of needs one.

Reading needs a reader, every change an editor, and what is imported, deleted for everybody or decided for everybody an
admin. What runs the model needs an editor too, by whatever address: the model itself asks (`deps.get_inference`).
"""

import re

from sae_core.access_records import Role

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
OPEN = re.compile(r"/(login|logout|healthz|readyz|favicon\.ico|static/.*|api/access)")  # asks for no role
ADMIN = re.compile(r"(/api)?/(audit|imports?|saes/[^/]+/delete)(/.*)?")
# Changes of what is everybody's: an SAE as a whole, its visibility, its indexes, and what was imported or run.
ADMIN_CHANGES = re.compile(r"(/api)?/(saes(/[^/]+)?|saes/[^/]+/(visibility|indexes.*)|(runs|models|corpora)(/.*)?)")


def needed_role(method: str, path: str) -> Role | None:
    """The least role for it; None: anybody, whether known or not."""
    if OPEN.fullmatch(path):
        return None
    if ADMIN.fullmatch(path):
        return "admin"
    if method in SAFE_METHODS:
        return "reader"
    return "admin" if ADMIN_CHANGES.fullmatch(path) else "editor"
