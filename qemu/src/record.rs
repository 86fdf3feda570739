//! Realistic power cuts: a disk may lose unflushed writes, in part, in any order.
//!
//! Killing QEMU does not show that, since the host keeps its page cache. So a small NBD server serves the disk and
//! records every write and flush in order. A cut makes an image that a real disk could hold at one of those
//! moments: everything before the last flush is there, and each later write is there, or not, or torn between its
//! sectors.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::disk;
use crate::error::{Error, Result};
use crate::nbd::{self, NbdBackend};
use crate::scratch::ScratchDir;

/// The data that one recording may hold. A boot writes a few MB, so this much means a runaway.
const RECORDED_BYTES_MAX: usize = 1 << 30;

/// A disk under observation. [`VirtioDisk::recorded`](crate::VirtioDisk::recorded) gives it to a machine.
#[derive(Debug)]
pub struct DiskRecorder {
    base: PathBuf,
    image: PathBuf,
    socket: PathBuf,
    live: Arc<LiveDisk>,
    _scratch: ScratchDir,
}

impl DiskRecorder {
    /// Serves a disk that starts with the content of `base`. That file does not change, and must stay there as long
    /// as recordings are used.
    pub fn serve(base: &Path) -> Result<Self> {
        let scratch = ScratchDir::new()?;
        let (socket, file) = (scratch.file("nbd"), scratch.file("disk"));
        // The recording begins with the disk as it was, so the original stays unchanged.
        disk::copy(base, &file)?;
        let live = LiveDisk::open(&file)?;
        let listener =
            UnixListener::bind(&socket).map_err(Error::io("binding the disk's socket"))?;
        let live = Arc::new(live);
        let served = live.clone();
        std::thread::Builder::new()
            .name("disk".to_owned())
            .spawn(move || accept(&listener, &served))
            .map_err(Error::io("starting the disk's thread"))?;
        Ok(Self {
            base: base.to_owned(),
            image: file,
            socket,
            live,
            _scratch: scratch,
        })
    }

    /// Unix socket of the NBD server.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The file with what the disk has now.
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// Refuses each write that touches these bytes of the disk, as a disk with bad sectors does. The next call replaces the
    /// range, and an empty one refuses no write.
    pub fn refuse_writes(&self, places: std::ops::Range<u64>) {
        *self.live.refused() = places;
    }

    /// Makes the disk hang, without answers, until [`release`](Self::release).
    pub fn hold(&self) {
        *self.live.held() = true;
    }

    /// Lets the disk go on with its requests.
    pub fn release(&self) {
        *self.live.held() = false;
        self.live.released.notify_all();
    }

    /// The recording so far.
    pub fn recording(&self) -> DiskRecording {
        DiskRecording {
            base: self.base.clone(),
            events: self.live.log().events.clone(),
        }
    }
}

impl Drop for DiskRecorder {
    fn drop(&mut self) {
        // The thread waits for clients. One more wakes it, and it ends.
        self.live.log().closed = true;
        self.release();
        let _ = std::os::unix::net::UnixStream::connect(&self.socket);
    }
}

/// QEMU's operations on a disk, in order.
#[derive(Clone, Debug)]
pub struct DiskRecording {
    base: PathBuf,
    events: Vec<DiskEvent>,
}

impl DiskRecording {
    /// The number of moments: writes and flushes.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether the disk was never written.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Number of flushes, and of writes that were durable by themselves.
    pub fn flushes(&self) -> usize {
        self.events.iter().filter(|event| event.durable()).count()
    }

    /// Bytes written.
    pub fn bytes(&self) -> u64 {
        self.events.iter().map(DiskEvent::bytes).sum()
    }

    /// The moments of all writes that begin in these bytes of the disk.
    pub fn writes_in(&self, places: std::ops::Range<u64>) -> Vec<usize> {
        let within = |event: &DiskEvent| match event {
            DiskEvent::Flush => false,
            DiskEvent::Write { offset, .. } | DiskEvent::Zero { offset, .. } => {
                places.contains(offset)
            }
        };
        let moments = self.events.iter().enumerate();
        let moments = moments.filter(|(_, event)| within(event));
        moments.map(|(moment, _)| moment).collect()
    }

    /// Makes at `image` what the disk could hold if the power failed at moment `at`: while the event of that number
    /// was under way, or after all of them if `at` is [`len`](Self::len). The same `seed` makes the same image.
    pub fn cut(&self, at: usize, seed: u64, image: &Path) -> Result<CutSummary> {
        disk::copy(&self.base, image)?;
        self.apply(at, seed, image)
    }

