"""What can go wrong, by what has to happen next. Driver errors are mapped to these at the edge."""


class LastSyncError(Exception):
    """Ends the command with one line on stderr and `exit_code`."""

    exit_code = 1


class TransientError(LastSyncError):
    """The broker or the store is away for now: hold what is in hand and try again.

    Before there is anything in hand it ends the command, like every other failure to start.
    """

    exit_code = 3


class MisconfiguredError(LastSyncError):
    """Trying again cannot help until a person changes something: the message says what."""

    exit_code = 3


class OffsetsLostError(LastSyncError):
    """The group's committed offset is gone from the topic: records were lost unread."""

    exit_code = 4


class StalledError(LastSyncError):
    """The loop has made no step for the watchdog's time, or its client will make none any more."""

    exit_code = 5
