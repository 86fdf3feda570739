//! Real starts: UEFI firmware measures an image of ours, whose PID 1 is the program
//! `booted_machine`, into a TPM that stays the same from start to start. `measured` does so without
//! Secure Boot, `enforced` under our own key.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use alknet_qemu::{MachineKind, PlatformOwner, VirtioDisk, Vm, VmBuilder, blank};

/// The variable with the folder of the built image, whose stub and kernel the tests use.
const IMAGE_VARIABLE: &str = "ALKNET_TEST_IMAGE_DIR";
/// The variable with the folder of Python packages, which are of other projects.
const PACKAGES_VARIABLE: &str = "ALKNET_TEST_PYTHONPATH";
/// From power-on to the line of the program. Firmware takes most of it.
pub(super) const LIMIT: Duration = Duration::from_secs(30);
/// Content of the boot disk, KiB: an image of some 15 MiB.
const DISK_KIB: &str = "65536";

/// An image, a vault and a TPM's state, in their own folder.
pub(super) struct TpmBootBench {
    dir: tempfile::TempDir,
    initrd: Vec<u8>,
}

impl TpmBootBench {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let initrd = initramfs(dir.path());
        blank(&dir.path().join("vault"), 1 << 20).expect("writable");
        Self { dir, initrd }
    }

    /// The built image with the program of these tests in place of the appliance, and another
    /// command line.
    pub(super) fn image(&self, command_line: &str) -> Vec<u8> {
        let line =
            format!("console=ttyS0 quiet panic=10 noreplace-smp no_timer_check {command_line}\0");
        let image = fs::read(built_image()).expect("readable");
        let image = with_section(image, b".cmdline", line.as_bytes());
        with_section(image, b".initrd\0", &self.initrd)
    }

    pub(super) fn owner(&self, name: &str) -> PlatformOwner {
        PlatformOwner::create(self.dir.path(), name).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Firmware variables with this owner's keys.
    pub(super) fn enroll(&self, owner: &PlatformOwner, variables: &str) {
        let packages = std::env::var_os(PACKAGES_VARIABLE).unwrap_or_else(|| {
            panic!("{PACKAGES_VARIABLE} is not set; run these tests with `cargo xtask test`")
        });
        let enrolled = owner.enroll(&self.dir.path().join(variables), packages.as_ref());
        enrolled.unwrap_or_else(|error| panic!("{error}"));
    }

    pub(super) fn signed(&self, owner: &PlatformOwner, image: &[u8]) -> Vec<u8> {
        let [from, to] = ["unsigned", "signed"].map(|name| self.dir.path().join(name));
        fs::write(&from, image).expect("writable");
        let signed = owner.sign(&from, &to);
        signed.unwrap_or_else(|error| panic!("{error}"));
        fs::read(to).expect("it was written")
    }

    /// Starts an image, and reads the program's result.
    pub(super) fn boot(&self, image: &[u8], images: [&[u8]; 2], chip: &str) -> String {
        outcome(&self.start(image, images, chip, None))
    }

    /// Starts an image, with the vault and both images beside it. The firmware has Secure Boot if
    /// `secure` names its variables.
    pub(super) fn start(
        &self,
        image: &[u8],
        images: [&[u8]; 2],
        chip: &str,
        secure: Option<&str>,
    ) -> Vm {
        let vm = self.machine(image, images, chip, secure);
        let record = self.record_of(secure);
        let vm = if record.exists() {
            vm.restore(record)
        } else {
            vm
        };
        vm.start().unwrap_or_else(|error| panic!("{error}"))
    }

    /// Runs firmware once until it is about to read an image. Starts with these variables go on
    /// from there, each with its own disks and chip. The firmware's steps before are the same for
    /// all of them.
    pub(super) fn record(&self, images: [&[u8]; 2], secure: Option<&str>) {
        let vm = self.machine(images[0], images, "recorder", secure);
        let vm = vm.saveable().start();
        let vm = vm.unwrap_or_else(|error| panic!("{error}"));
        let record = self.record_of(secure);
        fs::create_dir(&record).expect("writable");
        let saved = vm
            .wait_ready_to_boot(LIMIT)
            .and_then(|()| vm.save(&record, LIMIT));
        saved.unwrap_or_else(|error| panic!("{error}"));
    }

    fn record_of(&self, secure: Option<&str>) -> PathBuf {
        let name = format!("{}.record", secure.unwrap_or("variables"));
        self.dir.path().join(name)
    }

    fn machine(
        &self,
        image: &[u8],
        images: [&[u8]; 2],
        chip: &str,
        secure: Option<&str>,
    ) -> VmBuilder {
        let path = |name: &str| self.dir.path().join(name);
        let program = path("program.efi");
        fs::write(&program, image).expect("writable");
        let boot = path("boot");
        let _ = fs::remove_file(&boot);
        // One volume id: firmware that was recorded knows this volume.
        let make = ["-i", "1", "-C"].map(OsStr::new);
        let make = [&make[..], &[boot.as_ref(), DISK_KIB.as_ref()]].concat();
        run("mkfs.vfat", &make);
        let at = |file: &str| format!("::/{file}");
        for folder in ["EFI", "EFI/BOOT"] {
            run("mmd", &["-i".as_ref(), boot.as_ref(), at(folder).as_ref()]);
        }
        let to = at("EFI/BOOT/BOOTX64.EFI");
        let copy = ["-i".as_ref(), boot.as_ref(), program.as_ref(), to.as_ref()];
        run("mcopy", &copy);
        let mut vm = Vm::builder(MachineKind::Q35Uefi)
            .tpm(path(chip))
            .variables(path(secure.unwrap_or("variables")))
            .disk(VirtioDisk::file(&boot).read_only())
            .disk(VirtioDisk::file(path("vault")));
        for (name, image) in ["running", "next"].into_iter().zip(images) {
            let behind_length = [&(image.len() as u64).to_le_bytes(), image].concat();
            let mut padded = behind_length;
            padded.resize(padded.len().next_multiple_of(4096), 0);
            fs::write(path(name), padded).expect("writable");
            vm = vm.disk(VirtioDisk::file(path(name)).read_only());
        }
        if secure.is_some() {
            vm.secure_boot()
        } else {
            vm
        }
    }
}

