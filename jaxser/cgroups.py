"""What Linux allows this process and those it shares a group with: a container, a job of a cluster, a session of a user."""

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
"""Where the groups lie, and the names of those that this process is in."""


def files(name: str) -> Iterator[Path]:
    """The files of that name, such as `memory.max`, of the group that this process is in and of each around it, from the inside
    out; not all of them need be there.

    Version 2 of cgroups has one tree of groups, version 1 one for each controller, which is what the name begins with. In a
    container they may be named as the host sees them, of which only the outermost is there.
    """
    try:
        lines = OWN.read_text(errors="surrogateescape").splitlines()
    except OSError:  # another system
        return
    controller = name.partition(".")[0]
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        tree = ROOT / controller if controllers else ROOT
        own = tree / group.lstrip("/")
        yield from (folder / name for folder in (own, *own.parents) if folder.is_relative_to(tree))
