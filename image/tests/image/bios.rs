//! GRUB on the disk and on the medium, and the script that it reads out of the EFI program.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use alknet_boot_state::{BootRecord, BootSlot, GRUB_CORE_LBA, GRUB_SCRIPT, RECORD_LBA};
use alknet_image::{
    BIOS_FIRST_LBA, ESP_FIRST_LBA, GRUB_FORMATS, ImageForm, LBA_BYTES, Manifest, MediumDisk,
    OutputRole,
};
use tempfile::TempDir;

use crate::support::{self, GRUB_VERSION, InputFolder, run, text};

/// Bytes of the first sector before the number of the disk and the protective partition.
const BOOT_CODE_BYTES: usize = 440;
/// The first bytes of a Zstandard frame (RFC 8878 section 3.1.1).
const ZSTANDARD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

struct BuiltMedia {
    source: InputFolder,
    out: TempDir,
    manifest: Manifest,
}

impl BuiltMedia {
    fn new(forms: &[ImageForm]) -> Self {
        let source = InputFolder::new();
        let out = tempfile::tempdir().expect("a temporary folder");
        let forms = [forms, &[ImageForm::Uki]].concat();
        let manifest = source.build(&forms, out.path());
        Self {
            source,
            out,
            manifest,
        }
    }

    fn path(&self, form: ImageForm, role: OutputRole) -> PathBuf {
        let found = self.manifest.path(self.out.path(), form, role);
        found.expect("the form was built")
    }

    fn uki(&self) -> Vec<u8> {
        fs::read(self.path(ImageForm::Uki, OutputRole::Uki)).expect("written")
    }

    /// A part of GRUB before the build.
    fn grub(&self, part: impl Fn(&alknet_image::GrubFiles) -> &PathBuf) -> Vec<u8> {
        let grub = self.source.inputs.grub.as_ref().expect("it is set");
        fs::read(part(grub)).expect("readable")
    }

    /// Copies a range of a file into one of its own.
    fn cut(&self, from: &Path, name: &str, at: u64, bytes: u64) -> PathBuf {
        let to = self.source.dir.path().join(name);
        fs::write(&to, read(from, at, bytes)).expect("writable");
        to
    }
}

fn read(path: &Path, at: u64, bytes: u64) -> Vec<u8> {
    let mut content = vec![0; usize::try_from(bytes).expect("64-bit")];
    let file = File::open(path).expect("written");
    file.read_exact_at(&mut content, at).expect("long enough");
    content
}

/// Positions at which two texts of the same length differ.
fn differences(one: &[u8], other: &[u8]) -> Vec<usize> {
    assert_eq!(one.len(), other.len());
    let differs = |at: &usize| one[*at] != other[*at];
    (0..one.len()).filter(differs).collect()
}

#[test]
fn the_first_sector_loads_the_core_image_and_the_protective_partition_stays() {
    let built = BuiltMedia::new(&[ImageForm::Raw]);
    let disk = built.path(ImageForm::Raw, OutputRole::Disk);
    let first = read(&disk, 0, LBA_BYTES);
    // One partition, of type EE, from sector 1 on (UEFI 2.10 section 5.2.3).
    assert_eq!(first[446 + 4], 0xee);
    assert_eq!(first[446 + 8..446 + 12], [1, 0, 0, 0]);
    assert_eq!(first[510..], [0x55, 0xaa]);
    let boot = built.grub(|grub| &grub.boot_sector);
    let changed = differences(&first[..BOOT_CODE_BYTES], &boot[..BOOT_CODE_BYTES]);
    let places = |at: &usize| (0x5c..0x64).contains(at) || (0x66..0x68).contains(at);
    assert!(!changed.is_empty(), "GRUB's sector does not know the disk");
    assert!(changed.iter().all(places), "{changed:?}");
    assert_eq!(first[0x5c..0x64], GRUB_CORE_LBA.to_le_bytes());
}

