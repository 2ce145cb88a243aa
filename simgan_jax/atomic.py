"""Files that are there whole or not at all (io)."""

import os
import pathlib
import secrets

from simgan_jax import hosts


class WriteError(OSError):
    """A file that could not be written; one line with file, reason and remedy. What stood there before still does."""


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file beside `path`, syncs it and moves it there in one step; of several processes the first alone.

    Raises:
      WriteError: full disk, missing folder, no permission; nothing of the new file is left.
    """
    if not hosts.is_first():
        return
    path = pathlib.Path(path)
    # The name is cut because a suffix on a name of the longest legal length would be refused.
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.tmp")
    try:
        try:
            # Not tempfile: that makes files which only their owner may read, whatever the umask says.
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise WriteError(
            f"{path}: not written ({reason}): make room there or give another folder; nothing was changed"
        ) from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """`write_bytes` of a text in UTF-8, line ends as they are.

    Raises:
      WriteError: as `write_bytes`.
    """
    write_bytes(path, text.encode())
