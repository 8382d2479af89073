"""Engines as scikit-learn estimators."""

import copy

import numpy as np
import pytest

import teraedge
from teraedge.errors import FeatureError, ModelError, OptionsError

pytest.importorskip("sklearn")
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import make_scorer, roc_auc_score
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted

from teraedge.sklearn import SparseNetClassifier, SparseNetRegressor


def engine_of(weights, bias=None):
    return teraedge.compile(teraedge.Network([teraedge.Layer(weights, bias)]))


@pytest.fixture(scope="module")
def iris():
    """Data, a model that scikit-learn fitted, and the same model as an engine."""
    X, y = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, names)
    linear = model[-1]
    return X, names, model, engine_of(linear.coef_.T, linear.intercept_)


def test_a_pipeline_answers_as_the_model_it_was_made_from(iris):
    X, y, model, engine = iris
    ours = Pipeline(
        [("scale", model[0]), ("net", SparseNetClassifier(engine, classes=model.classes_))]
    )
    np.testing.assert_array_equal(ours.predict(X), model.predict(X))
    np.testing.assert_allclose(ours.predict_proba(X), model.predict_proba(X), atol=1e-5)
    assert ours.score(X, y) == model.score(X, y) > 0.9
    np.testing.assert_array_equal(clone(ours).fit(X, y).predict(X), model.predict(X))
    auc = make_scorer(roc_auc_score, response_method="predict_proba", multi_class="ovr")
    assert cross_val_score(ours, X, y, cv=3, scoring=auc).min() > 0.95


def test_clone_and_copies_share_the_engine(iris):
    *_, engine = iris
    estimator = SparseNetClassifier(engine, classes=["a", "b", "c"], outputs="probabilities")
    for other in (clone(estimator), copy.deepcopy(estimator)):
        assert other is not estimator
        assert other.engine is engine
        assert other.get_params() == estimator.get_params()
    assert estimator.set_params(classes=None).classes_.tolist() == [0, 1, 2]


def test_it_is_fitted_and_fit_changes_nothing(iris):
    X, y, _, engine = iris
    estimator = SparseNetClassifier(engine)
    check_is_fitted(estimator)
    assert estimator.fit(X, y) is estimator
    assert estimator.n_features_in_ == 4
    assert is_classifier(estimator)
    assert "SparseNetClassifier(engine=" in repr(estimator)


def test_a_data_frame(iris):
    pandas = pytest.importorskip("pandas")
    X, _, _, engine = iris
    estimator = SparseNetClassifier(engine)
    np.testing.assert_array_equal(estimator.predict(pandas.DataFrame(X)), estimator.predict(X))


@pytest.mark.parametrize("outputs", ["logits", "probabilities"])
def test_one_output_is_a_binary_classifier(outputs):
    x = np.array([[0.25], [0.5], [0.75]])
    bias = -0.5 if outputs == "logits" else 0.0
    estimator = SparseNetClassifier(
        engine_of([[1.0]], bias), classes=["no", "yes"], outputs=outputs
    )
    assert estimator.predict(x).tolist() == ["no", "no", "yes"]
    second = 1 / (1 + np.exp(0.5 - x)) if outputs == "logits" else x
    np.testing.assert_allclose(estimator.predict_proba(x), np.hstack((1 - second, second)))


def test_probabilities_are_taken_as_they_are():
    estimator = SparseNetClassifier(engine_of(np.eye(2)), outputs="probabilities")
    np.testing.assert_array_equal(estimator.predict_proba([[0.25, 0.75]]), [[0.25, 0.75]])


def test_a_softmax_head_gives_probabilities():
    network = teraedge.Network([teraedge.Layer(np.eye(2))], head="softmax")
    estimator = SparseNetClassifier(teraedge.compile(network))
    np.testing.assert_allclose(estimator.predict_proba([[0.0, np.log(3)]]), [[0.25, 0.75]])
    # Rounded to 1, both; labels are those before the head.
    assert estimator.predict([[200.0, 100.0], [100.0, 200.0]]).tolist() == [0, 1]


def test_large_logits_do_not_overflow():
    estimator = SparseNetClassifier(engine_of(np.eye(2)))
    np.testing.assert_array_equal(estimator.predict_proba([[1e30, -1e30]]), [[1.0, 0.0]])


def test_a_regressor():
    one, two = (
        SparseNetRegressor(engine_of([[1.0], [2.0]])),
        SparseNetRegressor(engine_of(np.eye(2))),
    )
    x = np.array([[1.0, 1.0], [0.0, 3.0]])
    assert is_regressor(one)
    np.testing.assert_array_equal(one.predict(x), [3.0, 6.0])
    np.testing.assert_array_equal(clone(two).predict(x), x)
    assert (
        make_pipeline(StandardScaler(), two).fit(x).score(x, StandardScaler().fit_transform(x)) == 1
    )


def test_what_is_wrong_is_said():
    engine = engine_of(np.eye(3))
    with pytest.raises(ModelError, match=r"shape \(2,\).*give 3 labels"):
        SparseNetClassifier(engine, classes=["a", "b"]).predict(np.eye(3))
    with pytest.raises(OptionsError, match="'odds'; allowed"):
        SparseNetClassifier(engine, outputs="odds").predict_proba(np.eye(3))
    with pytest.raises(FeatureError, match=r"reads \(samples, 3\)"):
        SparseNetClassifier(engine).predict(np.eye(2))
