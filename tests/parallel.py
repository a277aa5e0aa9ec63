"""What is to be said where several processes share the tests."""

from __future__ import annotations

import os

# Coverage is taken of the processes that run tests, but not of what they start: of that
# everything is tested within, too, and what is killed would leave half a record.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.pop("COVERAGE_PROCESS_CONFIG", None)
