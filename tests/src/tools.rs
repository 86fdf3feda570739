//! Host tools that inspect disks and make volumes, so that other authors' tools check this
//! project's output.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use crate::bench::TestBench;

/// Where the data partition of a raw image begins, in bytes: after the gap for a BIOS loader and
/// the EFI system partition. The layout is frozen.
pub const RAW_DATA_AT: u64 = (1 + 256) << 20;

/// Size in KiB of a NoCloud volume with FAT: that of a floppy disk.
const FAT_KIB: &str = "1440";

/// Features of an ext4 file system made by other tools for a data partition. The same as the
/// machine's own.
const EXT4_FEATURES: &str = "none,has_journal,ext_attr,dir_index,filetype,extent,64bit,flex_bg,\
                             sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum";

/// The value that `cargo xtask test` set for this variable: for most variables, a folder of
/// programs by other authors.
///
/// # Panics
/// It is not set.
#[must_use]
pub fn variable(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("{name} is not set; run these tests with `cargo xtask test`"))
}

/// A file of `tests/clients`: a test program that uses another author's client.
#[must_use]
pub fn client(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "clients", name]
        .iter()
        .collect()
}

/// Starts a client, writes `facts` as JSON to its standard input and closes that input. The caller
/// reads the client's output.
///
/// # Panics
/// It is not installed, or ends before it has read them.
pub fn start_with_json(command: &mut Command, facts: &Value) -> Child {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = piped.spawn().expect("the set-up installs it");
    let mut input = child.stdin.take().expect("it was asked for above");
    let sent = input.write_all(facts.to_string().as_bytes());
    sent.expect("it reads");
    child
}

/// Runs such a client to its end, and returns all output.
///
/// # Panics
/// As [`start_with_json`].
pub fn run_with_json(command: &mut Command, facts: &Value) -> Output {
    let child = start_with_json(command.stderr(Stdio::piped()), facts);
    child.wait_with_output().expect("it is our child")
}

/// Path of `age` or `age-keygen`: in the folder that `ALKNET_TEST_AGE` names, else the machine's
/// own program.
#[must_use]
pub fn age(program: &str) -> String {
    let folder = std::env::var("ALKNET_TEST_AGE");
    folder.map_or_else(
        |_| program.to_owned(),
        |folder| format!("{folder}/{program}"),
    )
}

/// Runs a tool, which may be one for administrators.
///
/// # Panics
/// It is not installed.
pub fn tool<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> Output {
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", format!("{path}:/usr/local/sbin:/usr/sbin:/sbin"))
        .output();
    output.unwrap_or_else(|error| panic!("{program}: {error}; `cargo xtask test` installs it"))
}

/// Runs a tool that must succeed, and returns its output.
///
/// # Panics
/// It fails or is not installed.
pub fn tool_says<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> String {
    let output = tool(program, arguments);
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{program}: {text}");
    text
}

/// Checks that the ext4 file system at byte `at` of `image` is intact and was unmounted cleanly.
///
/// # Panics
/// It is not.
pub fn assert_clean(image: &Path, at: u64) {
    let text = tool_says("e2fsck", &["-fn".to_owned(), ext4_at(image, at)]);
    // If there is a journal to replay, e2fsck skips it and calls the rest clean.
    assert!(!text.contains("journal recovery"), "{text}");
}

/// Replays the journal of the ext4 file system at byte `at` of `image`. Returns the superblock's
/// block counts before and after.
///
/// # Panics
/// There is no file system, or it cannot be read.
pub fn replay(image: &Path, at: u64) -> (u32, u32) {
    let before = ext4_blocks(image, at);
    // Exits with 1 if it had something to repair.
    tool("e2fsck", &["-fy".to_owned(), ext4_at(image, at)]);
    (before, ext4_blocks(image, at))
}

