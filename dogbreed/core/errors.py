"""The errors that a person is meant to read."""


class DogbreedError(Exception):
    """Something a person can put right: one sentence that names the cause and the way out.

    Commands print the sentence on standard error, without a traceback, and exit with `exit_code`.
    """

    exit_code = 2


class Interrupted(DogbreedError):
    """The run was stopped from outside (Ctrl-C); what had been reached is kept."""

    exit_code = 130