    /// The same on a disk that was blank. This is enough to inspect what was written, and quick if the disk held
    /// much before.
    pub fn cut_blank(&self, at: usize, seed: u64, image: &Path) -> Result<CutSummary> {
        let base = std::fs::metadata(&self.base);
        let base = base.map_err(Error::io(format!("looking at {}", self.base.display())))?;
        disk::blank(image, base.len())?;
        self.apply(at, seed, image)
    }

    /// Cuts the power at each of these moments, which are in order: before the write of that number, after the first
    /// half of its sectors, and after all of them. Every earlier write is there. `judge` looks at `image` after each
    /// cut, and must not change it. A write of one sector has no half. Returns the number of cuts.
    pub fn cut_each(
        &self,
        moments: &[usize],
        image: &Path,
        judge: &mut dyn FnMut(usize, WrittenPart),
    ) -> Result<usize> {
        disk::copy(&self.base, image)?;
        let mut cuts = 0;
        let mut replay = || -> io::Result<()> {
            let file = File::options().write(true).open(image)?;
            for (moment, event) in self.events.iter().enumerate() {
                if moments.binary_search(&moment).is_err() {
                    event.apply(&file, &WriteFate::Kept)?;
                    continue;
                }
                let (half, bytes) = (event.half(), event.bytes());
                let mut cut = |part| {
                    cuts += 1;
                    judge(moment, part);
                };
                cut(WrittenPart::Nothing);
                if half > 0 {
                    event.write(&file, 0, half)?;
                    cut(WrittenPart::Half);
                }
                event.write(&file, half, bytes)?;
                cut(WrittenPart::Whole);
            }
            Ok(())
        };
        replay().map_err(Error::io(format!(
            "making the image of each power cut, {}",
            image.display()
        )))?;
        Ok(cuts)
    }

    fn apply(&self, at: usize, seed: u64, image: &Path) -> Result<CutSummary> {
        let apply = || -> io::Result<CutSummary> {
            let file = File::options().write(true).open(image)?;
            self.fates(at, seed)
                .try_fold(CutSummary::default(), |cut, (event, fate)| {
                    event.apply(&file, &fate)?;
                    Ok(cut.count(&fate))
                })
        };
        apply().map_err(Error::io(format!(
            "making the image of a power cut, {}",
            image.display()
        )))
    }

    /// Every write up to `at`, and its fate.
    fn fates(&self, at: usize, seed: u64) -> impl Iterator<Item = (&DiskEvent, WriteFate)> {
        let at = at.min(self.events.len());
        let done = &self.events[..at];
        let flushed = done
            .iter()
            .rposition(|event| matches!(event, DiskEvent::Flush));
        // Everything that was written before the last flush has to be there.
        let safe = flushed.map_or(0, |index| index + 1);
        // Each moment draws other fates, and the same ones whenever it is tried again.
        let mut random = CutRng::new(seed ^ (at as u64).rotate_left(32));
        // Some caches lose nearly everything, some nearly nothing. Both ends matter.
        let survival = random.below(5) * 25;
        // The event under way at the moment itself was never answered, so the disk promised nothing.
        let under_way = self.events.get(at).map(|event| (event, false));
        let done = done.iter().enumerate();
        let done = done.map(move |(index, event)| (event, index < safe || event.durable()));
        done.chain(under_way).map(move |(event, promised)| {
            let fate = if promised {
                WriteFate::Kept
            } else {
                WriteFate::draw(event, survival, &mut random)
            };
            (event, fate)
        })
    }
}

/// What is there of the write under way at a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WrittenPart {
    /// The first half of its sectors.
    Half,
    /// No sector.
    Nothing,
    /// Every sector.
    Whole,
}

/// The effect of a cut on writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CutSummary {
    /// Writes that are there whole.
    pub whole: usize,
    /// Writes that are there in part.
    pub torn: usize,
    /// Writes that are not there.
    pub dropped: usize,
}

impl CutSummary {
    fn count(mut self, fate: &WriteFate) -> Self {
        match fate {
            WriteFate::Dropped => self.dropped += 1,
            WriteFate::Kept => self.whole += 1,
            WriteFate::Torn(_) => self.torn += 1,
        }
        self
    }
}

