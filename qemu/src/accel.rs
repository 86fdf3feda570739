//! The choice of the accelerator.
//!
//! `/dev/kvm` may exist, open, even run a few instructions, and still hang every guest. That is
//! common if virtualisation is nested or filtered. So the harness uses KVM only after a kernel ran
//! under it from its entry to a reboot, within seconds.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use alknet_test_support::deadline;

use crate::error::{Error, Result};
use crate::process::ChildProcess;
use crate::tools;

/// Overrides the choice: `kvm` or `tcg`.
pub const ACCEL_VARIABLE: &str = "ALKNET_QEMU_ACCEL";

/// Emulation is about this many times slower than the processor itself, so every limit is this many
/// times longer under it.
pub const TCG_TIMEOUT_FACTOR: u32 = 10;

/// The longest limit that the factors for emulation and for a busy host make of a shorter one.
/// Together they would make an hour of some seconds, and a run would wait that long for a machine
/// that does not go on before its console is shown.
pub const SCALED_MAX: Duration = Duration::from_secs(900);

/// How long a kernel may take from power-on to its reboot under KVM. It needs half a second. Time
/// in which QEMU waits for a processor that other programs have does not count: `up` and the
/// benchmarks do not know how busy the machine is.
const PROBE_LIMIT: Duration = Duration::from_secs(3);

/// A probe ends after so many times that limit in any case.
const PROBE_LIMITS_MAX: u32 = 20;

/// How long a verdict of a late guest holds. Another reason for the delay, such as a slow disk, may
/// be over then. If KVM hangs every guest, another probe is what an hour costs.
const LATE_FOR: Duration = Duration::from_secs(3600);

/// The text of such a verdict in the cache.
const LATE: &str = "late";

/// Pause between checks of the probe's process.
const PROBE_POLL: Duration = Duration::from_millis(20);

/// What runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// The processor.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

impl Accel {
    /// The override if there is one, or else KVM if a guest of `kernel` ran under it, or else TCG.
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

    /// The host's processor, if guests run on it: a machine that is saved on another one may use
    /// instructions that this one does not have.
    pub(crate) fn processor(self) -> String {
        match self {
            Self::Kvm => processor(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
            Self::Tcg => String::new(),
        }
    }

    /// Scales `limit`, which is for KVM on a host at rest, to here: longer under emulation, and on
    /// a host that is busy ([`deadline`]). Every wait for a machine has such a limit.
    pub fn scale(self, limit: Duration) -> Duration {
        let scaled = match self {
            Self::Kvm => deadline(limit),
            Self::Tcg => deadline(limit.saturating_mul(TCG_TIMEOUT_FACTOR)),
        };
        scaled.min(SCALED_MAX.max(limit))
    }
}

/// Makes every limit of this process so many times longer, unless `ALKNET_TEST_SLOWDOWN` says
/// something else: for commands that measure how busy the machine is. It has no effect once a limit
/// was read.
pub fn expect_slowdown(factor: f64) {
    alknet_test_support::expect_slowdown(factor);
}

/// Lines of `/proc/cpuinfo` that identify a processor, without those about its present speed.
const PROCESSOR: [&str; 6] = [
    "vendor_id",
    "cpu family",
    "model",
    "model name",
    "stepping",
    "flags",
];

/// The identifying lines of the first processor of `/proc/cpuinfo`.
fn processor(cpuinfo: &str) -> String {
    let first = cpuinfo.lines().take_while(|line| !line.is_empty());
    let is_kept = |line: &&str| {
        let name = line.split(':').next().unwrap_or_default().trim();
        PROCESSOR.contains(&name)
    };
    first.filter(is_kept).collect::<Vec<_>>().join("\n")
}

/// Lets only one probe run at a time, and none twice.
static PROBING: Mutex<()> = Mutex::new(());

fn verdict(kernel: Option<&Path>) -> Accel {
    // The device may exist without permission for this user.
    if fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_err()
    {
        return Accel::Tcg;
    }
    // One probe at a time: several at once would be slow and so look late.
    let _one = PROBING.lock();
    let cache = cache_file();
    let known = cache.as_deref().and_then(known);
    match (known, kernel) {
        (Some(accel), _) => accel,
        (None, None) => Accel::Tcg,
        (None, Some(kernel)) => {
            let probe = probe(kernel);
            if let Some(path) = cache {
                remember(&path, probe);
            }
            probe.accel()
        }
    }
}

/// The result of a guest under KVM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KvmProbe {
    /// It ran to its reboot.
    Ran,
    /// QEMU ended otherwise, or did not start.
    Failed,
    /// The guest did not reboot in time.
    Late,
}

