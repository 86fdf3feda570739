//! What an update takes: bytes of a release that changes the binary alone, beside the whole program and beside what
//! other programs make of the same two binaries; and on an emulated machine memory and calls while a version is staged,
//! and the time from `update/apply` to an answered call.

mod machine;
mod other_deltas;
mod release;

use alknet_tasks::context::XtaskContext;
use alknet_tasks::failure::{Result, TaskError};

use self::machine::{StagingMachine, UpdateRound};
use self::other_deltas::PeerDeltas;
use self::release::{ReleaseBytes, ReleasePair};
use super::rows::{BenchRow, Goal, median};

/// Name of this benchmark in rows.
const BENCH: &str = "update";

/// Most rounds, because each stages a version on an emulated machine and restarts it twice, which takes minutes.
const ROUNDS_MAX: usize = 5;

const MEGA: f64 = 1e6;

/// Promised figures; docs/SPECIFICATION.md quotes them.
mod goals {
    pub(super) const DELTA_OF_WHOLE: f64 = 0.35;
    pub(super) const DELTA_OF_ZSTD: f64 = 1.1;
    pub(super) const STAGING_MIB: f64 = 24.0;
    pub(super) const STAGING_P99_OF_CALM: f64 = 1.5;
    pub(super) const APPLY_OF_RESTART: f64 = 1.2;
}

/// Measures the bytes once, and the machine in each round.
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
    Ok(rows)
}

fn byte_rows(release: ReleaseBytes, peers: PeerDeltas) -> Vec<BenchRow> {
    let mb = |bytes: u64| bytes as f64 / MEGA;
    let delta = |peer: &str, bytes| {
        BenchRow::lower(BENCH, "delta", "MB", mb(release.delta)).beside(peer, mb(bytes))
    };
    vec![
        BenchRow::lower(BENCH, "bundle of a release", "MB", mb(release.delta_bundle))
            .beside("with the whole program", mb(release.whole_bundle))
            .goal(Goal::Ratio(goals::DELTA_OF_WHOLE)),
        delta("zstd --patch-from", peers.zstd).goal(Goal::Ratio(goals::DELTA_OF_ZSTD)),
        delta("xdelta3", peers.xdelta3),
        delta("bsdiff", peers.bsdiff),
        delta("casync, new chunks and index", peers.casync),
    ]
}

fn machine_rows(rounds: &[UpdateRound]) -> Vec<BenchRow> {
    let of = |what: fn(&UpdateRound) -> f64| median(rounds.iter().map(what).collect());
    let row = |case: &str, unit, ours| BenchRow::lower(BENCH, case, unit, ours);
    vec![
        row("machine: a delta staged", "s wall", of(|it| it.staging_s)),
        row(
            "machine: more memory in use while staging",
            "MiB",
            of(|it| it.more_mib),
        )
        .goal(Goal::Ours(goals::STAGING_MIB)),
        row(
            "machine: p99 of calls while staging",
            "ms",
            of(|it| it.staging_p99_ms),
        )
        .beside("calm", of(|it| it.calm_p99_ms))
        .goal(Goal::Ratio(goals::STAGING_P99_OF_CALM)),
        row(
            "machine: apply to answered call",
            "s wall",
            of(|it| it.apply_s),
        )
        .beside("restart: drain and boot", of(|it| it.restart_s))
        .goal(Goal::Ratio(goals::APPLY_OF_RESTART)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_promise_has_a_row_with_its_bound() {
        let release = ReleaseBytes {
            delta: 4_000_000,
            delta_bundle: 4_100_000,
            whole_bundle: 41_000_000,
        };
        let peers = PeerDeltas {
            zstd: 5_000_000,
            xdelta3: 8_000_000,
            bsdiff: 3_200_000,
            casync: 16_000_000,
        };
        let round = UpdateRound {
            calm_p99_ms: 10.0,
            staging_p99_ms: 12.0,
            more_mib: 20.0,
            staging_s: 60.0,
            restart_s: 10.0,
            apply_s: 11.0,
        };
        let mut rows = byte_rows(release, peers);
        rows.extend(machine_rows(&[round]));
        let ratio = |row: &BenchRow| row.ratio.map(|ratio| (ratio * 100.0).round());
        let all: Vec<_> = rows.iter().map(|row| (ratio(row), row.goal)).collect();
        assert_eq!(
            all,
            [
                (Some(10.0), Some(Goal::Ratio(0.35))),
                (Some(80.0), Some(Goal::Ratio(1.1))),
                (Some(50.0), None),
                (Some(125.0), None),
                (Some(25.0), None),
                (None, None),
                (None, Some(Goal::Ours(24.0))),
                (Some(120.0), Some(Goal::Ratio(1.5))),
                (Some(110.0), Some(Goal::Ratio(1.2))),
            ]
        );
    }
}
