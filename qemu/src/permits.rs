//! Limits how many machines start at the same moment, and how much memory all machines have. Every
//! process of this user shares the limits, so that many threads of several programs may ask for
//! machines at once. In a run of the tests the runner allots the memory, and each test has what its
//! manifest says.
//!
//! Each unit of a limit is a file, and a process holds the unit by holding the lock of that file.
//! The kernel frees the units of a process that ends, however it ends.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::scratch;

/// The memory of one unit, MiB.
const UNIT_MIB: u64 = 256;

/// Memory of all machines for each processor, MiB: four machines of the usual size on two processors.
const PER_PROCESSOR_MIB: u64 = 1536;

/// Memory of all machines on any host, MiB.
const ALL_MIB: u64 = 4096;

/// Pause between checks for a free unit, and for the lock of the processes that collect units: the
/// kernel waits for one lock only, and without an end.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A machine that waited so long starts all the same: the limits keep a run quick, and must not
/// stop it. With the longest boot it is shorter than the silence after which the runner of tests
/// ends a program.
pub const MACHINE_WAIT_MAX: Duration = Duration::from_secs(240);

/// The units that one machine holds. They are freed when this is dropped.
#[derive(Debug)]
pub(crate) struct MachinePermit {
    /// Its part of the memory of its thread's machines.
    _share: ThreadMemoryShare,
    /// Held until the machine has started.
    start: Mutex<Vec<File>>,
    /// Held for its locks.
    _memory: Vec<File>,
}

impl MachinePermit {
    /// Waits until a machine of this size may start. A machine that is `restored` runs at once, and
    /// does not count among those that start.
    ///
    /// A thread that has a machine already does not wait for another one: two tests that need two
    /// machines each would wait for each other. Such a thread exceeds the limits instead.
    ///
    /// In a run of the tests a thread, which is a test, has no more memory for machines than
    /// `planned_mib`. The runner has allotted that, so no machine waits for memory. The thread
    /// takes the units that are free, so that other commands see them as taken.
    pub(crate) fn acquire(
        memory_mib: u32,
        restored: bool,
        planned_mib: Option<u32>,
    ) -> Result<Self> {
        thread_local! {
            static HELD_MIB: Arc<AtomicU32> = Arc::default();
        }
        let held_mib = HELD_MIB.with(Arc::clone);
        Self::acquire_within(limits()?, held_mib, memory_mib, restored, planned_mib)
    }

    /// [`acquire`](Self::acquire) for a thread whose machines have `held_mib`.
    fn acquire_within(
        limits: &HostLimits,
        held_mib: Arc<AtomicU32>,
        wanted_mib: u32,
        restored: bool,
        planned_mib: Option<u32>,
    ) -> Result<Self> {
        // A test that has a machine already must not wait, because the others might wait for what
        // it holds.
        let is_first = held_mib.load(Ordering::Relaxed) == 0;
        let share = ThreadMemoryShare::reserve(held_mib, wanted_mib, planned_mib)?;
        let wait = PermitWait {
            memory: is_first && planned_mib.is_none(),
            start: is_first,
        };
        let begun = Instant::now();
        let units = u64::from(wanted_mib).div_ceil(UNIT_MIB);
        let units = usize::try_from(units).unwrap_or(usize::MAX);
        let failed = "waiting until another machine may start";
        let memory = limits.memory.acquire_since(begun, units, wait.memory);
        let memory = memory.map_err(Error::io(failed))?;
        let starts = usize::from(!restored);
        let start = limits.starts.acquire_since(begun, starts, wait.start);
        let start = start.map_err(Error::io(failed))?;
        Ok(Self {
            _share: share,
            start: Mutex::new(start),
            _memory: memory,
        })
    }

    /// Lets another machine start, because this one has.
    pub(crate) fn started(&self) {
        let mut start = self.start.lock().unwrap_or_else(PoisonError::into_inner);
        start.clear();
    }
}

/// What a machine waits for, if it is not free.
#[derive(Clone, Copy, Debug)]
struct PermitWait {
    memory: bool,
    start: bool,
}

/// Memory of one machine, which counts with that of the others of its thread until this is dropped.
#[derive(Debug)]
struct ThreadMemoryShare {
    held_mib: Arc<AtomicU32>,
    mib: u32,
}

