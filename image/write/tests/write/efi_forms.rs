//! Signed disks that another person makes into a file of another form as well, in which other programs find another disk.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use alknet_image::{
    BACKUP_LBAS, BIOS_FIRST_LBA, DATA_FIRST_LBA, ESP_FIRST_LBA, EspVolume, ImageForm, LBA_BYTES,
    MANIFEST_FILE, OutputRole,
};
use alknet_image_write::{SignedProgramsError, verify_programs};
use serde_json::{Value, json};

use crate::efi::EfiOwner;
use crate::support::{InputFolder, run, text};

/// Bytes of a footer of a VHD, and places in it.
const FOOTER_BYTES: u64 = 512;
const FURTHER_HEADER_AT: usize = 16;
const DISK_BYTES_AT: usize = 48;
const KIND_AT: usize = 60;
const CHECKSUM_AT: usize = 64;

/// A signed disk in a folder with its manifest.
pub(crate) struct SignedDisk {
    pub(crate) owner: EfiOwner,
    pub(crate) path: PathBuf,
}

impl SignedDisk {
    pub(crate) fn new(form: ImageForm) -> Self {
        let owner = EfiOwner::rsa();
        let out = owner.path("out");
        let built = owner.build(&InputFolder::new().inputs, &[form], &out);
        let manifest = built.expect("the form builds");
        let path = manifest.path(&out, form, OutputRole::Disk);
        let path = path.expect("it was built");
        Self { owner, path }
    }

    /// Gives the disk another name, also in the manifest.
    fn rename(&mut self, name: &str) {
        let out = self.owner.path("out");
        let path = out.join(MANIFEST_FILE);
        let manifest = fs::read(&path).expect("it was built");
        let mut manifest: Value = serde_json::from_slice(&manifest).expect("ours");
        let outputs = manifest["outputs"].as_array_mut().expect("a list");
        let old = self.path.file_name().expect("a file").to_string_lossy();
        let output = outputs.iter_mut().find(|it| it["file"] == *old);
        output.expect("the manifest has it")["file"] = json!(name);
        fs::write(&path, manifest.to_string()).expect("writable");
        let renamed = out.join(name);
        fs::rename(&self.path, &renamed).expect("the folder is ours");
        self.path = renamed;
    }

    pub(crate) fn open(&self) -> File {
        let disk = File::options().read(true).write(true).open(&self.path);
        disk.expect("ours")
    }

    fn verify(&self, what: &Path) -> Result<usize, SignedProgramsError> {
        let programs = verify_programs(what, &self.owner.certificate())?;
        Ok(programs.checked.len())
    }

    /// The form that the disk also has, for which the command refuses it.
    fn other_form(&self, what: &Path) -> &'static str {
        match self.verify(what).expect_err("it has two forms") {
            SignedProgramsError::OtherForm { what, .. } => what,
            refused => panic!("{refused}"),
        }
    }

    /// The place beside its signed programs from which firmware may start others, for which the command refuses it.
    pub(crate) fn other_part(&self) -> String {
        match self.verify(&self.path).expect_err("it has another layout") {
            SignedProgramsError::OtherLayout { part, .. } => part,
            refused => panic!("{refused}"),
        }
    }

    /// Writes bytes to the disk, and returns those that were there.
    fn exchange(&self, writes: &[(u64, Vec<u8>)]) -> Vec<(u64, Vec<u8>)> {
        let disk = self.open();
        let before = writes.iter().map(|(at, bytes)| {
            let before = bytes_at(&disk, *at, bytes.len());
            disk.write_all_at(bytes, *at).expect("writable");
            (*at, before)
        });
        before.collect()
    }

    /// A small volume of FAT with an unsigned program in the place where firmware looks for one.
    fn other_volume(&self) -> Vec<u8> {
        let (volume, program) = (self.owner.path("other.img"), self.owner.path("other.efi"));
        fs::write(&program, b"MZ another program").expect("writable");
        run("mformat", &["-C", "-i", text(&volume), "-f", "720", "::"]);
        run("mmd", &["-i", text(&volume), "::/EFI", "::/EFI/BOOT"]);
        let to = "::/EFI/BOOT/BOOTX64.EFI";
        run("mcopy", &["-i", text(&volume), text(&program), to]);
        fs::read(&volume).expect("mtools wrote it")
    }

    /// Whether the volume that begins there has the unsigned program.
    fn has_other_program(&self, at: u64) -> bool {
        let copy = self.owner.path("copied.efi");
        let volume = format!("{}@@{at}", text(&self.path));
        let from = "::/EFI/BOOT/BOOTX64.EFI";
        run("mcopy", &["-o", "-i", &volume, from, text(&copy)]);
        fs::read(&copy).expect("copied") == b"MZ another program"
    }
}