/// GRUB finds its configuration and the record as files of the partition, so tar does as well.
#[test]
fn the_first_partition_is_an_archive_of_grub_and_the_state_of_the_boot() {
    let built = BuiltMedia::new(&[ImageForm::Raw]);
    let disk = built.path(ImageForm::Raw, OutputRole::Disk);
    let at = BIOS_FIRST_LBA * LBA_BYTES;
    let archive = built.cut(&disk, "alk-bios", at, ESP_FIRST_LBA * LBA_BYTES - at);
    let folder = tempfile::tempdir().expect("a temporary folder");
    run(
        "tar",
        &["-x", "-f", text(&archive), "-C", text(folder.path())],
    );
    let file = |name: &str| fs::read(folder.path().join(name)).expect("it was unpacked");

    let core = built.grub(|grub| &grub.core);
    let located = file("core.img");
    let changed = differences(&located[..core.len()], &core);
    assert!(
        changed.iter().all(|at| (0x1f4..0x200).contains(at)),
        "{changed:?}"
    );
    assert_eq!(located[0x1f4..0x1fc], (GRUB_CORE_LBA + 1).to_le_bytes());
    let rest = core.len().div_ceil(512) - 1;
    assert_eq!(
        usize::from(u16::from_le_bytes([located[0x1fc], located[0x1fd]])),
        rest
    );
    assert!(located[core.len()..].iter().all(|byte| *byte == 0));
    let config = String::from_utf8(file("grub.cfg")).expect("a script");
    assert!(config.starts_with(GRUB_SCRIPT) && config.contains("/EFI/ALKNET/B.EFI"));
    assert!(file("note").iter().all(|byte| *byte == 0));
    // A new disk has one version, the good one.
    assert_eq!(file("state"), BootRecord::new(BootSlot::A).encode());
    let record = read(&disk, RECORD_LBA * LBA_BYTES, 2 * LBA_BYTES);
    assert_eq!(
        record,
        file("state"),
        "the loader for UEFI reads it by its place"
    );
}

/// GRUB reads kernel and initramfs by sectors of the file that UEFI starts.
#[test]
fn the_script_in_the_efi_program_names_the_sectors_of_kernel_and_initramfs() {
    let built = BuiltMedia::new(&[]);
    let uki = built.uki();
    let [_, medium] = GRUB_FORMATS;
    let place = medium
        .config
        .lines()
        .find_map(|line| line.strip_prefix("source (uki)"));
    let script = &uki[range(place.expect("the core image reads a script"))];
    let script = str::from_utf8(script).expect("text and line feeds");
    let lines: Vec<_> = script.lines().filter(|line| !line.is_empty()).collect();
    let [_, _, linux, initrd, "boot", "fi", "fi", "fi"] = lines[..] else {
        panic!("{lines:?}");
    };
    let [linux, initrd] =
        [linux, initrd].map(|line| line.strip_suffix("; then").expect("a condition"));
    let (kernel_at, words) = split(linux, "if linux (uki)");
    assert_eq!(
        words,
        "${alknet_arguments} 'lockdown=confidentiality' 'init_on_free=1' 'console=tty0' 'console=ttyS0' \
         'quiet' 'panic=10'"
    );
    let kernel = support::kernel();
    let found = &uki[range(kernel_at)];
    assert!(found.starts_with(&kernel) && found.len() < kernel.len() + 512);
    let (initrd_at, _) = split(initrd, "if initrd (uki)");
    let initrd = range(initrd_at);
    assert!(uki[initrd.clone()].starts_with(&ZSTANDARD));
    assert_eq!(initrd.end, uki.len(), "it is the last section");
}

/// The words after a command's first one, which is a place.
fn split<'a>(line: &'a str, command: &str) -> (&'a str, &'a str) {
    let rest = line.strip_prefix(command);
    let rest = rest.unwrap_or_else(|| panic!("{line}"));
    rest.split_once(' ').unwrap_or((rest, ""))
}

/// The bytes of `FIRST+COUNT`, which counts sectors.
fn range(place: &str) -> std::ops::Range<usize> {
    let (first, count) = place.split_once('+').expect("a place");
    let [first, count] = [first, count].map(|text| text.parse::<usize>().expect("a number"));
    first * 512..(first + count) * 512
}

