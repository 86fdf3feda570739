//! The memory that the node can have, and what the node does when it runs short.
//!
//! Each budget is a part of the memory, and some memory is in no budget: above all, what the QUIC
//! library keeps for received pieces with gaps between them. This module watches their sum. A node
//! that ends some connections serves the others. If the kernel ends the node, it serves no peer.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use alknet_endpoint::{EndpointServer, ReliefScope};
use alknet_init::control::{MEMORY_SHORT, MachineDiagnostic};
use alknet_worker::Workers;

use crate::memory as allocator;

/// How often the node measures, and how many times at most it waits after it ended connections:
/// their memory is free once the peers' acknowledgements would have arrived. It does not wait if
/// half of the available memory was used meanwhile.
const MEASURE_EVERY: Duration = Duration::from_millis(100);
const MEASUREMENTS_AFTER_RELIEF: usize = 5;

/// How often the node measures if less than this part of the memory is available: peers may use a
/// sixteenth of it within a few tenths of a second.
const MEASURE_EVERY_NEAR: Duration = Duration::from_millis(20);
const NEAR_PART: u64 = 8;

/// How often the node measures if more than this part is available: until memory is near its end, peers would have to
/// use three eighths of it, which are 96 MiB of a machine's 256. An idle processor sleeps longer.
const MEASURE_EVERY_FAR: Duration = Duration::from_millis(400);
const FAR_PART: u64 = 2;

/// Number of tasks that do nothing and wake idle threads, so that the threads return their free
/// memory. Each task wakes one thread at most.
const WAKES: usize = 16;

/// Memory is short if less than this part is available and the node itself uses at least this part.
/// If the node uses less, ending its connections would not help other programs noticeably.
const LEFT_PART: u64 = 16;
const OWN_PART: u64 = 16;

/// Part of unknown peers' connections that the node ends at once, and the part if half of that
/// memory is left.
const RELIEF_PART: usize = 4;
const RELIEF_PART_OF_LITTLE: usize = 2;

/// Known peers' connections end only if less than this part is available, and the node uses at
/// least this part. The node first waits for memory of unknown peers' connections that the library
/// has yet to free. It waits until less than the last part is available: then known peers'
/// connections end beside unknown ones', because few measurements are left until the kernel ends
/// the node.
const LEFT_PART_KNOWN: u64 = 32;
const OWN_PART_KNOWN: u64 = 4;
const LEFT_PART_LAST: u64 = 64;

/// If memory is short for this many rounds in a row, a few seconds, known peers use it, however
/// little the node itself uses: unknown peers have none left. After this many more rounds, a
/// minute, the library has freed all that it had of unknown peers' connections at the beginning.
const ROUNDS_OF_UNKNOWN: u32 = 10;
const ROUNDS_OF_CLOSING: u32 = 100;
/// Memory that the library may keep of a connection that ended or was not served, in bytes
/// (docs/endpoint.md). The node waits for it if all such connections together may have the missing
/// memory: a single handshake, which a forged packet begins, frees too little.
const CLOSING_BYTES: u64 = 284 << 10;

/// How long the node reports the problem after it ended connections.
const REPORTED_FOR: Duration = Duration::from_secs(60);

/// The kernel's file of the machine's memory, and the folder where control groups are mounted.
const MEMINFO: &str = "/proc/meminfo";
const GROUPS: &str = "/sys/fs/cgroup";

/// The memory that the node can have: that of the machine, or of the container or service that it
/// runs in, whichever is less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodeMemory {
    pub(crate) total_bytes: u64,
    pub(crate) available_bytes: u64,
}

/// The memory that the node itself uses: its anonymous pages, without mapped files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PrivateMemory(u64);

impl NodeMemory {
    /// The kernel's present figures. Returns `None` if they cannot be read.
    pub(crate) fn now() -> Option<Self> {
        let machine = Self::of_machine(&read(MEMINFO)?)?;
        Some(match Self::of_group() {
            Some(group) => machine.within(group),
            None => machine,
        })
    }

    fn of_machine(meminfo: &str) -> Option<Self> {
        Some(Self {
            total_bytes: kib(meminfo, "MemTotal:")?,
            available_bytes: kib(meminfo, "MemAvailable:")?,
        })
    }

