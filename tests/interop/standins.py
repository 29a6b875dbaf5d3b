"""Stand-ins that detectron2 needs without its compiled module: what is not called is not missed.

Import this module before detectron2.
"""

import sys
import types

import PIL.Image

PIL.Image.LINEAR = PIL.Image.BILINEAR  # a name that Pillow 10 dropped
sys.modules["detectron2._C"] = types.ModuleType("detectron2._C")
