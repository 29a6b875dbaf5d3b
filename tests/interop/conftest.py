"""detectron2 without its compiled module: what the tests do not call is not missed."""

import importlib.util
import sys
import types

import PIL.Image

if importlib.util.find_spec("detectron2"):
    PIL.Image.LINEAR = PIL.Image.BILINEAR  # a name that Pillow 10 dropped
    sys.modules["detectron2._C"] = types.ModuleType("detectron2._C")
