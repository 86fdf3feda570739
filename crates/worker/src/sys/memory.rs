//! The memory of processes: how much they have, and returning it to the system.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use super::clock::THREADS_SEEN_MAX;

/// Returns memory to the system that the C library keeps for later. Each thread has an arena of its own: many threads
/// that have freed much would together hold more than a worker may.
pub fn give_back_memory() {
    // SAFETY: it touches only memory that the allocator itself holds free, under its own locks.
    unsafe { libc::malloc_trim(0) };
}

/// Bytes of memory that belong to a process alone. `None` for one that has ended, or whose files in /proc cannot be read.
/// Memory in mapped files and shared memory, which other processes may have as well, is not among them.
pub(crate) fn private_bytes(pid: i32) -> Option<u64> {
    let pages = memory_count(pid, "statm", private_pages)?;
    Some(pages.saturating_mul(rustix::param::page_size() as u64))
}

/// Bytes of the page tables of a process. `None` as for [`private_bytes`]. Unlike the counts of pages they also count pages
/// that many mappings share, and the page of zeros.
pub(crate) fn page_table_bytes(pid: i32) -> Option<u64> {
    memory_count(pid, "status", table_kib).map(|kib| kib.saturating_mul(1024))
}

/// Reads a count of a process's memory from this file of /proc. `None` for a process without memory, because it ends or has
/// ended, and if the file cannot be read, for example because this process has no descriptor left.
///
/// A process whose first thread has ended shows no memory in its own files, while its other threads have all of it. Code
/// that has taken a worker over can end that thread. A process that ends shows the same for a moment, so the host does not
/// take it for a violation, but reads the files of the other threads.
fn memory_count(pid: i32, file: &str, parse: fn(&str) -> Option<u64>) -> Option<u64> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let read = |folder: &Path| parse(&fs::read_to_string(folder.join(file)).ok()?);
    read(&process).or_else(|| {
        // A thread other than the first leaves this list as it ends, so one of these few has the memory.
        let threads = fs::read_dir(process.join("task")).ok()?;
        let mut threads = threads.flatten().take(THREADS_SEEN_MAX);
        threads.find_map(|thread| read(&thread.path()))
    })
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
    use std::ptr;
    use std::time::Duration;

    use alknet_test_support::eventually;
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
            assert!(pid > 0, "{}", std::io::Error::last_os_error());
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
        let statm = format!("/proc/{pid}/statm");
        eventually("the thread has ended", Duration::from_secs(60), || {
            fs::read_to_string(&statm).is_ok_and(|text| text.starts_with("0 "))
        });
        let private = private_bytes(pid).expect("it lives");
        assert!(private >= held.len() as u64 / 2, "{private}");
        assert!(page_table_bytes(pid).is_some_and(|bytes| bytes > 0));
        drop((process, held));
        assert_eq!((private_bytes(pid), page_table_bytes(pid)), (None, None));
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
            let tables = page_table_bytes(own).expect("it lives");
            for at in mapped {
                // SAFETY: as above, and nothing refers to it.
                assert_eq!(unsafe { libc::munmap(at, BYTES) }, 0);
            }
            assert!(tables > KILLED_TABLES_MAX, "{tables} bytes of tables");
        }
    }
}
