"""``rescalenet demo``: the main job on real input, in a few minutes, without a network."""

from __future__ import annotations

import functools
import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import zoo
from tasks import plots
from tasks.classification.data import folder_images
from tasks.classification.evaluate import evaluate_weights
from tasks.classification.predict import FILES as photo_files
from tasks.classification.predict import classify_images
from tasks.config import read_yaml
from tasks.detection.coco import load_coco
from tasks.detection.compare import compare, draw_comparison
from tasks.detection.evaluate import categories_of, detect
from tasks.devices import make_accelerator
from tasks.engine import Trainer
from tasks.errors import UserError
from tasks.exporting import export_weights
from tasks.files import pictures_dir
from tasks.images import find_images
from tasks.outputs import OutputFolder
from tasks.plots import side_by_side
from tasks.progress import print_line
from tasks.report import duration
from tasks.spec import load_model, make_task, resolve
from tasks.translation.attention import attention_picture
from tasks.translation.evaluate import load_folded
from tasks.translation.predict import Translator
from tasks.translation.search import Beam
from tasks.video.encode import write_video
from tasks.video.predict import FILES as video_files
from tasks.video.predict import classify_videos
from zoo.files import atomic_write, write_text

NET = "rescalenet20_cifar"
DETECTOR = "mask_rcnn_rescalenet18_fpn.nuclei"
VIDEO = "rescale_r3d_10.shapes"
TRANSLATOR = "rescale_transformer_tiny.multi30k_en_de"
CLASSIFIER = f"{NET}.cifar10_v2"
BASELINES = {"rescale": f"{NET}.cifar10", "bn": f"{NET}.cifar10_bn"}  # trained alike, so that one rate serves both


# what the jobs write into the folder of the demo
RESULTS = ("report.md", "curves.png", "onnx", "digits", *BASELINES)
RESULTS += ("photographs", "nuclei", "video", "translation")


def run(out: Path, *, overwrite: bool = False) -> None:
    """Run the main job of each task on real input, and write all results and ``report.md`` into ``out``.

    The jobs are photographs, fine-tuning at batch size 2 beside BatchNorm, export, cell nuclei, a video, captions.

    Args:
        out: folder of the results.
        overwrite: whether the results of an earlier demo are replaced.

    Raises:
        UserError: the extra ``demo`` is not installed; the folder has results, or a run of something else.
    """
    begin = time.monotonic()
    OutputFolder(out, RESULTS, overwrite=overwrite)
    digits = out / "digits"
    counts = write_digits(digits)
    digits_job = f"fine-tuning on {counts['train']} handwritten digits at batch size 2, rescale and bn"

    # Each job announces itself, returns its lines of the report, and is timed as a whole: loading, work, pictures.
    jobs: list[tuple[str, Callable[[], list[str]]]] = [
        (f"classifying photographs with {CLASSIFIER}", lambda: classify_photographs(out / "photographs")),
        (digits_job, lambda: fine_tune(digits, counts, out)),
        ("evaluating both", lambda: compare_schemes(digits, out)),
        ("exporting to ONNX", lambda: export_digits(digits, out)),
        (f"finding cell nuclei with {DETECTOR}", lambda: find_nuclei(out / "nuclei")),
        (f"watching a video with {VIDEO}", lambda: watch_shapes(out / "video")),
        (f"translating captions with {TRANSLATOR}", lambda: translate_captions(out / "translation")),
    ]
    report, times = ["# RescaleNet demo", ""], []
    for number, (title, work) in enumerate(jobs, 1):
        print_line(f"{number}/{len(jobs)} {title}")
        start = time.monotonic()
        report += work()
        times.append((title, time.monotonic() - start))

    # Report the times, and print the report without its pictures.
    report += ["## Time", "", "| job, with loading and drawing | time |", "|---|---|"]
    report += [f"| {title} | {duration(seconds)} |" for title, seconds in times]
    report += ["", f"Took {duration(time.monotonic() - begin)}.", ""]
    write_text("\n".join(report), out / "report.md")
    for line in report:
        if line and not line.startswith("!["):
            print_line(line)
    print_line(f"see {out / 'report.md'}")


