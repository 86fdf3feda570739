"""What Prometheus' own client library reads of a node's metrics. Reads {"text": what `/metrics` answered,
"output": what `node/metrics` answered} from standard input.

The library forgives much, so that what it was given is held against the format's rules here.
"""

import json
import math
import sys

from prometheus_client.parser import text_string_to_metric_families


def series(sample):
    """A sample's name with its labels, whatever their order."""
    return sample.name, frozenset(sample.labels.items())


def read(text):
    """Every sample of a text, by its series."""
    found, families = {}, set()
    for family in text_string_to_metric_families(text):
        # Each metric has one place with its help text and its type. The parser reports a metric without a type as
        # untyped.
        assert family.name not in families, f"{family.name} is there twice"
        families.add(family.name)
        assert family.type in ("counter", "gauge", "histogram"), family
        assert family.documentation and family.samples, family
        for sample in family.samples:
            assert series(sample) not in found, sample
            assert family.type == "gauge" or sample.value >= 0, sample
            # The library removes `_total` from the name of a counter, and adds it to a name without it.
            counted = sample.name == family.name + "_total"
            assert counted == (family.type == "counter"), sample
            found[series(sample)] = sample.value
        if family.type == "histogram":
            adds_up(family)
    return found


def adds_up(family):
    """Buckets hold what is in those before them, and the last holds everything."""

    def named(suffix):
        return [one for one in family.samples if one.name == family.name + suffix]

    buckets = [(float(one.labels["le"]), one.value) for one in named("_bucket")]
    assert buckets == sorted(buckets) and buckets[-1][0] == math.inf, family
    assert [value for _, value in buckets] == sorted(value for _, value in buckets), family
    [count], [_] = named("_count"), named("_sum")
    assert count.value == buckets[-1][1], family


given = json.load(sys.stdin)
served, called = read(given["text"]), read(given["output"]["text"])
assert served.keys() == called.keys(), served.keys() ^ called.keys()

# The values beside the text are equal to the text's values.
values = given["output"]["values"]
lines = "".join(f"{name} {value}\n" for name, value in values.items())
beside = {series(one): one.value for family in text_string_to_metric_families(lines) for one in family.samples}
assert beside == called, beside

[build] = [value for (name, _), value in served.items() if name == "alknet_build_info"]
assert build == 1
print("fine")
