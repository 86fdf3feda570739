//! Finds the disk with the boot slots: by the labels of its partitions, never by its order.

use std::fs;
use std::path::{Path, PathBuf};

use alknet_boot_state::{GRUB_CORE_LBA, RECORD_BYTES, RECORD_LBA, SECTOR_BYTES};

/// GPT label of the partition with the record.
const BIOS_LABEL: &str = "alk-bios";
/// GPT label of the boot partition.
const ESP_LABEL: &str = "alk-esp";

/// GPT label of the data partition.
const DATA_LABEL: &str = crate::data::LABEL;

/// The first sector of `alk-bios`: the header before GRUB's core image.
pub(super) const BIOS_LBA: u64 = GRUB_CORE_LBA - 1;
/// Sectors of `alk-bios`, which ends with the record.
const BIOS_SECTORS: u64 = RECORD_LBA + (RECORD_BYTES / SECTOR_BYTES) as u64 - BIOS_LBA;

/// The partitions of the disk with the boot slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BootPartitions {
    /// Name of the disk below `/dev`.
    pub(super) disk: String,
    /// The device of `alk-bios`.
    pub(super) bios: PathBuf,
    /// The device of `alk-esp`.
    pub(super) esp: PathBuf,
}

impl BootPartitions {
    /// The device of the partition with the record and the boot note.
    pub(super) fn bios(&self) -> PathBuf {
        self.bios.clone()
    }
}

/// Why there is no disk with boot slots.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BootPartitionsError {
    /// Several disks have both partitions.
    #[error("several disks have the partitions {BIOS_LABEL} and {ESP_LABEL}: {}; detach all but one", .0.join(", "))]
    Ambiguous(Vec<String>),
    /// The disk counts in other sectors than the record.
    #[error(
        "the disk {disk} has sectors of {bytes} bytes, and the record is for those of {SECTOR_BYTES}"
    )]
    Blocks { disk: String, bytes: u64 },
    /// Firmware started the machine from another partition than those that were found.
    #[error(
        "firmware started the machine from the partition {started}, and the partition {ESP_LABEL} of {} is another one: it was \
         not started from a disk image with boot slots",
        .disks.join(", ")
    )]
    Foreign { started: String, disks: Vec<String> },
    /// The partition with the record lies elsewhere.
    #[error(
        "the partition {BIOS_LABEL} of {disk} has sectors {start} and {sectors} more, and not those of an image with boot slots"
    )]
    Geometry {
        disk: String,
        start: u64,
        sectors: u64,
    },
    /// No disk has both partitions.
    #[error(
        "no disk has the partitions {BIOS_LABEL} and {ESP_LABEL}: it was not started from a disk image with boot slots"
    )]
    Missing,
}

/// A partition as the kernel lists it.
struct ListedPartition {
    disk: String,
    name: String,
    label: String,
    /// The GUID of the partition, if the kernel says it.
    uuid: String,
    start: u64,
    sectors: u64,
}

/// What tells the machine's own disk from another one with the same labels.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct OwnDiskSigns<'a> {
    /// GUID of the boot partition that firmware started the machine from, if firmware says it.
    pub(crate) started_from: Option<&'a str>,
    /// Name below `/dev` of the data partition that the machine has opened. `None` before that, and if its data are on
    /// a disk of their own.
    pub(crate) data: Option<&'a str>,
}

/// Finds the disk. `guid` is the GUID of the partition of a disk that begins at a byte: Linux 6.12 says none.
pub(crate) fn find(
    sys: &Path,
    signs: OwnDiskSigns<'_>,
    guid: impl Fn(&str, u64) -> Option<String>,
) -> Result<BootPartitions, BootPartitionsError> {
    let mut listed = partitions(sys);
    let records = listed.iter().filter(|one| one.label == BIOS_LABEL);
    let disks: Vec<_> = records.map(|one| one.disk.clone()).collect();
    for one in &mut listed {
        let has_record = disks.contains(&one.disk);
        let is_asked = one.uuid.is_empty() && signs.started_from.is_some();
        if has_record && one.label == ESP_LABEL && is_asked {
            let start = one.start.saturating_mul(SECTOR_BYTES as u64);
            one.uuid = guid(&one.disk, start).unwrap_or_default();
        }
    }
    let esps = listed.iter().filter(|one| one.label == ESP_LABEL);
    let pairs: Vec<_> = esps
        .filter_map(|esp| {
            let is_beside =
                |one: &&ListedPartition| one.label == BIOS_LABEL && one.disk == esp.disk;
            Some((listed.iter().find(is_beside)?, esp))
        })
        .collect();
    let is_opened =
        |one: &&ListedPartition| one.label == DATA_LABEL && signs.data == Some(one.name.as_str());
    let data = listed.iter().find(is_opened);
    let (bios, esp) = choose(&pairs, signs.started_from, data)?;
    check(sys, bios)?;
    let device = |name: &str| Path::new("/dev").join(name);
    Ok(BootPartitions {
        disk: esp.disk.clone(),
        bios: device(&bios.name),
        esp: device(&esp.name),
    })
}

