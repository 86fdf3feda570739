//! The data partition: found, formatted on the first boot, checked, mounted, grown, and announced
//! when it is missing. A machine without one serves from memory.

mod ext4;
mod find;
mod gpt;
mod keyslots;
mod sealed;

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{PermissionsExt, chown},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use alknet_vault::Entropy;
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::statvfs::{FsFlags, statvfs},
};

use crate::{
    control::{DataState, Problem},
    log::Log,
    vault::{Keeper, Offer, Waiting},
};
use ext4::{Content, Super};
use find::Found;

pub(crate) use keyslots::DataKeys;
#[cfg(test)]
pub(crate) use keyslots::tests as keyslot_tests;
pub(crate) use sealed::{copies, erase, reopen};

/// Where the data partition is mounted.
const DATA: &str = "/data";
/// Where state lives when there is no data partition.
const VOLATILE: &str = "/run/alknet";
/// How long a disk on a slow bus may take to appear.
const APPEAR_MAX: Duration = Duration::from_secs(3);
/// How often to look for it.
const APPEAR_POLL: Duration = Duration::from_millis(50);
/// Less free than this is full, bytes: the node must be able to write a configuration and a key.
const FULL_BYTES: u64 = 4 << 20;
/// User and group of the node.
pub(crate) const NODE_UID: u32 = 1000;

/// Folders of the state directory: name, mode, whether the node owns it. What PID 1 writes is not
/// the node's to replace by a link.
const TREE: &[(&str, u32, bool)] = &[
    ("audit", 0o700, true),
    ("config", 0o755, false),
    ("identity", 0o700, true),
    ("log", 0o700, true),
    ("state", 0o700, true),
    ("tls", 0o700, true),
];

const BLKPG: libc::c_ulong = 0x1269;
const BLKPG_RESIZE_PARTITION: libc::c_int = 3;
const BLKRRPART: libc::c_ulong = 0x125f;
const BLKSSZGET: libc::c_ulong = 0x1268;

/// What came of it.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) state_dir: PathBuf,
    pub(crate) state: DataState,
    pub(crate) problems: Vec<Problem>,
    /// The vault needs somebody first: nothing is open.
    pub(crate) waiting: Option<Waiting>,
    /// Where the vault lies.
    pub(crate) vault_at: Option<PathBuf>,
    /// What the words of the vault spell, for whoever looks whether a medium still has them; to be
    /// let go at once.
    pub(crate) words: Option<Entropy>,
}

/// What the data partition is opened with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access<'a> {
    pub(crate) keeper: &'a Keeper,
    pub(crate) offer: &'a Offer,
    pub(crate) log: &'a Log,
}

/// Why there is no data.
enum Stop {
    Problem(Box<Problem>),
    Waiting(Box<Waiting>, PathBuf),
}

impl From<Box<Problem>> for Stop {
    fn from(problem: Box<Problem>) -> Self {
        Self::Problem(problem)
    }
}

/// A block device with a file system for the data.
struct Volume {
    path: PathBuf,
    /// Name of the device that it lies on.
    on: String,
    /// How it is encrypted.
    cipher: Option<String>,
    vault_at: Option<PathBuf>,
}

/// Does all of it. Blocks for as long as the disk takes; not for PID 1's loop.
pub(crate) fn prepare(access: Access<'_>) -> Prepared {
    let sys = Path::new("/sys");
    let log = access.log;
    let opened = locate(sys, log).map_err(Stop::from);
    let mut prepared = match opened.and_then(|found| open(sys, &found, access)) {
        Ok(prepared) => prepared,
        Err(Stop::Problem(problem)) => volatile(*problem),
        Err(Stop::Waiting(waiting, vault_at)) => return locked(*waiting, vault_at),
    };
    // A read-only one has them, and its problem has been told.
    if prepared.state.mode != "read-only"
        && let Err(error) = make_tree(&prepared.state_dir)
    {
        prepared.problems.push(problem(
            "data-unwritable",
            format!(
                "cannot make the folders of {}: {error}",
                prepared.state_dir.display()
            ),
            "free space on the data disk, or replace it",
        ));
    }
    refresh(&mut prepared);
    prepared
}

