//! Files are written, replaced and removed.

use std::io::{ErrorKind, Read};

use crate::bytes::put;
use crate::chain::TableCursor;
use crate::create::entry_bytes;
use crate::device::BlockDevice;
use crate::error::FatError;
use crate::file::{FatExtent, FatFile};
use crate::folder::{
    ATTRIBUTE_ARCHIVE, ATTRIBUTE_FOLDER, END_MARK, FREE_MARK, FolderLocation, RawFolder,
};
use crate::geometry::ENTRY_BYTES;
use crate::limits::{FILE_EXTENTS_MAX, FOLDER_SLOTS_MAX, TRANSFER_BYTES};
use crate::name::ShortName;
use crate::scan::{ROOT, VolumeScan};
use crate::table::{CHAIN_END, ClusterRun, allocate};
use crate::volume::{FatVolume, short_parts};

/// Largest file in bytes: its size is a number of 32 bits.
const FILE_BYTES_MAX: u64 = u32::MAX as u64;

/// Where the entry of a file goes.
#[derive(Clone, Copy, Debug)]
enum WriteTarget {
    /// The index of an entry, which is changed.
    Existing(usize),
    /// A free slot, by its position on the device.
    New(ShortName, u64),
}

/// What a path says before something is written.
#[derive(Debug)]
struct WritePlan {
    /// Folders that have to be made, the outermost first.
    missing: Vec<ShortName>,
    /// The innermost folder that exists.
    folder: usize,
    name: ShortName,
    /// The file, if it exists.
    file: Option<usize>,
}

/// A file that is being written. The volume has the file of before until [`finish`](Self::finish) returns.
///
/// To write is to fill free clusters: if the writer is dropped, or the power fails, the volume says the same as before.
/// A caller whose source was interrupted keeps the writer and goes on, from [`written`](Self::written).
#[derive(Debug)]
pub struct FatFileWriter<'a, D> {
    volume: &'a mut FatVolume<D>,
    scan: VolumeScan,
    target: WriteTarget,
    runs: Vec<ClusterRun>,
    length: u32,
    written: u64,
    /// What waits to be written. At most [`TRANSFER_BYTES`].
    buffer: Vec<u8>,
    /// Clusters that have been written.
    done_clusters: u32,
    /// Whether all of the content is on the device.
    is_flushed: bool,
}

