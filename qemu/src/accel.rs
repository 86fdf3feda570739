//! Which accelerator to trust.
//!
//! `/dev/kvm` may exist, open, even run a few instructions, and still hang every guest: that is
//! common where virtualisation is nested or filtered. So KVM is used only after a kernel ran under
//! it from its entry to a reboot, within seconds.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use alknet_test_support::deadline;

use crate::error::{Error, Result};
use crate::process::Process;
use crate::tools;

/// Overrides the choice: `kvm` or `tcg`.
pub const ACCEL_VARIABLE: &str = "ALKNET_QEMU_ACCEL";

/// Emulation is about this much slower than the processor itself: every limit is this many times longer
/// under it.
pub const TCG_TIMEOUT_FACTOR: u32 = 10;

/// How long a kernel may take from power-on to its reboot under KVM. It needs half a second.
const PROBE_LIMIT: Duration = Duration::from_secs(3);

/// Pause between looks at the probe's process.
const PROBE_POLL: Duration = Duration::from_millis(20);

/// Who runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// The processor.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

impl Accel {
    /// The override if there is one, else KVM if a guest of `kernel` ran under it, else TCG.
    /// Without a kernel an earlier verdict of this boot of the host counts.
    pub fn detect(kernel: Option<&Path>) -> Result<Self> {
        match std::env::var(ACCEL_VARIABLE).as_deref() {
            Ok("kvm") => Ok(Self::Kvm),
            Ok("tcg") => Ok(Self::Tcg),
            Ok("") | Err(_) => Ok(verdict(kernel)),
            Ok(other) => Err(Error::BadMachine(format!(
                "{ACCEL_VARIABLE} is {other:?}; it may be kvm or tcg"
            ))),
        }
    }

    /// QEMU's name for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }

    /// The host's processor, where guests run on it: one that is saved on another may use instructions that
    /// this one does not have.
    pub(crate) fn processor(self) -> String {
        match self {
            Self::Kvm => processor(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
            Self::Tcg => String::new(),
        }
    }

    /// `limit`, given for KVM on a host at rest, as it applies here: longer under emulation, and on a
    /// host that is busy ([`deadline`]). Every wait for a machine is limited by this.
    pub fn scale(self, limit: Duration) -> Duration {
        match self {
            Self::Kvm => deadline(limit),
            Self::Tcg => deadline(limit.saturating_mul(TCG_TIMEOUT_FACTOR)),
        }
    }
}

/// Lines of `/proc/cpuinfo` that say what a processor is, and not how fast it runs now.
const PROCESSOR: [&str; 6] = [
    "vendor_id",
    "cpu family",
    "model",
    "model name",
    "stepping",
    "flags",
];

/// The first processor of `/proc/cpuinfo`.
fn processor(cpuinfo: &str) -> String {
    let first = cpuinfo.lines().take_while(|line| !line.is_empty());
    let is_kept = |line: &&str| {
        let name = line.split(':').next().unwrap_or_default().trim();
        PROCESSOR.contains(&name)
    };
    first.filter(is_kept).collect::<Vec<_>>().join("\n")
}

/// One probe at a time, and none twice.
static PROBING: Mutex<()> = Mutex::new(());

fn verdict(kernel: Option<&Path>) -> Accel {
    if fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_err()
    {
        return Accel::Tcg;
    }
    let _one = PROBING.lock();
    let cache = cache_file();
    let known = cache
        .as_deref()
        .and_then(|path| fs::read_to_string(path).ok());
    match (known.as_deref(), kernel) {
        (Some("kvm"), _) => Accel::Kvm,
        (Some("tcg"), _) | (_, None) => Accel::Tcg,
        (_, Some(kernel)) => {
            let accel = if runs_under_kvm(kernel) {
                Accel::Kvm
            } else {
                Accel::Tcg
            };
            if let Some(path) = cache {
                remember(&path, accel);
            }
            accel
        }
    }
}

/// The verdict holds until the host boots again.
fn cache_file() -> Option<PathBuf> {
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(tools::cache_dir()?.join("kvm").join(boot_id.trim()))
}

/// A verdict that cannot be kept costs a probe next time, nothing else.
fn remember(path: &Path, accel: Accel) {
    let write = || {
        fs::create_dir_all(path.parent().unwrap_or(path))?;
        fs::write(path, accel.name())
    };
    if let Err(error) = write() {
        tracing::debug!(path = %path.display(), %error, "the verdict on KVM was not kept");
    }
}

/// Boots `kernel` without a root file system: it comes up, finds nothing to start, and reboots,
/// which ends QEMU. Timers, interrupts and memory have worked by then.
fn runs_under_kvm(kernel: &Path) -> bool {
    let mut command = Command::new(tools::qemu());
    command
        .args([
            "-M",
            "q35,accel=kvm",
            "-cpu",
            "host",
            "-m",
            "256",
            "-nodefaults",
            "-nographic",
        ])
        .args(["-no-reboot", "-append", "panic=-1 quiet", "-kernel"])
        .arg(kernel)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let Ok(guest) = Process::spawn(command, vec![]) else {
        return false;
    };
    let until = Instant::now() + deadline(PROBE_LIMIT);
    while Instant::now() < until {
        match guest.try_wait() {
            Ok(Some(status)) => return status.success(),
            Ok(None) => std::thread::sleep(PROBE_POLL),
            Err(_) => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_grow_under_emulation_only() {
        let second = Duration::from_secs(1);
        assert_eq!(Accel::Kvm.scale(second), deadline(second));
        let emulated = deadline(second * TCG_TIMEOUT_FACTOR);
        assert_eq!(Accel::Tcg.scale(second), emulated);
        assert_eq!(Accel::Tcg.scale(Duration::MAX), Duration::MAX);
    }

    #[test]
    fn a_processor_is_known_by_its_model_and_flags_and_not_by_its_clock() {
        let of = |model: &str, mhz: &str, flags: &str| {
            let one = format!(
                "processor\t: 0\nmodel name\t: {model}\ncpu MHz\t: {mhz}\nflags\t\t: {flags}\n"
            );
            processor(&format!("{one}\n{one}"))
        };
        let this = of("Xeon", "2100.5", "fpu avx2");
        assert_eq!(this, "model name\t: Xeon\nflags\t\t: fpu avx2");
        assert_eq!(this, of("Xeon", "3000", "fpu avx2"));
        assert_ne!(this, of("Xeon", "2100.5", "fpu"));
        assert_ne!(this, of("EPYC", "2100.5", "fpu avx2"));
    }

    #[test]
    fn a_guest_that_does_not_run_is_no_reason_for_kvm() {
        let file = tempfile::NamedTempFile::new().expect("the temporary directory is writable");
        fs::write(file.path(), b"not a kernel").expect("the file is ours");
        assert!(!runs_under_kvm(file.path()));
    }

    #[test]
    fn a_verdict_is_kept() {
        let dir = tempfile::tempdir().expect("the temporary directory is writable");
        let path = dir.path().join("kvm/boot");
        remember(&path, Accel::Tcg);
        assert_eq!(fs::read_to_string(path).expect("it was kept"), "tcg");
    }
}