/// Brings sizes, and problems that come and go, up to date. Returns whether something changed
/// that a reader should hear of.
pub(crate) fn refresh(prepared: &mut Prepared) -> bool {
    let Ok(stat) = statvfs(&prepared.state_dir) else {
        return false;
    };
    let before = (prepared.state.mode.clone(), prepared.problems.clone());
    let unit = stat.fragment_size();
    prepared.state.total_bytes = stat.blocks() * unit;
    prepared.state.free_bytes = stat.blocks_available() * unit;
    let mounted = prepared.state.mode == "mounted";
    if mounted && stat.flags().contains(FsFlags::ST_RDONLY) {
        read_only(
            prepared,
            "the kernel found it damaged and stopped writing".to_owned(),
        );
    }
    let full = prepared.state.mode != "read-only" && prepared.state.free_bytes < FULL_BYTES;
    prepared.problems.retain(|known| known.code != "data-full");
    if full {
        prepared.problems.push(problem(
            "data-full",
            format!(
                "{} bytes are free on the data disk",
                prepared.state.free_bytes
            ),
            "delete what is not needed, or enlarge the disk and reboot: it is grown by itself",
        ));
    }
    before != (prepared.state.mode.clone(), prepared.problems.clone())
}

/// Unmounts the data, or makes it read-only where something still holds it.
pub(crate) fn close() -> io::Result<()> {
    let outcome = match umount2(DATA, MntFlags::empty()) {
        Ok(()) => {
            // The kernel forgets the key. A machine that goes down does so without it as well.
            return sealed::close();
        }
        Err(Errno::EBUSY) => {
            let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount(None::<&str>, DATA, None::<&str>, flags, None::<&str>)
        }
        // Nothing is mounted there.
        Err(Errno::EINVAL) => Ok(()),
        other => other,
    };
    Ok(outcome?)
}

/// Unmounts the data and erases everything on the device, so that it is blank.
pub(crate) fn begin_anew(device: &Path) -> io::Result<()> {
    umount2(DATA, MntFlags::empty())?;
    sealed::close()?;
    erase(device)
}

fn problem(code: &str, text: String, hint: &str) -> Problem {
    Problem {
        code: code.to_owned(),
        text,
        hint: hint.to_owned(),
    }
}

fn refuse<T>(code: &str, text: String, hint: &str) -> Result<T, Box<Problem>> {
    Err(Box::new(problem(code, text, hint)))
}

/// Nothing is there until the vault is open.
fn locked(waiting: Waiting, vault_at: PathBuf) -> Prepared {
    Prepared {
        state_dir: VOLATILE.into(),
        state: DataState {
            mode: "locked".to_owned(),
            device: Some(vault_at.display().to_string()),
            detail: Some(waiting.problem.text.clone()),
            ..DataState::default()
        },
        problems: vec![waiting.problem.clone()],
        waiting: Some(waiting),
        vault_at: Some(vault_at),
        words: None,
    }
}

fn volatile(why: Problem) -> Prepared {
    Prepared {
        waiting: None,
        vault_at: None,
        words: None,
        state_dir: VOLATILE.into(),
        state: DataState {
            mode: "volatile".to_owned(),
            detail: Some(why.text.clone()),
            ..DataState::default()
        },
        problems: vec![why],
    }
}

fn make_tree(root: &Path) -> io::Result<()> {
    fs::create_dir_all(root)?;
    for (name, mode, node) in TREE {
        let folder = root.join(name);
        if !folder.is_dir() {
            fs::create_dir(&folder)?;
        }
        let owner = if *node { NODE_UID } else { 0 };
        chown(&folder, Some(owner), Some(owner))?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(*mode))?;
    }
    Ok(())
}

