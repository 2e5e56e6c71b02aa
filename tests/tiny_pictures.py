"""Bytes of small picture files that Pillow reads but does not write."""

import io
import struct
from typing import Any
import zlib

from PIL import Image


def save(picture: Image.Image, kind: str, **options) -> bytes:
  """Returns what Pillow writes."""
  file = io.BytesIO()
  picture.save(file, kind, **options)
  return file.getvalue()


def jpeg(width: int, height: int, *, colour: Any = 'red', **options) -> bytes:
  """Returns a JPEG of one colour."""
  return save(Image.new('RGB', (width, height), colour), 'JPEG', **options)


def png(
  bits: int,
  kind: int,
  row: bytes,
  *,
  width: int = 2,
  height: int = 1,
  key: bytes = b'',
) -> bytes:
  """Returns a PNG of one row.

  Args:
    bits: Of a channel.
    kind: PNG's colour type: 0 grey, 2 RGB, 3 palette, 4 and 6 with alpha.
    row: The row's bytes.
    width: Pixels.
    height: What the header says.
    key: Content of the chunk tRNS, which says what is transparent.
  """
  header = struct.pack('>IIBBBBB', width, height, bits, kind, 0, 0, 0)
  palette = bytes([255, 0, 0, 0, 255, 0, 0, 0, 255]) * (kind == 3)
  chunks = {
    b'IHDR': header,
    b'PLTE': palette,
    b'tRNS': key,
    b'IDAT': zlib.compress(b'\0' + row),
  }
  body = b''.join(_chunk(k, v) for k, v in chunks.items() if v)
  return b'\x89PNG\r\n\x1a\n' + body + _chunk(b'IEND', b'')


def _chunk(kind: bytes, content: bytes) -> bytes:
  check = zlib.crc32(kind + content)
  size = struct.pack('>I', len(content))
  return size + kind + content + struct.pack('>I', check)


def tiff(
  row: bytes, bits: int, *, width: int = 2, meaning: int = 1, numbers: int = 1
) -> bytes:
  """Returns a TIFF of one row of one channel.

  Args:
    row: The row's bytes.
    bits: Of a pixel.
    width: Pixels.
    meaning: Tag 262: 0 if 0 is white, 1 if it is black.
    numbers: Tag 339: 1 unsigned, 2 signed, 3 floats.
  """
  tags = {
    256: width,
    257: 1,
    258: bits,
    259: 1,
    262: meaning,
    273: 0,
    277: 1,
    278: 1,
    279: len(row),
    339: numbers,
  }
  tags[273] = 8 + 2 + 12 * len(tags) + 4
  entries = [struct.pack('<HHIHH', k, 3, 1, v, 0) for k, v in tags.items()]
  count = struct.pack('<H', len(entries))
  return b'II*\0\x08\0\0\0' + count + b''.join(entries) + bytes(4) + row
