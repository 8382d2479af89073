"""Which path means which format; features and results in arrays."""

import subprocess
import sys
import zipfile

import numpy as np
import pytest
import scipy.sparse as sp

import teraedge
from teraedge import ClippedReLU, Layer, Network, formats, load, reference, save
from teraedge.errors import FeatureError, FormatError
from teraedge.formats import load_features, save_features, save_result


def network():
    return Network([Layer(np.eye(1024, dtype=np.float32), -0.3, ClippedReLU(32))])


@pytest.mark.parametrize(
    ("path", "files"),
    [
        ("m.safetensors", ["m.safetensors"]),
        ("neuron1024", ["n1024-l1.tsv"]),
        ("net", ["bias-0001.mtx", "layer-0001.mtx"]),
    ],
)
def test_the_path_says_the_format(tmp_path, path, files):
    save(network(), tmp_path / path)
    found = sorted(file.name for file in tmp_path.rglob("*") if file.is_file())
    assert found == files
    for given in (tmp_path / path, str(tmp_path / path)):
        assert load(given)[0].edges == 1024


def test_unknown_paths(tmp_path):
    for path in ("m.pt", "m.tsv", "m.safetensors.gz"):
        with pytest.raises(FormatError, match=r"allowed: .safetensors, .safetensors.index.json"):
            load(tmp_path / path)
        with pytest.raises(FormatError, match=r"allowed: .safetensors, .mtx"):
            save(network(), tmp_path / path)
    with pytest.raises(FormatError, match="holds no network; a folder has files"):
        load(tmp_path)
    with pytest.raises(FormatError, match=r"allowed: .npy, .npz, .mtx, .tsv"):
        load_features(tmp_path / "f.csv")
    with pytest.raises(FormatError, match=r"allowed: .npy, .npz, .mtx, .tsv"):
        save_features(np.eye(2), tmp_path / "f.csv")
    with pytest.raises(FormatError, match=r"allowed: .npy, .npz, .tsv, .txt"):
        save_result(reference.run(network(), np.eye(1024)), tmp_path / "f.csv")
    with pytest.raises(AttributeError, match="from_csv"):
        formats.from_csv  # noqa: B018
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["m.safetensors", "w.mtx", "neuron1024", "net"])
def test_the_folder_above_must_exist(tmp_path, path):
    network = Network([Layer(np.eye(1024), None)])
    with pytest.raises(FormatError, match="does not exist; make it first"):
        save(network, tmp_path / "absent" / path)
    assert list(tmp_path.iterdir()) == []


def test_names(tmp_path):
    assert set(formats.__all__) <= set(dir(formats))
    for name in formats.__all__:
        assert callable(getattr(formats, name))


