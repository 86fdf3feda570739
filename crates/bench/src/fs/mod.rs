//! Files: puts and long files over HTTP beside nginx, rclone, OpenSSH and a program that syncs each file; contents by hash
//! beside iroh-blobs, and a file that sendme fetches beside the same from another sendme; names beside the file system; an
//! import beside git; a first synchronisation; memory.
//!
//! Each section is a benchmark with a name of its own, `fs/SECTION`, which takes a few minutes; `fs` is all of them. A
//! server is a process, ours is the built binary with the limits of [`node`], so that its processor time and its memory
//! are its own. One client, in this process, loads the servers in turn in each round, over the same TLS on loopback. Names
//! and the synchronisation are measured in this process, on the libraries: the cases say so.

mod blobs;
mod bulk;
mod client;
mod folder;
mod import;
mod iroh_peer;
mod memory;
mod names;
mod node;
mod peers;
mod process;
mod puts;
mod sendme;
mod ssh;
mod stock_streams;
mod sync;
mod tree;

pub(crate) use self::iroh_peer::{FsBenchProcessRole, play};

use super::BenchEntry;
use super::rows::{BenchRow, Goal};
use alknet_tasks::context::XtaskContext;
use alknet_tasks::failure::Result;

/// Name of this benchmark in rows.
const BENCH: &str = "fs";

/// Most rounds of a section: a section is to end within minutes.
const ROUNDS_MAX: usize = 5;

const MIB: f64 = (1 << 20) as f64;

/// The sections, each a benchmark by itself.
pub(super) const SECTIONS: [BenchEntry; 8] = [
    ("fs/blobs", blobs::run),
    ("fs/bulk", bulk::run),
    ("fs/import", import::run),
    ("fs/memory", memory::run),
    ("fs/names", names::run),
    ("fs/puts", puts::run),
    ("fs/sendme", sendme::run),
    ("fs/sync", sync::run),
];

/// Promised figures; docs/SPECIFICATION.md quotes them.
mod goals {
    /// Bytes of contents by their hash, of those of iroh-blobs alone.
    pub(super) const BLOBS: f64 = 0.95;
    /// Bytes of a long file, of nginx's.
    pub(super) const BULK: f64 = 0.9;
    /// Durable puts by 16 clients, of those of the program that syncs each.
    pub(super) const PUTS: f64 = 2.0;
    /// A branch of 500,000 entries, in ms.
    pub(super) const BRANCH_MS: f64 = 5.0;
    /// The difference of two branches after 1,000 changes, in ms.
    pub(super) const DIFF_MS: f64 = 50.0;
    /// The slowest hundredth of looks at a path, in us.
    pub(super) const RESOLVE_P99_US: f64 = 200.0;
    /// The first synchronisation of 100,000 paths, in s.
    pub(super) const SYNC_S: f64 = 60.0;
    /// Memory of the first synchronisation of 100,000 paths, of both nodes together, in MiB.
    pub(super) const SYNC_MIB: f64 = 200.0;
    /// Memory of a node with 1,000,000 entries over that of an idle node, in MiB.
    pub(super) const ENTRIES_MIB: f64 = 128.0;
}

/// Every section after the other.
pub(super) fn run(cx: &mut XtaskContext, rounds: usize) -> Result<Vec<BenchRow>> {
    let mut rows = Vec::new();
    for (name, section) in SECTIONS {
        eprintln!("{name}:");
        rows.extend(section(cx, rounds)?);
    }
    Ok(rows)
}

/// The rounds of a section, each announced.
fn count_rounds(rounds: usize) -> impl Iterator<Item = usize> {
    let rounds = rounds.min(ROUNDS_MAX);
    (1..=rounds).inspect(move |round| eprintln!("round {round} of {rounds} ..."))
}

/// A row with the bound of a ratio, if there is one.
fn promised(row: BenchRow, ratio: Option<f64>) -> BenchRow {
    match ratio {
        Some(ratio) => row.goal(Goal::Ratio(ratio)),
        None => row,
    }
}
