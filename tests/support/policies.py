"""What a policy allows, as far as those of launch/policies.py go: patterns, and the tags that a request carries."""

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any


def allows(
    statements: Sequence[Mapping[str, Any]], action: str, resource: str, tags: Mapping[str, str] | None = None
) -> bool:
    """With `tags`, a condition on the request's tags has to hold; without, conditions are not looked at."""
    for statement in statements:
        resources = statement["Resource"]
        resources = [resources] if isinstance(resources, str) else resources
        if action not in statement["Action"] or not any(fnmatch.fnmatchcase(resource, each) for each in resources):
            continue
        required = statement.get("Condition", {}).get("StringEquals", {})
        if tags is None or all(tags.get(key.partition("/")[2]) == value for key, value in required.items()):
            return True
    return False
