//! A publisher of bundles, programs, and a disk that records what is written, for tests.

mod losses;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use alknet_boot_state::{
    BootRecord, BootSlot, BootSlots, RECORD_OFFSET, SECTOR_BYTES, loader_choice,
};
use alknet_fat::{BlockDevice, FatNode, FatVolume, NewFatVolume, ShortName, create};
use alknet_update::{
    DeltaInfo, KeyThreshold, MetadataSigner, ReleaseInfo, ReleasePlan, RootPlan, SeedSigner,
    SignedRelease, UnixSeconds, UpdateTarget, sign_release, sign_root, write_bundle,
};

use super::boot_partitions::BIOS_LBA;
use super::disk::{LOADER, SlotDisk, slot_path};
use super::program::PROGRAM_BYTES_MIN;
use super::progress::StagingProgress;

/// Where the PE header of a test's program lies.
const PE_AT: usize = 0x80;
/// A time before which everything here is valid.
pub(super) const NOW: i64 = 2_000_000_000;
/// Sectors of the boot partition: the fewest of FAT32 with clusters of one sector, and some room.
const ESP_SECTORS: u32 = 80_000;
/// Sectors of `alk-bios`.
const BIOS_SECTORS: u64 = 2014;

/// An EFI program as far as an update looks at one: its headers, and a section `.osrel` at `osrel_at`.
pub(super) fn program(version: &str, osrel_at: u64, seed: u8) -> Vec<u8> {
    let bytes = PROGRAM_BYTES_MIN as usize + 1000;
    let mut program: Vec<u8> = (0..bytes).map(|at| (at / 3) as u8 ^ seed).collect();
    program[..4096].fill(0);
    program[..2].copy_from_slice(b"MZ");
    program[0x3c..0x40].copy_from_slice(&(PE_AT as u32).to_le_bytes());
    program[PE_AT..PE_AT + 4].copy_from_slice(b"PE\0\0");
    // One section, and no optional header.
    program[PE_AT + 6] = 1;
    let osrel = format!("ID=alknet\nVERSION_ID={version}\n");
    let section = &mut program[PE_AT + 24..PE_AT + 64];
    section[..6].copy_from_slice(b".osrel");
    section[8..12].copy_from_slice(&(osrel.len() as u32).to_le_bytes());
    section[16..20].copy_from_slice(&512_u32.to_le_bytes());
    section[20..24].copy_from_slice(&(osrel_at as u32).to_le_bytes());
    let at = osrel_at as usize;
    program[at..at + osrel.len()].copy_from_slice(osrel.as_bytes());
    program
}

/// The frames of a bundle, each of at most `frame` bytes.
pub(super) fn framed(bundle: &[u8], frame: usize) -> Vec<u8> {
    let mut stream = Vec::new();
    let frame = frame.min(crate::control::UPDATE_FRAME_BYTES_MAX as usize);
    for piece in bundle.chunks(frame) {
        stream.extend((piece.len() as u32).to_be_bytes());
        stream.extend_from_slice(piece);
    }
    stream.extend([0; 4]);
    stream
}

/// A release, before it is signed.
#[derive(Clone, Debug)]
pub(super) struct TestRelease {
    pub(super) version: String,
    /// What the program says about itself.
    pub(super) osrel: String,
    pub(super) arch: String,
    pub(super) floor: Option<String>,
    pub(super) needs: Vec<String>,
    /// The version of the metadata.
    pub(super) number: u64,
    pub(super) expires: i64,
    /// Bytes that the program has instead of an EFI program.
    pub(super) program: Option<Vec<u8>>,
}

impl TestRelease {
    pub(super) fn new(version: &str, number: u64) -> Self {
        Self {
            version: version.to_owned(),
            osrel: version.to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
            floor: None,
            needs: Vec::new(),
            number,
            expires: NOW + 1_000_000,
            program: None,
        }
    }

    pub(super) fn content(&self) -> Vec<u8> {
        let seed = self.number as u8;
        let program = || program(&self.osrel, 4096, seed);
        self.program.clone().unwrap_or_else(program)
    }
}

