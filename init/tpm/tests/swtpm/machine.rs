//! A TPM in software (swtpm) with its state in a temporary folder, and the tools of others to look
//! into it.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use alknet_tpm::Tpm;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

pub(crate) struct Machine {
    dir: TempDir,
    running: Option<Pid>,
}

impl Machine {
    /// Switched on, with nothing measured yet.
    pub(crate) fn new() -> Self {
        let mut machine = Self::off();
        machine.start();
        machine
    }

    /// What a machine is when our programs run: something was measured.
    pub(crate) fn booted() -> Self {
        let machine = Self::new();
        machine.boot();
        machine
    }

    fn off() -> Self {
        Self {
            dir: tempfile::tempdir().expect("a temporary directory"),
            running: None,
        }
    }

    fn start(&mut self) {
        let at = |name: &str| self.path(name).display().to_string();
        // It answers once both sockets are there.
        let out = Command::new("swtpm")
            .args(["socket", "--tpm2", "--daemon"])
            .args(["--tpmstate", &format!("dir={}", self.dir.path().display())])
            .args(["--server", &format!("type=unixio,path={}", at("tpm"))])
            .args(["--ctrl", &format!("type=unixio,path={}", at("tpm.ctrl"))])
            .args(["--pid", &format!("file={}", at("pid"))])
            .args(["--flags", "not-need-init,startup-clear"])
            .output()
            .expect("swtpm is installed (cargo xtask setup)");
        assert!(out.status.success(), "{out:?}");
        let pid = fs::read_to_string(self.path("pid")).expect("swtpm wrote its id");
        self.running = Some(Pid::from_raw(pid.trim().parse().expect("a number")));
    }

    fn stop(&mut self) {
        let Some(pid) = self.running.take() else {
            return;
        };
        kill(pid, Signal::SIGKILL).expect("swtpm runs");
        // It is nobody's child: gone is when its entry is.
        while kill(pid, None).is_ok() && !is_zombie(pid) {
            std::thread::yield_now();
        }
        for socket in ["tpm", "tpm.ctrl"] {
            let _ = fs::remove_file(self.path(socket));
        }
    }

    /// Power off and on: PCRs are empty, everything else is as it was.
    pub(crate) fn reset(&mut self) {
        // Without this a TPM may count the power cut as a wrong PIN. After a change of its banks it
        // refuses.
        self.try_tool("tpm2_shutdown", &["--clear"]);
        self.stop();
        self.start();
    }

    /// Measures what a usual boot measures.
    pub(crate) fn boot(&self) {
        for pcr in [4, 7, 11] {
            self.extend(pcr, &[pcr; 32]);
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn connect(&self) -> UnixStream {
        UnixStream::connect(self.path("tpm")).expect("swtpm listens")
    }

    pub(crate) fn tpm(&self) -> Tpm<UnixStream> {
        Tpm::new(self.connect())
    }

    /// A program of tpm2-tools that has to succeed. Nobody else may be connected.
    pub(crate) fn tool(&self, name: &str, args: &[&str]) -> String {
        let out = self.try_tool(name, args);
        let text = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{name} {args:?}: {text}");
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    pub(crate) fn try_tool(&self, name: &str, args: &[&str]) -> Output {
        Command::new(name)
            .args(["-T", &format!("swtpm:path={}", self.path("tpm").display())])
            .args(args)
            .current_dir(self.dir.path())
            .output()
            .expect("tpm2-tools are installed (cargo xtask setup)")
    }

    /// Lets go what tools leave loaded in a TPM that no kernel manages.
    pub(crate) fn flush(&self) {
        for kind in ["-t", "-l", "-s"] {
            self.tool("tpm2_flushcontext", &[kind]);
        }
    }

    pub(crate) fn extend(&self, pcr: u8, digest: &[u8; 32]) {
        self.tool(
            "tpm2_pcrextend",
            &[&format!("{pcr}:sha256={}", hex(digest))],
        );
    }

    /// That nothing of ours is left in it.
    pub(crate) fn assert_clean(&self) {
        for kind in ["handles-transient", "handles-loaded-session"] {
            assert_eq!(self.tool("tpm2_getcap", &[kind]), "", "{kind}");
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop();
    }
}

fn is_zombie(pid: Pid) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
    stat.is_ok_and(|stat| stat.contains(") Z "))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
