//! The terminal: reads and writes that never block, with a line discipline for single keys.

use std::fs::{File, OpenOptions};
use std::future;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::SFlag;
use nix::sys::termios::{
    InputFlags, LocalFlags, OutputFlags, SetArg, SpecialCharacterIndices, tcgetattr, tcsetattr,
};
use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, Ready};
use zeroize::{Zeroize, Zeroizing};

/// Size of a terminal that reports none, which is that of a VT100.
const COLUMNS: usize = 80;
const ROWS: usize = 24;
/// Maximum number of keys per read: all that the kernel keeps of a line without echo. Pasted text
/// comes as fast as the line is.
const KEYS_MAX: usize = 4096;

/// The line discipline of terminals, and the one that does nothing.
const N_TTY: libc::c_int = 0;
const N_NULL: libc::c_int = 27;

nix::ioctl_write_ptr_bad!(
    /// Sets the line discipline of a terminal.
    set_discipline,
    libc::TIOCSETD,
    libc::c_int
);

nix::ioctl_read_bad!(
    /// Reads the size of a terminal.
    window_size,
    libc::TIOCGWINSZ,
    libc::winsize
);

pub(super) struct ConsoleTty {
    device: TtyDevice,
    pending: Vec<u8>,
    written: usize,
    readable: bool,
    /// Whether the device is a connection and was closed.
    hung_up: bool,
    is_socket: bool,
}

enum TtyDevice {
    /// A regular file or the like: always ready, without input.
    File(File),
    Terminal(AsyncFd<File>),
}