def classify_photographs(out: Path) -> list[str]:
    """Classify photographs by the CIFAR-10 net, and write a contact sheet and JSON into ``out``.

    The photographs ship in a folder for each class.

    Returns:
        Lines of the report.
    """
    weights = zoo.get_weights(CLASSIFIER)
    photographs = find_images([str(pictures_dir() / "photographs")])
    folder = OutputFolder(out, photo_files, photographs, overwrite=True)
    failed: dict[str, str] = {}
    rows, right, shown = [], 0, set()
    for p in classify_images(load_model(weights), weights, photographs, failed, out=folder):
        name, true = Path(p.file).name, Path(p.file).parent.name
        first, second = (f"{c} {s:.0%}" for c, s in zip(p.classes[:2], p.scores[:2], strict=True))
        rows.append(f"| {name} | {true} | {first} | {second} |")
        right += p.classes[0] == true
        shown.add(true)
    missing = [name for name in weights.classes if name not in shown]
    known = weights.meta["metrics"]["top1"]
    return [
        f"## Photographs, by `{weights.name}` (10 classes, 32 px)",
        "",
        f"{right} of {len(rows)} are recognised (of CIFAR-10's 10,000 test images, {known:.1f} %). There is no "
        f"photograph of {', '.join(missing)}. Photographers and licences: `{pictures_dir() / 'README.md'}`.",
        "",
        "| photograph | class | first | second |",
        "|---|---|---|---|",
        *rows,
        "",
        "![contact sheet](photographs/contact_sheet.png)",
        "",
    ]


def fine_tune(digits: Path, counts: Mapping[str, int], out: Path) -> list[str]:
    """Fine-tune the CIFAR-10 nets on digits, a run for each scheme in ``out/SCHEME``; those of a demo are removed.

    Args:
        digits: folder of the digits.
        counts: number of digits by split.
        out: folder of the runs.

    Returns:
        Lines of the report.

    Raises:
        UserError: a folder of these names with a run of something else.
    """
    times = []
    for scheme, name in BASELINES.items():
        folder = out / scheme
        if (stored := folder / "config.yaml").exists():
            if Path(str(read_yaml(stored).get("data", {}).get("root"))).resolve() != digits.resolve():
                raise UserError(f"{folder}: is no run of an earlier demo; choose another folder with --out")
            shutil.rmtree(folder)
        config = resolve(
            "classification/digits/rescalenet20",
            [f"data.root={digits}", f"output={folder}", f"model.weights={name}", f"model.scheme={scheme}"],
        )
        trainer = Trainer(make_task(config))
        start = time.monotonic()
        trainer.fit()
        times.append(f"{duration(time.monotonic() - start)} for {scheme}")
    return [
        f"## Fine-tuned on scikit-learn's digits at batch size 2 ({counts['train']} images, {counts['val']} held out)",
        "",
        f"Training, with an evaluation after each epoch, took {' and '.join(times)}.",
        "",
    ]


