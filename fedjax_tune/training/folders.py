"""Folders, as a user names them."""

import os
import pathlib
import re


def local(name: str, given: str | os.PathLike[str]) -> pathlib.Path:
  """Returns a folder of this machine; `~` is the user's home.

  Args:
    name: Of the field or flag, for messages.
    given: Its path, which need not exist.

  Raises:
    ValueError: It is empty, no path, or on another machine.
  """
  text = os.fspath(given)
  if not text.strip():
    raise ValueError(f'{name}={text!r} must name a folder.')
  if '\0' in text:
    raise ValueError(f'{name}={text!r} must not have a null character.')
  if re.match(r'[A-Za-z][\w+.-]*://', text):
    raise ValueError(
      f'{name}={text!r} must be a folder of this machine; addresses are not'
      ' supported.'
    )
  try:
    return pathlib.Path(text).expanduser()
  except RuntimeError as error:  # There is no such user.
    raise ValueError(f'{name}={text!r}: {error}') from error
