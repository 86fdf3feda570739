//! Inputs for the tests: the test program itself as the static binary, a stand-in for the kernel,
//! and the real EFI stub and GRUB if there are any.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use alknet_image::{
    BOOT_CODE_BEGIN, BuildProvenance, GrubFiles, ImageForm, ImageInputs, Manifest, build,
};
use tempfile::TempDir;

/// The variable that names systemd's EFI stub for the tests.
pub(crate) const STUB_VAR: &str = "ALKNET_TEST_STUB";
/// The variable that names the folder with GRUB's parts for the tests.
pub(crate) const GRUB_VAR: &str = "ALKNET_TEST_GRUB";
/// The variable that names a LinuxKit executable for the tests, if it is not on the search path.
pub(crate) const LINUXKIT_VAR: &str = "ALKNET_LINUXKIT";

const STUB_INSTALLED: &str = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub";
const KERNEL_BYTES: usize = 300_000;
/// Bytes of a core image that stands in for GRUB's: not whole sectors.
const CORE_BYTES: usize = 99_999;
/// Version of GRUB in the tests.
pub(crate) const GRUB_VERSION: &str = "2.06-13+deb12u2";
/// A root document of updates, as far as the build looks at it.
pub(crate) const UPDATE_ROOT: &[u8] = br#"{"signatures":[],"signed":{"_type":"root"}}"#;
pub(crate) const RELEASE: &str = "6.12.95-alknet";

/// A folder of inputs.
pub(crate) struct InputFolder {
    pub(crate) dir: TempDir,
    pub(crate) inputs: ImageInputs,
}

impl InputFolder {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let write = |name: &str, bytes: &[u8]| -> PathBuf {
            let path = dir.path().join(name);
            fs::write(&path, bytes).expect("writable");
            path
        };
        let this = fs::read(std::env::current_exe().expect("a path")).expect("readable");
        let inputs = ImageInputs {
            kernel: write("bzImage", &kernel()),
            vmlinux: Some(write("vmlinux", b"\x7fELF stand-in")),
            kernel_config: Some(write("config", b"CONFIG_EXPERT=y\n")),
            binary: write("alknet", &this),
            stub: Some(write("stub", &stub())),
            grub: Some(grub(&write)),
            loader: Some(write("loader.efi", &small_stub())),
            update_root: Some(write("root.json", UPDATE_ROOT)),
            cmdline: "console=ttyS0 quiet panic=10".into(),
            version: "0.1.0".into(),
            git: "0123abc".into(),
            provenance: BuildProvenance::default(),
        };
        Self { dir, inputs }
    }

    pub(crate) fn build(&self, forms: &[ImageForm], out: &Path) -> Manifest {
        build(&self.inputs, forms, out, &mut |_| {}).expect("the forms build")
    }
}

/// Bytes that do not repeat.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 1_u32;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(bytes)
    .collect()
}

/// GRUB's parts if the test run has them, or else files of their form, which `write` makes. The
/// test records that the latter replace them.
fn grub(write: &impl Fn(&str, &[u8]) -> PathBuf) -> GrubFiles {
    let named = std::env::var_os(GRUB_VAR).map(PathBuf::from);
    let [boot_sector, hybrid_sector, core, cd_core] = match named {
        Some(folder) => ["boot.img", "boot_hybrid.img", "core.img", "eltorito.img"]
            .map(|name| folder.join(name)),
        None => {
            let why = format!("{GRUB_VAR} is not set; made-up files stand in");
            alknet_test_support::skipped("GRUB", why);
            let mut sector = noise(512);
            sector[..BOOT_CODE_BEGIN.len()].copy_from_slice(&BOOT_CODE_BEGIN);
            sector[510..].copy_from_slice(&[0x55, 0xaa]);
            let core = noise(CORE_BYTES);
            [
                write("boot.img", &sector),
                write("boot_hybrid.img", &sector),
                write("core.img", &core),
                write("eltorito.img", &core),
            ]
        }
    };
    GrubFiles {
        boot_sector,
        hybrid_sector,
        core,
        cd_core,
        version: GRUB_VERSION.into(),
    }
}

/// A file with a bzImage's header and contents that do not repeat.
pub(crate) fn kernel() -> Vec<u8> {
    let mut out = noise(KERNEL_BYTES);
    out[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    out[0x202..0x206].copy_from_slice(b"HdrS");
    out[0x20e..0x210].copy_from_slice(&0x3000_u16.to_le_bytes());
    let release = format!("{RELEASE} (builder) #1\0");
    out[0x3200..0x3200 + release.len()].copy_from_slice(release.as_bytes());
    out
}

/// systemd's stub if the machine has it, or else the smallest PE file that objdump reads. The test
/// records that the latter replaces it.
pub(crate) fn stub() -> Vec<u8> {
    let named = std::env::var_os(STUB_VAR).map(PathBuf::from);
    if let Some(path) = named {
        return fs::read(&path).unwrap_or_else(|error| panic!("{STUB_VAR} {path:?}: {error}"));
    }
    fs::read(STUB_INSTALLED).unwrap_or_else(|error| {
        let why = format!("{STUB_INSTALLED}: {error}; a made-up program stands in");
        alknet_test_support::skipped("systemd's stub", why);
        small_stub()
    })
}

fn small_stub() -> Vec<u8> {
    let mut out = vec![0; 0x800];
    let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"MZ");
    put(0x3c, &0x80_u32.to_le_bytes());
    put(0x80, b"PE\0\0\x64\x86\x01\0");
    put(0x94, &240_u16.to_le_bytes());
    put(0x96, &0x0206_u16.to_le_bytes());
    put(0x98, &0x20b_u16.to_le_bytes());
    put(0x98 + 32, &4096_u32.to_le_bytes());
    put(0x98 + 36, &512_u32.to_le_bytes());
    put(0x98 + 56, &0x2000_u32.to_le_bytes());
    put(0x98 + 60, &0x600_u32.to_le_bytes());
    put(0x98 + 68, &10_u16.to_le_bytes());
    put(0x98 + 108, &16_u32.to_le_bytes());
    put(0x188, b".text\0\0\0");
    put(0x190, &1_u32.to_le_bytes());
    put(0x194, &0x1000_u32.to_le_bytes());
    put(0x198, &0x200_u32.to_le_bytes());
    put(0x19c, &0x600_u32.to_le_bytes());
    put(0x1ac, &0x6000_0020_u32.to_le_bytes());
    put(0x600, &[0xc3]);
    out
}

/// Runs a checker, which must succeed, and returns its output.
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let output = output(program, args);
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(
        output.status.success(),
        "{program} {args:?}: {}\n{said}",
        output.status
    );
    said
}

/// Runs a program. System folders come last, for users whose search path lacks them.
pub(crate) fn output(program: &str, args: &[&str]) -> Output {
    let path = std::env::var("PATH").unwrap_or_default();
    Command::new(program)
        .args(args)
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .env("LC_ALL", "C")
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}; cargo xtask setup installs it"))
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are UTF-8")
}

/// The largest file of an OCI layout: the layer.
pub(crate) fn largest_blob(layout: &Path) -> PathBuf {
    let blobs = fs::read_dir(layout.join("blobs/sha256")).expect("a layout");
    let blobs = blobs.map(|entry| entry.expect("readable").path());
    let size = |path: &PathBuf| fs::metadata(path).map_or(0, |about| about.len());
    blobs.max_by_key(size).expect("a layer")
}