def test_importing_is_cheap():
    code = (
        "import sys, teraedge.formats as f; "
        "sys.exit(bool({'numpy', 'scipy', 'safetensors', 'numba'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def result():
    layer = Layer(np.eye(3), [-1, -1, 0], teraedge.ReLU())
    return reference.run(Network([layer]), np.array([[1, 1, 0], [3, 0, 2], [0, 0, 0], [0, 0, 1]]))


def test_results(tmp_path):
    for name in ("r.npy", "r.npz", "r.tsv", "r.txt"):
        save_result(result(), tmp_path / name)
    expected = [[0, 0, 0], [2, 0, 2], [0, 0, 0], [0, 0, 1]]
    np.testing.assert_array_equal(np.load(tmp_path / "r.npy"), expected)
    with np.load(tmp_path / "r.npz") as file:
        assert set(file.files) == {"live", "live_outputs", "shape"}
        np.testing.assert_array_equal(file["live"], [1, 3])
        np.testing.assert_array_equal(file["live_outputs"], [[2, 0, 2], [0, 0, 1]])
        np.testing.assert_array_equal(file["shape"], [4, 3])
    assert (tmp_path / "r.tsv").read_bytes() == (tmp_path / "r.txt").read_bytes() == b"2\n4\n"


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    (tmp_path / "r.npy").write_text("old")

    def fail(file, array):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", fail)
    with pytest.raises(FormatError, match=r"r.npy: cannot be written: No space left on device"):
        save_result(result(), tmp_path / "r.npy")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_targets_that_are_folders(tmp_path):
    (tmp_path / "r.npy").mkdir()
    with pytest.raises(FormatError, match="is a folder; give a file name"):
        save_result(result(), tmp_path / "r.npy")
    with pytest.raises(FormatError, match="does not exist; make it first"):
        save_features(np.eye(2), tmp_path / "absent" / "f.npz")


def test_features_of_one_array_and_of_old_sparse_matrices(tmp_path):
    np.savez(tmp_path / "f.npz", anything=np.eye(3))
    np.testing.assert_array_equal(load_features(tmp_path / "f.npz"), np.eye(3))
    for kind in (sp.csr_array, sp.csr_matrix, sp.csc_matrix, sp.coo_array):
        sp.save_npz(tmp_path / "s.npz", kind(np.eye(3)))
        np.testing.assert_array_equal(load_features(tmp_path / "s.npz").toarray(), np.eye(3))


def bad_features(path, case):
    if case == "absent":
        return
    if case == "pickle":
        np.save(path, np.array([{}], object), allow_pickle=True)
    elif case == "text":
        path.write_text("not an array")
    elif case == "empty":
        path.touch()
    elif case in ("truncated", "NaN", "one dimension", "complex", "strings"):
        array = np.eye(20)
        array = {
            "NaN": array * np.nan,
            "one dimension": array[0],
            "complex": array * 1j,
            "strings": array.astype(str),
        }.get(case, array)
        np.save(path, array) if path.suffix == ".npy" else np.savez(path, array)
        if case == "truncated":
            path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("absent", "there is no such file"),
        ("text", "truncated or"),
        ("empty", "truncated or"),
        ("truncated", "truncated or"),
        ("NaN", "NaN or infinity"),
        ("one dimension", "shape"),
        ("complex", "dtype"),
        ("strings", "dtype"),
    ],
)
def test_malformed_arrays(tmp_path, suffix, case, message):
    path = tmp_path / f"f{suffix}"
    bad_features(path, case)
    with pytest.raises(FormatError) as caught:
        load_features(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_pickles_are_never_loaded(tmp_path):
    bad_features(tmp_path / "f.npy", "pickle")
    with pytest.raises(FormatError, match="allow_pickle=False"):
        load_features(tmp_path / "f.npy")
    np.savez(tmp_path / "f.npz", np.array([{}], object), allow_pickle=True)
    with pytest.raises(FormatError, match="allow_pickle=False"):
        load_features(tmp_path / "f.npz")


def test_malformed_npz(tmp_path):
    path = tmp_path / "f.npz"
    np.savez(path, a=np.eye(2), b=np.eye(2))
    with pytest.raises(FormatError, match=r"holds \['a', 'b'\]; allowed"):
        load_features(path)
    np.savez(path, bits=np.full((2, 1), 255, np.uint8), neurons=3)
    with pytest.raises(FormatError, match="set past the last of 3 neurons"):
        load_features(path)
    good = sp.csr_array(np.eye(3))
    parts = {"data": good.data, "indptr": good.indptr, "shape": good.shape, "format": b"csr"}
    np.savez(path, indices=[0, 1, 9], **parts)
    with pytest.raises(FormatError, match=r"f.npz"):
        load_features(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.npy", b"not an array")
    with pytest.raises(FormatError, match=r"f.npz"):
        load_features(path)
    np.savez(path, np.eye(2))
    path.rename(tmp_path / "f.npy")
    with pytest.raises(FormatError, match=r"is a .npz file named .npy"):
        load_features(tmp_path / "f.npy")


def test_shape_asked_for(tmp_path):
    np.save(tmp_path / "f.npy", np.eye(3))
    assert load_features(tmp_path / "f.npy", 3, samples=3).shape == (3, 3)
    for shape in ((4, None), (None, 4)):
        with pytest.raises(FormatError, match=r"shape \(3, 3\)"):
            load_features(tmp_path / "f.npy", *shape)


def test_features_to_save_are_checked(tmp_path):
    for wrong in (np.ones(3), np.float64(3), [["a"]], [[np.nan]]):
        for suffix in ("npy", "npz", "mtx", "tsv"):
            with pytest.raises(FeatureError):
                save_features(wrong, tmp_path / f"f.{suffix}")
    assert list(tmp_path.iterdir()) == []