/// The device with the data, waited for where one may still appear.
fn locate(sys: &Path, log: &Log) -> Result<Found, Box<Problem>> {
    let begun = Instant::now();
    loop {
        let found = find::scan(sys);
        match find::choose(&found) {
            Ok(Some(one)) => return Ok(one.clone()),
            Ok(None) => {}
            Err(names) => {
                return refuse(
                    "data-ambiguous",
                    format!(
                        "several disks call themselves {}: {}",
                        find::LABEL,
                        names.join(", ")
                    ),
                    "detach all but one and reboot; none was touched",
                );
            }
        }
        if repair_tables(sys, log) {
            continue;
        }
        if begun.elapsed() >= APPEAR_MAX || !find::may_appear(sys) {
            return refuse(
                "data-missing",
                format!(
                    "no partition labelled {0} and no disk with serial {0}",
                    find::LABEL
                ),
                "attach a blank disk with that serial and reboot; until then everything is \
                 forgotten at the next boot",
            );
        }
        std::thread::sleep(APPEAR_POLL);
    }
}

/// The kernel hides the partitions of a disk whose primary table is torn; its backup brings them
/// back. Returns whether a disk was read anew.
fn repair_tables(sys: &Path, log: &Log) -> bool {
    find::disks(sys).into_iter().any(|name| {
        let repaired = repair_table(&name);
        match &repaired {
            Ok(true) => log.warn(format_args!("partition table of {name} repaired")),
            Ok(false) => {}
            Err(error) => log.warn(format_args!("partition table of {name}: {error}")),
        }
        matches!(repaired, Ok(true))
    })
}

fn repair_table(name: &str) -> Result<bool, gpt::GptError> {
    let reader = File::open(device(name))?;
    let geometry = disk(&reader)?;
    if !gpt::names(&geometry, find::LABEL) {
        return Ok(false);
    }
    let file = open_rw(name)?;
    let settled = gpt::settle(&disk(&file)?, find::LABEL, random)?;
    // SAFETY: the ioctl takes no argument.
    let outcome = unsafe { libc::ioctl(file.as_raw_fd(), BLKRRPART) };
    Errno::result(outcome).map_err(io::Error::from)?;
    Ok(!settled.changes.is_empty())
}

fn open(sys: &Path, found: &Found, access: Access<'_>) -> Result<Prepared, Stop> {
    let log = access.log;
    if let Found::Partition { disk, .. } = found
        && let Err(error) = grow_partition(sys, found.name(), disk, log)
    {
        // The data is there all the same: growing is tried again at the next boot.
        log.warn(format_args!("cannot grow the data partition: {error}"));
    }
    let file = open_rw(found.name()).or_else(|error| unreadable(found, &error))?;
    let bytes = size(&file).or_else(|error| unreadable(found, &error))?;
    let disk = sealed::Disk {
        found,
        file: &file,
        bytes,
    };
    if let Some(prepared) = sealed::open(&disk, access)? {
        return Ok(prepared);
    }
    let content = ext4::probe(&file, bytes).or_else(|error| unreadable(found, &error))?;
    let known = match content {
        Content::Ext4(known) => known,
        Content::TornSuper => repair(found, &file, bytes, log)?,
        Content::Blank => match sealed::first(&disk, access)? {
            Some(prepared) => return Ok(prepared),
            None => format(found, &file, bytes, log)?,
        },
        Content::HalfFormatted => format(found, &file, bytes, log)?,
        Content::Luks2 | Content::Unknown => return unknown(found).map_err(Stop::from),
    };
    // The kernel mounts nothing that somebody may still write to.
    drop(file);
    Ok(mount_data(&Volume::plain(found), &known, bytes, log)?)
}

impl Volume {
    fn plain(found: &Found) -> Self {
        Self {
            path: device(found.name()),
            on: found.name().to_owned(),
            cipher: None,
            vault_at: None,
        }
    }
}

