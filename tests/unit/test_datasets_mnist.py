import gzip
import hashlib
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from teraedge.datasets import mnist
from teraedge.errors import DataError, DependencyError, OptionsError

SHARED = Path(__file__).parents[2].parent / "shared" / "mnist"
needs_mnist = pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/mnist")

NAME = "t10k-labels-idx1-ubyte"
LABELS = np.array([7, 2, 1, 0], np.uint8)
CONTENT = struct.pack(">ii", 0x801, len(LABELS)) + LABELS.tobytes()


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Let a file of four labels pass for the test labels, and start with an empty cache."""
    monkeypatch.setitem(mnist._FILES, NAME, hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setenv("TERAEDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TERAEDGE_DATA", raising=False)
    return tmp_path


@pytest.fixture
def internet(monkeypatch):
    """Replace the network: what each mirror sends, and which addresses were asked for."""
    pooch = pytest.importorskip("pooch")
    asked = []
    answers = {}

    class Downloader:
        def __init__(self, progressbar=False):
            pass

        def __call__(self, url, output_file, pooch):
            asked.append(url)
            answer = answers.get(url.removesuffix(f"{NAME}.gz"), OSError("no route to host"))
            if isinstance(answer, Exception):
                raise answer
            Path(output_file).write_bytes(answer)

    monkeypatch.setattr(pooch, "HTTPDownloader", Downloader)
    return answers, asked


@needs_mnist
@pytest.mark.parametrize(("split", "count"), [("train", 60_000), ("test", 10_000)])
def test_the_real_files(split, count):
    images = mnist.images(split, source=SHARED)
    labels = mnist.labels(split, source=str(SHARED))
    assert images.shape == (count, 28, 28)
    assert images.dtype == labels.dtype == np.uint8
    assert labels.shape == (count,)
    assert set(labels) == set(range(10))
    assert images.flags.writeable
    assert images.max() == 255


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("how", ["source", "variable"])
def test_a_given_folder(tiny, monkeypatch, packed, how):
    if packed:
        (tiny / f"{NAME}.gz").write_bytes(gzip.compress(CONTENT))
    else:
        (tiny / NAME).write_bytes(CONTENT)
    if how == "variable":
        monkeypatch.setenv("TERAEDGE_DATA", str(tiny))
    labels = mnist.labels("test", source=tiny if how == "source" else None)
    np.testing.assert_array_equal(labels, LABELS)


def test_a_folder_without_the_file(tiny, monkeypatch):
    with pytest.raises(DataError, match=rf"source folder .* holds neither {NAME}.gz nor"):
        mnist.labels("test", source=tiny)
    monkeypatch.setenv("TERAEDGE_DATA", str(tiny))
    with pytest.raises(DataError, match="unset TERAEDGE_DATA to download it"):
        mnist.labels("test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(CONTENT + b"x"), "is not MNIST's t10k-labels"),
        (gzip.compress(CONTENT)[:-9], "cannot be read"),
        (b"\x1f\x8b garbage", "cannot be read"),
        (CONTENT[:-1], "is not MNIST's"),
        (b"", "is not MNIST's"),
    ],
)
def test_a_damaged_file(tiny, content, message):
    (tiny / f"{NAME}.gz").write_bytes(content)
    with pytest.raises(DataError, match=message):
        mnist.labels("test", source=tiny)


def test_download_is_kept(tiny, internet):
    answers, asked = internet
    answers[mnist.MIRRORS[0]] = gzip.compress(CONTENT)
    for _ in range(2):
        np.testing.assert_array_equal(mnist.labels("test"), LABELS)
    assert asked == [f"{mnist.MIRRORS[0]}{NAME}.gz"]
    assert [path.name for path in (tiny / "cache" / "mnist").iterdir()] == [f"{NAME}.gz"]


def test_download_from_the_next_mirror_when_one_sends_rubbish(tiny, internet):
    answers, asked = internet
    answers[mnist.MIRRORS[0]] = b"<html>moved</html>"
    answers[mnist.MIRRORS[1]] = gzip.compress(CONTENT)
    np.testing.assert_array_equal(mnist.labels("test"), LABELS)
    assert len(asked) == 2


def test_no_network(tiny, internet):
    with pytest.raises(DataError, match=r"could not be downloaded .*set TERAEDGE_DATA") as caught:
        mnist.labels("test")
    assert "\n" not in str(caught.value)
    assert not list((tiny / "cache" / "mnist").iterdir())


def test_a_damaged_download_in_the_cache_is_fetched_again(tiny, internet, caplog):
    fresh = internet[0][mnist.MIRRORS[0]] = gzip.compress(CONTENT)
    cached = tiny / "cache" / "mnist" / f"{NAME}.gz"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(fresh[:-3])
    np.testing.assert_array_equal(mnist.labels("test"), LABELS)
    assert "downloading it again" in caplog.text
    assert cached.read_bytes() == fresh


def test_without_pooch(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(DependencyError, match=r"pip install 'teraedge\[data\]', or set TERAEDGE"):
        mnist.labels("test")


def test_unknown_split():
    with pytest.raises(OptionsError, match="split is 'val'; allowed: 'train', 'test'"):
        mnist.images("val")
