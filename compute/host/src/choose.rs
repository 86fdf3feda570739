//! Which way a kernel of ours is computed: by the class of the adapter, and by what was measured here.

use std::collections::HashMap;

use alknet_compute_wire::{GpuAdapter, GpuWorkerInfo, KernelVariant, MachineSpeed};
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
pub(crate) enum KernelKind {
    Matmul,
    Sha256,
}

/// Why it is computed so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum VariantReason {
    /// The caller asked for it.
    Asked,
    /// It is usual for adapters of this class.
    Class,
    /// It was the faster one here.
    Measured,
}

/// What was measured, by kernel, size and variant: operations in a second.
#[derive(Debug, Default)]
pub(crate) struct TimingRecords(HashMap<(KernelKind, u32, bool), f64>);

/// One of them, as a file has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct TimingEntry {
    kernel: KernelKind,
    class: u32,
    variant: KernelVariant,
    operations_ms: f64,
}

impl TimingRecords {
    /// Writes down how long a kernel took for so many operations, without what compiling took. Whether
    /// nothing was known of it.
    pub(crate) fn record(
        &mut self,
        kernel: KernelKind,
        operations: f64,
        variant: KernelVariant,
        ms: f64,
    ) -> bool {
        // Once compiling is taken off, nothing may be left, or less than that.
        if !(ms.is_finite() && ms > 0.0 && operations > 0.0) {
            return false;
        }
        let rate = operations / ms;
        let key = (kernel, class(operations), variant == KernelVariant::Host);
        match self.0.get_mut(&key) {
            Some(known) => *known += (rate - *known) * NEW_SHARE,
            None => return self.0.insert(key, rate).is_none(),
        }
        false
    }

    /// All of them.
    pub(crate) fn entries(&self) -> Vec<TimingEntry> {
        let entry = |((kernel, class, host), rate): (&(KernelKind, u32, bool), &f64)| TimingEntry {
            kernel: *kernel,
            class: *class,
            variant: if *host {
                KernelVariant::Host
            } else {
                KernelVariant::Wgsl
            },
            operations_ms: *rate,
        };
        self.0.iter().map(entry).collect()
    }

    /// What a file had; what no measurement can be is left out.
    pub(crate) fn restored(entries: Vec<TimingEntry>) -> Self {
        let sound = |entry: &TimingEntry| {
            entry.operations_ms.is_finite() && entry.operations_ms > 0.0 && entry.class <= CLASS_MAX
        };
        let entries = entries.into_iter().filter(sound).map(|entry| {
            let host = entry.variant == KernelVariant::Host;
            ((entry.kernel, entry.class, host), entry.operations_ms)
        });
        Self(entries.collect())
    }

    fn rate(&self, kernel: KernelKind, operations: f64, variant: KernelVariant) -> Option<f64> {
        let key = (kernel, class(operations), variant == KernelVariant::Host);
        self.0.get(&key).copied()
    }

    /// The better variant for so many operations.
    pub(crate) fn choose(
        &self,
        kernel: KernelKind,
        operations: f64,
        info: &GpuWorkerInfo,
        measured: Option<&MachineSpeed>,
    ) -> (KernelVariant, VariantReason) {
        let Some(adapter) = &info.adapter else {
            return (KernelVariant::Host, VariantReason::Class);
        };
        let host = self.rate(kernel, operations, KernelVariant::Host);
        let wgsl = self.rate(kernel, operations, KernelVariant::Wgsl);
        if let (Some(host), Some(wgsl)) = (host, wgsl) {
            return (faster(host, wgsl), VariantReason::Measured);
        }
        match (kernel, measured) {
            (KernelKind::Matmul, Some(measured)) => (
                faster(measured.matmul_host, measured.matmul_wgsl),
                VariantReason::Measured,
            ),
            _ => (usual(adapter), VariantReason::Class),
        }
    }
}

fn faster(host: f64, wgsl: f64) -> KernelVariant {
    if host >= wgsl {
        KernelVariant::Host
    } else {
        KernelVariant::Wgsl
    }
}

/// A processor that stands in for a GPU is better used as what it is.
fn usual(adapter: &GpuAdapter) -> KernelVariant {
    if adapter.class == "cpu" {
        KernelVariant::Host
    } else {
        KernelVariant::Wgsl
    }
}

fn class(operations: f64) -> u32 {
    (operations.max(1.0) as u64).ilog2() / STEP_BITS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(class: &str) -> GpuWorkerInfo {
        GpuWorkerInfo {
            adapter: Some(GpuAdapter {
                class: class.to_owned(),
                ..GpuAdapter::default()
            }),
            ..GpuWorkerInfo::default()
        }
    }

    #[test]
    fn the_class_decides_until_something_is_measured() {
        let mut records = TimingRecords::default();
        let choose = |records: &TimingRecords, class, measured| {
            records.choose(KernelKind::Matmul, 1e6, &info(class), measured)
        };
        assert_eq!(
            choose(&records, "cpu", None),
            (KernelVariant::Host, VariantReason::Class)
        );
        assert_eq!(
            choose(&records, "discrete", None),
            (KernelVariant::Wgsl, VariantReason::Class)
        );
        let none = records.choose(KernelKind::Matmul, 1e6, &GpuWorkerInfo::default(), None);
        assert_eq!(none, (KernelVariant::Host, VariantReason::Class));

        let measured = MachineSpeed {
            matmul_wgsl: 5.0,
            matmul_host: 90.0,
            ..MachineSpeed::default()
        };
        let chosen = choose(&records, "integrated", Some(&measured));
        assert_eq!(chosen, (KernelVariant::Host, VariantReason::Measured));

        records.record(KernelKind::Matmul, 1e6, KernelVariant::Host, 9.0);
        assert_eq!(choose(&records, "discrete", None).1, VariantReason::Class);
        records.record(KernelKind::Matmul, 1e6, KernelVariant::Wgsl, 3.0);
        let chosen = choose(&records, "cpu", Some(&measured));
        assert_eq!(chosen, (KernelVariant::Wgsl, VariantReason::Measured));
        // Other sizes are another matter.
        let chosen = records.choose(KernelKind::Matmul, 1e9, &info("cpu"), None);
        assert_eq!(chosen, (KernelVariant::Host, VariantReason::Class));
    }

    #[test]
    fn nonsense_is_not_written_down() {
        let mut records = TimingRecords::default();
        for (operations, ms) in [
            (0.0, 1.0),
            (1.0, 0.0),
            (1.0, f64::NAN),
            (1.0, f64::INFINITY),
        ] {
            records.record(KernelKind::Sha256, operations, KernelVariant::Host, ms);
        }
        assert!(records.0.is_empty());
    }
}