fn bytes_at(disk: &File, at: u64, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    disk.read_exact_at(&mut bytes, at).expect("readable");
    bytes
}

/// The attack: the first bytes, which code for a BIOS has, are the header of a container with an unsigned disk. The
/// programs and the partition table stay as they are.
#[test]
fn a_signed_disk_with_the_header_of_a_container_does_not_count_as_signed() {
    let mut signed = SignedDisk::new(ImageForm::Raw);
    signed.rename("alknet_0.1.0.qcow2");
    let folder = signed.owner.path("out");
    let disk = signed.open();
    for (at, header, form) in [
        (0, &b"QFI\xfb\0\0\0\x03"[..], "qcow2"),
        (0, b"KDMV\x01\0\0\0", "VMDK"),
        (0, b"# Disk DescriptorFile\nversion=1\n", "VMDK"),
        (0, b"\nversion=1\ncreateType=\"monolithicFlat\"\n", "VMDK"),
        (0, b"conectix", "VHD"),
        (0x40, b"\x7f\x10\xda\xbe", "VDI"),
        (257, b"ustar\0", "tar"),
        // An empty frame, and one that is skipped up to the other disk.
        (
            0,
            b"\x28\xb5\x2f\xfd\x20\0\x01\0\0\x50\x2a\x4d\x18",
            "Zstandard",
        ),
        // Such a frame at the beginning.
        (0, b"\x50\x2a\x4d\x18\0\0\x10\0", "Zstandard"),
        (0, b"\x5f\x2a\x4d\x18\0\0\x10\0", "Zstandard"),
    ] {
        let before = bytes_at(&disk, at, header.len());
        disk.write_all_at(header, at).expect("writable");
        for what in [&signed.path, &folder] {
            let found = signed.other_form(what);
            assert!(found.contains(form), "{form}: {found}");
        }
        disk.write_all_at(&before, at).expect("writable");
        for what in [&signed.path, &folder] {
            let checked = signed.verify(what).expect("it has one form again");
            assert_eq!(checked, 2, "{form}");
        }
    }
}

/// The attack: the first bytes are those of a form that the command does not know, or of a volume of FAT that takes the
/// whole disk.
#[test]
fn a_signed_disk_with_any_other_first_bytes_does_not_count_as_signed() {
    const CODE_BYTES: usize = 440;

    let signed = SignedDisk::new(ImageForm::Raw);
    for (at, header) in [
        (0, &b"LUKS\xba\xbe\0\x02"[..]),
        (0, b"7z\xbc\xaf\x27\x1c"),
        (0, b"\xeb\x58\x90"),
        // Bytes of a sector, sectors of a cluster, reserved sectors and tables.
        (11, b"\0\x02\x04\x20\0\x02"),
        (89, b"x"),
    ] {
        let before = signed.exchange(&[(at, header.to_vec())]);
        let found = signed.other_form(&signed.path);
        assert!(found.contains("first bytes"), "{header:?}: {found}");
        signed.exchange(&before);
    }
    // Without code for a BIOS, and with a beginning that is not erased to its end.
    let erased = signed.exchange(&[(0, vec![0; CODE_BYTES])]);
    let checked = signed.verify(&signed.path).expect("it has no other form");
    assert_eq!(checked, 2);
    for at in [0, CODE_BYTES - 1] {
        let before = signed.exchange(&[(at as u64, vec![0xff])]);
        let found = signed.other_form(&signed.path);
        assert!(found.contains("first bytes"), "{at}: {found}");
        signed.exchange(&before);
    }
    signed.exchange(&erased);
    let checked = signed.verify(&signed.path).expect("it has one form again");
    assert_eq!(checked, 2);
}

