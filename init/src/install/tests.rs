//! Orders on machines whose disks are files.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
};

use alknet_fat::{FatNode, FilePartition, NewFatVolume, create};
use alknet_image::{DATA_HEAD_END, EspVolume, ManifestDisk, head_has_layout};
use alknet_sealed::limits::DATA_AT;
use tempfile::TempDir;

use super::*;

/// The EFI system partition of the layout: its first byte, and its bytes.
const ESP: (u64, u64) = (1 << 20, 256 << 20);
/// The data partition: the rest but the copy of the table.
const DATA: (u64, u64) = (ESP.0 + ESP.1, DRIVE_BYTES_MIN - ESP.0 - ESP.1 - (1 << 20));
const MARK_TEXT: &str = "0123\n";
/// The mark that an earlier version wrote for the same document.
const EARLIER_MARK: &str = "89ab\n";

/// A machine with these disks: name, bytes, serial number.
fn disks(listed: &[(&str, u64, &str)]) -> (TempDir, Vec<DiskFacts>) {
    let sys = tempfile::tempdir().expect("a temporary folder");
    for (name, bytes, serial) in listed {
        let folder = sys.path().join("block").join(name);
        fs::create_dir_all(&folder).expect("creatable");
        fs::write(folder.join("size"), format!("{}\n", bytes / 512)).expect("writable");
        fs::write(folder.join("serial"), serial).expect("writable");
    }
    let folders = SystemFolders {
        sys: sys.path().to_owned(),
        proc: sys.path().to_owned(),
    };
    let all = DiskFacts::all(&folders).expect("readable");
    (sys, all)
}

fn request(document: &str) -> InstallRequest {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let entry = folder.path().join("fw_cfg/node");
    fs::create_dir_all(&entry).expect("creatable");
    fs::write(entry.join("raw"), document).expect("writable");
    let mut paths = SourcePaths::system();
    paths.fw_cfg = folder.path().join("fw_cfg");
    for path in [&mut paths.block_class, &mut paths.dmi, &mut paths.efi] {
        *path = folder.path().join("nothing");
    }
    paths.command_line = folder.path().join("nothing");
    paths.metadata = folder.path().join("nothing");
    install_request(&paths, &KernelMounter, &[]).expect("an order")
}

fn job(document: &str) -> InstallJob {
    InstallJob {
        media: vec!["sr0".to_owned()],
        request: request(document),
    }
}

fn order(disk: &str) -> InstallOrder {
    let document = format!("[install]\ndisk = \"{disk}\"\n");
    request(&document).order.expect("no mistake")
}

/// The text of a refusal, and its code.
fn refused(result: Result<&DiskFacts, InstallError>) -> (String, String) {
    let error = result.expect_err("it is refused");
    (error.to_string(), error.diagnostic().code)
}

#[test]
fn the_disk_is_the_one_with_the_serial_number() {
    let (_sys, all) = disks(&[
        ("vda", DRIVE_BYTES_MIN, "first"),
        ("vdb", DRIVE_BYTES_MIN, "second"),
    ]);
    let disk = chosen(&all, &order("second"), "sr0").expect("it is there");
    assert_eq!(disk.name, "vdb");
}

#[test]
fn each_disk_that_is_not_meant_is_refused_by_name() {
    let (_sys, all) = disks(&[
        ("sda", DRIVE_BYTES_MIN, "twin"),
        ("sdb", DRIVE_BYTES_MIN, "twin"),
        ("sdc", DRIVE_BYTES_MIN - 512, "small"),
        ("sdd", DRIVE_BYTES_MIN, "stick"),
    ]);
    let small = format!(
        "sdc has {} bytes, and a machine needs",
        DRIVE_BYTES_MIN - 512
    );
    for (serial, expected) in [
        (
            "twin",
            "several disks have the serial number 'twin': sda, sdb",
        ),
        ("small", &small),
        ("stick", "sdd is the medium"),
        (
            "vda",
            "no disk has the serial number 'vda'; this machine has sda",
        ),
    ] {
        let (text, code) = refused(chosen(&all, &order(serial), "sdd"));
        assert!(text.starts_with(expected), "{serial}: {text}");
        assert_eq!(code, "install-refused", "{serial}");
    }
    let (text, _) = refused(chosen(&[], &order("vda"), "sr0"));
    assert!(text.ends_with("this machine has no disk"), "{text}");
}

