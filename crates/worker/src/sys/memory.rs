//! The memory of processes: how much they have, and returning it to the system.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt as _;

use rustix::fs::{Dir, Mode, OFlags, openat};

use super::clock::THREADS_SEEN_MAX;

/// How files and folders of /proc are opened.
const FILE: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC);
const FOLDER: OFlags = FILE.union(OFlags::DIRECTORY);
/// The files with the counts of pages, and with the size of the page tables (proc_pid_statm(5), proc_pid_status(5)).
const STATM: &CStr = c"statm";
const STATUS: &CStr = c"status";
/// More bytes than seven numbers have.
const STATM_BYTES: usize = 256;

/// Returns memory to the system that the C library keeps for later. Each thread has an arena of its own: many threads
/// that have freed much would together hold more than a worker may.
pub fn give_back_memory() {
    // SAFETY: it touches only memory that the allocator itself holds free, under its own locks.
    unsafe { libc::malloc_trim(0) };
}

/// The memory of one process, as its files in /proc say it.
///
/// They are opened while the process lives, and belong to it for ever: once it was collected they cannot be read, also if
/// another process has its number by then.
#[derive(Debug)]
pub(crate) struct ProcessMemory {
    /// Its folder in /proc.
    folder: OwnedFd,
    /// The counts of its first thread.
    statm: File,
}

impl ProcessMemory {
    /// Opens the files of a process that nothing can have collected yet.
    ///
    /// # Errors
    /// /proc cannot be read, or this process has no descriptor left.
    pub(crate) fn open(pid: i32) -> io::Result<Self> {
        let folder = rustix::fs::open(format!("/proc/{pid}"), FOLDER, Mode::empty())?;
        let statm = openat(&folder, STATM, FILE, Mode::empty())?;
        Ok(Self {
            folder,
            statm: statm.into(),
        })
    }

    /// Bytes of memory that belong to the process alone. `None` for one that has no memory, because it ends or has ended.
    /// Memory in mapped files and shared memory, which other processes may have as well, is not among them.
    pub(crate) fn private_bytes(&self) -> Option<u64> {
        let mut text = [0; STATM_BYTES];
        // The kernel counts at each read from the beginning.
        let read = self.statm.read_at(&mut text, 0).ok();
        let of_first = read.and_then(|bytes| {
            let text = std::str::from_utf8(&text[..bytes]).ok()?;
            private_pages(text)
        });
        let pages = of_first.or_else(|| self.count_of_threads(STATM, private_pages))?;
        Some(pages.saturating_mul(rustix::param::page_size() as u64))
    }

    /// Bytes of the page tables of the process. `None` as for [`private_bytes`](Self::private_bytes), and if this process
    /// has no descriptor left. Unlike the counts of pages they also count pages that many mappings share, and the page of
    /// zeros.
    pub(crate) fn page_table_bytes(&self) -> Option<u64> {
        let of_first = read_in(&self.folder, STATUS).and_then(|text| table_kib(&text));
        let kib = of_first.or_else(|| self.count_of_threads(STATUS, table_kib))?;
        Some(kib.saturating_mul(1024))
    }

    /// Reads a count from this file of each of the process's threads, until one of them has memory.
    ///
    /// A process whose first thread has ended shows no memory in its own files, while its other threads have all of it. Code
    /// that has taken a worker over can end that thread. A process that ends shows the same for a moment, so the host does
    /// not take it for a violation, but reads the files of the other threads.
    fn count_of_threads(&self, file: &CStr, parse: fn(&str) -> Option<u64>) -> Option<u64> {
        let tasks = openat(&self.folder, c"task", FOLDER, Mode::empty()).ok()?;
        let threads = Dir::read_from(&tasks).ok()?.flatten();
        // The folder lists itself and its parent, too.
        let threads = threads.filter(|thread| !thread.file_name().to_bytes().starts_with(b"."));
        // A thread other than the first leaves this list as it ends, so one of these few has the memory.
        threads.take(THREADS_SEEN_MAX).find_map(|thread| {
            let folder = openat(&tasks, thread.file_name(), FOLDER, Mode::empty()).ok()?;
            parse(&read_in(&folder, file)?)
        })
    }
}

/// The text of this file of a folder in /proc. `None` if it cannot be read.
fn read_in(folder: &OwnedFd, name: &CStr) -> Option<String> {
    let file = openat(folder, name, FILE, Mode::empty()).ok()?;
    io::read_to_string(File::from(file)).ok()
}

