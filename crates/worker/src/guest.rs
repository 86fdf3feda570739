//! The worker's own side.
//!
//! ```no_run
//! use alknet_worker::{WorkerReply, FrameBlob, CborBody, WorkerRole, enter};
//!
//! fn work(role: WorkerRole) -> Result<(), alknet_worker::GuestError> {
//!     let entered = enter(role)?;
//!     // Threads and devices are made in the warm-up; after it, nothing new can be opened.
//!     let (guest, ()) = entered.seal(|_| Ok::<_, String>(()))?;
//!     loop {
//!         let incoming = guest.next();
//!         if let Some(call) = incoming.call {
//!             let _here = call.on_this_thread();
//!             let reply = WorkerReply::Ok(FrameBlob::Inline(CborBody::from_cbor(vec![0xf6])));
//!             guest.finish(&call, reply, Vec::new(), 0, 0)?;
//!         }
//!     }
//! }
//! ```

mod call;
mod control;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SocketType, sockopt};

pub use call::{GuestCall, ThreadCallGuard};
pub use control::GuestInput;
use control::GuestQueue;

use crate::frame::channel::{self, ChannelRead};
use crate::limits::SEND_AGAIN_MAX;
use crate::setup::{ConfinementReport, Setup, VERSION};
use crate::{
    CallStats, ConfinementGap, Decoder, FromWorkerMessage, GuestError, WorkerFrameError,
    WorkerReply, WorkerRole,
};
use crate::{confine, encode, sys};

/// First argument of a worker's command line.
pub(crate) const VERB: &str = "worker";
/// Bytes of the buffer for the first frame.
const SETUP_SCRATCH: usize = 64 << 10;

/// Whether this process was started as a worker: by its command line, and with a host's socket at descriptor 3.
/// `main` calls this first, before any code uses the process id: a worker in a process namespace of its own is
/// process 1 there.
#[must_use]
pub fn started_as_worker() -> bool {
    let verb = std::env::args_os().nth(1);
    let kind = sys::with_host_socket(|fd| sockopt::socket_type(fd).ok()).flatten();
    verb.is_some_and(|verb| verb == VERB) && kind == Some(SocketType::STREAM)
}

/// Becomes the worker that the host started: finds the host, reads which layers of the sandbox it requires, and sets
/// them up. The caller has started no thread and opened no file before.
///
/// # Errors
/// There is no host, or it expects another role or version. A layer that cannot be set up is no error, but a gap in
/// the report to the host.
pub fn enter(role: WorkerRole) -> Result<ConfinedGuest, GuestError> {
    let confine = |what| move |source| GuestError::Confine { what, source };
    sys::unblock_all().map_err(confine("let signals through"))?;
    sys::abort_ends_with_a_status().map_err(confine("prepare for an abort"))?;
    let host = sys::take_host().ok_or(GuestError::NoHost)?;
    let (setup, decoder) = first_frame(&host)?;
    if setup.version != VERSION {
        return Err(GuestError::Setup(format!("version {}", setup.version)));
    }
    if setup.role != role {
        return Err(GuestError::Setup(format!("role {}", setup.role)));
    }
    let gaps = confine::enter(&setup);
    // The signal for the end of the host's thread was set again just now. The host may have ended before that.
    if !lives(&host) {
        return Err(GuestError::NoHost);
    }
    Ok(ConfinedGuest {
        host,
        setup,
        gaps,
        decoder,
    })
}

/// Reads the frame that the host wrote into the socket before it started this process.
fn first_frame(host: &OwnedFd) -> Result<(Setup, Decoder), GuestError> {
    let mut decoder = Decoder::default();
    let mut scratch = vec![0; SETUP_SCRATCH];
    loop {
        if let Some((setup, _)) = decoder.next()? {
            return Ok((setup, decoder));
        }
        match channel::read(host, &mut decoder, &mut scratch)? {
            ChannelRead::Some(_) => {}
            ChannelRead::End | ChannelRead::Wait => return Err(GuestError::NoHost),
        }
    }
}

/// Whether the other end of the socket is open.
fn lives(host: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(host, PollFlags::IN)];
    let now = Timespec::default();
    let polled = poll(&mut fds, Some(&now));
    polled.is_ok() && !fds[0].revents().contains(PollFlags::HUP)
}

/// A worker inside all layers of its sandbox but the last one.
#[derive(Debug)]
pub struct ConfinedGuest {
    host: OwnedFd,
    setup: Setup,
    gaps: Vec<ConfinementGap>,
    decoder: Decoder,
}

