"""Which devices a model runs on."""

import torch

from lib.errors import InputError

KINDS = "auto, cpu, cuda, cuda:N, all (one copy of the model on each GPU) or balanced (one model over all GPUs)"


def pick_devices(text: str) -> tuple[torch.device, ...]:
    """One device for each copy of a model. "auto": the first GPU, or the CPU where there is none.

    "balanced" is one copy over several GPUs and no matter of this function. Raises InputError with the field "device" when
    torch does not see what was asked for.
    """
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if text == "auto":
        return (torch.device("cuda", 0) if found else torch.device("cpu"),)
    if text == "cpu":
        return (torch.device("cpu"),)
    kind, _, number = text.partition(":")
    if text not in ("all", "cuda") and not (kind == "cuda" and number.isdigit()):
        raise InputError(f"device {text!r} is unknown: use {KINDS}", "device")
    if not found:
        raise InputError(
            f"{text!r} was asked for, but torch {torch.__version__} sees no GPU: check nvidia-smi and the driver, or use cpu",
            "device",
        )
    if text == "all":
        return tuple(torch.device("cuda", index) for index in range(found))
    index = int(number or 0)
    if index >= found:
        raise InputError(f"there is no {text}: torch sees {found} GPU{'s' if found > 1 else ''}, numbered from 0", "device")
    return (torch.device("cuda", index),)
