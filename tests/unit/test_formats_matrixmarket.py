"""Matrix Market: files of any program, our folders, and every way they can be wrong."""

import json

import numpy as np
import pytest
import scipy.io
import scipy.sparse as sp

from teraedge import ClippedReLU, Identity, Layer, Network, ReLU, load
from teraedge.errors import FormatError
from teraedge.formats import from_matrixmarket, to_matrixmarket

BANNER = "%%MatrixMarket matrix coordinate real general\n"


def network():
    return Network(
        [
            Layer([[0, 2.5], [1, 0], [0, 0]], [0.5, -1], ReLU()),
            Layer(np.array([[1, 0.1], [0, 3]], np.float32), np.float32(-0.1), ClippedReLU(6)),
            Layer([[1.0], [0]]),
        ]
    )


def test_our_folder(tmp_path):
    to_matrixmarket(network(), tmp_path / "net")
    assert sorted(path.name for path in (tmp_path / "net").iterdir()) == [
        "bias-0001.mtx",
        "bias-0002.mtx",
        "layer-0001.mtx",
        "layer-0002.mtx",
        "layer-0003.mtx",
    ]
    assert scipy.io.mmread(tmp_path / "net" / "bias-0002.mtx").shape == (1, 1)
    text = (tmp_path / "net" / "layer-0001.mtx").read_text()
    assert text == (
        BANNER + '%teraedge {"activation": {"name": "relu"}, "bias": true, "dtype": "float64", '
        '"layers": 3}\n3 2 2\n1 2 2.5\n2 1 1\n'
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (BANNER + "% by hand\n%\n\n2 3 2\n2 3 1.5\n1 1 -2\n", [[-2, 0, 0], [0, 0, 1.5]]),
        (BANNER + "2 2 1\n\n  1\t2  3. \r\n", [[0, 3], [0, 0]]),
        (BANNER + "2 2 1\n1 2 3", [[0, 3], [0, 0]]),
        (BANNER + "2 2 0\n", [[0, 0], [0, 0]]),
        (BANNER.replace("real", "integer") + "2 2 1\n2 1 -7\n", [[0, 0], [-7, 0]]),
        (BANNER.replace("real", "pattern") + "2 2 2\n2 1\n1 1\n", [[1, 0], [1, 0]]),
        (BANNER.replace("general", "symmetric") + "2 2 2\n1 1 5\n2 1 3\n", [[5, 3], [3, 0]]),
        (BANNER.replace("general", "skew-symmetric") + "2 2 1\n2 1 3\n", [[0, -3], [3, 0]]),
        (BANNER.replace("coordinate", "array") + "2 2\n1\n2\n0\n4\n", [[1, 0], [2, 4]]),
    ],
)
def test_files_of_other_programs(tmp_path, text, expected):
    (tmp_path / "w.mtx").write_text(text)
    (layer,) = load(tmp_path / "w.mtx")
    np.testing.assert_array_equal(layer.weights.toarray(), expected)
    assert layer.weights.dtype == np.float64
    assert layer.bias is None
    assert layer.activation == Identity()


def test_folder_and_list_of_other_programs(tmp_path):
    for number in (1, 2, 10):
        matrix = sp.coo_array(np.full((2, 2), float(number)))
        scipy.io.mmwrite(tmp_path / f"w{number}.mtx", matrix)
    (tmp_path / "readme.txt").write_text("not a layer")
    for source in (tmp_path, [tmp_path / f"w{number}.mtx" for number in (1, 2, 10)]):
        got = from_matrixmarket(source, bias=[1, 2], activation=ReLU())
        assert [layer.weights.data[0] for layer in got] == [1, 2, 10]
        np.testing.assert_array_equal(got[2].bias, [1, 2])
        assert got[2].activation == ReLU()
    assert load(tmp_path)[0].activation == Identity()


def test_argument_wins_over_the_file(tmp_path):
    to_matrixmarket(network(), tmp_path / "net")
    got = from_matrixmarket(tmp_path / "net", bias=7, activation=Identity())
    assert [layer.bias[0] for layer in got] == [7, 7, 7]
    assert got[0].activation == Identity()


