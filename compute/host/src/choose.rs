//! Chooses the variant of a kernel: by the class of the adapter, and by measurements on this machine.

use std::collections::HashMap;
use std::time::Duration;

use alknet_compute_wire::{GpuAdapter, GpuWorkerInfo, KernelVariant, MachineSpeed};
use serde::{Deserialize, Serialize};

/// Sizes that count as one class: powers of this many bits of operations.
const STEP_BITS: u32 = 3;

/// Weight of a new measurement: other programs share the machine, so one measurement may be wrong.
const NEW_SHARE: f64 = 0.3;

/// Largest class of sizes, because operations are counted in 64 bits.
const CLASS_MAX: u32 = u64::BITS / STEP_BITS;

/// Slowest and fastest rate that counts as measured, in operations a millisecond: the emulation of a small processor,
/// and a hundred times the fastest GPU.
const OPERATIONS_MS_MIN: f64 = 1e-3;
const OPERATIONS_MS_MAX: f64 = 1e15;

/// Operations a millisecond of a thousand million operations a second.
const OPERATIONS_MS_OF_GIGA: f64 = 1e6;

/// Largest figure of a machine, in its own unit.
const FIGURE_MAX: f64 = OPERATIONS_MS_MAX;

/// One in this many choices of a kernel and size takes the variant that was measured to be slower. Otherwise that
/// variant would not be measured again, and a worker that once claimed it to be slow would decide for ever.
const TRIAL_EVERY: u32 = 256;

/// So many times the time of the chosen variant has to fit into the time of a request for such a trial: no slower
/// variant may make a request fail.
const TRIAL_SLOWER_MAX: f64 = 100.0;

/// Kernels that exist in both variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum KernelKind {
    Matmul,
    Sha256,
}

/// Why a variant was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum VariantReason {
    /// The caller named it.
    Asked,
    /// It is the usual one for adapters of this class.
    Class,
    /// Measurements on this machine were faster with it.
    Measured,
    /// It was measured to be slower, and is measured again.
    Trial,
}

/// The measured operations in a second, by kernel, size and variant.
#[derive(Debug, Default)]
pub(crate) struct TimingRecords {
    rates: HashMap<(KernelKind, u32, bool), f64>,
    /// How often a variant was chosen by measurements, by kernel and size.
    choices: HashMap<(KernelKind, u32), u32>,
}

/// One measurement in the form of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct TimingEntry {
    kernel: KernelKind,
    class: u32,
    variant: KernelVariant,
    operations_ms: f64,
}

impl TimingRecords {
    /// Records the time of a kernel for `operations` operations, without the time of compiling. Returns whether it is
    /// the first record for this size.
    pub(crate) fn record(
        &mut self,
        kernel: KernelKind,
        operations: f64,
        variant: KernelVariant,
        ms: f64,
    ) -> bool {
        // After compiling is subtracted, the rest may be zero or negative.
        if !(ms.is_finite() && ms > 0.0 && operations > 0.0) {
            return false;
        }
        let rate = operations / ms;
        if !is_rate(rate) {
            return false;
        }
        let key = (kernel, class(operations), variant == KernelVariant::Host);
        match self.rates.get_mut(&key) {
            // A moving average follows the load of the machine without jumping.
            Some(known) => *known += (rate - *known) * NEW_SHARE,
            None => return self.rates.insert(key, rate).is_none(),
        }
        false
    }