/// Chooses `alk-bios` and `alk-esp` of the disk that firmware started the machine from. Among several with the GUID that
/// firmware names it is the one with `data`, the opened data partition.
fn choose<'a>(
    pairs: &[(&'a ListedPartition, &'a ListedPartition)],
    started_from: Option<&str>,
    data: Option<&ListedPartition>,
) -> Result<(&'a ListedPartition, &'a ListedPartition), BootPartitionsError> {
    let is_started = |esp: &ListedPartition| {
        started_from.is_some_and(|uuid| esp.uuid.eq_ignore_ascii_case(uuid))
    };
    let mut started: Vec<_> = pairs.iter().filter(|(_, esp)| is_started(esp)).collect();
    if started.len() > 1 {
        // All disks of one build have the same GUID of the boot partition. An attacker can attach a disk with it, but
        // cannot make the machine open the data there beside its own: two data partitions open nothing.
        started.retain(|(_, esp)| data.is_some_and(|data| data.disk == esp.disk));
    }
    // A partition that only has our label is not the one that the machine was started from. The kernel may not say GUIDs.
    let is_foreign = |started: &&str| {
        let mut ids = pairs.iter().map(|(_, esp)| &esp.uuid);
        ids.all(|uuid| !uuid.is_empty() && !uuid.eq_ignore_ascii_case(started))
    };
    match (pairs, started.as_slice()) {
        ([], _) => Err(BootPartitionsError::Missing),
        (_, [only]) => Ok(**only),
        _ if started_from.as_ref().is_some_and(is_foreign) => Err(BootPartitionsError::Foreign {
            started: started_from.unwrap_or_default().to_owned(),
            disks: pairs.iter().map(|(_, esp)| esp.disk.clone()).collect(),
        }),
        ([only], _) => Ok(*only),
        (several, _) => {
            let names = several.iter().map(|(_, esp)| esp.disk.clone());
            Err(BootPartitionsError::Ambiguous(names.collect()))
        }
    }
}

fn check(sys: &Path, bios: &ListedPartition) -> Result<(), BootPartitionsError> {
    let disk = bios.disk.clone();
    if (bios.start, bios.sectors) != (BIOS_LBA, BIOS_SECTORS) {
        return Err(BootPartitionsError::Geometry {
            disk,
            start: bios.start,
            sectors: bios.sectors,
        });
    }
    let path = class(sys, &disk).join("queue/logical_block_size");
    match number(&path) {
        Some(bytes) if bytes != SECTOR_BYTES as u64 => {
            Err(BootPartitionsError::Blocks { disk, bytes })
        }
        _ => Ok(()),
    }
}

fn partitions(sys: &Path) -> Vec<ListedPartition> {
    let entries = fs::read_dir(sys.join("class/block"));
    let entries = entries.into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut listed: Vec<_> = names.filter_map(|name| partition(sys, name)).collect();
    // The kernel lists devices in no order, and messages name them.
    listed.sort_by(|one, other| one.name.cmp(&other.name));
    listed
}

fn partition(sys: &Path, name: String) -> Option<ListedPartition> {
    let folder = class(sys, &name);
    let uevent = fs::read_to_string(folder.join("uevent")).ok()?;
    let value = |key: &str| {
        let mut lines = uevent.lines();
        lines.find_map(|line| line.strip_prefix(key)?.strip_prefix('=').map(str::to_owned))
    };
    let label = value("PARTNAME")?;
    // The folder of the disk contains that of the partition.
    let real = fs::canonicalize(&folder).ok()?;
    let disk = real.parent()?.file_name()?.to_str()?.to_owned();
    Some(ListedPartition {
        disk,
        label,
        uuid: value("PARTUUID").unwrap_or_default(),
        // sysfs counts units of 512 bytes, whatever the size of the disk's sectors.
        start: number(&folder.join("start"))?,
        sectors: number(&folder.join("size"))?,
        name,
    })
}

