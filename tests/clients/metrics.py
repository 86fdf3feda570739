"""Reads a node's metrics with the client library of Prometheus. Reads {"text": the response of `/metrics`, "output":
the output of `node/metrics`} from standard input.

The library accepts texts that break the format's rules, so this program checks these rules itself.
"""

import json
import math
import sys

from prometheus_client.parser import text_string_to_metric_families


def series(sample):
    """A sample's name with its labels, without their order."""
    return sample.name, frozenset(sample.labels.items())


def read(text):
    """The value of each sample in a text, by the sample's series."""
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
    """Checks that each bucket contains the ones before it, and the last one all samples."""

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