/// The attack: the code for a BIOS keeps its first bytes, and is the header of a tar archive of the seventh Unix, which has
/// a checksum and no mark. Its first file leads over the disk to a second one, in the data partition.
#[test]
fn a_signed_disk_with_the_checksum_of_a_tar_archive_does_not_count_as_signed() {
    const FIELDS_AT: usize = 100;
    const SUM_AT: usize = 148;
    const HEADER_BYTES: usize = 512;

    let signed = SignedDisk::new(ImageForm::Raw);
    let second_at = DATA_FIRST_LBA * LBA_BYTES + (64 << 10);
    let fields = |size: u64| {
        let text = format!("0000644\x000000000\x000000000\0{size:011o}\x0000000000000\0");
        let mut fields = text.into_bytes();
        assert_eq!(fields.len(), SUM_AT - FIELDS_AT);
        // The sum counts as spaces. Behind it is the kind of an ordinary file.
        fields.extend(b"        \0");
        fields
    };
    let unsigned = |header: &[u8]| header.iter().map(|byte| i64::from(*byte)).sum::<i64>();
    let mut second = vec![0; HEADER_BYTES];
    second[..9].copy_from_slice(b"other.raw");
    let second_fields = fields(0);
    second[FIELDS_AT..FIELDS_AT + second_fields.len()].copy_from_slice(&second_fields);
    let sum = format!("{:06o}\0 ", unsigned(&second));
    second[SUM_AT..SUM_AT + 8].copy_from_slice(sum.as_bytes());
    let first = fields(second_at - HEADER_BYTES as u64);
    let before = signed.exchange(&[(FIELDS_AT as u64, first), (second_at, second)]);
    let header = bytes_at(&signed.open(), 0, HEADER_BYTES);
    let sum = unsigned(&header);
    let with_sign = header
        .iter()
        .map(|byte| i64::from(i8::from_ne_bytes([*byte])));
    let with_sign: i64 = with_sign.sum();
    let put = |field: &[u8]| signed.exchange(&[(SUM_AT as u64, field.to_vec())]);
    put(format!("{sum:06o}\0 ").as_bytes());
    let listed = run("tar", &["--list", "--file", text(&signed.path)]);
    assert!(listed.contains("other.raw"), "{listed}");
    let mut fields = vec![
        format!("{sum:06o}\0 ").into_bytes(),
        format!("{sum:>7o} ").into_bytes(),
        format!("{sum:o}\0").into_bytes(),
        format!("{sum:08o}").into_bytes(),
        format!("{sum:o} x").into_bytes(),
    ];
    // A binary number, as Python reads it.
    for sum in [sum, with_sign] {
        let mut binary = sum.to_be_bytes();
        binary[0] |= 0x80;
        fields.push(binary.to_vec());
    }
    if with_sign >= 0 {
        fields.push(format!("{with_sign:06o}\0 ").into_bytes());
    }
    for field in fields {
        put(&field);
        let found = signed.other_form(&signed.path);
        assert!(found.contains("tar"), "{field:?}: {found}");
    }
    // Another sum, of which no program makes an archive.
    put(format!("{:06o}\0 ", sum + 1).as_bytes());
    assert_eq!(signed.verify(&signed.path).expect("it has one form"), 2);
    signed.exchange(&before);
    assert_eq!(signed.verify(&signed.path).expect("it has one form"), 2);
}

