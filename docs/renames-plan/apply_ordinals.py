#!/usr/bin/env python3
"""apply_ordinals.py ROOT FILE.tsv: replaces the given occurrences of a word.
Columns: path, old, new, ordinals (from 0, of all whole-word occurrences of OLD in the file), total.
Run it before any whole-word rename of the same words. A file whose total differs is left alone and printed."""
import collections, os, re, sys
root, table = sys.argv[1:]
work = collections.defaultdict(list)
for line in open(table):
    path, old, new, pos, total = line.rstrip('\n').split('\t')
    work[path, old].append((new, {int(n) for n in pos.split(',') if n}, int(total)))
for (path, old), items in sorted(work.items()):
    file = os.path.join(root, path)
    text = open(file).read()
    word = re.compile(r'\b' + re.escape(old) + r'\b')
    if {t for _, _, t in items} != {len(word.findall(text))}:
        print('COUNT', path, old, len(word.findall(text)), items); continue
    names = {n: new for new, pos, _ in items for n in pos}
    n = -1
    def put(m):
        global n
        n += 1
        return names.get(n, m.group(0))
    open(file, 'w').write(word.sub(put, text))
