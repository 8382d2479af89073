"""Whether a device is there, before any long work is done for it."""


def check_device(device: str) -> None:
    """Compile a network of one neuron where the device is not the one that is always there.

    Parameters
    ----------
    device : str
        As given to `teraedge.compile`.

    Raises
    ------
    OptionsError, DeviceError, DependencyError
        If there is no such device, or what it needs is not installed.
    """
    if device == "cpu":
        return
    import teraedge

    teraedge.compile(teraedge.Network([teraedge.Layer([[1.0]])]), device).close()
