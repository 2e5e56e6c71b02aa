import numpy as np
import pytest
import tiny_text
import transformers

from fedjax_tune.data import spans, tokens

_CONTEXT = (
  'The book was written by Ann Lee. It was the 2nd book, "Caf\u00e9" being the'
  ' 1st; who wrote the 3rd was never found out by the readers of the book.'
)
_QUESTION = 'Who wrote the book?'
_WRITERS = {
  'bert': (tiny_text.write_bert, tiny_text.BERT_PAD),
  'roberta': (tiny_text.write_roberta, tiny_text.ROBERTA_PAD),
}


@pytest.fixture(params=_WRITERS)
def tokenizer_and_pad(request, tmp_path):
  write, pad = _WRITERS[request.param]
  return tokens.load(write(tmp_path)), pad


def _encode(tokenizer_and_pad, questions, contexts, answers, max_length):
  tokenizer, pad = tokenizer_and_pad
  return spans.encode(tokenizer, questions, contexts, answers, max_length, pad)


def _perfect(labels):
  """What `Task.predict` gives a model that knows the labels."""
  has = labels[:, 0] > 0
  return {
    'start': labels[:, 0],
    'end': labels[:, 1],
    'score': np.where(has, 1.0, -1.0),
    'null': np.where(has, -1.0, 1.0),
  }


def test_windows_equal_transformers(tmp_path):
  folder = tiny_text.write_bert(tmp_path)
  contexts = [_CONTEXT, 'Ann Lee', _CONTEXT.upper()]
  encoded, _, questions = _encode(
    (tokens.load(folder), 0), [_QUESTION] * 3, contexts, [[]] * 3, 48
  )
  wanted = transformers.AutoTokenizer.from_pretrained(folder)(
    [_QUESTION] * 3,
    contexts,
    truncation='only_second',
    max_length=48,
    stride=16,
    padding='max_length',
    return_overflowing_tokens=True,
    return_offsets_mapping=True,
    return_token_type_ids=True,
    return_tensors='np',
  )
  assert len(encoded.ids) > 3
  np.testing.assert_array_equal(encoded.ids, wanted['input_ids'])
  np.testing.assert_array_equal(encoded.types, wanted['token_type_ids'])
  np.testing.assert_array_equal(
    questions.question, wanted['overflow_to_sample_mapping']
  )
  context = questions.offsets[..., 1] > 0
  np.testing.assert_array_equal(
    questions.offsets[context], wanted['offset_mapping'][context]
  )


@pytest.mark.parametrize('max_length', [32, 64, 400])
def test_every_word_is_found_again(tokenizer_and_pad, max_length):
  begins = [
    i for i, c in enumerate(_CONTEXT) if not i or _CONTEXT[i - 1] == ' '
  ]
  answers = [[(i, _CONTEXT[i:].split(' ')[0])] for i in begins]
  count = len(answers)
  _, labels, questions = _encode(
    tokenizer_and_pad,
    [_QUESTION] * count,
    [_CONTEXT] * count,
    answers,
    max_length,
  )
  found = questions.answers(_perfect(labels))
  assert found == [answer[0][1] for answer in answers]
  assert not questions.unanswerable


def test_label_is_the_first_answer_and_the_context(tmp_path):
  tokenizer = tokens.load(tiny_text.write_bert(tmp_path))
  context = 'the book by ann lee'
  encoded, labels, questions = spans.encode(
    tokenizer,
    ['who', 'who'],
    [context, context],
    [[(12, 'ann lee'), (12, 'ann')], []],
    24,
    0,
  )
  # [CLS] who [SEP] the book by ann lee [SEP]
  np.testing.assert_array_equal(labels, [[6, 7, 3, 7], [0, 0, 3, 7]])
  np.testing.assert_array_equal(encoded.lengths, [9, 9])
  np.testing.assert_array_equal(questions.offsets[0, 6:8], [[12, 15], [16, 19]])
  assert not questions.offsets[:, [0, 1, 2, 8, 9]].any()
  assert questions.references == [('ann lee', 'ann'), ('',)]
  assert questions.unanswerable
  assert questions.answers(_perfect(labels)) == ['ann lee', '']


def test_windows_without_the_answer_point_at_the_first_token(
  tokenizer_and_pad,
):
  answer = (_CONTEXT.index('readers'), 'readers')
  _, labels, questions = _encode(
    tokenizer_and_pad, [_QUESTION], [_CONTEXT], [[answer]], 32
  )
  for row, label in enumerate(labels):
    place = questions.offsets[row, label[2] : label[3] + 1]
    holds = place[0, 0] <= answer[0] and place[-1, 1] >= answer[0] + 7
    assert (label[:2] > 0).all() == holds
    if not holds:
      assert not label[:2].any()


def test_long_question_leaves_room(tokenizer_and_pad):
  encoded, labels, _ = _encode(
    tokenizer_and_pad, [_QUESTION * 50], [_CONTEXT], [[(0, 'The')]], 48
  )
  assert (encoded.lengths <= 48).all()
  assert (labels[:, 2] <= 16 + 3).all()  # 48 // 3, and special tokens.
  assert (labels[:-1, 3] - labels[:-1, 2] >= 16).all()


def test_contexts_and_answers_that_make_no_sense(tokenizer_and_pad):
  answers = [[(0, 'a')], [(500, 'x')], [(-3, 'x')], [(0, '')], [(2, 'x' * 99)]]
  contexts = ['', *['some book'] * 4]
  _, labels, _ = _encode(
    tokenizer_and_pad, [_QUESTION] * 5, contexts, answers, 40
  )
  assert not labels[:, :2].any()
  assert labels[0, 2] > labels[0, 3]


def test_too_few_tokens_are_refused(tokenizer_and_pad):
  with pytest.raises(ValueError, match=r'max_length=23: must be at least 24'):
    _encode(tokenizer_and_pad, ['a'], ['b'], [[]], 23)