    /// The memory that this process's group and each group above it may have (cgroup version 2).
    /// Returns `None` if no group has a limit.
    fn of_group() -> Option<Self> {
        let own = read("/proc/self/cgroup")?;
        // The line of the second version of control groups has the number 0 and no controllers
        // (cgroups(7)).
        let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
        Self::of_groups(Path::new(GROUPS), path)
    }

    /// The minimum over all groups from `path` up to the root of `mount`. A container may see its
    /// path on the host, of which only the last group is mounted.
    fn of_groups(mount: &Path, path: &str) -> Option<Self> {
        let own = mount.join(path.trim_start_matches('/'));
        // The limit of each group above holds for the groups below it.
        let groups = own.ancestors().take_while(|it| it.starts_with(mount));
        let limits = groups.filter_map(|group| {
            let [most, high, used, kinds] =
                ["memory.max", "memory.high", "memory.current", "memory.stat"]
                    .map(|file| fs::read_to_string(group.join(file)));
            let (used, kinds) = (used.ok()?, kinds.ok()?);
            // Above `memory.high` the kernel slows the group down
            // (Documentation/admin-guide/cgroup-v2.rst), which is too late for connections.
            let limits = [most, high].map(|limit| Self::of_limit(&limit.ok()?, &used, &kinds));
            limits.into_iter().flatten().reduce(Self::within)
        });
        limits.reduce(Self::within)
    }

    fn of_limit(most: &str, used: &str, kinds: &str) -> Option<Self> {
        // `max` is not a number, and means that there is no limit.
        let total_bytes = most.trim().parse::<u64>().ok()?;
        let used = used.trim().parse::<u64>().ok()?;
        // The kernel frees cached files and names first, so they count as available.
        let files = ["inactive_file ", "active_file ", "slab_reclaimable "].map(|kind| {
            let bytes = kinds.lines().find_map(|line| line.strip_prefix(kind));
            bytes
                .and_then(|bytes| bytes.trim().parse().ok())
                .unwrap_or(0)
        });
        let held = used.saturating_sub(files.iter().sum());
        Some(Self {
            total_bytes,
            available_bytes: total_bytes.saturating_sub(held),
        })
    }

    const fn is_near(self) -> bool {
        self.available_bytes < self.total_bytes / NEAR_PART
    }

    /// The time until the next measurement.
    const fn pause(self) -> Duration {
        if self.is_near() {
            MEASURE_EVERY_NEAR
        } else if self.available_bytes > self.total_bytes / FAR_PART {
            MEASURE_EVERY_FAR
        } else {
            MEASURE_EVERY
        }
    }

    fn within(self, group: Self) -> Self {
        Self {
            total_bytes: self.total_bytes.min(group.total_bytes),
            available_bytes: self.available_bytes.min(group.available_bytes),
        }
    }

    /// The peers whose connections are to end in this round. `rounds` is the number of rounds in
    /// which memory was short, and `closing` the number of unknown peers' connections that ended or
    /// were not served and that the library still has.
    const fn scope(self, own: PrivateMemory, rounds: u32, closing: usize) -> ReliefScope {
        let (left, has) = if rounds > ROUNDS_OF_UNKNOWN {
            (LEFT_PART, OWN_PART)
        } else {
            (LEFT_PART_KNOWN, OWN_PART_KNOWN)
        };
        let missing = (self.total_bytes / left).saturating_sub(self.available_bytes);
        let comes_back = (closing as u64).saturating_mul(CLOSING_BYTES);
        let waits = closing > 0 && comes_back >= missing && rounds <= ROUNDS_OF_CLOSING;
        if self.is_short(own, LEFT_PART_LAST, has) {
            ReliefScope::All
        } else if !waits && self.is_short(own, left, has) {
            ReliefScope::UnknownFirst
        } else {
            ReliefScope::Unknown
        }
    }

    /// Whether less than one part in `left` is available, and the node uses at least one part in
    /// `has`.
    const fn is_short(self, own: PrivateMemory, left: u64, has: u64) -> bool {
        self.available_bytes < self.total_bytes / left && own.0 >= self.total_bytes / has
    }
}

