from fedjax_tune.data import splits


def test_split_is_stable_and_about_80_to_20():
  found = [splits.split_of(f'object-{i}') for i in range(2000)]
  assert 0.17 < found.count('test') / len(found) < 0.23
  # Must never change: results are compared across versions.
  assert [splits.split_of(n) for n in ('rocket', 'cat-face')] == [
    'train',
    'train',
  ]
