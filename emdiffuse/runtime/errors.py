"""Mistakes of the user's: each is one clear sentence, and never shown as a traceback.

Every class derives from `EmdiffuseError`, which the command line prints as ``error: <sentence>`` with exit
code 1. Anything else that escapes a stage is a defect of ours, and keeps its traceback.
"""


class EmdiffuseError(ValueError):
    """A mistake of the user's, or of the data: one sentence that names the file or key, and what to do."""

    exit_code = 1


class ConfigError(EmdiffuseError):
    """A wrong configuration; names the key."""


class DataError(EmdiffuseError):
    """Unusable data; names the file."""


class StoreError(EmdiffuseError):
    """A store that is missing, damaged, or was made with other settings; names its path."""


class DamagedError(StoreError):
    """A part of a store that is missing, or was read in full and fails its checksum; names it."""


class AccessError(EmdiffuseError):
    """A trouble of the machine, not of the data: a full disk, no permission, too many open files, no memory.

    Nothing may be concluded from it about what could not be read or written, and nothing deleted.
    """


class LaunchError(EmdiffuseError):
    """A job of a cluster that could not be submitted, failed or was lost; names the job."""
