"""What can be wrong with a request. The command line prints the message and exits 2; the server answers 4xx with it."""


class InputError(ValueError):
    """The user's input cannot be used. `message` names the thing and the remedy; `field` names the parameter, if one."""

    def __init__(self, message: str, field: str | None = None):
        super().__init__(message)
        self.message = message
        self.field = field


class ImageError(InputError):
    """The image cannot be read, or cannot be represented truly (HTTP 422)."""

    def __init__(self, message: str):
        super().__init__(message, field="image")


class UnknownTarget(InputError):
    """The engine does not know the structure that the prompt names (HTTP 422)."""

    def __init__(self, message: str):
        super().__init__(message, field="prompt")


class EngineError(RuntimeError):
    """A policy or a segmenter could not do its work (out of memory, server gone): the slices concerned end as failed."""


class OutOfMemory(EngineError):
    """A batch did not fit into the device's memory; a smaller one may."""
