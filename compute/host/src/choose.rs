//! Which way a kernel of ours is computed: by the class of the adapter, and by what was measured here.

use std::collections::HashMap;

use alknet_compute_wire::{Adapter, Info, Measured, Variant};
use serde::{Deserialize, Serialize};

/// Sizes that count as one: powers of this many operations.
const STEP_BITS: u32 = 3;

/// How much of a new measurement is believed: machines are shared.
const NEW_SHARE: f64 = 0.3;

/// Largest class of sizes: what is counted has 64 bits.
const CLASS_MAX: u32 = u64::BITS / STEP_BITS;

/// Kernels that exist in both ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kernel {
    Matmul,
    Sha256,
}

/// Why it is computed so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Why {
    /// The caller asked for it.
    Asked,
    /// It is usual for adapters of this class.
    Class,
    /// It was the faster one here.
    Measured,
}

/// What was measured, by kernel, size and variant: operations in a second.
#[derive(Debug, Default)]
pub(crate) struct Records(HashMap<(Kernel, u32, bool), f64>);

/// One of them, as a file has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    kernel: Kernel,
    class: u32,
    variant: Variant,
    operations_ms: f64,
}

impl Records {
    /// Writes down how long a kernel took for so many operations, without what compiling took. Whether
    /// nothing was known of it.
    pub(crate) fn record(
        &mut self,
        kernel: Kernel,
        operations: f64,
        variant: Variant,
        ms: f64,
    ) -> bool {
        if !(ms.is_finite() && ms > 0.0 && operations > 0.0) {
            return false;
        }
        let rate = operations / ms;
        let key = (kernel, class(operations), variant == Variant::Host);
        match self.0.get_mut(&key) {
            Some(known) => *known += (rate - *known) * NEW_SHARE,
            None => return self.0.insert(key, rate).is_none(),
        }
        false
    }

    /// All of them.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        let entry = |((kernel, class, host), rate): (&(Kernel, u32, bool), &f64)| Entry {
            kernel: *kernel,
            class: *class,
            variant: if *host { Variant::Host } else { Variant::Wgsl },
            operations_ms: *rate,
        };
        self.0.iter().map(entry).collect()
    }

    /// What a file had; what no measurement can be is left out.
    pub(crate) fn restored(entries: Vec<Entry>) -> Self {
        let sound = |entry: &Entry| {
            entry.operations_ms.is_finite() && entry.operations_ms > 0.0 && entry.class <= CLASS_MAX
        };
        let entries = entries.into_iter().filter(sound).map(|entry| {
            let host = entry.variant == Variant::Host;
            ((entry.kernel, entry.class, host), entry.operations_ms)
        });
        Self(entries.collect())
    }

    fn rate(&self, kernel: Kernel, operations: f64, variant: Variant) -> Option<f64> {
        let key = (kernel, class(operations), variant == Variant::Host);
        self.0.get(&key).copied()
    }

    /// The better variant for so many operations.
    pub(crate) fn choose(
        &self,
        kernel: Kernel,
        operations: f64,
        info: &Info,
        measured: Option<&Measured>,
    ) -> (Variant, Why) {
        let Some(adapter) = &info.adapter else {
            return (Variant::Host, Why::Class);
        };
        let host = self.rate(kernel, operations, Variant::Host);
        let wgsl = self.rate(kernel, operations, Variant::Wgsl);
        if let (Some(host), Some(wgsl)) = (host, wgsl) {
            return (faster(host, wgsl), Why::Measured);
        }
        match (kernel, measured) {
            (Kernel::Matmul, Some(measured)) => (
                faster(measured.matmul_host, measured.matmul_wgsl),
                Why::Measured,
            ),
            _ => (usual(adapter), Why::Class),
        }
    }
}

fn faster(host: f64, wgsl: f64) -> Variant {
    if host >= wgsl {
        Variant::Host
    } else {
        Variant::Wgsl
    }
}

/// A processor that stands in for a GPU is better used as what it is.
fn usual(adapter: &Adapter) -> Variant {
    if adapter.class == "cpu" {
        Variant::Host
    } else {
        Variant::Wgsl
    }
}

fn class(operations: f64) -> u32 {
    (operations.max(1.0) as u64).ilog2() / STEP_BITS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(class: &str) -> Info {
        Info {
            adapter: Some(Adapter {
                class: class.to_owned(),
                ..Adapter::default()
            }),
            ..Info::default()
        }
    }

    #[test]
    fn the_class_decides_until_something_is_measured() {
        let mut records = Records::default();
        let choose = |records: &Records, class, measured| {
            records.choose(Kernel::Matmul, 1e6, &info(class), measured)
        };
        assert_eq!(choose(&records, "cpu", None), (Variant::Host, Why::Class));
        assert_eq!(
            choose(&records, "discrete", None),
            (Variant::Wgsl, Why::Class)
        );
        let none = records.choose(Kernel::Matmul, 1e6, &Info::default(), None);
        assert_eq!(none, (Variant::Host, Why::Class));

        let measured = Measured {
            matmul_wgsl: 5.0,
            matmul_host: 90.0,
            ..Measured::default()
        };
        let chosen = choose(&records, "integrated", Some(&measured));
        assert_eq!(chosen, (Variant::Host, Why::Measured));

        records.record(Kernel::Matmul, 1e6, Variant::Host, 9.0);
        assert_eq!(choose(&records, "discrete", None).1, Why::Class);
        records.record(Kernel::Matmul, 1e6, Variant::Wgsl, 3.0);
        let chosen = choose(&records, "cpu", Some(&measured));
        assert_eq!(chosen, (Variant::Wgsl, Why::Measured));
        // Other sizes are another matter.
        let chosen = records.choose(Kernel::Matmul, 1e9, &info("cpu"), None);
        assert_eq!(chosen, (Variant::Host, Why::Class));
    }

    #[test]
    fn nonsense_is_not_written_down() {
        let mut records = Records::default();
        for (operations, ms) in [
            (0.0, 1.0),
            (1.0, 0.0),
            (1.0, f64::NAN),
            (1.0, f64::INFINITY),
        ] {
            records.record(Kernel::Sha256, operations, Variant::Host, ms);
        }
        assert!(records.0.is_empty());
    }
}