/// The attack: bytes of the code for a BIOS are negative to a program that counts with a sign. The sum is then negative, and
/// Python reads it as it reads any integer.
#[test]
fn a_signed_disk_with_a_negative_checksum_of_a_tar_archive_does_not_count_as_signed() {
    const CODE_BYTES: usize = 440;
    const FIELDS_AT: usize = 100;
    const SUM_AT: usize = 148;
    const SUM_BYTES: usize = 8;
    const DEVICES_AT: usize = 329;
    const LISTED: &str =
        "import sys, tarfile; print(len(tarfile.open(sys.argv[1], 'r:').getnames()))";

    let signed = SignedDisk::new(ImageForm::Raw);
    let mut code = vec![0; CODE_BYTES];
    code[..3].copy_from_slice(b"\xeb\x63\x90");
    // Mode, owner, group, size, time, the sum as spaces, and the kind of an ordinary file.
    let fields = "0000644\x000000000\x000000000\x0000000000020\x0000000000000\x00        0";
    code[FIELDS_AT..FIELDS_AT + fields.len()].copy_from_slice(fields.as_bytes());
    code[157..257].fill(0x80);
    code[DEVICES_AT..DEVICES_AT + 16].copy_from_slice(b"0000000\x000000000\0");
    let before = signed.exchange(&[(0, code)]);
    let header = bytes_at(&signed.open(), 0, 512);
    let unsigned: i64 = header.iter().map(|byte| i64::from(*byte)).sum();
    let with_sign = header
        .iter()
        .map(|byte| i64::from(i8::from_ne_bytes([*byte])));
    let with_sign: i64 = with_sign.sum();
    let put = |sum: &str| {
        let mut field = sum.as_bytes().to_vec();
        assert!(field.len() <= SUM_BYTES, "{sum:?}");
        field.resize(SUM_BYTES, 0);
        signed.exchange(&[(SUM_AT as u64, field)]);
    };
    let (negative, positive) = (format!("{:o}", -with_sign), format!("{unsigned:o}"));
    let (first, rest) = negative.split_at(2);
    for sum in [
        format!("-0{negative}"),
        format!("-0o{negative}"),
        format!("-0_{negative}"),
        format!(" -{negative} "),
        format!("\t-{first}_{rest}"),
        format!("+{positive}"),
        format!(" 0O{positive}"),
    ] {
        put(&sum);
        let listed = run("python3", &["-c", LISTED, text(&signed.path)]);
        assert_eq!(listed.trim(), "1", "{sum:?}");
        let found = signed.other_form(&signed.path);
        assert_eq!(found, "a tar archive", "{sum:?}");
    }
    // Another sum, of which no program makes an archive.
    put(&format!("-{:o}", 1 - with_sign));
    assert_eq!(signed.verify(&signed.path).expect("it has one form"), 2);
    signed.exchange(&before);
    assert_eq!(signed.verify(&signed.path).expect("it has one form"), 2);
}

