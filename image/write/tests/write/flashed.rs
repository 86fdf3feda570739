//! Disks that are written: to a file, and as root to a loop device.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use alknet_image::{DISK_END_BYTES, OutputRole};
use alknet_image_write::{
    DiskTarget, FlashError, FlashOptions, FlashReport, FlashStep, ImageSource, PlacedFile,
    SystemFolders, VerifyError, flash, verify_disk, verify_file,
};
use zeroize::Zeroizing;

use crate::released::ReleaseFolder;
use crate::support::{output, run, text};

const SEED: &[u8] = b"[node]\nname = \"edge-1\"\n";
/// Place of the EFI system partition.
const ESP_AT: u64 = 1 << 20;
const ESP_BYTES: u64 = 256 << 20;
/// The end of the vault's place: 16 MiB into the data partition.
const VAULT_END: u64 = ESP_AT + ESP_BYTES + (16 << 20);
/// Bytes of a cluster of its volume, of which the configuration takes the last one.
const CLUSTER_BYTES: u64 = 2048;

fn source(path: &Path) -> ImageSource {
    let file = File::open(path).expect("readable");
    let bytes = file.metadata().expect("readable").len();
    ImageSource::new(Box::new(file), Some(bytes)).expect("an image")
}

fn write(
    mut source: ImageSource,
    target: &DiskTarget,
    options: &FlashOptions<'_>,
) -> Result<FlashReport, FlashError> {
    flash(&mut source, target, options, &mut |_| {})
}

fn seed() -> [PlacedFile; 1] {
    [PlacedFile {
        path: "alknet.toml".into(),
        content: Zeroizing::new(SEED.to_vec()),
    }]
}

fn head(path: &Path) -> Vec<u8> {
    let mut head = vec![0; 1 << 20];
    let disk = File::open(path).expect("readable");
    disk.read_exact_at(&mut head, 0).expect("readable");
    head
}

/// Where a disk of a test is.
struct Scratch {
    dir: tempfile::TempDir,
}

impl Scratch {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        Self { dir }
    }

    fn disk(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    fn target(&self) -> DiskTarget {
        DiskTarget::file(&self.disk()).expect("a file")
    }
}

#[test]
fn a_packed_image_is_written_and_read_back() {
    let release = ReleaseFolder::shared();
    let scratch = Scratch::new();
    // What the file had before is gone, also where the image has zeros.
    fs::write(scratch.disk(), vec![0xff; 3 << 20]).expect("writable");
    let mut steps = Vec::new();
    let packed = release.file(OutputRole::PackedDisk);
    let report = flash(
        &mut source(&packed),
        &scratch.target(),
        &FlashOptions::default(),
        &mut |step| steps.push(step),
    );
    let report = report.expect("it fits");
    run("cmp", &[text(&scratch.disk()), text(&release.raw())]);
    let disk = fs::metadata(scratch.disk()).expect("written");
    assert_eq!(disk.len(), report.bytes);
    assert!(disk.blocks() * 512 < report.bytes / 2, "it is not sparse");
    let known = Some(report.bytes);
    assert!(steps.contains(&FlashStep::Writing {
        bytes: report.bytes,
        total: known
    }));
    let total = report.bytes;
    assert!(steps.contains(&FlashStep::Reading {
        bytes: total,
        total
    }));
    assert_eq!(steps.last(), Some(&FlashStep::Finishing));
    let check = verify_disk(&scratch.disk(), &release.manifest).expect("the same");
    assert_eq!((check.checked.len(), check.left_out.len()), (1, 0));
}