impl<D: BlockDevice> FatVolume<D> {
    /// Begins to write a file of `length` bytes, which replaces the file at `path` once it is finished. Each part of the
    /// path is a [`ShortName`], in upper or lower case. Missing folders are made; they stay if the file is not finished.
    ///
    /// # Errors
    /// The free clusters are too few ([`FatError::Full`]), the path cannot be written, the volume is not FAT32, passes a
    /// limit, or needs a repair. Then nothing was changed. Or the device failed.
    pub fn write_file(
        &mut self,
        path: &str,
        length: u64,
    ) -> Result<FatFileWriter<'_, D>, FatError> {
        self.require_writable()?;
        let Ok(size) = u32::try_from(length) else {
            return Err(FatError::TooLarge {
                size: length,
                limit: FILE_BYTES_MAX,
            });
        };
        let mut scan = VolumeScan::read(&self.device, &self.geometry)?;
        let plan = self.plan(&scan, path)?;
        let clusters = self.require_free_clusters(&scan, &plan, length)?;
        let mut folder = plan.folder;
        for name in plan.missing {
            folder = self.make_folder(&mut scan, folder, name)?;
        }
        let target = match plan.file {
            Some(index) => WriteTarget::Existing(index),
            None => WriteTarget::New(plan.name, self.free_slot(&mut scan, folder)?),
        };
        let runs = self.allocate(&scan, clusters)?;
        Ok(FatFileWriter {
            volume: self,
            scan,
            target,
            runs,
            length: size,
            written: 0,
            buffer: Vec::new(),
            done_clusters: 0,
            is_flushed: false,
        })
    }

    /// Replaces the file at `path` by `length` bytes of a reader, or makes it. Whatever power cut comes, the volume then
    /// has the file of before or the new one, whole. `progress` gets the number of bytes that were taken so far.
    ///
    /// # Errors
    /// The errors of [`write_file`](Self::write_file) and [`FatFileWriter::finish`], and those of the reader; the file
    /// is the one of before then, unless only freeing its clusters failed.
    pub fn replace_file(
        &mut self,
        path: &str,
        length: u64,
        reader: &mut dyn Read,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), FatError> {
        let mut writer = self.write_file(path, length)?;
        let mut buffer = vec![0; TRANSFER_BYTES];
        // One byte more than announced is an error as well.
        let mut reader = reader.take(length.saturating_add(1));
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return writer.finish(),
                Ok(count) => writer.write(&buffer[..count])?,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(FatError::io("read the new content")(error)),
            }
            progress(writer.written());
        }
    }

    /// Removes a file. After a power cut it is there as before or gone.
    ///
    /// # Errors
    /// The path leads to no file, the volume is not FAT32, passes a limit or needs a repair, and nothing was changed. Or
    /// the device failed; the file may be gone then.
    pub fn remove_file(&mut self, path: &str) -> Result<(), FatError> {
        self.require_writable()?;
        let mut scan = VolumeScan::read(&self.device, &self.geometry)?;
        let plan = self.plan(&scan, path)?;
        let Some(index) = plan.file else {
            return Err(FatError::NotFound { path: path.into() });
        };
        self.free_slots(&scan.entries[index].slots_at)?;
        self.free_chain(&mut scan, index)
    }

    /// Finds out where a path leads, and refuses what must not be written.
    fn plan(&self, scan: &VolumeScan, path: &str) -> Result<WritePlan, FatError> {
        if scan.differences > 0 {
            return Err(FatError::NeedsRepair("the copies of its table differ"));
        }
        let mut folders = short_parts(path)?;
        let Some(name) = folders.pop() else {
            return Err(FatError::LongPath { path: path.into() });
        };
        let mut way = vec![ROOT];
        let mut folder = ROOT;
        let mut missing = Vec::new();
        for part in folders {
            let found = if missing.is_empty() {
                child(scan, folder, part)?
            } else {
                None
            };
            match found {
                Some(index) if !scan.entries[index].is_folder => {
                    return Err(FatError::NotAFolder { path: path.into() });
                }
                Some(index) => {
                    way.push(index);
                    folder = index;
                }
                None => missing.push(part),
            }
        }
        // A slot that is written into a folder with a broken chain, or into one that a file has as well, is lost.
        let is_damaged = |index: &usize| scan.entries[*index].chain.is_some();
        if way.iter().any(is_damaged) || scan.is_shared(&self.geometry, folder) {
            return Err(FatError::NeedsRepair("a folder on the path is damaged"));
        }
        let file = if missing.is_empty() {
            child(scan, folder, name)?
        } else {
            None
        };
        if file.is_some_and(|index| scan.entries[index].is_folder) {
            return Err(FatError::NotAFile { path: path.into() });
        }
        Ok(WritePlan {
            missing,
            folder,
            name,
            file,
        })
    }

    /// Returns how many clusters the file takes, if they and those of folders are free.
    fn require_free_clusters(
        &self,
        scan: &VolumeScan,
        plan: &WritePlan,
        length: u64,
    ) -> Result<u32, FatError> {
        let clusters = self.geometry.clusters_for(length);
        let mut needed = clusters + plan.missing.len() as u64;
        let raw = self.raw_folder(scan, plan.folder)?;
        // A new entry may take one more cluster for its folder.
        if plan.file.is_none() && first_free_slot(&raw).is_none() {
            needed += 1;
        }
        let free = scan.usable_clusters(&self.geometry).count() as u64;
        if needed > free {
            let cluster_bytes = u64::from(self.geometry.cluster_bytes());
            return Err(FatError::Full {
                needed: needed * cluster_bytes,
                free: free * cluster_bytes,
            });
        }
        // It is not above the number of free clusters.
        let clusters = clusters as u32;
        let pieces = self.allocate(scan, clusters)?.len() + plan.missing.len() + 1;
        if pieces > FILE_EXTENTS_MAX {
            // `open_file` would refuse such a file.
            return Err(FatError::Limit {
                what: "pieces of free room",
                limit: FILE_EXTENTS_MAX as u64,
            });
        }
        Ok(clusters)
    }

    /// The slots of a folder whose chain is whole.
    fn raw_folder(&self, scan: &VolumeScan, folder: usize) -> Result<RawFolder, FatError> {
        let clusters = scan.own_clusters(&self.geometry, &scan.entries[folder]);
        let place = FolderLocation::Clusters(clusters.collect());
        RawFolder::read(&self.device, &self.geometry, place)
    }

    fn allocate(&self, scan: &VolumeScan, count: u32) -> Result<Vec<ClusterRun>, FatError> {
        let runs = allocate(scan.usable_clusters(&self.geometry), count);
        // The room was counted before.
        runs.ok_or_else(|| FatError::Full {
            needed: u64::from(count) * u64::from(self.geometry.cluster_bytes()),
            free: 0,
        })
    }

    /// Takes one cluster, whose content is on the device before the table says that it is in use.
    fn add_cluster(&mut self, scan: &mut VolumeScan, content: &[u8]) -> Result<u32, FatError> {
        let runs = self.allocate(scan, 1)?;
        let cluster = runs[0].first;
        let written = self
            .device
            .write_at(content, self.geometry.cluster_at(cluster));
        written.map_err(FatError::io("write a folder"))?;
        self.flush()?;
        scan.table.set(cluster, CHAIN_END);
        self.write_table(scan)?;
        Ok(cluster)
    }

    /// Makes an empty folder. Its content and its chain are on the device before its entry, so that a cut leaves a
    /// cluster that belongs to no folder.
    fn make_folder(
        &mut self,
        scan: &mut VolumeScan,
        parent: usize,
        name: ShortName,
    ) -> Result<usize, FatError> {
        // First, because it may extend the parent.
        let slot_at = self.free_slot(scan, parent)?;
        let up = match parent {
            // The root's number is zero here, whichever it has.
            ROOT => 0,
            parent => scan.entries[parent].first_cluster,
        };
        let mut content = vec![0; self.geometry.cluster_bytes() as usize];
        // The number of the cluster is known once it is found, and no other cluster is taken meanwhile.
        let cluster = self.allocate(scan, 1)?[0].first;
        put(
            &mut content,
            0,
            &entry_bytes(ShortName::DOT, ATTRIBUTE_FOLDER, cluster, 0),
        );
        put(
            &mut content,
            ENTRY_BYTES,
            &entry_bytes(ShortName::DOT_DOT, ATTRIBUTE_FOLDER, up, 0),
        );
        let taken = self.add_cluster(scan, &content)?;
        debug_assert_eq!(taken, cluster);
        let entry = entry_bytes(name, ATTRIBUTE_FOLDER, cluster, 0);
        self.put_in_sector(slot_at, &entry)?;
        self.flush()?;
        Ok(scan.add_folder(parent, name, cluster))
    }

    /// The position of a slot of a folder into which an entry can be written by one write of its sector. The folder gets
    /// another cluster if it is full.
    fn free_slot(&mut self, scan: &mut VolumeScan, folder: usize) -> Result<u64, FatError> {
        let raw = self.raw_folder(scan, folder)?;
        let Some(slot) = first_free_slot(&raw) else {
            return self.extend_folder(scan, folder, &raw);
        };
        // What stands behind the end of a folder means nothing until the end moves.
        let behind = slot + 1;
        let moves_end = raw.slot(slot)[0] == END_MARK && behind < raw.slots();
        if moves_end && raw.slot(behind)[0] != END_MARK {
            let behind_at = raw.slot_at(&self.geometry, behind);
            self.put_in_sector(behind_at, &[END_MARK])?;
            self.flush()?;
        }
        self.free_long_part(&raw, slot)?;
        Ok(raw.slot_at(&self.geometry, slot))
    }

    /// Adds an empty cluster to a folder that is full, and returns the position of its first slot.
    fn extend_folder(
        &mut self,
        scan: &mut VolumeScan,
        folder: usize,
        raw: &RawFolder,
    ) -> Result<u64, FatError> {
        let content = vec![0; self.geometry.cluster_bytes() as usize];
        let slots = raw.slots() + content.len() / ENTRY_BYTES;
        if slots > FOLDER_SLOTS_MAX as usize {
            return Err(FatError::Limit {
                what: "entries of a folder",
                limit: FOLDER_SLOTS_MAX.into(),
            });
        }
        let clusters = scan.own_clusters(&self.geometry, &scan.entries[folder]);
        let Some(last) = clusters.last() else {
            return Err(FatError::NeedsRepair("a folder on the path is damaged"));
        };
        self.free_long_part(raw, raw.slots())?;
        // The end of the chain is on the device before the link to it, so that a cut leaves the folder's chain whole.
        let cluster = self.add_cluster(scan, &content)?;
        scan.table.set(last, cluster);
        self.write_table(scan)?;
        scan.extend_folder(folder, cluster);
        Ok(self.geometry.cluster_at(cluster))
    }

    /// Frees a part of a long name that stands before a free slot, and therefore belongs to no file: by chance it could
    /// name the file that comes into the slot.
    fn free_long_part(&mut self, raw: &RawFolder, slot: usize) -> Result<(), FatError> {
        let before = slot
            .checked_sub(1)
            .filter(|before| raw.is_long_part(*before));
        if let Some(before) = before {
            let before_at = raw.slot_at(&self.geometry, before);
            self.put_in_sector(before_at, &[FREE_MARK])?;
            self.flush()?;
        }
        Ok(())
    }

    /// Frees the clusters of an entry that its folder does not have any more, or has with another chain.
    fn free_chain(&mut self, scan: &mut VolumeScan, index: usize) -> Result<(), FatError> {
        // A foreign file may share some of them.
        for cluster in scan.exclusive_clusters(&self.geometry, index) {
            scan.table.set(cluster, 0);
        }
        self.write_table(scan)?;
        if self.write_info(scan)? {
            self.flush()?;
        }
        Ok(())
    }
}

