"""`Predictor` against a computation by hand, from every kind of source, with bad ones among them, from many threads."""

import io
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from dogbreed.core.errors import DogbreedError
from dogbreed.data.images import BadImage, Preprocessing
from dogbreed.inference.predictor import Predictor, _device
from dogbreed.inference.schema import ClassScore, Options, Request
from dogbreed.models import backbones, model_folder

NAMES = ["Amber_hound", "Blue_spitz", "Green-eyed_setter", "Red_terrier"]
SMALL = Preprocessing(size=64, resize_size=72)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory) -> Predictor:
    network = backbones.create("squeezenet1_1", 4, weights="none", seed=3)
    folder = tmp_path_factory.mktemp("exported") / "model"
    model_folder.save(
        folder,
        model_folder.Exported(
            network=network,
            backbone="squeezenet1_1",
            class_names=NAMES,
            preprocessing=SMALL,
            temperature=0.03,
        ),
    )
    return Predictor(folder, device="cpu")


@pytest.fixture(scope="module")
def photos(dog_tree):
    return sorted(dog_tree.glob("test/*/*.jpg"))


def test_answers_are_those_of_a_computation_by_hand(predictor, photos):
    answers = predictor.predict(photos, top_k=4)
    assert len(answers) == 12
    network = predictor.model.network
    for path, answer in zip(photos, answers, strict=True):
        pixels = Image.open(path).convert("RGB").resize((64, 64), Image.Resampling.BILINEAR)
        scaled = (np.asarray(pixels, dtype=np.float64) / 255 - SMALL.mean) / SMALL.std
        with torch.no_grad():
            logits = network(torch.from_numpy(scaled).float().permute(2, 0, 1)[None])[0].double().numpy() / 0.03
        expected = np.exp(logits - logits.max())
        expected /= expected.sum()
        order = np.argsort(-expected)
        assert [guess.label for guess in answer.top] == [NAMES[i] for i in order]
        # torchvision and Pillow resize to within one level.
        np.testing.assert_allclose([guess.probability for guess in answer.top], expected[order], atol=0.02)
        assert ClassScore(answer.label, answer.index, answer.probability) == answer.top[0]
        assert NAMES[answer.index] == answer.label
        assert sum(guess.probability for guess in answer.top) == pytest.approx(1)
    assert len({answer.probability for answer in answers}) == 12


