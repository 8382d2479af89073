"""The MNIST example, in reduced form."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "mnist"
DATA = ROOT.parent / "shared" / "mnist"


@pytest.fixture
def example(monkeypatch):
    """The modules models and compare of the example."""
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("models", "compare"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import compare
    import models

    yield models, compare
    for name in ("models", "compare"):
        sys.modules.pop(name, None)


def digits_of(models, count=2000):
    """Not digits, but as easy: the label is where the picture is bright."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, count)
    x = rng.random((count, 784), dtype=np.float32) * 0.3
    for row, label in zip(x, y, strict=True):
        row[label * 78 : label * 78 + 78] += 0.7
    return models.Digits(torch.from_numpy(x), torch.from_numpy(y))


def test_models_are_as_sparse_as_they_say_and_learn(example):
    models, _ = example
    torch.manual_seed(0)
    digits = digits_of(models)
    made = dict(models.make(digits, (2, 3, 4), 1024))
    assert models.density(made["dense"]) == 1
    assert models.density(made["pruned"]) == pytest.approx(0.05, rel=0.01)
    masks = models.radix_masks(1024)
    for layer, mask in zip(models.linears(made["radix"]), masks, strict=False):
        assert (layer.weight[mask == 0] == 0).all()
        assert int(layer.weight.count_nonzero()) > 0.9 * int(mask.sum())
    for name, model in made.items():
        assert models.accuracy(model, digits) > 0.9, name


def test_every_second_layer_neuron_of_the_radix_net_sees_all_pixels(example):
    models, _ = example
    first, second = models.radix_masks(2048)
    assert first.shape == (2048, 784)
    assert second.shape == (2048, 2048)
    assert second.mean() == pytest.approx(1 / 32)
    assert bool(((second @ first) > 0).all())


def test_comparing(example):
    models, compare = example
    torch.manual_seed(0)
    test = digits_of(models, 300)
    facts, rows = compare.compare("tiny", models.mlp(64).eval(), test, (1, 20), 1)
    assert facts["predictions_differ"] == 0
    assert facts["largest_logit_error"] < 1e-4
    assert {row["samples"] for row in rows} == {1, 20}
    assert "300" not in compare.report(facts, rows)
    assert compare.times_as_fast(rows, "torch dense", 20) > 0


def test_a_wrong_prediction_stops_it(example, monkeypatch):
    models, compare = example
    test = digits_of(models, 50)
    other = compare.teraedge.from_torch(models.mlp(64).eval())
    monkeypatch.setattr(compare.teraedge, "from_torch", lambda model: other)
    with pytest.raises(SystemExit, match="predictions of the tiny model differ"):
        compare.compare("tiny", models.mlp(64).eval(), test, (1,), 1)


@pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/mnist")
@pytest.mark.filterwarnings("default")
def test_notebook_runs(monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    for package in ("ipykernel", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"no {package}")
    monkeypatch.setenv("TERAEDGE_EXAMPLE_QUICK", "1")
    monkeypatch.setenv("TERAEDGE_DATA", str(DATA))
    notebook = nbformat.read(FOLDER / "mnist.ipynb", as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": FOLDER}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    text = "".join(output.get("text", "") for output in outputs)
    assert text.count("the same predictions") == 3
