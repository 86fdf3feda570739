//! What a peer has left in a socket.

use std::os::fd::{AsFd, AsRawFd};

/// Whether the peer of a Unix stream socket has read all that was sent to it. True as well if the kernel does not say.
pub(crate) fn is_all_read(socket: impl AsFd) -> bool {
    let mut unread: libc::c_int = 0;
    // SAFETY: the request writes one number (unix(7), SIOCOUTQ has the value of TIOCOUTQ), which outlives the call, and
    // the descriptor is borrowed for as long.
    let done = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut unread) };
    done != 0 || unread == 0
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_socket_is_read_once_its_peer_took_the_last_byte() {
        let (mut ours, mut theirs) = UnixStream::pair().expect("a pair");
        assert!(is_all_read(&ours));
        ours.write_all(b"two").expect("sent");
        assert!(!is_all_read(&ours));
        theirs.read_exact(&mut [0; 2]).expect("a part");
        assert!(!is_all_read(&ours));
        theirs.read_exact(&mut [0; 1]).expect("the rest");
        assert!(is_all_read(&ours));
    }
}
