"""The tests import detectron2 without its compiled module. pytest loads this file first."""

import tests.interop.standins  # noqa: F401
