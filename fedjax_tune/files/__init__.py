"""Files of the user's: how they are named, read and written.

A path may be an address that `etils.epath` knows, such as gs://bucket/folder. An
object store has neither renames nor locks, nothing is appended to an object,
and no library maps one into memory. So nothing is read or written in place there:

- what is read is copied to this machine first, once (`paths.here`);
- what is written lies in a folder of this machine, whose files go there as whole
  objects (`mirror.opened`);
- what processes share and use in place, prepared data and compiled programs, stays here
  (`paths.local`).

On a disk, a file is written beside its place and renamed over it (`whole.file`).
What can be made again stays below a size (`bounded.trim`).
"""
