"""What the tests of a whole cluster share with those of the pipelines."""

from tests.pipelines.conftest import bucket

__all__ = ["bucket"]
