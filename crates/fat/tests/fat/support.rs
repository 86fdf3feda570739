//! Programs that others wrote, and volumes for them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use alknet_fat::{FatVolume, FilePartition};
use alknet_test_support::limited;
use tempfile::TempDir;

/// Each of these programs ends within a second at rest.
const LIMIT: Duration = Duration::from_secs(60);

/// A volume in a file of its own folder.
pub(crate) struct VolumeFixture {
    folder: TempDir,
}

impl VolumeFixture {
    /// An empty file of so many KiB, which is sparse.
    pub(crate) fn blank(kib: u64) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let fixture = Self { folder };
        let file = File::create(fixture.path("volume")).expect("writable");
        file.set_len(kib * 1024).expect("room");
        fixture
    }

    /// A volume that `mkfs.vfat` makes with these options.
    pub(crate) fn by_mkfs(kib: u64, options: &[&str]) -> Self {
        let fixture = Self::blank(kib);
        let volume = fixture.volume_path();
        let arguments = [options, &[text(&volume)]].concat();
        succeed("/usr/sbin/mkfs.vfat", &arguments);
        fixture
    }

    /// A path in the folder of the volume.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn volume_path(&self) -> PathBuf {
        self.path("volume")
    }

    /// Opens the file for reading and writing.
    pub(crate) fn file(&self) -> File {
        let opened = File::options()
            .read(true)
            .write(true)
            .open(self.volume_path());
        opened.expect("a file")
    }

    /// Opens the volume.
    pub(crate) fn open(&self) -> FatVolume<FilePartition<File>> {
        let device = FilePartition::whole(self.file()).expect("a size");
        FatVolume::open(device).expect("a volume")
    }

    /// Makes a folder by mtools.
    pub(crate) fn make_folder(&self, path: &str) {
        self.mtools("mmd", &[&format!("::{path}")]);
    }

    /// Copies a file onto the volume by mtools, into a folder that ends with a slash.
    pub(crate) fn copy_in(&self, folder: &str, name: &str, content: &[u8]) {
        let path = self.path(name);
        fs::write(&path, content).expect("writable");
        self.mtools("mcopy", &[text(&path), &format!("::{folder}")]);
    }

    /// Reads a file of the volume by mtools.
    pub(crate) fn copy_out(&self, path: &str) -> Vec<u8> {
        let copy = self.path("copy");
        self.mtools("mcopy", &["-n", &format!("::{path}"), text(&copy)]);
        let content = fs::read(&copy).expect("mcopy wrote it");
        fs::remove_file(&copy).expect("it is there");
        content
    }

    fn mtools(&self, program: &str, arguments: &[&str]) {
        let volume = self.volume_path();
        let arguments = [&["-i", text(&volume)][..], arguments].concat();
        succeed(program, &arguments);
    }

    /// What `fsck.vfat` says, which writes nothing, and whether it is content.
    pub(crate) fn fsck(&self) -> (bool, String) {
        let output = output("/usr/sbin/fsck.vfat", &["-n", text(&self.volume_path())]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.success(), said)
    }

    /// Asserts that `fsck.vfat` says nothing but its name and its counts.
    pub(crate) fn assert_fsck_is_content(&self) {
        let (is_content, said) = self.fsck();
        assert!(is_content && said.lines().count() == 2, "{said}");
    }
}

fn output(program: &str, arguments: &[&str]) -> Output {
    limited(LIMIT, program)
        .args(arguments)
        // Names outside ASCII come in this form.
        .env("LC_ALL", "C.UTF-8")
        // mtools then takes volumes that are no floppy disks.
        .env("MTOOLS_SKIP_CHECK", "1")
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}; `cargo xtask test` installs it"))
}

fn succeed(program: &str, arguments: &[&str]) {
    let output = output(program, arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Bytes of a file, which differ from those of files with other seeds.
pub(crate) fn content(seed: usize, bytes: usize) -> Vec<u8> {
    let byte = |at: usize| (at.wrapping_mul(31) ^ (at >> 8) ^ seed.wrapping_mul(101)) as u8;
    (0..bytes).map(byte).collect()
}
