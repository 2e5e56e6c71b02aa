"""Pictures of every kind become the RGB that they mean, or are refused."""

import concurrent.futures
import struct

import numpy as np
from PIL import Image
import pytest
from tiny_pictures import jpeg, png, save, tiff

from fedjax_tune.data import pictures, pixels

_GREY = lambda *values: [[v] * 3 for v in values]
_WHITE, _BLACK = [255, 255, 255], [0, 0, 0]


def _palette(mode: str) -> Image.Image:
  picture = Image.new(mode, (2, 1))
  picture.putpalette([255, 0, 0, 0, 0, 255])
  picture.putpixel((0, 0), 0 if mode == 'P' else (0, 0))
  picture.putpixel((1, 0), 1 if mode == 'P' else (1, 255))
  return picture


def _of(mode: str, *values) -> Image.Image:
  picture = Image.new(mode, (len(values), 1))
  picture.putdata(values)
  return picture


_FLOATS = struct.pack('<ff', 0.0, 0.2)
_SHORTS = struct.pack('<HH', 0, 0x8000)

# Each file, and the row of pixels that it means.
_MEANINGS = {
  # 16 bits, and other depths, by their real range.
  'grey 16, PNG': (png(16, 0, struct.pack('>HH', 257, 65535)), _GREY(1, 255)),
  'grey 16, TIFF': (tiff(_SHORTS, 16), _GREY(0, 128)),
  'grey 16, 0 is white': (tiff(_SHORTS, 16, meaning=0), _GREY(255, 127)),
  'grey 12, TIFF': (tiff(b'\x00\x0f\xff', 12), _GREY(0, 255)),
  'grey 16, big endian': (
    save(_of('I;16B', 257, 65535), 'TIFF'),
    _GREY(1, 255),
  ),
  'grey 16, JPEG 2000': (
    save(_of('I;16', 257, 65535), 'JPEG2000'),
    _GREY(1, 255),
  ),
  'grey of 1023, PPM': (
    b'P5 2 1 1023 ' + struct.pack('>HH', 0, 1023),
    _GREY(0, 255),
  ),
  'RGB 16, PNG': (
    png(16, 2, struct.pack('>HHH', 257, 0, 65535), width=1),
    [[1, 0, 255]],
  ),
  'floats, TIFF': (tiff(_FLOATS, 32, numbers=3), _GREY(0, 51)),
  'floats, 0 is white': (
    tiff(_FLOATS, 32, meaning=0, numbers=3),
    _GREY(255, 204),
  ),
  'grey 8, 0 is white': (tiff(b'\x00\xf0', 8, meaning=0), _GREY(255, 15)),
  # Transparency, put on white.
  'grey with alpha': (
    save(_of('LA', (0, 0), (0, 102)), 'PNG'),
    _GREY(255, 153),
  ),
  'RGB with alpha': (
    save(_of('RGBA', (9, 9, 9, 0), (0, 0, 0, 255)), 'PNG'),
    [_WHITE, _BLACK],
  ),
  'RGB with alpha, WebP': (
    save(_of('RGBA', (9, 9, 9, 0), (0, 0, 0, 255)), 'WEBP', lossless=True),
    [_WHITE, _BLACK],
  ),
  'RGB with alpha 16': (
    png(16, 6, struct.pack('>HHHH', 0, 0, 0, 0), width=1),
    [_WHITE],
  ),
  'grey with alpha 16': (
    png(16, 4, struct.pack('>HH', 0, 0), width=1),
    [_WHITE],
  ),
  'palette with alpha, PNG': (
    png(8, 3, b'\0\1', key=b'\x00\x33'),
    [_WHITE, [204, 255, 204]],
  ),
  'palette with alpha, TIFF': (
    save(_palette('PA'), 'TIFF'),
    [_WHITE, [0, 0, 255]],
  ),
  'transparent index, GIF': (
    save(_palette('P'), 'GIF', transparency=0),
    [_WHITE, [0, 0, 255]],
  ),
  'palette': (save(_palette('P'), 'PNG'), [[255, 0, 0], [0, 0, 255]]),
  'transparent RGB': (
    png(8, 2, b'\1\2\3\1\2\4', key=struct.pack('>HHH', 1, 2, 3)),
    [_WHITE, [1, 2, 4]],
  ),
  'transparent RGB 16': (
    png(
      16,
      2,
      struct.pack('>6H', 7, 40000, 3, 7, 7, 7),
      key=struct.pack('>HHH', 7, 40000, 3),
    ),
    [_WHITE, _BLACK],
  ),
  'transparent grey': (
    png(8, 0, b'\5\6', key=struct.pack('>H', 5)),
    _GREY(255, 6),
  ),
  'transparent grey 4': (
    png(4, 0, b'\x56', key=struct.pack('>H', 5)),
    _GREY(255, 6 * 17),
  ),
  'transparent grey 2': (
    png(2, 0, b'\x60', key=struct.pack('>H', 1)),
    _GREY(255, 170),
  ),
  'transparent black of two': (
    png(1, 0, b'\x40', key=struct.pack('>H', 0)),
    _GREY(255, 255),
  ),
  'transparent grey 16': (
    png(16, 0, struct.pack('>HH', 7, 257), key=struct.pack('>H', 7)),
    _GREY(255, 1),
  ),
  # Other colour spaces.
  'black and white': (save(_of('1', 0, 255), 'PNG'), _GREY(0, 255)),
  'CMYK, JPEG': (save(Image.new('CMYK', (2, 1)), 'JPEG'), _GREY(255, 255)),
  'CMYK, TIFF': (
    save(_of('CMYK', (255, 0, 0, 0), (0, 0, 0, 255)), 'TIFF'),
    [[0, 255, 255], _BLACK],
  ),
  'YCbCr': (
    save(_of('YCbCr', (255, 128, 128), (0, 128, 128)), 'TIFF'),
    _GREY(255, 0),
  ),
  # Frames and pages.
  'animated GIF': (
    save(_of('L', 9, 9), 'GIF', save_all=True, append_images=[_of('L', 7, 7)]),
    _GREY(9, 9),
  ),
  'pages of a TIFF': (
    save(_of('L', 9, 9), 'TIFF', save_all=True, append_images=[_of('L', 7, 7)]),
    _GREY(9, 9),
  ),
}


