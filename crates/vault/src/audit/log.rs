//! Writes the log: one file that grows to 8 MiB, and seven older ones.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::audit::line::{ChainPosition, NOTHING};
use crate::audit::{AuditError, AuditEvent, AuditRecord, ChainBreak};
use crate::limits::{AUDIT_FILE_BYTES, AUDIT_FILES, MAX_AUDIT_LINE_BYTES, MAX_PENDING_EVENTS};
use crate::vault::Vault;

/// Events that wait because no line can be written while the vault is locked.
///
/// The oldest events stay, because they tell how a problem began; the number of dropped ones is logged.
#[derive(Debug, Default)]
pub struct UnwrittenEvents {
    records: Vec<AuditRecord>,
    dropped: u64,
}

impl UnwrittenEvents {
    /// Keeps an event, or counts it as dropped.
    pub fn push(&mut self, record: AuditRecord) {
        if self.records.len() < MAX_PENDING_EVENTS {
            self.records.push(record);
        } else {
            // A locked vault may stay locked for weeks, so the memory for events is bounded.
            self.dropped += 1;
        }
    }

    /// The number of events that wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether no event waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Writes the waiting events. They stay until they are on the disk.
    pub fn flush(&mut self, log: &mut AuditLog, vault: &Vault) -> Result<(), AuditError> {
        // The events are copied, so that a failure of the disk leaves them for a later attempt.
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

/// The files of the log, open at the end of the newest.
#[derive(Debug)]
pub struct AuditLog {
    dir: PathBuf,
    file: File,
    bytes: u64,
    file_bytes_max: u64,
    seq: u64,
    prev: [u8; 32],
    /// Bytes of a half line that was removed, until that is logged.
    repaired: u64,
    /// Whether a failed write left bytes after `bytes` that could not be removed yet.
    pub(super) torn: bool,
}

impl AuditLog {
    /// Continues the log in `dir`, or begins one. Half a line at its end, which a power cut leaves, is removed and
    /// logged. The chain is not verified, see [`super::verify`].
    pub fn open(dir: &Path) -> Result<Self, AuditError> {
        Self::open_with(dir, AUDIT_FILE_BYTES)
    }

    /// Like `open`, with files of another size.
    pub(super) fn open_with(dir: &Path, file_bytes_max: u64) -> Result<Self, AuditError> {
        let path = path(dir, 0);
        let mut file = current(&path)?;
        let (whole, repaired, last) = end(&mut file).map_err(|source| io(&path, source))?;
        if repaired > 0 {
            file.set_len(whole).map_err(|source| io(&path, source))?;
        }
        let mut log = Self {
            dir: dir.to_owned(),
            file,
            bytes: whole,
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
            let position = ChainPosition::parse(&line).map_err(|why| broken(&name, why))?;
            log.seq = position.seq;
            log.prev = position.hash;
        }
        Ok(log)
    }

    /// Sets a log with a broken end aside and begins another at number 1. [`super::verify`] finds the break until the
    /// broken file is rotated away.
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

    /// The number of lines that were ever written.
    #[must_use]
    pub fn last_number(&self) -> u64 {
        self.seq
    }

    /// Writes lines and returns when they are on the disk. If the disk fails, some of the first lines may be on it.
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
        // All lines are made before any is written, so an event that is too long, or a locked vault, writes nothing.
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
            // The lines before this one go into the full file, this one into the next.
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
        // Half a line would break the chain for all lines after it.
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
            // `sync_data` also writes the file's length, which reading it back needs; only the times may be stale
            // (fdatasync(2)).
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

    /// The last line of `vault.log.1`, if the current file is still empty.
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

/// Lines that one write appends to one file.
#[derive(Default)]
struct LineBatch {
    text: String,
    lines: u64,
    /// The hash of the last line.
    hash: [u8; 32],
}

/// The path of `vault.log`, or of an older file.
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

/// Renames every file to the next older name; the oldest is overwritten.
fn shift(dir: &Path) -> Result<(), AuditError> {
    for age in (0..AUDIT_FILES - 1).rev() {
        let from = path(dir, age);
        match fs::rename(&from, path(dir, age + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(&from, error)),
            _ => {}
        }
    }
    // A rename is durable once its directory is synced (fsync(2)).
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(|source| io(dir, source))
}

/// The bytes of whole lines, the bytes of a half line, and the last whole line without its newline.
fn end(file: &mut File) -> io::Result<(u64, u64, Option<Vec<u8>>)> {
    let bytes = file.metadata()?.len();
    let window = bytes.min(2 * MAX_AUDIT_LINE_BYTES as u64);
    // Two lines at most: the last whole line lies within them, even before half of another.
    file.seek(SeekFrom::Start(bytes - window))?;
    let mut tail = Vec::new();
    file.take(window).read_to_end(&mut tail)?;
    let Some(at) = tail.iter().rposition(|byte| *byte == b'\n') else {
        // Without a newline, a short file is a first line that was cut, and a long one is no log.
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