impl<D: BlockDevice> FatFileWriter<'_, D> {
    /// Bytes that were taken so far.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Takes the next bytes of the content.
    ///
    /// # Errors
    /// They are more than announced ([`FatError::Length`]), or the device failed.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), FatError> {
        let given = self.written + bytes.len() as u64;
        if given > u64::from(self.length) {
            return Err(FatError::Length {
                given,
                announced: self.length.into(),
            });
        }
        while !bytes.is_empty() {
            let room = TRANSFER_BYTES - self.buffer.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.buffer.extend_from_slice(now);
            self.written += now.len() as u64;
            bytes = later;
            if self.buffer.len() == TRANSFER_BYTES {
                self.write_buffer()?;
            }
        }
        Ok(())
    }

    /// Returns the new content as the device has it, after all of it was written there. The volume still has the file of
    /// before, so a caller that finds other bytes than it gave drops the writer, and loses nothing.
    ///
    /// # Errors
    /// Bytes are missing ([`FatError::Length`]), or the device failed.
    pub fn read_back(&mut self) -> Result<FatFile<'_, D>, FatError> {
        self.flush_content()?;
        Ok(FatFile {
            device: &self.volume.device,
            size: self.length,
            extents: self.extents(),
            piece: 0,
            taken: 0,
        })
    }

    /// Makes the file the one that the volume has: the chain first, then the entry by one write of its sector, and at last
    /// the clusters of the file of before become free. Each step is on the device before the next, and chain and entry are
    /// read back. The content is not: see [`read_back`](Self::read_back).
    ///
    /// # Errors
    /// Bytes are missing ([`FatError::Length`]), or the device failed, or lost the chain or the entry
    /// ([`FatError::NotKept`]). The volume has the file of before, or the new one if only the last step failed;
    /// [`FatVolume::repair`] frees what such a step left.
    pub fn finish(mut self) -> Result<(), FatError> {
        self.flush_content()?;
        self.scan.table.link_runs(&self.runs);
        self.volume.write_table(&mut self.scan)?;
        self.require_chain()?;
        self.switch()?;
        match self.target {
            WriteTarget::Existing(index) => self.volume.free_chain(&mut self.scan, index),
            WriteTarget::New(..) => {
                if self.volume.write_info(&self.scan)? {
                    self.volume.flush()?;
                }
                Ok(())
            }
        }
    }

    /// Writes what waits, and returns when all of the content is on the device.
    fn flush_content(&mut self) -> Result<(), FatError> {
        if self.written != u64::from(self.length) {
            return Err(FatError::Length {
                given: self.written,
                announced: self.length.into(),
            });
        }
        if !self.is_flushed {
            self.write_buffer()?;
            self.volume.flush()?;
            self.is_flushed = true;
        }
        Ok(())
    }

    /// The pieces of the new content.
    fn extents(&self) -> Vec<FatExtent> {
        let geometry = &self.volume.geometry;
        let mut left = u64::from(self.length);
        let pieces = self.runs.iter().map(|run| {
            let room = u64::from(run.count) * u64::from(geometry.cluster_bytes());
            let bytes = left.min(room);
            left -= bytes;
            let at = geometry.cluster_at(run.first);
            FatExtent { at, bytes }
        });
        pieces.collect()
    }

    fn first_cluster(&self) -> u32 {
        self.runs.first().map_or(0, |run| run.first)
    }

    /// Refuses a chain that the device did not keep, while the folder still has the file of before.
    fn require_chain(&self) -> Result<(), FatError> {
        let mut table = TableCursor::new(&self.volume.device, &self.volume.geometry);
        match table.file(self.first_cluster(), self.length)? {
            Ok(found) if found == self.extents() => Ok(()),
            _ => Err(FatError::NotKept {
                what: "the chain of a file",
            }),
        }
    }

    /// Writes the sector with the file's entry.
    fn switch(&mut self) -> Result<(), FatError> {
        let (slot_at, entry) = self.new_entry()?;
        self.volume.put_in_sector(slot_at, &entry)?;
        self.volume.flush()?;
        // If the folder still has the file of before, its clusters must not become free.
        match self.entry_at(slot_at)? == entry {
            true => Ok(()),
            false => Err(FatError::NotKept {
                what: "the entry of a file",
            }),
        }
    }

    /// The file's entry in its folder, and the position of that.
    fn new_entry(&self) -> Result<(u64, [u8; ENTRY_BYTES]), FatError> {
        let first = self.first_cluster();
        match self.target {
            WriteTarget::New(name, slot_at) => {
                let entry = entry_bytes(name, ATTRIBUTE_ARCHIVE, first, self.length);
                Ok((slot_at, entry))
            }
            WriteTarget::Existing(index) => {
                // Every entry of a folder has a slot of its own.
                let Some(slot_at) = self.scan.entries[index].slots_at.last().copied() else {
                    return Err(FatError::NeedsRepair("a file has no entry"));
                };
                let mut entry = self.entry_at(slot_at)?;
                let [low_0, low_1, high_0, high_1] = first.to_le_bytes();
                entry[11] |= ATTRIBUTE_ARCHIVE;
                put(&mut entry, 20, &[high_0, high_1]);
                put(&mut entry, 26, &[low_0, low_1]);
                put(&mut entry, 28, &self.length.to_le_bytes());
                Ok((slot_at, entry))
            }
        }
    }

    fn entry_at(&self, slot_at: u64) -> Result<[u8; ENTRY_BYTES], FatError> {
        let mut entry = [0; ENTRY_BYTES];
        let read = self.volume.device.read_at(&mut entry, slot_at);
        read.map_err(FatError::io("read a folder"))?;
        Ok(entry)
    }

    /// Writes what waits into the next clusters. Only at the end it may be a part of a cluster.
    fn write_buffer(&mut self) -> Result<(), FatError> {
        let cluster_bytes = self.volume.geometry.cluster_bytes() as usize;
        let whole = self.buffer.len().next_multiple_of(cluster_bytes);
        // The rest of the last cluster.
        self.buffer.resize(whole, 0);
        let mut rest = self.buffer.as_slice();
        while !rest.is_empty() {
            let wanted = (rest.len() / cluster_bytes) as u32;
            let Some(run) = run_after(&self.runs, self.done_clusters) else {
                // The clusters were counted by the announced length, and `write` takes no more.
                return Err(FatError::NeedsRepair(
                    "the file has fewer clusters than bytes",
                ));
            };
            let count = run.count.min(wanted);
            let (now, later) = rest.split_at(count as usize * cluster_bytes);
            let at = self.volume.geometry.cluster_at(run.first);
            let written = self.volume.device.write_at(now, at);
            written.map_err(FatError::io("write a file"))?;
            self.done_clusters += count;
            rest = later;
        }
        self.buffer.clear();
        Ok(())
    }
}

/// The clusters of a run behind the first `done` ones of all runs.
fn run_after(runs: &[ClusterRun], mut done: u32) -> Option<ClusterRun> {
    for run in runs {
        if done < run.count {
            return Some(ClusterRun {
                first: run.first + done,
                count: run.count - done,
            });
        }
        done -= run.count;
    }
    None
}

/// The entry of a folder with this short name, or with a long name like it.
fn child(scan: &VolumeScan, folder: usize, name: ShortName) -> Result<Option<usize>, FatError> {
    let Some(shown) = name.shown(0) else {
        return Ok(None);
    };
    let entries = scan.entries.iter().enumerate().skip(ROOT + 1);
    let mut found = entries.filter(|(_, it)| it.parent == folder && it.is_named(&shown));
    match (found.next(), found.next()) {
        (None, _) => Ok(None),
        (Some((index, _)), None) => Ok(Some(index)),
        (Some(_), Some(_)) => Err(FatError::NeedsRepair("a folder has one name twice")),
    }
}

/// The first slot that is free, or at the end.
fn first_free_slot(raw: &RawFolder) -> Option<usize> {
    (0..raw.slots()).find(|slot| [FREE_MARK, END_MARK].contains(&raw.slot(*slot)[0]))
}
