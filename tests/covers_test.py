"""Tokens of two tokenizers, matched by the text that they cover."""

import dataclasses
from typing import Any

from flax import nnx
import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
import tiny
import tiny_folders
import tiny_text

from fedjax_tune import config
from fedjax_tune.data import corpus, covers, public, tokens
from fedjax_tune.models import (
  bottleneck,
  decoder,
  foundation,
  pretrained,
  reads,
  sizes,
  tiers,
)
from fedjax_tune.training import shown

_TEXTS = ['who wrote that book by ann lee', ' The  book, a book', '', 'b']
_MOST = 5


@pytest.fixture(scope='module')
def tokenizers(tmp_path_factory):
  """One of word pieces, and one of bytes."""
  root = tmp_path_factory.mktemp('tokenizers')
  pieces = tokens.load(tiny_text.write_bert(root / 'pieces'))
  return pieces, tokens.load(tiny_text.write_roberta(root / 'bytes'))


@pytest.mark.parametrize('length', [9, 40])
def test_what_tokens_cover_is_what_they_say(tokenizers, length):
  """Of bytes, and of pieces that are known: their characters, in order."""
  pads = tiny_text.BERT_PAD, tiny_text.ROBERTA_PAD
  for tokenizer, pad in zip(tokenizers, pads, strict=True):
    ids, covered = covers.encode(tokenizer, _TEXTS, None, length)
    want = tokens.encode(tokenizer, _TEXTS, None, length, pad)
    real = np.arange(length) < want.lengths[:, None]
    np.testing.assert_array_equal(ids[real], want.ids[real])
    assert not covered[~real].any()
    for text, spans, own in zip(_TEXTS, covered, ids, strict=True):
      letters = ''.join(text.split())
      for (begin, end), token in zip(spans, own, strict=True):
        said = tokenizer.id_to_token(int(token)).strip('#\u0120')
        if begin < end and said != '[UNK]':
          assert letters[begin:end].lower() == said.lower()
      ends = spans[spans[:, 1] > spans[:, 0], 1]
      assert np.all(np.diff(ends) >= 0)


def test_pairs_are_one_text_after_the_other(tokenizers):
  _, of_bytes = tokenizers
  _, covered = covers.encode(of_bytes, ['ab c'], ['de'], 20)
  ends = covered[0, covered[0, :, 1] > covered[0, :, 0]]
  np.testing.assert_array_equal(ends, [[i, i + 1] for i in range(5)])


def test_segments_are_alike_in_both(tokenizers):
  covered = [covers.encode(t, _TEXTS, None, 40)[1] for t in tokenizers]
  weights = covers.match(covered, _MOST)
  np.testing.assert_allclose(weights[0].sum(-1), 1, rtol=1e-6)
  for n, row in np.ndindex(len(_TEXTS), _MOST):
    both = [w[n, row] > 0 for w in weights]
    stretch = [
      (of[n][at, 0].min(), of[n][at, 1].max())
      for of, at in zip(covered, both, strict=True)
    ]
    assert stretch[0] == stretch[1]
  # Bytes end everywhere, so that segments are the pieces.
  pieces = weights[0][0] > 0
  np.testing.assert_array_equal(pieces.sum(-1), 1)
  assert len(np.unique(pieces.argmax(-1))) == _MOST
  # And of one tokenizer every token is one.
  alone, _ = covers.match([covered[1], covered[1]], 30)
  assert (alone[0] > 0).sum(-1).max() == 1


def test_where_tokenizers_agree_on_nothing_all_of_it_is_one():
  a = np.array([[[0, 0], [0, 2], [2, 5]]])
  b = np.array([[[0, 1], [1, 4], [0, 0]]])
  found = covers.match([a, b], 2)
  np.testing.assert_allclose(found[0], [[[0, 0.5, 0.5]] * 2])
  np.testing.assert_allclose(found[1], [[[0.5, 0.5, 0]] * 2])
  nothing = covers.match([np.zeros((1, 3, 2), int)] * 2, 1)
  np.testing.assert_array_equal(nothing[0], [[[1, 0, 0]]])


@pytest.mark.parametrize('other', ['', 'imdb_reviews'])
def test_tiers_are_shown_what_tokens_cover(tmp_path, other):
  e = config.Experiment()
  e.data = config.Data(name='ag_news_subset', lengths=(24,))
  e.tiers = config.Tiers(public=other, public_examples=6)
  write = {'bert': tiny_folders.write_bert, 'llama': tiny_folders.write_llama}
  found: dict[str, Any] = {
    name: pretrained.load_pretrained(make(tmp_path), '', 0)
    for name, make in write.items()
  }
  both = [tiers.Tier(name, w, {'layer': 2}) for name, w in found.items()]
  with tfds.testing.mock_data(num_examples=20):
    load = lambda w: corpus.load(e.data, w.tokenizer, w.config.pad)[0]
    first, second = map(load, found.values())
    train = first.seen_as([second])
    make = lambda *readers: shown.Public(
      e, both, dict(zip(found, readers, strict=True)), train, np.arange(3, 9)
    )
    seen = {name: make(0, 1)(name) for name in found}
    assert make(0, 0)('bert').covered is None
    if not other:
      with pytest.raises(ValueError, match=r"are not those .* tier 'bert'"):
        make(1, 0)('bert')
  for name, one in seen.items():
    assert one.covered is not None
    assert one.covered.shape == (*one.inputs.ids.shape, 2)
    covers_some = one.covered[..., 1] > one.covered[..., 0]
    assert np.all(one.inputs.ids[covers_some] != found[name].config.pad)
    assert covers_some.any(1).all()


def test_a_decoders_rows_are_made_of_the_right_tokens():
  """It reads texts backwards; the first block reads normalised words."""
  shape = sizes.DecoderConfig(2, 8, 2, 8, 20, 12, group=1, head_dim=4)
  sides: Any = {'attn': bottleneck.Bottleneck(3)}
  found = foundation.split(decoder.Decoder(shape, sides, rngs=nnx.Rngs(0)), 2)
  base = jax.tree.map(np.ones_like, found.base)
  word = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
  base['embed']['word'] = word
  found = dataclasses.replace(found, base=base)
  texts = tiny.texts(3)
  weights = np.random.default_rng(1).random((3, 2, 8)).astype(np.float32)
  weights[1:, :, -2:] = 0  # Padding.
  got = reads.read(found, texts, weights).adapters['attn'][0]
  normal = word / np.sqrt(np.mean(word**2, -1, keepdims=True) + shape.eps)
  want = np.einsum('nmt,ntd->nmd', weights, normal[np.asarray(texts.ids)])
  np.testing.assert_allclose(got, want.reshape(6, 8), rtol=1e-4, atol=1e-5)
  spans = np.zeros((3, 8, 2), int)
  spans[..., 1] = np.arange(1, 9)
  both = {'a': found, 'b': found}
  other = texts._replace(ids=np.asarray(texts.ids)[:, ::-1])
  weigh = lambda b: reads.weigh(
    both, {'a': public.Shown(texts, spans), 'b': b}
  )['a']
  assert isinstance(weigh(public.Shown(other, spans)), np.ndarray)
  assert weigh(public.Shown(other)) == 'mean'
  assert weigh(public.Shown(texts)) == 'some'
