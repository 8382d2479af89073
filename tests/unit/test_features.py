import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from teraedge import PackedFeatures
from teraedge.errors import FeatureError
from teraedge.features import as_features


@given(samples=st.integers(0, 20), neurons=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_packed_round_trip(samples, neurons, seed):
    dense = np.random.default_rng(seed).integers(0, 2, (samples, neurons))
    packed = PackedFeatures.from_dense(dense)
    assert packed.shape == (samples, neurons)
    assert len(packed) == samples
    assert packed.bits.nbytes == samples * -(-neurons // 8)
    np.testing.assert_array_equal(np.asarray(packed), dense)
    assert np.asarray(packed, dtype=np.float32).dtype == np.float32
    np.testing.assert_array_equal(packed.count_ones(), dense.sum(axis=1))


def test_packed_rows_stay_packed():
    dense = np.random.default_rng(0).integers(0, 2, (20, 13))
    packed = PackedFeatures.from_dense(dense)
    for rows in (slice(3, 9), slice(None, None, -2), [4, 4, 1], dense[:, 0] == 1):
        part = packed[rows]
        assert isinstance(part, PackedFeatures)
        np.testing.assert_array_equal(np.asarray(part), dense[rows])
    assert np.shares_memory(packed[2:5].bits, packed.bits)
    with pytest.raises(FeatureError, match="rows only"):
        packed[3]
    with pytest.raises(IndexError):
        packed[[25]]


def test_packed_refuses_what_it_cannot_hold():
    with pytest.raises(FeatureError, match="other than 0 and 1"):
        PackedFeatures.from_dense([[0, 2]])
    with pytest.raises(FeatureError, match=r"\(2,\)"):
        PackedFeatures.from_dense([0, 1])
    with pytest.raises(FeatureError, match=r"need uint8 of shape \(samples, 2\)"):
        PackedFeatures(np.zeros((3, 1), np.uint8), 9)
    with pytest.raises(FeatureError, match="past the last of 9 neurons"):
        PackedFeatures(np.full((3, 2), 255, np.uint8), 9)
    with pytest.raises(ValueError, match="without a copy"):
        np.array(PackedFeatures.from_dense([[1]]), copy=False)


def test_good_features_are_not_copied():
    dense = np.eye(4, dtype=np.float32)
    packed = PackedFeatures.from_dense(dense)
    csr = sp.csr_array(dense)
    assert as_features(dense, 4) is dense
    assert as_features(packed, 4) is packed
    assert np.shares_memory(as_features(csr, 4).data, csr.data)


class OnAnotherDevice:
    def __dlpack_device__(self):
        return (2, 0)

    def __dlpack__(self, **kwargs):
        raise AssertionError("must not be asked for")

    def __array__(self, dtype=None, copy=None):
        raise AssertionError("must not be copied silently")


def test_arrays_on_another_device_are_refused():
    with pytest.raises(FeatureError, match=r"OnAnotherDevice .*not in host memory"):
        as_features(OnAnotherDevice(), 4)


def test_ragged_lists_are_refused():
    with pytest.raises(FeatureError, match="list that cannot be read"):
        as_features([[1, 2], [3]], 2)


def test_corrupt_csr_is_refused():
    csr = sp.csr_array(np.eye(3))
    csr.indices[0] = 9
    with pytest.raises(FeatureError, match="not a valid sparse array"):
        as_features(csr, 3)


@pytest.mark.parametrize("place", [0, 7, -1])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_are_checked_wherever_they_are(place, order, dtype):
    def with_value(value):
        features = np.ones((5, 4), dtype, order=order)
        features.flat[place] = value
        return features

    for fine in (1e30, -1e30, 3e38, -0.0):  # the squares of some overflow
        assert as_features(with_value(fine), 4).shape == (5, 4)
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(FeatureError, match="NaN or infinity"):
            as_features(with_value(bad), 4)
        with pytest.raises(FeatureError, match="NaN or infinity"):
            as_features(with_value(bad)[::2, ::-1][:, ::-1] if place != 7 else with_value(bad), 4)
