//! System packages: which are missing, and how to install them.
//!
//! A package is missing if what it provides is missing (a command, a header, a firmware file), whatever its name. A
//! machine may have the same thing from elsewhere.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use crate::progress::{self, BoardRow};

/// What shows that a package, or an equivalent, is installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackageProbe {
    /// A program in `PATH` or in the folders for administrators.
    Command(&'static str),
    /// Any one of these files.
    File(&'static [&'static str]),
}

/// A Debian package this project needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DebianPackage {
    /// Name in Debian 12.
    pub name: &'static str,
    /// What shows that it is installed.
    pub probe: PackageProbe,
    /// Why it is needed. The text begins with a prefix if only the tests need it, if only compiling a kernel or a
    /// Vulkan driver needs it, if only fetching from npm's registry needs it, or if only benchmarks compare with it.
    pub why: &'static str,
}

impl DebianPackage {
    /// Whether only the tests need it.
    #[must_use]
    pub fn is_for_tests(&self) -> bool {
        self.why.starts_with("tests: ")
    }

    /// Whether only compiling a kernel or a Vulkan driver needs it, so not if the cache has both.
    #[must_use]
    pub fn is_for_compiling(&self) -> bool {
        self.why.starts_with("compiling the kernel: ")
            || self.why.starts_with("compiling Vulkan drivers: ")
    }

    /// Whether only fetching packages from npm's registry needs it.
    #[must_use]
    pub fn is_for_npm(&self) -> bool {
        self.why.starts_with("fetching: ")
    }

    /// Whether only a benchmark needs it, which compares with it.
    #[must_use]
    pub fn is_peer(&self) -> bool {
        self.why.starts_with("benchmarks: ")
    }
}

/// What a command needs packages for, in addition to building the workspace and booting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackagePurpose {
    /// Compiling a kernel or a Vulkan driver.
    pub compile: bool,
    /// All tests.
    pub test: bool,
    /// Fetching packages from npm's registry.
    pub npm: bool,
    /// Comparing with other programs in the benchmarks of images and updates.
    pub peers: bool,
}

impl PackagePurpose {
    fn needs(self, package: &DebianPackage) -> bool {
        (self.compile || !package.is_for_compiling())
            && (self.test || !package.is_for_tests())
            && (self.npm || !package.is_for_npm())
            && (self.peers || !package.is_peer())
    }
}

const fn command(name: &'static str, command: &'static str, why: &'static str) -> DebianPackage {
    DebianPackage {
        name,
        probe: PackageProbe::Command(command),
        why,
    }
}

const fn file(
    name: &'static str,
    files: &'static [&'static str],
    why: &'static str,
) -> DebianPackage {
    DebianPackage {
        name,
        probe: PackageProbe::File(files),
        why,
    }
}

