"""Pages of onnx-web: their modules in Node.js, and the whole pages in Chromium, against PyTorch on the same files."""

import base64
import dataclasses
import gzip
import io
import json
import random
import shutil

import av
import numpy as np
import pytest
import sentencepiece
import torch
from PIL import Image

import zoo

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from tasks.exporting import check_again, export_weights
from tasks.images import read_image
from tasks.spec import load_model
from tasks.translation.search import Beam, beam_search
from tasks.video.data import as_clip
from tasks.video.decode import VideoInfo, probe, read_frames
from tasks.video.sampling import ClipSampler
from tests.helpers.browser import PAGE, browse, node, require_runtime
from tests.helpers.captions import captions
from tests.helpers.export_page import blocks_of
from tests.helpers.paths import ROOT, shared
from zoo.cleaning import clean
from zoo.errors import ExportError
from zoo.export import TARGETS
from zoo.export.graphs import Deployment
from zoo.export.images import export_net
from zoo.export.onnx_web import contents, runtime
from zoo.text import EOS

TARGET = TARGETS["onnx-web"]
CLASSIFIER = "rescalenet18.flowers"
DETECTOR = "mask_rcnn_rescalenet18_fpn.nuclei"
VIDEO = "rescale_slowonly_r20_cifar.wagon"
TRANSLATOR = "rescale_transformer_tiny.multi30k_en_de"


def exported(name, folder, **options):
    """The page of shipped weights."""
    require_runtime()
    return export_weights(
        name, "onnx-web", folder, fold=True, data=None, half=False, int8=False, overwrite=False, options=options
    ).folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return exported(CLASSIFIER, tmp_path_factory.mktemp("classifier") / "page")


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    return exported(DETECTOR, tmp_path_factory.mktemp("detector") / "page")


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return exported(VIDEO, tmp_path_factory.mktemp("video") / "page")


@pytest.fixture(scope="module")
def translator(tmp_path_factory):
    return exported(TRANSLATOR, tmp_path_factory.mktemp("translator") / "page")


# -- the page's modules in Node.js ----------------------------------------------------------------------


def encoded(pixels):
    """Pixels (H, W, C) as the argument of a module."""
    height, width, channels = pixels.shape
    return {"data": base64.b64encode(pixels.tobytes()).decode(), "width": width, "height": height, "channels": channels}


def test_pictures_become_the_inputs_of_torchvision_bit_by_bit():
    random.seed(0)
    torch.manual_seed(0)
    cases, expected = [], []
    modes = ("bilinear", "bicubic", "nearest", "nearest-exact")
    for i in range(48):
        size = random.randint(1, 90)
        channels = 1 if i % 3 == 0 else 3
        mean, std = (0.485, 0.456, 0.406)[:channels], (0.229, 0.224, 0.225)[:channels]
        order = "BGR" if channels == 3 and i % 4 == 1 else "RGB"
        transform = zoo.InputTransform(size, size + random.randint(0, 40), mean, std, modes[i // 3 % 4], order)
        pixels = torch.randint(256, (random.randint(20, 300), random.randint(20, 300), 3), dtype=torch.uint8).numpy()
        cases.append({"picture": encoded(pixels), "input": dataclasses.asdict(transform)})
        expected.append(transform.build()(Image.fromarray(pixels)).numpy())
    code = """
        import { toInput } from "PAGE/transform.js";
        const out = args.map(({ picture, input }) => {
          const data = new Uint8Array(Buffer.from(picture.data, "base64"));
          const { data: values } = toInput({ ...picture, data }, { input, statistics: input });
          return Buffer.from(values.buffer).toString("base64");
        });
        console.log(JSON.stringify(out));
    """
    for case, found, values in zip(cases, node(code, *cases), expected, strict=True):
        assert np.array_equal(np.frombuffer(base64.b64decode(found), np.float32).reshape(values.shape), values), case[
            "input"
        ]


@pytest.mark.parametrize("crop_mode", ["center", "squash"])
def test_clips_become_the_inputs_of_torchvision_bit_by_bit(crop_mode):
    transform = zoo.VideoTransform(3, None, None, 32, 40, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25), crop_mode)
    frames = torch.randint(256, (3, 60, 71, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    code = """
        import { toClip } from "PAGE/transform.js";
        const [input, ...frames] = args;
        for (const frame of frames) frame.data = new Uint8Array(Buffer.from(frame.data, "base64"));
        const { data, dims } = toClip(frames, { input, statistics: input });
        console.log(JSON.stringify({ data: Buffer.from(data.buffer).toString("base64"), dims }));
    """
    found = node(code, dataclasses.asdict(transform), *(encoded(frame.numpy()) for frame in frames))
    expected = transform.build()(frames.permute(0, 3, 1, 2)).numpy()
    assert found["dims"] == [1, *expected.shape]
    assert np.array_equal(np.frombuffer(base64.b64decode(found["data"]), np.float32).reshape(expected.shape), expected)


@pytest.mark.parametrize("clips", [1, 3, 10])
@pytest.mark.parametrize(("interval", "fps"), [(None, None), (2, None), (4, 12.5), (50, None)])
def test_the_times_of_clips_are_those_of_the_zoo(interval, fps, clips):
    transform = zoo.VideoTransform(8, interval, fps, 32, 32, (0.5,) * 3, (0.2,) * 3)
    info = VideoInfo.from_times(range(75), time_base=1 / 25, keys=(0,), seekable=True, width=32, height=32)
    code = """
        import { clipTimes } from "PAGE/video.js";
        console.log(JSON.stringify(clipTimes(...args)));
    """
    layout = {"frames": 8, "interval": interval, "fps": fps}
    seconds = np.array(node(code, layout, {"duration": info.duration, "fps": info.fps}, clips))
    numbers = np.clip(np.floor((seconds + 1e-4) * 25).astype(int), 0, 74)  # the frame that is shown then
    assert numbers.tolist() == ClipSampler(transform).uniform(info, clips).tolist()


def train(kind, rule, **more):
    """A vocabulary of the captions, some of whose characters are unknown to it."""
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text for pair in captions(800) for text in pair] + ["Ünïcode ﬁnds ① \uff41\uff42"] * 9),
        model_writer=buffer,
        vocab_size=400,
        hard_vocab_limit=False,
        model_type=kind,
        normalization_rule_name=rule,
        bos_id=0,
        pad_id=1,
        eos_id=2,
        unk_id=3,
        minloglevel=2,
        **more,
    )
    return buffer.getvalue()