fn unreadable<T>(found: &Found, error: &io::Error) -> Result<T, Box<Problem>> {
    refuse(
        "data-unreadable",
        format!("the data disk {} cannot be read: {error}", found.name()),
        "check the disk and its cabling, or replace it, and reboot",
    )
}

fn unknown<T>(found: &Found) -> Result<T, Box<Problem>> {
    refuse(
        "data-damaged",
        format!(
            "the data disk {} is neither blank nor a file system known here",
            found.name()
        ),
        "repair it elsewhere with e2fsck, or blank its first MiB to start afresh; nothing was \
         written to it",
    )
}

fn format(found: &Found, file: &File, bytes: u64, log: &Log) -> Result<Super, Box<Problem>> {
    if bytes < ext4::TEMPLATE_BYTES {
        return refuse(
            "data-too-small",
            format!("the data disk {} has {} MiB", found.name(), bytes >> 20),
            "give it at least 128 MiB and reboot",
        );
    }
    log.info(format_args!(
        "formatting the blank data disk {}",
        found.name()
    ));
    let outcome = ext4::format(file).and_then(|()| ext4::probe(file, bytes));
    match outcome {
        Ok(Content::Ext4(known)) => Ok(known),
        Ok(_) => unreadable(
            found,
            &io::Error::other("what was written does not read back"),
        ),
        Err(error) => unreadable(found, &error),
    }
}

fn repair(found: &Found, file: &File, bytes: u64, log: &Log) -> Result<Super, Box<Problem>> {
    match ext4::repair_super(file).and_then(|()| ext4::probe(file, bytes)) {
        // The write was torn because the machine stopped while it was mounted.
        Ok(Content::Ext4(known)) => {
            log.warn(format_args!(
                "superblock of {} was torn, repaired",
                found.name()
            ));
            Ok(Super {
                clean: false,
                ..known
            })
        }
        Ok(_) => unknown(found),
        Err(error) => unreadable(found, &error),
    }
}

fn mount_data(
    volume: &Volume,
    known: &Super,
    bytes: u64,
    log: &Log,
) -> Result<Prepared, Box<Problem>> {
    let mut prepared = Prepared {
        state_dir: DATA.into(),
        state: DataState {
            mode: "mounted".to_owned(),
            device: Some(format!("/dev/{}", volume.on)),
            cipher: volume.cipher.clone(),
            clean: Some(known.clean),
            ..DataState::default()
        },
        problems: Vec::new(),
        waiting: None,
        vault_at: volume.vault_at.clone(),
        words: None,
    };
    let mounted = match mount_at(volume, MsFlags::empty()) {
        Err(error) if !known.clean => {
            log.warn(format_args!(
                "{} cannot be mounted ({error}): its journal is replayed first",
                volume.on
            ));
            replay(volume).and_then(|()| mount_at(volume, MsFlags::empty()))
        }
        mounted => mounted,
    };
    if let Err(error) = mounted {
        return refuse(
            "data-damaged",
            format!("the data disk {} cannot be mounted: {error}", volume.on),
            "repair it elsewhere with e2fsck, or blank its first MiB to start afresh",
        );
    }
    // The replayed journal may have brought errors to light.
    let errors = reread(volume, bytes).unwrap_or_else(|error| {
        log.warn(format_args!(
            "whether errors are recorded in {} is not known: {error}",
            volume.on
        ));
        known.clone()
    });
    if errors.bytes != known.bytes
        && let Err(error) = mount_again(volume)
    {
        return refuse(
            "data-damaged",
            format!(
                "the data disk {} cannot be mounted again: {error}",
                volume.on
            ),
            "reboot; if that does not help, repair it elsewhere with e2fsck",
        );
    }
    if errors.damaged || errors.errors > 0 {
        remount_read_only(log);
        read_only(
            &mut prepared,
            format!("{} errors are recorded in it", errors.errors.max(1)),
        );
        return Ok(prepared);
    }
    if let Err(error) = personalise(&errors, bytes, log) {
        log.warn(format_args!("cannot grow the data file system: {error}"));
    }
    Ok(prepared)
}

