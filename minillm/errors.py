"""Every error a caller can cause, all ValueErrors; a message says what was given, what was expected and what to do."""


class MinillmError(ValueError):
    """The family: `except MinillmError` catches whatever bad input this library can name."""


class ConfigError(MinillmError):
    """A setting is unknown, of the wrong type, out of range, or contradicts another."""


class ShapeError(MinillmError):
    """A tensor has other dimensions than the function's contract says."""


class DataError(MinillmError):
    """A text, corpus or packed file is missing, empty, too short, badly encoded or damaged."""


class TokenizerError(MinillmError):
    """Text or ids that a tokenizer cannot represent, or a tokenizer file that it cannot read."""


class CheckpointError(MinillmError):
    """A checkpoint is missing, damaged, foreign, or belongs to another model."""


class DeviceError(MinillmError):
    """A device or number format was asked for that this machine does not have."""


class TrainingError(MinillmError):
    """Training had to stop: the loss or the gradients are no longer finite."""


class CommError(MinillmError):
    """Ranks could not work together: one died, hung, left early, or came to a collective with something else."""


class SamplingError(MinillmError):
    """A sampling setting is out of range, or the scores leave nothing to choose from."""


class CourseError(MinillmError):
    """A chapter contradicts itself, or its notebook fails when it is run."""
