//! Signals in the worker, and its immediate end.

use std::io;
use std::mem::MaybeUninit;

/// Exit status of a worker that aborts, as a shell shows SIGABRT. In a process namespace of its own a worker is
/// process 1, whose own SIGABRT the kernel ignores (pid_namespaces(7)).
pub(crate) const ABORTED_STATUS: i32 = 128 + libc::SIGABRT;

/// Unblocks all signals, because the mask is inherited across the start.
pub(crate) fn unblock_all() -> io::Result<()> {
    let mut none = MaybeUninit::uninit();
    // SAFETY: sigemptyset fills what it is given; the mask is then ours to read.
    let outcome = unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut())
    };
    if outcome != 0 {
        return Err(io::Error::from_raw_os_error(outcome));
    }
    Ok(())
}

/// Makes an abort end the process with [`ABORTED_STATUS`], also as process 1.
pub(crate) fn abort_ends_with_a_status() -> io::Result<()> {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a zeroed sigaction is a valid one; the handler calls nothing but _exit, which is safe
    // in a handler.
    let outcome = unsafe {
        action.assume_init_mut().sa_sigaction = on_abort as *const () as usize;
        libc::sigaction(libc::SIGABRT, action.as_ptr(), std::ptr::null_mut())
    };
    if outcome != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

extern "C" fn on_abort(_: libc::c_int) {
    end_now(ABORTED_STATUS)
}

/// Ends the process without another instruction in user space: no destructor and no handler runs.
pub(crate) fn end_now(status: i32) -> ! {
    // SAFETY: _exit takes a number and does not return.
    unsafe { libc::_exit(status) }
}