@pytest.mark.parametrize(
    ("cuda", "mps", "runtime", "device"),
    [
        (True, False, "auto", "cuda"),
        (True, True, "torch", "cuda"),
        (False, True, "auto", "mps"),
        (False, True, "onnx", "cpu"),
        (False, False, "auto", "cpu"),
    ],
)
def test_the_best_device_is_the_default(monkeypatch, tmp_path, cuda, mps, runtime, device):
    """It is the first thing that is looked at, so that no such device is needed here."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert _device(None, runtime) == torch.device(device)


def test_logits_are_before_the_temperature(predictor):
    images = torch.randn(3, 3, 64, 64)
    logits = predictor.logits(images)
    assert logits.shape == (3, 4)
    assert logits.dtype == torch.float32
    with torch.inference_mode():
        expected = predictor.model.network(images.contiguous(memory_format=torch.channels_last))
    assert torch.equal(logits, expected)


def test_bytes_and_paths_are_the_same(predictor, photos):
    from_bytes = predictor.predict([path.read_bytes() for path in photos])
    assert from_bytes == predictor.predict(photos)
    assert from_bytes == predictor.predict(str(path) for path in photos)


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_the_batch_size_does_not_matter(predictor, photos, batch_size):
    expected = predictor.predict(photos, batch_size=32)
    found = predictor.predict(photos, batch_size=batch_size)
    assert [answer.label for answer in found] == [answer.label for answer in expected]
    for one, two in zip(found, expected, strict=True):
        assert one.probability == pytest.approx(two.probability, abs=1e-4)


def test_a_request_of_many_images_takes_several_passes(predictor, photos):
    sizes = []
    hook = predictor.model.network.register_forward_hook(lambda module, given, output: sizes.append(len(given[0])))
    images = [path.read_bytes() for path in photos[:3]] * 7
    try:
        answers = predictor.respond(Request([*images[:10], b"none", *images[10:]], several=True, options=Options(2)))
    finally:
        hook.remove()
    assert sizes == [8, 8, 5]
    assert isinstance(answers.pop(10), BadImage)
    expected = predictor.predict(images, top_k=2)
    assert [[guess.label for guess in a.predictions] for a in answers] == [[g.label for g in e.top] for e in expected]
    assert [a.predictions[0].probability for a in answers] == pytest.approx([e.probability for e in expected], abs=1e-5)


def test_grey_transparent_and_other_pictures_are_answered(predictor):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 60, 3), dtype=np.uint8))
    sources = []
    for mode, kind in (("L", "JPEG"), ("CMYK", "JPEG"), ("RGBA", "PNG"), ("P", "PNG"), ("1", "PNG"), ("RGB", "WEBP")):
        file = io.BytesIO()
        picture.convert(mode).save(file, kind)
        sources.append(file.getvalue())
    assert len(predictor.predict(sources)) == 6


@pytest.mark.parametrize(("top_k", "length"), [(1, 1), (3, 3), (4, 4), (5, 4), (1000, 4)])
def test_top_k(predictor, photos, top_k, length):
    answer = predictor.predict(photos[:1], top_k=top_k)[0]
    assert len(answer.top) == length
    assert answer.top == predictor.predict(photos[:1], top_k=4)[0].top[:length]
    probabilities = [guess.probability for guess in answer.top]
    assert probabilities == sorted(probabilities, reverse=True)


@pytest.mark.parametrize("argument", [{"top_k": 0}, {"top_k": -1}, {"batch_size": 0}])
def test_senseless_arguments(predictor, photos, argument):
    with pytest.raises(
        DogbreedError, match=f"{next(iter(argument))}=.* is out of range; it must be a whole number from 1"
    ):
        predictor.predict(photos, **argument)


def test_nothing_asked_nothing_answered(predictor):
    assert predictor.predict([]) == []


def test_answers_are_plain_values(predictor, photos):
    answer = json.loads(json.dumps(predictor.predict(photos[:1], top_k=2)[0].to_dict()))
    assert answer.keys() == {"label", "index", "probability", "top"}
    assert answer["top"][0] == {name: answer[name] for name in ("label", "index", "probability")}
    assert len(answer["top"]) == 2


def test_a_bad_image_stops_predict(predictor, photos, tmp_path):
    bad = tmp_path / "broken.jpg"
    bad.write_bytes(photos[0].read_bytes()[:500])
    with pytest.raises(BadImage, match=r"broken\.jpg cannot be used: truncated"):
        predictor.predict([photos[0], bad, photos[1]])
    with pytest.raises(BadImage, match=r"The image cannot be used: not an image"):
        predictor.predict([b"no image"])


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_try_predict_answers_the_others(predictor, photos, tmp_path, batch_size):
    sources = [b"", photos[0], tmp_path / "missing.jpg", photos[1], b"GIF89a", photos[2]]
    found = list(predictor.try_predict(sources, batch_size=batch_size))
    assert [getattr(answer, "reason", None) for answer in found[::2]] == ["empty file", "missing", found[4].reason]
    assert all(isinstance(answer, BadImage) for answer in found[::2])
    expected = predictor.predict(photos[:3])
    assert [answer.label for answer in found[1::2]] == [answer.label for answer in expected]
    for one, two in zip(found[1::2], expected, strict=True):
        assert one.probability == pytest.approx(two.probability, abs=1e-4)


def test_answers_come_as_they_are_ready(predictor, photos):
    taken = []

    def sources():
        for path in photos:
            taken.append(path)
            yield path

    answers = predictor.try_predict(sources(), batch_size=2)
    next(answers)
    assert len(taken) == 2, "a folder of a million photographs is not read first"


def test_too_large_images_are_refused(predictor, photos):
    careful = Predictor.__new__(Predictor)
    careful.__dict__.update(predictor.__dict__, max_pixels=1000)
    (answer,) = careful.try_predict(photos[:1])
    assert isinstance(answer, BadImage)
    assert "too many pixels" in answer.reason


def test_many_threads(predictor, photos):
    expected = [predictor.predict([path]) for path in photos]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda path: predictor.predict([path]), photos * 4))
    for answers, same in zip(found, expected * 4, strict=True):
        assert [one.label for one in answers] == [one.label for one in same]
        # A thread may have fewer of torch's own, and round otherwise.
        assert [one.probability for one in answers] == pytest.approx([one.probability for one in same], abs=1e-6)


def test_one_photograph_of_every_kind_is_one_prediction(predictor, photos):
    (expected,) = predictor.predict([photos[0]])
    image = Image.open(photos[0])
    array = np.asarray(image)
    for source in (photos[0], str(photos[0]), photos[0].read_bytes(), image, array):
        assert predictor.predict(source) == expected
        assert predictor.predict([source]) == [expected]
    assert predictor.predict((image, array)) == predictor.predict([photos[0]] * 2)
    grey, opaque = array[..., 0], np.dstack([array, np.full(array.shape[:2], 255, np.uint8)])
    assert predictor.predict(opaque) == expected
    assert predictor.predict(grey) == predictor.predict(np.dstack([grey] * 3))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "F"])
def test_images_of_every_mode_are_as_their_files(predictor, photos, mode, tmp_path):
    image = Image.open(photos[0]).convert("L" if mode in ("I;16", "I", "F") else "RGB").convert(mode)
    if mode in ("HSV", "LAB", "YCbCr"):  # which files hold rarely, and Pillow itself converts
        expected = predictor.predict(image.convert("RGB"))
        assert predictor.predict(image).probability == pytest.approx(expected.probability, abs=0.02)
        return
    image.save(tmp_path / "photo.tiff")
    assert predictor.predict(image) == predictor.predict(tmp_path / "photo.tiff")


def test_a_pil_image_is_turned_and_its_transparency_is_white(predictor, photos, tmp_path):
    turned = Image.open(photos[0])
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    assert predictor.predict(Image.open(tmp_path / "turned.png")) == predictor.predict(tmp_path / "turned.png")
    clear = Image.open(photos[0]).quantize(16)
    clear.info["transparency"] = 3
    clear.save(tmp_path / "clear.png")
    assert predictor.predict(clear) == predictor.predict(tmp_path / "clear.png") != predictor.predict(photos[0])


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (np.zeros((8, 8, 3)), "an array of float64, 8 x 8 x 3; it must be uint8"),
        (np.zeros((3, 8, 8), np.uint8), "an array of uint8, 3 x 8 x 8; it must be"),
        (np.zeros((0, 8, 3), np.uint8), "an array of uint8, 0 x 8 x 3; it must be"),
        (np.array(3, np.uint8), "an array of uint8, one number"),
        (b"", "empty file"),
    ],
)
def test_sources_that_are_no_image(predictor, source, said):
    with pytest.raises(BadImage, match=said):
        predictor.predict(source)
    assert isinstance(next(predictor.try_predict([source])), BadImage)


def test_a_run_stands_for_its_model(predictor, tmp_path, photos):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "best.ckpt").write_bytes(b"")
    model_folder.save(run / "model", predictor.model)
    expected = predictor.predict(photos[0])
    for path in (
        run,
        run / "model",
        run / "model" / "model.json",
        run / "checkpoints",
        run / "checkpoints" / "best.ckpt",
    ):
        assert Predictor(str(path), device="cpu").predict(photos[0]) == expected


def test_no_model(tmp_path):
    with pytest.raises(DogbreedError, match="is no exported model"):
        Predictor(tmp_path)


def test_what_is_no_photograph(predictor):
    with pytest.raises(DogbreedError, match=r"is a path, bytes, a PIL image or an array \[H, W, 3\], not Tensor\."):
        predictor.predict(torch.zeros(3, 8, 8))


@pytest.mark.parametrize("backbone", ["squeezenet1_1", "vgg11"])
@pytest.mark.slow
def test_bfloat16_is_close(tmp_path, photos, backbone):
    network = backbones.create(backbone, 4, weights="none", seed=3).eval()
    folder = model_folder.save(tmp_path / "model", model_folder.Exported(network, backbone, NAMES, SMALL, 0.03))
    whole, half = Predictor(folder, device="cpu"), Predictor(folder, device="cpu", precision="bfloat16")
    inputs = torch.stack([whole.read(path) for path in photos])
    expected, found = whole.logits(inputs), half.logits(inputs)
    assert found.dtype == torch.float32
    assert 0 < (found - expected).norm() / expected.norm() < 0.05
    with torch.inference_mode():
        torch.testing.assert_close(expected, network(inputs), atol=1e-5, rtol=1e-5)


def test_an_unknown_precision(tmp_path):
    with pytest.raises(DogbreedError, match="precision=float8 is unknown; it is one of float32, bfloat16"):
        Predictor(tmp_path, precision="float8")
