"""``rescalenet demo``: the main job on real input, in a few minutes, without a network."""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import zoo
from tasks import plots
from tasks.classification.data import folder_images
from tasks.classification.evaluate import evaluate_weights
from tasks.classification.predict import classify_images
from tasks.detection.predict import detect_objects
from tasks.engine import Trainer
from tasks.errors import UserError
from tasks.progress import print_line
from tasks.spec import load_model, make_task, resolve
from tasks.translation.attention import attention_picture
from tasks.translation.evaluate import load_folded
from tasks.translation.predict import Translator
from tasks.translation.search import Beam
from tasks.video.encode import write_video
from tasks.video.predict import classify_videos
from zoo.export.onnx import export_onnx
from zoo.files import atomic_write, write_text

NET = "rescalenet20_cifar"
DETECTOR = "mask_rcnn_rescalenet18_fpn.nuclei"
VIDEO = "rescale_r3d_10.shapes"
TRANSLATOR = "rescale_transformer_tiny.multi30k_en_de"
BASELINES = {"rescale": f"{NET}.cifar10", "bn": f"{NET}.cifar10_bn"}


def run(out: Path) -> None:
    """Run the main job of each task on real input, and write all results and ``report.md`` into ``out``.

    The jobs are photographs, fine-tuning at batch size 2 beside BatchNorm, export, cell nuclei, a video, captions.

    Raises:
        UserError: the extra ``demo`` is not installed.
    """
    start = time.monotonic()
    # The pictures are those that scikit-image and scikit-learn bring along: nothing is downloaded.
    try:
        import skimage
        from sklearn import datasets
    except ImportError as error:
        raise UserError(f"the demo needs {error.name}: pip install 'rescalenet-zoo[demo]'") from None
    pictures = Path(skimage.__file__).parent / "data"
    photographs = [pictures / name for name in _SKIMAGE] + [Path(f) for f in datasets.load_sample_images().filenames]
    digits = out / "digits"

    # Each job announces itself, and returns its lines of the report.
    report = ["# RescaleNet demo", ""]
    print_line(f"1/7 classifying photographs with {BASELINES['rescale']}")
    report += classify_photographs(photographs, out / "photographs")
    counts = write_digits(digits)
    print_line(f"2/7 fine-tuning on {counts['train']} handwritten digits at batch size 2, rescale and bn")
    fine_tune(digits, out)
    print_line("3/7 evaluating both")
    report += compare_schemes(digits, counts, out)
    print_line("4/7 exporting to ONNX")
    report += export_digits(out)
    print_line(f"5/7 finding cell nuclei with {DETECTOR}, in tiles")
    report += find_nuclei(pictures / "ihc.png", out / "nuclei")
    print_line(f"6/7 watching a video with {VIDEO}")
    report += watch_shapes(out / "video")
    print_line(f"7/7 translating captions with {TRANSLATOR}")
    report += translate_captions(out / "translation")

    report.append(f"Took {time.monotonic() - start:.0f} s.")
    write_text("\n".join(report) + "\n", out / "report.md")
    # Print the lines of the report that contain numbers.
    for line in report:
        if line.startswith("|") or "agrees" in line or "nuclei, of" in line or "are recognised" in line:
            print_line(line)
    print_line(f"see {out / 'report.md'}")


def classify_photographs(photographs: Sequence[Path], out: Path) -> list[str]:
    """Classify photographs by the CIFAR-10 net, and write a contact sheet and JSON into ``out``.

    Returns:
        Lines of the report.
    """
    weights = zoo.get_weights(BASELINES["rescale"])
    predictions, _ = classify_images(load_model(weights), weights, photographs, out=out)
    rows = []
    for p in predictions:
        first, second = (f"{c} {s:.0%}" for c, s in zip(p.classes[:2], p.scores[:2], strict=True))
        rows.append(f"| {Path(p.file).name} | {first} | {second} |")
    return [
        f"## Photographs, by `{weights.name}` (CIFAR-10 classes, 32 px)",
        "",
        "The net knows ten classes. Of these pictures only the cat belongs to one of them.",
        "",
        "| photograph | first | second |",
        "|---|---|---|",
        *rows,
        "",
        "![contact sheet](photographs/contact_sheet.png)",
        "",
    ]


