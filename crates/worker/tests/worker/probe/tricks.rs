//! Acts that no honest worker commits.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;
use std::sync::Mutex;

use crate::act::ProbeSyscall;

/// The host's socket.
const HOST: i32 = 3;

/// Descriptors that this process has.
pub(crate) fn open_descriptors() -> Vec<i32> {
    // SAFETY: numbers only.
    (0..64)
        .filter(|fd| unsafe { libc::fcntl(*fd, libc::F_GETFD) } >= 0)
        .collect()
}

/// The host's descriptors, none of which the probe returns.
static KEPT: Mutex<Vec<OwnedFd>> = Mutex::new(Vec::new());

/// Keeps the descriptors, and a map of each.
pub(crate) fn hold_descriptors(fds: Vec<OwnedFd>) {
    for fd in &fds {
        // SAFETY: a new map at a place of the kernel's choice, which is not read and never unmapped.
        unsafe {
            libc::mmap(
                ptr::null_mut(),
                about(fd).0,
                libc::PROT_READ,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            );
        }
    }
    KEPT.lock().expect("no thread panics with it").extend(fds);
}

/// How many there are, and the memory behind them.
pub(crate) fn kept_descriptors() -> (usize, usize) {
    let kept = KEPT.lock().expect("no thread panics with it");
    (kept.len(), kept.iter().map(|fd| about(fd).1).sum())
}

/// Length of a file, and bytes of its pages. Without the C library, whose system call the sandbox refuses.
fn about(fd: &OwnedFd) -> (usize, usize) {
    let about = rustix::fs::fstat(fd).expect("a descriptor of the host's");
    let size = |number: i64| usize::try_from(number).expect("not below nothing");
    (size(about.st_size), size(about.st_blocks) * 512)
}

pub(crate) fn allocate(bytes: u64) {
    let mut memory = vec![0_u8; usize::try_from(bytes).expect("it fits")];
    for page in memory.chunks_mut(4096) {
        page[0] = 1;
    }
    std::hint::black_box(&memory);
    std::mem::forget(memory);
}

/// As many new descriptors as a frame may have, which the host recognizes by their name.
pub(crate) fn hoarded() -> Vec<OwnedFd> {
    let one = |_| {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        rustix::fs::memfd_create(c"hoarded", flags).expect("memory")
    };
    (0..alknet_worker::limits::FRAME_FDS_MAX).map(one).collect()
}

