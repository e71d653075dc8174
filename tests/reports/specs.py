"""The charts of a page that was written."""

from __future__ import annotations

import json
import re
from typing import Any


def read_specs(content: str) -> dict[str, Any]:
    """The Vega-Lite specifications in an HTML page, by the identifiers of their places."""
    found = re.search(r'id="specs">(.*?)</script>', content, flags=re.DOTALL)
    assert found is not None
    return dict(json.loads(found[1]))
