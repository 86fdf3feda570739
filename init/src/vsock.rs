//! A console for the owner of the hypervisor, over `AF_VSOCK`, which is on no network.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept4, bind, listen, socket,
};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use crate::machine::MachineEvent;

/// The port of a console.
pub(crate) const PORT: u32 = 7474;
/// Callers that wait to be accepted.
const BACKLOG: i32 = 4;

/// Waits for callers, as a task of the current runtime. Every caller is the host: the guest's own
/// processes have no such address without the loopback device, which the kernel does not have.
///
/// # Errors
/// This machine has no vsock device.
pub(crate) fn watch(events: &mpsc::Sender<MachineEvent>) -> io::Result<()> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
    bind(
        socket.as_raw_fd(),
        &VsockAddr::new(libc::VMADDR_CID_ANY, PORT),
    )?;
    listen(&socket, Backlog::new(BACKLOG)?)?;
    // SAFETY: the socket owns its descriptor. No other code closes it, and it is never replaced
    // inside the `AsyncFd`.
    let socket = unsafe { AsyncFd::register(socket) }.map_err(|error| error.into_parts().1)?;
    tokio::spawn(take(socket, events.clone()));
    Ok(())
}

async fn take(socket: AsyncFd<OwnedFd>, events: mpsc::Sender<MachineEvent>) {
    loop {
        let Ok(mut ready) = socket.readable().await else {
            return;
        };
        let taken = ready.try_io(|socket| {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let fd = accept4(socket.as_raw_fd(), flags)?;
            // SAFETY: the kernel has just opened it, and no other code knows it.
            Ok(unsafe { OwnedFd::from_raw_fd(fd) })
        });
        match taken {
            Ok(Ok(caller)) => {
                if events.send(MachineEvent::Caller(caller)).await.is_err() {
                    return;
                }
            }
            // accept(2): the caller may hang up before it is accepted. The others still come.
            Ok(Err(error)) => tracing::debug!(%error, "a caller is gone"),
            Err(_not_yet) => {}
        }
    }
}
