//! `alknet image`: disks, files and signatures on this computer, without a node.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use alknet_image::{ImageForm, MANIFEST_FILE, OutputRole};
use alknet_test_support::limited;
use alknet_tests::tools::{tool, tool_says};
use alknet_tests::{
    BuiltImageFolder, CliOutput, FileServer, TestBench, binary, eventually, run_with_input,
};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

use crate::page_commands::blocks;

const PAGE: &str = include_str!("../../../docs/image.md");
/// The sections whose commands start machines or update one. `tests/tests/machine/boot_page.rs` and
/// `tests/tests/machine/update/good.rs` run them.
const MACHINES: [&str; 2] = ["Boot them", "Release it"];
/// The beginning of the block that `tests/tests/node/image_build.rs` runs.
pub(crate) const BUILDS: &str = "alknet image build ";
/// Limit for one block of the page.
pub(crate) const BLOCK_MAX: Duration = Duration::from_secs(120);
/// Words of a vault that exists in tests only.
pub(crate) const WORDS: &str = "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about\n";
/// Exit codes of docs/command-line.md.
const FAILED: i32 = 1;
const USAGE: i32 = 2;
const UNREACHABLE: i32 = 3;
const DENIED: i32 = 4;
const ABORTED: i32 = 130;

/// A folder of a user, with the program on its search path.
pub(crate) struct ImageUser {
    pub(crate) bench: TestBench,
}

impl ImageUser {
    pub(crate) fn new() -> Self {
        let bench = TestBench::new();
        fs::create_dir(bench.path().join("bin")).expect("the folder is ours");
        symlink(binary(), bench.path().join("bin/alknet")).expect("the folder is ours");
        Self { bench }
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.bench.path().join(name)
    }

    /// The program with these words, in the folder.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command
            .arg("image")
            .args(words)
            .current_dir(self.bench.path());
        command
    }

    pub(crate) fn run(&self, words: &[&str]) -> CliOutput {
        run_with_input(self.command(words), "")
    }

    /// A disk of 2 MiB, raw, and packed with the program of Zstandard.
    pub(crate) fn small_disk(&self) -> Vec<u8> {
        let mut disk = vec![0; 2 << 20];
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        disk[1_500_000..1_500_004].copy_from_slice(b"disk");
        fs::write(self.file("disk.raw"), &disk).expect("the folder is ours");
        let [raw, packed] = ["disk.raw", "disk.raw.zst"].map(|name| self.file(name));
        tool_says(
            "zstd",
            &[
                "-q".as_ref(),
                raw.as_os_str(),
                "-o".as_ref(),
                packed.as_os_str(),
            ],
        );
        disk
    }

    /// The shipped disk in `out`, with its checksum and a manifest of it alone. Returns the version.
    pub(crate) fn release(&self) -> String {
        let built = BuiltImageFolder::get();
        let out = self.file("out");
        fs::create_dir(&out).expect("the folder is ours");
        let raw = built.file(ImageForm::Raw, OutputRole::Disk);
        let sum = raw.with_extension("raw.sha256");
        for file in [&raw, &sum] {
            let (file, out) = (file.as_os_str(), out.as_os_str());
            tool_says("cp", &["--sparse=always".as_ref(), file, out]);
        }
        let manifest = fs::read(built.folder().join(MANIFEST_FILE)).expect("it was built");
        let mut manifest: Value = serde_json::from_slice(&manifest).expect("JSON");
        let outputs = manifest["outputs"].as_array_mut().expect("a list");
        outputs.retain(|output| output["form"] == "raw" && output["role"] == "disk");
        fs::write(out.join(MANIFEST_FILE), manifest.to_string()).expect("the folder is ours");
        built.manifest().version.clone()
    }

    /// Runs commands of the page, and returns what they print.
    pub(crate) fn shell(&self, code: &str) -> String {
        let path = std::env::var("PATH").expect("a search path");
        let mut shell = limited(BLOCK_MAX, "bash");
        shell
            .args(["-euo", "pipefail", "-c", &format!("exec 2>&1\n{code}")])
            .current_dir(self.bench.path())
            .env(
                "PATH",
                format!("{}:{path}:/usr/sbin:/sbin", self.file("bin").display()),
            );
        let said = run_with_input(shell, "");
        assert_eq!(said.status, 0, "the commands\n{code}\nsaid {said:?}");
        said.output
    }
}

fn error(output: &CliOutput) -> (i32, String) {
    (output.status, output.code())
}