impl PrivateMemory {
    fn now() -> Option<Self> {
        kib(&read("/proc/self/status")?, "RssAnon:").map(Self)
    }
}

/// Whether workers end as well, namely those of the tenant that uses more memory in them than the
/// node itself. They do not end before known peers' connections do: unknown peers must not be able
/// to end what known peers run.
const fn is_of_workers(scope: ReliefScope, rounds: u32) -> bool {
    match scope {
        ReliefScope::Unknown => false,
        ReliefScope::UnknownFirst => rounds > ROUNDS_OF_UNKNOWN,
        ReliefScope::All => true,
    }
}

/// What the node did about short memory.
#[derive(Debug, Default)]
pub(crate) struct MemoryRelief {
    ended: AtomicU64,
    ended_workers: AtomicU64,
    last: Mutex<Option<Instant>>,
}

impl MemoryRelief {
    /// Ends connections and workers whenever memory is short. Never returns.
    pub(crate) async fn run(self: Arc<Self>, server: Arc<EndpointServer>, workers: Workers) {
        let (mut rounds, mut pause) = (0, MEASURE_EVERY);
        loop {
            tokio::time::sleep(pause).await;
            let Some(memory) = NodeMemory::now() else {
                continue;
            };
            pause = memory.pause();
            let own = memory.is_near().then(PrivateMemory::now).flatten();
            let Some(own) = own.filter(|own| memory.is_short(*own, LEFT_PART, OWN_PART)) else {
                rounds = 0;
                continue;
            };
            rounds += 1;
            // The node does not know whose connections it did not serve, so it counts them as
            // unknown peers'.
            let closing = server.closing() + server.unserved();
            let mut scope = memory.scope(own, rounds, closing);
            let ended_workers = if is_of_workers(scope, rounds) {
                workers.relieve(own.0).await
            } else {
                0
            };
            if ended_workers > 0 && scope == ReliefScope::UnknownFirst {
                // The workers used the missing memory, so known peers' connections stay open.
                scope = ReliefScope::Unknown;
            }
            let is_less = memory.is_short(own, LEFT_PART_KNOWN, OWN_PART);
            let part = if is_less {
                RELIEF_PART_OF_LITTLE
            } else {
                RELIEF_PART
            };
            let ended = server.relieve(part, scope);
            if ended + ended_workers > 0 {
                self.note(ended, ended_workers, Instant::now());
                tracing::warn!(
                    ended,
                    ended_workers,
                    available_bytes = memory.available_bytes,
                    node_bytes = own.0,
                    "memory ran short: connections or workers were ended"
                );
            }
            for _ in 0..MEASUREMENTS_AFTER_RELIEF {
                tokio::time::sleep(MEASURE_EVERY).await;
                let now = NodeMemory::now().map_or(0, |now| now.available_bytes);
                if now < memory.available_bytes / 2 {
                    // The available memory falls faster than the pause allows for.
                    break;
                }
            }
            if ended > 0 || rounds % ROUNDS_OF_UNKNOWN == 0 {
                // The allocator keeps freed pages for each thread, and the kernel counts them as
                // used.
                allocator::ask_back();
                for _ in 0..WAKES {
                    // A thread returns its memory before it goes to sleep, so each thread has to
                    // wake once.
                    tokio::spawn(tokio::task::yield_now());
                }
            }
        }
    }

    fn note(&self, ended: usize, workers: usize, now: Instant) {
        self.ended.fetch_add(ended as u64, Ordering::Relaxed);
        self.ended_workers
            .fetch_add(workers as u64, Ordering::Relaxed);
        *self.lock() = Some(now);
    }

    /// The problem that connections or workers were ended recently.
    pub(crate) fn problem(&self) -> Option<MachineDiagnostic> {
        self.problem_at(Instant::now())
    }