#[derive(Clone, Debug)]
enum DiskEvent {
    Flush,
    Write {
        offset: u64,
        data: Arc<[u8]>,
        fua: bool,
    },
    Zero {
        offset: u64,
        length: u64,
        fua: bool,
    },
}

impl DiskEvent {
    fn durable(&self) -> bool {
        match self {
            Self::Flush => true,
            Self::Write { fua, .. } | Self::Zero { fua, .. } => *fua,
        }
    }

    fn bytes(&self) -> u64 {
        match self {
            Self::Flush => 0,
            Self::Write { data, .. } => data.len() as u64,
            Self::Zero { length, .. } => *length,
        }
    }

    /// Bytes of the first half, in whole sectors: a disk writes a sector whole or not at all.
    fn half(&self) -> u64 {
        self.bytes() / 2 / SECTOR_BYTES * SECTOR_BYTES
    }

    fn apply(&self, file: &File, fate: &WriteFate) -> io::Result<()> {
        let kept: &mut dyn FnMut(u64) -> bool = match fate {
            WriteFate::Dropped => return Ok(()),
            WriteFate::Kept => return self.write(file, 0, self.bytes()),
            WriteFate::Torn(tear) => &mut |at| tear.keeps(at),
        };
        let mut at = 0;
        while at < self.bytes() {
            let end = self.bytes().min(at + SECTOR_BYTES);
            // Each sector has its own fate, because a disk writes a sector whole or not at all.
            if kept(at) {
                self.write(file, at, end)?;
            }
            at = end;
        }
        Ok(())
    }

    /// Writes the bytes from `start` to `end` of this event.
    fn write(&self, file: &File, start: u64, end: u64) -> io::Result<()> {
        match self {
            Self::Flush => Ok(()),
            Self::Write { offset, data, .. } => {
                let range = usize::try_from(start).ok().zip(usize::try_from(end).ok());
                let piece = range
                    .and_then(|(start, end)| data.get(start..end))
                    .unwrap_or_default();
                file.write_all_at(piece, offset + start)
            }
            Self::Zero { offset, .. } => write_zeroes(file, offset + start, end - start),
        }
    }
}

/// What a disk writes at once or not at all.
const SECTOR_BYTES: u64 = 512;

/// The sector size inside drives with 4 KiB.
const LARGE_SECTOR_BYTES: u64 = 4096;

#[derive(Clone, Debug, PartialEq, Eq)]
enum WriteFate {
    Dropped,
    Kept,
    Torn(TornWrite),
}

impl WriteFate {
    /// Draws a fate. `survival` is the chance of a write to be there whole, in percent.
    fn draw(event: &DiskEvent, survival: u64, random: &mut CutRng) -> Self {
        let (whole, torn) = (random.below(100) < survival, random.below(3) == 0);
        // The tear is drawn always, so that one event's fate does not depend on the length of another.
        let tear = TornWrite::draw(event.bytes(), random);
        match event {
            DiskEvent::Flush => Self::Kept,
            _ if whole => Self::Kept,
            // A disk writes one sector whole or not at all, so a write of one sector has no halves.
            _ if torn && event.bytes() > SECTOR_BYTES => Self::Torn(tear),
            _ => Self::Dropped,
        }
    }
}

/// The sectors of a torn write that are there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct TornWrite {
    unit: u64,
    shape: TornShape,
    seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TornShape {
    /// Only the beginning, up to this byte.
    Head(u64),
    /// Only the end, from this byte.
    Rest(u64),
    /// Every sector by its own chance.
    Scattered,
}

impl TornWrite {
    fn draw(bytes: u64, random: &mut CutRng) -> Self {
        let unit = if random.below(2) == 0 {
            SECTOR_BYTES
        } else {
            LARGE_SECTOR_BYTES
        };
        let at = random.below(bytes.max(1));
        let shape = match random.below(3) {
            0 => TornShape::Head(at),
            1 => TornShape::Rest(at),
            _ => TornShape::Scattered,
        };
        Self {
            unit,
            shape,
            seed: random.next(),
        }
    }

    fn keeps(&self, at: u64) -> bool {
        let sector = at / self.unit;
        match self.shape {
            TornShape::Head(end) => sector < end / self.unit,
            TornShape::Rest(start) => sector >= start / self.unit,
            TornShape::Scattered => CutRng::new(self.seed ^ sector).below(2) == 0,
        }
    }
}

/// SplitMix64: small, good enough, and the same everywhere for ever.
#[derive(Debug)]
struct CutRng(u64);