/// Whether the superblock of the ext4 file system at byte `at` counts a second group, but the first
/// block of descriptors does not have it.
///
/// # Panics
/// There is no file system, or it cannot be read.
#[must_use]
pub fn has_groups_without_descriptors(image: &Path, at: u64) -> bool {
    // Groups have 32,768 blocks of 4 KiB. A descriptor is 64 bytes, and on an intact disk the
    // second one is never zero.
    let mut second = [0; 64];
    let file = File::open(image).expect("an image");
    let read = file.read_exact_at(&mut second, at + 4096 + 64);
    read.expect("the image reaches to the descriptors");
    ext4_blocks(image, at) > 32_768 && second == [0; 64]
}

fn ext4_blocks(image: &Path, at: u64) -> u32 {
    // s_blocks_count_lo, the second number of the superblock, which begins at byte 1024.
    let mut bytes = [0; 4];
    let file = File::open(image).expect("an image");
    let read = file.read_exact_at(&mut bytes, at + 1024 + 4);
    read.expect("the image reaches to the superblock");
    u32::from_le_bytes(bytes)
}

/// Changes the unmounted ext4 file system in `image` with debugfs.
///
/// # Panics
/// debugfs reports an error.
pub fn debugfs(image: &Path, request: &str) -> String {
    let image = image.display().to_string();
    let text = tool_says("debugfs", &["-w", "-R", request, image.as_str()]);
    // It prints errors, but exits with success.
    let refusal = format!("{}:", request.split(' ').next().unwrap_or(request));
    let diagnostic = text.lines().find(|line| line.starts_with(&refusal));
    assert_eq!(diagnostic, None, "{text}");
    text
}

/// Makes `image` an ext4 file system with everything in `folder`, readable by every user.
///
/// # Panics
/// It cannot be made.
pub fn ext4_of(folder: &Path, image: &Path) {
    let readable = [OsStr::new("-R"), OsStr::new("a+rX"), folder.as_os_str()];
    tool_says("chmod", &readable);
    let fixed = ["-q", "-F", "-t", "ext4", "-b", "4096", "-O", EXT4_FEATURES];
    let fixed = fixed.into_iter().chain(["-E", "root_owner=0:0", "-d"]);
    let fixed: Vec<&OsStr> = fixed.map(OsStr::new).collect();
    let files = [folder.as_os_str(), image.as_os_str()];
    tool_says("mke2fs", &[fixed, files.to_vec()].concat());
}

fn ext4_at(image: &Path, at: u64) -> String {
    format!("{}?offset={at}", image.display())
}

/// A NoCloud volume with FAT that contains `document`, made by mtools.
///
/// # Panics
/// It cannot be made.
pub fn fat_volume(bench: &TestBench, name: &str, document: &str) -> PathBuf {
    let (image, folder) = nocloud(bench, name, document);
    let path = image.display().to_string();
    let format = ["-C", "-f", FAT_KIB, "-v", "CIDATA", "-i", &path, "::"];
    tool_says("mformat", &format);
    for file in ["user-data", "meta-data"] {
        let file = folder.join(file).display().to_string();
        tool_says("mcopy", &["-i", &path, &file, "::"]);
    }
    image
}

/// A NoCloud volume with ISO 9660 that contains `document`, made by xorriso.
///
/// # Panics
/// It cannot be made.
pub fn iso_volume(bench: &TestBench, name: &str, document: &str) -> PathBuf {
    let (image, folder) = nocloud(bench, name, document);
    let (path, folder) = (image.display().to_string(), folder.display().to_string());
    let arguments = "-as mkisofs -quiet -V cidata -J -r -o".split(' ');
    let arguments: Vec<&str> = arguments.chain([path.as_str(), folder.as_str()]).collect();
    tool_says("xorriso", &arguments);
    image
}

fn nocloud(bench: &TestBench, name: &str, document: &str) -> (PathBuf, PathBuf) {
    let folder = bench.path().join(format!("{name}.d"));
    let write = || {
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("user-data"), document)?;
        std::fs::write(folder.join("meta-data"), "instance-id: test\n")
    };
    write().expect("the bench's folder is ours");
    (bench.path().join(format!("{name}.img")), folder)
}
