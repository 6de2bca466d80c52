"""The exceptions and warnings users can meet."""


class DeepwasError(Exception):
    """Base of every error that deepwas raises on purpose."""


class InputError(DeepwasError, ValueError):
    """The input is wrong: the message says where, what was found, and what to type.

    The command line prints the message alone and ends with exit code 2; nothing is written.
    """


class ConvergenceWarning(UserWarning):
    """An iterative solver stopped before the tolerance asked for."""


class DataWarning(UserWarning):
    """The input can be used, but something about it deserves a look."""