/// The command renamed its new file over what `--out` names, also over a pipe.
#[test]
fn what_a_command_makes_can_go_into_a_pipe() {
    let user = ImageUser::new();
    user.shell(
        r#"chmod go-w .
openssl genpkey -algorithm ed25519 -out ada.pem
root() { alknet image root --key ada.pem --expires 2032-01-31 --out "$1"; }
root 1.root.json
mkfifo pipe
cat pipe > piped & root pipe
wait $!
test -p pipe
cmp 1.root.json piped
root >(cat > substituted)
wait $!
cmp 1.root.json substituted
root /dev/fd/1 > streamed
head -c "$(stat -c %s 1.root.json)" streamed | cmp - 1.root.json"#,
    );
}

#[test]
fn the_commands_of_the_page_of_images_work() {
    let user = ImageUser::new();
    let version = user.release();
    fs::write(user.file("node.toml"), "[node]\nname = \"edge-1\"\n").expect("the folder is ours");
    let sections = PAGE.split("\n## ").filter(|section| {
        let title = section.lines().next().unwrap_or_default();
        !MACHINES.contains(&title)
    });
    let mut said = Vec::new();
    for (info, code) in sections.flat_map(blocks) {
        if info == "sh" && !code.starts_with(BUILDS) {
            // The test has a file in the place of the disk.
            let code = code
                .replace("VERSION", &version)
                .replace("/dev/sdX --seed", "disk.raw --to-file --seed")
                .replace("verify /dev/sdX", "verify disk.raw --disk");
            assert!(!code.contains("/dev/"), "{code}");
            said.push(user.shell(&code));
        }
    }
    let [summed, written, checked, signed, _, efi, licences] = &said[..] else {
        panic!("{} blocks: {said:?}", said.len());
    };
    assert_eq!(*summed, format!("alknet_{version}.raw: OK\n"));
    assert!(
        written.contains("are the same when they are read back"),
        "{written}"
    );
    assert!(written.contains("placed: alknet.toml"), "{written}");
    assert!(checked.contains("other     alknet.toml"), "{checked}");
    assert!(
        checked.contains(&format!("the manifest of version {version}")),
        "{checked}"
    );
    assert!(checked.contains("left out  data partition"), "{checked}");
    assert!(signed.contains("out/manifest.json.minisig"), "{signed}");
    assert!(signed.contains("the signature holds"), "{signed}");
    assert!(efi.contains("Signature verification OK"), "{efi}");
    for program in ["ALKNET/A.EFI", "BOOT/BOOTX64.EFI"] {
        let checked = format!("checked   alknet_{version}.raw: EFI/{program}");
        assert!(efi.contains(&checked), "{efi}");
    }
    assert!(licences.contains("GPL-2.0"), "{licences}");
}

/// A loop device, which goes away with this.
struct LoopDisk(String);

impl LoopDisk {
    /// `None` where this user or this kernel makes none.
    fn new(file: &Path, bytes: u64) -> Option<Self> {
        let backing = File::create(file).expect("the folder is ours");
        backing.set_len(bytes).expect("sparse");
        let made = tool(
            "losetup",
            &["--find".as_ref(), "--show".as_ref(), file.as_os_str()],
        );
        let name = String::from_utf8_lossy(&made.stdout).trim().to_owned();
        (made.status.success() && !name.is_empty()).then_some(Self(name))
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        tool("losetup", &["--detach", &self.0]);
    }
}

#[test]
fn a_disk_is_written_only_if_its_serial_number_is_given() {
    let user = ImageUser::new();
    let disk = user.small_disk();
    let bytes = 16 << 20;
    let Some(device) = LoopDisk::new(&user.file("backing"), bytes) else {
        alknet_test_support::skip!("loop devices", "losetup makes none here");
    };
    let path = device.0.as_str();
    let name = path.strip_prefix("/dev/").expect("its folder");
    // A loop device has neither a serial number nor a model.
    let serial = format!("{name} {bytes}");
    let write = |more: &[&str]| {
        let words = [&["write", "disk.raw.zst", path, "--json"], more].concat();
        user.run(&words)
    };
    for (more, expected) in [
        (&[][..], (USAGE, "USAGE")),
        (&["--yes"], (USAGE, "USAGE")),
        (&["--serial", &serial], (USAGE, "USAGE")),
        (&["--serial", "S4EVNX0N", "--yes"], (DENIED, "DISK_REFUSED")),
    ] {
        let refused = write(more);
        let (status, code) = error(&refused);
        assert_eq!((status, code.as_str()), expected, "{more:?}: {refused:?}");
        let mut head = [1; 512];
        let opened = File::open(path).expect("ours");
        opened.read_exact_at(&mut head, 0).expect("readable");
        assert_eq!(head, [0; 512], "{more:?} wrote something");
    }
    let report = write(&["--serial", &serial, "--yes"]).json();
    assert_eq!(report["bytes"], disk.len());
    assert_eq!(report["large_enough"], false);
    let mut written = vec![0; disk.len()];
    let opened = File::open(path).expect("ours");
    opened.read_exact_at(&mut written, 0).expect("readable");
    assert!(written == disk, "the disk has other bytes");
}

