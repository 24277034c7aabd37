"""Check manifests against ``docs/manifest.schema.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "manifest.schema.json").read_text())


def schema_errors(manifest: Any) -> list[str]:
    """List what a manifest, as JSON or as the bundle's folder, has that the schema does not allow."""
    from jsonschema import Draft202012Validator

    Draft202012Validator.check_schema(SCHEMA)
    loaded = json.loads((manifest / "manifest.json").read_text()) if isinstance(manifest, Path) else manifest
    return [f"{error.json_path}: {error.message[:200]}" for error in Draft202012Validator(SCHEMA).iter_errors(loaded)]
