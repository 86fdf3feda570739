//! What an update takes: bytes of a release that changes the binary alone, as it is sent, beside the whole program and
//! beside what other programs make of the same two programs; and on emulated machines memory and calls while the version
//! is staged, from the bundle with the delta and from the one with the whole program, and the time from `update/apply` to
//! an answered call. The program is that of an image, with the program for GPUs in it.
//!
//! Processor seconds of making a difference are this host's; those of machines are QEMU's. Instructions are those of the
//! guest, on a machine of their own.

mod calls;
mod machine;
mod other_deltas;
mod release;

use alknet_tasks::context::XtaskContext;
use alknet_tasks::failure::{Result, TaskError};

use self::calls::{CallSeries, quantile_ms};
use self::machine::{
    CountedCosts, MachineCost, StagingCalls, StagingMachine, StagingRound, UpdateRound,
};
use self::other_deltas::{PeerDelta, PeerDeltas};
use self::release::{ReleaseBytes, ReleasePair};
use super::rows::{BenchRow, Goal, median};

/// Name of this benchmark in rows.
const BENCH: &str = "update";

/// Most rounds, because each stages a version on two emulated machines and restarts one of them twice, which takes
/// minutes.
const ROUNDS_MAX: usize = 5;

/// What a restart is beside in rows.
const RESTART: &str = "restart: drain and boot";

const MEGA: f64 = 1e6;

/// Promised figures; docs/SPECIFICATION.md quotes them.
mod goals {
    pub(super) const BUNDLE_OF_WHOLE: f64 = 0.35;
    pub(super) const BUNDLE_OF_ZSTD: f64 = 1.1;
    pub(super) const STAGING_MIB: f64 = 24.0;
    pub(super) const STAGING_P99_OF_CALM: f64 = 1.5;
    pub(super) const APPLY_OF_RESTART: f64 = 1.2;
}

/// Measures the bytes once, the machine in each round, and its instructions once.
pub(super) fn run(cx: &mut XtaskContext, rounds: usize) -> Result<Vec<BenchRow>> {
    cx.install_peers()?;
    let scratch = tempfile::tempdir().map_err(TaskError::io("make a folder for the benchmark"))?;
    let release = ReleasePair::make(cx, scratch.path())?;
    let peers = PeerDeltas::make(cx, &release, scratch.path())?;
    let mut rows = byte_rows(release.bytes, peers);
    let machine = StagingMachine::prepare(cx, &release, scratch.path())?;
    let mut figures = Vec::new();
    let rounds = rounds.min(ROUNDS_MAX);
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds} ...");
        figures.push(machine.measure()?);
    }
    rows.extend(machine_rows(&figures));
    eprintln!("counting instructions ...");
    match machine.count() {
        Ok(costs) => rows.extend(counted_rows(&costs)),
        // No bound is about instructions, and the figures that have one took half an hour.
        Err(error) => eprintln!("not counted: {error}"),
    }
    Ok(rows)
}

fn byte_rows(release: ReleaseBytes, peers: PeerDeltas) -> Vec<BenchRow> {
    let mb = |bytes: u64| bytes as f64 / MEGA;
    let bundle = |case: &str| {
        let case = format!("bundle of a release: {case}");
        BenchRow::lower(BENCH, case, "MB", mb(release.delta_bundle))
    };
    let zstd = Goal::Ratio(goals::BUNDLE_OF_ZSTD);
    let mut rows = vec![
        bundle("whole program")
            .beside("bundle with the whole program", mb(release.whole_bundle))
            .goal(Goal::Ratio(goals::BUNDLE_OF_WHOLE)),
        BenchRow::lower(BENCH, "delta in the bundle", "MB", mb(release.delta)),
    ];
    // Our figure is the same in each of them.
    let beside = [
        (
            "zstd, unpacked programs",
            "zstd --patch-from",
            peers.zstd,
            Some(zstd),
        ),
        (
            "zstd, programs as sent",
            "zstd --patch-from",
            peers.zstd_packed,
            Some(zstd),
        ),
        ("xdelta3, unpacked programs", "xdelta3", peers.xdelta3, None),
        ("bsdiff, unpacked programs", "bsdiff", peers.bsdiff, None),
        (
            "casync, unpacked programs",
            "casync, new chunks and index",
            peers.casync,
            None,
        ),
    ];
    for (case, name, peer, goal) in beside {
        let row = bundle(case).beside(name, mb(peer.bytes));
        rows.push(match goal {
            Some(goal) => row.goal(goal),
            None => row,
        });
    }
    for (case, name, peer, _) in beside {
        rows.extend(making_rows(release, case, name, peer));
    }
    rows
}

