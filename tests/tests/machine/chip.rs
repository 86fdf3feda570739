//! A machine's TPM while the machine is off.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use alknet_qemu::ChildProcess;
use alknet_test_support::eventually;
use alknet_tpm::Tpm;

/// How long swtpm may take to listen.
const LISTENS_WITHIN: Duration = Duration::from_secs(30);

/// Uses the TPM with its state in `folder`, while no machine uses it. It has no measurements.
pub(crate) fn with_chip<R>(folder: &Path, work: impl FnOnce(Tpm<UnixStream>) -> R) -> R {
    std::fs::create_dir_all(folder).expect("the folder is ours");
    let socket = folder.with_extension("socket");
    let mut swtpm = Command::new("swtpm");
    swtpm
        .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
        .args(["--tpmstate", &format!("dir={}", folder.display())])
        .args([
            "--server",
            &format!("type=unixio,path={}", socket.display()),
        ])
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    let running = ChildProcess::spawn(swtpm, vec![]).expect("the set-up installs it");
    let stream = eventually("swtpm listens", LISTENS_WITHIN, || {
        UnixStream::connect(&socket)
    });
    let result = work(Tpm::new(stream));
    drop(running);
    std::fs::remove_file(socket).expect("it was bound");
    result
}
