"""The one exception tree for faults that a user can mend. Imports nothing of the package."""


class MlxLoraError(Exception):
    """A fault with its place and fact (`message`) and its remedy (`hint`); printed without a traceback, exit code 1.

    Any other exception is a bug of ours and keeps its traceback.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(MlxLoraError):
    """A run file that is not valid; the message lists every fault, one a line."""


class DataError(MlxLoraError):
    """A data file or row that cannot be used; the message begins with `file:line`."""


class ModelError(MlxLoraError):
    """A base model that cannot be found, fetched or read."""


class AdapterError(MlxLoraError):
    """An adapter folder that cannot be read, or that does not belong to this base."""


class TrainingError(MlxLoraError):
    """A run that had to stop: a non-finite loss, no memory, nothing to learn from."""


class PredictionError(MlxLoraError):
    """A run whose memory cannot be told in advance."""