impl CutRng {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`. The bias is far below what a test could see.
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// The disk as the machine sees it now.
#[derive(Debug)]
struct LiveDisk {
    file: File,
    size: u64,
    log: Mutex<DiskLog>,
    /// Bytes of the disk that take no writes.
    refused: Mutex<std::ops::Range<u64>>,
    held: Mutex<bool>,
    released: Condvar,
}

#[derive(Debug, Default)]
struct DiskLog {
    events: Vec<DiskEvent>,
    bytes: usize,
    closed: bool,
}

impl LiveDisk {
    fn open(path: &Path) -> Result<Self> {
        let open = || {
            let file = File::options().read(true).write(true).open(path)?;
            let size = file.metadata()?.len();
            Ok(Self {
                file,
                size,
                log: Mutex::default(),
                refused: Mutex::default(),
                held: Mutex::default(),
                released: Condvar::new(),
            })
        };
        open().map_err(Error::io(format!("opening the disk {}", path.display())))
    }

    fn log(&self) -> MutexGuard<'_, DiskLog> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refused(&self) -> MutexGuard<'_, std::ops::Range<u64>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn require_writable(&self, offset: u64, length: u64) -> io::Result<()> {
        let refused = self.refused();
        match offset < refused.end && refused.start < offset.saturating_add(length) {
            true => Err(io::Error::other("these bytes take no writes")),
            false => Ok(()),
        }
    }

    fn held(&self) -> MutexGuard<'_, bool> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns once the disk no longer hangs.
    fn wait(&self) {
        let mut held = self.held();
        while *held {
            let waited = self.released.wait(held);
            held = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Writes and records under one lock, so the order in the record is the order on the disk.
    fn note(&self, event: DiskEvent, bytes: usize) -> io::Result<()> {
        self.wait();
        let mut log = self.log();
        // A machine that writes without end would take the host's memory.
        if log.bytes.saturating_add(bytes) > RECORDED_BYTES_MAX {
            tracing::error!("a recording is full: the machine wrote {} bytes", log.bytes);
            return Err(io::ErrorKind::StorageFull.into());
        }
        event.apply(&self.file, &WriteFate::Kept)?;
        log.bytes += bytes;
        log.events.push(event);
        Ok(())
    }
}

impl NbdBackend for LiveDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.wait();
        self.file.read_exact_at(buffer, offset)
    }

    fn write(&self, offset: u64, data: Vec<u8>, fua: bool) -> io::Result<()> {
        let bytes = data.len();
        self.require_writable(offset, bytes as u64)?;
        self.note(
            DiskEvent::Write {
                offset,
                data: data.into(),
                fua,
            },
            bytes,
        )
    }

    fn zero(&self, offset: u64, length: u64, fua: bool) -> io::Result<()> {
        self.require_writable(offset, length)?;
        self.note(
            DiskEvent::Zero {
                offset,
                length,
                fua,
            },
            0,
        )
    }

    fn flush(&self) -> io::Result<()> {
        self.note(DiskEvent::Flush, 0)
    }
}

/// Serves one client after the other, until the recorder is dropped.
fn accept(listener: &UnixListener, live: &LiveDisk) {
    for client in listener.incoming() {
        if live.log().closed {
            return;
        }
        let served = client.and_then(|mut stream| nbd::serve(&mut stream, live));
        if let Err(error) = served {
            // A killed QEMU hangs up in the middle of a request, which is expected.
            tracing::debug!(%error, "a client of the disk left");
        }
    }
}

/// Writes zeros, as a hole for whole pages.
fn write_zeroes(file: &File, offset: u64, length: u64) -> io::Result<()> {
    use nix::fcntl::{FallocateFlags, fallocate};
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let signed = |value: u64| i64::try_from(value).map_err(|_| io::ErrorKind::InvalidInput);
    // fallocate(2) refuses a length of zero.
    if length == 0 {
        return Ok(());
    }
    match fallocate(file, flags, signed(offset)?, signed(length)?) {
        // Not every file system can make holes.
        Err(nix::Error::EOPNOTSUPP) => write_zero_bytes(file, offset, length),
        result => Ok(result?),
    }
}

fn write_zero_bytes(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let zeroes = [0; 1 << 16];
    let mut done = 0;
    while done < length {
        let piece = usize::try_from(length - done)
            .unwrap_or(usize::MAX)
            .min(zeroes.len());
        file.write_all_at(&zeroes[..piece], offset + done)?;
        done += piece as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
