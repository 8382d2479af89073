"""The exceptions teraedge raises for what a user can put right.

Each message is one line that says what was given, what is allowed and what to do. The CLI prints
that line and exits with status 2.
"""


class TeraedgeError(Exception):
    """Base of every error teraedge raises on purpose."""


class ModelError(TeraedgeError, ValueError):
    """A layer or a network that is not valid: shapes, values, activations."""


class FeatureError(TeraedgeError, ValueError):
    """Features (input samples) that do not fit the network or are not finite numbers."""


class OptionsError(TeraedgeError, ValueError):
    """An option with a value that is not allowed, or a device or dataset that does not exist."""


class FormatError(TeraedgeError, ValueError):
    """A file that is missing, truncated, malformed, or holds something else than it says."""


class DataError(TeraedgeError, RuntimeError):
    """A dataset that cannot be built: its source is absent, unreachable or not the right one."""


class DeviceError(TeraedgeError, RuntimeError):
    """A device that is absent, lost or full, or an engine that has been closed."""


class DependencyError(TeraedgeError, ImportError):
    """An optional dependency that is not installed; the message names the extra that brings it."""