/// Everything that a minimal Debian 12 with git, a C compiler and Rust lacks.
pub const PACKAGES: &[DebianPackage] = &[
    command("age", "age", "tests: opens what is handed over with it"),
    command("b3sum", "b3sum", "tests: what others call a file"),
    command("bc", "bc", "compiling the kernel: time constants"),
    command(
        "binutils",
        "strip",
        "kernel build; section list of the unified kernel image",
    ),
    command(
        "bison",
        "bison",
        "compiling the kernel: configuration parser; and Vulkan drivers",
    ),
    command(
        "bmap-tools",
        "bmaptool",
        "tests: writes a disk by our map of it",
    ),
    command(
        "bsdiff",
        "bsdiff",
        "benchmarks: a difference beside our deltas",
    ),
    command(
        "casync",
        "casync",
        "benchmarks: chunks of a file beside our deltas",
    ),
    command("chromium", "chromium", "tests: a browser"),
    command(
        "cpio",
        "cpio",
        "tests: reads our initramfs, and adds a file to one of Debian's",
    ),
    command(
        "cryptsetup-bin",
        "cryptsetup",
        "tests: what others say of our sealed partitions",
    ),
    command(
        "curl",
        "curl",
        "upstream sources where Debian no longer has them",
    ),
    command(
        "dnsmasq-base",
        "dnsmasq",
        "tests: DHCP, DHCPv6, router advertisements, and start over the network",
    ),
    command(
        "dosfstools",
        "fsck.vfat",
        "tests: checks our FAT file systems",
    ),
    command(
        "e2fsprogs",
        "mke2fs",
        "template of the data partition; tests check ext4 with it",
    ),
    command(
        "erofs-utils",
        "mkfs.erofs",
        "read-only root of the small machine",
    ),
    command("file", "file", "tests: says what we made"),
    command(
        "flex",
        "flex",
        "compiling the kernel: configuration parser; and Vulkan drivers",
    ),
    command(
        "g++",
        "c++",
        "Vulkan drivers and fuzzing: LLVM and libFuzzer are C++",
    ),
    command("gdisk", "sgdisk", "tests: checks our partition tables"),
    command(
        "glslang-tools",
        "glslangValidator",
        "compiling Vulkan drivers: shaders of Mesa's own",
    ),
    command(
        "gnutls-bin",
        "gnutls-cli",
        "tests: a TLS client of another project",
    ),
    command("iproute2", "ip", "tests: links and addresses"),
    file(
        "ipxe",
        &["/usr/lib/ipxe/snponly.efi"],
        "tests: a loader for start over the network by UEFI",
    ),
    file(
        "libelf-dev",
        &["/usr/include/libelf.h", "/usr/local/include/libelf.h"],
        "compiling the kernel: objtool",
    ),
    file(
        "libssl-dev",
        &[
            "/usr/include/openssl/ssl.h",
            "/usr/local/include/openssl/ssl.h",
        ],
        "kernel build: certificate tools",
    ),
    command(
        "libvirt-clients",
        "virt-xml-validate",
        "tests: checks our example for libvirt",
    ),
    command(
        "libxml2-utils",
        "xmllint",
        "tests: libvirt checks examples with it",
    ),
    file(
        "libzstd-dev",
        &["/usr/lib/x86_64-linux-gnu/libzstd.a"],
        "Vulkan drivers: LLVM compresses with it",
    ),
    file(
        "llvm-19-dev",
        &["/usr/lib/llvm-19/lib/libLLVMCore.a"],
        "compiling Vulkan drivers: the processor's has LLVM in it",
    ),
    command("lz4", "lz4", "kernel build: compression"),
    command("make", "make", "kernel build"),
    command(
        "minisign",
        "minisign",
        "tests: checks our signatures of files, and makes some",
    ),
    command(
        "mmdebstrap",
        "mmdebstrap",
        "benchmarks: a minimal Debian beside our image",
    ),
    command("mtools", "mcopy", "tests: reads our FAT file systems"),
    command(
        "ngtcp2-client",
        "gtlsclient",
        "tests: a QUIC client of another project",
    ),
    command(
        "ninja-build",
        "ninja",
        "compiling Vulkan drivers: Mesa's build",
    ),
    command(
        "nodejs",
        "node",
        "tests: runs TypeBox, TypeScript and a WebSocket client",
    ),
    command(
        "npm",
        "npm",
        "fetching: what tests run of npm's registry, see crates/tasks/sources.toml",
    ),
    command(
        "openssh-client",
        "ssh-keygen",
        "tests: keys that others made",
    ),
    command("openssl", "openssl", "tests: keys and a second TLS client"),
    file(
        "ovmf",
        &[
            "/usr/share/OVMF/OVMF_CODE_4M.fd",
            "/usr/share/OVMF/OVMF_CODE.fd",
        ],
        "UEFI firmware for QEMU",
    ),
    command("patch", "patch", "tests: applies our differences"),
    command("pebble", "pebble", "tests: an ACME certificate authority"),
    command("perl", "perl", "kernel build: scripts"),
    command("pkg-config", "pkg-config", "Vulkan drivers: Mesa's build"),
    file(
        "pxelinux",
        &["/usr/lib/PXELINUX/pxelinux.0"],
        "tests: a loader for start over the network",
    ),
    command(
        "python3",
        "python3",
        "Vulkan drivers: generators of Mesa's code; tests: Python's ssl as a client",
    ),
    file(
        "python3-mako",
        &["/usr/lib/python3/dist-packages/mako/__init__.py"],
        "compiling Vulkan drivers: generators of Mesa's code",
    ),
    file(
        "python3-packaging",
        &["/usr/lib/python3/dist-packages/packaging/__init__.py"],
        "Vulkan drivers: generators of Mesa's code",
    ),
    command(
        "python3-pip",
        "pip3",
        "Vulkan drivers: meson; tests: Python's QUIC, see crates/tasks/python.txt",
    ),
    file(
        "python3-yaml",
        &["/usr/lib/python3/dist-packages/yaml/__init__.py"],
        "compiling Vulkan drivers: generators of Mesa's code",
    ),
    command(
        "qemu-system-x86",
        "qemu-system-x86_64",
        "boots the appliance",
    ),
    command("qemu-utils", "qemu-img", "tests: disk images"),
    command("rsync", "rsync", "compiling the kernel: headers"),
    command("runc", "runc", "tests: runs our container image"),
    command("sbsigntool", "sbsign", "tests: signs EFI programs"),
    command("skopeo", "skopeo", "tests: reads our container images"),
    command(
        "slowhttptest",
        "slowhttptest",
        "tests: clients that take their time over HTTP",
    ),
    command("swtpm", "swtpm", "tests: a TPM in software"),
    file(
        "syslinux-common",
        &["/usr/lib/syslinux/modules/bios/ldlinux.c32"],
        "tests: part of PXELINUX",
    ),
    command("testssl.sh", "testssl", "tests: what others say of our TLS"),
    command(
        "tpm2-tools",
        "tpm2_unseal",
        "tests: a TPM client of another project",
    ),
    command("umoci", "umoci", "tests: unpacks our container images"),
    command(
        "xdelta3",
        "xdelta3",
        "benchmarks: a difference beside our deltas",
    ),
    command(
        "xorriso",
        "xorriso",
        "the medium for CD drives; tests make NoCloud volumes with it",
    ),
    command("xz-utils", "xz", "kernel source is packed with it"),
    file(
        "zlib1g-dev",
        &["/usr/lib/x86_64-linux-gnu/libz.a"],
        "Vulkan drivers: caches of shaders are compressed with it",
    ),
    command("zstd", "zstd", "kernel build: compression"),
];

