"""Memory that prediction takes, by limits of the process and by its peak."""

import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT

HEAD = """
import resource, sys
import numpy as np
import torch
from PIL import Image
torch.set_num_threads(1)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)  # MB
"""


def run(code):
    done = subprocess.run([sys.executable, "-c", HEAD + code], capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return [float(number) for number in done.stdout.split()]


def test_masks_of_large_objects_are_kept_packed():
    """24 masks of a picture of 4 megapixels take less than one of them as an array, and are drawn in its memory."""
    found, drawn, size = run("""
from tasks.detection.found import masks_in_boxes
from tasks.detection.predict import Instance
from tasks.plots import draw_instances
from pathlib import Path
import tempfile
masks = torch.nn.functional.interpolate(torch.rand(24, 1, 4, 4), 28, mode="bilinear")
boxes = torch.tensor([[40.0, 40.0, 2460.0, 1560.0]]).repeat(24, 1)
warm = masks_in_boxes(masks[:2], boxes[:2], (1600, 2500), at_centres=False)
before = peak()
packed = masks_in_boxes(masks, boxes, (1600, 2500), at_centres=False)
after = peak()
picture = Image.new("RGB", (2500, 1600))
with tempfile.TemporaryDirectory() as folder:
    instances = [Instance("a", 0.5, (40, 40, 2460, 1560), mask) for mask in packed]
    draw_instances(picture, instances, Path(folder) / "a.png")
print(after - before, peak() - after, sum(len(mask.counts) for mask in packed) / 2**20)
""")
    assert found < 40  # as arrays 94
    assert drawn < 90  # copies of 12 MB, and a mask
    assert size < 4


def test_a_comparison_of_many_masks_is_drawn_in_the_memory_of_the_picture():
    (grown,) = run("""
from tasks.detection.found import Packed
from tasks.plots import brightened, outlined
mask = np.zeros((1500, 2000), dtype=bool)
mask[10:1490, 10:1990] = True
packed = [Packed.of(mask)] * 40
picture = Image.new("RGB", (2000, 1500), (20, 20, 20))
before = peak()
outlined(brightened(picture)[0], packed, [(255, 0, 0)] * 40)
print(peak() - before)
""")
    assert grown < 100  # 40 masks alone are 120 MB, floats of the picture 36


@pytest.mark.slow
def test_a_slide_of_36864_objects_and_600_megapixels_in_a_limit(tmp_path):
    """Tiles are read one by one, and their objects merged: the address space is limited to 2 GB above the libraries."""
    pytest.importorskip("tifffile")
    pytest.importorskip("imagecodecs")
    count, grown = run(f"""
import tifffile
from pathlib import Path
from tasks.detection.found import Found, Packed
from tasks.detection.predict import detect_image
from tasks.scans import Scan
path = Path({str(tmp_path / "slide.tif")!r})

def tiles():
    tile = np.full((256, 256, 3), 230, np.uint8)
    for y in range(16, 256, 120):
        for x in range(16, 256, 120):
            tile[y:y + 16, x:x + 16] = 40
    for _ in range(96 * 96):
        yield tile

kind = {{"tile": (256, 256), "compression": "jpeg", "photometric": "rgb"}}
tifffile.imwrite(path, tiles(), shape=(24576, 24576, 3), dtype=np.uint8, **kind)

class Squares(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def detect(self, images, threshold):
        found = []
        for image in images:
            from scipy import ndimage
            labelled, count = ndimage.label(image[0].numpy() < 0.5)
            places = ndimage.find_objects(labelled)
            boxes = torch.tensor([[p[1].start, p[0].start, p[1].stop, p[0].stop] for p in places], dtype=torch.float32)
            masks = [Packed.of(labelled[p] > 0, (p[1].start, p[0].start)) for p in places]
            labels, scores = torch.ones(count, dtype=torch.int64), torch.ones(count) * 0.9
            found.append(Found(boxes.reshape(-1, 4), labels, scores, tuple(image.shape[1:]), masks))
        return found

model = Squares()
detect_image(model, Image.new("RGB", (512, 512)), ["square"], tile=512)
before = peak()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30),) * 2)
found = detect_image(model, Scan(path), ["square"], tile=1024, overlap=64)
print(len(found), peak() - before)
""")
    assert count == 96 * 96 * 4
    assert grown < 1800
