"""PyTorch modules on a GPU."""

import numpy as np
import pytest
from engines_networks import chain

import teraedge
from teraedge.errors import FeatureError

torch = pytest.importorskip("torch", reason="PyTorch is not installed")


@pytest.fixture(autouse=True)
def cuda():
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")


@pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemiStructuredTensor")
def test_two_of_four_weights():
    """2:4 semi-structured tensors, which only a GPU makes: half of the weights are edges."""
    module = torch.nn.Sequential(torch.nn.Linear(128, 64), torch.nn.ReLU()).half().cuda()
    mask = torch.tensor([True, False, False, True]).cuda().tile(64, 32)
    dense = module[0].weight.detach() * mask
    module[0].weight = torch.nn.Parameter(
        torch.sparse.to_sparse_semi_structured(dense), requires_grad=False
    )
    layer = teraedge.from_torch(module)[0]
    np.testing.assert_array_equal(layer.weights.toarray(), dense.T.float().cpu().numpy())
    assert layer.edges == int((dense != 0).sum())


def test_waits_for_the_current_stream_and_stays_on_the_device():
    rng = np.random.default_rng(0)
    network = chain(rng, [300, 500, 10], -0.1, teraedge.ReLU())
    x = rng.random((2000, 300), dtype=np.float32)
    with teraedge.compile(network, "cuda") as engine:
        module = teraedge.torch.wrap(engine)
        expected = engine.run(x).outputs
        with torch.cuda.stream(torch.cuda.Stream()):
            features = torch.zeros(2000, 300, device="cuda")
            torch.cuda._sleep(50_000_000)  # clock cycles: what follows is late
            features.copy_(torch.from_numpy(x).pin_memory(), non_blocking=True)
            y = module(features)
        assert y.device.type == "cuda"
        np.testing.assert_array_equal(y.cpu().numpy(), expected)
        with pytest.raises(FeatureError, match="lie on 'cpu'"):
            module(torch.from_numpy(x))