#[test]
fn an_image_comes_from_a_server_and_from_standard_input() {
    let user = ImageUser::new();
    let disk = user.small_disk();
    let server = FileServer::start(user.bench.path());
    let url = format!("http://127.0.0.1:{}/disk.raw.zst", server.port());
    user.run(&["write", &url, "one", "--to-file", "--json"])
        .json();
    assert!(fs::read(user.file("one")).expect("written") == disk);
    let missing = format!("{url}.missing");
    let refused = user.run(&["write", &missing, "none", "--to-file", "--json"]);
    assert_eq!(error(&refused), (UNREACHABLE, "UNAVAILABLE".to_owned()));
    assert!(refused.errors.contains("404"), "{refused:?}");
    let mut command = user.command(&["write", "-", "two", "--to-file", "--json"]);
    command.stdin(File::open(user.file("disk.raw.zst")).expect("ours"));
    let written = command.output().expect("the binary runs");
    assert!(written.status.success(), "{written:?}");
    assert!(fs::read(user.file("two")).expect("written") == disk);
}

#[test]
fn what_cannot_be_written_is_refused_with_its_reason() {
    let user = ImageUser::new();
    let disk = user.small_disk();
    let mut qcow2 = disk;
    qcow2[..4].copy_from_slice(b"QFI\xfb");
    fs::write(user.file("disk.qcow2"), qcow2).expect("the folder is ours");
    fs::write(user.file("full"), "content").expect("the folder is ours");
    fs::write(user.file("node.toml"), "[node]\nname = \"edge-1\"\n").expect("the folder is ours");
    fs::write(user.file("wrong.toml"), "[node]\nnmae = 1\n").expect("the folder is ours");
    let zeros = "0".repeat(64);
    for (words, status, code, text) in [
        (
            &["disk.qcow2", "a", "--to-file"][..],
            USAGE,
            "NOT_IMAGE",
            "qcow2",
        ),
        (&["missing", "a", "--to-file"], USAGE, "USAGE", "missing"),
        (&["disk.raw", "full"], DENIED, "DISK_REFUSED", "--to-file"),
        (&["disk.raw", "full", "--to-file"], USAGE, "USAGE", "--yes"),
        (
            &["disk.raw", "a", "--to-file", "--sha256", &zeros],
            FAILED,
            "IMAGE_DIFFERS",
            "SHA-256",
        ),
        (
            &["disk.raw", "a", "--to-file", "--seed", "wrong.toml"],
            USAGE,
            "USAGE",
            "nmae",
        ),
        (
            &["disk.raw", "a", "--to-file", "--yes", "--seed", "node.toml"],
            USAGE,
            "NOT_IMAGE",
            "takes no configuration",
        ),
    ] {
        let refused = user.run(&[&["write", "--json"], words].concat());
        assert_eq!(
            error(&refused),
            (status, code.to_owned()),
            "{words:?}: {refused:?}"
        );
        assert!(refused.errors.contains(text), "{words:?}: {refused:?}");
    }
    assert_eq!(fs::read(user.file("full")).expect("it stays"), b"content");
}

#[test]
fn ctrl_c_says_what_the_disk_is_worth() {
    let user = ImageUser::new();
    let disk = user.small_disk();
    let mut command = user.command(&["write", "-", "disk", "--to-file"]);
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = piped
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut input = child.stdin.take().expect("it was asked for above");
    // The head, and not the end, for which it waits.
    input
        .write_all(&disk[..(1 << 20) + 70_000])
        .expect("it reads");
    let begun = || {
        let found = fs::metadata(user.file("disk")).ok()?;
        (found.len() >= 1 << 20).then_some(())
    };
    eventually("the disk is begun", begun);
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    kill(pid, Signal::SIGINT).expect("it is our child");
    let ended = child.wait_with_output().expect("it is our child");
    drop(input);
    assert_eq!(ended.status.code(), Some(ABORTED), "{ended:?}");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(
        said.contains("ABORTED") && said.contains("no partition table"),
        "{said}"
    );
    let mut head = vec![1; 1 << 20];
    let opened = File::open(user.file("disk")).expect("ours");
    opened.read_exact_at(&mut head, 0).expect("readable");
    assert!(head.iter().all(|byte| *byte == 0));
}

