"""The one exception family: a failure that a person can mend, told in one sentence."""


class WwtsError(Exception):
    """Something a person can mend; the message says what was wrong and what to do.

    Raised for bad input, never retried: the same input fails the same way.
    """


class UnavailableError(WwtsError):
    """A server or a disk did not answer; trying again later can help, so Airflow retries it."""