#[test]
fn an_order_with_a_mistake_is_refused_with_every_line() {
    let job = job("[node]\nnmae = \"a\"\n[install]\ndisk = \"a\"\nthen = \"halt\"\n");
    let error = job.order().expect_err("two mistakes");
    let text = error.to_string();
    for part in ["fw_cfg: ", "line 5, install.then", "line 2, node.nmae"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(error.diagnostic().code, "install-refused");
}

#[test]
fn the_disk_gets_the_document_without_order_and_secrets() {
    let document = "[node]\nname = \"a\"\n[install]\ndisk = \"b\"\n[secrets]\nwords = \"c\"\n";
    let files = job(document).files();
    let paths: Vec<_> = files.iter().map(|it| it.path.as_str()).collect();
    assert_eq!(paths, [MARK, DOCUMENT]);
    let text = String::from_utf8_lossy(&files[1].content).into_owned();
    assert_eq!(text.trim_end(), "[node]\nname = \"a\"");
    // A document with nothing but the order.
    let files = job("[install]\ndisk = \"b\"\n").files();
    assert_eq!(files.len(), 1);
}

/// An administrator corrects a name in the document and leaves the medium in: the disk must not be written again.
#[test]
fn only_another_table_is_another_order() {
    let document = "[node]\nname = \"a\"\n[install]\ndisk = \"b\"\n[secrets]\nwords = \"c\"\n";
    let mark = |document: &str| job(document).marks()[0].clone();
    for same in [
        document.replace("name = \"a\"", "name = \"edge-1\""),
        document.replace("[secrets]\nwords = \"c\"\n", "         \n           \n"),
        document.replace('\n', "\r\n"),
        document.replace("[install]\n", "\n\n[install]\n  "),
    ] {
        assert_eq!(mark(&same), mark(document), "{same}");
    }
    for other in [
        document.replace("\"b\"", "\"d\""),
        document.replace("disk = \"b\"", "disk = \"b\" # once more"),
        document.replace("disk = \"b\"", "disk = \"b\"\nerase = true"),
    ] {
        assert_ne!(mark(&other), mark(document), "{other}");
    }
    // The file on the disk has this mark. The other one is that of earlier versions.
    let [mark, of_document] = job(document).marks();
    assert_eq!(&**job(document).files()[0].content, mark.as_bytes());
    let text = b"[node]\nname = \"a\"\n[install]\ndisk = \"b\"\n         \n           \n";
    assert_eq!(of_document, HEXLOWER.encode(&Sha256::digest(text)) + "\n");
}

/// `alknet image write --seed` of an earlier version left the order on the disk that it names.
#[test]
fn an_order_on_the_disk_that_it_names_is_refused() {
    let (sys, all) = disks(&[
        ("sda", DRIVE_BYTES_MIN, "first"),
        ("cciss!c0d0", DRIVE_BYTES_MIN, "b"),
    ]);
    for (disk, partition) in [("sda", "sda2"), ("cciss!c0d0", "cciss!c0d0p2")] {
        let folder = sys.path().join("block").join(disk).join(partition);
        fs::create_dir_all(folder).expect("creatable");
    }
    let boot = |device: &str| ConfigOrigin::BootPartition {
        device: device.to_owned(),
    };
    let volume = |device: &str| ConfigOrigin::NoCloud {
        device: device.to_owned(),
    };
    let disk = |name: &str| all.iter().find(|it| it.name == name).expect("listed");
    for (name, source) in [
        ("sda", boot("sda2")),
        ("sda", volume("sda2")),
        ("sda", volume("sda")),
        ("cciss/c0d0", boot("cciss!c0d0p2")),
    ] {
        let error = check_source(sys.path(), disk(name), &source).expect_err("it is on the disk");
        let text = error.to_string();
        assert!(
            text.starts_with(&format!("the order is on {name}, ")),
            "{text}"
        );
        assert_eq!(error.diagnostic().code, "install-refused");
    }
    for source in [
        boot("sdb2"),
        volume("sr0"),
        ConfigOrigin::FwCfg,
        ConfigOrigin::Smbios,
    ] {
        let result = check_source(sys.path(), disk("sda"), &source);
        assert!(result.is_ok(), "{source}: {result:?}");
    }
}

/// The stick of an attacker has a name before that of the CD drive, and a program with the same version.
#[test]
fn of_two_media_none_is_read_and_both_are_named() {
    let of = |media: &[&str]| InstallJob {
        media: media.iter().map(ToString::to_string).collect(),
        request: request("[install]\ndisk = \"a\"\n"),
    };
    assert_eq!(of(&["sr0"]).medium().expect("one"), "sr0");
    let mut said = Vec::new();
    let error = of(&["sdb", "sr0"]).run(&mut |line| said.push(line));
    let error = error.expect_err("two media");
    assert!(error.to_string().ends_with("medium: sdb, sr0"), "{error}");
    assert_eq!(error.diagnostic().code, "install-refused");
    assert_eq!(said, ["found an order to install: fw_cfg"]);
}

#[test]
fn a_node_is_erased_by_a_key_of_its_own_only() {
    let (_sys, all) = disks(&[
        ("sda", DRIVE_BYTES_MIN, "first"),
        ("sdb", DRIVE_BYTES_MIN, "alk-data"),
    ]);
    let [disk, data_disk] = &all[..] else {
        panic!("{all:?}");
    };
    let result = |found, disk: &DiskFacts, words: &str| {
        let document = format!("[install]\ndisk = \"a\"\n{words}");
        let order = request(&document).order.expect("no mistake");
        check_use(found, disk, &order).map_err(|error| error.to_string())
    };
    let (none, erase) = ("", "erase = true\n");
    let node = "erase = true\nerase_node = true\n";
    let refused = |name: &str, what: &str| Err(format!("{name} has {what}"));
    let data = "a node's data";
    for (found, on, words, expected) in [
        (DiskUse::Blank, disk, none, Ok(())),
        (
            DiskUse::Used,
            disk,
            none,
            refused("sda", "partitions or other content"),
        ),
        (DiskUse::Used, disk, erase, Ok(())),
        (DiskUse::Node, disk, none, refused("sda", data)),
        (DiskUse::Node, disk, erase, refused("sda", data)),
        (DiskUse::Node, disk, node, Ok(())),
        // A whole disk with the data.
        (DiskUse::Used, data_disk, erase, refused("sdb", data)),
        (DiskUse::Used, data_disk, node, Ok(())),
        (DiskUse::Blank, data_disk, none, Ok(())),
    ] {
        assert_eq!(result(found, on, words), expected, "{found:?} {words}");
    }
    let again = result(DiskUse::Installed, disk, node).expect_err("once");
    assert!(again.starts_with("sda has this image already"), "{again}");
    let changed = result(DiskUse::Changed, disk, node).expect_err("its data may be the node's");
    assert!(
        changed.ends_with("but not the programs of this medium"),
        "{changed}"
    );
}

/// The beginning of an image: a partition table, and code behind it.
fn head() -> Vec<u8> {
    let mut head = vec![0; HEAD_BYTES];
    head[..2048].fill(7);
    head[17_000..90_000].fill(9);
    head
}

/// A sparse disk of the least size.
fn disk() -> File {
    let disk = tempfile::tempfile().expect("a temporary file");
    disk.set_len(DRIVE_BYTES_MIN).expect("writable");
    disk
}

fn judged(disk: &File) -> DiskUse {
    looked_at(disk).expect("readable")
}

fn looked_at(disk: &File) -> std::io::Result<DiskUse> {
    let marks = [MARK_TEXT.to_owned(), EARLIER_MARK.to_owned()];
    content::judge(disk, DRIVE_BYTES_MIN, &head(), &marks)
}

/// Makes the EFI system partition, with this mark.
fn make_volume(disk: &File, mark: &[u8]) {
    make_empty_volume(disk);
    let mut volume = EspVolume::open(disk).expect("it was made");
    volume.add(MARK, mark).expect("it has room");
}

fn make_empty_volume(disk: &File) {
    let volume = NewFatVolume {
        hidden_sectors: 2048,
        sectors: u32::try_from(ESP.1 / 512).expect("it is small"),
        cluster_sectors: 4,
        id: 1,
        label: *b"ALKESP     ",
    };
    let mut partition = FilePartition::new(disk, ESP.0, ESP.1);
    let nodes: [FatNode<'_>; 0] = [];
    create(&mut partition, &volume, &nodes).expect("writable");
}

/// The first blocks of a disk in this project's layout, or one copy of its partition table, in blocks of this size.
fn table(block: u64, entries_at: u64) -> (Vec<u8>, Vec<u8>) {
    let mut header = vec![0; 512];
    header[..12].copy_from_slice(b"EFI PART\0\0\x01\0");
    header[32..40].copy_from_slice(&(DRIVE_BYTES_MIN / block - 1).to_le_bytes());
    header[72..80].copy_from_slice(&entries_at.to_le_bytes());
    header[80..84].copy_from_slice(&128_u32.to_le_bytes());
    header[84..88].copy_from_slice(&128_u32.to_le_bytes());
    let mut entries = vec![0; 128 * 128];
    let system = uuid::uuid!("C12A7328-F81F-11D2-BA4B-00A0C93EC93B");
    let partitions = [
        ("alk-bios", 17_408, 1 << 20),
        ("alk-esp", ESP.0, ESP.1),
        ("alk-data", DATA.0, DATA.1),
    ];
    for (entry, (name, at, bytes)) in entries.chunks_exact_mut(128).zip(partitions) {
        entry[..16].copy_from_slice(&system.to_bytes_le());
        entry[32..40].copy_from_slice(&(at / block).to_le_bytes());
        entry[40..48].copy_from_slice(&((at + bytes) / block - 1).to_le_bytes());
        for (place, unit) in entry[56..].chunks_exact_mut(2).zip(name.encode_utf16()) {
            place.copy_from_slice(&unit.to_le_bytes());
        }
    }
    (header, entries)
}

/// Writes the partition table of the layout to the beginning of a disk.
fn write_table(disk: &File, block: u64) {
    let (header, entries) = table(block, 2);
    disk.write_all_at(&[0x55, 0xaa], 510).expect("writable");
    disk.write_all_at(&header, block).expect("writable");
    disk.write_all_at(&entries, 2 * block).expect("writable");
}

#[test]
fn only_a_disk_without_content_is_blank() {
    let blank = disk();
    blank
        .write_all_at(b"data of a wiped disk", 2 << 20)
        .expect("writable");
    assert_eq!(judged(&blank), DiskUse::Blank);
    // A table, the mark of a file system without a table, and the copy of a table at the end.
    for at in [446, 0x438, DRIVE_BYTES_MIN - 512] {
        let used = disk();
        used.write_all_at(&[0x53], at).expect("writable");
        assert_eq!(judged(&used), DiskUse::Used, "{at}");
    }
}

/// The beginning is written from its second block on, and then the first one.
#[test]
fn an_installation_that_was_interrupted_begins_again() {
    let head = head();
    for written in [512, 1024, 1536, 20_480, HEAD_BYTES] {
        let disk = disk();
        disk.write_all_at(&head[512..written], 512)
            .expect("writable");
        assert_eq!(judged(&disk), DiskUse::Blank, "{written}");
        // Bytes that are not of the image belong to the owner of the disk.
        disk.write_all_at(&[8], 1024).expect("writable");
        assert_eq!(judged(&disk), DiskUse::Used, "{written}");
    }
}

#[test]
fn a_disk_that_the_same_order_wrote_is_not_written_again() {
    for (mark, expected) in [
        (MARK_TEXT, DiskUse::Installed),
        (EARLIER_MARK, DiskUse::Installed),
        ("4567\n", DiskUse::Used),
        ("0123", DiskUse::Used),
    ] {
        let disk = disk();
        make_volume(&disk, mark.as_bytes());
        disk.write_all_at(&head(), 0).expect("writable");
        assert_eq!(judged(&disk), expected, "{mark}");
        // The disk failed when its beginning was read back: the installer wipes that, which the disk may not keep either.
        for kept in [0, HEAD_BYTES - 512] {
            let mut left = vec![0; HEAD_BYTES];
            left[512..512 + kept].fill(3);
            disk.write_all_at(&left, 0).expect("writable");
            let expected = if kept == 0 {
                DiskUse::Blank
            } else {
                DiskUse::Used
            };
            assert_eq!(judged(&disk), expected, "{mark} {kept}");
        }
    }
}

/// Who knows the table of an order writes its mark to a disk with other programs. The same disk may be a node's whose
/// programs an update replaced, if it has data.
#[test]
fn a_mark_beside_other_programs_is_no_installation() {
    let programs = ["EFI/BOOT/BOOTX64.EFI", "EFI/ALKNET/A.EFI"];
    let made = |others: &[(&str, &[u8])]| {
        let disk = disk();
        make_empty_volume(&disk);
        let mut volume = EspVolume::open(&disk).expect("it was made");
        let own = programs.map(|path| (path, &b"program"[..]));
        for (path, own) in own {
            let other = others.iter().find(|(other, _)| *other == path);
            let content = other.map_or(own, |(_, content)| content);
            volume.add(path, content).expect("it has room");
        }
        let more = others.iter().filter(|(path, _)| !programs.contains(path));
        for (path, content) in more.chain(&[(MARK, MARK_TEXT.as_bytes())]) {
            volume.add(path, content).expect("it has room");
        }
        write_table(&disk, 512);
        disk
    };
    let as_installed = made(&[]);
    let mut expected = ManifestDisk::read(&as_installed).expect("ours");
    expected
        .files
        .retain(|file| programs.contains(&file.path.as_str()));
    assert_eq!(expected.files.len(), programs.len());
    let by_parts = |disk: &File| {
        assert_eq!(judged(disk), DiskUse::Installed, "by its mark alone");
        content::installed(disk, DRIVE_BYTES_MIN, &expected).expect("readable")
    };
    let with_code = made(&[]);
    with_code.write_all_at(&[9], 0).expect("writable");
    for (disk, is_other) in [
        (as_installed, false),
        (
            made(&[(DOCUMENT, b"[node]\n"), ("alknet/seed.key", b"key")]),
            false,
        ),
        (made(&[(programs[0], b"another")]), true),
        (made(&[(programs[1], b"another")]), true),
        (made(&[("EFI/ALKNET/B.EFI", b"another")]), true),
        (made(&[("EFI/BOOT/GRUBX64.EFI", b"another")]), true),
        (with_code, true),
    ] {
        let [blank, used] = match is_other {
            true => [DiskUse::Used, DiskUse::Changed],
            false => [DiskUse::Installed; 2],
        };
        assert_eq!(by_parts(&disk), blank);
        disk.write_all_at(&[7], DATA.0).expect("writable");
        assert_eq!(by_parts(&disk), used);
    }
}

#[test]
fn an_image_is_written_to_the_end_of_the_vaults_place() {
    assert_eq!(DATA_HEAD_END, DATA.0 + DATA_AT);
}

/// A mark that cannot be read may be that of the order: with `erase = true` the disk would be erased at each start.
#[test]
fn a_mark_that_cannot_be_read_refuses_the_disk() {
    for (at, byte) in [
        // The signature of the boot sector, the sectors of a cluster, and the first cluster of the root.
        (ESP.0 + 510, 0),
        (ESP.0 + 13, 3),
        (ESP.0 + 47, 0xff),
    ] {
        let disk = disk();
        make_volume(&disk, MARK_TEXT.as_bytes());
        disk.write_all_at(&[byte], at).expect("writable");
        // Another system has anything there.
        disk.write_all_at(&head(), 0).expect("writable");
        assert_eq!(judged(&disk), DiskUse::Used, "{at}");
        write_table(&disk, 512);
        let mut first = vec![0; HEAD_BYTES];
        disk.read_exact_at(&mut first, 0).expect("readable");
        assert!(head_has_layout(&first));
        assert!(looked_at(&disk).is_err(), "{at}");
    }
    let disk = disk();
    make_volume(&disk, &[b'0'; 512]);
    write_table(&disk, 512);
    assert!(looked_at(&disk).is_err(), "it is too long for a mark");
    let disk = self::disk();
    make_empty_volume(&disk);
    write_table(&disk, 512);
    assert!(looked_at(&disk).is_err(), "the root has lost its files");
}

/// The data of a node count, whatever the mark says, by either copy of the table.
#[test]
fn a_data_partition_that_is_not_blank_is_a_node() {
    for block in [512, 4096] {
        for at in [DATA.0, DATA.0 + DATA.1 - 1] {
            let disk = disk();
            make_volume(&disk, b"4567\n");
            write_table(&disk, block);
            assert_eq!(
                judged(&disk),
                DiskUse::Used,
                "a disk that was never started"
            );
            disk.write_all_at(&[7], at).expect("writable");
            assert_eq!(judged(&disk), DiskUse::Node, "{block} {at}");
            // The primary table is gone, and its copy is there.
            disk.write_all_at(&[0; 65_536], 0).expect("writable");
            let end = DRIVE_BYTES_MIN / block;
            let (header, entries) = table(block, end - 33);
            disk.write_all_at(&header, (end - 1) * block)
                .expect("writable");
            disk.write_all_at(&entries, (end - 33) * block)
                .expect("writable");
            assert_eq!(judged(&disk), DiskUse::Node, "{block} {at}: by the copy");
        }
    }
    // What the table says is behind the end of the disk.
    let disk = disk();
    make_volume(&disk, b"4567\n");
    write_table(&disk, 512);
    let first = (DRIVE_BYTES_MIN / 512 + 9).to_le_bytes();
    disk.write_all_at(&first, 1024 + 2 * 128 + 32)
        .expect("writable");
    assert_eq!(judged(&disk), DiskUse::Node);
}

#[test]
fn progress_changes_a_few_times() {
    let total = 272 << 20;
    let mut lines: Vec<_> = (0..=272)
        .flat_map(|mib| {
            progress(
                FlashStep::Writing {
                    bytes: mib << 20,
                    total: None,
                },
                total,
            )
        })
        .collect();
    lines.dedup();
    assert_eq!(lines.len(), 5, "{lines:?}");
    assert_eq!(lines[1], "64 of 272 MiB are written");
}
