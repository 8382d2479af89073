"""Every engine explains its plan, before and after a run."""

import json

import pytest
from engines_networks import NETWORKS, make_features

import teraedge


@pytest.mark.parametrize("name", ["rectangular", "shared inputs", "positive bias"])
def test_explains(device, name):
    network = NETWORKS[name]
    with teraedge.compile(network, device) as engine:
        before = engine.explain()
        result = engine.run(make_features(network, 33))
        after = engine.explain()
    for found in (before, after):
        assert sum(row.edges_given for row in found.rows) == network.edges
        layers = [n for row in found.rows for n in range(row.first, row.last + 1)]
        assert layers == list(range(1, len(network) + 1))
        assert all(row.layout and row.kernel and row.why and row.nbytes for row in found.rows)
        assert len(str(found).splitlines()) > len(found.rows)
        assert json.loads(json.dumps(found.to_json(), allow_nan=False))["ran"] == found.ran
    assert (before.ran, after.ran, after.samples) == (False, True, 33)
    assert before.measured is None
    assert after.measured == pytest.approx(sum(layer.seconds for layer in result.trace))
    assert result.passes == dict(engine._plan.saved)


def test_only_plans_for_the_cpu_are_saved(device, tmp_path):
    with teraedge.compile(NETWORKS["rectangular"], device) as engine:
        if device == "cpu":
            engine.save(tmp_path / "plan.safetensors")
            return
        with pytest.raises(teraedge.errors.DeviceError, match="cannot be saved"):
            engine.save(tmp_path / "plan.safetensors")
    assert list(tmp_path.iterdir()) == []