@pytest.mark.parametrize('name', _MEANINGS)
def test_meaning(name):
  data, expected = _MEANINGS[name]
  pictures.inspect(data)
  found = pictures.to_rgb(data)
  assert found.dtype == np.uint8
  assert found[0].tolist() == expected


def test_lab_is_converted_by_its_definition():
  data = save(_of('LAB', (255, 128, 128), (0, 128, 128)), 'TIFF')
  white, black = pictures.to_rgb(data)[0].astype(int)
  assert (white > 250).all()
  assert (black < 5).all()


def test_premultiplied_arrays_and_arrays_of_other_types():
  row = np.array([[0, 65535]], np.uint16)
  cases = [
    (row, _GREY(0, 255)),
    (row[..., None], _GREY(0, 255)),
    (row.astype('>u2'), _GREY(0, 255)),
    (np.array([[False, True]]), _GREY(0, 255)),
    (np.array([[0.0, 0.2]]), _GREY(0, 51)),
    (np.array([[3, 4]], np.int64), _GREY(3, 4)),
    (np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8), [[1, 2, 3], [4, 5, 6]]),
    (np.array([[[9, 9, 9, 0]]], np.uint8), [_WHITE]),
  ]
  for array, expected in cases:
    assert pictures.to_rgb(array)[0].tolist() == expected