#[test]
fn xorriso_sgdisk_and_fsck_read_the_medium() {
    let built = BuiltMedia::new(&[ImageForm::Iso]);
    let medium = built.path(ImageForm::Iso, OutputRole::Disk);
    assert!(medium.ends_with("alknet_0.1.0.iso"));
    let xorriso = |arguments: &[&str]| {
        run(
            "xorriso",
            &[&["-no_rc", "-indev", text(&medium)], arguments].concat(),
        )
    };
    let said = xorriso(&["-toc"]);
    for part in ["El Torito", "grub2-mbr", "GPT", "'ALKNET'"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let said = xorriso(&["-report_el_torito", "plain"]);
    for kind in ["1  BIOS", "2  UEFI"] {
        let line = format!("El Torito boot img :   {kind}");
        assert!(said.contains(&line), "{line}: {said}");
    }
    let said = xorriso(&["-find", "/", "-exec", "lsdl", "--"]);
    for file in [
        "'/GRUB.txt'",
        "'/boot/eltorito.img'",
        "'/install/disk.json'",
        "'/install/disk.zst'",
    ] {
        let line = said.lines().find(|line| line.ends_with(file));
        let line = line.unwrap_or_else(|| panic!("{file}: {said}"));
        // Neither the time of the build nor its user is on the medium.
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!((words[2], words[3]), ("0", "0"), "{line}");
        assert!(line.contains("1980"), "{line}");
    }
    let verdict = run("sgdisk", &["-v", text(&medium)]);
    assert!(verdict.contains("No problems found"), "{verdict}");
    let partition = run("sgdisk", &["-i", "2", text(&medium)]);
    assert!(
        partition.contains("C12A7328-F81F-11D2-BA4B-00A0C93EC93B"),
        "{partition}"
    );
    let [first, size] = ["First sector: ", "Partition size: "].map(|name| number(&partition, name));
    let esp = built.cut(&medium, "esp", first * LBA_BYTES, size * LBA_BYTES);
    run("fsck.vfat", &["-n", text(&esp)]);
    assert!(run("file", &["-b", text(&esp)]).contains("FAT (32 bit)"));
    let copy = built.source.dir.path().join("program");
    run(
        "mcopy",
        &["-i", text(&esp), "::/EFI/BOOT/BOOTX64.EFI", text(&copy)],
    );
    assert!(fs::read(&copy).expect("copied") == built.uki());
}

/// A machine reads the medium by the kernel's file system, and here xorriso does.
#[test]
fn the_medium_has_the_disk_of_the_form_raw() {
    let built = BuiltMedia::new(&[ImageForm::Iso, ImageForm::Raw]);
    let medium = built.path(ImageForm::Iso, OutputRole::Disk);
    let root = built.source.dir.path().join("medium");
    let from = ["-no_rc", "-osirrox", "on", "-indev", text(&medium)];
    run(
        "xorriso",
        &[&from[..], &["-extract", "/", text(&root)]].concat(),
    );
    let mut disk = MediumDisk::open(&root).expect("readable");
    assert_eq!(disk.version(), "0.1.0");
    let mut content = Vec::new();
    disk.read_to_end(&mut content).expect("readable");
    let raw = built.path(ImageForm::Raw, OutputRole::Disk);
    assert!(content == fs::read(&raw).expect("written"), "it differs");
    let sum = run("sha256sum", &[text(&raw)]);
    assert!(sum.starts_with(disk.sha256()), "{sum}");
}

fn number(text: &str, name: &str) -> u64 {
    let rest = text.split_once(name).map(|(_, rest)| rest);
    let rest = rest.unwrap_or_else(|| panic!("no {name}: {text}"));
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next();
    digits.and_then(|it| it.parse().ok()).expect("a number")
}

#[test]
fn every_form_with_grub_has_its_licence_and_the_offer_of_its_source() {
    let forms = [ImageForm::Raw, ImageForm::Iso, ImageForm::Qcow2];
    let built = BuiltMedia::new(&forms);
    let outputs = built.manifest.outputs.iter();
    let noticed: Vec<_> = outputs
        .filter(|output| output.role == OutputRole::Notice)
        .map(|output| (output.form, output.file.as_str()))
        .collect();
    assert_eq!(noticed, forms.map(|form| (form, "GRUB.txt")));
    let notice = fs::read_to_string(built.out.path().join("GRUB.txt")).expect("written");
    for part in [GRUB_VERSION, "Written offer", "GNU GENERAL PUBLIC LICENSE"] {
        assert!(notice.contains(part), "{part}");
    }
}
