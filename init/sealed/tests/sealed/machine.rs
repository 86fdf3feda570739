//! The device mapper of the appliance's kernel: the program `sealed_machine` is PID 1 of a small
//! machine, with stock cryptsetup beside it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use alknet_qemu::{MachineKind, VirtioDisk, Vm, blank};

/// The variable with the folder of the built image, which has the kernel.
const IMAGE_VARIABLE: &str = "ALKNET_TEST_IMAGE_DIR";
/// Each step takes some seconds.
const LIMIT: Duration = Duration::from_secs(30);

/// The kernel under test.
fn kernel() -> PathBuf {
    let folder = std::env::var_os(IMAGE_VARIABLE);
    let folder = PathBuf::from(folder.unwrap_or_else(|| {
        panic!("{IMAGE_VARIABLE} is not set; run these tests with `cargo xtask test`")
    }));
    let manifest = fs::read(folder.join("manifest.json")).expect("a built image");
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("JSON");
    let mut outputs = manifest["outputs"].as_array().into_iter().flatten();
    let kernel = outputs.find(|output| output["role"] == "vmlinux");
    let file = kernel.and_then(|output| output["file"].as_str());
    folder.join(file.expect("an image with a kernel for small machines"))
}

/// The program, which is built with this test: examples lie beside the folder of test programs.
fn program() -> PathBuf {
    let own = std::env::current_exe().expect("a running program");
    let folder = own
        .parent()
        .and_then(Path::parent)
        .expect("deps has a parent");
    let path = folder.join("examples/sealed_machine");
    assert!(
        path.exists(),
        "{} is missing; `cargo test --release -p alknet-sealed` builds it",
        path.display()
    );
    path
}

/// Copies a file to the same path below `root`.
fn take(root: &Path, from: &Path) {
    let to = root.join(from.strip_prefix("/").expect("a whole path"));
    fs::create_dir_all(to.parent().expect("in a folder")).expect("writable");
    fs::copy(from, to).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
}

/// Copies stock cryptsetup with every library that it needs.
fn take_cryptsetup(root: &Path) {
    let path = ["/usr/sbin/cryptsetup", "/sbin/cryptsetup"]
        .into_iter()
        .find(|path| Path::new(path).exists())
        .expect("cryptsetup is installed (package cryptsetup-bin)");
    let output = Command::new("ldd")
        .arg(path)
        .output()
        .expect("libc-bin has ldd");
    let words = String::from_utf8_lossy(&output.stdout).into_owned();
    for word in words
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
    {
        take(root, Path::new(word));
    }
    let to = root.join("usr/sbin");
    fs::create_dir_all(&to).expect("writable");
    fs::copy(path, to.join("cryptsetup")).expect("writable");
}

fn initramfs(dir: &Path) -> PathBuf {
    let root = dir.join("root");
    for folder in ["dev", "proc", "run", "sys", "tmp"] {
        fs::create_dir_all(root.join(folder)).expect("writable");
    }
    take_cryptsetup(&root);
    fs::copy(program(), root.join("init")).expect("writable");
    let archive = dir.join("initrd");
    let status = Command::new("sh")
        .args(["-c", "find . | cpio --quiet -o -H newc > \"$0\""])
        .arg(&archive)
        .current_dir(&root)
        .stdin(Stdio::null())
        .status()
        .expect("a shell");
    assert!(status.success(), "cpio is installed (package cpio)");
    archive
}

#[test]
fn what_is_written_through_our_mapping_cryptsetup_reads_and_the_other_way_round() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let initrd = initramfs(dir.path());
    let disks = ["ours", "theirs", "slow"].map(|name| {
        let path = dir.path().join(name);
        blank(&path, 96 << 20).expect("writable");
        VirtioDisk::file(path)
    });
    let [ours, theirs, slow] = disks;
    let vm = Vm::builder(MachineKind::Microvm)
        .kernel(kernel())
        .initrd(initrd)
        .append("console=ttyS0 quiet panic=10")
        .disk(ours)
        .disk(theirs)
        .disk(slow)
        .start()
        .expect("QEMU is installed");
    let line = vm
        .wait_line("sealed machine: ", LIMIT)
        .expect("it says how it went");
    assert!(line.text.contains("all is well"), "{}", line.text);
}