impl ConsoleTty {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            // O_NOCTTY: a controlling terminal would send PID 1 signals when it hangs up.
            .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
            .open(path)?;
        Self::new(file.into())
    }

    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_truncate(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        let is_socket = is_socket(&fd);
        if !is_socket && let Err(error) = single_keys(&fd) {
            tracing::debug!(%error, "the console is no terminal");
        }
        // SAFETY: the file owns its descriptor, which no other code closes, and the `AsyncFd` never
        // replaces it.
        let registered = unsafe { AsyncFd::register(File::from(fd)) };
        let device = match registered {
            Ok(terminal) => TtyDevice::Terminal(terminal),
            // epoll refuses regular files (EPERM, epoll_ctl(2)), which tests and recordings write
            // to.
            Err(error) => TtyDevice::File(error.into_parts().0),
        };
        Ok(Self {
            readable: matches!(device, TtyDevice::Terminal(_)),
            device,
            pending: Vec::new(),
            written: 0,
            hung_up: false,
            is_socket,
        })
    }

    /// Makes the kernel drop the typed keys. As long as a line discipline is set, the kernel keeps
    /// the last 4096 keys of a terminal in single-key mode, even those that were read. Hence this
    /// sets another discipline and returns to the first. It also drops keys that were typed after
    /// the last answer.
    pub(super) fn forget_keys(&self) {
        let TtyDevice::Terminal(terminal) = &self.device else {
            return;
        };
        if self.is_socket {
            return;
        }
        for discipline in [N_NULL, N_TTY] {
            // SAFETY: the descriptor is open as long as `self`, and the kernel reads one number.
            let set = unsafe { set_discipline(terminal.as_raw_fd(), &raw const discipline) };
            if let Err(error) = set {
                tracing::warn!(discipline, %error, "the keys of the console are not forgotten");
                return;
            }
        }
    }

    /// Number of columns and rows.
    pub(super) fn size(&self) -> (usize, usize) {
        let fd = match &self.device {
            TtyDevice::File(file) => file.as_raw_fd(),
            TtyDevice::Terminal(terminal) => terminal.as_raw_fd(),
        };
        let mut size = libc::winsize {
            ws_row: 0,
            ws_col: 0,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // SAFETY: the descriptor is open as long as `self`, and the kernel writes one `winsize`.
        let has_size = unsafe { window_size(fd, &raw mut size) }.is_ok();
        if has_size && size.ws_col > 0 && size.ws_row > 0 {
            let (columns, rows) = (usize::from(size.ws_col), usize::from(size.ws_row));
            (columns.clamp(40, 300), rows.clamp(12, 100))
        } else {
            (COLUMNS, ROWS)
        }
    }

    /// Whether the other end of a connection has hung up. A serial line never does.
    pub(super) fn has_hung_up(&self) -> bool {
        self.hung_up
    }

    pub(super) fn is_writing(&self) -> bool {
        self.written < self.pending.len()
    }

    /// Queues bytes for [`Self::io`] to write, after those that wait.
    pub(super) fn queue(&mut self, bytes: &[u8]) {
        if !self.is_writing() {
            // Written bytes are wiped: they may have been the words of the vault.
            self.pending.zeroize();
            self.written = 0;
        }
        self.pending.extend_from_slice(bytes);
    }

    /// Moves bytes until everything queued is written, and then returns no keys, or until keys
    /// arrive. Cancel safe.
    pub(super) async fn io(&mut self) -> Vec<u8> {
        loop {
            if let TtyDevice::File(file) = &mut self.device {
                if self.written == self.pending.len() {
                    return future::pending().await;
                }
                // There is nowhere to report that the console's own file cannot be written.
                let _ = file.write_all(&self.pending[self.written..]);
                self.written = self.pending.len();
                return Vec::new();
            }
            if let Some(keys) = self.terminal_io().await {
                return keys;
            }
        }
    }

    async fn terminal_io(&mut self) -> Option<Vec<u8>> {
        let writing = self.is_writing();
        let TtyDevice::Terminal(terminal) = &self.device else {
            return None;
        };
        let interest = match (self.readable, writing) {
            (true, true) => Interest::READABLE | Interest::WRITABLE,
            (true, false) => Interest::READABLE,
            (false, true) => Interest::WRITABLE,
            (false, false) => return future::pending().await,
        };
        let Ok(mut guard) = terminal.ready(interest).await else {
            // The runtime is shutting down.
            return future::pending().await;
        };
        let mut device = terminal.get_ref();
        if writing && guard.ready().is_writable() {
            match device.write(&self.pending[self.written..]) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    guard.clear_ready_matching(Ready::WRITABLE);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // A terminal that refuses output must not stop the console.
                Err(_) => self.written = self.pending.len(),
            }
            if self.written == self.pending.len() {
                return Some(Vec::new());
            }
        }
        if self.readable && guard.ready().is_readable() {
            // The buffer is wiped: the keys may be a passphrase.
            let mut keys = Zeroizing::new(vec![0; KEYS_MAX]);
            match device.read(&mut keys) {
                Ok(count) if count > 0 => return Some(keys[..count].to_vec()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    guard.clear_ready_matching(Ready::READABLE);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The terminal has hung up: no more keys will arrive, but its output may still be
                // recorded.
                Ok(_) | Err(_) => {
                    self.readable = false;
                    self.hung_up = self.is_socket;
                    if self.hung_up {
                        return Some(Vec::new());
                    }
                }
            }
        }
        None
    }
}

fn is_socket(fd: &OwnedFd) -> bool {
    nix::sys::stat::fstat(fd).is_ok_and(|stat| {
        let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
        kind == SFlag::S_IFSOCK
    })
}

/// Sets single-key mode: every key arrives at once, without echo, signals or flow control. Speed
/// and framing stay as the kernel's command line set them.
fn single_keys(fd: &OwnedFd) -> nix::Result<()> {
    let mut modes = tcgetattr(fd)?;
    modes
        .local_flags
        .remove(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG | LocalFlags::IEXTEN);
    modes
        .input_flags
        .remove(InputFlags::IXON | InputFlags::IXOFF | InputFlags::BRKINT | InputFlags::PARMRK);
    modes.input_flags.insert(InputFlags::IGNBRK);
    modes
        .output_flags
        .insert(OutputFlags::OPOST | OutputFlags::ONLCR);
    modes.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
    modes.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
    tcsetattr(fd, SetArg::TCSANOW, &modes)
}
