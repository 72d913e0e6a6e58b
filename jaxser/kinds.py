"""Plain data that was read from a file, held against what it must look like."""

import math
from typing import Any


def misfit(found: Any, kind: Any, name: str = "it") -> str:
    """Which part of plain data is not of its kind, in words; empty where all is. Numbers must be finite.

    A kind is a type, a list with the kind of its items, or a dict with those of the keys that must be there; the key `str`
    stands for all keys.
    """
    if isinstance(kind, dict) and isinstance(found, dict):
        kinds = dict.fromkeys(found, kind[str]) if str in kind else kind
        if missing := [key for key in kinds if key not in found]:
            return f"{name} has no {missing[0]}"
        return next(filter(None, (misfit(found[key], of, f"its {key}") for key, of in kinds.items())), "")
    if isinstance(kind, list) and isinstance(found, list):
        return next(filter(None, (misfit(one, kind[0], name) for one in found)), "")
    fits = not isinstance(kind, dict | list) and isinstance(found, kind) and (kind is bool or not isinstance(found, bool))
    if fits and not (isinstance(found, float) and not math.isfinite(found)):
        return ""
    return f"{name} is {str(found)[:80]!r}"