impl KvmProbe {
    const fn accel(self) -> Accel {
        match self {
            Self::Ran => Accel::Kvm,
            Self::Failed | Self::Late => Accel::Tcg,
        }
    }
}

/// The cached verdict, while it holds.
fn known(path: &Path) -> Option<Accel> {
    match fs::read_to_string(path).ok()?.as_str() {
        "kvm" => Some(Accel::Kvm),
        "tcg" => Some(Accel::Tcg),
        LATE => {
            let since = fs::metadata(path).and_then(|data| data.modified()).ok()?;
            // A time in the future, after a change of the host's clock, makes the verdict invalid.
            let age = SystemTime::now().duration_since(since).ok()?;
            (age < LATE_FOR).then_some(Accel::Tcg)
        }
        _ => None,
    }
}

/// The cache file of this boot of the host. Its verdict holds until the next boot, or for
/// [`LATE_FOR`].
fn cache_file() -> Option<PathBuf> {
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(tools::cache_dir()?.join("kvm").join(boot_id.trim()))
}

/// Caches a verdict. If this fails, it costs another probe and nothing else.
fn remember(path: &Path, probe: KvmProbe) {
    let text = match probe {
        KvmProbe::Late => LATE,
        KvmProbe::Ran | KvmProbe::Failed => probe.accel().name(),
    };
    let write = || {
        fs::create_dir_all(path.parent().unwrap_or(path))?;
        fs::write(path, text)
    };
    if let Err(error) = write() {
        tracing::debug!(path = %path.display(), %error, "the verdict on KVM was not kept");
    }
}

/// Boots `kernel` without a root file system: it starts, finds nothing to run, and reboots, which
/// ends QEMU. Timers, interrupts and memory have worked by then.
fn probe(kernel: &Path) -> KvmProbe {
    let mut command = Command::new(tools::qemu());
    // The kernel panics for want of a root and reboots at once, and with `-no-reboot` QEMU ends
    // then.
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
    match ChildProcess::spawn(command, vec![]) {
        Ok(guest) => {
            let limit = deadline(PROBE_LIMIT);
            follow(&guest, limit, limit * PROBE_LIMITS_MAX)
        }
        Err(_) => KvmProbe::Failed,
    }
}

/// Waits for the guest's end: for `limit` without the time in which other programs have the
/// processors, and for `most` with it.
fn follow(guest: &ChildProcess, limit: Duration, most: Duration) -> KvmProbe {
    let kept_waiting = || guest.kept_waiting().unwrap_or_default();
    follow_kept(guest, kept_waiting, limit, most)
}