BAD = {
    "empty": ("", "is not a valid Matrix Market file"),
    "no banner": ("1 1 1\n", "is not a valid Matrix Market file"),
    "binary": ("\x7fELF\0\0", "is not a valid Matrix Market file"),
    "only a banner": (BANNER, "is not a valid Matrix Market file"),
    "truncated": (BANNER + "2 2 2\n1 1 1\n", "Truncated file"),
    "too long": (BANNER + "2 2 1\n1 1 1\n2 2 1\n", "Too many lines"),
    "short line": (BANNER + "2 2 1\n1 1\n", "a line of the form '0 0'"),
    "long line": (BANNER + "2 2 1\n1 1 1 1\n", "a line of the form '0 0 0 0'"),
    "number and more": (BANNER + "2 2 1\n1 1 1x\n", "a line of the form '0 0 0x'"),
    "not a number": (BANNER + "2 2 1\n1 1 x\n", "a line of the form '0 0 x'"),
    "zero byte": (BANNER + "2 2 1\n1 1\0001\n", "is not text"),
    "NaN": (BANNER + "2 2 1\n1 1 nan\n", "a line of the form '0 0 nan'"),
    "infinite": (BANNER + "2 2 1\n1 1 1e999\n", "weights hold NaN or infinity"),
    "zero": (BANNER + "2 2 1\n0 1 1\n", "Line 3: Row index out of bounds"),
    "negative": (BANNER + "2 2 1\n1 -1 1\n", "a line of the form '0 -0 0'"),
    "out of range": (BANNER + "2 2 1\n1 3 1\n", "Line 3: Column index out of bounds"),
    "twice": (BANNER + "2 2 2\n1 2 1\n1 2 3\n", "an edge is listed twice"),
    "twice by symmetry": (
        BANNER.replace("general", "symmetric") + "2 2 2\n1 2 1\n2 1 3\n",
        "an edge is listed twice",
    ),
    "complex": (BANNER.replace("real", "complex") + "1 1 1\n1 1 1 1\n", "the matrix is complex"),
    "announces much": (BANNER + "9 9 999999999999\n1 1 1\n", "is too short for the 999999999999"),
    "huge": (BANNER + "9" * 30 + " 2 1\n1 1 1\n", "is not a valid Matrix Market file"),
    "tall": (BANNER + "9999999999999 2 1\n1 1 1\n", "is not a valid Matrix Market file"),
    "no rows": (BANNER + "0 2 0\n", "weights have shape (0, 2)"),
    "comment not JSON": (BANNER + "%teraedge {\n1 1 0\n", "the metadata is not JSON"),
    "comment a list": (BANNER + "%teraedge []\n1 1 0\n", "the metadata is a list"),
    "dtype": (BANNER + '%teraedge {"dtype": "object"}\n1 1 0\n', "dtype is 'object'; allowed"),
    "dtype a list": (BANNER + '%teraedge {"dtype": []}\n1 1 0\n', "dtype is []; allowed"),
    "activation": (
        BANNER + '%teraedge {"activation": {"name": "__import__"}}\n1 1 0\n',
        "activation {'name': '__import__'} is not known",
    ),
    "overflow": (
        BANNER + '%teraedge {"dtype": "float32"}\n1 1 1\n1 1 1e39\n',
        "weights hold NaN or infinity",
    ),
    "bias of one file": (BANNER + '%teraedge {"bias": true}\n1 1 1\n1 1 1\n', "a bias is a dense"),
    "cut number of ours": (BANNER + "%teraedge {}\n1 1 1\n1 1 1.", "the last line has no end"),
}


@pytest.mark.parametrize("case", BAD)
def test_malformed(tmp_path, case):
    text, message = BAD[case]
    (tmp_path / "w.mtx").write_text(text)
    network = load(tmp_path / "w.mtx")
    with pytest.raises(FormatError) as caught:
        network[0]
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "w.mtx"))
    assert "\n" not in str(caught.value)


def test_wrong_folders(tmp_path):
    def refused(source, message):
        with pytest.raises(FormatError, match=message):
            from_matrixmarket(source)

    folder = tmp_path / "net"
    refused(tmp_path, "holds no Matrix Market file")
    refused(tmp_path / "absent.mtx", "there is no such file")
    refused([], "the list of Matrix Market files is empty")
    to_matrixmarket(network(), folder)
    with pytest.raises(FormatError, match="exists and is not an empty folder"):
        to_matrixmarket(network(), folder)
    for name in ("layer-0002.mtx", "layer-0003.mtx"):
        kept = (folder / name).read_text()
        (folder / name).unlink()
        refused(folder, rf"must hold layer-0001.mtx to layer-0003.mtx .* look at {name}")
        (folder / name).write_text(kept)
    (folder / "layer-0004.mtx").write_text(kept)
    refused(folder, "look at layer-0004.mtx")
    (folder / "layer-0004.mtx").unlink()
    first = folder / "layer-0001.mtx"
    text = first.read_text()
    first.write_text(text.replace('"layers": 3', '"layers": -3'))
    refused(folder, "layers is -3; it must be their number")
    first.write_text(text)
    bias = folder / "bias-0001.mtx"
    bias.write_text(BANNER.replace("coordinate", "array") + "3 1\n1\n2\n3\n")
    with pytest.raises(FormatError, match=r"layer-0001.mtx: bias has shape \(3,\)"):
        load(folder)[0]
    bias.unlink()
    with pytest.raises(FormatError, match=r"bias-0001.mtx: cannot be read"):
        load(folder)[0]


def test_layers_are_read_when_asked_for(tmp_path):
    to_matrixmarket(network(), tmp_path / "net")
    (tmp_path / "net" / "layer-0003.mtx").write_text("broken")
    got = load(tmp_path / "net")
    assert got[0].n_out == got[1].n_in
    with pytest.raises(FormatError, match=r"layer-0003.mtx: is not a valid Matrix Market file"):
        got[2]


def test_one_file_holds_one_layer_without_bias(tmp_path):
    for layers in ([Layer([[1]]), Layer([[1]])], [Layer([[1]], bias=0.5)]):
        with pytest.raises(FormatError, match="one file holds one layer without a bias"):
            to_matrixmarket(Network(layers), tmp_path / "w.mtx")
    assert list(tmp_path.iterdir()) == []


def test_comment_is_json(tmp_path):
    to_matrixmarket(network(), tmp_path / "net")
    line = (tmp_path / "net" / "layer-0002.mtx").read_text().splitlines()[1]
    about = json.loads(line.removeprefix("%teraedge "))
    assert about["activation"] == {"name": "clipped_relu", "upper": 6.0}
    assert about["dtype"] == "float32"
