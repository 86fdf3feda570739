//! What a finder of a sealed disk and its recovery words can read, with programs by other authors:
//! cryptsetup opens a slot and gives the volume key, Python's `cryptography` decrypts, debugfs
//! reads files. So the tests' host needs no device mapper.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use alknet_sealed::limits::{DATA_AT, SECTOR_BYTES};

use alknet_tests::tools::{debugfs, tool_says, variable};
use alknet_tests::{TestBench, binary, run_with_input};

/// Decrypts all data of a partition.
const DECRYPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/machine/rescue.py");

/// The output of `alknet vault recovery-key show` for the words: the phrase of a key slot.
pub(super) fn recovery_key(words: &str) -> String {
    let mut command = Command::new(binary());
    command.args(["vault", "recovery-key", "show", "--mnemonic-stdin"]);
    let answer = run_with_input(command, &format!("{words}\n"));
    assert_eq!(answer.status, 0, "{answer:?}");
    answer.output
}

/// The text of a file of the data on `disk`.
pub(super) fn read(bench: &TestBench, disk: &Path, words: &str, file: &str) -> String {
    debugfs(&decrypt(bench, disk, words), &format!("cat {file}"))
}

/// Overwrites each sector of the data on `disk` that contains `text`. The words are needed to find
/// them, while an attacker without the words tries positions. Returns how many there were.
pub(super) fn damage(bench: &TestBench, disk: &Path, words: &str, text: &str) -> usize {
    let plain = File::open(decrypt(bench, disk, words)).expect("it was decrypted");
    let encrypted = File::options().write(true).open(disk);
    let encrypted = encrypted.expect("the disk is ours");
    let mut plain = BufReader::new(plain);
    let mut sector = vec![0; SECTOR_BYTES as usize];
    let mut damaged = 0;
    for at in (DATA_AT..).step_by(sector.len()) {
        match plain.read_exact(&mut sector) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
            Err(error) => panic!("{error}"),
        }
        if memchr::memmem::find(&sector, text.as_bytes()).is_some() {
            let garbage = vec![0xa5; sector.len()];
            encrypted
                .write_all_at(&garbage, at)
                .expect("the disk is ours");
            damaged += 1;
        }
    }
    damaged
}

/// All decrypted data of `disk`, in a file of the bench.
fn decrypt(bench: &TestBench, disk: &Path, words: &str) -> PathBuf {
    let at = |name: &str| bench.path().join(name);
    let (phrase, key, plain) = (at("phrase"), at("volume.key"), at("plain"));
    std::fs::write(&phrase, recovery_key(words)).expect("the folder is ours");
    let options = [
        "luksDump",
        "--batch-mode",
        "--dump-volume-key",
        "--key-file",
    ];
    let mut arguments: Vec<&OsStr> = options.iter().map(OsStr::new).collect();
    arguments.extend([phrase.as_os_str(), OsStr::new("--volume-key-file")]);
    arguments.extend([key.as_os_str(), disk.as_os_str()]);
    tool_says("cryptsetup", &arguments);
    let output = Command::new("python3")
        .arg(DECRYPT)
        .args([disk, key.as_path(), plain.as_path()])
        .env("PYTHONPATH", variable("ALKNET_TEST_PYTHONPATH"))
        .output()
        .expect("Python is installed by the set-up");
    let diagnostic = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{diagnostic}");
    plain
}