def fine_tune(digits: Path, out: Path) -> None:
    """Fine-tune the CIFAR-10 nets on digits, a run for each scheme in ``out/SCHEME``; earlier runs are removed."""
    for scheme, name in BASELINES.items():
        folder = out / scheme
        if (folder / "config.yaml").exists():  # the run of an earlier demo, and no other folder
            shutil.rmtree(folder)
        config = resolve(
            "classification/digits/rescalenet20",
            [f"data.root={digits}", f"output={folder}", f"model.weights={name}", f"model.scheme={scheme}"],
        )
        Trainer(make_task(config)).fit()


def compare_schemes(digits: Path, counts: Mapping[str, int], out: Path) -> list[str]:
    """Evaluate the fine-tuned nets, and draw confusion matrices and curves into ``out``.

    Args:
        digits: folder of the digits.
        counts: number of digits by split.
        out: folder of the runs.

    Returns:
        Lines of the report.
    """
    rows = []
    for scheme in BASELINES:
        entry = zoo.get_weights(str(_last_weights(out, scheme)))
        result = evaluate_weights(load_model(entry), entry, folder_images(digits / "val"), out=out / scheme)
        rows.append(f"| {scheme} | {result.metrics()['top1']:.2f} % | {float(result.per_class().min()):.1%} |")
    plots.curves({s: out / s / "log.jsonl" for s in BASELINES}, out / "curves.png", "top1")
    return [
        f"## Fine-tuned on scikit-learn's digits at batch size 2 ({counts['train']} images, {counts['val']} held out)",
        "",
        "| scheme | top-1 | worst class |",
        "|---|---|---|",
        *rows,
        "",
        "![curves](curves.png)",
        "",
        "![confusion](rescale/confusion.png)",
        "",
    ]


def export_digits(out: Path) -> list[str]:
    """Export the fine-tuned rescale net to ONNX, verify it, and return lines of the report."""
    model = zoo.create_model(NET, str(_last_weights(out, "rescale")))
    verified = export_onnx(zoo.fold(model), out / "rescalenet20_digits.onnx", input_size=32)
    return ["## Export", "", str(verified), ""]


def _last_weights(out: Path, scheme: str) -> Path:
    return out / scheme / "checkpoints" / "last.safetensors"


def find_nuclei(slide: Path, out: Path) -> list[str]:
    """Find the nuclei in a tissue slide larger than the training images, and write a picture and JSON into ``out``.

    Returns:
        Lines of the report.
    """
    from skimage.color import rgb2hed

    # The net was trained on fluorescence (bright nuclei) and H&E. In this slide a brown stain covers the nuclei, so
    # only the blue stain is kept, and shown bright on dark.
    stain = rgb2hed(np.asarray(Image.open(slide).convert("RGB")))[..., 0]
    low, high = np.percentile(stain, (30, 99.7))
    grey = Image.fromarray((255 * np.clip((stain - low) / (high - low), 0, 1)).round().astype(np.uint8))
    picture = out / "input" / "haematoxylin.png"
    atomic_write(picture, lambda path: grey.save(path, format="PNG"))
    # Detect in tiles of the size of the training images; loading the net does not count as time.
    entry = zoo.get_weights(DETECTOR)
    model = load_model(entry)
    start = time.monotonic()
    (found,), _ = detect_objects(model, entry, [picture], threshold=0.5, tile=256, out=out)
    seconds = time.monotonic() - start
    sizes = sorted(int(instance.mask.sum()) for instance in found.instances if instance.mask is not None)
    return [
        f"## Cell nuclei, by `{entry.name}` (Mask R-CNN trained from scratch, no normalization)",
        "",
        f"The haematoxylin stain of {slide.name} ({found.width} x {found.height}, scikit-image), in tiles of 256 px: "
        f"{len(found.instances)} nuclei, of {sizes[len(sizes) // 2]} pixels in the median, in {seconds:.1f} s. "
        "The slide is not of the training data, and its true masks are not known.",
        "",
        "![nuclei](nuclei/haematoxylin.png)",
        "",
    ]


MOTIONS = ("horizontal", "vertical", "circular")


