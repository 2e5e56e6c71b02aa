"""Turns a picture, a file's bytes or an array, into RGB, for every set.

The rules:

- Transparent pixels become white, whether an alpha channel, a palette or a
  transparent colour makes them transparent.
- EXIF's orientation is applied. EXIF that can't be read counts as upright.
- 16 bits are scaled by their whole range (65535, or what a TIFF's
  BitsPerSample or a PPM's maximum says), and so are floats, which must lie in
  [0, 1]. Signed and 32-bit integers state no range and are refused.
- The first frame of an animation is used, and the first page of a TIFF.
- ICC profiles are not applied: numbers are read as sRGB, as in the training of
  the pretrained models. CMYK becomes RGB by the plain formula.
- The content decides, never a file's name. Formats outside `FORMATS` are
  refused; Pillow would call other programs for some.
- Above `MAX_PIXELS` a picture is refused before it is decoded. Above
  `_LARGE_PIXELS`, JPEGs are decoded at a fraction of their size, and others one
  at a time, however many threads ask.

Damage that Pillow can't notice, such as noise in the middle of a JPEG, stays in
the decoded picture.
"""

from collections.abc import Iterator
import concurrent.futures
import contextlib
import io
import pathlib
from typing import Any
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fedjax_tune.data import pixels
from fedjax_tune.data.pixels import PictureError
from fedjax_tune.files import pointers

# Pillow's own bound, about 89 megapixels.
MAX_PIXELS = 89_478_485

FORMATS = (
  'JPEG',
  'PNG',
  'GIF',
  'BMP',
  'DIB',
  'TIFF',
  'WEBP',
  'PPM',
  'JPEG2000',
  'AVIF',
)

_LARGE_PIXELS = 1 << 22
# One thread, since each keeps the memory that it frees: eight that decode 64
# megapixels in turn keep 3.8 GB.
_LARGE = concurrent.futures.ThreadPoolExecutor(1, 'large-pictures')
_OTHER_SPACES = ('CMYK', 'LAB', 'HSV')

# TIFF's tags.
_BITS, _MEANING, _SAMPLES = 258, 262, 339
_WHITE_IS_ZERO, _SIGNED = 0, 2

# These warnings name no file, and reading reports all that matters.
warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)
warnings.filterwarnings('ignore', category=UserWarning, module=r'PIL\.')


def read(data: bytes | np.ndarray | pathlib.Path) -> bytes | np.ndarray:
  """Returns a picture as it is, or the bytes of its file.

  Raises:
    PictureError: The file cannot be read.
  """
  if not isinstance(data, pathlib.Path):
    return data
  try:
    return data.read_bytes()
  except OSError as error:
    raise PictureError(f'cannot be read: {error.strerror}') from error


def to_rgb(data: bytes | np.ndarray, size: int = 0) -> np.ndarray:
  """Decodes a picture.

  Args:
    data: A file's bytes, or pixels [h, w] or [h, w, 1, 3 or 4].
    size: Pixels of a side to resize to, bicubically (Pillow, which smooths
      when it shrinks); 0 keeps the picture's own.

  Returns:
    uint8[h, w, 3].

  Raises:
    PictureError: What is wrong with it.
  """
  if isinstance(data, np.ndarray):
    picture = _flatten(Image.fromarray(pixels.to_bytes(data)))
    return np.asarray(_resize(picture, size))
  picture = _open(data)
  with _faults_named():
    if size and _is_large(picture):
      picture.draft('RGB', (4 * size, 4 * size))  # Of a JPEG only.
    if _is_large(picture):
      return _LARGE.submit(_render, picture, size).result()
    return _render(picture, size)


def inspect(data: bytes | np.ndarray) -> tuple[str, ...]:
  """Returns what `to_rgb` will change, as far as a picture's header tells.

  Raises:
    PictureError: What is wrong with it; only `to_rgb` finds a body that is cut
      short.
  """
  if isinstance(data, np.ndarray):
    shape = pixels.to_bytes(data).shape
    notes = {
      'scaled to 8 bits': data.dtype.itemsize == 2 or data.dtype.kind == 'f',
      'put on white where transparent': shape[2:] == (4,),
    }
    return tuple(note for note, holds in notes.items() if holds)
  picture = _open(data)
  with _faults_named():
    return _changes(picture)


def _changes(picture: Image.Image) -> tuple[str, ...]:
  profile = picture.info.get('icc_profile') or b'sRGB'
  several = picture.format != 'MPO' and getattr(picture, 'n_frames', 1) > 1
  # Asked for EXIF, Pillow decodes a PNG that has none in its header.
  known = picture.format != 'PNG' or 'exif' in picture.info
  turned = known and _orientation(picture) > 1
  deep = picture.mode.startswith(('I', 'F')) or ';16' in _layout(picture)
  notes = {
    'scaled to 8 bits': deep,
    'put on white where transparent': picture.has_transparency_data,
    'turned upright as EXIF says': turned,
    'read as far as the first frame or page': several,
    f'converted from {picture.mode}': picture.mode in _OTHER_SPACES,
    'taken as sRGB in spite of another ICC profile': (
      b'sRGB' not in profile and 'sRGB'.encode('utf-16-be') not in profile
    ),
  }
  return tuple(note for note, holds in notes.items() if holds)


