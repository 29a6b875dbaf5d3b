"""``rescalenet demo``: the main job on real input, in a few minutes, without a network."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from PIL import Image

import zoo
from tasks import plots
from tasks.classification.data import folder_images
from tasks.classification.evaluate import Result, evaluate_weights, write_report
from tasks.classification.predict import predict
from tasks.detection.detector import create_detector
from tasks.detection.predict import predict as detect
from tasks.engine import Trainer
from tasks.errors import UserError
from tasks.progress import print_line
from tasks.run import load_model, make_task, resolve
from tasks.translation.attention import attention_picture
from tasks.translation.commands import load_folded
from tasks.translation.predict import Translator
from tasks.translation.search import Beam
from tasks.video.encode import write_video
from tasks.video.predict import predict as watch
from zoo.export.onnx import export_onnx
from zoo.files import atomic_write, write_text

NET = "rescalenet20_cifar"
DETECTOR = "mask_rcnn_rescalenet18_fpn.nuclei"
VIDEO = "rescale_r3d_10.shapes"
TRANSLATOR = "rescale_transformer_tiny.multi30k_en_de"
RIVALS = {"rescale": f"{NET}.cifar10", "bn": f"{NET}.cifar10_bn"}


def run(out: Path) -> None:
    """Classify photographs, fine-tune beside BatchNorm at batch size 2, export, find nuclei, watch a video, translate.

    All goes into ``out``.

    Raises:
        UserError: the extra ``demo`` is not installed.
    """
    start = time.monotonic()
    try:
        import skimage
        from sklearn import datasets
    except ImportError as error:
        raise UserError(f"the demo needs {error.name}: pip install 'rescalenet-zoo[demo]'") from None
    report = ["# RescaleNet demo", ""]

    print_line(f"1/7 classifying photographs with {RIVALS['rescale']}")
    sources = {name: Path(skimage.__file__).parent / "data" / name for name in _SKIMAGE}
    sources |= {Path(f).name: Path(f) for f in datasets.load_sample_images().filenames}
    weights = zoo.get_weights(RIVALS["rescale"])
    model = zoo.create_model(NET, "cifar10")
    predictions, _ = predict(model, weights, list(sources.values()), out=out / "photographs")
    report += [
        f"## Photographs, by `{weights.name}` (CIFAR-10 classes, 32 px)",
        "",
        "The net knows ten classes; only the cat's is among them, the other pictures show what it makes of the rest.",
        "",
        "| photograph | first | second |",
        "|---|---|---|",
    ]
    for p in predictions:
        first, second = (f"{c} {s:.0%}" for c, s in zip(p.classes[:2], p.scores[:2], strict=True))
        report.append(f"| {Path(p.file).name} | {first} | {second} |")
    report += ["", "![contact sheet](photographs/contact_sheet.png)", ""]

    digits = out / "digits"
    counts = write_digits(digits)
    print_line(f"2/7 fine-tuning on {counts['train']} handwritten digits at batch size 2, rescale and bn")
    results: dict[str, Result] = {}
    for scheme, name in RIVALS.items():
        folder = out / scheme
        _forget(folder)
        config = resolve(
            "classification/digits/rescalenet20",
            [f"data.root={digits}", f"output={folder}", f"model.weights={name}", f"model.scheme={scheme}"],
        )
        Trainer(make_task(config)).fit()

    print_line("3/7 evaluating both")
    for scheme in RIVALS:
        path = str(out / scheme / "checkpoints" / "last.safetensors")
        entry = zoo.get_weights(path)
        results[scheme] = evaluate_weights(zoo.create_model(NET, path), entry, folder_images(digits / "val"))
        write_report(results[scheme], entry.classes, out / scheme)
    plots.curves({s: out / s / "log.jsonl" for s in RIVALS}, out / "curves.png", "top1")
    report += [
        f"## Fine-tuned on scikit-learn's digits at batch size 2 ({counts['train']} images, {counts['val']} held out)",
        "",
        "| scheme | top-1 | worst class |",
        "|---|---|---|",
    ]
    for scheme, result in results.items():
        report.append(f"| {scheme} | {result.metrics()['top1']:.2f} % | {float(result.per_class().min()):.1%} |")
    report += ["", "![curves](curves.png)", "", "![confusion](rescale/confusion.png)", ""]

    print_line("4/7 exporting to ONNX")
    path = str(out / "rescale" / "checkpoints" / "last.safetensors")
    verified = export_onnx(zoo.fold(zoo.create_model(NET, path)), out / "rescalenet20_digits.onnx", input_size=32)
    report += ["## Export", "", str(verified), ""]

    print_line(f"5/7 finding cell nuclei with {DETECTOR}, in tiles")
    report += find_nuclei(Path(skimage.__file__).parent / "data" / "ihc.png", out / "nuclei")

    print_line(f"6/7 watching a video with {VIDEO}")
    report += watch_shapes(out / "video")

    print_line(f"7/7 translating captions with {TRANSLATOR}")
    report += translate_captions(out / "translation")
    report.append(f"Took {time.monotonic() - start:.0f} s.")
    write_text("\n".join(report) + "\n", out / "report.md")
    for line in report:
        if line.startswith("|") or "agrees" in line or "nuclei, of" in line or "are recognised" in line:
            print_line(line)
    print_line(f"see {out / 'report.md'}")


def find_nuclei(slide: Path, out: Path) -> list[str]:
    """Boxes and masks of the nuclei in a tissue slide larger than the training images; picture and JSON into ``out``.

    Returns:
        What the report says of it.
    """
    from skimage.color import rgb2hed

    # The net knows fluorescence (bright nuclei) and H&E; here a brown stain covers the nuclei. So: the blue one alone.
    stain = rgb2hed(np.asarray(Image.open(slide).convert("RGB")))[..., 0]
    low, high = np.percentile(stain, (30, 99.7))
    grey = Image.fromarray((255 * np.clip((stain - low) / (high - low), 0, 1)).round().astype(np.uint8))
    picture = out / "input" / "haematoxylin.png"
    atomic_write(picture, lambda path: grey.save(path, format="PNG"))
    entry = zoo.get_weights(DETECTOR)
    model = create_detector(entry.config.name, entry.name)
    start = time.monotonic()
    (found,), _ = detect(model, entry, [picture], threshold=0.5, tile=256, out=out)
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
    """A video in which an orange triangle moves in each of ``MOTIONS`` for some seconds, 128 px."""
    from PIL import ImageDraw

    count = round(seconds * rate)

    def place(t: int) -> tuple[float, float]:
        angle = 2 * np.pi * (t % count) / (2.2 * rate)
        motion = MOTIONS[t // count]
        x = 64 + 40 * np.cos(angle) if motion != "vertical" else 64
        y = 64 + 40 * np.sin(angle) if motion != "horizontal" else 64
        return float(x), float(y)

    def draw(t: int) -> np.ndarray:
        x, y = place(t)
        image = Image.new("RGB", (128, 128))
        corners = [(x + 15 * np.sin(a), y - 15 * np.cos(a)) for a in (0, 2 * np.pi / 3, 4 * np.pi / 3)]
        ImageDraw.Draw(image).polygon(corners, fill=(230, 120, 20))
        return np.asarray(image)

    write_video(path, map(draw, range(count * len(MOTIONS))), rate)


def watch_shapes(out: Path) -> list[str]:
    """A video rendered here, its timeline and an annotated copy into ``out``.

    Returns:
        What the report says of it.
    """
    video, entry = out / "input" / "triangle.mp4", zoo.get_weights(VIDEO)
    render_shapes(video)
    (found,), _ = watch(load_model(entry), entry, [video], window=2.0, step=0.5, annotate=True, out=out)
    # a window belongs to the motion that fills it
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
    """Captions translated to German; where the net looked for the second into ``out``.

    Returns:
        What the report says of it.
    """
    model, coder = load_folded(zoo.get_weights(TRANSLATOR))
    start = time.monotonic()
    german = [result.texts[0] for result in Translator(model, coder, Beam(beam=5))(CAPTIONS)]
    seconds = time.monotonic() - start
    attention_picture(model, coder, CAPTIONS[1], german[1], out / "attention.png")
    return [
        f"## Translation, by `{TRANSLATOR}` (a Transformer without LayerNorm)",
        "",
        f"Captions to German, beam 5, in {seconds:.1f} s. It has read 28,995 captions of photographs, nothing else.",
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
    """scikit-learn's digits (8x8, Optical Recognition of Handwritten Digits, UCI) as PNG folders.

    A fifth of each class is held out. Returns the number of images in ``train`` and ``val``.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    indices = range(len(data.target))
    _, held = train_test_split(indices, test_size=0.2, stratify=data.target, random_state=0)
    held = set(held)
    counts = {"train": 0, "val": 0}
    for i, (pixels, label) in enumerate(zip(data.images, data.target, strict=True)):
        split = "val" if i in held else "train"
        image = Image.fromarray((pixels * 255 / 16).astype(np.uint8)).resize((32, 32), Image.Resampling.BICUBIC)

        def save(path: Path, image: Image.Image = image) -> None:
            image.save(path, format="PNG")

        atomic_write(root / split / str(label) / f"{i:04}.png", save)
        counts[split] += 1
    return counts


def _forget(folder: Path) -> None:
    """Remove an earlier demo's run, and nothing else."""
    import shutil

    if (folder / "config.yaml").exists():
        shutil.rmtree(folder)