@pytest.mark.parametrize(
  ('array', 'message'),
  [
    (np.array([[0.0, 1.5]]), r'float64 from 0 to 1.5; must lie in \[0, 1\]'),
    (np.array([[0.0, np.nan]]), 'float64 from nan'),
    (np.array([[-1, 3]]), r'int64 from -1 to 3; must lie in \[0, 255\]'),
    (np.array([[3, 300]]), r'from 3 to 300'),
    (np.zeros((3, 8, 8), np.uint8), r'shape \(3, 8, 8\); must be \[h, w, 1'),
    (np.zeros((2, 8, 8, 3), np.uint8), r'shape \(2, 8, 8, 3\)'),
    (np.zeros((0, 8, 3), np.uint8), 'no pixel'),
    (np.zeros((1, 1), complex), 'complex128; must be numbers'),
  ],
)
def test_arrays_that_mean_nothing_are_refused(array, message):
  for read in (pictures.to_rgb, pictures.inspect):
    with pytest.raises(pixels.PictureError, match=message):
      read(array)


_TURNS = {
  1: [[1, 2, 3], [4, 5, 6]],
  2: [[3, 2, 1], [6, 5, 4]],
  3: [[6, 5, 4], [3, 2, 1]],
  4: [[4, 5, 6], [1, 2, 3]],
  5: [[1, 4], [2, 5], [3, 6]],
  6: [[4, 1], [5, 2], [6, 3]],
  7: [[6, 3], [5, 2], [4, 1]],
  8: [[3, 6], [2, 5], [1, 4]],
  9: [[1, 2, 3], [4, 5, 6]],
}


@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'WEBP'])
@pytest.mark.parametrize('turn', _TURNS)
def test_orientation(kind, turn):
  picture = Image.fromarray(np.array(_TURNS[1], np.uint8))
  exif = picture.getexif()
  exif[0x0112] = turn
  options = {
    'PNG': {'exif': exif},
    'TIFF': {'tiffinfo': {274: turn}},
    'WEBP': {'exif': exif, 'lossless': True},
  }
  data = save(picture, kind, **options[kind])
  assert pictures.to_rgb(data)[..., 0].tolist() == _TURNS[turn]
  told = 'turned upright as EXIF says' in pictures.inspect(data)
  assert told == (2 <= turn <= 8)


def test_orientation_of_jpegs_and_damaged_exif():
  exif = Image.Exif()
  exif[0x0112] = 6
  assert pictures.to_rgb(jpeg(16, 8, exif=exif)).shape == (16, 8, 3)
  cut = exif.tobytes()[:-6]
  with pytest.warns(UserWarning, match='Corrupt EXIF'):
    assert pictures.to_rgb(jpeg(16, 8, exif=cut)).shape == (8, 16, 3)


@pytest.mark.parametrize(
  ('data', 'message'),
  [
    (b'', 'is empty, 0 bytes'),
    (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 'is SVG, a drawing'),
    (b'\xef\xbb\xbf<?xml version="1.0"?>\n<svg/>', 'is SVG, a drawing'),
    (b'\n<!DOCTYPE html><html>404</html>', 'is an HTML page'),
    (b'version https://git-lfs.github.com/spec/v1\n', 'a pointer of Git LFS'),
    (b'%!PS-Adobe-3.0 EPSF-3.0\n', r"begins with b'%!PS-Ado'; must be one of"),
    (b'not a picture', 'is no picture that can be read'),
    ('a/path.jpg', 'is str; must be a picture'),
    ([b''], 'is list; must be a picture'),
    (tiff(bytes(8), 32), '32-bit integers, which state no range'),
    (tiff(bytes(2), 8, numbers=2), 'signed numbers, which state no range'),
    (tiff(bytes(4), 16, numbers=2), 'signed numbers, which state no range'),
  ],
)
def test_what_is_no_picture_is_refused(data, message):
  for read in (pictures.to_rgb, pictures.inspect):
    with pytest.raises(pixels.PictureError, match=message):
      read(data)


def test_floats_outside_of_their_range_are_refused():
  data = tiff(struct.pack('<ff', 0, 255), 32, numbers=3)
  with pytest.raises(pixels.PictureError, match=r'from 0 to 255; must lie in'):
    pictures.to_rgb(data)


_NOISE = Image.fromarray(
  np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
)


