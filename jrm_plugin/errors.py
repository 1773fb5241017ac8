"""The one error a user is meant to read."""


class JRMError(ValueError):
    """Something the user gave is wrong; the message is one sentence that says what, where and what to do.

    The command line prints the message to stderr and exits with 2, without a traceback.
    """