def _open(data: bytes) -> Image.Image:
  """Reads a header, and checks it."""
  if not isinstance(data, bytes):
    raise PictureError(f'is {type(data).__name__}; must be a picture')
  try:
    picture = Image.open(io.BytesIO(data), formats=FORMATS)
  except UnidentifiedImageError as error:
    raise PictureError(_describe(data)) from error
  except (Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
    raise PictureError(
      f'has more than {MAX_PIXELS} pixels, which is the limit ({e})'
    ) from e
  except Exception as error:
    raise PictureError(f'is damaged or cut short: {error}') from error
  width, height = picture.size
  if not 1 <= width * height <= MAX_PIXELS:
    raise PictureError(
      f'has {width} x {height} pixels; must have 1 to {MAX_PIXELS}'
    )
  if _SIGNED in _tag(picture, _SAMPLES, ()):
    raise PictureError('has signed numbers, which state no range')
  known = picture.format in ('PPM', 'PNG')
  if picture.mode == 'I' and not known:
    raise PictureError('has 32-bit integers, which state no range')
  return picture


def _describe(data: bytes) -> str:
  """Describes bytes that are not a picture."""
  start = data[:1000].lstrip(b'\xef\xbb\xbf \t\r\n').lower()
  if not data:
    return 'is empty, 0 bytes'
  if b'<svg' in start:
    return 'is SVG, a drawing; must be a picture made of pixels'
  if start.startswith((b'<!doctype html', b'<html')):
    return 'is an HTML page; must be a picture'
  if pointers.found(start):
    return 'is a pointer of Git LFS; must be the picture itself'
  return (
    f'is no picture that can be read: it begins with {data[:8]!r}; must be one'
    f' of {", ".join(FORMATS)}, and whole'
  )


@contextlib.contextmanager
def _faults_named() -> Iterator[None]:
  """Turns the errors of Pillow's many decoders into one kind."""
  try:
    yield
  except PictureError:
    raise
  except MemoryError as error:
    raise PictureError('needs more memory than there is') from error
  except Exception as error:
    raise PictureError(f'is damaged or cut short: {error}') from error


def _is_large(picture: Image.Image) -> bool:
  return picture.size[0] * picture.size[1] > _LARGE_PIXELS


def _render(picture: Image.Image, size: int) -> np.ndarray:
  key = _transparent_key(picture)
  mode, white_is_zero = picture.mode, _tag(picture, _MEANING) == _WHITE_IS_ZERO
  bits = _tag(picture, _BITS, (16,))[0]
  picture.load()  # This already turns a TIFF upright.
  if _orientation(picture) > 1:
    picture = ImageOps.exif_transpose(picture)
  if not mode.startswith(('I', 'F')):
    if key is not None:
      picture.info['transparency'] = key
    return np.asarray(_resize(_flatten(picture), size))
  values = np.asarray(picture, np.float32)
  if mode != 'F':
    values /= 2**bits - 1
  grey = pixels.to_bytes(1 - values if white_is_zero else values)
  if key is not None:
    grey = np.where(np.asarray(picture) == key, np.uint8(255), grey)
  return np.asarray(_resize(_flatten(Image.fromarray(grey)), size))


def _flatten(picture: Image.Image) -> Image.Image:
  """Returns RGB, on white."""
  if not picture.has_transparency_data:
    return picture.convert('RGB')
  if picture.mode != 'RGBA':
    picture = picture.convert('RGBA')
  white = Image.new('RGB', picture.size, 'white')
  white.paste(picture, mask=picture.getchannel('A'))
  return white


def _resize(picture: Image.Image, size: int) -> Image.Image:
  if not size or picture.size == (size, size):
    return picture
  return picture.resize((size, size), Image.Resampling.BICUBIC)


def _orientation(picture: Image.Image) -> int:
  """Returns EXIF's number from 1, upright, to 8; 1 if there is none."""
  try:
    found = picture.getexif().get(0x0112, 1)
  except Exception:  # Damaged EXIF raises whatever its reader met.
    return 1
  return found if found in range(2, 9) else 1


def _layout(picture: Image.Image) -> str:
  """Returns how a file stores pixels, in Pillow's words: 'RGB;16B'."""
  tiles = getattr(picture, 'tile', [])
  args = tiles[0].args if tiles else ''
  return str(args[0] if isinstance(args, tuple) else args)


def _tag(picture: Image.Image, tag: int, default: Any = None) -> Any:
  """Returns a TIFF's tag."""
  return getattr(picture, 'tag_v2', {}).get(tag, default)


def _transparent_key(picture: Image.Image) -> Any:
  """Returns the transparent colour on the scale of the decoded pixels.

  PNG gives it on the file's own scale, and Pillow passes it on.
  """
  key = picture.info.get('transparency')
  if picture.format != 'PNG' or key is None:
    return key
  factors = {'L;2': 85, 'L;4': 17}
  if isinstance(key, int):
    return key * factors.get(_layout(picture), 1)
  if isinstance(key, tuple) and ';16' in _layout(picture):
    return tuple(part >> 8 for part in key)
  return key