/// The order would stay on the disk, and erase it at a later start from a medium.
#[test]
fn a_seed_with_an_order_to_install_costs_the_disk_nothing() {
    let user = ImageUser::new();
    user.small_disk();
    let order = "[node]\nname = \"edge-1\"\n[install]\ndisk = \"S4EVNX0N\"\nerase = true\n";
    fs::create_dir(user.file("seed")).expect("the folder is ours");
    for name in ["node.toml", "seed/alknet.toml"] {
        fs::write(user.file(name), order).expect("the folder is ours");
    }
    for seed in ["node.toml", "seed"] {
        let refused = user.run(&[
            "write",
            "disk.raw",
            "disk",
            "--to-file",
            "--seed",
            seed,
            "--json",
        ]);
        assert_eq!(error(&refused), (USAGE, "USAGE".to_owned()), "{seed}");
        assert!(refused.errors.contains("[install]"), "{refused:?}");
        assert!(!user.file("disk").exists(), "{seed}: nothing is written");
    }
}

#[test]
fn a_key_for_secure_boot_needs_its_certificate_and_a_program() {
    let user = ImageUser::new();
    let build = ["build", "--kernel", "bzImage", "--out", "out", "--json"];
    for (more, text) in [
        (
            &["--form", "uki", "--efi-key", "owner.key"][..],
            "--efi-cert",
        ),
        (&["--form", "uki", "--efi-cert", "owner.pem"], "--efi-key"),
        (
            &[
                "--form",
                "uki",
                "--efi-key",
                "owner.key",
                "--efi-cert",
                "owner.pem",
            ],
            "owner.key",
        ),
    ] {
        let refused = user.run(&[&build[..], more].concat());
        assert_eq!(refused.status, USAGE, "{refused:?}");
        assert!(refused.errors.contains(text), "{refused:?}");
    }
    user.shell(
        "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=owner -keyout owner.key -out owner.pem",
    );
    let keys = [
        "--form",
        "oci",
        "--efi-key",
        "owner.key",
        "--efi-cert",
        "owner.pem",
    ];
    let refused = user.run(&[&build[..], &keys].concat());
    assert_eq!(error(&refused), (USAGE, "USAGE".to_owned()));
    assert!(
        refused.errors.contains("EFI program to sign"),
        "{refused:?}"
    );
    assert!(!user.file("out").exists());
}

#[test]
fn a_folder_with_a_changed_file_is_not_signed() {
    let user = ImageUser::new();
    let version = user.release();
    user.shell("printf x | dd of=out/$(cd out && ls *.raw) bs=1 seek=1000 conv=notrunc");
    let sign = user.command(&["sign", "out", "--mnemonic-stdin", "--json"]);
    let refused = run_with_input(sign, WORDS);
    assert_eq!(error(&refused), (FAILED, "IMAGE_DIFFERS".to_owned()));
    let name = format!("alknet_{version}.raw");
    assert!(refused.errors.contains(&name), "{refused:?}");
    assert!(!user.file("out").join(format!("{name}.minisig")).exists());
}

#[test]
fn the_image_key_of_a_vault_signs_for_minisign() {
    let user = ImageUser::new();
    fs::write(user.file("file"), "what is signed").expect("the folder is ours");
    let sign = user.command(&["sign", "file", "--mnemonic-stdin", "--json"]);
    let signed = run_with_input(sign, WORDS).json();
    let key = signed["public_key"].as_str().expect("a key");
    let file = user.file("file");
    let said = tool_says(
        "minisign",
        &[
            "-V".as_ref(),
            "-P".as_ref(),
            key.as_ref(),
            "-m".as_ref(),
            file.as_os_str(),
        ],
    );
    assert!(said.contains("file:file hashed"), "{said}");
    let checked = user.run(&["verify", "file", "--key", key, "--json"]).json();
    assert_eq!(checked["signature"], true);
    // It is the key that the vault shows for this purpose.
    let mut show = Command::new(binary());
    show.args([
        "vault",
        "key",
        "show",
        "image-signing",
        "--mnemonic-stdin",
        "--json",
    ]);
    let shown = run_with_input(show, WORDS).json();
    let raw = data_encoding::BASE64
        .decode(key.as_bytes())
        .expect("base64");
    let hex = data_encoding::HEXLOWER.encode(&raw[10..]);
    assert_eq!(shown["hex"], hex.as_str());
    // Another file does not have this signature.
    fs::write(&file, "something else").expect("the folder is ours");
    let refused = user.run(&["verify", "file", "--key", key, "--json"]);
    assert_eq!(error(&refused), (FAILED, "IMAGE_DIFFERS".to_owned()));
}

