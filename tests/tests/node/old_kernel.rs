//! `alknet image write` on a kernel that knows no system call from after Linux 3.2 of January 2012, the oldest kernel on
//! which the C library starts a program.
//!
//! A filter of system calls refuses the newer ones in the way of such a kernel. It does not refuse newer flags of older
//! calls, newer ioctls and newer files in `/proc` and `/sys`.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::thread;

use alknet_image::{DISK_BYTES, ImageForm, OutputRole};
use alknet_tests::tools::tool_says;
use alknet_tests::{BuiltImageFolder, FileServer};
use nix::libc;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

use crate::image_verbs::ImageUser;

/// The calls of Linux 3.3 to 5.0: from `kcmp` to `rseq`.
const NEWER_FIRST: i64 = libc::SYS_kcmp;
const NEWER_LAST: i64 = libc::SYS_rseq;
/// The calls of Linux 5.1 and newer begin with this one. The end leaves room for those to come.
const NEWEST_FIRST: i64 = libc::SYS_pidfd_send_signal;
const NEWEST_LAST: i64 = 600;

/// Prints the errors of `getrandom` (Linux 3.17), `statx` (4.11), `clone3` (5.3) and `faccessat2` (5.8) without usable
/// arguments. A kernel with `getrandom` has no error for it.
const PROBE: &str = "\
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
for number in 318, 332, 435, 439:
    libc.syscall(number, 0, 0, 0, 0, 0)
    print(errno.errorcode[ctypes.get_errno()])
";

/// Runs `work` on a thread of its own. This thread and the programs that it starts have only the calls of Linux 3.2.
fn with_calls_of_2012(work: impl FnOnce() + Send) {
    let newer = (NEWER_FIRST..=NEWER_LAST).chain(NEWEST_FIRST..=NEWEST_LAST);
    let rules: BTreeMap<_, _> = newer.map(|call| (call, Vec::new())).collect();
    let arch = std::env::consts::ARCH.try_into().expect("a known one");
    let unknown = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, unknown, arch);
    let program: BpfProgram = filter.expect("rules").try_into().expect("a program");
    thread::scope(|scope| {
        let done = scope.spawn(|| {
            seccompiler::apply_filter(&program).expect("the kernel has filters");
            work();
        });
        done.join().expect("what failed is printed above");
    });
}

#[test]
fn an_image_is_written_with_the_system_calls_of_2012() {
    let user = ImageUser::new();
    let small = user.small_disk();
    let text = "[node]\nname = \"edge-1\"\n";
    fs::write(user.file("node.toml"), text).expect("the folder is ours");
    let server = FileServer::start(user.bench.path());
    let url = format!("http://127.0.0.1:{}/disk.raw.zst", server.port());
    let disk = BuiltImageFolder::get().file(ImageForm::Raw, OutputRole::Disk);
    let disk = disk.to_str().expect("text");
    with_calls_of_2012(|| {
        let probe = Command::new("python3").args(["-c", PROBE]).output();
        let probe = probe.expect("the set-up installs Python");
        assert_eq!(
            probe.stdout, b"ENOSYS\nENOSYS\nENOSYS\nENOSYS\n",
            "{probe:?}"
        );
        let seeded = [
            "write",
            disk,
            "written",
            "--to-file",
            "--seed",
            "node.toml",
            "--json",
        ];
        assert_eq!(user.run(&seeded).json()["bytes"], DISK_BYTES);
        user.run(&["write", &url, "loaded", "--to-file", "--json"])
            .json();
    });
    let volume = format!("{}@@1M", user.file("written").display());
    assert_eq!(tool_says("mtype", &["-i", &volume, "::alknet.toml"]), text);
    let loaded = fs::read(user.file("loaded")).expect("it was written");
    assert!(loaded == small, "the disk has other bytes");
}
