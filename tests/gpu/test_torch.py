"""An engine as a torch module, on the tensor's GPU and stream."""

import numpy as np
import pytest
from engines_networks import chain

import teraedge
from teraedge.errors import FeatureError

torch = pytest.importorskip("torch")


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
