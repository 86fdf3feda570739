//! Writing the log: one file that grows to 8 MiB, and seven older ones.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::audit::line::{ChainPosition, NOTHING};
use crate::audit::{AuditError, AuditEvent, AuditRecord, ChainBreak};
use crate::limits::{AUDIT_FILE_BYTES, AUDIT_FILES, MAX_AUDIT_LINE_BYTES, MAX_PENDING_EVENTS};
use crate::vault::Vault;

/// Events of a time at which no line could be written: while the vault is locked.
///
/// The oldest are kept, since those tell how a problem began; how many were not is written down.
#[derive(Debug, Default)]
pub struct UnwrittenEvents {
    records: Vec<AuditRecord>,
    dropped: u64,
}

impl UnwrittenEvents {
    /// Keeps an event, or counts it.
    pub fn push(&mut self, record: AuditRecord) {
        if self.records.len() < MAX_PENDING_EVENTS {
            self.records.push(record);
        } else {
            self.dropped += 1;
        }
    }

    /// How many are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Writes what is kept. Nothing is forgotten unless it is on the disk.
    pub fn flush(&mut self, log: &mut AuditLog, vault: &Vault) -> Result<(), AuditError> {
        // Copies, so that a failure of the disk leaves everything to be written later.
        let mut records = self.records.clone();
        if let Some(last) = records.last().filter(|_| self.dropped > 0) {
            let event = AuditEvent::Dropped {
                count: self.dropped,
            };
            let record = AuditRecord {
                event,
                ..last.clone()
            };
            records.push(record);
        }
        log.append(vault, &records)?;
        *self = Self::default();
        Ok(())
    }
}

/// The log's files, open at the end of the newest.
#[derive(Debug)]
pub struct AuditLog {
    dir: PathBuf,
    file: File,
    bytes: u64,
    file_bytes_max: u64,
    seq: u64,
    prev: [u8; 32],
    /// Bytes of half a line that were removed, until that is written down.
    repaired: u64,
    /// What a write that failed left after `bytes` could not be removed yet.
    pub(super) torn: bool,
}

impl AuditLog {
    /// Goes on where the log in `dir` ends, or begins one in a folder without a log. Half a line at
    /// its end, which a power cut leaves, is removed and mentioned. The chain is not verified, see
    /// [`super::verify`].
    pub fn open(dir: &Path) -> Result<Self, AuditError> {
        Self::open_with(dir, AUDIT_FILE_BYTES)
    }

    /// The same with files of another size.
    pub(super) fn open_with(dir: &Path, file_bytes_max: u64) -> Result<Self, AuditError> {
        let path = path(dir, 0);
        let mut file = current(&path)?;
        let (kept, repaired, last) = end(&mut file).map_err(|source| io(&path, source))?;
        if repaired > 0 {
            file.set_len(kept).map_err(|source| io(&path, source))?;
        }
        let mut log = Self {
            dir: dir.to_owned(),
            file,
            bytes: kept,
            file_bytes_max,
            seq: 0,
            prev: NOTHING,
            repaired,
            torn: false,
        };
        let (name, last) = match last {
            Some(line) => (path, Some(line)),
            None => log.end_of_the_one_before()?,
        };
        if let Some(line) = last {
            let place = ChainPosition::parse(&line).map_err(|why| broken(&name, why))?;
            log.seq = place.seq;
            log.prev = place.hash;
        }
        Ok(log)
    }

    /// Puts a log whose end is broken aside and begins at number 1. [`super::verify`] goes on finding
    /// the break until the broken file is rotated away.
    pub fn restart_chain(dir: &Path) -> Result<Self, AuditError> {
        shift(dir)?;
        let path = path(dir, 0);
        Ok(Self {
            dir: dir.to_owned(),
            file: current(&path)?,
            bytes: 0,
            file_bytes_max: AUDIT_FILE_BYTES,
            seq: 0,
            prev: NOTHING,
            repaired: 0,
            torn: false,
        })
    }

    /// How many lines were ever written.
    #[must_use]
    pub fn last_number(&self) -> u64 {
        self.seq
    }

