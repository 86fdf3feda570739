//! Groups that limit memory, threads and processor time, on the kernel of the appliance: the probe is PID 1 of a
//! small machine, since few hosts have groups (version 2) with controllers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use alknet_qemu::{MachineKind, Vm};

use crate::host::probe;

/// Names the folder of the built image, which has the kernel.
const IMAGE_VARIABLE: &str = "ALKNET_TEST_IMAGE_DIR";
/// The limit of the whole test, which takes some seconds.
const LIMIT: Duration = Duration::from_secs(60);

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

/// The probe and nothing else.
fn initramfs(dir: &Path) -> PathBuf {
    let root = dir.join("root");
    for folder in ["dev", "proc", "sys", "tmp"] {
        fs::create_dir_all(root.join(folder)).expect("writable");
    }
    fs::copy(probe(), root.join("init")).expect("writable");
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
fn groups_limit_memory_threads_and_processor_time() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let vm = Vm::builder(MachineKind::Microvm)
        .kernel(kernel())
        .initrd(initramfs(dir.path()))
        .append("console=ttyS0 quiet panic=10")
        .start()
        .expect("QEMU is installed");
    let line = vm
        .wait_line("worker machine: ", LIMIT)
        .unwrap_or_else(|error| panic!("{error}\n{}", vm.report()));
    assert!(line.text.contains("all is well"), "{}", line.text);
}
