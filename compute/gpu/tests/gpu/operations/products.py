"""Compares products with NumPy's: shapes, and every element within the tolerance."""

import json
import pathlib
import sys

import numpy

folder = pathlib.Path(sys.argv[1])


def matrix(name, view):
    data = numpy.fromfile(folder / name, "<f4")
    if 0 in view["shape"]:
        return numpy.empty(view["shape"], "<f4")
    strides = [stride * data.itemsize for stride in view["strides"]]
    return numpy.lib.stride_tricks.as_strided(data[view["offset"] :], view["shape"], strides)


cases = json.loads((folder / "cases.json").read_text())
for case in cases:
    a = matrix(case["name"] + ".a", case["a"])
    b = matrix(case["name"] + ".b", case["b"])
    ours = numpy.fromfile(folder / (case["name"] + ".c"), "<f4")
    theirs = a @ b
    ours = ours.reshape(theirs.shape)
    size = numpy.abs(a) @ numpy.abs(b)
    # Both sides round; see `close` in products.rs.
    most = 4 * a.shape[1] * numpy.finfo("<f4").eps * size + numpy.finfo("<f4").tiny
    off = numpy.abs(ours - theirs)
    assert (off <= most).all(), f"{case}: off by {(off - most).max()} too much"
print(len(cases), "products")