def render_shapes(path: Path, seconds: float = 4.0, rate: int = 16) -> None:
    """Render a video of 128 px in which an orange triangle moves in each of ``MOTIONS`` for some seconds."""
    count = round(seconds * rate)

    def draw(t: int) -> np.ndarray:
        angle = 2 * np.pi * (t % count) / (2.2 * rate)
        motion = MOTIONS[t // count]
        x = 64 + 40 * np.cos(angle) if motion != "vertical" else 64
        y = 64 + 40 * np.sin(angle) if motion != "horizontal" else 64
        image = Image.new("RGB", (128, 128))
        corners = [(x + 15 * np.sin(a), y - 15 * np.cos(a)) for a in (0, 2 * np.pi / 3, 4 * np.pi / 3)]
        ImageDraw.Draw(image).polygon(corners, fill=(230, 120, 20))
        return np.asarray(image)

    write_video(path, map(draw, range(count * len(MOTIONS))), rate)


def watch_shapes(out: Path) -> list[str]:
    """Classify a video that is rendered here, and write its timeline and an annotated copy into ``out``.

    Returns:
        Lines of the report.
    """
    video, entry = out / "input" / "triangle.mp4", zoo.get_weights(VIDEO)
    render_shapes(video)
    (found,), _ = classify_videos(load_model(entry), entry, [video], window=2.0, step=0.5, annotate=True, out=out)
    # Only a window that lies within one motion has a right answer.
    inside = [w for w in found.timeline if w.begin // 4 == (w.end - 1e-6) // 4]
    right = sum(w.classes[0] == MOTIONS[int(w.begin // 4)] for w in inside)
    return [
        f"## Video, by `{entry.name}` (R3D-10 trained from scratch on motion alone, no normalization)",
        "",
        "A triangle, a shape and a colour that the net never saw, moves sideways, up and down, and in circles, four "
        f"seconds each: {right} of {len(inside)} windows of two seconds that lie within a motion are recognised.",
        "",
        "![timeline](video/triangle.timeline.png)",
        "",
    ]


CAPTIONS = (
    "Two children are playing football in a park.",
    "A man with a red hat is sitting on a bench and reading a newspaper.",
    "A brown dog jumps into the water.",
    "Three women are standing in front of a shop.",
    "A cook is preparing food in a small kitchen.",
)


def translate_captions(out: Path) -> list[str]:
    """Translate captions to German, and draw the attention for the second one into ``out``.

    Returns:
        Lines of the report.
    """
    model, coder = load_folded(zoo.get_weights(TRANSLATOR))
    start = time.monotonic()
    german = [result.texts[0] for result in Translator(model, coder, Beam(beam=5))(CAPTIONS)]
    seconds = time.monotonic() - start
    attention_picture(model, coder, CAPTIONS[1], german[1], out / "attention.png")
    return [
        f"## Translation, by `{TRANSLATOR}` (a Transformer without LayerNorm)",
        "",
        f"Captions to German, beam 5, in {seconds:.1f} s. The net was trained on 28,995 captions of photographs only.",
        "",
        "| caption | German |",
        "|---|---|",
        *(f"| {' | '.join(row)} |" for row in zip(CAPTIONS, german, strict=True)),
        "",
        "![attention](translation/attention.png)",
        "",
    ]


_SKIMAGE = ("chelsea.png", "coffee.png", "astronaut.png", "rocket.jpg", "motorcycle_left.png")


def write_digits(root: Path) -> dict[str, int]:
    """Write scikit-learn's digits (8x8, Optical Recognition of Handwritten Digits, UCI) as folders of PNG files.

    Returns:
        Number of images in ``train`` and in ``val``, which has a fifth of each class.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    indices = range(len(data.target))
    _, chosen = train_test_split(indices, test_size=0.2, stratify=data.target, random_state=0)
    held_out = set(chosen)
    counts = {"train": 0, "val": 0}
    for i, (pixels, label) in enumerate(zip(data.images, data.target, strict=True)):
        split = "val" if i in held_out else "train"
        image = Image.fromarray((pixels * 255 / 16).astype(np.uint8)).resize((32, 32), Image.Resampling.BICUBIC)
        atomic_write(root / split / str(label) / f"{i:04}.png", functools.partial(image.save, format="PNG"))
        counts[split] += 1
    return counts