/// The attack: the end of a signed disk is that of a ZIP archive. Programs differ in which numbers of its last record they
/// believe.
#[test]
fn a_signed_disk_with_the_end_of_a_zip_archive_does_not_count_as_signed() {
    /// Bytes of the last record without a comment.
    const RECORD_BYTES: u64 = 22;
    /// Bytes of the end of a file that Info-ZIP searches.
    const SEARCHED_BYTES: u64 = 66_000;

    let signed = SignedDisk::new(ImageForm::Raw);
    let disk = signed.open();
    let bytes = disk.metadata().expect("ours").len();
    let table = BACKUP_LBAS * LBA_BYTES;
    let record = |comment_bytes: u64, list_bytes: u32, list_at: u32, counts: [u8; 2]| {
        let mut record = b"PK\x05\x06\0\0\0\0".to_vec();
        record.extend([counts[0], 0, counts[1], 0]);
        record.extend(list_bytes.to_le_bytes());
        record.extend(list_at.to_le_bytes());
        let comment_bytes = u16::try_from(comment_bytes).expect("short");
        record.extend(comment_bytes.to_le_bytes());
        record
    };
    let furthest = u64::from(u16::MAX);
    let data = u32::try_from(DATA_FIRST_LBA * LBA_BYTES).expect("32 bits");
    // The record, and the bytes that the disk has behind it.
    for (what, end, behind) in [
        ("the table", record(table, 46, data, [1, 1]), table),
        (
            "the longest comment",
            record(furthest, 0, 0, [1, 1]),
            furthest,
        ),
    ] {
        let before = signed.exchange(&[(bytes - behind - RECORD_BYTES, end)]);
        let found = signed.other_form(&signed.path);
        assert!(found.contains("ZIP"), "{what}: {found}");
        signed.exchange(&before);
    }
    // Behind the backup of the table, where no data of a machine lies.
    for (what, end, longer) in [
        ("no comment", record(0, 0, 0, [0, 0]), 22),
        ("another comment", record(7, 46, data, [1, 1]), 512),
        (
            "a place of the list, with another length",
            record(7, 47, data, [1, 1]),
            512,
        ),
        (
            "a length of the list, without a place",
            record(7, 46, 0, [1, 1]),
            512,
        ),
        ("other numbers of files", record(7, 46, data, [1, 2]), 512),
        (
            "the furthest place",
            record(7, 46, data, [1, 1]),
            SEARCHED_BYTES,
        ),
    ] {
        disk.set_len(bytes + longer).expect("writable");
        disk.write_all_at(&end, bytes).expect("writable");
        let found = signed.other_form(&signed.path);
        assert!(found.contains("ZIP"), "{what}: {found}");
        disk.set_len(bytes).expect("writable");
    }
    // An archive that a machine has stored, eight blocks before the backup of the table.
    let entry = [&b"PK\x01\x02"[..], &[0; 42]].concat();
    let archive = [entry, record(0, 46, 0, [1, 1])].concat();
    let at = bytes - table - 8 * LBA_BYTES;
    signed.exchange(&[(at, archive)]);
    let checked = signed.verify(&signed.path).expect("it has one form");
    assert_eq!(checked, 2);
}

/// The attack: firmware looks for a partition table within each partition before it takes it for a volume. A record in
/// the boot sector of the EFI system partition leads it to another volume in clusters that no file has.
#[test]
fn a_table_within_the_efi_system_partition_does_not_count_as_signed() {
    const ESP_AT: u64 = ESP_FIRST_LBA * LBA_BYTES;
    /// Place of the first record of a partition in a boot sector.
    const RECORD_AT: u64 = 446;

    let signed = SignedDisk::new(ImageForm::Raw);
    let volume = signed.other_volume();
    let disk = signed.open();
    let free = EspVolume::open(&disk).expect("ours").used_end();
    let (first, sectors) = ((free - ESP_AT) / LBA_BYTES, volume.len() as u64 / LBA_BYTES);
    let place = [first, sectors].map(|it| u32::try_from(it).expect("small").to_le_bytes());
    let mut record = vec![0, 0, 2, 0, 0x0c, 0xff, 0xff, 0xff];
    record.extend(place.concat());
    disk.write_all_at(&volume, free).expect("writable");
    assert!(signed.has_other_program(free));
    let checked = signed.verify(&signed.path).expect("nothing leads there");
    assert_eq!(checked, 2);
    let at = |place: u64, bytes: &[u8]| (ESP_AT + place, bytes.to_vec());
    for (writes, expected) in [
        (
            vec![at(RECORD_AT, &record)],
            "of the boot sector (sector 0)",
        ),
        (vec![at(512, b"EFI PART")], "of FSInfo (sector 1)"),
        (vec![at(2 * 512, b"x")], "of a reserved sector (sector 2)"),
        (
            vec![at(6 * 512 + RECORD_AT, &record)],
            "of the copy of the boot sector (sector 6)",
        ),
    ] {
        let before = signed.exchange(&writes);
        let part = signed.other_part();
        let is_named = part.starts_with("EFI system partition: ") && part.contains(expected);
        assert!(is_named, "{part}");
        signed.exchange(&before);
        let checked = signed.verify(&signed.path).expect("nothing leads there");
        assert_eq!(checked, 2, "{expected}");
    }
}

