"""The two ways in which a command ends badly, as exceptions: the call is wrong (exit 2), or the work failed (exit 1)."""


class CallError(ValueError):
    """What was asked for cannot be done as asked: a flag, a folder or a size is wrong. Commands exit with 2."""


class WorkError(ValueError):
    """The call was right and the work could not be finished: bad data, a full disk. Commands exit with 1."""
