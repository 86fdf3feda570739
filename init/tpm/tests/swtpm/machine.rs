//! A TPM in software (swtpm) with its state in a temporary folder, and the tools of others to look
//! into it.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use alknet_qemu::ChildProcess;
use alknet_test_support::eventually;
use alknet_tpm::Tpm;
use tempfile::TempDir;

/// How long swtpm may take to listen.
const LISTENS_WITHIN: Duration = Duration::from_secs(30);

/// `TPM2_GetCapability` of handles, and the first handle of each kind. The count is more than a TPM
/// has.
const GET_CAPABILITY: u32 = 0x17a;
const HANDLES: u32 = 1;
const TRANSIENT: u32 = 0x8000_0000;
const LOADED_SESSIONS: u32 = 0x0200_0000;
const SAVED_SESSIONS: u32 = 0x0300_0000;
const HANDLES_MAX: u32 = 100;
/// `TPM2_FlushContext`.
const FLUSH_CONTEXT: u32 = 0x165;

pub(crate) struct SwtpmMachine {
    /// It dies with this process, however that ends.
    running: Option<ChildProcess>,
    dir: TempDir,
}

impl SwtpmMachine {
    /// A TPM that is switched on, with nothing measured yet.
    pub(crate) fn new() -> Self {
        let mut machine = Self::off();
        machine.start();
        machine
    }

    /// The TPM as our programs find it: something was measured.
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
        let mut command = Command::new("swtpm");
        command
            .args(["socket", "--tpm2"])
            .args(["--tpmstate", &format!("dir={}", self.dir.path().display())])
            .args(["--server", &format!("type=unixio,path={}", at("tpm"))])
            .args(["--ctrl", &format!("type=unixio,path={}", at("tpm.ctrl"))])
            .args(["--flags", "not-need-init,startup-clear"])
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        let running = ChildProcess::spawn(command, vec![]);
        let running = running.expect("swtpm is installed (cargo xtask setup)");
        // The server's socket is bound after the other one, and a connection waits until it is
        // read.
        eventually("swtpm listens", LISTENS_WITHIN, || {
            let ended = running.try_wait().expect("our child");
            assert!(ended.is_none(), "swtpm ended: {ended:?}");
            UnixStream::connect(self.path("tpm")).map(drop)
        });
        self.running = Some(running);
    }

    fn stop(&mut self) {
        // The drop kills the process and waits for it.
        self.running = None;
        for socket in ["tpm", "tpm.ctrl"] {
            let _ = fs::remove_file(self.path(socket));
        }
    }

    /// Switches power off and on: PCRs are empty, everything else is as it was.
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

    /// Runs a program of tpm2-tools that has to succeed. No other client may be connected.
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

    /// Flushes what tools leave loaded in a TPM that no kernel manages. Running a program of
    /// tpm2-tools for each kind would take most of the time of tests that do this some hundred
    /// times.
    pub(crate) fn flush(&self) {
        let mut tpm = self.connect();
        for first in [TRANSIENT, LOADED_SESSIONS, SAVED_SESSIONS] {
            let words = [HANDLES, first, HANDLES_MAX];
            let answer = ask(&mut tpm, GET_CAPABILITY, &words);
            // The answer has whether there are more, the kind of the list, and the count.
            for handle in answer[10 + 1 + 4 + 4..].chunks_exact(4) {
                let handle = u32::from_be_bytes(handle.try_into().expect("four bytes"));
                ask(&mut tpm, FLUSH_CONTEXT, &[handle]);
            }
        }
    }

    pub(crate) fn extend(&self, pcr: u8, digest: &[u8; 32]) {
        self.tool(
            "tpm2_pcrextend",
            &[&format!("{pcr}:sha256={}", hex(digest))],
        );
    }

    /// Asserts that nothing of ours is left in it.
    pub(crate) fn assert_clean(&self) {
        for kind in ["handles-transient", "handles-loaded-session"] {
            assert_eq!(self.tool("tpm2_getcap", &[kind]), "", "{kind}");
        }
    }
}

/// Sends a command of some words without a session, which has to succeed.
fn ask(tpm: &mut UnixStream, code: u32, words: &[u32]) -> Vec<u8> {
    let bytes = 10 + 4 * u32::try_from(words.len()).expect("few");
    let words = [bytes, code].into_iter().chain(words.iter().copied());
    let words = words.flat_map(u32::to_be_bytes);
    let command: Vec<u8> = [0x80, 1].into_iter().chain(words).collect();
    tpm.write_all(&command).expect("it listens");
    // swtpm writes an answer at once.
    let mut answer = vec![0; 4096];
    let count = tpm.read(&mut answer).expect("it answers");
    answer.truncate(count);
    assert_eq!(answer[6..10], [0; 4], "what the TPM says to {code:#x}");
    answer
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
