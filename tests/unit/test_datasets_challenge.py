import hashlib
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import teraedge
from teraedge.datasets import challenge, mnist
from teraedge.datasets._fourier import binary_images
from teraedge.errors import DataError, OptionsError

SHARED = Path(__file__).parents[2].parent / "shared"
needs_mnist = pytest.mark.skipif(
    not (SHARED / "mnist").is_dir(), reason="no ../shared/mnist, the MNIST files"
)
needs_categories = pytest.mark.skipif(
    not (SHARED / "challenge").is_dir(), reason="no ../shared/challenge, the official answers"
)
ONES = {1024: 6374505, 4096: 25019051, 16384: 98858913, 65536: 392191985}


def test_import_is_light():
    code = (
        "import sys, teraedge; teraedge.datasets.challenge.network; teraedge.datasets.radixnet; "
        "sys.exit(bool({'numba', 'pooch', 'torch'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'cifar'"):
        teraedge.datasets.cifar  # noqa: B018
    assert "challenge" in dir(teraedge.datasets)


# --- networks


@pytest.mark.parametrize("neurons", challenge.SIZES)
def test_shape_of_a_layer(neurons):
    network = challenge.network(neurons, 13)
    assert network.edges == 32 * neurons * 13
    assert network.name == f"{neurons}-13"
    layer = network[12]  # shuffled at every size
    weights = layer.weights
    assert weights.shape == (neurons, neurons)
    assert weights.dtype == np.float32
    assert weights.has_canonical_format
    assert (weights.data == 1 / 16).all()
    assert (np.diff(weights.indptr) == 32).all()
    assert (np.bincount(weights.indices) == 32).all()
    assert set(layer.bias) == {challenge.BIASES[neurons]}
    assert layer.activation == teraedge.ClippedReLU(32.0)


def _literal_layers(neurons, layers):
    """Follow the words of the generator rule, one stream through the sizes."""
    stream = np.random.RandomState(5489)
    for size in challenge.SIZES[: challenge.SIZES.index(neurons)]:
        stream.random_sample((1920 // int(np.log2(size // 16)) - 1) * size)
    classes = neurons // 16
    length = int(np.log2(classes))
    source, target = np.arange(neurons)[:, None], np.arange(neurons)
    dealt = source[:, 0] % classes
    for index in range(layers):
        if index and index % length == 0:
            order = np.argsort(stream.random_sample(neurons))
            dealt[order] = np.arange(neurons) % classes
        distance = (dealt[source] - target) % classes
        yield (distance == 0) | (distance == 2 ** (index % length))


@pytest.mark.parametrize(("neurons", "layers"), [(1024, 26), (4096, 10)])
def test_layers_follow_the_rule(neurons, layers):
    network = challenge.network(neurons, layers)
    for layer, expected in zip(network, _literal_layers(neurons, layers), strict=True):
        assert (layer.weights.toarray() != 0).tobytes() == expected.tobytes()


def test_first_number_of_the_stream():
    state = challenge._Shuffles(1024, 64)._start(1)
    assert challenge._draw(state, 1)[0][0] == pytest.approx(0.81472369, abs=5e-9)


@pytest.mark.parametrize(
    ("number", "sha256"),
    [
        (1, "48f8c5363f7f6579b4a186b0d03a27b13d5d9e3e41e17af884569d754248903a"),
        (7, "2c63b12ddca93f266438c44210bc333cdc975f25df2b5886455ef52d6e41331d"),
        (60, "a88a5667bbdb11f0db3f81041aedf259523d35cac1933d4884b7c69e68adbe1b"),
        (120, "c37c426fefe34411c1e98352d6d59921cffaf84a2421b8ed2a0576b72d47c73e"),
    ],
)
def test_official_layer_files(number, sha256):
    by_target = challenge.network(1024, 120)[number - 1].weights.T.tocsr()
    targets, sources = by_target.nonzero()
    lines = (f"{s + 1}\t{t + 1}\t6.250000e-02\n" for s, t in zip(sources, targets, strict=True))
    assert hashlib.sha256("".join(lines).encode()).hexdigest() == sha256


def _fingerprints(layers):
    return [hashlib.sha256(layer.weights.indices.data).hexdigest() for layer in layers]


def test_random_access_equals_sequential_access_between_threads():
    expected = _fingerprints(challenge.network(1024, 400))
    assert len(set(expected)) > 390
    network = challenge.network(1024, 400)
    order = np.random.default_rng(0).permutation(400)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda index: _fingerprints([network[int(index)]])[0], order))
    assert found == [expected[index] for index in order]
    assert _fingerprints([network[-1]]) == expected[-1:]


def test_fewer_layers_are_the_first_layers():
    short, long = challenge.network(4096, 20), challenge.network(4096, 1920)
    assert _fingerprints(short) == _fingerprints(long[:20])


def test_network_pickles():
    network = pickle.loads(pickle.dumps(challenge.network(1024, 30)))
    assert _fingerprints(network) == _fingerprints(challenge.network(1024, 30))


@pytest.mark.parametrize("neurons", [0, 1000, "1024", 1024.0, True, None])
def test_unknown_size(neurons):
    for function in (
        lambda: challenge.network(neurons, 120),
        lambda: challenge.features(neurons),
        lambda: challenge.build_features(neurons),
        lambda: challenge.categories(neurons),
    ):
        with pytest.raises(OptionsError, match="allowed: 1024, 4096, 16384, 65536"):
            function()


@pytest.mark.parametrize("count", [0, -1, 1.5, "3", True])
def test_counts_out_of_range(count):
    with pytest.raises(OptionsError, match=r"layers is .* from 1 to 1920"):
        challenge.network(1024, count)
    with pytest.raises(OptionsError, match=r"samples is .* from 1 to 60000"):
        challenge.features(1024, count)


