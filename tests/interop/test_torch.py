"""An engine as a torch module."""

import copy

import numpy as np
import pytest
from engines_networks import chain

import teraedge
from teraedge.errors import FeatureError

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def engine():
    network = chain(np.random.default_rng(0), [40, 70, 9], 0.1, teraedge.ReLU())
    with teraedge.compile(network) as engine:
        yield engine


@pytest.mark.parametrize("shape", [(33, 40), (0, 40), (40,), (2, 3, 40)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "uint8", "bool"])
def test_rows_are_those_of_the_engine(engine, shape, dtype):
    x = (torch.rand(shape) * 2).to(getattr(torch, dtype))
    y = teraedge.torch.wrap(engine)(x)
    assert y.dtype == torch.float32
    assert y.shape == (*shape[:-1], 9)
    expected = engine.run(x.float().reshape(-1, 40).numpy()).outputs
    np.testing.assert_array_equal(y.reshape(-1, 9).numpy(), expected)


def test_strides_do_not_matter(engine):
    x = torch.rand(40, 66)[:, ::2].T
    expected = engine.run(x.contiguous().numpy()).outputs
    np.testing.assert_array_equal(teraedge.torch.wrap(engine)(x).numpy(), expected)


def test_runs_inside_a_model_and_in_its_copies(engine):
    model = torch.nn.Sequential(
        torch.nn.Flatten(), teraedge.torch.wrap(engine), torch.nn.Softmax(1)
    )
    model.eval()
    x = torch.rand(5, 4, 10)
    with torch.no_grad():
        y = model(x)
        again = copy.deepcopy(model)(x)
    np.testing.assert_allclose(y.sum(dim=1), np.ones(5), rtol=1e-6)
    assert torch.equal(y, again)
    assert "40 -> 9" in repr(model)
    assert not list(model.parameters())


def test_a_gradient_is_refused_and_no_grad_helps(engine):
    module = teraedge.torch.wrap(engine)
    x = torch.rand(3, 40, requires_grad=True)
    with pytest.raises(FeatureError, match=r"torch\.no_grad\(\)"):
        module(x)
    with torch.no_grad():
        expected = module(x)
    assert torch.equal(module(x.detach()), expected)
    with torch.inference_mode():
        assert torch.equal(module(torch.clone(x)), expected)


BAD = [
    (lambda: np.ones((2, 40)), "ndarray; give a torch.Tensor"),
    (lambda: torch.ones(2, 41), r"shape \(2, 41\)"),
    (lambda: torch.tensor(1.0), r"shape \(\)"),
    (lambda: torch.full((1, 40), torch.nan), "NaN"),
    (lambda: torch.ones(2, 40, dtype=torch.complex64), "complex64"),
    (lambda: torch.ones(2, 40, device="meta"), "lie on 'meta'"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_features(engine, make, message):
    with pytest.raises(FeatureError, match=message) as caught:
        teraedge.torch.wrap(engine)(make())
    assert "\n" not in str(caught.value)


def test_what_is_no_engine_is_refused():
    with pytest.raises(TypeError, match=r"teraedge\.compile"):
        teraedge.torch.wrap(torch.nn.Linear(2, 2))
