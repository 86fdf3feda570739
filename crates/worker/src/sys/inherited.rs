//! The descriptor that a worker is born with.

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::setup::HOST_FD;

/// Whether it has been taken.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Lets `look` at descriptor 3, if there is one.
pub(crate) fn look_at_host<T>(look: impl FnOnce(BorrowedFd<'_>) -> T) -> Option<T> {
    // SAFETY: a number only; one that is no descriptor is refused with EBADF.
    if unsafe { libc::fcntl(HOST_FD, libc::F_GETFD) } < 0 {
        return None;
    }
    // SAFETY: it is open, and at the very start of a program no other code closes it meanwhile.
    Some(look(unsafe { BorrowedFd::borrow_raw(HOST_FD) }))
}

/// Takes descriptor 3. Once: a second taker gets nothing.
pub(crate) fn take_host() -> Option<OwnedFd> {
    look_at_host(|_| ())?;
    if TAKEN.swap(true, Ordering::AcqRel) {
        return None;
    }
    // SAFETY: it is open, was placed there by the host that started this program, and is taken only
    // once.
    Some(unsafe { OwnedFd::from_raw_fd(HOST_FD) })
}
