"""What a measurement was made on."""

import os
import platform
from importlib.metadata import version

_PACKAGES = ("monailabel", "torch", "transformers", "sam2", "numpy", "scipy")


def describe_machine() -> str:
    """Platform, processor cores, GPU, Python and package versions, in one line."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    return f"{platform.platform()}, {os.cpu_count()} cores, {gpu}, Python {platform.python_version()}, {versions}"
