"""What it takes to run dogbreed on AWS SageMaker: see the request and its price, try it here, send it.

For notebooks and other code: `from launch import estimator, tuner, deployment`.
"""

from typing import Any

__all__ = ["deployment", "estimator", "tuner"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from launch import objects

        return getattr(objects, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