def compare_schemes(digits: Path, out: Path) -> list[str]:
    """Evaluate the fine-tuned nets, and draw confusion matrices and curves into ``out``.

    Args:
        digits: folder of the digits.
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
        "| scheme | top-1 | worst class |",
        "|---|---|---|",
        *rows,
        "",
        "![curves](curves.png)",
        "",
        "![confusion](rescale/confusion.png)",
        "",
    ]


def export_digits(digits: Path, out: Path) -> list[str]:
    """Export the fine-tuned rescale net to ONNX, compare it at the held-out digits, and return lines of the report.

    Args:
        digits: folder of the digits.
        out: folder of the runs.
    """
    verified = export_weights(
        str(_last_weights(out, "rescale")),
        "onnx",
        out / "onnx",
        fold=True,
        data=digits / "val",
        half=False,
        int8=False,
        overwrite=True,
        options={"normalize": True},
    )
    return ["## Export", "", str(verified), ""]


def _last_weights(out: Path, scheme: str) -> Path:
    return out / scheme / "checkpoints" / "last.safetensors"


STAINS = {"gray": "fluorescence", "color": "stained tissue"}  # by the data set's name


def find_nuclei(out: Path) -> list[str]:
    """Find the nuclei in three pictures, and draw them beside the true ones into ``out``.

    The pictures are of the validation set of the weights; pictures/README.md has the rule by which they were chosen.

    Returns:
        Lines of the report.
    """
    # Detect, which is timed with the reading of the pictures, but without loading the net.
    folder = pictures_dir() / "nuclei"
    data = load_coco(folder / "instances.json", folder, masks=True, check="none")
    entry = zoo.get_weights(DETECTOR)
    accelerator = make_accelerator()
    model = load_model(entry).to(accelerator.device)
    start = time.monotonic()
    results = detect(model, data, accelerator, categories=categories_of(data, entry.classes, entry.name))
    seconds = time.monotonic() - start
    # Compare with the true masks, and draw.
    stains = {image["id"]: STAINS[image["stain"]] for image in json.loads(data.path.read_text())["images"]}
    rows, pictures = [], []
    for compared in compare(data, results):
        image, metrics = compared.image, compared.report.metrics()
        kind = f"{stains[image.id]}, {image.width} x {image.height}"
        rows.append(
            f"| {image.file_name} | {kind} | {len(compared.true)} | {len(compared.found)} | {compared.right} | "
            f"{metrics['mask_ap']:.3f} | {metrics['mask_ap50']:.3f} |"
        )
        side_by_side(*draw_comparison(data.read(image), compared), out / image.file_name)
        pictures += [f"![{kind}](nuclei/{image.file_name})", ""]
    expected = entry.meta["metrics"]
    return [
        f"## Cell nuclei, by `{entry.name}` (Mask R-CNN trained from scratch, no normalization)",
        "",
        "The pictures are of the validation set, which the net was not trained on: of each kind the one of the median "
        f"mask AP. (Over all 105 pictures, mask AP is {expected['mask_ap']:.3f}, AP50 {expected['mask_ap50']:.3f}.) "
        f"The three took {duration(seconds)}. A detection is shown if its score is at least 50 %, and right if it "
        "overlaps a true nucleus by an IoU of at least 0.5. AP counts all detections.",
        "",
        "| picture | kind | true nuclei | detections | right | mask AP | AP50 |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
        *pictures,
    ]


MOTIONS = ("horizontal", "vertical", "circular")
SECONDS = 4  # of each motion


def render_shapes(path: Path, rate: int = 16) -> None:
    """Render a video of 128 px in which an orange triangle moves in each of ``MOTIONS`` for ``SECONDS``."""
    count = SECONDS * rate

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
    folder = OutputFolder(out, video_files, [video], overwrite=True)
    failed: dict[str, str] = {}
    model = load_model(entry)
    (found,) = classify_videos(model, entry, [video], failed, window=2.0, step=0.5, annotate=True, out=folder)
    # Only a window that lies within one motion has a right answer.
    inside = [w for w in found.timeline if w.begin // SECONDS == (w.end - 1e-6) // SECONDS]
    right = sum(w.classes[0] == MOTIONS[int(w.begin // SECONDS)] for w in inside)
    return [
        f"## Video, by `{entry.name}` (R3D-10 trained from scratch on motion alone, no normalization)",
        "",
        "A triangle, a shape and a colour that the net never saw, moves sideways, up and down, and in circles, "
        f"{SECONDS} seconds each: {right} of {len(inside)} windows of two seconds that lie within a motion are "
        "recognised.",
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
    start = time.monotonic()  # the net is loaded
    results = list(Translator(model, coder, Beam(beam=5))(CAPTIONS))
    german = [result.texts[0] for result in results]
    seconds = time.monotonic() - start
    attention_picture(model, coder, *results[1].parts[0], out / "attention.png")
    return [
        f"## Translation, by `{TRANSLATOR}` (a Transformer without LayerNorm)",
        "",
        f"{len(CAPTIONS)} captions to German with beam 5 took {duration(seconds)}. The net was trained on 28,995 "
        "captions of photographs only.",
        "",
        "| caption | German |",
        "|---|---|",
        *(f"| {' | '.join(row)} |" for row in zip(CAPTIONS, german, strict=True)),
        "",
        "![attention](translation/attention.png)",
        "",
    ]


def write_digits(root: Path) -> dict[str, int]:
    """Write scikit-learn's digits (8x8, Optical Recognition of Handwritten Digits, UCI) as folders of PNG files.

    Returns:
        Number of images in ``train`` and in ``val``, which has a fifth of each class.

    Raises:
        UserError: the extra ``demo`` is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise UserError(f"the demo needs {error.name}: pip install 'rescalenet-zoo[demo]'") from None

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