/// The kernel counts a file system's groups before it replays the journal. Where the power went while
/// it grew, the replay ends the growth and the count is wrong: no block is found free any more.
fn mount_again(volume: &Volume) -> io::Result<()> {
    umount2(DATA, MntFlags::empty())?;
    mount_at(volume, MsFlags::empty())
}

/// The kernel checks the descriptors of all groups before it replays the journal. Where the power went
/// between a superblock that counts new groups and the block that describes them, it refuses what the
/// replay would have mended. To be read only, such a file system is mounted and its journal replayed.
fn replay(volume: &Volume) -> io::Result<()> {
    mount_at(volume, MsFlags::MS_RDONLY)?;
    Ok(umount2(DATA, MntFlags::empty())?)
}

fn mount_at(volume: &Volume, extra: MsFlags) -> io::Result<()> {
    // The image has the folder; an initramfs somebody else assembled may not.
    if !Path::new(DATA).is_dir() {
        fs::create_dir(DATA)?;
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_NOATIME;
    let source = &volume.path;
    let options = Some("errors=remount-ro");
    Ok(mount(
        Some(source),
        DATA,
        Some("ext4"),
        flags | extra,
        options,
    )?)
}

fn reread(volume: &Volume, bytes: u64) -> io::Result<Super> {
    let file = File::open(&volume.path)?;
    match ext4::probe(&file, bytes)? {
        Content::Ext4(known) => Ok(known),
        _ => Err(io::Error::other("its superblock does not read back")),
    }
}

fn remount_read_only(log: &Log) {
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    if let Err(error) = mount(None::<&str>, DATA, None::<&str>, flags, None::<&str>) {
        log.error(format_args!("cannot make {DATA} read-only: {error}"));
    }
}

fn read_only(prepared: &mut Prepared, why: String) {
    prepared.state.mode = "read-only".to_owned();
    prepared.state.detail = Some(why.clone());
    prepared.problems.push(problem(
        "data-damaged",
        format!("the data file system is read-only: {why}"),
        "repair it elsewhere with e2fsck and reboot; until then nothing new is kept",
    ));
}

/// Grows the file system to its device and gives a fresh one its own identifier.
fn personalise(known: &Super, bytes: u64, log: &Log) -> io::Result<()> {
    let whole_blocks = bytes / ext4::BLOCK_BYTES as u64 * ext4::BLOCK_BYTES as u64;
    let folder = File::open(DATA)?;
    if known.template_uuid {
        ext4::set_uuid(&folder, random_uuid()?)?;
    }
    if known.bytes < whole_blocks {
        ext4::grow(&folder, whole_blocks)?;
        log.info(format_args!(
            "data file system grown to {} MiB",
            bytes >> 20
        ));
    }
    Ok(())
}

/// Settles the partition table and tells the kernel about the new end.
fn grow_partition(sys: &Path, name: &str, disk_name: &str, log: &Log) -> Result<(), gpt::GptError> {
    let file = open_rw(disk_name)?;
    let settled = gpt::settle(&disk(&file)?, find::LABEL, random)?;
    for change in &settled.changes {
        log.info(format_args!("partition table of {disk_name}: {change}"));
    }
    let known = fs::read_to_string(sys.join("class/block").join(name).join("size"))?;
    if known.trim().parse() != Ok(settled.length / 512) {
        resize_partition(&file, &settled)?;
    }
    Ok(())
}

fn resize_partition(disk: &File, settled: &gpt::Settled) -> io::Result<()> {
    /// `struct blkpg_partition` of the kernel.
    #[repr(C)]
    struct Partition {
        start: i64,
        length: i64,
        number: libc::c_int,
        device_name: [u8; 64],
        volume_name: [u8; 64],
    }
    /// `struct blkpg_ioctl_arg` of the kernel.
    #[repr(C)]
    struct Request {
        operation: libc::c_int,
        flags: libc::c_int,
        bytes: libc::c_int,
        data: *const Partition,
    }
    let partition = Partition {
        start: i64::try_from(settled.start).map_err(io::Error::other)?,
        length: i64::try_from(settled.length).map_err(io::Error::other)?,
        number: i32::try_from(settled.number).map_err(io::Error::other)?,
        device_name: [0; 64],
        volume_name: [0; 64],
    };
    let request = Request {
        operation: BLKPG_RESIZE_PARTITION,
        flags: 0,
        bytes: size_of::<Partition>() as libc::c_int,
        data: &raw const partition,
    };
    // SAFETY: the ioctl reads both structures, which outlive the call.
    let outcome = unsafe { libc::ioctl(disk.as_raw_fd(), BLKPG, &raw const request) };
    Ok(Errno::result(outcome).map(drop)?)
}

fn disk(file: &File) -> io::Result<gpt::Disk<'_>> {
    let mut sector: libc::c_int = 0;
    // SAFETY: the ioctl writes one int behind the pointer, which outlives the call.
    let outcome = unsafe { libc::ioctl(file.as_raw_fd(), BLKSSZGET, &raw mut sector) };
    Errno::result(outcome)?;
    let sector = u64::try_from(sector).unwrap_or(0).max(512);
    Ok(gpt::Disk {
        file,
        sector,
        sectors: size(file)? / sector,
    })
}