/// What it costs to make the bundles, beside what it costs a peer to make its difference.
fn making_rows(
    release: ReleaseBytes,
    case: &str,
    name: &'static str,
    peer: PeerDelta,
) -> [BenchRow; 2] {
    let case = format!("make it: {case}");
    let row =
        |unit, ours, peer| BenchRow::lower(BENCH, case.as_str(), unit, ours).beside(name, peer);
    [
        row("CPU s", release.made.cpu_s, peer.made.cpu_s),
        row("s wall", release.made.wall_s, peer.made.wall_s),
    ]
}

fn machine_rows(rounds: &[UpdateRound]) -> Vec<BenchRow> {
    let delta: Vec<_> = rounds.iter().map(|round| &round.delta).collect();
    let whole: Vec<_> = rounds.iter().map(|round| &round.whole).collect();
    let mut rows = staging_rows(&DELTA, &delta);
    rows.extend(staging_rows(&WHOLE, &whole));
    let of = |what: fn(&UpdateRound) -> f64| median(rounds.iter().map(what).collect());
    let row = |unit, ours| BenchRow::lower(BENCH, "machine: apply to answered call", unit, ours);
    rows.extend([
        row("CPU s", of(|it| it.restarts.apply.work.cpu_s))
            .beside(RESTART, of(|it| it.restarts.restart.work.cpu_s)),
        row("s wall", of(|it| it.restarts.apply.work.wall_s))
            .beside(RESTART, of(|it| it.restarts.restart.work.wall_s))
            .goal(Goal::Ratio(goals::APPLY_OF_RESTART)),
    ]);
    rows
}

/// The names of the rows about staging one kind of bundle.
struct StagingCase {
    /// The beginning of each.
    case: &'static str,
    /// The row about the costs.
    staged: &'static str,
}

const DELTA: StagingCase = StagingCase {
    case: "machine",
    staged: "a delta staged",
};

const WHOLE: StagingCase = StagingCase {
    case: "whole bundle",
    staged: "the program staged",
};

/// Costs, memory and calls. The bounds are the same for each kind of bundle.
fn staging_rows(names: &StagingCase, rounds: &[&StagingRound]) -> Vec<BenchRow> {
    let of = |what: fn(&StagingRound) -> f64| {
        let figures = rounds.iter().map(|round| what(round));
        median(figures.collect())
    };
    let row = |case: &str, unit, ours| {
        let case = format!("{}: {case}", names.case);
        BenchRow::lower(BENCH, case, unit, ours)
    };
    let mut rows = vec![
        row(names.staged, "CPU s", of(|it| it.cost.work.cpu_s)),
        row(names.staged, "s wall", of(|it| it.cost.work.wall_s)),
        row(
            "more memory in use while staging",
            "MiB",
            of(|it| it.calls.more_mib()),
        )
        .goal(Goal::Ours(goals::STAGING_MIB)),
    ];
    let calls: Vec<_> = rounds.iter().map(|round| &round.calls).collect();
    rows.extend(call_rows(names, &calls));
    rows
}

/// The calls of all rounds together: a p99 of one round has a dozen calls beyond it.
fn call_rows(names: &StagingCase, rounds: &[&StagingCalls]) -> [BenchRow; 3] {
    let quantile = |series: fn(&StagingCalls) -> &CallSeries, percent| {
        quantile_ms(rounds.iter().map(|round| series(round)), percent)
    };
    let calm = |percent| {
        let both = rounds
            .iter()
            .flat_map(|round| [&round.before, &round.after]);
        quantile_ms(both, percent)
    };
    let row = |case: &str, ours| {
        let case = format!("{}: {case}", names.case);
        BenchRow::lower(BENCH, case, "ms", ours)
    };
    [
        row(
            "median of calls while staging",
            quantile(|it| &it.staging, 50),
        )
        .beside("calm", calm(50)),
        row("p99 of calls while staging", quantile(|it| &it.staging, 99))
            .beside("calm", calm(99))
            .goal(Goal::Ratio(goals::STAGING_P99_OF_CALM)),
        // By how much the figure above may differ although nothing else does.
        row(
            "p99 of calm calls, after staging",
            quantile(|it| &it.after, 99),
        )
        .beside("calm, before staging", quantile(|it| &it.before, 99)),
    ]
}

fn counted_rows(costs: &CountedCosts) -> [BenchRow; 2] {
    let counted = |cost: MachineCost| cost.minsn.unwrap_or(f64::NAN);
    let row = |case, cost| BenchRow::lower(BENCH, case, "M instructions", counted(cost));
    let restarts = costs.restarts;
    [
        row("machine: a delta staged", costs.staged),
        row("machine: apply to answered call", restarts.apply)
            .beside(RESTART, counted(restarts.restart)),
    ]
}

