"""Patch: the difference of two models as a small file that leads from one to the other, to the bit, and back.

from weightkit import patch

p = patch.make(a, b)            # a Patch; p.save("p.wkpatch")
p = patch.open("p.wkpatch")
b = a.apply(p)                  # a new model; a is not touched
a = b.apply(p.inverse)
patch.apply(p, a, "out/")       # written to the disk
patch.compose(p, q)             # p, then q
patch.conflicts(p, q)           # what both change
"""

from __future__ import annotations

from weightkit.patch.algebra import Conflict, compose, conflicts
from weightkit.patch.apply import apply_to as apply
from weightkit.patch.container import Patch
from weightkit.patch.container import open_patch as open
from weightkit.patch.make import make

__all__ = ["Conflict", "Patch", "apply", "compose", "conflicts", "make", "open"]