/// Folders for administrators that an ordinary user's `PATH` lacks.
const ADMIN_FOLDERS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// The packages of [`PACKAGES`] that serve `purpose` and whose probe fails on this machine.
#[must_use]
pub fn missing(purpose: PackagePurpose) -> Vec<DebianPackage> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = env::split_paths(&path)
        .chain(ADMIN_FOLDERS.iter().map(PathBuf::from))
        .collect();
    let mut missing = missing_with(PACKAGES, &folders, Path::exists);
    missing.retain(|package| purpose.needs(package));
    missing
}

fn missing_with(
    packages: &[DebianPackage],
    folders: &[PathBuf],
    exists: impl Fn(&Path) -> bool,
) -> Vec<DebianPackage> {
    let there = |package: &DebianPackage| match package.probe {
        PackageProbe::Command(name) => folders.iter().any(|folder| exists(&folder.join(name))),
        PackageProbe::File(files) => files.iter().any(|file| exists(Path::new(file))),
    };
    packages
        .iter()
        .filter(|package| !there(package))
        .copied()
        .collect()
}

/// The line that an administrator runs to install `packages`.
#[must_use]
pub fn install_line(packages: &[DebianPackage]) -> String {
    format!(
        "sudo apt-get install --no-install-recommends {}",
        names(packages).join(" ")
    )
}

fn names(packages: &[DebianPackage]) -> Vec<&'static str> {
    packages.iter().map(|package| package.name).collect()
}

/// The packages to install, or the text to print if the user has to install them.
pub fn to_install(purpose: PackagePurpose) -> Result<Vec<DebianPackage>, String> {
    let wanted = missing(purpose);
    if wanted.is_empty() {
        return Ok(wanted);
    }
    if !have_apt() {
        return Err(format!(
            "this machine lacks:\n{}\nInstall them and run the command again.",
            reasons(&wanted)
        ));
    }
    if !is_root() {
        return Err(format!(
            "this machine lacks system packages. Run, then repeat the command:\n  {}",
            install_line(&wanted)
        ));
    }
    Ok(wanted)
}

/// Installs what is missing for `purpose`, or returns the text to print if the user has to do it. Threads that ask
/// for the same install it once.
pub fn ensure(purpose: PackagePurpose, logs: &Path, row: &BoardRow) -> Result<(), String> {
    static INSTALLING: Mutex<()> = Mutex::new(());
    let _alone = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    let wanted = to_install(purpose)?;
    if wanted.is_empty() {
        return Ok(());
    }
    install(&wanted, purpose, logs, row)
}