/// Signs releases by two keys, of which `threshold` have to sign.
pub(super) struct TestPublisher {
    signers: Vec<SeedSigner>,
    root: Vec<u8>,
}

impl TestPublisher {
    pub(super) fn new() -> Self {
        Self::with(&[7], 1)
    }

    pub(super) fn with(seeds: &[u8], threshold: usize) -> Self {
        let signer = |seed: &u8| SeedSigner::from_seed(&[*seed; 32]).expect("a seed");
        let signers: Vec<_> = seeds.iter().map(signer).collect();
        let keys = signers.iter().map(MetadataSigner::public_key);
        let keys = KeyThreshold::new(keys, threshold).expect("distinct keys");
        let plan = RootPlan::with_keys(1, UnixSeconds(NOW + 9_000_000), &keys);
        let all: Vec<&dyn MetadataSigner> = signers.iter().map(|it| it as _).collect();
        let root = sign_root(&plan, None, &all).expect("signed");
        Self { signers, root }
    }

    /// The root document.
    pub(super) fn root(&self) -> Vec<u8> {
        self.root.clone()
    }

    /// The first key, as a configuration writes it.
    pub(super) fn key(&self) -> String {
        self.signers[0].public_key().to_string()
    }

    /// A bundle with this release, signed by all keys.
    pub(super) fn bundle(&self, release: &TestRelease) -> Vec<u8> {
        self.bundle_with(release, &[], true)
    }

    /// A bundle with this release and its deltas, of which it has the program itself or not.
    pub(super) fn bundle_with(
        &self,
        release: &TestRelease,
        given: &[TestDelta],
        has_program: bool,
    ) -> Vec<u8> {
        let (targets, documents) = self.signed(release, given);
        let files = &targets[usize::from(!has_program)..];
        self.written((release, given), files, &documents)
    }

    /// A bundle with this release, and with the timestamp of an older one in the place of its own.
    pub(super) fn bundle_with_timestamp_of(
        &self,
        older: &TestRelease,
        release: &TestRelease,
    ) -> Vec<u8> {
        const TIMESTAMP: &str = "timestamp.json";
        let (targets, mut documents) = self.signed(release, &[]);
        let (_, older) = self.signed(older, &[]);
        documents.documents.retain(|(name, _)| name != TIMESTAMP);
        let mut older = older.documents.into_iter();
        let replayed = older.find(|(name, _)| name == TIMESTAMP);
        let replayed = replayed.expect("a release has a timestamp");
        documents.documents.insert(0, replayed);
        self.written((release, &[]), &targets, &documents)
    }

    /// What a release has, its program first, and its documents, signed by all keys.
    fn signed(
        &self,
        release: &TestRelease,
        given: &[TestDelta],
    ) -> (Vec<UpdateTarget>, SignedRelease) {
        let content = release.content();
        let floor = release.floor.as_ref();
        let mut described = serde_json::json!({
            "version": release.version, "arch": release.arch, "board": "generic", "form": "raw", "kernel": "6.12.107",
            "needs": release.needs,
        });
        if let Some(floor) = floor {
            described["floor"] = floor.as_str().into();
        }
        let described: ReleaseInfo = serde_json::from_value(described).expect("a description");
        let name = format!("alknet_{}.efi", release.version);
        let target = UpdateTarget::describe(&name, Some(described), &mut &*content);
        let program = target.expect("a target");
        let deltas: Vec<_> = given.iter().map(|delta| delta.target(&name)).collect();
        let targets = [std::slice::from_ref(&program), &deltas].concat();
        let plan = ReleasePlan {
            version: release.number,
            expires: UnixSeconds(release.expires + 1),
            timestamp_expires: UnixSeconds(release.expires),
            targets: targets.clone(),
        };
        let all: Vec<&dyn MetadataSigner> = self.signers.iter().map(|it| it as _).collect();
        let documents = sign_release(&self.root, &plan, &all).expect("signed");
        (targets, documents)
    }