/// The program's result.
pub(super) fn outcome(vm: &Vm) -> String {
    let line = vm.wait_line("booted machine: ", LIMIT);
    let line = line.unwrap_or_else(|error| panic!("{error}"));
    let (_, said) = line.text.split_once(": ").expect("it was waited for");
    said.trim_end().to_owned()
}

fn built_image() -> PathBuf {
    let folder = std::env::var_os(IMAGE_VARIABLE);
    let folder = PathBuf::from(folder.unwrap_or_else(|| {
        panic!("{IMAGE_VARIABLE} is not set; run these tests with `cargo xtask test`")
    }));
    let files = fs::read_dir(folder).expect("a built image");
    let mut files = files.map(|file| file.expect("readable").path());
    let image = files.find(|file| file.extension().is_some_and(|it| it == "efi"));
    image.expect("an image for UEFI")
}

/// The program, which is built with this test: examples lie beside the folder of test programs.
fn program() -> PathBuf {
    let own = std::env::current_exe().expect("a running program");
    let folder = own.parent().and_then(Path::parent);
    let path = folder
        .expect("deps has a parent")
        .join("examples/booted_machine");
    let missing = "`cargo test --release -p alknet-tpm` builds it";
    assert!(path.exists(), "{} is missing; {missing}", path.display());
    path
}

fn initramfs(dir: &Path) -> Vec<u8> {
    let root = dir.join("root");
    for folder in ["dev", "proc", "sys"] {
        fs::create_dir_all(root.join(folder)).expect("writable");
    }
    let init = root.join("init");
    fs::copy(program(), &init).expect("writable");
    run("strip", &[init.as_ref()]);
    let archive = dir.join("initrd");
    let script = "cd \"$0\" && find . | cpio --quiet -o -H newc > \"$1\"";
    let arguments = [
        "-c".as_ref(),
        script.as_ref(),
        root.as_ref(),
        archive.as_ref(),
    ];
    run("sh", &arguments);
    fs::read(archive).expect("it was written")
}

fn run(program: &str, arguments: &[&OsStr]) {
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}; `cargo xtask test` installs it"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {text}");
}

/// Replaces the content of a section of an EFI program: by one of the same size, or any in place of
/// the last.
fn with_section(mut image: Vec<u8>, name: &[u8; 8], content: &[u8]) -> Vec<u8> {
    const HEADER_BYTES: usize = 40;
    const ALIGNED: usize = 512;
    let u32_at = |image: &[u8], at: usize| {
        let bytes = image[at..at + 4].try_into().expect("four bytes");
        u32::from_le_bytes(bytes) as usize
    };
    let pe = u32_at(&image, 0x3c);
    let [low, high] = [image[pe + 20], image[pe + 21]];
    let table = pe + 24 + usize::from(u16::from_le_bytes([low, high]));
    let mut headers = (table..).step_by(HEADER_BYTES);
    let header = headers.find(|at| image[*at..].starts_with(name));
    let header = header.expect("the section is there");
    let (raw_bytes, raw_at) = (u32_at(&image, header + 16), u32_at(&image, header + 20));
    let put = |image: &mut Vec<u8>, field: usize, value: usize| {
        let value = u32::try_from(value).expect("a small image").to_le_bytes();
        image[header + field..header + field + 4].copy_from_slice(&value);
    };
    put(&mut image, 8, content.len());
    if raw_at + raw_bytes == image.len() {
        image.truncate(raw_at);
        image.extend_from_slice(content);
        image.resize(image.len().next_multiple_of(ALIGNED), 0);
        let raw_bytes = image.len() - raw_at;
        put(&mut image, 16, raw_bytes);
    } else {
        assert!(content.len() <= raw_bytes, "the section is too short");
        image[raw_at..raw_at + raw_bytes].fill(0);
        image[raw_at..raw_at + content.len()].copy_from_slice(content);
    }
    image
}