fn follow_kept(
    guest: &ChildProcess,
    kept_waiting: impl Fn() -> Duration,
    limit: Duration,
    most: Duration,
) -> KvmProbe {
    let begun = Instant::now();
    loop {
        match guest.try_wait() {
            Ok(Some(status)) if status.success() => return KvmProbe::Ran,
            Ok(Some(_)) | Err(_) => return KvmProbe::Failed,
            Ok(None) => {}
        }
        let passed = begun.elapsed();
        // Time in which the guest was ready and had no processor says nothing about KVM.
        if passed.saturating_sub(kept_waiting()) > limit || passed > most {
            return KvmProbe::Late;
        }
        std::thread::sleep(PROBE_POLL);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn limits_grow_under_emulation_only() {
        let second = Duration::from_secs(1);
        assert_eq!(Accel::Kvm.scale(second), deadline(second));
        let emulated = deadline(second * TCG_TIMEOUT_FACTOR);
        assert_eq!(Accel::Tcg.scale(second), emulated);
        assert_eq!(Accel::Tcg.scale(Duration::MAX), Duration::MAX);
        let minutes = Duration::from_secs(600);
        assert_eq!(Accel::Tcg.scale(minutes), SCALED_MAX);
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
        assert_ne!(probe(file.path()), KvmProbe::Ran);
    }

    #[test]
    fn a_verdict_is_kept_and_one_by_time_for_an_hour() {
        let dir = tempfile::tempdir().expect("the temporary directory is writable");
        let path = dir.path().join("kvm/boot");
        assert_eq!(known(&path), None);
        let aged = |probe, age| {
            remember(&path, probe);
            let file = File::options()
                .write(true)
                .open(&path)
                .expect("it was kept");
            file.set_modified(SystemTime::now() - age).expect("ours");
            known(&path)
        };
        let (minute, day) = (Duration::from_secs(60), Duration::from_secs(86_400));
        for age in [minute, day] {
            assert_eq!(aged(KvmProbe::Ran, age), Some(Accel::Kvm));
            assert_eq!(aged(KvmProbe::Failed, age), Some(Accel::Tcg));
        }
        assert_eq!(aged(KvmProbe::Late, minute), Some(Accel::Tcg));
        assert_eq!(aged(KvmProbe::Late, day), None, "another probe");
    }

    fn started(program: &str, arguments: &[&str]) -> ChildProcess {
        let mut command = Command::new(program);
        command.args(arguments).stdout(Stdio::null());
        ChildProcess::spawn(command, vec![]).expect("every Debian has it")
    }

    #[test]
    fn a_guest_that_hangs_is_late_and_one_that_ends_badly_failed() {
        let limit = Duration::from_millis(200);
        let most = deadline(Duration::from_secs(300));
        assert_eq!(
            follow(&started("sleep", &["600"]), limit, most),
            KvmProbe::Late
        );
        let spins = started("sh", &["-c", "while :; do :; done"]);
        assert_eq!(follow(&spins, limit, most), KvmProbe::Late);
        assert_eq!(follow(&started("false", &[]), most, most), KvmProbe::Failed);
    }

    /// An earlier version put a machine with KVM into emulation until its next boot, because the
    /// first `up` ran beside other programs.
    #[test]
    fn a_guest_that_others_keep_from_the_processor_is_not_late() {
        let limit = Duration::from_millis(100);
        let waits = |seconds: &str, kept: bool| {
            let begun = Instant::now();
            let guest = started("sleep", &[seconds]);
            let kept_waiting = || match kept {
                true => begun.elapsed(),
                false => Duration::ZERO,
            };
            follow_kept(&guest, kept_waiting, limit, deadline(hung()))
        };
        assert_eq!(waits("600", false), KvmProbe::Late);
        assert_eq!(waits("1", true), KvmProbe::Ran);
        // The probe ends in any case.
        let guest = started("sleep", &["600"]);
        let ended = follow_kept(&guest, || deadline(hung()), limit, limit);
        assert_eq!(ended, KvmProbe::Late);
    }

    #[test]
    fn what_a_guest_waits_for_others_is_counted() {
        // One of the processors that this process may use, on which other programs compute all the
        // while.
        let status = fs::read_to_string("/proc/self/status").expect("Linux has it");
        let mut lines = status.lines();
        let allowed = lines.find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        let allowed = allowed.expect("Linux says it").trim();
        let one = allowed.split([',', '-']).next().unwrap_or("0");
        let computes = || started("taskset", &["-c", one, "sh", "-c", "while :; do :; done"]);
        let _others = [(); 4].map(|()| computes());
        let guest = computes();
        let until = Instant::now() + deadline(hung());
        while guest.kept_waiting().expect("it is there") < Duration::from_millis(200) {
            assert!(Instant::now() < until, "it waits for others");
            std::thread::sleep(PROBE_POLL);
        }
    }

    const fn hung() -> Duration {
        Duration::from_secs(60)
    }
}