/// Zero when it worked.
pub(crate) fn share(bytes: u64) -> i32 {
    let bytes = usize::try_from(bytes).expect("it fits");
    // SAFETY: a new map at a place of the kernel's choice, which is written within its bounds and never unmapped.
    unsafe {
        let start = libc::mmap(
            ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        if start == libc::MAP_FAILED {
            return errno();
        }
        for at in (0..bytes).step_by(4096) {
            start.cast::<u8>().add(at).write_volatile(1);
        }
    }
    0
}

pub(crate) fn threads(most: u64) -> u64 {
    let stays = || {
        std::thread::Builder::new()
            .stack_size(64 << 10)
            .spawn(std::thread::park)
    };
    (0..most).take_while(|_| stays().is_ok()).count() as u64
}

/// Reads a page of a map whose file has shrunk.
pub(crate) fn bus() -> ! {
    // SAFETY: that it is not safe is the point: the kernel answers with SIGBUS.
    unsafe {
        let memory = libc::memfd_create(c"probe".as_ptr(), 0);
        libc::ftruncate(memory, 8192);
        let start = libc::mmap(
            ptr::null_mut(),
            8192,
            libc::PROT_READ,
            libc::MAP_SHARED,
            memory,
            0,
        );
        libc::ftruncate(memory, 0);
        std::hint::black_box(start.cast::<u8>().read_volatile());
    }
    std::process::exit(3)
}

pub(crate) fn segv() {
    // SAFETY: that it is not safe is the point.
    unsafe { ptr::without_provenance_mut::<u8>(8).write_volatile(1) };
}

/// Closes the channel and stays alive. The control thread would end the process when it notices.
pub(crate) fn close_channel() -> ! {
    if halt_control_thread().is_none() {
        // SAFETY: a number only. Closing alone would not end the channel while another thread waits
        // in it.
        unsafe { libc::shutdown(HOST, libc::SHUT_RDWR) };
    }
    loop {
        std::thread::park();
    }
}

pub(crate) fn send_raw(bytes: &[u8]) {
    // SAFETY: the bytes are ours for as long as the call takes.
    unsafe { libc::send(HOST, bytes.as_ptr().cast(), bytes.len(), 0) };
}

/// One byte with 30 descriptors.
pub(crate) fn send_many_descriptors() {
    const MANY: usize = 30;
    let fds = [HOST; MANY];
    let mut byte = 4_u8;
    let mut part = libc::iovec {
        iov_base: (&raw mut byte).cast(),
        iov_len: 1,
    };
    let bytes = size_of_val(&fds);
    let mut control = [0_u64; 64];
    // SAFETY: the control buffer is aligned and larger than the one message in it; everything
    // outlives the call.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(u32::try_from(bytes).expect("few")) as usize;
        let first = libc::CMSG_FIRSTHDR(&raw const message);
        (*first).cmsg_level = libc::SOL_SOCKET;
        (*first).cmsg_type = libc::SCM_RIGHTS;
        (*first).cmsg_len = libc::CMSG_LEN(u32::try_from(bytes).expect("few")) as usize;
        ptr::copy_nonoverlapping(fds.as_ptr().cast::<u8>(), libc::CMSG_DATA(first), bytes);
        libc::sendmsg(HOST, &raw const message, 0);
    }
}

extern "C" fn for_ever(_: libc::c_int) {
    loop {
        // SAFETY: it takes a number, and a signal handler may call it.
        unsafe { libc::sleep(3600) };
    }
}

extern "C" fn end_thread(_: libc::c_int) {
    // SAFETY: it takes a number and ends this thread alone, which has nothing that other threads wait for.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
}

/// Sends the control thread, which is the first one started, into a signal handler that never returns. Returns an
/// error number if that did not work.
pub(crate) fn halt_control_thread() -> Option<i32> {
    interrupt(1, libc::SIGUSR1, for_ever)
}

/// Ends the first thread of this process, which only waits, and no other one. Returns an error number if that did not
/// work.
pub(crate) fn end_first_thread() -> Option<i32> {
    interrupt(0, libc::SIGUSR2, end_thread)
}

/// Sends a thread, by its place among those that were started, into a handler of this signal. Returns an error number if
/// that did not work.
fn interrupt(place: i32, signal: i32, handler: extern "C" fn(libc::c_int)) -> Option<i32> {
    // SAFETY: the handlers touch nothing; the number of the thread is this process's own.
    let outcome = unsafe {
        libc::signal(signal, handler as *const () as usize);
        let pid = libc::getpid();
        libc::syscall(libc::SYS_tgkill, pid, pid + place, signal)
    };
    (outcome != 0).then(errno)
}

/// Stops the heartbeats. Returns an error number if that did not work; else it does not return.
pub(crate) fn silence() -> i32 {
    if let Some(errno) = halt_control_thread() {
        return errno;
    }
    loop {
        std::thread::park();
    }
}

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(-1)
}

/// Tries a call. Zero when it worked.
pub(crate) fn attempt(call: ProbeSyscall) -> i32 {
    if matches!(call, ProbeSyscall::Thread) {
        let thread = std::thread::Builder::new().spawn(|| {});
        return match thread.map(std::thread::JoinHandle::join) {
            Ok(_) => 0,
            Err(error) => error.raw_os_error().unwrap_or(-1),
        };
    }
    // SAFETY: each call gets numbers and addresses of constants, or of memory that it makes itself;
    // that most are refused is the point.
    let outcome = unsafe { raw(call) };
    if outcome < 0 { errno() } else { 0 }
}

