"""The user's files: how they are named, read and written.

A path may be an address that `etils.epath` knows, such as gs://bucket/folder. An
object store has neither renames nor locks, nothing is appended to an object,
and no library maps one into memory. So nothing is read or written in place there:

- files to read are first copied to this machine, once (`paths.here`);
- files to write are in a folder on this machine, and are sent as whole objects
  (`mirror.opened`);
- files that processes share and use in place, prepared data and compiled
  programs, stay on this machine (`paths.local`).

On a disk, a file is written under another name and then renamed (`whole.file`).
Folders of files that can be made again stay below a size (`bounded.trim`).
"""