#[cfg(test)]
mod tests {
    use super::machine::RestartCosts;
    use super::*;
    use crate::work_cost::WorkCost;

    /// The ratio in hundredths, and the bound.
    fn held(row: &BenchRow) -> (Option<f64>, Option<Goal>) {
        let ratio = row.ratio.map(|ratio| (ratio * 100.0).round());
        (ratio, row.goal)
    }

    fn work(cpu_s: f64) -> WorkCost {
        WorkCost {
            wall_s: cpu_s * 2.0,
            cpu_s,
        }
    }

    #[test]
    fn the_bundle_is_compared_with_the_whole_and_with_each_peer() {
        let release = ReleaseBytes {
            delta: 4_000_000,
            delta_bundle: 4_100_000,
            whole_bundle: 41_000_000,
            made: work(60.0),
        };
        let peer = |bytes, cpu_s| PeerDelta {
            bytes,
            made: work(cpu_s),
        };
        let peers = PeerDeltas {
            zstd: peer(5_125_000, 120.0),
            zstd_packed: peer(41_000_000, 30.0),
            xdelta3: peer(8_200_000, 20.0),
            bsdiff: peer(3_280_000, 40.0),
            casync: peer(16_400_000, 15.0),
        };
        let rows = byte_rows(release, peers);
        let (bytes, costs) = rows.split_at(7);
        let bytes: Vec<_> = bytes.iter().map(held).collect();
        assert_eq!(
            bytes,
            [
                (Some(10.0), Some(Goal::Ratio(0.35))),
                (None, None),
                (Some(80.0), Some(Goal::Ratio(1.1))),
                (Some(10.0), Some(Goal::Ratio(1.1))),
                (Some(50.0), None),
                (Some(125.0), None),
                (Some(25.0), None),
            ]
        );
        let cpu = costs.iter().filter(|row| row.unit == "CPU s");
        let cpu: Vec<_> = cpu.map(held).collect();
        assert_eq!(
            cpu,
            [50.0, 200.0, 300.0, 150.0, 400.0].map(|ratio| (Some(ratio), None))
        );
        assert_eq!(costs.len(), 2 * cpu.len());
    }

    fn cost(cpu_s: f64) -> MachineCost {
        MachineCost {
            work: work(cpu_s),
            minsn: Some(cpu_s * 100.0),
        }
    }

    fn restarts(restart: f64, apply: f64) -> RestartCosts {
        RestartCosts {
            restart: cost(restart),
            apply: cost(apply),
        }
    }

    /// Staging that took so many processor seconds, used so much memory, and slowed calls of 10 and 8 ms to so many.
    fn staged(cpu_s: f64, in_use_mib: f64, call_ms: u64) -> StagingRound {
        StagingRound {
            calls: StagingCalls {
                before: CallSeries::from_parts(&[10], &[100.0]),
                staging: CallSeries::from_parts(&[call_ms], &[in_use_mib]),
                after: CallSeries::from_parts(&[8], &[100.0]),
            },
            cost: cost(cpu_s),
        }
    }

    #[test]
    fn each_promise_about_a_machine_has_a_row_with_its_bound() {
        let round = UpdateRound {
            delta: staged(60.0, 120.0, 12),
            whole: staged(90.0, 123.0, 14),
            restarts: restarts(10.0, 11.0),
        };
        let rows = machine_rows(&[round]);
        let all: Vec<_> = rows.iter().map(held).collect();
        let staging = |ratio| {
            [
                (None, None),
                (None, None),
                (None, Some(Goal::Ours(24.0))),
                (Some(ratio), None),
                (Some(ratio), Some(Goal::Ratio(1.5))),
                (Some(80.0), None),
            ]
        };
        let applied = [(Some(110.0), None), (Some(110.0), Some(Goal::Ratio(1.2)))];
        let expected = [&staging(120.0)[..], &staging(140.0), &applied].concat();
        assert_eq!(all, expected);
        let row = |case: &str, unit: &str| {
            let found = rows.iter().find(|row| row.case == case && row.unit == unit);
            found.map(|row| row.ours)
        };
        let memory = "more memory in use while staging";
        assert_eq!(row(&format!("machine: {memory}"), "MiB"), Some(20.0));
        assert_eq!(row(&format!("whole bundle: {memory}"), "MiB"), Some(23.0));
        assert_eq!(row("machine: a delta staged", "CPU s"), Some(60.0));
        assert_eq!(row("whole bundle: the program staged", "CPU s"), Some(90.0));
        let counted = counted_rows(&CountedCosts {
            staged: cost(60.0),
            restarts: restarts(10.0, 12.0),
        });
        assert_eq!(counted[0].ours, 6000.0);
        assert_eq!(held(&counted[1]), (Some(120.0), None));
    }
}
