//! The node's end of the socket pair to PID 1.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;

use alknet_init::control::{InitMessage, LINE_BYTES_MAX, NODE_FD, NodeMessage};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::mpsc;

/// Maximum number of messages that wait to be written. PID 1 always reads, so the queue does not
/// fill.
const OUT_BACKLOG: usize = 64;

/// Reads messages from PID 1.
#[derive(Debug)]
pub(crate) struct InitMessageReader {
    read: BufReader<OwnedReadHalf>,
    line: Vec<u8>,
}

impl InitMessageReader {
    /// The next message. Returns `None` after PID 1 closed the channel. Cancel safe: a partly read
    /// line stays in `self`.
    ///
    /// # Errors
    /// The line is too long, is not a message, or cannot be read.
    pub(crate) async fn next(&mut self) -> io::Result<Option<NodeMessage>> {
        // The limit counts the bytes of earlier calls: a dropped future leaves its part of the line
        // in `self`.
        let room = (LINE_BYTES_MAX - self.line.len()) as u64;
        let mut limited = (&mut self.read).take(room);
        limited.read_until(b'\n', &mut self.line).await?;
        match self.line.pop() {
            None => Ok(None),
            Some(b'\n') => {
                let message = serde_json::from_slice(&self.line);
                self.line.clear();
                message
                    .map(Some)
                    .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
            }
            Some(_) => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("PID 1 sent an unfinished line, or one over {LINE_BYTES_MAX} bytes"),
            )),
        }
    }
}

/// Takes over the descriptor that PID 1 left at [`NODE_FD`]. Call it once, inside the runtime.
///
/// # Errors
/// There is no socket at that descriptor: PID 1 did not start the process.
pub(crate) fn open() -> io::Result<(InitMessageReader, mpsc::Sender<InitMessage>)> {
    nix::sys::stat::fstat(stdin_like(NODE_FD)).map_err(|_| not_supervised())?;
    // SAFETY: `fstat` just showed that the descriptor is open. By the contract of
    // `alknet_init::control` this process alone has it, and `open` is called once.
    let fd = unsafe { OwnedFd::from_raw_fd(NODE_FD) };
    let stream = StdStream::from(fd);
    stream.peer_addr().map_err(|_| not_supervised())?;
    stream.set_nonblocking(true)?;
    let (read, mut write) = UnixStream::from_std(stream)?.into_split();
    let (out, mut queue) = mpsc::channel::<InitMessage>(OUT_BACKLOG);
    tokio::spawn(async move {
        while let Some(message) = queue.recv().await {
            let Ok(mut line) = serde_json::to_vec(&message) else {
                continue;
            };
            line.push(b'\n');
            if write.write_all(&line).await.is_err() {
                // PID 1 is gone, and the kernel will end this process with it.
                break;
            }
        }
    });
    Ok((
        InitMessageReader {
            read: BufReader::new(read),
            line: Vec::new(),
        },
        out,
    ))
}

fn stdin_like(fd: i32) -> std::os::fd::BorrowedFd<'static> {
    // SAFETY: the descriptor is borrowed for one `fstat`, which fails with an error if the
    // descriptor is not open.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) }
}

fn not_supervised() -> io::Error {
    io::Error::new(
        io::ErrorKind::NotConnected,
        "'alknet node' is started by PID 1 of an appliance; on this computer use 'alknet serve'",
    )
}
