//! The hardware watchdog: it reboots a machine whose PID 1 stopped, or whose node is unwell for too
//! long.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::fd::AsRawFd,
    path::Path,
};

use nix::errno::Errno;

/// The machine reboots this long after PID 1 last fed the watchdog, seconds. It is longer than the
/// bound on a shutdown, so that the watchdog never cuts a shutdown short.
const TIMEOUT_S: libc::c_int = 30;

const WDIOC_SETTIMEOUT: libc::c_ulong = 0xc004_5706;
const WDIOC_KEEPALIVE: libc::c_ulong = 0x8004_5705;
const WDIOC_GETSUPPORT: libc::c_ulong = 0x8028_5700;

/// An armed watchdog.
#[derive(Debug)]
pub(crate) struct Watchdog {
    file: File,
    kind: String,
}

impl Watchdog {
    /// Arms the first watchdog there is. PID 1 prefers hardware to the kernel's software watchdog,
    /// which cannot help a kernel that stopped.
    pub(crate) fn arm(dev: &Path) -> Option<Self> {
        let mut found: Vec<Self> = candidates(dev)
            .iter()
            .filter_map(|path| match Self::open(path) {
                Ok(one) => Some(one),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a watchdog is not armed");
                    None
                }
            })
            .collect();
        found.sort_by_key(|one| one.kind == SOFTWARE);
        let mut found = found.into_iter();
        let mut chosen = found.next()?;
        // Opening a watchdog starts it (Documentation/watchdog/watchdog-api.rst). Those that
        // nothing feeds would reboot the machine.
        for other in found {
            other.disarm();
        }
        chosen.start();
        Some(chosen)
    }

    fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).open(path)?;
        let kind = identity(&file).unwrap_or_else(|_| "watchdog".to_owned());
        Ok(Self { file, kind })
    }

    /// Sets the time-out. A driver that refuses it keeps its own.
    fn start(&mut self) {
        let mut seconds = TIMEOUT_S;
        // SAFETY: the ioctl reads and writes the int behind the pointer, which outlives the call.
        let outcome =
            unsafe { libc::ioctl(self.file.as_raw_fd(), WDIOC_SETTIMEOUT, &raw mut seconds) };
        if let Err(error) = Errno::result(outcome) {
            tracing::warn!(watchdog = self.kind, %error, "keeps its own time-out");
        }
        self.feed();
    }

    /// The name that the driver gives itself.
    pub(crate) fn kind(&self) -> &str {
        &self.kind
    }

    /// Restarts the time-out.
    pub(crate) fn feed(&self) {
        let mut unused: libc::c_int = 0;
        // SAFETY: the ioctl may write the int behind the pointer, which outlives the call.
        let outcome =
            unsafe { libc::ioctl(self.file.as_raw_fd(), WDIOC_KEEPALIVE, &raw mut unused) };
        if let Err(error) = Errno::result(outcome) {
            tracing::warn!(watchdog = self.kind, %error, "cannot be fed");
        }
    }

    /// Stops the watchdog, if the hardware can be stopped: for power-off, after which no process
    /// feeds it.
    pub(crate) fn disarm(mut self) {
        // Hardware that cannot stop refuses this, and there is nothing else to try.
        let _ = self.file.write_all(b"V");
    }
}

/// Name of the kernel's own software watchdog.
const SOFTWARE: &str = "Software Watchdog";

fn candidates(dev: &Path) -> Vec<std::path::PathBuf> {
    let Ok(entries) = fs::read_dir(dev) else {
        return Vec::new();
    };
    let mut paths: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str());
            // `watchdog` itself is an old name of `watchdog0`.
            name.and_then(|name| name.strip_prefix("watchdog"))
                .is_some_and(|number| number.parse::<u8>().is_ok())
        })
        .collect();
    // A folder has no fixed order, and the first one is taken.
    paths.sort();
    paths
}

fn identity(file: &File) -> io::Result<String> {
    /// `struct watchdog_info` of the kernel.
    #[repr(C)]
    struct WatchdogInfo {
        options: u32,
        version: u32,
        identity: [u8; 32],
    }
    let mut info = WatchdogInfo {
        options: 0,
        version: 0,
        identity: [0; 32],
    };
    // SAFETY: the ioctl fills the structure behind the pointer, which outlives the call.
    let outcome = unsafe { libc::ioctl(file.as_raw_fd(), WDIOC_GETSUPPORT, &raw mut info) };
    Errno::result(outcome)?;
    let text = info.identity.split(|byte| *byte == 0).next().unwrap_or(&[]);
    Ok(String::from_utf8_lossy(text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbered_watchdogs_are_candidates() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for name in ["watchdog", "watchdog1", "watchdog0", "watchdogx", "null"] {
            fs::write(dir.path().join(name), "").expect("writable");
        }
        let found = candidates(dir.path());
        assert_eq!(
            found,
            [dir.path().join("watchdog0"), dir.path().join("watchdog1")]
        );
    }

    #[test]
    fn a_machine_without_one_goes_on() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert!(Watchdog::arm(&dir.path().join("missing")).is_none());
        assert!(Watchdog::arm(dir.path()).is_none());
    }

    #[test]
    fn a_file_that_is_no_watchdog_does_no_harm() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::write(dir.path().join("watchdog0"), "").expect("writable");
        let watchdog = Watchdog::arm(dir.path()).expect("it can be opened");
        assert_eq!(watchdog.kind(), "watchdog");
        watchdog.disarm();
        assert_eq!(
            fs::read(dir.path().join("watchdog0")).expect("readable"),
            b"V"
        );
    }
}
