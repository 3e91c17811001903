"""The exceptions that end a command with a line for its user, and no traceback."""

import errno
from pathlib import Path

UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


DENIED = {errno.EACCES, errno.EPERM}


class Refusal(Exception):
    """A configuration, an argument or a file that is wrong: a line says key, value and remedy."""

    code = 2  # the exit code of the command


class Failure(Refusal):
    """Work that ended too early; what it has saved can be gone on with."""

    code = 1


def unwritable(error: OSError, folder: Path) -> bool:
    """Whether a disk is full or does not take what is written, or the folder is no longer ours.
    What we may not read elsewhere is another matter.
    """
    if error.errno in DENIED and isinstance(error.filename, str):
        return Path(error.filename).absolute().is_relative_to(folder.absolute())
    return error.errno in UNWRITABLE