    fn problem_at(&self, now: Instant) -> Option<MachineDiagnostic> {
        let last = (*self.lock())?;
        let ended = self.ended.load(Ordering::Relaxed);
        let workers = self.ended_workers.load(Ordering::Relaxed);
        (now.saturating_duration_since(last) < REPORTED_FOR).then(|| MachineDiagnostic {
            code: MEMORY_SHORT.to_owned(),
            text: format!(
                "memory ran short; since the node started {ended} connections were ended for it, those of unknown \
                 peers first, and {workers} workers"
            ),
            hint: "unknown peers may be attacking, or a known one by its scripts, which the log names; if it happens \
                   without them, give the machine more memory, or the port fewer places (limits.connections)"
                .to_owned(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The number of bytes behind `key` in a `/proc` file that counts in kB.
pub(super) fn kib(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(key))?;
    line.split_whitespace()
        .next()?
        .parse::<u64>()
        .ok()
        .map(|n| n * 1024)
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn memory(total: u64, available: u64) -> NodeMemory {
        NodeMemory {
            total_bytes: total * MIB,
            available_bytes: available * MIB,
        }
    }

    #[test]
    fn the_lesser_of_machine_and_group_counts() {
        let machine = NodeMemory::of_machine(
            "MemTotal: 1048576 kB\nMemFree: 1 kB\nMemAvailable: 524288 kB\n",
        );
        assert_eq!(machine, Some(memory(1024, 512)));
        let machine = machine.expect("there are both lines");
        let kinds = format!(
            "anon 1\ninactive_file {}\nactive_file {}\n",
            16 * MIB,
            48 * MIB
        );
        let limit = |most: &str, used: u64| {
            NodeMemory::of_limit(most, &format!("{}\n", used * MIB), &kinds)
        };
        let group = limit("268435456\n", 128).expect("a limit");
        assert_eq!(group, memory(256, 192));
        assert_eq!(machine.within(group), memory(256, 192));
        // A group whose limit is above the machine's memory.
        let large = limit("4294967296\n", 128).expect("a limit");
        assert_eq!(machine.within(large), memory(1024, 512));
        assert_eq!(limit("max\n", 128), None);
        assert_eq!(NodeMemory::of_machine("MemTotal: 1 kB\n"), None);
        assert_eq!(NodeMemory::of_machine(""), None);
    }

    #[test]
    fn groups_around_the_own_one_count() {
        let mount = tempfile::tempdir().expect("a temporary directory");
        let mount = mount.path();
        let own = "/pod/container/node";
        let put = |group: &str, file: &str, text: &str| {
            let folder = mount.join(group);
            fs::create_dir_all(&folder).expect("room");
            fs::write(folder.join(file), text).expect("room");
        };
        assert_eq!(NodeMemory::of_groups(mount, own), None);
        for group in ["", "pod", "pod/container", "pod/container/node"] {
            put(group, "memory.current", &format!("{}\n", 64 * MIB));
            put(group, "memory.stat", "anon 1\n");
            put(group, "memory.max", "max\n");
        }
        assert_eq!(NodeMemory::of_groups(mount, own), None);
        put("pod", "memory.max", &format!("{}\n", 256 * MIB));
        assert_eq!(NodeMemory::of_groups(mount, own), Some(memory(256, 192)));
        put("pod/container", "memory.high", &format!("{}\n", 128 * MIB));
        assert_eq!(NodeMemory::of_groups(mount, own), Some(memory(128, 64)));
        // The path is that of the host, of which only the last group is mounted.
        put("", "memory.max", &format!("{}\n", 512 * MIB));
        let outside = NodeMemory::of_groups(mount, "/kubepods/burstable/1");
        assert_eq!(outside, Some(memory(512, 448)));
    }

    /// Number of connections that may have all of the missing memory.
    const MANY: usize = 100;

    #[test]
    fn the_less_is_available_the_more_often_it_is_measured() {
        for (available, expected) in [
            (100, MEASURE_EVERY_FAR),
            (51, MEASURE_EVERY_FAR),
            (50, MEASURE_EVERY),
            (13, MEASURE_EVERY),
            (12, MEASURE_EVERY_NEAR),
            (0, MEASURE_EVERY_NEAR),
        ] {
            assert_eq!(memory(100, available).pause(), expected, "{available}");
        }
    }

    #[test]
    fn it_is_short_where_little_is_left_and_the_node_has_much() {
        let unknown =
            |left, own| memory(512, left).is_short(PrivateMemory(own * MIB), LEFT_PART, OWN_PART);
        assert!(unknown(31, 32));
        assert!(!unknown(32, 512));
        // Other programs use the memory: nothing that the node ends frees it.
        assert!(!unknown(1, 31));
    }

    #[test]
    fn known_peers_end_where_little_is_left_or_unknown_ones_have_none() {
        let known = |left, own, rounds, closing| {
            let scope = memory(512, left).scope(PrivateMemory(own * MIB), rounds, closing);
            scope != ReliefScope::Unknown
        };
        assert!(known(15, 128, 1, 0));
        assert!(!known(16, 512, 1, 0));
        assert!(!known(1, 127, 1, 0));
        // The library is about to free the memory of unknown peers' connections.
        assert!(!known(15, 128, 1, MANY));
        assert!(known(7, 128, 1, MANY));
        assert!(!known(31, 128, ROUNDS_OF_CLOSING, MANY));
        assert!(known(31, 128, ROUNDS_OF_CLOSING + 1, MANY));
        // One handshake that a client keeps under way does not have the missing memory.
        assert!(known(15, 128, 1, 1));
        assert!(known(31, 128, ROUNDS_OF_UNKNOWN + 1, 1));
        // Unknown peers do not use memory that is short for so long.
        assert!(!known(31, 128, ROUNDS_OF_UNKNOWN, 0));
        assert!(known(31, 128, ROUNDS_OF_UNKNOWN + 1, 0));
        assert!(!known(32, 128, ROUNDS_OF_UNKNOWN + 1, 0));
        // This also holds if the node itself uses little.
        assert!(!known(31, 64, ROUNDS_OF_UNKNOWN, 0));
        assert!(known(31, 64, ROUNDS_OF_UNKNOWN + 1, 0));
        assert!(!known(31, 64, ROUNDS_OF_UNKNOWN + 1, MANY));
        assert!(!known(31, 31, ROUNDS_OF_UNKNOWN + 1, 0));
    }

    #[test]
    fn known_peers_end_beside_unknown_ones_where_nearly_nothing_is_left() {
        let scope = |left, own, rounds, closing| {
            memory(512, left).scope(PrivateMemory(own * MIB), rounds, closing)
        };
        assert_eq!(scope(7, 128, 1, 0), ReliefScope::All);
        assert_eq!(scope(7, 128, 1, MANY), ReliefScope::All);
        assert_eq!(scope(8, 128, 1, 0), ReliefScope::UnknownFirst);
        assert_eq!(scope(7, 127, 1, 0), ReliefScope::Unknown);
        let for_long = ROUNDS_OF_UNKNOWN + 1;
        assert_eq!(scope(7, 32, for_long, 0), ReliefScope::All);
        assert_eq!(scope(31, 32, for_long, 0), ReliefScope::UnknownFirst);
    }

    #[test]
    fn workers_end_once_it_is_the_turn_of_known_peers() {
        let workers = |left, own, rounds, closing| {
            let scope = memory(512, left).scope(PrivateMemory(own * MIB), rounds, closing);
            is_of_workers(scope, rounds)
        };
        let for_long = ROUNDS_OF_UNKNOWN + 1;
        assert!(workers(31, 32, for_long, 0));
        assert!(!workers(31, 32, ROUNDS_OF_UNKNOWN, 0));
        assert!(!workers(15, 128, ROUNDS_OF_UNKNOWN, 0));
        // The library is about to free the memory of unknown peers' connections.
        assert!(!workers(31, 32, for_long, MANY));
        assert!(workers(31, 32, ROUNDS_OF_CLOSING + 1, MANY));
        assert!(workers(7, 128, 1, MANY));
    }

    #[test]
    fn memory_pressure_is_reported_for_a_while() {
        let (relief, now) = (MemoryRelief::default(), Instant::now());
        assert_eq!(relief.problem_at(now), None);
        relief.note(3, 2, now);
        let problem = relief.problem_at(now).expect("it was just done");
        assert_eq!(problem.code, MEMORY_SHORT);
        for told in ["3 connections", "2 workers"] {
            assert!(problem.text.contains(told), "{}", problem.text);
        }
        assert_eq!(relief.problem_at(now + REPORTED_FOR), None);
    }
}