def compare_tokens(model, texts):
    """Compare the page's tokens and texts of a vocabulary with those of sentencepiece."""
    library = sentencepiece.SentencePieceProcessor(model_proto=model)
    rows = library.encode(texts)
    generator = random.Random(0)
    rows += [[generator.randrange(len(library)) for _ in range(generator.randrange(12))] for _ in range(1000)]
    code = """
        import { Vocabulary } from "PAGE/sentencepiece.js";
        const [model, texts, rows] = args;
        const vocabulary = new Vocabulary(new Uint8Array(Buffer.from(model, "base64")));
        const ids = texts.map((text) => vocabulary.encode(text));
        console.log(JSON.stringify({ ids, texts: rows.map((row) => vocabulary.decode(row)) }));
    """
    found = node(code, base64.b64encode(model).decode(), texts, rows)
    for text, ids, expected in zip(texts, found["ids"], rows[: len(texts)], strict=True):
        assert ids == expected, text
    for row, text in zip(rows, found["texts"], strict=True):
        assert text == library.decode(row), row


def odd_texts(count):
    """Texts of ligatures, blanks, marks, emoji and characters of several scripts."""
    generator = random.Random(1)
    characters = "abc  ▁ﬁÄä\u0308é①\uff41\u3000\u00a0\u200d\u200c😀👩ß中文\uff0cक्षि\t\x01"
    return ["".join(generator.choices(characters, k=generator.randrange(20))) for _ in range(count)]


@pytest.mark.parametrize("rule", ["nmt_nfkc", "nfkc", "identity"])
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_tokens_are_those_of_sentencepiece(kind, rule):
    more = {"remove_extra_whitespaces": False} if rule == "identity" else {}
    every = [f"a{chr(code)} {chr(code)}b" for code in [*range(0x20, 0x3000), *range(0xF900, 0x10000)] if code % 3 == 0]
    compare_tokens(
        train(kind, rule, **more), [text for pair in captions(200, 1) for text in pair] + odd_texts(2000) + every
    )


def test_tokens_of_real_sentences_are_those_of_sentencepiece():
    lines = []
    for path in (shared("data", "multi30k"), shared("data", "wmt_ende")):
        for file in sorted(path.glob("*.gz")):
            lines += gzip.decompress(file.read_bytes()).decode().split("\n")[:2000]
    assert len(lines) > 20_000
    compare_tokens(base64.b64decode(zoo.get_weights(TRANSLATOR).transform.source_model), lines)


