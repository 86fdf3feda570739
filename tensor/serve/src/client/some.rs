//! Some tensors of a file, each proven by its hash in the header, as a container of their own.
//!
//! What is fetched lies end to end in one file beside the target, in the order that it is asked for
//! in and group by group, so its length says how far an attempt got.

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use alknet_core::StreamCode;
use alknet_tensor::tools::{Options, select};
use alknet_tensor::{AtomicFile, Code, Entry, Hash, Kind, Meta, ReadAt, Reader};
use blake3::Hasher;
use serde_json::{Value, json};

use super::kept::Kept;
use super::{Client, ClientError, Header, Pulled, expect_size, local, proven};
use crate::limits::GROUP_BYTES;
use crate::part::Head;
use crate::path::Src;

/// An entry that is wanted, and where it lies among those that are here.
struct Wanted<'m> {
    entry: Entry<'m>,
    at: u64,
}

impl Wanted<'_> {
    fn range(&self) -> Range<u64> {
        self.at..self.at + self.entry.byte_len()
    }

    /// The request for a part of it.
    fn want(&self, part: Range<u64>) -> Value {
        json!({ "want": "range", "name": self.entry.name(), "range": [part.start, part.end],
                "encoding": "bao16" })
    }
}

impl Client {
    /// Fetches the tensors that `keep` wants, and makes a container of them. Each is proven by the
    /// hash that the header has; where it has none, by the one that the other side says. What is
    /// there from an earlier attempt that was cut is not fetched again.
    ///
    /// # Errors
    /// See [`ClientError`]. `target` is then as it was.
    pub async fn pull_some(
        &self,
        src: &Src,
        target: &Path,
        keep: &(dyn Fn(&str) -> bool + Sync),
        told: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<Pulled, ClientError> {
        let header = self.header(src).await?;
        let wanted = wanted(&header.meta, keep);
        if wanted.is_empty() {
            let what = "no tensor of that name there";
            return Err(ClientError::wrong(Code::NotFound, what));
        }
        let total = wanted.last().map_or(0, |last| last.range().end);
        let mut kept = Kept::open(target, &name(&header, &wanted))?;
        let there = kept.len()?.min(total);
        let mut fetched = 0;
        for one in &wanted {
            let len = one.entry.byte_len();
            // Whole groups were proven before they were written; the last one of an entry is
            // whole where the entry is.
            let have = there.saturating_sub(one.at).min(len);
            let from = match have == len {
                true => len,
                false => have / GROUP_BYTES * GROUP_BYTES,
            };
            let known = match header.meta.entry_hash(one.entry.name()) {
                None if have > 0 => Some(self.said_hash(src, one).await?),
                known => known,
            };
            if let Some(hash) = known.filter(|_| have > 0 && have == len) {
                kept.expect(one.range(), &hash)?;
                told(one.range().end, total);
                continue;
            }
            kept.cut(one.at + from)?;
            let tell = |at| told(one.at + at, total);
            let root = self.entry(src, one, from, known, &mut kept, &tell).await?;
            fetched += len - from;
            if from > 0 {
                kept.expect(one.range(), &root)?;
            }
        }
        let source = Gathered {
            header: &header.bytes,
            wanted: &wanted,
            kept: &kept,
            len: header.meta.file_len(),
        };
        let reader = Reader::open(source, &self.limits).map_err(ClientError::Wrong)?;
        let file = AtomicFile::create(target).map_err(ClientError::Local)?;
        let (written, file) =
            select(&reader, file, Options::default(), &keep).map_err(ClientError::Local)?;
        file.commit().map_err(ClientError::Local)?;
        drop(reader);
        kept.remove()?;
        Ok(Pulled {
            id: written.id,
            bytes: written.file_len,
            fetched,
        })
    }

    /// Fetches an entry from a group on, and says by which hash it was proven.
    async fn entry(
        &self,
        src: &Src,
        wanted: &Wanted<'_>,
        from: u64,
        known: Option<Hash>,
        kept: &mut Kept,
        told: &(dyn Fn(u64) + Sync),
    ) -> Result<Hash, ClientError> {
        let len = wanted.entry.byte_len();
        let (head, recv) = self.fetch(src, wanted.want(from..len)).await?;
        expect_size(&head, len)?;
        let root = known.map_or_else(|| said_by(&head), Ok)?;
        let shown = kept.shown();
        let file = kept.file();
        let write = |at: u64, bytes: &[u8]| {
            file.write_all_at(bytes, wanted.at + at)
                .map_err(local(&shown))?;
            told(at + bytes.len() as u64);
            Ok(())
        };
        proven(recv, &root, len, &(from..len), write).await?;
        Ok(root)
    }

    /// The hash of an entry whose header has none.
    async fn said_hash(&self, src: &Src, wanted: &Wanted<'_>) -> Result<Hash, ClientError> {
        let (head, mut recv) = self.fetch(src, wanted.want(0..0)).await?;
        recv.stop(StreamCode::Cancelled);
        said_by(&head)
    }
}

fn said_by(head: &Head) -> Result<Hash, ClientError> {
    let said = head.b3.as_deref();
    let said = said.and_then(|text| Hash::from_hex(text).ok());
    said.ok_or_else(|| ClientError::wrong(Code::Hash, "no hash to prove it by"))
}

/// The entries of these tensors, the offsets of items among them.
fn wanted<'m>(meta: &'m Meta, keep: &(dyn Fn(&str) -> bool + Sync)) -> Vec<Wanted<'m>> {
    let mut wanted: Vec<Wanted<'m>> = Vec::new();
    let mut at = 0;
    let mut add = |entry: Entry<'m>| {
        let len = entry.byte_len();
        wanted.push(Wanted { entry, at });
        at += len;
    };
    for tensor in meta.tensors().filter(|tensor| keep(tensor.name())) {
        add(tensor.entry());
        if let Kind::Blob(blob) = tensor.kind() {
            add(blob.offsets());
        }
    }
    wanted
}

/// What these entries of this file are called together.
fn name(header: &Header, wanted: &[Wanted<'_>]) -> Hash {
    let mut hasher = Hasher::new();
    hasher.update(header.id.0.as_bytes());
    for one in wanted {
        hasher.update(&one.entry.file_range().start.to_le_bytes());
    }
    hasher.finalize()
}

/// A file of which the header is here, and some entries, which lie elsewhere.
struct Gathered<'g, 'm> {
    header: &'g [u8],
    wanted: &'g [Wanted<'m>],
    kept: &'g Kept,
    len: u64,
}

impl ReadAt for Gathered<'_, '_> {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.saturating_add(buffer.len() as u64);
        if end <= self.header.len() as u64 {
            // Both lie within what is in memory.
            buffer.copy_from_slice(&self.header[offset as usize..end as usize]);
            return Ok(());
        }
        let within = |one: &&Wanted<'_>| {
            let range = one.entry.file_range();
            range.start <= offset && end <= range.end
        };
        let Some(one) = self.wanted.iter().find(within) else {
            return Err(io::Error::other("bytes that were not fetched"));
        };
        let at = one.at + (offset - one.entry.file_range().start);
        self.kept.read_at(buffer, at)
    }
}
