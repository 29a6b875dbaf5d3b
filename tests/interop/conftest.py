"""detectron2 without its compiled module: what the tests do not call is not missed. pytest loads this file first."""

import sys
import types

import PIL.Image

PIL.Image.LINEAR = PIL.Image.BILINEAR  # a name that Pillow 10 dropped
sys.modules["detectron2._C"] = types.ModuleType("detectron2._C")