def test_sentences_are_cleaned_as_in_training():
    codes = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    texts = [f"x{chr(code)}\u200d{chr(code)}\u200c y" for code in codes if code < 0x20000 or code % 97 == 0]
    texts += ["".join(map(chr, codes[start : start + 50])) for start in range(0, len(codes), 50)] + odd_texts(1000)
    code = """
        import { clean } from "PAGE/cleaning.js";
        console.log(JSON.stringify(args.map(clean)));
    """
    for text, found in zip(texts, node(code, *texts), strict=True):
        assert found == clean(text), ascii(text)


def test_the_search_finds_the_hypotheses_of_the_zoo(translator):
    """In onnxruntime-web under Node.js, with several beams and an exponent of the length."""
    entry = zoo.get_weights(TRANSLATOR)
    coder, net = entry.transform.build(), load_model(entry).eval()
    rows = [[*ids, EOS] for ids in coder.encode(["A cat sleeps on a bench.", "Two dogs, a man and a horse run."])]
    settings = [(1, 1.0), (2, 0.0), (5, 1.4)]
    code = """
        const [folder, rows, settings] = args;
        const ort = await import(`file://${folder}/onnxruntime/ort.wasm.bundle.min.js`);
        const { Search } = await import("PAGE/search.js");
        const { parseManifest } = await import("PAGE/manifest.js");
        ort.env.wasm.numThreads = 1;
        ort.env.wasm.wasmBinary = fs.readFileSync(`${folder}/onnxruntime/ort-wasm-simd-threaded.wasm`);
        const sessions = {};
        for (const name of ["encoder", "decoder"]) {
          sessions[name] = await ort.InferenceSession.create(fs.readFileSync(`${folder}/${name}.onnx`));
        }
        const run = async (name, feeds, outputs) => {
          const tensors = {};
          for (const [key, tensor] of Object.entries(feeds)) {
            tensors[key] = new ort.Tensor(tensor.type, tensor.data, tensor.dims);
          }
          return { outputs: await sessions[name].run(tensors, outputs) };
        };
        const search = new Search(parseManifest(JSON.parse(fs.readFileSync(`${folder}/manifest.json`))), run);
        const found = [];
        for (const [beam, lengthPenalty] of settings) {
          for (const ids of rows) found.push(await search.hypotheses(ids, { beam, lengthPenalty }));
        }
        console.log(JSON.stringify(found));
    """
    found = iter(node(code, str(translator), rows, settings))
    for beam, penalty in settings:
        for row in rows:
            (expected,) = beam_search(net, torch.tensor([row]), Beam(beam=beam, length_penalty=penalty))
            hypotheses = next(found)
            assert [each["tokens"] for each in hypotheses] == [each.tokens for each in expected]
            assert np.allclose([each["score"] for each in hypotheses], [each.score for each in expected], atol=1e-4)


# -- pages in Chromium ----------------------------------------------------------------------------------


@pytest.fixture
def photograph(tmp_path):
    """A photograph as PNG, which all decoders read alike."""
    path = tmp_path / "photograph.png"
    read_image(ROOT / "pictures/photographs/cat/chelsea.jpg").save(path)
    return path


def logits_of(name, picture):
    entry = zoo.get_weights(name)
    with torch.no_grad():
        return load_model(entry).eval()(entry.transforms()(picture)[None])[0].numpy()


def test_the_page_of_a_classifier(classifier, photograph, tmp_path):
    """PNG pictures give the logits of PyTorch; those of JPEG depend on the decoder."""
    jpeg = ROOT / "pictures/photographs/cat/chelsea.jpg"
    text = tmp_path / "text.png"
    text.write_text("no picture")
    steps = [{"file": str(path)} for path in (photograph, jpeg, text)] + [{"click": "#example"}]
    bars = {"evaluate": "[...document.querySelectorAll('.classes li')].map((item) => item.innerText)"}
    answer = browse(classifier, tmp_path, *steps, bars)
    assert answer["ready"]["error"] is None
    assert answer["problems"] == []
    png, jpg, wrong, example, shown = answer["steps"]
    expected = logits_of(CLASSIFIER, read_image(photograph))
    assert np.abs(np.array(png["result"]["values"]) - expected).max() <= 1e-4 * np.abs(expected).max()
    assert np.abs(np.array(jpg["result"]["values"]) - expected).max() <= 0.05 * np.abs(expected).max()
    assert wrong == {
        "result": None,
        "error": "text.png: not a picture that this browser can read. Try PNG, JPEG or WebP.",
    }
    classes = zoo.get_weights(CLASSIFIER).classes
    assert [each["name"] for each in png["result"]["classes"]] == [classes[i] for i in np.argsort(-expected)]
    assert [line.split("\n")[0] for line in shown["result"]] == [each["name"] for each in example["result"]["classes"]]