#[test]
fn a_configuration_is_placed_where_the_machine_looks_for_it() {
    let release = ReleaseFolder::shared();
    let scratch = Scratch::new();
    let files = seed();
    let options = FlashOptions {
        files: &files,
        ..FlashOptions::default()
    };
    write(source(&release.raw()), &scratch.target(), &options).expect("it fits");
    let esp = scratch.dir.path().join("esp");
    let cut = format!(
        "dd if='{}' of='{}' bs=1M skip={} count={} conv=sparse status=none",
        text(&scratch.disk()),
        text(&esp),
        ESP_AT >> 20,
        ESP_BYTES >> 20
    );
    run("sh", &["-c", &cut]);
    run("fsck.vfat", &["-n", text(&esp)]);
    let placed = run("mtype", &["-i", text(&esp), "::/alknet.toml"]);
    assert_eq!(placed.as_bytes(), SEED);
    assert!(run("sgdisk", &["-v", text(&scratch.disk())]).contains("No problems found"));
    let check = verify_disk(&scratch.disk(), &release.manifest).expect("the parts are the same");
    assert_eq!(check.others, ["alknet.toml"]);
    let left_out: Vec<_> = check.left_out.iter().map(|(name, _)| *name).collect();
    assert!(left_out.contains(&"partition table") && left_out.contains(&"data partition"));
    assert!(
        check
            .checked
            .iter()
            .any(|part| part.name.ends_with("BOOTX64.EFI")),
        "{check:?}"
    );
}

/// The first bytes of an image, and then an error.
struct BrokenReader {
    file: File,
    left: u64,
}

impl Read for BrokenReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = self.left.min(buffer.len() as u64) as usize;
        let read = self.file.read(&mut buffer[..most])?;
        self.left -= read as u64;
        match read {
            0 => Err(io::Error::other("the line went dead")),
            read => Ok(read),
        }
    }
}

#[test]
fn a_write_that_breaks_off_leaves_a_disk_that_boots_nothing() {
    let release = ReleaseFolder::shared();
    let scratch = Scratch::new();
    // The disk had a system before.
    write(
        source(&release.raw()),
        &scratch.target(),
        &FlashOptions::default(),
    )
    .expect("it fits");
    assert_eq!(&head(&scratch.disk())[510..520], b"\x55\xaaEFI PART");
    let broken = BrokenReader {
        file: File::open(release.raw()).expect("readable"),
        left: 40 << 20,
    };
    let broken = ImageSource::new(Box::new(broken), None).expect("its head is whole");
    let refused = write(broken, &scratch.target(), &FlashOptions::default());
    let refused = refused.expect_err("it breaks off");
    assert!(
        refused.to_string().contains("the line went dead"),
        "{refused}"
    );
    assert!(head(&scratch.disk()).iter().all(|byte| *byte == 0));
    let refused = verify_disk(&scratch.disk(), &release.manifest).expect_err("no disk");
    assert!(matches!(refused, VerifyError::TooShort { .. }), "{refused}");
}

/// A reader with an end before that of the disk, as a pipe has one if the program before it was ended.
fn cut(file: &Path, bytes: u64) -> Box<dyn Read> {
    Box::new(File::open(file).expect("readable").take(bytes))
}

#[test]
fn an_image_that_ends_early_leaves_no_partition_table() {
    let release = ReleaseFolder::shared();
    let scratch = Scratch::new();
    let short = 100 << 20;
    let whole = fs::metadata(release.raw()).expect("it exists").len();
    for said in [None, Some(whole)] {
        let source = ImageSource::new(cut(&release.raw(), short), said).expect("its head is whole");
        let refused = write(source, &scratch.target(), &FlashOptions::default());
        let refused = refused.expect_err("it ends early");
        let FlashError::OtherLength {
            actual, expected, ..
        } = refused
        else {
            panic!("{said:?}: {refused}");
        };
        assert_eq!((actual, expected), (short, whole), "{said:?}");
        assert!(head(&scratch.disk()).iter().all(|byte| *byte == 0));
    }
}

#[test]
fn a_file_that_is_cut_off_costs_the_disk_nothing() {
    let release = ReleaseFolder::shared();
    let scratch = Scratch::new();
    fs::write(scratch.disk(), "content").expect("writable");
    let short = 100 << 20;
    let source = ImageSource::new(cut(&release.raw(), short), Some(short));
    let source = source.expect("its head is whole");
    let refused = write(source, &scratch.target(), &FlashOptions::default());
    let refused = refused.expect_err("it is cut off");
    assert!(
        matches!(refused, FlashError::OtherLength { .. }),
        "{refused}"
    );
    assert_eq!(fs::read(scratch.disk()).expect("readable"), b"content");
}

