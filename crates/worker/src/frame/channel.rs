//! Reads and writes frames on a Unix stream socket.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::Decoder;
use crate::WorkerFrameError;
use crate::limits::FRAME_FDS_MAX;

/// The result of one read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChannelRead {
    /// The peer has closed its end.
    End,
    /// The decoder has this many more bytes.
    Some(usize),
    /// The socket has no bytes at present.
    Wait,
}

/// Reads once without waiting, at most the length of `scratch`, into `decoder`.
pub(crate) fn read(
    socket: impl AsFd,
    decoder: &mut Decoder,
    scratch: &mut [u8],
) -> Result<ChannelRead, WorkerFrameError> {
    // The buffer has room for one descriptor more than a frame may have, to distinguish a peer that sends too many
    // from one at the limit.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FRAME_FDS_MAX + 1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let got = loop {
        let mut iov = [IoSliceMut::new(scratch)];
        match recvmsg(socket.as_fd(), &mut iov, &mut control, flags) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(ChannelRead::Wait),
            // The peer closed while it had bytes of this side unread: this is an end as well.
            Err(Errno::CONNRESET) => return Ok(ChannelRead::End),
            other => break other.map_err(io::Error::from)?,
        }
    };
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(some) = message {
            fds.extend(some);
        }
    }
    // The kernel drops descriptors that do not fit into the buffer, and says so by this flag (recvmsg(2)).
    if got.flags.contains(ReturnFlags::CTRUNC) || fds.len() > FRAME_FDS_MAX {
        return Err(WorkerFrameError::TooManyDescriptors);
    }
    if got.bytes == 0 {
        return Ok(ChannelRead::End);
    }
    decoder.push(&scratch[..got.bytes], fds)?;
    Ok(ChannelRead::Some(got.bytes))
}

/// Sends `bytes`, with `fds` on the first of them. Returns how many bytes went.
pub(crate) fn send(
    socket: impl AsFd,
    bytes: &[u8],
    fds: &[OwnedFd],
    wait: bool,
) -> io::Result<usize> {
    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FRAME_FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(io::Error::other("more descriptors than a frame may have"));
    }
    // A peer that has gone gives an error and no SIGPIPE.
    let mut flags = SendFlags::NOSIGNAL;
    if !wait {
        flags |= SendFlags::DONTWAIT;
    }
    loop {
        match sendmsg(socket.as_fd(), &[IoSlice::new(bytes)], &mut control, flags) {
            Err(Errno::INTR) => {}
            other => return other.map_err(io::Error::from),
        }
    }
}

/// Whether the kernel refused descriptors because too many of this user's wait unread in sockets (unix(7)). It has
/// taken no byte then, and takes them later.
pub(crate) fn is_too_many_unread(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::TOOMANYREFS.raw_os_error())
}

/// Sends a whole frame, and waits as long as that takes.
pub(crate) fn send_all(socket: impl AsFd, frame: &[u8], fds: &[OwnedFd]) -> io::Result<()> {
    let mut sent = send(socket.as_fd(), frame, fds, true)?;
    while sent < frame.len() {
        sent += send(socket.as_fd(), &frame[sent..], &[], true)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::frame::encode;
    use crate::{CborBody, FromWorkerMessage};

    fn descriptors(count: usize) -> Vec<OwnedFd> {
        let one = || rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC);
        (0..count).map(|_| one().expect("a descriptor")).collect()
    }

    fn tell(sid: u64) -> FromWorkerMessage {
        let body = CborBody::default();
        FromWorkerMessage::Tell { sid, body }
    }

    #[test]
    fn frames_of_all_kinds_glued_by_the_kernel_come_apart_again() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        for sid in 0..30_u64 {
            let count = (sid % 4) as usize;
            let frame = encode(&tell(sid), count).expect("a frame");
            send_all(&ours, &frame, &descriptors(count)).expect("sent");
        }
        drop(ours);
        let (mut decoder, mut scratch) = (Decoder::default(), [0; 4096]);
        let mut next = 0;
        loop {
            let read = read(&theirs, &mut decoder, &mut scratch).expect("readable");
            while let Some((message, fds)) = decoder.next::<FromWorkerMessage>().expect("sound") {
                assert_eq!(message, tell(next));
                assert_eq!(fds.len() as u64, next % 4);
                next += 1;
            }
            if read == ChannelRead::End {
                break;
            }
        }
        assert_eq!(next, 30);
        decoder.end().expect("nothing is left");
    }

    #[test]
    fn more_descriptors_than_a_frame_may_have_are_refused() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let many = descriptors(FRAME_FDS_MAX + 1);
        let borrowed: Vec<_> = many.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FRAME_FDS_MAX + 1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&borrowed)));
        sendmsg(
            &ours,
            &[IoSlice::new(b"x")],
            &mut control,
            SendFlags::empty(),
        )
        .expect("sent");
        let outcome = read(&theirs, &mut Decoder::default(), &mut [0; 16]);
        assert!(matches!(outcome, Err(WorkerFrameError::TooManyDescriptors)));
    }
}
