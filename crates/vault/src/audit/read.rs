//! Reading the files of the log, oldest line first.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde_json::Value;

use crate::audit::AuditError;
use crate::audit::log::{io as unusable, path};
use crate::limits::{AUDIT_FILES, MAX_AUDIT_LINE_BYTES};

/// A line of the log, as it says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditLine {
    /// Its number.
    pub seq: u64,
    /// Milliseconds since 1970, by the clock of the node.
    pub t_ms: u64,
    /// What happened.
    pub event: String,
    /// More of it, as JSON.
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

/// The newest `count` lines, oldest first; those up to a number where `until` is one. Believes them: see
/// [`super::verify`]. What is no line is passed over.
pub fn newest(dir: &Path, until: Option<u64>, count: usize) -> Result<Vec<AuditLine>, AuditError> {
    let mut kept = VecDeque::new();
    each(dir, |at| {
        let line =
            AuditLine::parse(at.line).filter(|line| until.is_none_or(|until| line.seq <= until));
        if let Some(line) = line {
            kept.push_back(line);
            if kept.len() > count {
                kept.pop_front();
            }
        }
        Ok(())
    })?;
    Ok(kept.into())
}

/// Bytes that are a line, or would be, and where they stand.
pub(super) struct RawLine<'a> {
    pub(super) path: &'a Path,
    /// How old the file is; 0 is the one that is written.
    pub(super) age: usize,
    /// Counted from 1.
    pub(super) number: usize,
    /// With its end, unless it is cut off or too long.
    pub(super) line: &'a [u8],
}

/// Hands out every line of every file.
pub(super) fn each(
    dir: &Path,
    mut take: impl FnMut(&RawLine<'_>) -> Result<(), AuditError>,
) -> Result<(), AuditError> {
    for age in (0..AUDIT_FILES).rev() {
        let path = path(dir, age);
        let file = match opened(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(source) => return Err(unusable(&path, source)),
        };
        let mut reader = BufReader::new(file);
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            let most = MAX_AUDIT_LINE_BYTES as u64;
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

/// Opens a file of the log. The reader may be another user than the writer, and have more rights: links
/// are not followed, and opening does not wait for what is no file.
fn opened(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let file = options.open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "it is no file"));
    }
    Ok(file)
}