def test_transparent_and_turned_pictures_are_read_as_in_training(classifier, photograph, tmp_path):
    """On white where they are transparent, and turned to their EXIF orientation."""
    picture = Image.open(photograph)
    paths = tmp_path / "transparent.png", tmp_path / "turned.png", tmp_path / "grey.png"
    cut = picture.copy()
    cut.putalpha(
        Image.fromarray((np.arange(picture.width) > 200).astype(np.uint8)[None].repeat(picture.height, 0) * 255)
    )
    cut.save(paths[0])
    turned = picture.getexif()
    turned[0x0112] = 6
    picture.save(paths[1], exif=turned)
    picture.convert("L").save(paths[2])
    answer = browse(classifier, tmp_path, *({"file": str(path)} for path in paths))
    for path, step in zip(paths, answer["steps"], strict=True):
        expected = logits_of(CLASSIFIER, read_image(path))
        assert np.abs(np.array(step["result"]["values"]) - expected).max() <= 1e-4 * np.abs(expected).max(), path


def test_the_page_of_a_detector(detector, tmp_path):
    path = ROOT / "pictures/nuclei/56d0da5b663ddd49.png"
    lowered = """
        document.getElementById("threshold").value = 0;
        document.getElementById("threshold").dispatchEvent(new Event("input"));
    """
    steps = (
        {"file": str(path)},
        {"evaluate": lowered},
        {"evaluate": "document.querySelector('#objects td + td').innerText"},
    )
    answer = browse(detector, tmp_path, *steps)
    assert answer["problems"] == []
    found = answer["steps"][0]["result"]
    entry = zoo.get_weights(DETECTOR)
    with torch.no_grad():
        expected = load_model(entry).eval()([entry.transforms()(read_image(path))])[0]
    objects = found["objects"]
    assert len(objects) == len(expected["boxes"]) > 5
    assert int(answer["steps"][2]["result"]) == len(objects)
    assert {each["label"] for each in objects} == set(entry.classes)
    assert np.abs(np.array([each["box"] for each in objects]) - expected["boxes"].numpy()).max() <= 0.01
    assert np.abs(np.array([each["score"] for each in objects]) - expected["scores"].numpy()).max() <= 1e-4
    areas = (expected["masks"] > 0.5).sum((1, 2, 3)).numpy()
    assert np.abs(np.array([each["area"] for each in objects]) - areas).max() <= 2