/// The attack: another volume lies in the partition of the loader for a BIOS. Firmware starts programs from each volume,
/// whatever the type of its partition.
#[test]
fn a_volume_in_the_partition_of_the_bios_loader_does_not_count_as_signed() {
    const BIOS_AT: u64 = BIOS_FIRST_LBA * LBA_BYTES;

    let signed = SignedDisk::new(ImageForm::Raw);
    let volume = signed.other_volume();
    assert!(BIOS_AT + volume.len() as u64 <= ESP_FIRST_LBA * LBA_BYTES);
    let before = signed.exchange(&[(BIOS_AT, volume)]);
    assert!(signed.has_other_program(BIOS_AT));
    let part = signed.other_part();
    assert!(part.starts_with("partition 1 (alk-bios): "), "{part}");
    signed.exchange(&before);
    let checked = signed.verify(&signed.path).expect("the volume is gone");
    assert_eq!(checked, 2);
}

/// The attack: a signed disk with the end of a disk image of macOS, which names its blocks. Programs search it.
#[test]
fn a_signed_disk_with_the_end_of_a_macos_image_does_not_count_as_signed() {
    let signed = SignedDisk::new(ImageForm::Raw);
    let disk = signed.open();
    let bytes = disk.metadata().expect("ours").len();
    for (at, longer) in [(bytes, 512), (bytes + 88, 600)] {
        disk.set_len(bytes + longer).expect("writable");
        disk.write_all_at(b"koly", at).expect("writable");
        let found = signed.other_form(&signed.path);
        assert!(found.contains("macOS"), "{at}: {found}");
        disk.set_len(bytes).expect("writable");
    }
    let checked = signed.verify(&signed.path).expect("it has one form again");
    assert_eq!(checked, 2);
}

/// The attack: a footer that names tables of a VHD in the data partition, or another size.
#[test]
fn a_vhd_whose_footer_describes_another_disk_does_not_count_as_signed() {
    let signed = SignedDisk::new(ImageForm::Vhd);
    assert_eq!(signed.verify(&signed.path).expect("it is signed"), 2);
    let disk = signed.open();
    let bytes = disk.metadata().expect("ours").len();
    let at = bytes - FOOTER_BYTES;
    let footer = bytes_at(&disk, at, FOOTER_BYTES as usize);
    for (place, field) in [
        // A dynamic disk.
        (KIND_AT, &3_u32.to_be_bytes()[..]),
        (FURTHER_HEADER_AT, &(264_u64 << 20).to_be_bytes()[..]),
        (DISK_BYTES_AT, &(at - FOOTER_BYTES).to_be_bytes()[..]),
    ] {
        let mut changed = footer.clone();
        changed[place..place + field.len()].copy_from_slice(field);
        changed[CHECKSUM_AT..CHECKSUM_AT + 4].fill(0);
        let sum: u32 = changed.iter().map(|byte| u32::from(*byte)).sum();
        changed[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&(!sum).to_be_bytes());
        disk.write_all_at(&changed, at).expect("writable");
        let found = signed.other_form(&signed.path);
        assert!(found.contains("VHD"), "byte {place}: {found}");
    }
    // The last byte of the footer has no meaning, and old programs write none.
    disk.write_all_at(&footer, at).expect("writable");
    disk.set_len(bytes - 1).expect("writable");
    let found = signed.other_form(&signed.path);
    assert!(found.contains("VHD"), "{found}");
    disk.set_len(bytes).expect("writable");
    let checked = signed.verify(&signed.path).expect("the footer is whole");
    assert_eq!(checked, 2);
}