#[test]
fn an_image_of_another_hash_leaves_no_partition_table() {
    let release = ReleaseFolder::shared();
    let scratch = Scratch::new();
    let options = FlashOptions {
        sha256: Some("0".repeat(64)),
        ..FlashOptions::default()
    };
    let refused = write(source(&release.raw()), &scratch.target(), &options);
    let refused = refused.expect_err("another hash");
    assert!(
        matches!(refused, FlashError::OtherContent { .. }),
        "{refused}"
    );
    assert!(head(&scratch.disk()).iter().all(|byte| *byte == 0));
    let disk = release
        .manifest
        .outputs
        .iter()
        .find(|it| it.role == OutputRole::Disk);
    let options = FlashOptions {
        sha256: disk.map(|it| it.sha256.clone()),
        ..FlashOptions::default()
    };
    write(source(&release.raw()), &scratch.target(), &options).expect("the right hash");
}

#[test]
fn a_configuration_needs_a_disk_with_the_system_partition() {
    let scratch = Scratch::new();
    fs::write(scratch.disk(), "content").expect("writable");
    let mut foreign = vec![0; 3 << 20];
    foreign[510..512].copy_from_slice(&[0x55, 0xaa]);
    foreign[2 << 20] = 1;
    let foreign = ImageSource::new(Box::new(io::Cursor::new(foreign)), None).expect("a disk");
    let files = seed();
    let options = FlashOptions {
        files: &files,
        ..FlashOptions::default()
    };
    let refused = write(foreign, &scratch.target(), &options).expect_err("no such partition");
    assert!(matches!(refused, FlashError::NoLayout), "{refused}");
    assert_eq!(fs::read(scratch.disk()).expect("readable"), b"content");
}

/// Writes the image to a disk that loses bytes: `damage` changes it at the step that it names, behind the writer's back.
fn write_to_a_faulty_disk(files: &[PlacedFile], damage: &dyn Fn(FlashStep, &File)) -> FlashError {
    let release = ReleaseFolder::shared();
    let scratch = Scratch::new();
    let target = scratch.target();
    let disk = File::options().read(true).write(true).open(scratch.disk());
    let disk = disk.expect("ours");
    let options = FlashOptions {
        files,
        ..FlashOptions::default()
    };
    let written = flash(
        &mut source(&release.raw()),
        &target,
        &options,
        &mut |step| damage(step, &disk),
    );
    let refused = written.expect_err("the disk has other bytes");
    assert!(
        head(&scratch.disk()).iter().all(|byte| *byte == 0),
        "{refused}"
    );
    refused
}

#[test]
fn a_disk_that_returns_other_bytes_gets_no_partition_table() {
    let refused = write_to_a_faulty_disk(&[], &|step, disk| {
        // The first step of reading is of bytes before these.
        if matches!(step, FlashStep::Reading { bytes, .. } if bytes <= 8 << 20) {
            disk.write_all_at(b"x", 100 << 20).expect("ours");
        }
    });
    let FlashError::ReadBack { what, .. } = refused else {
        panic!("{refused}");
    };
    assert_eq!(what, "the image");
}

#[test]
fn a_disk_that_returns_another_configuration_gets_no_partition_table() {
    let refused = write_to_a_faulty_disk(&seed(), &|step, disk| {
        if step == FlashStep::Placed {
            let end = alknet_image::EspVolume::open(disk)
                .expect("ours")
                .used_end();
            let start = end - CLUSTER_BYTES;
            let mut content = vec![0; SEED.len()];
            disk.read_exact_at(&mut content, start).expect("readable");
            assert_eq!(content, SEED);
            disk.write_all_at(b"[edon]", start).expect("ours");
        }
    });
    let FlashError::ReadBack { what, .. } = refused else {
        panic!("{refused}");
    };
    assert_eq!(what, "the configuration");
}

