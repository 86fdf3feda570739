"""Multiplies square matrices with NumPy; prints GFLOP/s, of which the fastest round counts."""

import sys
import time

import numpy

side, rounds = int(sys.argv[1]), int(sys.argv[2])
count = numpy.arange(side * side)
a = ((count * 7 + 3) % 13 * 0.125 - 0.5).astype("<f4").reshape(side, side)
b = ((count * 5 + 3) % 11 * 0.25 - 1.0).astype("<f4").reshape(side, side)
c = numpy.empty_like(a)
numpy.matmul(a, b, out=c)
best = float("inf")
for _ in range(rounds):
    begun = time.perf_counter()
    numpy.matmul(a, b, out=c)
    best = min(best, time.perf_counter() - begun)
print(2 * side**3 / best / 1e9)
