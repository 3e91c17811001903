"""The exceptions that end a command with one line and no traceback."""

import errno
from pathlib import Path

UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
DENIED = {errno.EACCES, errno.EPERM}


class Refusal(Exception):
    """A wrong configuration, argument or file; one line names key, value and remedy."""

    code = 2  # the exit code of the command


class Failure(Refusal):
    """Work that ended too early; the saved part can be continued."""

    code = 1


def unwritable(error: OSError, folder: Path) -> bool:
    """Return whether the error comes from a write to a full, failing or read-only disk.

    A denied permission counts too, but only inside `folder`: elsewhere it may be a failed read.
    """
    if error.errno in DENIED and isinstance(error.filename, str):
        return Path(error.filename).absolute().is_relative_to(folder.absolute())
    return error.errno in UNWRITABLE