impl ConfinedGuest {
    /// Runs `warm_up`, which starts every thread and opens every device that the role will ever have. Then leaves the
    /// process only the system calls of its role, and reports to the host.
    ///
    /// # Errors
    /// The warm-up fails, or the host has gone.
    pub fn seal<T, E: fmt::Display>(
        mut self,
        warm_up: impl FnOnce(&Guest) -> Result<T, E>,
    ) -> Result<(Guest, T), GuestError> {
        let guest = Guest(Arc::new(GuestShared {
            host: self.host,
            sending: Mutex::default(),
            calls: Mutex::default(),
            queue: GuestQueue::default(),
            // Zero would mean heartbeats without a pause.
            heartbeat: Duration::from_millis(self.setup.heartbeat_ms.max(1)),
        }));
        let (go, wait) = mpsc::channel();
        let control = guest.clone();
        std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || {
                // A worker that never becomes ready reads nothing.
                if let Ok(decoder) = wait.recv() {
                    control::run(&control, decoder);
                }
            })
            .map_err(|source| GuestError::Confine {
                what: "start the control thread",
                source,
            })?;
        let made = warm_up(&guest).map_err(|error| GuestError::WarmUp(error.to_string()))?;
        let rights = self.setup.role.rights(!self.setup.binds.is_empty());
        if let Err(gap) = confine::close_system_calls(rights) {
            self.gaps.push(gap);
        }
        let confined = ConfinementReport { gaps: self.gaps };
        guest.send(&FromWorkerMessage::Ready { confined }, Vec::new())?;
        // The control thread waits for exactly this value.
        let _ = go.send(self.decoder);
        Ok((guest, made))
    }

    /// The role.
    #[must_use]
    pub const fn role(&self) -> WorkerRole {
        self.setup.role
    }
}

/// The worker's end of the channel. Clones share it.
#[derive(Clone, Debug)]
pub struct Guest(Arc<GuestShared>);

#[derive(Debug)]
struct GuestShared {
    host: OwnedFd,
    /// Held while a frame is written, so that frames do not mix.
    sending: Mutex<()>,
    calls: Mutex<HashMap<u64, GuestCall>>,
    queue: GuestQueue,
    heartbeat: Duration,
}

impl Guest {
    /// Waits for the next message of the host. Aborts come here as well, after the flag of their call is set.
    #[must_use]
    pub fn next(&self) -> GuestInput {
        self.0.queue.pop()
    }

    /// The next message, if one waits.
    #[must_use]
    pub fn try_next(&self) -> Option<GuestInput> {
        self.0.queue.try_pop()
    }

    /// Sends a message. Any thread may call it.
    ///
    /// # Errors
    /// The message makes no valid frame, or the host has gone.
    pub fn send(
        &self,
        message: &FromWorkerMessage,
        fds: Vec<OwnedFd>,
    ) -> Result<(), WorkerFrameError> {
        let frame = encode(message, fds.len())?;
        let send = || {
            // Not held in the pause: heartbeats have no descriptors, and pass.
            let _one_at_a_time = lock(&self.0.sending);
            channel::send_all(self.0.host.as_fd(), &frame, &fds)
        };
        again_while_refused(send, std::thread::sleep)?;
        Ok(())
    }

    /// Answers a call. Its heartbeats end with this.
    ///
    /// # Errors
    /// The errors of [`Self::send`].
    pub fn finish(
        &self,
        call: &GuestCall,
        reply: WorkerReply,
        fds: Vec<OwnedFd>,
        heap_peak: u64,
        external_peak: u64,
    ) -> Result<(), WorkerFrameError> {
        let stats = CallStats {
            ticks: call.ticks(),
            cpu_us: call.cpu_us(),
            heap_peak,
            external_peak,
        };
        let (sid, id) = (call.sid(), call.id());
        let result = FromWorkerMessage::Result {
            sid,
            id,
            reply,
            stats,
        };
        // Its heartbeats go on until the host has the answer, which the kernel may refuse for a while.
        let sent = self.send(&result, fds);
        lock(&self.0.calls).remove(&id);
        sent
    }
}

/// Sends once more, after pauses, while the kernel refuses the descriptors: others of this user left theirs unread.
/// Gives up after [`SEND_AGAIN_MAX`].
fn again_while_refused(
    mut send: impl FnMut() -> io::Result<()>,
    pause: impl Fn(Duration),
) -> io::Result<()> {
    for _ in 0..SEND_AGAIN_MAX.as_millis() {
        match send() {
            Err(error) if channel::is_too_many_unread(&error) => pause(Duration::from_millis(1)),
            sent => return sent,
        }
    }
    send()
}

/// Locks `mutex`. A thread that panicked while it held the lock left no half-made change: each holds it for one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused() -> io::Error {
        rustix::io::Errno::TOOMANYREFS.into()
    }

    #[test]
    fn descriptors_that_the_kernel_refuses_are_sent_a_little_later() {
        let mut tries = 0;
        let sent = again_while_refused(
            || {
                tries += 1;
                if tries < 5 { Err(refused()) } else { Ok(()) }
            },
            |_| {},
        );
        assert!(sent.is_ok() && tries == 5);
        // It ends, and with the kernel's own error.
        let outcome = again_while_refused(|| Err(refused()), |_| {});
        let error = outcome.expect_err("it is refused for ever");
        assert!(channel::is_too_many_unread(&error), "{error}");
        // Another error is no reason to wait.
        let mut tries = 0;
        let broken = again_while_refused(
            || {
                tries += 1;
                Err(io::ErrorKind::BrokenPipe.into())
            },
            |_| {},
        );
        assert!(broken.is_err() && tries == 1);
    }
}