#[test]
fn a_signature_holds_for_no_file_of_another_name() {
    let user = ImageUser::new();
    let version = user.release();
    let sign = user.command(&["sign", "out/manifest.json", "--mnemonic-stdin", "--json"]);
    let signed = run_with_input(sign, WORDS).json();
    let key = signed["public_key"].as_str().expect("a key");
    let checked = user.run(&["verify", "out/manifest.json", "--key", key, "--json"]);
    let comment = format!("file:manifest.json version:{version} hashed");
    assert_eq!(checked.json()["trusted_comment"], comment.as_str());
    for ending in ["", ".minisig"] {
        let from = user.file(&format!("out/manifest.json{ending}"));
        let to = user.file(&format!("out/newer.json{ending}"));
        fs::rename(from, to).expect("the folder is ours");
    }
    let refused = user.run(&["verify", "out/newer.json", "--key", key, "--json"]);
    assert_eq!(error(&refused), (FAILED, "IMAGE_DIFFERS".to_owned()));
    assert!(refused.errors.contains("newer.json"), "{refused:?}");
}

#[test]
fn an_image_is_built_from_a_kernel_and_this_program() {
    let user = ImageUser::new();
    let built = BuiltImageFolder::get();
    let kernel = built.file(ImageForm::Direct, OutputRole::Kernel);
    let kernel = kernel.to_str().expect("text");
    let [public, secret] = ["key.pub", "key.sec"].map(|name| user.file(name));
    let [public, secret] = [&public, &secret].map(|path| path.to_str().expect("text"));
    tool_says("minisign", &["-G", "-W", "-p", public, "-s", secret]);
    let words = [
        "build", "--kernel", kernel, "--form", "oci", "--out", "out", "--key", secret, "--json",
    ];
    let manifest = user.run(&words).json();
    let outputs = manifest["outputs"].as_array().expect("a list");
    let roles: Vec<_> = outputs.iter().map(|output| &output["role"]).collect();
    assert_eq!(roles, ["oci-image", "sbom", "signature", "signature"]);
    let signed = user.file("out/manifest.json");
    tool_says(
        "minisign",
        &["-V", "-p", public, "-m", signed.to_str().expect("text")],
    );
    assert_eq!(manifest["version"], built.manifest().version.as_str());
    let sha256 = |name: &str| {
        let inputs = manifest["inputs"].as_array().expect("a list");
        let found = inputs.iter().find(|it| it["name"] == name);
        found.expect("an input")["sha256"].clone()
    };
    let mut shipped = built.manifest().inputs.iter();
    let shipped = shipped.find(|input| input.name == "kernel");
    assert_eq!(sha256("kernel"), shipped.expect("an input").sha256.as_str());
    let program = tool_says("sha256sum", &[binary()]);
    assert!(
        program.starts_with(sha256("binary").as_str().expect("a hash")),
        "{program}"
    );
    let refused = user.run(&[
        "build", "--kernel", kernel, "--form", "raw", "--out", "x", "--json",
    ]);
    assert_eq!(error(&refused), (USAGE, "USAGE".to_owned()));
    assert!(refused.errors.contains("linuxx64.efi.stub"), "{refused:?}");
    let kernels = [
        "build",
        "--kernel",
        "/nonexistent",
        "--form",
        "oci",
        "--out",
        "x",
        "--json",
    ];
    assert_eq!(error(&user.run(&kernels)), (FAILED, "LOCAL".to_owned()));
    let mut timed = user.command(&kernels);
    timed.env("SOURCE_DATE_EPOCH", "yesterday");
    let refused = run_with_input(timed, "");
    assert_eq!(error(&refused), (USAGE, "USAGE".to_owned()));
    assert!(refused.errors.contains("SOURCE_DATE_EPOCH"), "{refused:?}");
}
