"""A sweep's flags, applied without an experiment file, and a run of one."""

import ast
from collections.abc import Sequence
import functools

from fedjax_tune import config

# The part of a stand-in for launch.train that writes what a run leaves.
RESULTS = """
import json

def leave(out, rows, **summary):
  spent = {'cost/uplink_bytes': 5, 'cost/downlink_bytes': 7}
  spent['cost/train_flops'] = 3
  lines = [json.dumps({**row, **spent}) + '\\n' for row in rows]
  (out / 'metrics.jsonl').write_text(''.join(lines))
  (out / 'costs.json').write_text(json.dumps([{
    'name': '12 layers', 'clients': 5, 'layers': 12, 'params_held': 10**7,
    'params_trainable': 10**5, 'trainable_percent': 1.0, 'uplink_bytes': 2**20,
    'downlink_bytes': 2**20, 'flops_per_step': 10**9,
    'peak_memory_bytes': 2**27}]))
  (out / 'summary.json').write_text(json.dumps({
    'accuracy_by_domain': {'noto': 0.5}, 'other_accuracies': {},
    'client_steps_per_s': 1.0, 'compiles': 1, 'uplink_bytes': 1,
    'downlink_bytes': 1, 'train_flops': 1, **summary}))
"""
# Stands in for launch.train: writes what a run leaves, or fails as told.
FAKE = f"""{RESULTS}
import os, pathlib, sys
out, label, seed = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
print('cores', len(os.sched_getaffinity(0)), sys.argv[5:], flush=True)
(out / 'config.json').write_text(sys.argv[4])
rounds = json.loads(sys.argv[4])['rounds']
if label == 'broken':
  raise ValueError('out of luck')
accuracy = 0.5 + 0.1 * seed
others = {{'small': 0.3 + 0.1 * seed}} if label == 'a' else {{}}
if label == 'alone':
  others = {{'worst_client': 0.2}}
  (out / 'clients.csv').write_text(
    'client,class,domain,flops_per_step,server,own,tuned\\n0,all,,9,0.1,0.2,\\n')
leave(
  out, [{{'round': r, 'eval/accuracy': accuracy}} for r in range(rounds)],
  method=label, seed=seed, rounds=rounds, accuracy=accuracy,
  other_accuracies=others)
"""


def resolve(line: Sequence[str]) -> config.Experiment:
  """Applies flags as `launch.train` would, to the default experiment."""
  experiment = config.Experiment(rounds=1)
  for item in line[1:]:
    path, _, value = item.removeprefix('--config.').partition('=')
    *sections, name = path.split('.')
    section = functools.reduce(getattr, sections, experiment)
    kind = type(getattr(section, name))
    setattr(
      section, name, ast.literal_eval(value) if kind is tuple else kind(value)
    )
  return experiment