/// Installs `wanted`, as root. Logs of the package client go to `logs`.
pub fn install(
    wanted: &[DebianPackage],
    purpose: PackagePurpose,
    logs: &Path,
    row: &BoardRow,
) -> Result<(), String> {
    // Another command may have installed other packages.
    let all = PackagePurpose {
        compile: true,
        test: true,
        npm: true,
        peers: true,
    };
    let lacking = missing(all);
    let installer = Installer { logs, row };
    installer.install(wanted)?;
    // The package client removes a package of another version, for example from backports, if a new one conflicts
    // with it.
    let gone = beside(&missing(all), &lacking);
    if !gone.is_empty() {
        eprintln!(
            "the package client removed these for others; they come back in the version that fits:\n{}",
            reasons(&gone)
        );
        installer.install(&gone)?;
    }
    let still = missing(purpose);
    if is_container() {
        settle()?;
    }
    if still.is_empty() {
        return Ok(());
    }
    Err(format!(
        "installed, but these are still not found:\n{}",
        reasons(&still)
    ))
}

/// The packages of `packages` that are not among `others`.
fn beside(packages: &[DebianPackage], others: &[DebianPackage]) -> Vec<DebianPackage> {
    let among = |package: &&DebianPackage| others.iter().any(|other| other.name == package.name);
    let beside = packages.iter().filter(|package| !among(package));
    beside.copied().collect()
}

fn reasons(packages: &[DebianPackage]) -> String {
    let line = |package: &DebianPackage| format!("  {:16} {}", package.name, package.why);
    packages.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn have_apt() -> bool {
    Path::new("/usr/bin/apt-get").exists()
}

/// Whether this is a container, judging by its root file system.
fn is_container() -> bool {
    root_is_overlay(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
}

/// Writes everything that was installed to the disk at once, because in a container the package client does not do
/// so for each file. After a power cut, this command installs again what is incomplete.
fn settle() -> Result<(), String> {
    let mut sync = Command::new("sync");
    let status = sync.args(["--file-system", "/"]).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("sync --file-system /: {status}")),
        Err(error) => Err(format!("cannot run sync: {error}")),
    }
}

/// Whether the root file system is an overlay, as in a container. `mounts` is `/proc/self/mountinfo`
/// (proc_pid_mountinfo(5)). The last mount on `/` is the visible one.
fn root_is_overlay(mounts: &str) -> bool {
    let kind_of_root = |line: &str| {
        let (mount, source) = line.split_once(" - ")?;
        // The fifth field is the mount point (proc_pid_mountinfo(5)).
        let is_root = mount.split(' ').nth(4) == Some("/");
        is_root.then(|| source.starts_with("overlay "))
    };
    // The last mount at a path hides those before it.
    mounts.lines().filter_map(kind_of_root).next_back() == Some(true)
}

/// Whether this process may install packages, by the kernel's record of its user. Other users get the line to run.
#[must_use]
pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// The package client, its logs and its row on the board.
struct Installer<'a> {
    logs: &'a Path,
    row: &'a BoardRow,
}

impl Installer<'_> {
    /// All together first, which is quick. One by one if that fails, so that a conflict is named and the others are
    /// still installed.
    fn install(&self, packages: &[DebianPackage]) -> Result<(), String> {
        let update_failed = !self.apt(&["update"], "package lists", "packages-update")?;
        let mut arguments = vec!["install"];
        arguments.extend(names(packages));
        if self.apt(&arguments, "install", "packages")? {
            return Ok(());
        }
        let mut failed = Vec::new();
        for package in packages {
            let log = format!("packages-{}", package.name);
            if !self.apt(&["install", package.name], package.name, &log)? {
                failed.push(*package);
            }
        }
        if failed.is_empty() {
            return Ok(());
        }
        let hint = if update_failed {
            " (the package lists could not be brought up to date either)"
        } else {
            ""
        };
        Err(format!(
            "could not install{hint}:\n{}\nSee {}, or install them yourself:\n  {}",
            reasons(&failed),
            self.logs.join("packages.log").display(),
            install_line(&failed)
        ))
    }

    /// Runs the package client without questions. Returns whether it succeeded.
    fn apt(&self, arguments: &[&str], what: &str, log: &str) -> Result<bool, String> {
        let mut command = Command::new("apt-get");
        command
            .args([
                "-qq",
                "-y",
                "--no-install-recommends",
                "-o",
                "DPkg::Lock::Timeout=300",
            ])
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive");
        if is_container() {
            // The package client then does not sync each file. See `settle`.
            command.args(["-o", "DPkg::Options::=--force-unsafe-io"]);
        }
        self.row.say(what);
        let log = self.logs.join(format!("{log}.log"));
        let status = progress::start_logged(&mut command, &log)
            .and_then(|mut child| child.wait())
            .map_err(|error| format!("cannot run apt-get: {error}"))?;
        Ok(status.success())
    }
}

#[cfg(test)]
mod tests;