/// Resident pages that no other process can have. `None` if the thread has no memory.
fn private_pages(statm: &str) -> Option<u64> {
    // proc_pid_statm(5): the size, then the resident pages, then how many of these are shared.
    let mut pages = statm.split(' ').map(str::parse::<u64>);
    let size = pages.next()?.ok()?;
    let resident = pages.next()?.ok()?;
    let shared = pages.next()?.ok()?;
    (size > 0).then(|| resident.saturating_sub(shared))
}

/// Size of the page tables, in units of 1,024 bytes. `None` if the thread has no memory.
fn table_kib(status: &str) -> Option<u64> {
    // proc_pid_status(5)
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmPTE:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Frees the private memory of a process that was killed, on the caller's thread, and unmaps its other private mappings:
/// on a busy machine the process itself would first have to get a processor. Returns whether it did, which no kernel
/// before Linux 5.15 does. Refused for a process that was not killed.
pub(crate) fn release_killed(pidfd: impl AsFd) -> bool {
    let pidfd = pidfd.as_fd().as_raw_fd();
    // SAFETY: the call takes two numbers and no memory (process_mrelease(2)), and the descriptor is borrowed meanwhile.
    unsafe { libc::syscall(libc::SYS_process_mrelease, pidfd, 0) == 0 }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;
    use std::{fs, ptr};

    use alknet_test_support::{eventually, skip};
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use rustix::process::{
        Pid, PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open, pidfd_send_signal,
        set_parent_process_death_signal, waitpid,
    };

    use super::*;
    use crate::limits::KILLED_TABLES_MAX;

    /// A process whose first thread has ended, or is about to, while a second one stays.
    struct ProcessWithoutFirstThread(Pid);

    impl ProcessWithoutFirstThread {
        fn start() -> Self {
            const STACK: usize = 64 << 10;
            // As the C library starts a thread, which this one needs nothing of.
            const THREAD: i32 = libc::CLONE_VM
                | libc::CLONE_FS
                | libc::CLONE_FILES
                | libc::CLONE_SIGHAND
                | libc::CLONE_THREAD
                | libc::CLONE_SYSVSEM;
            let writable = libc::PROT_READ | libc::PROT_WRITE;
            let own = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            // SAFETY: the kernel chooses where the new mapping lies. The child's second thread alone uses it.
            let stack = unsafe { libc::mmap(ptr::null_mut(), STACK, writable, own, -1, 0) };
            assert_ne!(stack, libc::MAP_FAILED);
            // SAFETY: the child makes system calls only: another thread may have held a lock when it was copied.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                // SAFETY: the new thread has the stack for itself, and all that it shares is of a thread that ends.
                unsafe {
                    let top = stack.byte_add(STACK);
                    libc::clone(stay, top, THREAD, ptr::null_mut());
                    libc::syscall(libc::SYS_exit, 0);
                }
            }
            assert!(pid > 0, "{}", io::Error::last_os_error());
            Self(Pid::from_raw(pid).expect("a process id"))
        }
    }

    impl Drop for ProcessWithoutFirstThread {
        fn drop(&mut self) {
            // It may have ended, where the test fails.
            let _ = kill_process(self.0, Signal::KILL);
            let _ = waitpid(Some(self.0), WaitOptions::empty());
        }
    }

    extern "C" fn stay(_: *mut libc::c_void) -> libc::c_int {
        // Without it, it would outlive a test that is killed.
        let _ = set_parent_process_death_signal(Some(Signal::KILL));
        loop {
            // SAFETY: it takes nothing.
            unsafe { libc::pause() };
        }
    }

    /// The attack: a worker ends the first of its threads, and fills memory by the others.
    #[test]
    fn the_memory_of_a_process_counts_after_its_first_thread_has_ended() {
        const BYTES: usize = 8 << 20;
        // The process is a copy of this one, also of this.
        let held = std::hint::black_box(vec![1_u8; BYTES]);
        let process = ProcessWithoutFirstThread::start();
        let pid = process.0.as_raw_nonzero().get();
        let memory = ProcessMemory::open(pid).expect("it lives");
        let statm = format!("/proc/{pid}/statm");
        eventually("the thread has ended", Duration::from_secs(60), || {
            fs::read_to_string(&statm).is_ok_and(|text| text.starts_with("0 "))
        });
        let private = memory.private_bytes().expect("it lives");
        assert!(private >= held.len() as u64 / 2, "{private}");
        assert!(memory.page_table_bytes().is_some_and(|bytes| bytes > 0));
        drop((process, held));
        assert_eq!(counts(&memory), (None, None));
    }

    fn counts(memory: &ProcessMemory) -> (Option<u64>, Option<u64>) {
        (memory.private_bytes(), memory.page_table_bytes())
    }

    /// A copy of this process that does nothing.
    struct SleepingCopy(Pid);

    impl SleepingCopy {
        /// Starts it, with this number if one is given.
        fn start(number: Option<libc::pid_t>) -> io::Result<Self> {
            // SAFETY: all fields are numbers, for which zero means "none".
            let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
            arguments.exit_signal = libc::SIGCHLD as u64;
            if let Some(number) = &number {
                arguments.set_tid = ptr::from_ref(number) as u64;
                arguments.set_tid_size = 1;
            }
            let size = size_of::<libc::clone_args>();
            // SAFETY: the arguments are a clone_args and its size, and they and the number outlive the call. No memory is
            // shared with the child, which makes system calls only: another thread may have held a lock when it was copied.
            let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size) };
            if pid == 0 {
                stay(ptr::null_mut());
            }
            let pid = i32::try_from(pid).ok().filter(|pid| *pid > 0);
            let pid = pid.and_then(Pid::from_raw);
            pid.map(Self).ok_or_else(io::Error::last_os_error)
        }

        fn number(&self) -> libc::pid_t {
            self.0.as_raw_nonzero().get()
        }
    }

    impl Drop for SleepingCopy {
        fn drop(&mut self) {
            // It may have ended, where the test fails.
            let _ = kill_process(self.0, Signal::KILL);
            let _ = waitpid(Some(self.0), WaitOptions::empty());
        }
    }

    /// The attack: a worker ends, and another process gets its number. The host would take that one's memory for the worker's.
    #[test]
    fn the_memory_of_the_next_process_with_the_same_number_is_not_read() {
        let first = SleepingCopy::start(None).expect("it starts");
        let number = first.number();
        let memory = ProcessMemory::open(number).expect("it lives");
        assert!(memory.private_bytes().is_some_and(|bytes| bytes > 0));
        assert!(memory.page_table_bytes().is_some_and(|bytes| bytes > 0));
        drop(first);
        assert_eq!(counts(&memory), (None, None));
        let limit = Duration::from_secs(60);
        let second = eventually("the number is free", limit, || {
            match SleepingCopy::start(Some(number)) {
                // Another test has started a process meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => None,
                started => Some(started),
            }
        });
        let second = match second {
            Ok(second) => second,
            Err(error) => skip!("root", "no process gets a chosen number: {error}"),
        };
        assert_eq!(second.number(), number);
        let others = ProcessMemory::open(number).expect("it lives");
        assert!(others.private_bytes().is_some_and(|bytes| bytes > 0));
        assert_eq!(counts(&memory), (None, None));
    }

    #[test]
    fn only_a_killed_process_loses_its_memory() {
        let mut child = Command::new("sleep").arg("600").spawn().expect("it starts");
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.expect("a process id");
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).expect("it lives");
        assert!(!release_killed(&pidfd));
        assert_eq!(child.try_wait().expect("ours"), None);
        // Whether the process has ended before, or is about to, it has lost its memory then.
        pidfd_send_signal(&pidfd, Signal::KILL).expect("it lives");
        release_killed(&pidfd);
        child.wait().expect("ours");
        assert!(!release_killed(&pidfd));
    }

    /// The attack: the pages of one small file, mapped hundreds of times, or the page of zeros, are no private memory, and
    /// take long to unmap.
    #[test]
    fn pages_that_are_mapped_often_count_each_time() {
        const BYTES: usize = 4 << 20;
        let file = memfd_create("few pages", MemfdFlags::CLOEXEC).expect("memory");
        ftruncate(&file, BYTES as u64).expect("memory");
        let own = i32::try_from(std::process::id()).expect("a process id");
        let memory = ProcessMemory::open(own).expect("it lives");
        for private in [libc::MAP_PRIVATE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS] {
            let fd = match private & libc::MAP_ANONYMOUS {
                0 => file.as_raw_fd(),
                _ => -1,
            };
            let mut mapped = Vec::new();
            for _ in 0..320 {
                // SAFETY: the kernel chooses where the new mapping lies, which this test alone uses, by no reference.
                let at =
                    unsafe { libc::mmap(ptr::null_mut(), BYTES, libc::PROT_READ, private, fd, 0) };
                assert_ne!(at, libc::MAP_FAILED);
                for advice in [libc::MADV_NOHUGEPAGE, libc::MADV_POPULATE_READ] {
                    // SAFETY: it is the mapping from above, and neither advice changes what it holds.
                    assert_eq!(unsafe { libc::madvise(at, BYTES, advice) }, 0);
                }
                mapped.push(at);
            }
            let tables = memory.page_table_bytes().expect("it lives");
            for at in mapped {
                // SAFETY: as above, and nothing refers to it.
                assert_eq!(unsafe { libc::munmap(at, BYTES) }, 0);
            }
            assert!(tables > KILLED_TABLES_MAX, "{tables} bytes of tables");
        }
    }
}
