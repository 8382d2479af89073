"""PyTorch modules on a GPU."""

import numpy as np
import pytest

import teraedge

torch = pytest.importorskip("torch", reason="PyTorch is not installed")


@pytest.fixture(autouse=True)
def cuda():
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch has no CUDA")


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