/// # Safety
/// For a process that may end of it.
unsafe fn raw(call: ProbeSyscall) -> i64 {
    let none = ptr::null::<u8>();
    // SAFETY: as above.
    unsafe {
        match call {
            ProbeSyscall::Bpf => libc::syscall(libc::SYS_bpf, 0, none, 0),
            ProbeSyscall::Connect => {
                let address: libc::sockaddr_un = std::mem::zeroed();
                let bytes = size_of::<libc::sockaddr_un>() as u32;
                libc::connect(HOST, (&raw const address).cast(), bytes).into()
            }
            ProbeSyscall::Exec => {
                libc::syscall(libc::SYS_execve, c"/proc/self/exe".as_ptr(), none, none)
            }
            ProbeSyscall::Fork => {
                let pid = libc::fork();
                if pid == 0 {
                    libc::_exit(0);
                }
                pid.into()
            }
            ProbeSyscall::KillEverybody => libc::kill(-1, 0).into(),
            ProbeSyscall::KillParent(pid) => libc::kill(pid, libc::SIGKILL).into(),
            ProbeSyscall::MapExec => map(libc::PROT_READ | libc::PROT_EXEC),
            ProbeSyscall::Mount => libc::mount(
                c"none".as_ptr(),
                c"/".as_ptr(),
                c"tmpfs".as_ptr(),
                0,
                ptr::null(),
            )
            .into(),
            ProbeSyscall::Open => libc::open(c"/etc/passwd".as_ptr(), libc::O_RDONLY).into(),
            ProbeSyscall::OutOfBand(number) => {
                let mut byte = 0_u8;
                let mut part = libc::iovec {
                    iov_base: (&raw mut byte).cast(),
                    iov_len: 1,
                };
                let mut message: libc::msghdr = std::mem::zeroed();
                message.msg_iov = &raw mut part;
                message.msg_iovlen = 1;
                let flags = libc::MSG_OOB | libc::MSG_DONTWAIT;
                match number {
                    libc::SYS_sendmsg | libc::SYS_recvmsg => {
                        libc::syscall(number, HOST, &raw mut message, flags)
                    }
                    _ => libc::syscall(number, HOST, &raw mut byte, 1_usize, flags, none, none),
                }
            }
            ProbeSyscall::ProtectExec => {
                let prot = libc::PROT_READ | libc::PROT_WRITE;
                let start = pages(prot);
                libc::mprotect(start, 4096, libc::PROT_READ | libc::PROT_EXEC).into()
            }
            ProbeSyscall::Ptrace(pid) => {
                libc::syscall(libc::SYS_ptrace, libc::PTRACE_ATTACH, pid, 0, 0)
            }
            ProbeSyscall::Setns => libc::setns(HOST, 0).into(),
            ProbeSyscall::Signal(pid) => libc::syscall(libc::SYS_tgkill, pid, pid, libc::SIGKILL),
            ProbeSyscall::Socket => libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0).into(),
            ProbeSyscall::Stat => {
                let mut stat: libc::stat = std::mem::zeroed();
                libc::stat(c"/".as_ptr(), &raw mut stat).into()
            }
            ProbeSyscall::Thread => 0,
            ProbeSyscall::Unshare => libc::unshare(libc::CLONE_NEWUSER).into(),
        }
    }
}

/// # Safety
/// None: the map is new.
unsafe fn pages(protection: i32) -> *mut libc::c_void {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new map at a place of the kernel's choice.
    unsafe { libc::mmap(ptr::null_mut(), 4096, protection, flags, -1, 0) }
}

/// # Safety
/// As [`pages`].
unsafe fn map(protection: i32) -> i64 {
    // SAFETY: as above.
    let start = unsafe { pages(protection) };
    if start == libc::MAP_FAILED { -1 } else { 0 }
}