    /// Writes lines and returns when they are on the disk. If the disk fails, the first of them may be
    /// on it.
    pub fn append(&mut self, vault: &Vault, records: &[AuditRecord]) -> Result<(), AuditError> {
        let Some(first) = records.first() else {
            return Ok(());
        };
        let repaired = (self.repaired > 0).then(|| AuditRecord {
            event: AuditEvent::LogRepaired {
                bytes: self.repaired,
            },
            ..first.clone()
        });
        // All lines are made first: an event that is no line, or a locked vault, writes nothing.
        let (mut seq, mut prev) = (self.seq, self.prev);
        let mut lines = Vec::with_capacity(records.len() + 1);
        for record in repaired.iter().chain(records) {
            seq += 1;
            let line = record.line(vault, seq, &prev)?;
            prev = crate::crypto::sha256(line.trim_end_matches('\n').as_bytes());
            lines.push((line, prev));
        }
        let mut batch = LineBatch::default();
        for (line, hash) in lines {
            let bytes = (batch.text.len() + line.len()) as u64;
            if self.bytes + bytes > self.file_bytes_max {
                self.write(std::mem::take(&mut batch))?;
                self.rotate()?;
            }
            batch.text.push_str(&line);
            batch.lines += 1;
            batch.hash = hash;
        }
        self.write(batch)?;
        self.repaired = 0;
        Ok(())
    }

    fn write(&mut self, batch: LineBatch) -> Result<(), AuditError> {
        // Half a line would break the chain for everything after it.
        if self.torn {
            let cut = self.file.set_len(self.bytes);
            cut.map_err(|source| io(&path(&self.dir, 0), source))?;
            self.torn = false;
        }
        if batch.lines == 0 {
            return Ok(());
        }
        let written = self
            .file
            .write_all(batch.text.as_bytes())
            // `sync_data` also writes the file's length, which reading it back needs; only times may be stale.
            .and_then(|()| self.file.sync_data());
        if let Err(source) = written {
            self.torn = self.file.set_len(self.bytes).is_err();
            return Err(io(&path(&self.dir, 0), source));
        }
        self.bytes += batch.text.len() as u64;
        self.seq += batch.lines;
        self.prev = batch.hash;
        Ok(())
    }

    fn rotate(&mut self) -> Result<(), AuditError> {
        shift(&self.dir)?;
        self.file = current(&path(&self.dir, 0))?;
        self.bytes = 0;
        Ok(())
    }

    /// The last line of `vault.log.1`, for a current file that is still empty.
    fn end_of_the_one_before(&self) -> Result<(PathBuf, Option<Vec<u8>>), AuditError> {
        let path = path(&self.dir, 1);
        match File::open(&path) {
            Ok(mut file) => {
                let (_, _, last) = end(&mut file).map_err(|source| io(&path, source))?;
                Ok((path, last))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((path, None)),
            Err(source) => Err(io(&path, source)),
        }
    }
}

/// Lines that go into one file by one write.
#[derive(Default)]
struct LineBatch {
    text: String,
    lines: u64,
    /// Of the last line.
    hash: [u8; 32],
}

/// `vault.log`, or an older one.
pub(super) fn path(dir: &Path, age: usize) -> PathBuf {
    match age {
        0 => dir.join("vault.log"),
        age => dir.join(format!("vault.log.{age}")),
    }
}

pub(super) fn io(path: &Path, source: io::Error) -> AuditError {
    AuditError::Io {
        file: path.display().to_string(),
        source,
    }
}

fn broken(path: &Path, why: ChainBreak) -> AuditError {
    AuditError::Broken {
        file: path.display().to_string(),
        line: 0,
        why,
    }
}

fn current(path: &Path) -> Result<File, AuditError> {
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).mode(0o600);
    options.open(path).map_err(|source| io(path, source))
}

/// Makes every file one older; the oldest is gone.
fn shift(dir: &Path) -> Result<(), AuditError> {
    for age in (0..AUDIT_FILES - 1).rev() {
        let from = path(dir, age);
        match fs::rename(&from, path(dir, age + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(&from, error)),
            _ => {}
        }
    }
    // A rename is durable once its directory is.
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(|source| io(dir, source))
}

/// How many bytes are whole lines, how many are not, and the last whole line without its end.
fn end(file: &mut File) -> io::Result<(u64, u64, Option<Vec<u8>>)> {
    let bytes = file.metadata()?.len();
    let window = bytes.min(2 * MAX_AUDIT_LINE_BYTES as u64);
    // Two lines at the most: the last whole one lies within, also behind half of another.
    file.seek(SeekFrom::Start(bytes - window))?;
    let mut tail = Vec::new();
    file.take(window).read_to_end(&mut tail)?;
    let Some(at) = tail.iter().rposition(|byte| *byte == b'\n') else {
        // No end in sight: a first line that was cut, or no log at all.
        let cut = bytes <= MAX_AUDIT_LINE_BYTES as u64;
        return Ok(if cut {
            (0, bytes, None)
        } else {
            (bytes, 0, Some(tail))
        });
    };
    let repaired = (tail.len() - at - 1) as u64;
    tail.truncate(at);
    let begin = tail.iter().rposition(|byte| *byte == b'\n');
    let last = tail.split_off(begin.map_or(0, |at| at + 1));
    Ok((bytes - repaired, repaired, Some(last)))
}
