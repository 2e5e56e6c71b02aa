r"""Writes the models that a finished run ends with, for other programs.

  python -m launch.export --workdir=DIR --format=hf --out=FOLDER
  python -m launch.export --workdir=DIR --format=peft --out=FOLDER
  python -m launch.export --workdir=DIR --format=flax --out=FOLDER

`hf` writes the whole model for `transformers`, adapters merged; `peft` writes
an adapter for `peft.PeftModel.from_pretrained`; `flax` writes all that trained,
for `fedjax_tune.load_model`. If a method ends with several models (one for each
depth, tier or client), FOLDER gets a folder for each. The run's pretrained
weights are needed, but not its data. Each folder has a model card, README.md.
"""

import pathlib

from absl import flags

from fedjax_tune.deploy import exported, formats, models
from fedjax_tune.files import mirror
from fedjax_tune.report import tables
from fedjax_tune.report.progress import waiting

from . import start

_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of a finished run.', required=True
)
_FORMAT = flags.DEFINE_enum(
  'format', None, list(formats.FORMATS), 'What for.', required=True
)
_OUT = flags.DEFINE_string('out', None, 'Where to write it.', required=True)
_MODELS = flags.DEFINE_list(
  'models', [], 'Which, where the run ends with several; all by default.'
)


def main(argv: list[str]) -> None:
  """Loads the run, and writes its models."""
  start.reject_arguments(argv)
  workdir, out = start.folder(_WORKDIR), start.folder(_OUT)
  console = start.console()
  with mirror.opened('out', out, new=True) as place:
    with waiting(console, 'Reading the run and its weights'):
      ended = models.load(workdir)
    with waiting(console, 'Writing'):
      found = exported.write(ended, _FORMAT.value, place.folder, _MODELS.value)
      place.send()
  for written in found:
    name = f'{written.name}: ' if written.name else ''
    folder = place.name_of(written.folder)
    console.print(f'{name}{folder}', soft_wrap=True)
    console.print(
      f'  {_contents(written.folder)}; README.md says how to load it',
      soft_wrap=True,
    )
    for note in written.notes:
      console.print(f'  {note}', soft_wrap=True)


def _contents(folder: pathlib.Path) -> str:
  """Says how much a folder holds."""
  files = [path for path in folder.rglob('*') if path.is_file()]
  size = tables.human_bytes(sum(path.stat().st_size for path in files))
  return f'{tables.counted(len(files), "file")}, {size}'


if __name__ == '__main__':
  start.run(main)