@pytest.mark.parametrize('part', [0.3, 0.9, 0.99])
@pytest.mark.parametrize(
  'kind',
  ['JPEG', 'PNG', 'GIF', 'TIFF', 'BMP', 'WEBP', 'PPM', 'JPEG2000', 'AVIF'],
)
def test_files_cut_short_are_refused(kind, part):
  data = save(_NOISE, kind)
  pictures.to_rgb(data)
  with pytest.raises(pixels.PictureError, match=r'damaged|no picture'):
    pictures.to_rgb(data[: int(len(data) * part)])


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
@pytest.mark.parametrize('size', [(20000, 10000), (9500, 9500)])
def test_pictures_that_are_too_large_are_refused(size):
  data = png(8, 0, b'', width=size[0], height=size[1])
  for read in (pictures.to_rgb, pictures.inspect):
    with pytest.raises(pixels.PictureError, match=r'2000000|9500 x 9500 pix'):
      read(data)


def test_large_jpegs_are_decoded_at_a_fraction(monkeypatch):
  data = jpeg(320, 240, colour=(10, 200, 30))
  monkeypatch.setattr(pictures, '_LARGE_PIXELS', 1000)
  decoded = []
  flatten = pictures._flatten
  monkeypatch.setattr(
    pictures, '_flatten', lambda p: decoded.append(p.size) or flatten(p)
  )
  found = pictures.to_rgb(data, 8).astype(int)
  assert decoded == [(80, 60)]
  assert abs(found - [10, 200, 30]).max() < 4


@pytest.mark.parametrize('size', [(1, 300), (300, 1), (1, 1)])
def test_one_pixel_wide(size):
  found = pictures.to_rgb(save(Image.new('RGB', size, 'red'), 'PNG'), 14)
  assert found.shape == (14, 14, 3)
  assert (found == [255, 0, 0]).all()


@pytest.mark.parametrize(
  ('data', 'expected'),
  [
    (jpeg(8, 8), []),
    (_MEANINGS['grey 16, PNG'][0], ['scaled to 8 bits']),
    (_MEANINGS['RGB 16, PNG'][0], ['scaled to 8 bits']),
    (_MEANINGS['floats, TIFF'][0], ['scaled to 8 bits']),
    (_MEANINGS['transparent RGB'][0], ['put on white where transparent']),
    (_MEANINGS['animated GIF'][0], ['read as far as the first frame or page']),
    (_MEANINGS['CMYK, TIFF'][0], ['converted from CMYK']),
    (
      jpeg(8, 8, icc_profile=b'Adobe RGB (1998)'),
      ['taken as sRGB in spite of another ICC profile'],
    ),
    (jpeg(8, 8, icc_profile=b'sRGB IEC61966-2.1'), []),
    (
      np.zeros((2, 2, 4), np.uint16),
      ['scaled to 8 bits', 'put on white where transparent'],
    ),
  ],
)
def test_changes_are_told(data, expected):
  assert list(pictures.inspect(data)) == expected


def test_opaque_rgb_stays_bit_for_bit():
  for kind in ('PNG', 'BMP', 'TIFF', 'PPM'):
    found = pictures.to_rgb(save(_NOISE, kind))
    np.testing.assert_array_equal(found, np.asarray(_NOISE))
  resized = _NOISE.resize((14, 14), Image.Resampling.BICUBIC)
  found = pictures.to_rgb(save(_NOISE, 'PNG'), 14)
  np.testing.assert_array_equal(found, np.asarray(resized))


def test_large_pictures_are_decoded_one_at_a_time(monkeypatch):
  data = save(_NOISE, 'PNG')
  expected = pictures.to_rgb(data, 14)
  monkeypatch.setattr(pictures, '_LARGE_PIXELS', 1000)
  decoding, most = [], []
  flatten = pictures._flatten

  def watched(picture):
    decoding.append(picture)
    most.append(len(decoding))
    found = flatten(picture)
    decoding.remove(picture)
    return found

  monkeypatch.setattr(pictures, '_flatten', watched)
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    found = list(pool.map(lambda _: pictures.to_rgb(data, 14), range(40)))
  assert max(most) == 1
  assert len(most) == 40
  np.testing.assert_array_equal(found, [expected] * 40)
