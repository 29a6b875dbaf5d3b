"""A small COCO set on disk."""

import io
import json

from PIL import Image

from tasks.detection.coco import load_coco

RED, BLUE = (220, 30, 30), (30, 30, 220)


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def polygon(x, y, w, h):
    return [x, y, x + w, y, x + w, y + h, x, y + h]


class Builder:
    """A little COCO set on disk: pictures of 60 x 40 px with a red and a blue rectangle."""

    def __init__(self, root):
        self.root = root
        (root / "images").mkdir(parents=True)
        self.content = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 7, "name": "blue"}, {"id": 3, "name": "red"}],  # gaps, and not in order
        }
        for i, name in enumerate(("a.png", "b.jpg", "sub/c.png"), 1):
            self.image(i, name)
            self.annotate(i, 3, (5, 4, 20, 10))
            self.annotate(i, 7, (30, 8, 12, 24))

    def image(self, id, name, data=None, size=(60, 40)):
        picture = Image.new("RGB", size, (128, 128, 128))
        picture.paste(RED, (5, 4, 25, 14))
        picture.paste(BLUE, (30, 8, 42, 32))
        path = self.root / "images" / name
        path.parent.mkdir(exist_ok=True)
        format = "JPEG" if name.endswith("jpg") else "PNG"
        path.write_bytes(encoded(picture, format) if data is None else data)
        self.content["images"].append({"id": id, "file_name": name, "width": size[0], "height": size[1]})

    def annotate(self, image, category, box, **extra):
        x, y, w, h = box
        entry = {
            "id": len(self.content["annotations"]) + 1,
            "image_id": image,
            "category_id": category,
            "bbox": [float(v) for v in box],
            "area": float(w * h),
            "iscrowd": 0,
            "segmentation": [polygon(x, y, w, h)],
        }
        self.content["annotations"].append({k: v for k, v in {**entry, **extra}.items() if v is not None})

    def load(self, check="decode", masks=True, images="images"):
        path = self.root / "instances.json"
        path.write_text(json.dumps(self.content))
        return load_coco(path, self.root / images, masks=masks, check=check)
