"""The methods and editors that any model takes; others are of rectified-flow models alone."""

from __future__ import annotations

from nulltext.editing.editors import EDITORS
from nulltext.inversion.registry import METHODS

GENERAL_METHODS = sorted(
    name for name, method in METHODS.items() if not getattr(method, "flow_only", False)
)
GENERAL_EDITORS = sorted(
    name for name, editor in EDITORS.items() if not getattr(editor, "flow_only", False)
)