fn class(sys: &Path, name: &str) -> PathBuf {
    sys.join("class/block").join(name)
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// On a machine whose disks cannot be read.
    fn find(sys: &Path, started_from: Option<&str>) -> Result<BootPartitions, BootPartitionsError> {
        let signs = OwnDiskSigns {
            started_from,
            data: None,
        };
        super::find(sys, signs, |_, _| None)
    }

    /// A `/sys` with these partitions: disk, name, label, GUID.
    fn sys(partitions: &[(&str, &str, &str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a temporary directory");
        let classes = root.path().join("class/block");
        fs::create_dir_all(&classes).expect("writable");
        for (disk, name, label, uuid) in partitions {
            let device = root.path().join("devices").join(disk).join(name);
            fs::create_dir_all(&device).expect("writable");
            let (start, size) = if *label == BIOS_LABEL {
                ("34\n", "2014\n")
            } else {
                ("2048\n", "524288\n")
            };
            fs::write(device.join("start"), start).expect("writable");
            fs::write(device.join("size"), size).expect("writable");
            let uevent = format!("DEVTYPE=partition\nPARTNAME={label}\nPARTUUID={uuid}\n");
            fs::write(device.join("uevent"), uevent).expect("writable");
            symlink(&device, classes.join(name)).expect("writable");
            let queue = root.path().join("devices").join(disk).join("queue");
            fs::create_dir_all(&queue).expect("writable");
            fs::write(queue.join("logical_block_size"), "512\n").expect("writable");
            let link = classes.join(disk);
            if !link.exists() {
                symlink(root.path().join("devices").join(disk), link).expect("writable");
            }
        }
        root
    }

    const ONE: [(&str, &str, &str, &str); 3] = [
        ("vda", "vda1", "alk-bios", "1"),
        ("vda", "vda2", "alk-esp", "ab-2"),
        ("vda", "vda3", "alk-data", "3"),
    ];
    const STICK: [(&str, &str, &str, &str); 2] = [
        ("sda", "sda1", "alk-bios", "4"),
        ("sda", "sda2", "alk-esp", "cd-5"),
    ];

    #[test]
    fn both_partitions_of_one_disk_are_found() {
        let root = sys(&ONE);
        let found = find(root.path(), None).expect("one disk");
        assert_eq!(found.disk, "vda");
        assert_eq!(found.bios, Path::new("/dev/vda1"));
        assert_eq!(found.esp, Path::new("/dev/vda2"));
    }

    #[test]
    fn a_part_of_a_disk_is_no_disk_with_boot_slots() {
        assert_eq!(
            find(sys(&[]).path(), None),
            Err(BootPartitionsError::Missing)
        );
        assert_eq!(
            find(sys(&ONE[1..]).path(), None),
            Err(BootPartitionsError::Missing)
        );
        let apart = [ONE[0], STICK[1]];
        assert_eq!(
            find(sys(&apart).path(), None),
            Err(BootPartitionsError::Missing)
        );
    }

    #[test]
    fn between_several_disks_only_firmware_decides() {
        let root = sys(&[&ONE[..], &STICK[..]].concat());
        let refused = find(root.path(), None).expect_err("two disks");
        assert_eq!(
            refused.to_string(),
            "several disks have the partitions alk-bios and alk-esp: sda, vda; detach all but one"
        );
        let found = find(root.path(), Some("AB-2")).expect("firmware named one");
        assert_eq!(found.disk, "vda");
        assert!(find(root.path(), Some("ee-6")).is_err(), "of a third disk");
    }

    /// All disks of one build have the same GUID of the boot partition. An attacker attaches one of them.
    #[test]
    fn of_two_disks_of_one_build_the_one_with_the_opened_data_is_the_own_one() {
        let copy = |disk: &str| match disk {
            "first" => [
                ("sda", "sda1", "alk-bios", "1"),
                ("sda", "sda2", "alk-esp", "ab-2"),
            ],
            _ => [
                ("vdb", "vdb1", "alk-bios", "1"),
                ("vdb", "vdb2", "alk-esp", "ab-2"),
            ],
        };
        // A partition of the other disk with another label than that of the data.
        let other = [("vdb", "vdb3", "other", "7")];
        let with = |signs: OwnDiskSigns<'_>, disk: &str| {
            let root = sys(&[&copy(disk)[..], &ONE[..], &other[..]].concat());
            super::find(root.path(), signs, |_, _| None)
        };
        for disk in ["first", "last"] {
            let signs = |started_from, data| OwnDiskSigns { started_from, data };
            let found = with(signs(Some("AB-2"), Some("vda3")), disk).expect("it has the data");
            assert_eq!(found.disk, "vda");
            // Neither before the data are open, nor with data on a third disk.
            for data in [None, Some("vdb3"), Some("vdc"), Some("vda2")] {
                let refused = with(signs(Some("AB-2"), data), disk).expect_err("neither");
                let is_ambiguous = matches!(refused, BootPartitionsError::Ambiguous(_));
                assert!(is_ambiguous, "{data:?}: {refused}");
            }
            // Data do not decide where firmware says nothing: the other disk may be the one that started.
            assert!(with(signs(None, Some("vda3")), disk).is_err());
        }
        // Firmware names the one disk, and data on the other one change nothing.
        let root = sys(&[&ONE[..], &STICK[..], &[("sda", "sda3", "alk-data", "6")]].concat());
        let signs = OwnDiskSigns {
            started_from: Some("ab-2"),
            data: Some("sda3"),
        };
        let found = super::find(root.path(), signs, |_, _| None).expect("firmware named one");
        assert_eq!(found.disk, "vda");
    }

    /// Linux 6.12 names no GUID in `/sys`.
    #[test]
    fn a_guid_that_the_kernel_does_not_say_is_read_from_the_disk() {
        let silent = |partitions: &[(&'static str, &'static str, &'static str, &'static str)]| {
            let all = partitions.iter().map(|one| (one.0, one.1, one.2, ""));
            all.collect::<Vec<_>>()
        };
        // A disk without the other partition is not read.
        let half = [("sdb", "sdb1", "alk-esp", "6")];
        let root = sys(&silent(&[&ONE[..], &STICK[..], &half[..]].concat()));
        let guid = |disk: &str, start: u64| match (disk, start) {
            ("vda", 0x10_0000) => Some("ab-2".to_owned()),
            ("sda", 0x10_0000) => Some("cd-5".to_owned()),
            other => panic!("{other:?}"),
        };
        for (started, disk) in [("AB-2", "vda"), ("CD-5", "sda")] {
            let signs = OwnDiskSigns {
                started_from: Some(started),
                data: None,
            };
            let found = super::find(root.path(), signs, guid).expect("firmware named it");
            assert_eq!(found.disk, disk);
        }
        let stick = sys(&silent(&STICK));
        let signs = OwnDiskSigns {
            started_from: Some("ab-2"),
            data: None,
        };
        let foreign = super::find(stick.path(), signs, guid).expect_err("of another disk");
        assert!(
            matches!(foreign, BootPartitionsError::Foreign { .. }),
            "{foreign}"
        );
    }

    /// An attached disk whose partitions have our labels, at a machine that was started from another one.
    #[test]
    fn a_partition_that_only_has_the_label_is_not_the_one_of_the_machine() {
        let foreign = find(sys(&STICK).path(), Some("ab-2")).expect_err("of another disk");
        assert!(
            matches!(&foreign, BootPartitionsError::Foreign { disks, .. } if disks == &["sda"]),
            "{foreign}"
        );
        let found = find(sys(&STICK).path(), Some("CD-5")).expect("the same");
        assert_eq!(found.disk, "sda");
        // A kernel that says no GUIDs, and firmware that says none.
        let silent = [
            (STICK[0].0, STICK[0].1, STICK[0].2, ""),
            ("sda", "sda2", "alk-esp", ""),
        ];
        assert!(find(sys(&silent).path(), Some("ab-2")).is_ok());
        assert!(find(sys(&STICK).path(), None).is_ok());
    }

    #[test]
    fn another_geometry_is_refused() {
        let root = sys(&ONE);
        let folder = root.path().join("devices/vda");
        fs::write(folder.join("queue/logical_block_size"), "4096\n").expect("writable");
        let refused = find(root.path(), None).expect_err("4,096 bytes");
        assert!(matches!(
            refused,
            BootPartitionsError::Blocks { bytes: 4096, .. }
        ));
        fs::write(folder.join("vda1/size"), "2000\n").expect("writable");
        let refused = find(root.path(), None).expect_err("another partition");
        assert!(matches!(
            refused,
            BootPartitionsError::Geometry { sectors: 2000, .. }
        ));
    }
}