def test_counts_too_large():
    with pytest.raises(OptionsError, match="layers is 1921"):
        challenge.network(1024, 1921)
    with pytest.raises(OptionsError, match="samples is 60001"):
        challenge.features(1024, 60001)


# --- categories


@needs_categories
@pytest.mark.parametrize("neurons", challenge.SIZES)
def test_categories_are_the_official_ones(neurons):
    official = np.loadtxt(SHARED / "challenge" / f"categories-{neurons}.txt", dtype=np.int64)
    categories = challenge.categories(neurons)
    assert categories.dtype == np.int64
    np.testing.assert_array_equal(categories, official - 1)


def test_categories_cannot_be_spoilt():
    challenge.categories(1024)[:] = 0
    assert challenge.categories(1024)[0] == 286


# --- features


def test_shipped_features():
    progress = []
    packed = challenge.features(1024, progress=progress.append)
    assert packed.shape == (60_000, 1024)
    assert packed.count_ones().sum() == ONES[1024]
    assert hashlib.sha256(packed.bits.data).hexdigest() == challenge._FEATURES_SHA256[1024]
    assert progress == [1.0]
    few = challenge.features(1024, 19)
    assert isinstance(few, teraedge.PackedFeatures)
    np.testing.assert_array_equal(np.asarray(few), np.asarray(packed[:19]))


def test_damaged_package(monkeypatch):
    monkeypatch.setitem(challenge._FEATURES_SHA256, 1024, "0" * 64)
    with pytest.raises(DataError, match="install teraedge again"):
        challenge.features(1024)


def _literal_images(images, side):
    """Follow the words of the rule: one fft2 of everything, zero-padded, and back."""
    count = len(images)
    spectrum = np.fft.fftshift(np.fft.fft2(images.transpose(1, 0, 2).reshape(28, -1)))
    rows, columns = (side - 28) // 2, (side - 28) * count // 2
    padded = np.pad(spectrum, ((rows, rows), (columns, columns)))
    y = np.abs(np.fft.ifft2(np.fft.ifftshift(padded)))
    ones = y > y.max() / 2
    return np.packbits(ones.reshape(side, count, side).transpose(1, 2, 0).reshape(count, -1), 1)


@pytest.mark.parametrize("side", [32, 64, 96, 128, 256])
@pytest.mark.parametrize("count", [1, 2, 33])
def test_resizing_follows_the_rule(side, count):
    images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    progress = []
    bits = binary_images(images, side, progress.append)
    np.testing.assert_array_equal(bits, _literal_images(images, side))
    assert progress == sorted(progress)
    assert progress[-1] == 1.0


@needs_mnist
def test_shipped_features_are_what_the_rule_builds():
    built = challenge.build_features(1024, source=SHARED / "mnist")
    np.testing.assert_array_equal(built.bits, challenge.features(1024).bits)


@pytest.mark.slow
@needs_mnist
@pytest.mark.parametrize("neurons", challenge.SIZES[1:])
def test_official_features(neurons, monkeypatch, tmp_path):
    monkeypatch.setenv("TERAEDGE_CACHE", str(tmp_path))
    monkeypatch.setenv("TERAEDGE_DATA", str(SHARED / "mnist"))
    for _ in range(2):  # built, then read back
        assert challenge.features(neurons).count_ones().sum() == ONES[neurons]


@pytest.fixture
def five(monkeypatch, tmp_path):
    """Let five random images be the whole data set, and count how often they are read."""
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    bits = binary_images(images, 64)
    reads = []
    monkeypatch.setattr(mnist, "images", lambda *_, **__: reads.append(1) or images)
    monkeypatch.setattr(challenge, "SAMPLES", 5)
    sha256 = hashlib.sha256(bits.data).hexdigest()
    monkeypatch.setitem(challenge._FEATURES_SHA256, 4096, sha256)
    monkeypatch.setenv("TERAEDGE_CACHE", str(tmp_path))
    return bits, reads


def test_built_features_are_cached(five, tmp_path):
    bits, reads = five
    np.testing.assert_array_equal(challenge.features(4096, 2).bits, bits[:2])
    for samples in (None, 1, 3, 5):
        np.testing.assert_array_equal(challenge.features(4096, samples).bits, bits[:samples])
    assert len(reads) == 1
    (cached,) = tmp_path.iterdir()
    assert cached.read_bytes() == bits.tobytes()


@pytest.mark.parametrize("damage", ["flip", "cut", "lengthen", "empty"])
def test_damaged_cache_is_built_again(five, tmp_path, caplog, damage):
    bits, reads = five
    challenge.features(4096)
    (cached,) = tmp_path.iterdir()
    content = bytearray(cached.read_bytes())
    content[-1] ^= 1
    spoilt = {"flip": content, "cut": content[:-7], "lengthen": bits.tobytes() + b"x", "empty": b""}
    cached.write_bytes(spoilt[damage])
    # The damage lies behind the rows asked for, and is found all the same.
    np.testing.assert_array_equal(challenge.features(4096, 1).bits, bits[:1])
    assert "damaged; building them again" in caplog.text
    assert len(reads) == 2
    assert cached.read_bytes() == bits.tobytes()


def test_a_cache_that_cannot_be_written(five, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TERAEDGE_CACHE", str(tmp_path / "file"))
    np.testing.assert_array_equal(challenge.features(4096).bits, five[0])
    assert "set TERAEDGE_CACHE" in caplog.text


def test_a_wrong_build_is_told_and_not_cached(five, tmp_path, monkeypatch):
    monkeypatch.setitem(challenge._FEATURES_SHA256, 4096, "0" * 64)
    with pytest.raises(DataError, match="are not the official ones"):
        challenge.features(4096)
    assert not list(tmp_path.iterdir())