#[test]
fn a_disk_that_was_changed_differs_from_one_that_was_started() {
    let release = ReleaseFolder::shared();
    let scratch = Scratch::new();
    run(
        "cp",
        &[
            "--sparse=always",
            text(&release.raw()),
            text(&scratch.disk()),
        ],
    );
    let disk = File::options()
        .read(true)
        .write(true)
        .open(scratch.disk())
        .expect("ours");
    // What a machine changes: the data partition, once the disk has an identity of its own.
    disk.write_all_at(b"data", ESP_AT + ESP_BYTES)
        .expect("writable");
    let refused = verify_disk(&scratch.disk(), &release.manifest).expect_err("never started");
    assert!(
        refused.to_string().contains("of an earlier node"),
        "{refused}"
    );
    run("sgdisk", &["-U", "R", "-u", "3:R", text(&scratch.disk())]);
    verify_disk(&scratch.disk(), &release.manifest).expect("nothing else changed");
    // What nothing changes: the program on the EFI system partition, found by its last bytes.
    let used = {
        let volume = alknet_image::EspVolume::open(&disk).expect("ours");
        volume.used_end()
    };
    disk.write_all_at(b"evil", used - 3000).expect("writable");
    let refused = verify_disk(&scratch.disk(), &release.manifest).expect_err("changed");
    let said = refused.to_string();
    assert!(said.contains("of the EFI system partition"), "{said}");
}

/// Another program wrote the image to a disk that an attacker, or an earlier owner, had before.
#[test]
fn a_vault_behind_the_image_is_named_until_the_disk_was_started() {
    let release = ReleaseFolder::shared();
    let files = seed();
    for files in [&[][..], &files] {
        let scratch = Scratch::new();
        let options = FlashOptions {
            files,
            ..FlashOptions::default()
        };
        write(source(&release.raw()), &scratch.target(), &options).expect("it fits");
        let disk = File::options().read(true).write(true).open(scratch.disk());
        let disk = disk.expect("ours");
        disk.set_len(VAULT_END + (8 << 20)).expect("sparse");
        verify_disk(&scratch.disk(), &release.manifest).expect("nothing is there");
        for at in [VAULT_END - (132 << 10), VAULT_END - 1] {
            disk.write_all_at(b"v", at).expect("writable");
            let refused = verify_disk(&scratch.disk(), &release.manifest);
            let refused = refused.expect_err("a vault").to_string();
            assert!(refused.contains("vault of an earlier node"), "{refused}");
            disk.write_all_at(&[0], at).expect("writable");
        }
        disk.write_all_at(b"v", VAULT_END).expect("writable");
        verify_disk(&scratch.disk(), &release.manifest).expect("no first boot reads that");
    }
}

#[test]
fn a_file_is_compared_with_the_manifest_by_its_name() {
    let release = ReleaseFolder::shared();
    let packed = release.file(OutputRole::PackedDisk);
    let check = verify_file(&packed, &release.manifest).expect("as it was built");
    assert_eq!(check.checked.len(), 1);
    let dir = tempfile::tempdir().expect("a temporary folder");
    let copy = dir.path().join(packed.file_name().expect("a name"));
    let mut bytes = fs::read(&packed).expect("readable");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&copy, &bytes).expect("writable");
    let refused = verify_file(&copy, &release.manifest).expect_err("changed");
    assert!(refused.to_string().contains("SHA-256"), "{refused}");
    fs::write(&copy, &bytes[..last]).expect("writable");
    let refused = verify_file(&copy, &release.manifest).expect_err("cut short");
    assert!(refused.to_string().contains("bytes"), "{refused}");
    let other = dir.path().join("other");
    fs::write(&other, "").expect("writable");
    let refused = verify_file(&other, &release.manifest).expect_err("unknown");
    assert!(
        matches!(refused, VerifyError::NotListed { .. }),
        "{refused}"
    );
}

/// A loop device over a file, which goes away with this.
struct LoopDevice(String);

