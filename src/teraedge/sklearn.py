"""Engines as scikit-learn estimators that are fitted already, for pipelines and scorers.

Importing this module imports scikit-learn; ``import teraedge`` does not.
"""

from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from teraedge.errors import DependencyError, ModelError, OptionsError

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
except ImportError:
    raise DependencyError(
        "teraedge.sklearn needs scikit-learn, which is not installed; "
        "pip install 'teraedge[sklearn]'"
    ) from None

if TYPE_CHECKING:
    from teraedge.engines import Engine

__all__ = ["SparseNetClassifier", "SparseNetRegressor"]


class _Fitted(BaseEstimator):
    """What both estimators share: an engine, and nothing left to fit."""

    engine: "Engine"

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Return the estimator as it is: its network was trained elsewhere."""
        return self

    @property
    def n_features_in_(self) -> int:
        """Features a sample, as scikit-learn calls the neurons that the network reads."""
        return self.engine.n_in

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def _outputs(self, X: Any) -> NDArray[np.float32]:
        return self.engine.run(X).to_numpy()


class SparseNetClassifier(ClassifierMixin, _Fitted):
    """A compiled network as a scikit-learn classifier.

    It is fitted from the start; `fit` changes nothing, so that the last step of a ``Pipeline`` may
    be one. `sklearn.base.clone` and ``copy.deepcopy`` share the engine.

    Parameters
    ----------
    engine : Engine
        As `teraedge.compile` returns it. A network with one output is a binary classifier, of
        which the output is about the second class.
    classes : array-like, shape (n_out,), optional
        The label of each output (of both classes, where there is one output); by default 0, 1, ...
    outputs : {"logits", "probabilities"}, optional
        What the network computes: "logits" go through a softmax (of one output: a sigmoid) in
        `predict_proba`, "probabilities" are taken as they are. By default probabilities where the
        network has a softmax head, else logits.

    Attributes
    ----------
    classes_ : ndarray
    n_features_in_ : int

    Examples
    --------
    >>> import teraedge
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import Normalizer
    >>> engine = teraedge.compile(teraedge.Network([teraedge.Layer([[1.0, 0.0], [0.0, 1.0]])]))
    >>> model = make_pipeline(
    ...     Normalizer(), teraedge.sklearn.SparseNetClassifier(engine, classes=["cat", "dog"])
    ... )
    >>> model.predict([[3.0, 1.0], [0.0, 2.0]])
    array(['cat', 'dog'], dtype='<U3')
    """

    def __init__(
        self,
        engine: "Engine",
        *,
        classes: ArrayLike | None = None,
        outputs: Literal["logits", "probabilities"] | None = None,
    ) -> None:
        self.engine = engine
        self.classes = classes
        self.outputs = outputs

    @property
    def classes_(self) -> NDArray[Any]:
        """The label of each output."""
        wanted = max(self.engine.n_out, 2)
        classes = np.arange(wanted) if self.classes is None else np.asarray(self.classes)
        if classes.shape != (wanted,):
            raise ModelError(
                f"classes have shape {classes.shape}; the network has {self.engine.n_out} "
                f"outputs: give {wanted} labels, or None"
            )
        return classes

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most probable class of each sample.

        Parameters
        ----------
        X : array, shape (samples, n_in)
            Anything `Engine.run` takes, or a DataFrame.

        Returns
        -------
        ndarray, shape (samples,)
            Of `classes_`; where several outputs tie, the first of them.
        """
        classes, are_logits, result = self.classes_, self._are_logits(), self.engine.run(X)
        chosen = result.labels
        if self.engine.n_out == 1:
            threshold = 0.0 if are_logits else 0.5
            chosen = (result.to_numpy()[:, 0] > threshold).astype(np.int64)
        return np.asarray(classes[chosen])

    def predict_proba(self, X: Any) -> NDArray[np.float32]:
        """Return the probability of each class.

        Parameters
        ----------
        X : array, shape (samples, n_in)

        Returns
        -------
        ndarray of float32, shape (samples, classes)
        """
        outputs, are_logits = self._outputs(X), self._are_logits()
        if outputs.shape[1] == 1:
            if are_logits:
                outputs = np.hstack((np.zeros_like(outputs), outputs))  # softmax is the sigmoid
            else:
                outputs = np.hstack((1 - outputs, outputs))
        if not are_logits:
            return outputs
        powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))

    def _are_logits(self) -> bool:
        if self.outputs is None:
            return self.engine.head != "softmax"
        if self.outputs not in ("logits", "probabilities"):
            raise OptionsError(
                f"outputs is {self.outputs!r}; allowed: 'logits', 'probabilities', or None"
            )
        return self.outputs == "logits"


class SparseNetRegressor(RegressorMixin, _Fitted):
    """A compiled network as a scikit-learn regressor; fitted from the start, as the classifier is.

    Parameters
    ----------
    engine : Engine
        As `teraedge.compile` returns it.

    Examples
    --------
    >>> import teraedge
    >>> engine = teraedge.compile(teraedge.Network([teraedge.Layer([[1.0], [2.0]])]))
    >>> teraedge.sklearn.SparseNetRegressor(engine).predict([[1.0, 1.0]])
    array([3.], dtype=float32)
    """

    def __init__(self, engine: "Engine") -> None:
        self.engine = engine

    def predict(self, X: Any) -> NDArray[np.float32]:
        """Return the outputs of each sample, shape (samples,) where there is one, else 2-D."""
        outputs = self._outputs(X)
        return outputs[:, 0] if outputs.shape[1] == 1 else outputs