impl ThreadMemoryShare {
    /// Fails if the machines would have more than `most_mib` together.
    fn reserve(held_mib: Arc<AtomicU32>, mib: u32, most_mib: Option<u32>) -> Result<Self> {
        let all = held_mib.fetch_add(mib, Ordering::Relaxed) + mib;
        // Dropping the share gives back what it took.
        let share = Self { held_mib, mib };
        match most_mib {
            Some(most_mib) if all > most_mib => Err(Error::BeyondNeeds { all, most_mib }),
            _ => Ok(share),
        }
    }
}

impl Drop for ThreadMemoryShare {
    fn drop(&mut self) {
        self.held_mib.fetch_sub(self.mib, Ordering::Relaxed);
    }
}

/// Memory that all machines of this host have at most, MiB: what a runner of many tests allots.
pub fn machines_mib() -> u64 {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    memory_units(processors, available_mib()) as u64 * UNIT_MIB
}

struct HostLimits {
    starts: FileSemaphore,
    memory: FileSemaphore,
}

/// The limits of this host, computed once.
fn limits() -> Result<&'static HostLimits> {
    static LIMITS: OnceLock<HostLimits> = OnceLock::new();
    let folder = scratch::base()?.join("permits");
    Ok(LIMITS.get_or_init(|| {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let memory = usize::try_from(machines_mib() / UNIT_MIB).unwrap_or(1);
        HostLimits {
            starts: FileSemaphore::new(&folder, "starts", processors),
            memory: FileSemaphore::new(&folder, "memory", memory),
        }
    }))
}

/// A semaphore that processes share. Each unit of it is a file with a lock.
#[derive(Clone, Debug)]
struct FileSemaphore {
    folder: PathBuf,
    units: usize,
    /// The longest wait.
    wait_max: Duration,
}

impl FileSemaphore {
    fn new(folder: &Path, name: &str, units: usize) -> Self {
        Self {
            folder: folder.join(name),
            units,
            wait_max: MACHINE_WAIT_MAX,
        }
    }

    #[cfg(test)]
    fn acquire(&self, wanted: usize, wait: bool) -> io::Result<Vec<File>> {
        self.acquire_since(Instant::now(), wanted, wait)
    }