impl LoopDevice {
    /// `None` where this user or this kernel makes none.
    fn new(file: &Path, bytes: u64) -> Option<Self> {
        let backing = File::create(file).expect("ours");
        backing.set_len(bytes).expect("sparse");
        let made = output("losetup", &["--find", "--show", text(file)]);
        let name = String::from_utf8_lossy(&made.stdout).trim().to_owned();
        (made.status.success() && !name.is_empty()).then_some(Self(name))
    }

    fn target(&self) -> Result<DiskTarget, FlashError> {
        DiskTarget::disk(self.0.as_ref(), &SystemFolders::default())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        output("losetup", &["--detach", &self.0]);
    }
}

#[test]
fn a_block_device_with_old_bytes_is_written_whole() {
    let release = ReleaseFolder::shared();
    let scratch = Scratch::new();
    let bytes = 300 << 20;
    let Some(device) = LoopDevice::new(&scratch.disk(), bytes) else {
        alknet_test_support::skip!("loop devices", "losetup makes none here");
    };
    let disk = File::options().write(true).open(&device.0).expect("ours");
    // Old bytes where the image has zeros: in the gap, in the tables, in the data partition and at the end. And where
    // the image has nothing, and the first boot looks for the memo of TPMs and for a vault.
    for at in [
        600 << 10,
        (1 << 20) + (300 << 10),
        ESP_AT + ESP_BYTES,
        VAULT_END - (132 << 10),
        VAULT_END - 512,
        VAULT_END,
        bytes - DISK_END_BYTES,
        bytes - 512,
    ] {
        disk.write_all_at(&[0xff; 512], at).expect("writable");
    }
    drop(disk);
    let target = device.target().expect("it is not in use");
    assert_eq!(target.facts().bytes, bytes);
    let report = write(source(&release.raw()), &target, &FlashOptions::default());
    let report = report.expect("it fits");
    assert!(report.bytes < bytes);
    drop(target);
    let size_of_image = report.bytes;
    let size = size_of_image.to_string();
    run("cmp", &["-n", &size, &device.0, text(&release.raw())]);
    let mut end = vec![1; 512];
    let disk = File::open(&device.0).expect("ours");
    for at in [bytes - DISK_END_BYTES, bytes - 512] {
        disk.read_exact_at(&mut end, at).expect("readable");
        assert_eq!(end, [0; 512], "the backup of an older table is still there");
    }
    let mut behind = vec![1; (VAULT_END - size_of_image) as usize];
    disk.read_exact_at(&mut behind, size_of_image)
        .expect("readable");
    assert!(behind.iter().all(|byte| *byte == 0), "an earlier vault");
    disk.read_exact_at(&mut end, VAULT_END).expect("readable");
    assert_eq!(end, [0xff; 512], "nothing reads this before it is written");
}

#[test]
fn a_block_device_that_is_too_small_or_in_use_is_refused() {
    let release = ReleaseFolder::shared();
    let scratch = Scratch::new();
    let Some(device) = LoopDevice::new(&scratch.disk(), 16 << 20) else {
        alknet_test_support::skip!("loop devices", "losetup makes none here");
    };
    let target = device.target().expect("it is not in use");
    let disk = File::options().write(true).open(&device.0).expect("ours");
    disk.write_all_at(b"kept", 0).expect("writable");
    let refused = write(source(&release.raw()), &target, &FlashOptions::default());
    let refused = refused.expect_err("too small").to_string();
    let needed = fs::metadata(release.raw()).expect("it exists").len();
    assert!(
        refused.contains(&needed.to_string()) && refused.contains("16777216"),
        "{refused}"
    );
    let mut kept = [0; 4];
    let read = File::open(&device.0).expect("ours");
    read.read_exact_at(&mut kept, 0).expect("readable");
    assert_eq!(&kept, b"kept", "something was written");
    // While one program writes to it, another one does not.
    let refused = device.target().expect_err("it is in use");
    assert!(matches!(refused, FlashError::Busy { .. }), "{refused}");
}