def write_video(path, count=40, rate=10, codec="libvpx-vp9", size=96, shift=0):
    """A video of a bright square that moves from frame to frame."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options={"crf": "8", "b": "0"})
        stream.pix_fmt, stream.width, stream.height = "yuv420p", size, size
        stream.codec_context.gop_size = 12
        for i in range(count):
            image = np.full((size, size, 3), (70, 90, 60), np.uint8)
            image[20:44, 2 * i % (size - 24) : 2 * i % (size - 24) + 24] = (210, 180, 120)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(("ending", "codec"), [("webm", "libvpx-vp9"), ("mp4", "libx264")])
def test_the_page_of_a_video_net(video, ending, codec, tmp_path):
    """The frames are those that the zoo chooses. Their colours depend on the decoder, by up to a few of 255 levels."""
    path = tmp_path / f"clip.{ending}"
    write_video(path, codec=codec)
    answer = browse(
        video, tmp_path, {"file": str(path)}, {"file": str(tmp_path / "script.json")}, {"click": "#example"}
    )
    assert answer["problems"] == []
    clip, wrong, example = answer["steps"]
    assert wrong["error"] == "script.json: not a video that this browser can read. Try MP4 (H.264) or WebM."
    assert example["error"] is None
    entry = zoo.get_weights(VIDEO)
    info = probe(path)
    numbers = ClipSampler(entry.transform).uniform(info, 1)[0]
    assert np.allclose(clip["result"]["times"][0], info.times[numbers], atol=1e-3)
    pixels = as_clip(read_frames(path, info, numbers.tolist()))
    with torch.no_grad():
        expected = load_model(entry).eval()(entry.transforms()(pixels)[None])[0].numpy()
    values = np.array(clip["result"]["values"][0])
    assert np.abs(values - expected).max() <= 0.05 * np.abs(expected).max()
    assert clip["result"]["classes"][0]["name"] == entry.classes[int(expected.argmax())]


@pytest.mark.parametrize(("interval", "fps"), [(3, None), (2, 12.5), (60, None)])
def test_clips_of_a_part_of_a_video(video, interval, fps, tmp_path):
    """Of nets whose frames are an interval apart, three clips are spread over the video."""
    page = tmp_path / "page"
    shutil.copytree(video, page)
    manifest = json.loads((page / "manifest.json").read_text())
    manifest["input"] |= {"interval": interval, "fps": fps}
    (page / "manifest.json").write_text(json.dumps(manifest))
    path = tmp_path / "clip.webm"
    write_video(path)
    choose = {"evaluate": "document.getElementById('clips').value = 3"}
    answer = browse(page, tmp_path, choose, {"file": str(path)})
    info = probe(path)
    layout = dataclasses.replace(zoo.get_weights(VIDEO).transform, interval=interval, fps=fps)
    expected = info.times[ClipSampler(layout).uniform(info, 3)]
    assert np.allclose(answer["steps"][1]["result"]["times"], expected, atol=1e-3)


def test_the_page_of_a_translator(translator, tmp_path):
    entry = zoo.get_weights(TRANSLATOR)
    coder, net = entry.transform.build(), load_model(entry).eval()
    sentences = ["Two men in blue shirts are standing on a ladder.", "A  girl\u00a0plays\twith a ball \u2014 again!"]
    steps = [{"text": "\n".join(sentences), "beam": 4}, {"text": sentences[0], "beam": 1}, {"text": " \n "}]
    answer = browse(translator, tmp_path, *steps, {"click": "#example"})
    assert answer["problems"] == []
    several, greedy, empty, example = answer["steps"]
    for step, beam in ((several, 4), (greedy, 1)):
        for line, sentence in zip(step["result"]["lines"], sentences, strict=False):
            (ids,) = coder.encode([sentence])
            assert line["ids"] == ids
            (expected,) = beam_search(net, torch.tensor([[*ids, EOS]]), Beam(beam=beam))
            assert [each["tokens"] for each in line["hypotheses"]] == [each.tokens for each in expected]
            assert [each["text"] for each in line["hypotheses"]] == [coder.decode(each.tokens) for each in expected]
    assert empty["error"] == "Write a sentence in English first."
    assert example["result"]["lines"][0]["hypotheses"]


@pytest.mark.parametrize("kind", ["classifier", "detector", "video", "translator"])
def test_pages_fit_on_phones(kind, request, tmp_path):
    answer = browse(request.getfixturevalue(kind), tmp_path, {"click": "#example"}, width=360)
    assert answer["steps"][0]["error"] is None
    assert answer["ready"]["width"] <= 360


def test_a_page_of_feature_maps_lists_them(tmp_path):
    require_runtime()
    net = zoo.FeatureExtractor(zoo.create_model("rescalenet18", width=0.125), None).eval()
    page = tmp_path / "page"
    export_net(net, [torch.randn(1, 3, 32, 32), torch.randn(2, 3, 48, 40)], page, to="onnx-web")
    run = """(async () => {
        const images = { type: "float32", data: new Float32Array(3 * 32 * 32), dims: [1, 3, 32, 32] };
        const { outputs } = await window.rescalenet.run({ graph: "model", inputs: { images }, outputs: ["map0"] });
        return [outputs.map0.dims, document.querySelectorAll("tbody tr").length];
    })()"""
    answer = browse(page, tmp_path, {"evaluate": run})
    assert answer["ready"]["error"] is None
    with torch.no_grad():
        maps = net(torch.zeros(1, 3, 32, 32))
    assert answer["steps"][0]["result"] == [list(maps[0].shape), 1 + len(maps)]


def test_missing_files_are_named(classifier, tmp_path):
    page = tmp_path / "page"
    shutil.copytree(classifier, page)
    (page / "model.onnx").unlink()
    assert browse(page, tmp_path)["ready"]["error"] == "model.onnx: the server answered 404; serve the whole folder."
    (page / "manifest.json").write_text("{}")
    answer = browse(page, tmp_path)
    assert answer["ready"]["error"] == "manifest.json: not that of a page of this version; export the net again."


def test_the_lines_of_the_page_on_exports(tmp_path):
    """A page of one's own names what PyTorch finds in the picture."""
    (program,) = blocks_of("onnx-web", "js")
    assert len([line for line in program.splitlines() if line.strip() and not line.startswith("import ")]) <= 10
    exported("rescalenet20_cifar.cifar10_v2", tmp_path / "out/cifar/onnx-web", normalize=True, softmax=True)
    (tmp_path / "pictures").symlink_to(ROOT / "pictures")
    end = "window.rescalenet = { ready: Promise.resolve() };"
    (tmp_path / "own.html").write_text(f'<p id="error" hidden></p><script type="module">{program}{end}</script>')
    answer = browse(tmp_path, tmp_path, {"evaluate": "document.body.innerText"}, page="own.html")
    assert answer["steps"][0]["result"].strip() == "cat"


