//! What a boot costs: ours to the first answered call, and a Debian kernel to an empty init.
//!
//! Costs are processor seconds of QEMU and instructions of the guest, which do not depend on how
//! loaded the host is; wall time stands beside them. Counting instructions slows the guest and
//! changes its clock, so those are runs of their own.

mod machines;
mod memory;

use std::collections::BTreeMap;

use self::machines::BootBench;
use super::rows::{BenchRow, Goal, median};
use alknet_tasks::context::XtaskContext;
use alknet_tasks::failure::Result;

/// Name of this benchmark in rows.
const BENCH: &str = "boot";

/// What the peer is called in rows.
const DEBIAN: &str = "Debian cloud kernel, empty init";

/// Command line of Debian's kernel: what it needs to be heard, and nothing to hurry it.
const DEBIAN_CMDLINE: &str = "console=ttyS0 quiet panic=10";

/// What is beside our own image in rows.
const WITHOUT: &str = "the same without a driver";

/// What is beside a node whose files no client has used.
const WITHOUT_FILES: &str = "the same with [fs] enabled = false";

const MEGA: f64 = 1e6;

/// Promised figures; docs/SPECIFICATION.md quotes them.
mod goals {
    pub(super) const Q35_OF_DEBIAN: f64 = 0.5;
    pub(super) const MICROVM_CPU_S: f64 = 1.0;
    pub(super) const MICROVM_MINSN: f64 = 250.0;
    pub(super) const INIT_MINSN: f64 = 125.0;
    pub(super) const HOST_MS: f64 = 150.0;
    pub(super) const KERNEL_MB: f64 = 10.0;
    pub(super) const IMAGE_MB: f64 = 48.0;
    pub(super) const IDLE_MB: f64 = 40.0;
    /// Of a boot without files.
    pub(super) const UNUSED_FILES: f64 = 1.02;
}

/// One thing that is booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum BootCase {
    /// Our image on q35, to the answered call.
    Q35,
    /// Our image on microvm, to the answered call.
    Microvm,
    /// Like `Q35`, without a driver for GPUs.
    Q35Bare,
    /// Like `Microvm`, without a driver for GPUs.
    MicrovmBare,
    /// Like `Microvm`, with a configuration that has no files.
    MicrovmWithoutFiles,
    /// Our kernel on q35, to the empty init.
    Q35Empty,
    /// Our kernel on microvm, to the empty init.
    MicrovmEmpty,
    /// Debian's kernel on q35, to the empty init.
    Debian,
}

const CASES: [BootCase; 8] = [
    BootCase::Q35,
    BootCase::Q35Bare,
    BootCase::Debian,
    BootCase::Microvm,
    BootCase::MicrovmWithoutFiles,
    BootCase::MicrovmBare,
    BootCase::Q35Empty,
    BootCase::MicrovmEmpty,
];

/// What one boot cost.
#[derive(Clone, Copy, Debug)]
struct BootCost {
    cpu_s: f64,
    wall_s: f64,
    minsn: Option<f64>,
}

/// Measures every case in turn, as often as asked.
pub(super) fn run(cx: &mut XtaskContext, rounds: usize) -> Result<Vec<BenchRow>> {
    let bench = BootBench::prepare(cx)?;
    let mut costs: BTreeMap<BootCase, Vec<BootCost>> = BTreeMap::new();
    let mut host_ms = Vec::new();
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds} ...");
        for counted in [false, true] {
            for case in CASES {
                costs
                    .entry(case)
                    .or_default()
                    .push(bench.boot_at_last(case, counted)?);
            }
        }
        host_ms.push(bench.host_ms()?);
    }
    let mut rows = cost_rows(&costs);
    rows.push(
        BenchRow::lower(
            BENCH,
            "host: node start to answered call",
            "ms wall",
            median(host_ms),
        )
        .goal(Goal::Ours(goals::HOST_MS)),
    );
    rows.extend(bench.size_rows()?);
    rows.extend(bench.memory_rows()?);
    Ok(rows)
}