    /// Takes this many units, or all there are if it wants more, for a machine that waits since
    /// `begun`. Without `wait` it takes those that are free and goes on.
    fn acquire_since(&self, begun: Instant, wanted: usize, wait: bool) -> io::Result<Vec<File>> {
        let wanted = wanted.min(self.units);
        if wanted == 0 {
            return Ok(vec![]);
        }
        fs::create_dir_all(&self.folder)?;
        let queue = self.open("queue")?;
        let mut is_first = !wait;
        let mut held: Vec<Option<File>> = vec![];
        held.resize_with(self.units, || None);
        loop {
            // Only one process at a time collects units: two that need several would each hold what
            // the other lacks. The wait for that has the same end as the wait for units, whatever
            // process holds the lock.
            is_first = is_first || try_lock(&queue)?;
            let is_late = begun.elapsed() > self.wait_max;
            if is_first || is_late {
                self.take_free(&mut held, wanted)?;
            }
            let taken = held.iter().flatten().count();
            if is_late && taken < wanted {
                eprintln!(
                    "after {:.0} s a machine starts with {taken} of {wanted} units of {}: others hold the rest",
                    begun.elapsed().as_secs_f64(),
                    self.folder.display()
                );
            }
            if taken == wanted || !wait || is_late {
                return Ok(held.into_iter().flatten().collect());
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    /// Adds free units to `held`, up to `wanted` in all.
    fn take_free(&self, held: &mut [Option<File>], wanted: usize) -> io::Result<()> {
        let mut missing = wanted - held.iter().flatten().count();
        for (number, unit_file) in held.iter_mut().enumerate() {
            if missing == 0 {
                break;
            }
            if unit_file.is_some() {
                continue;
            }
            let unit = self.open(&number.to_string())?;
            if try_lock(&unit)? {
                *unit_file = Some(unit);
                missing -= 1;
            }
        }
        Ok(())
    }

    fn open(&self, name: &str) -> io::Result<File> {
        let path = self.folder.join(name);
        let mut options = OpenOptions::new();
        options.create(true).append(true);
        // The folder may be below /tmp, where another user could put a link.
        options.custom_flags(libc::O_NOFOLLOW).open(path)
    }
}

/// Takes the lock if it is free. Returns whether it did.
fn try_lock(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(fs::TryLockError::WouldBlock) => Ok(false),
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
}

/// Units of memory on a host with these processors and this much available memory.
fn memory_units(processors: usize, available_mib: u64) -> usize {
    let processors = u64::try_from(processors).unwrap_or(u64::MAX);
    let by_processors = PER_PROCESSOR_MIB.saturating_mul(processors).min(ALL_MIB);
    // The other half is for everything else that runs beside the machines.
    let all = by_processors.min(available_mib / 2);
    usize::try_from((all / UNIT_MIB).max(1)).unwrap_or(1)
}

/// The memory that programs could have without swapping, and in a container without passing its
/// limit.
fn available_mib() -> u64 {
    xtask::memory::available_kib().map_or(ALL_MIB, |kib| kib >> 10)
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};
    use std::sync::Barrier;
    use std::sync::mpsc::{RecvTimeoutError, channel};

    use alknet_test_support::{deadline, eventually};

    use super::*;

    const SOON: Duration = Duration::from_millis(200);
    const LONG: Duration = Duration::from_secs(60);

    fn semaphore(folder: &Path, units: usize) -> FileSemaphore {
        FileSemaphore::new(folder, "units", units)
    }

    #[test]
    fn no_more_units_are_held_than_there_are() {
        let folder = tempfile::tempdir().expect("the temporary directory is writable");
        let units = semaphore(folder.path(), 2);
        let (one, two) = (units.acquire(1, true), units.acquire(1, true));
        let (one, two) = (one.expect("it is free"), two.expect("it is free"));
        let (send, receive) = channel();
        let waiting = {
            let units = units.clone();
            thread::spawn(move || send.send(units.acquire(1, true).expect("in the end")))
        };
        let early = receive.recv_timeout(SOON);
        assert!(matches!(early, Err(RecvTimeoutError::Timeout)), "{early:?}");
        drop(one);
        let third = receive
            .recv_timeout(deadline(LONG))
            .expect("a unit became free");
        waiting.join().expect("no panic").expect("it was received");
        let beyond = units.acquire(1, false).expect("it does not wait");
        assert!(beyond.is_empty(), "none was free");
        drop((two, third));
    }

    #[test]
    fn all_units_are_enough_for_a_machine_that_wants_more() {
        let folder = tempfile::tempdir().expect("the temporary directory is writable");
        let units = semaphore(folder.path(), 3);
        assert_eq!(units.acquire(7, true).expect("all are free").len(), 3);
        assert_eq!(units.acquire(0, true).expect("none is needed").len(), 0);
    }

    /// Holds a lock until it is killed, as `flock` of util-linux does.
    fn holder(folder: &Path, lock: &str) -> Child {
        let mut command = Command::new("flock");
        // `flock` becomes the program that it runs, so one process holds the lock.
        command
            .arg("--no-fork")
            .arg(folder.join("units").join(lock));
        command.args(["sleep", "1000"]).stdin(Stdio::null());
        command.spawn().expect("util-linux is part of every system")
    }

    #[test]
    fn a_killed_process_gives_its_units_back() {
        let folder = tempfile::tempdir().expect("the temporary directory is writable");
        let units = semaphore(folder.path(), 1);
        drop(units.acquire(1, true).expect("it is free"));
        let mut holder = holder(folder.path(), "0");
        while !units.acquire(1, false).expect("no error").is_empty() {
            thread::sleep(LOOK_EVERY);
        }
        holder.kill().expect("it runs");
        holder.wait().expect("it is our child");
        assert_eq!(units.acquire(1, true).expect("it is free again").len(), 1);
    }

    #[test]
    fn a_process_that_holds_the_queue_stops_the_others_for_a_while_only() {
        let folder = tempfile::tempdir().expect("the temporary directory is writable");
        let units = FileSemaphore {
            wait_max: SOON,
            ..semaphore(folder.path(), 2)
        };
        drop(units.acquire(1, true).expect("it is free"));
        let mut holder = holder(folder.path(), "queue");
        let queue = units.open("queue").expect("the directory is ours");
        eventually("the other process has the lock", LONG, || {
            let is_free = try_lock(&queue).expect("no error");
            if is_free {
                queue.unlock().expect("it is ours");
            }
            !is_free
        });
        let begun = Instant::now();
        let taken = units.acquire(2, true).expect("it goes on");
        assert!(begun.elapsed() >= SOON, "{:?}", begun.elapsed());
        assert_eq!(taken.len(), 2, "those that are free");
        holder.kill().expect("it runs");
        holder.wait().expect("it is our child");
    }

    #[test]
    fn a_unit_is_no_link() {
        let folder = tempfile::tempdir().expect("the temporary directory is writable");
        let units = semaphore(folder.path(), 1);
        drop(units.acquire(1, true).expect("it is free"));
        let (unit, elsewhere) = (folder.path().join("units/0"), folder.path().join("x"));
        fs::rename(&unit, &elsewhere).expect("the directory is ours");
        std::os::unix::fs::symlink(&elsewhere, &unit).expect("the directory is ours");
        assert!(units.acquire(1, true).is_err());
    }

    /// A wait would end only after the time given here, as the deadlock of two such threads would.
    #[test]
    fn a_thread_with_a_machine_does_not_wait_for_another() {
        let folder = tempfile::tempdir().expect("the temporary directory is writable");
        let wait_max = deadline(LONG);
        let limits = HostLimits {
            starts: FileSemaphore {
                wait_max,
                ..semaphore(folder.path(), 1)
            },
            memory: FileSemaphore {
                wait_max,
                ..FileSemaphore::new(folder.path(), "memory", 2)
            },
        };
        let (held, other) = (Arc::default(), Arc::default());
        let permit = |held: &Arc<AtomicU32>, planned| {
            MachinePermit::acquire_within(&limits, Arc::clone(held), 512, false, planned)
        };
        let begun = Instant::now();
        let first = permit(&held, None).expect("all is free");
        let second = permit(&held, None).expect("at once, beyond the limits");
        // The first one has started. It keeps its memory.
        first.started();
        assert_eq!(limits.starts.acquire(1, false).expect("no error").len(), 1);
        assert_eq!(limits.memory.acquire(1, false).expect("no error").len(), 0);
        // The runner has allotted memory to the thread of this one.
        let planned = permit(&other, Some(512)).expect("it waits for a start only");
        assert!(begun.elapsed() < wait_max, "a machine waited");
        drop((first, second, planned));
        assert_eq!(limits.memory.acquire(2, false).expect("no error").len(), 2);
        assert_eq!(held.load(Ordering::Relaxed), 0);
    }

    /// Each of the two has what the other lacks, and neither frees it before it has more.
    #[test]
    fn two_threads_with_a_machine_each_get_another() {
        let folder = tempfile::tempdir().expect("the temporary directory is writable");
        let wait_max = deadline(LONG);
        let semaphore = |name| FileSemaphore {
            wait_max,
            ..FileSemaphore::new(folder.path(), name, 2)
        };
        let limits = HostLimits {
            starts: semaphore("starts"),
            memory: semaphore("memory"),
        };
        let both_have_one = Barrier::new(2);
        let test = || {
            let held = Arc::default();
            let permit =
                || MachinePermit::acquire_within(&limits, Arc::clone(&held), 256, false, None);
            let first = permit().expect("one for each");
            both_have_one.wait();
            let begun = Instant::now();
            let second = permit().expect("at once, beyond the limits");
            // The other one's is not free before it has looked, either.
            both_have_one.wait();
            drop((first, second));
            begun.elapsed()
        };
        let waited = thread::scope(|scope| {
            let threads = [scope.spawn(test), scope.spawn(test)];
            threads.map(|thread| thread.join().expect("no panic"))
        });
        assert!(waited.iter().all(|time| *time < wait_max), "{waited:?}");
    }

    #[test]
    fn machines_have_no_more_memory_than_their_test_says_that_it_needs() {
        let held = Arc::default();
        let share = |mib, most| ThreadMemoryShare::reserve(Arc::clone(&held), mib, Some(most));
        let first = share(512, 1024).expect("it is half");
        let beyond = share(513, 1024).expect_err("it is more than the other half");
        assert!(beyond.to_string().contains("1025 MiB"), "{beyond}");
        let second = share(512, 1024).expect("the one that was refused holds nothing");
        drop((first, second));
        assert_eq!(held.load(Ordering::Relaxed), 0);
        assert!(
            share(1, 0).is_err(),
            "a manifest that says nothing allows none"
        );
        let acquired = |planned| MachinePermit::acquire(64, true, Some(planned));
        let one = acquired(64).expect("as planned");
        assert!(acquired(64).is_err(), "they are of the same thread");
        thread::scope(|scope| {
            let other = scope.spawn(|| acquired(64).map(drop));
            other
                .join()
                .expect("no panic")
                .expect("another thread's are its own");
        });
        drop(one);
        acquired(64).map(drop).expect("the first one has ended");
    }

    #[test]
    fn memory_is_shared_out_by_processors_and_by_what_is_there() {
        assert_eq!(memory_units(2, 20_000), 12);
        assert_eq!(memory_units(64, 200_000), 16);
        assert_eq!(memory_units(8, 3_000), 5);
        assert_eq!(memory_units(1, 100), 1);
        assert!(available_mib() > 0);
    }
}