pub(crate) fn size(mut file: &File) -> io::Result<u64> {
    use io::Seek;
    file.seek(io::SeekFrom::End(0))
}

fn open_rw(name: &str) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(device(name))
}

fn device(name: &str) -> PathBuf {
    Path::new("/dev").join(name)
}

fn random() -> io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}

/// Version 4, RFC 9562, in the byte order of ext4.
fn random_uuid() -> io::Result<[u8; 16]> {
    Ok(uuid::Builder::from_random_bytes(random()?)
        .into_uuid()
        .into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volatile_mode_says_why() {
        let prepared = volatile(problem("data-missing", "no disk".to_owned(), "attach one"));
        assert_eq!(prepared.state.mode, "volatile");
        assert_eq!(prepared.state.detail.as_deref(), Some("no disk"));
        assert_eq!(prepared.problems[0].code, "data-missing");
    }

    #[test]
    fn a_problem_that_ends_is_taken_back() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut prepared = Prepared {
            state_dir: dir.path().into(),
            state: DataState {
                mode: "mounted".to_owned(),
                ..DataState::default()
            },
            problems: vec![problem("data-full", "0 bytes".to_owned(), "delete")],
            waiting: None,
            vault_at: None,
            words: None,
        };
        assert!(
            refresh(&mut prepared),
            "the disk of this machine is not full"
        );
        assert!(prepared.problems.is_empty());
        assert!(prepared.state.total_bytes > 0);
        assert!(!refresh(&mut prepared));
    }

    #[test]
    fn going_read_only_is_reported_once() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut prepared = volatile(Problem::default());
        prepared.problems.clear();
        prepared.state_dir = dir.path().into();
        read_only(&mut prepared, "1 errors are recorded in it".to_owned());
        assert_eq!(prepared.state.mode, "read-only");
        assert!(!refresh(&mut prepared));
        assert_eq!(prepared.problems.len(), 1);
    }

    #[test]
    fn the_tree_is_made_and_made_again() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for _ in 0..2 {
            make_tree(&dir.path().join("state")).expect("this test runs as root");
        }
        let identity = fs::metadata(dir.path().join("state/identity")).expect("made");
        assert_eq!(identity.permissions().mode() & 0o7777, 0o700);
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&identity), NODE_UID);
        let config = fs::metadata(dir.path().join("state/config")).expect("made");
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&config), 0);
    }
}