fn cost_rows(costs: &BTreeMap<BootCase, Vec<BootCost>>) -> Vec<BenchRow> {
    let plain = |case: BootCase, what: fn(&BootCost) -> f64| {
        let all = costs.get(&case).into_iter().flatten();
        // A guest whose instructions are counted is slower: its seconds are left out.
        median(all.filter(|cost| cost.minsn.is_none()).map(what).collect())
    };
    let counted = |case: BootCase| {
        let all = costs.get(&case).into_iter().flatten();
        median(all.filter_map(|cost| cost.minsn).collect())
    };
    let cpu = |case| plain(case, |cost| cost.cpu_s);
    let wall = |case| plain(case, |cost| cost.wall_s);
    let row = |case: &str, unit, ours| BenchRow::lower(BENCH, case, unit, ours);
    let beside = |what: &str, ours, name: &'static str, peer| {
        [
            row(what, "CPU s", cpu(ours)).beside(name, cpu(peer)),
            row(what, "M instructions", counted(ours)).beside(name, counted(peer)),
        ]
    };
    let answered = "q35: power-on to answered call";
    let goal = Goal::Ratio(goals::Q35_OF_DEBIAN);
    let mut rows: Vec<BenchRow> = beside(answered, BootCase::Q35, DEBIAN, BootCase::Debian)
        .map(|row| row.goal(goal))
        .into();
    rows.push(row(answered, "s wall", wall(BootCase::Q35)).beside(DEBIAN, wall(BootCase::Debian)));
    for (what, ours, name, peer) in [
        (
            "q35: what the driver costs",
            BootCase::Q35,
            WITHOUT,
            BootCase::Q35Bare,
        ),
        (
            "microvm: what the driver costs",
            BootCase::Microvm,
            WITHOUT,
            BootCase::MicrovmBare,
        ),
        (
            "q35: power-on to empty init",
            BootCase::Q35Empty,
            DEBIAN,
            BootCase::Debian,
        ),
    ] {
        rows.extend(beside(what, ours, name, peer));
    }
    let files = "microvm: what files cost before their first use";
    let [seconds, instructions] = beside(
        files,
        BootCase::Microvm,
        WITHOUT_FILES,
        BootCase::MicrovmWithoutFiles,
    );
    // Two boots of the same image differ by more than this in seconds, and by little in instructions.
    let goal = Goal::Ratio(goals::UNUSED_FILES);
    rows.extend([seconds, instructions.goal(goal)]);
    let (answered, empty) = (
        "microvm: power-on to answered call",
        "microvm: power-on to empty init",
    );
    rows.extend([
        row(answered, "CPU s", cpu(BootCase::Microvm)).goal(Goal::Ours(goals::MICROVM_CPU_S)),
        row(answered, "M instructions", counted(BootCase::Microvm))
            .goal(Goal::Ours(goals::MICROVM_MINSN)),
        row(answered, "s wall", wall(BootCase::Microvm)),
        row(empty, "CPU s", cpu(BootCase::MicrovmEmpty)),
        row(empty, "M instructions", counted(BootCase::MicrovmEmpty))
            .goal(Goal::Ours(goals::INIT_MINSN)),
    ]);
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counted_and_plain_runs_are_kept_apart() {
        let cost = |cpu_s, minsn| BootCost {
            cpu_s,
            wall_s: 1.0,
            minsn,
        };
        let all: Vec<BootCost> = vec![cost(1.0, None), cost(9.0, Some(100.0))];
        let rows = cost_rows(&CASES.map(|case| (case, all.clone())).into());
        let of = |unit: &str| rows.iter().find(|row| row.unit == unit).expect("measured");
        assert_eq!(of("CPU s").ours, 1.0);
        assert_eq!(of("M instructions").ours, 100.0);
        assert_eq!(of("CPU s").ratio, Some(1.0));
    }
}