# -- the export -----------------------------------------------------------------------------------------


def test_an_export_is_compared_again_and_needs_no_npm(classifier, monkeypatch):
    monkeypatch.setattr(runtime, "find_package", lambda: pytest.fail("the folder has the files"))
    assert check_again(classifier, None).worst <= 1e-4


@pytest.mark.parametrize("name", sorted(runtime.FILES))
def test_other_files_than_those_of_onnxruntime_are_not_run(classifier, name, tmp_path):
    """Node.js would run them with the rights of the user."""
    page = tmp_path / "page"
    shutil.copytree(classifier, page)
    path = page / "onnxruntime" / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ExportError, match=f"{name}: not the file of onnxruntime-web@{runtime.VERSION}; export again"):
        runtime.check(page)


def test_a_changed_graph_is_noticed(classifier, tmp_path):
    import onnx

    page = tmp_path / "page"
    shutil.copytree(classifier, page)
    model = onnx.load(page / "model.onnx")
    weights = max(model.graph.initializer, key=lambda each: len(each.raw_data))
    values = np.frombuffer(weights.raw_data, np.float32) * 1.01
    weights.raw_data = values.tobytes()
    onnx.save(model, page / "model.onnx")
    from tasks.exporting import ExportRequest
    from tasks.spec import spec_of
    from zoo.export.graphs import Settings
    from zoo.export.writing import check_graph

    entry = zoo.get_weights(CLASSIFIER)
    spec = spec_of(entry)
    deployment = spec.export.run(entry, ExportRequest(TARGET), spec.options("export", {}, entry.name))
    with pytest.raises(ExportError, match="outputs differ"):
        check_graph(deployment.graphs[0], TARGET, page, Settings())


def test_the_package_is_verified(tmp_path, monkeypatch):
    other = tmp_path / "other.tgz"
    other.write_bytes(b"no package")
    monkeypatch.setenv(runtime.VARIABLE, str(other))
    with pytest.raises(ExportError, match=f"not {runtime.PACKAGE}, or damaged; make it: npm pack"):
        runtime.find_package()
    monkeypatch.setenv(runtime.VARIABLE, str(tmp_path / "missing.tgz"))
    with pytest.raises(ExportError, match="no such file; make it: npm pack"):
        runtime.find_package()


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv(runtime.VARIABLE, raising=False)
    monkeypatch.setenv("RESCALENET_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("RESCALENET_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(ExportError, match="needs npm on the PATH: install Node.js"):
        runtime.find_package()
    monkeypatch.setenv("RESCALENET_OFFLINE", "1")
    with pytest.raises(ExportError, match="RESCALENET_OFFLINE=1 forbids the download"):
        runtime.find_package()


@pytest.mark.parametrize("option", ["byte_fallback", "user_defined_symbols", "treat_whitespace_as_suffix"])
def test_vocabularies_that_the_page_does_not_read_are_refused(option):
    model = train("bpe", "nmt_nfkc", **{option: ["<x>"] if option == "user_defined_symbols" else True})
    deployment = Deployment(
        "text", (), {"vocabularies": {"source": "a.model", "target": "a.model"}}, files={"a.model": model}
    )
    with pytest.raises(
        ExportError, match=r"a\.model: the page does not read (pieces that are bytes|blanks at the ends)"
    ):
        contents.is_shown(deployment)


def test_pictures_of_other_channels_are_refused():
    deployment = Deployment("images", (), {"classes": ["a"], "input": {"mean": [0.0] * 4}})
    with pytest.raises(ExportError, match="browsers read pictures of 1 or 3 channels, not 4"):
        contents.is_shown(deployment)


def test_the_page_has_no_address_of_another_host():
    for path in PAGE.rglob("*"):
        if path.is_file():
            content = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
            assert "http:" not in content, path
            assert "https:" not in content, path
