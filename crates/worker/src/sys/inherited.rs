//! The descriptor that a worker inherits.

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::setup::HOST_FD;

/// Whether the descriptor has been taken.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Passes descriptor 3 to `inspect`, if it is open.
pub(crate) fn with_host_socket<T>(inspect: impl FnOnce(BorrowedFd<'_>) -> T) -> Option<T> {
    // SAFETY: a number only; one that is no descriptor is refused with EBADF.
    if unsafe { libc::fcntl(HOST_FD, libc::F_GETFD) } < 0 {
        return None;
    }
    // SAFETY: it is open, and at the very start of a program no other code closes it meanwhile.
    Some(inspect(unsafe { BorrowedFd::borrow_raw(HOST_FD) }))
}

/// Takes descriptor 3. Only the first call gets it.
pub(crate) fn take_host() -> Option<OwnedFd> {
    with_host_socket(|_| ())?;
    if TAKEN.swap(true, Ordering::AcqRel) {
        return None;
    }
    // SAFETY: it is open, was placed there by the host that started this program, and is taken only
    // once.
    Some(unsafe { OwnedFd::from_raw_fd(HOST_FD) })
}
