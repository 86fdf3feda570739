//! Reads the files of the log, oldest line first.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde_json::Value;

use crate::audit::AuditError;
use crate::audit::log::{io as unusable, path};
use crate::limits::{AUDIT_FILES, MAX_AUDIT_LINE_BYTES};

/// A line of the log, not verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditLine {
    /// The line's number.
    pub seq: u64,
    /// Milliseconds since 1970, by the node's clock.
    pub t_ms: u64,
    /// The event's name.
    pub event: String,
    /// The event's detail, as JSON.
    pub detail: String,
}

impl AuditLine {
    fn parse(line: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(line.strip_suffix(b"\n")?).ok()?;
        Some(Self {
            seq: value["seq"].as_u64()?,
            t_ms: value["t"].as_u64()?,
            event: value["ev"].as_str()?.to_owned(),
            detail: value["detail"].to_string(),
        })
    }
}

/// The newest `count` lines, oldest first, up to number `until` if it is given. The lines are not verified: see
/// [`super::verify`]. Bytes that are no line are skipped.
pub fn newest(dir: &Path, until: Option<u64>, count: usize) -> Result<Vec<AuditLine>, AuditError> {
    let mut newest = VecDeque::new();
    each(dir, |at| {
        let line =
            AuditLine::parse(at.line).filter(|line| until.is_none_or(|until| line.seq <= until));
        if let Some(line) = line {
            newest.push_back(line);
            if newest.len() > count {
                newest.pop_front();
            }
        }
        Ok(())
    })?;
    Ok(newest.into())
}

/// The bytes between two newlines, and their position.
pub(super) struct RawLine<'a> {
    pub(super) path: &'a Path,
    /// The age of the file; 0 is the one that is being written.
    pub(super) age: usize,
    /// The number in the file, counted from 1.
    pub(super) number: usize,
    /// The bytes with the newline, unless the line is cut or too long.
    pub(super) line: &'a [u8],
}

/// Passes every line of every file to `take`.
pub(super) fn each(
    dir: &Path,
    mut take: impl FnMut(&RawLine<'_>) -> Result<(), AuditError>,
) -> Result<(), AuditError> {
    for age in (0..AUDIT_FILES).rev() {
        let path = path(dir, age);
        let file = match opened(&path) {
            Ok(file) => file,
            // A young log has fewer files.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(source) => return Err(unusable(&path, source)),
        };
        let mut reader = BufReader::new(file);
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            let most = MAX_AUDIT_LINE_BYTES as u64;
            // A damaged file may have no line ends, so the length of a line is limited.
            let read = (&mut reader).take(most).read_until(b'\n', &mut line);
            if read.map_err(|source| unusable(&path, source))? == 0 {
                break;
            }
            take(&RawLine {
                path: &path,
                age,
                number,
                line: &line,
            })?;
        }
    }
    Ok(())
}

/// Opens a file of the log. The reader may be another user than the writer, with more rights: O_NOFOLLOW refuses
/// links, and O_NONBLOCK keeps a FIFO from blocking (open(2)).
fn opened(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    // The open neither follows a link nor waits at a FIFO (open(2)).
    options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let file = options.open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "it is no file"));
    }
    Ok(file)
}
