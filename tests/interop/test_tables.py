"""Results as pandas and Arrow tables."""

import sys

import numpy as np
import pytest

import teraedge
from teraedge.errors import DependencyError, OptionsError


@pytest.fixture(params=[0, 3])
def result(request):
    layer = teraedge.Layer(np.eye(2), bias=-1.0, activation=teraedge.ReLU())
    features = np.array([[2.0, 3.0], [0.5, 0.0], [0.0, 1.5]])[: request.param]
    return teraedge.compile(teraedge.Network([layer])).run(features)


def test_pandas(result):
    pytest.importorskip("pandas")
    frame = result.to_pandas(columns=["left", "right"])
    assert frame.index.name == "sample"
    assert frame.columns.tolist() == ["left", "right"]
    assert (frame.dtypes == np.float32).all()
    np.testing.assert_array_equal(frame.to_numpy(), result.outputs)
    live = result.to_pandas(live_only=True)
    assert live.index.tolist() == result.live.tolist()
    np.testing.assert_array_equal(live.to_numpy(), result.live_outputs)


def test_names_that_do_not_fit(result):
    pytest.importorskip("pandas")
    with pytest.raises(OptionsError, match=r"3 columns are named .* 2 outputs"):
        result.to_pandas(columns="abc")


def test_arrow(result, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = result.to_arrow()
    assert table.column_names == ["sample", "label", "outputs"]
    parquet.write_table(table, tmp_path / "result.parquet")
    again = parquet.read_table(tmp_path / "result.parquet").to_pydict()
    assert again["sample"] == list(range(result.samples))
    assert again["label"] == result.labels.tolist()
    assert again["outputs"] == result.outputs.tolist()
    assert result.to_arrow(live_only=True)["sample"].to_pylist() == result.live.tolist()


@pytest.mark.parametrize("package", ["pandas", "pyarrow"])
def test_what_is_not_installed_is_named(result, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DependencyError, match=rf"needs {package}.*teraedge\[tables\]"):
        result.to_pandas() if package == "pandas" else result.to_arrow()