    /// The bundle of these files.
    fn written(
        &self,
        (release, given): (&TestRelease, &[TestDelta]),
        files: &[UpdateTarget],
        documents: &SignedRelease,
    ) -> Vec<u8> {
        let content = release.content();
        let mut bundle = Vec::new();
        write_bundle(
            &mut bundle,
            std::slice::from_ref(&self.root),
            documents,
            files,
            |target| {
                let delta = given.iter().find(|it| it.name == target.name);
                Ok(delta.map_or(&content[..], |delta| &delta.bytes))
            },
        )
        .expect("written");
        bundle
    }
}

/// A delta of a release.
#[derive(Clone, Debug)]
pub(super) struct TestDelta {
    pub(super) name: String,
    pub(super) base: String,
    pub(super) library: u32,
    pub(super) bytes: Vec<u8>,
}

impl TestDelta {
    fn target(&self, makes: &str) -> UpdateTarget {
        let info = DeltaInfo {
            target: makes.to_owned(),
            base: self.base.clone(),
            library: self.library,
            blocks: Vec::new(),
        };
        UpdateTarget::describe_delta(&self.name, info, &mut &*self.bytes).expect("a target")
    }
}

type Sector = [u8; SECTOR_BYTES];

/// What a model of a disk was asked to do.
#[derive(Clone, Debug)]
pub(super) enum DiskStep {
    Flush,
    /// The sector's number on the disk, and its content.
    Write(u64, Box<Sector>),
}

/// The sectors of a disk that differ from a base, and what was written since.
#[derive(Debug, Default)]
struct DiskState {
    sectors: BTreeMap<u64, Sector>,
    steps: Vec<DiskStep>,
    /// After so many writes, the disk refuses them.
    refuses_after: Option<usize>,
    /// The disk takes writes, and fails to flush them.
    refuses_flushes: bool,
    /// After so many writes, the node gives this bundle up.
    given_up_after: Option<(usize, Arc<StagingProgress>)>,
    /// Once one of these sectors is read, the node gives this bundle up; and how often they were read.
    given_up_at: Option<(std::ops::Range<u64>, usize, Arc<StagingProgress>)>,
    /// Sectors in this range cannot be read.
    unreadable: Option<std::ops::Range<u64>>,
    /// Sectors in this range keep what they had, as those of a stick that is failing.
    forgets: Option<std::ops::Range<u64>>,
    /// After so many writes, these sectors lose what they have.
    loses_after: Option<(usize, Vec<std::ops::Range<u64>>)>,
    /// After so many writes, this folder lies where a note is written.
    obstructs_after: Option<(usize, std::path::PathBuf)>,
}

/// A partition of a model of a disk. Its parts share one list of steps.
#[derive(Clone, Debug)]
pub(super) struct ModelPart {
    state: Rc<RefCell<DiskState>>,
    first: u64,
    sectors: u64,
}