    /// All measurements.
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
        self.rates.iter().map(entry).collect()
    }

    /// The measurements of a file, without those that cannot be measurements.
    pub(crate) fn restored(entries: Vec<TimingEntry>) -> Self {
        let sound = |entry: &TimingEntry| is_rate(entry.operations_ms) && entry.class <= CLASS_MAX;
        let entries = entries.into_iter().filter(sound).map(|entry| {
            let host = entry.variant == KernelVariant::Host;
            ((entry.kernel, entry.class, host), entry.operations_ms)
        });
        Self {
            rates: entries.collect(),
            choices: HashMap::new(),
        }
    }

    fn rate(&self, kernel: KernelKind, operations: f64, variant: KernelVariant) -> Option<f64> {
        let key = (kernel, class(operations), variant == KernelVariant::Host);
        self.rates.get(&key).copied()
    }

    /// Whether a request takes the other variant than the `chosen` one, of which it has the time `most`. Counts the
    /// choice.
    pub(crate) fn is_trial(
        &mut self,
        kernel: KernelKind,
        operations: f64,
        chosen: KernelVariant,
        most: Duration,
    ) -> bool {
        let Some(rate) = self.rate(kernel, operations, chosen) else {
            return false;
        };
        let choices = self.choices.entry((kernel, class(operations))).or_default();
        *choices += 1;
        if *choices < TRIAL_EVERY {
            return false;
        }
        *choices = 0;
        let slower = Duration::try_from_secs_f64(operations / rate / 1e3 * TRIAL_SLOWER_MAX);
        slower.is_ok_and(|slower| slower <= most)
    }

    /// The better variant for `operations` operations.
    pub(crate) fn choose(
        &self,
        kernel: KernelKind,
        operations: f64,
        info: &GpuWorkerInfo,
        measured: Option<&MachineSpeed>,
    ) -> (KernelVariant, VariantReason) {
        // Without an adapter only the processor can compute.
        let Some(adapter) = &info.adapter else {
            return (KernelVariant::Host, VariantReason::Class);
        };
        let host = self.rate(kernel, operations, KernelVariant::Host);
        let wgsl = self.rate(kernel, operations, KernelVariant::Wgsl);
        // A comparison needs measurements of both variants for the same size.
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

/// The time of a kernel in milliseconds that a worker claims, as far as the node's own clock allows: a kernel took no
/// longer than its request.
pub(crate) fn claimed_ms(ms: f64, elapsed: Duration) -> f64 {
    match ms.is_finite() {
        true => ms.min(elapsed.as_secs_f64() * 1e3),
        // It is no measurement.
        false => ms,
    }
}

/// The other variant.
pub(crate) const fn other(variant: KernelVariant) -> KernelVariant {
    match variant {
        KernelVariant::Host => KernelVariant::Wgsl,
        KernelVariant::Wgsl => KernelVariant::Host,
    }
}

/// Whether a machine can have measured it. Workers are not believed: an infinite rate would be kept for ever.
fn is_rate(operations_ms: f64) -> bool {
    (OPERATIONS_MS_MIN..=OPERATIONS_MS_MAX).contains(&operations_ms)
}

/// Whether a machine can have these speeds. One without a device has zeros beside its processor's.
pub(crate) fn is_speed(measured: &MachineSpeed) -> bool {
    let host = is_rate(measured.matmul_host * OPERATIONS_MS_OF_GIGA);
    let others = [
        measured.matmul_wgsl * OPERATIONS_MS_OF_GIGA,
        measured.map_bytes_s,
        measured.dispatch_us,
        measured.cold_jit_ms,
    ];
    host && others
        .iter()
        .all(|figure| (0.0..=FIGURE_MAX).contains(figure))
}

fn faster(host: f64, wgsl: f64) -> KernelVariant {
    if host >= wgsl {
        KernelVariant::Host
    } else {
        KernelVariant::Wgsl
    }
}

/// A processor behind a GPU driver is faster through the kernels of the processor.
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
            // Such a rate is infinite, or no machine has it.
            (1e6, 1e-300),
            (1e10, 1e-9),
        ] {
            records.record(KernelKind::Sha256, operations, KernelVariant::Host, ms);
        }
        assert!(records.rates.is_empty());
    }

    /// A taken-over worker claims that the shader is slow, and then ends.
    #[test]
    fn a_worker_that_claims_slowness_decides_for_a_while_only() {
        let (operations, most) = (1e6, Duration::from_secs(10));
        let mut records = TimingRecords::default();
        let took = |records: &mut TimingRecords, variant, ms| {
            records.record(KernelKind::Matmul, operations, variant, ms);
        };
        took(&mut records, KernelVariant::Host, 9.0);
        took(&mut records, KernelVariant::Wgsl, 3.0);
        let choose = |records: &TimingRecords| {
            let chosen = records.choose(KernelKind::Matmul, operations, &info("cpu"), None);
            chosen.0
        };
        assert_eq!(choose(&records), KernelVariant::Wgsl);
        for _ in 0..20 {
            took(&mut records, KernelVariant::Wgsl, 1e9);
        }
        assert_eq!(choose(&records), KernelVariant::Host);
        let mut requests = 0;
        while choose(&records) == KernelVariant::Host {
            let is_trial =
                records.is_trial(KernelKind::Matmul, operations, KernelVariant::Host, most);
            // What each of them really takes.
            match is_trial {
                true => took(&mut records, KernelVariant::Wgsl, 3.0),
                false => took(&mut records, KernelVariant::Host, 9.0),
            }
            requests += 1;
            assert!(requests < 10 * TRIAL_EVERY, "the lie stays");
        }
        // Most requests do not pay for it.
        assert!(requests >= TRIAL_EVERY, "{requests}");
    }

    #[test]
    fn a_request_that_has_no_time_for_the_slower_variant_does_not_try_it() {
        let mut records = TimingRecords::default();
        records.record(KernelKind::Matmul, 1e9, KernelVariant::Host, 900.0);
        let host = KernelVariant::Host;
        let tried = |records: &mut TimingRecords, most| {
            let all =
                (0..TRIAL_EVERY).filter(|_| records.is_trial(KernelKind::Matmul, 1e9, host, most));
            all.count()
        };
        assert_eq!(tried(&mut records, Duration::from_secs(10)), 0);
        assert_eq!(tried(&mut records, Duration::from_secs(100)), 1);
    }

    #[test]
    fn a_kernel_takes_no_longer_than_its_request() {
        let elapsed = Duration::from_millis(20);
        assert_eq!(claimed_ms(1e9, elapsed), 20.0);
        assert_eq!(claimed_ms(3.0, elapsed), 3.0);
        assert!(claimed_ms(f64::NAN, elapsed).is_nan());
    }

    #[test]
    fn a_worker_that_claims_an_impossible_speed_changes_no_choice() {
        let mut records = TimingRecords::default();
        records.record(KernelKind::Matmul, 1e6, KernelVariant::Host, 9.0);
        records.record(KernelKind::Matmul, 1e6, KernelVariant::Wgsl, 3.0);
        let choose = |records: &TimingRecords| {
            let chosen = records.choose(KernelKind::Matmul, 1e6, &info("cpu"), None);
            chosen.0
        };
        assert_eq!(choose(&records), KernelVariant::Wgsl);
        for ms in [1e-300, 1e-12] {
            records.record(KernelKind::Matmul, 1e6, KernelVariant::Host, ms);
            assert_eq!(choose(&records), KernelVariant::Wgsl, "{ms}");
        }
        let honest = MachineSpeed {
            matmul_host: 90.0,
            matmul_wgsl: 5000.0,
            map_bytes_s: 1e11,
            dispatch_us: 20.0,
            cold_jit_ms: 300.0,
        };
        assert!(is_speed(&honest));
        let no_device = MachineSpeed {
            matmul_host: 90.0,
            ..MachineSpeed::default()
        };
        assert!(is_speed(&no_device));
        for figure in [f64::INFINITY, f64::NAN, -1.0, 1e-300, 1e300] {
            let matmul_host = figure;
            let claimed = MachineSpeed {
                matmul_host,
                ..honest
            };
            assert!(!is_speed(&claimed), "{figure}");
        }
        let matmul_wgsl = f64::INFINITY;
        let claimed = MachineSpeed {
            matmul_wgsl,
            ..honest
        };
        assert!(!is_speed(&claimed));
    }
}
