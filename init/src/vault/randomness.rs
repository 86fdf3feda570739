//! Waits for the kernel's generator, so that PID 1 makes no key before it has been fed.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use crate::log::InitLog;

/// How long PID 1 waits at most.
const FED_MAX: Duration = Duration::from_secs(60);
/// After how long the log says that PID 1 waits for this.
const SAY_AFTER: Duration = Duration::from_millis(250);

/// Waits until the kernel's generator is ready, and returns whether it is. This blocks, so PID 1's
/// loop must not call it.
///
/// The request has to wait: only then does a kernel that nothing feeds gather randomness itself,
/// from the jitter of the processor. That wait has no end of its own, so a thread waits.
pub(crate) fn wait_for_randomness(log: &InitLog) -> bool {
    let (fed, ready) = channel();
    let waiting = thread::Builder::new()
        .name("randomness".to_owned())
        .spawn(move || {
            let mut byte = [0];
            // The receiver is gone if this took too long.
            let _ = fed.send(getrandom::fill(&mut byte).is_ok());
        });
    if waiting.is_err() {
        return false;
    }
    match ready.recv_timeout(SAY_AFTER) {
        Ok(ready) => ready,
        Err(RecvTimeoutError::Disconnected) => false,
        Err(RecvTimeoutError::Timeout) => {
            let waits = "waiting for the kernel to gather randomness before a key is made";
            log.warn(waits);
            // At the first boot the console is not there yet.
            eprintln!("alknet: {waits}");
            ready.recv_timeout(FED_MAX).unwrap_or(false)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_kernel_has_randomness() {
        assert!(wait_for_randomness(&InitLog::default()));
    }
}