impl BlockDevice for ModelPart {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        let end = at + buffer.len() as u64;
        if end > BlockDevice::len(self) {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let sector = self.first + at / SECTOR_BYTES as u64;
        self.state.borrow_mut().count_read(sector);
        let state = self.state.borrow();
        let mut done = 0;
        while done < buffer.len() {
            let position = at + done as u64;
            let number = self.first + position / SECTOR_BYTES as u64;
            let unreadable = state.unreadable.as_ref();
            if unreadable.is_some_and(|range| range.contains(&number)) {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            let within = (position % SECTOR_BYTES as u64) as usize;
            let length = (SECTOR_BYTES - within).min(buffer.len() - done);
            let piece = &mut buffer[done..done + length];
            match state.sectors.get(&number) {
                Some(sector) => piece.copy_from_slice(&sector[within..within + length]),
                None => piece.fill(0),
            }
            done += length;
        }
        Ok(())
    }

    fn write_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        assert!(
            at.is_multiple_of(SECTOR_BYTES as u64),
            "within a sector: {at}"
        );
        assert!(
            bytes.len().is_multiple_of(SECTOR_BYTES),
            "a part of a sector"
        );
        if at + bytes.len() as u64 > BlockDevice::len(self) {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let mut state = self.state.borrow_mut();
        if state.refuses_after == Some(0) {
            return Err(io::Error::other("the model refuses writes"));
        }
        state.refuses_after = state.refuses_after.map(|left| left - 1);
        if let Some((left, progress)) = &mut state.given_up_after {
            *left = left.saturating_sub(1);
            if *left == 0 {
                progress.give_up();
            }
        }
        let first = self.first + at / SECTOR_BYTES as u64;
        for (number, piece) in (first..).zip(bytes.chunks_exact(SECTOR_BYTES)) {
            if state
                .forgets
                .as_ref()
                .is_some_and(|range| range.contains(&number))
            {
                continue;
            }
            let sector: Sector = piece.try_into().expect("a sector");
            state.steps.push(DiskStep::Write(number, Box::new(sector)));
            state.sectors.insert(number, sector);
        }
        state.count_write_before_loss();
        state.count_write_before_obstacle();
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let mut state = self.state.borrow_mut();
        if state.refuses_flushes {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        state.steps.push(DiskStep::Flush);
        Ok(())
    }

    fn len(&self) -> u64 {
        self.sectors * SECTOR_BYTES as u64
    }
}

/// What the boot sector of FAT32 says of the place of its tables, in sectors.
struct BootSectorFields {
    reserved: u64,
    tables: u64,
    table_sectors: u64,
}

/// A disk with boot slots.
#[derive(Debug)]
pub(super) struct ModelDisk {
    state: Rc<RefCell<DiskState>>,
}

impl ModelDisk {
    /// A new disk with this program in slot a.
    pub(super) fn new(program: &[u8]) -> Self {
        /// The disks that were made, by their programs. Tests make the same one hundreds of times, from 41 MB of zeros.
        static MADE: Mutex<BTreeMap<Vec<u8>, BTreeMap<u64, Sector>>> = Mutex::new(BTreeMap::new());
        let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
        let sectors = made.entry(program.to_vec());
        let sectors = sectors.or_insert_with(|| Self::make(program).sectors());
        Self::of_sectors(sectors.clone())
    }

    fn make(program: &[u8]) -> Self {
        let disk = Self {
            state: Rc::default(),
        };
        let name = |text| ShortName::new(text).expect("a short name");
        let loader = vec![b'L'; 3000];
        let boot = FatNode::Folder(
            name("BOOT"),
            vec![FatNode::File(name("BOOTX64.EFI"), &loader)],
        );
        let slots = FatNode::Folder(name("ALKNET"), vec![FatNode::File(name("A.EFI"), program)]);
        let root = [FatNode::Folder(name("EFI"), vec![boot, slots])];
        let new = NewFatVolume {
            hidden_sectors: 2048,
            sectors: ESP_SECTORS,
            cluster_sectors: 1,
            id: 7,
            label: *b"ALKESP     ",
        };
        let mut image = vec![0; ESP_SECTORS as usize * SECTOR_BYTES];
        create(&mut image, &new, &root).expect("it fits");
        let sectors = (2048..).zip(image.chunks_exact(SECTOR_BYTES));
        let used = sectors.filter(|(_, sector)| sector.iter().any(|byte| *byte != 0));
        let used = used.map(|(number, sector)| (number, sector.try_into().expect("a sector")));
        disk.state.borrow_mut().sectors.extend(used);
        disk.put_record(&BootRecord::new(BootSlot::A).encode());
        disk
    }

    fn of_sectors(sectors: BTreeMap<u64, Sector>) -> Self {
        let state = DiskState {
            sectors,
            ..DiskState::default()
        };
        Self {
            state: Rc::new(RefCell::new(state)),
        }
    }

    fn part(&self, first: u64, sectors: u64) -> ModelPart {
        ModelPart {
            state: Rc::clone(&self.state),
            first,
            sectors,
        }
    }

    fn bios(&self) -> ModelPart {
        self.part(BIOS_LBA, BIOS_SECTORS)
    }

    fn esp(&self) -> ModelPart {
        self.part(2048, ESP_SECTORS.into())
    }

    pub(super) fn open(&self) -> SlotDisk<ModelPart> {
        SlotDisk::new(self.bios(), self.esp())
    }

    pub(super) fn volume(&self) -> FatVolume<ModelPart> {
        FatVolume::open(self.esp()).expect("a volume")
    }

    /// Writes these bytes where the record lies.
    pub(super) fn put_record(&self, bytes: &[u8]) {
        let at = RECORD_OFFSET - BIOS_LBA * SECTOR_BYTES as u64;
        self.bios().write_at(bytes, at).expect("within");
    }

    pub(super) fn record(&self) -> BootRecord {
        self.open().record().expect("a record")
    }

    /// The file of a slot, if it has one that is whole.
    pub(super) fn file(&self, slot: BootSlot) -> Option<Vec<u8>> {
        self.volume().read_file(&slot_path(slot), u32::MAX).ok()
    }

    /// Makes the entry of a slot's file say that it has more bytes than its chain.
    pub(super) fn lengthen_entry(&self, slot: BootSlot) {
        let name = slot.file_name().replace('.', "       ").into_bytes();
        let mut state = self.state.borrow_mut();
        let mut entries = state
            .sectors
            .values_mut()
            .flat_map(|sector| sector.chunks_exact_mut(32));
        let entry = entries.find(|entry| entry.starts_with(&name));
        // The second byte of the size.
        entry.expect("the slot has a file")[29] += 0x10;
    }

    /// Lets the chain of a slot's file end with the last clusters of the other slot's file. Each file still has a chain of
    /// its size.
    pub(super) fn cross_into_other(&self, slot: BootSlot) {
        /// Clusters that both chains then have.
        const SHARED: usize = 10;

        let [from, into] = [slot, slot.other()].map(|slot| self.clusters(slot));
        let last = from[from.len() - SHARED - 1];
        let next = into[into.len() - SHARED];
        let boot = self.boot_sector();
        for table in 0..boot.tables {
            let at = boot.reserved + table * boot.table_sectors;
            let (sector_at, within) = (u64::from(last) / 128, last as usize % 128 * 4);
            let at = (at + sector_at) * SECTOR_BYTES as u64;
            let (mut part, mut sector) = (self.esp(), [0; SECTOR_BYTES]);
            part.read_at(&mut sector, at).expect("within");
            sector[within..within + 4].copy_from_slice(&next.to_le_bytes());
            part.write_at(&sector, at).expect("within");
        }
    }

    /// Lets another name in the folder of the slots lead to the file of a slot. Returns its path.
    pub(super) fn name_again(&self, slot: BootSlot) -> String {
        let path = slot_path(slot).replace(slot.file_name(), "OTHER.EFI");
        let written = self
            .volume()
            .replace_file(&path, 1, &mut &b"x"[..], &mut |_| {});
        written.expect("room");
        let own = slot.file_name().replace('.', "       ").into_bytes();
        let mut state = self.state.borrow_mut();
        let mut sectors = state.sectors.values_mut();
        let folder = sectors.find(|sector| {
            let mut entries = sector.chunks_exact(32);
            entries.any(|entry| entry.starts_with(&own))
        });
        let folder = folder.expect("the slot has a file");
        let at = |name: &[u8]| {
            let mut entries = folder.chunks_exact(32);
            entries
                .position(|entry| entry.starts_with(name))
                .expect("an entry")
                * 32
        };
        let (from, to) = (at(&own), at(b"OTHER   EFI"));
        // The number of the first cluster, in two parts, and the size.
        for part in [20..22, 26..32] {
            folder.copy_within(from + part.start..from + part.end, to + part.start);
        }
        path
    }

    /// The clusters of a slot's file.
    fn clusters(&self, slot: BootSlot) -> Vec<u32> {
        let boot = self.boot_sector();
        let data = boot.reserved + boot.tables * boot.table_sectors;
        let volume = self.volume();
        let file = volume.open_file(&slot_path(slot)).expect("a file");
        let sectors = file.extents().iter().flat_map(|extent| {
            let first = extent.at / SECTOR_BYTES as u64;
            first..first + extent.bytes.div_ceil(SECTOR_BYTES as u64)
        });
        // A cluster has one sector, and the first one has the number 2.
        sectors.map(|sector| (sector - data) as u32 + 2).collect()
    }

    fn boot_sector(&self) -> BootSectorFields {
        let mut boot = [0; SECTOR_BYTES];
        self.esp().read_at(&mut boot, 0).expect("within");
        let mut table_sectors = [0; 4];
        table_sectors.copy_from_slice(&boot[36..40]);
        BootSectorFields {
            reserved: u16::from_le_bytes([boot[14], boot[15]]).into(),
            tables: boot[16].into(),
            table_sectors: u32::from_le_bytes(table_sectors).into(),
        }
    }

    /// The loader's file.
    pub(super) fn loader(&self) -> Vec<u8> {
        self.volume().read_file(LOADER, u32::MAX).expect("whole")
    }

    /// What is written from now on counts as steps.
    pub(super) fn forget_steps(&self) {
        self.state.borrow_mut().steps.clear();
    }

    /// Whether something was written since.
    pub(super) fn is_written(&self) -> bool {
        !self.state.borrow().steps.is_empty()
    }

    /// All of the disk's sectors that have something.
    pub(super) fn sectors(&self) -> BTreeMap<u64, Sector> {
        self.state.borrow().sectors.clone()
    }

    pub(super) fn refuse_after(&self, writes: usize) {
        self.state.borrow_mut().refuses_after = Some(writes);
    }

    /// One power-on of the machine: the loader's decision, and the program that it starts.
    pub(super) fn power_on(&self) -> (Option<BootSlot>, Option<Vec<u8>>) {
        let record = self.open().record().ok();
        let present = BootSlots::filter(|slot| {
            let file = self.file(slot);
            file.is_some_and(|file| file.starts_with(b"MZ"))
        });
        let choice = loader_choice(record.as_ref(), present);
        if let Some(next) = choice.write {
            self.open().write_record(&next).expect("the model writes");
        }
        (choice.start, choice.start.and_then(|slot| self.file(slot)))
    }

    /// Calls `each` with the disk in each state in which a power cut may leave it while `change` runs: everything before a
    /// flush, and of what follows it the first sectors, all but one, or one alone.
    pub(super) fn cut(&self, change: impl FnOnce(&Self), each: &mut dyn FnMut(Self)) {
        let base = self.sectors();
        self.forget_steps();
        change(self);
        let steps = std::mem::take(&mut self.state.borrow_mut().steps);
        let mut state = base;
        for epoch in steps.split(|step| matches!(step, DiskStep::Flush)) {
            let writes: Vec<_> = epoch
                .iter()
                .filter_map(|step| match step {
                    DiskStep::Write(number, sector) => Some((*number, **sector)),
                    DiskStep::Flush => None,
                })
                .collect();
            for kept in cuts(writes.len()) {
                let mut cut = state.clone();
                let kept = writes.iter().zip(&kept).filter(|(_, is_kept)| **is_kept);
                cut.extend(kept.map(|(write, _)| *write));
                each(Self::of_sectors(cut));
            }
            state.extend(writes);
        }
        each(Self::of_sectors(state));
    }
}

/// Which of `count` sectors reach the disk: the first ones, all but one, and one alone, each for some numbers.
fn cuts(count: usize) -> Vec<Vec<bool>> {
    /// More numbers of one epoch would take long and show no more: the sectors of a file are alike.
    const NUMBERS: usize = 6;

    let step = (count / NUMBERS).max(1);
    let numbers = || (0..count).step_by(step).chain([count.saturating_sub(1)]);
    let mut all = vec![vec![false; count]];
    for number in numbers() {
        all.push((0..count).map(|at| at < number).collect());
        all.push((0..count).map(|at| at != number).collect());
        all.push((0..count).map(|at| at == number).collect());
    }
    all
}
