//! Some tensors of a file, each proven by its hash in the header, as a container of their own.
//!
//! What is fetched lies end to end in one file beside the target, in the order that it is asked for
//! in and group by group, so its length says how far an attempt got. Short entries are asked for
//! several at a time, and wait in memory for those before them.

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use alknet_core::StreamCode;
use alknet_tensor::tools::{RewriteOptions, select};
use alknet_tensor::{
    AtomicFile, ContainerReader, Hash, HeaderEntry, Meta, ReadAt, TensorErrorCode, TensorKind,
};
use blake3::Hasher;
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use serde_json::{Value, json};

use super::partial_download::PartialDownload;
use super::{ClientError, FetchedHeader, PullResult, TensorClient, expect_size, local, proven};
use crate::limits::GROUP_BYTES;
use crate::part::TensorResponseHead;
use crate::path::TensorFileRef;

/// Entries that are asked for at once.
const AT_ONCE: usize = 16;
/// Their bytes, all together: what a cut loses of them stays below 64 KiB.
const AT_ONCE_BYTES: u64 = 48 << 10;

/// An entry that is wanted, and where it lies among those that are here.
struct SelectedEntry<'m> {
    entry: HeaderEntry<'m>,
    at: u64,
}

impl SelectedEntry<'_> {
    fn range(&self) -> Range<u64> {
        self.at..self.at + self.entry.byte_len()
    }

    /// The request for a part of it.
    fn want(&self, part: Range<u64>) -> Value {
        json!({ "want": "range", "name": self.entry.name(), "range": [part.start, part.end],
                "encoding": "bao16" })
    }
}

impl TensorClient {
    /// Fetches the tensors that `keep` wants, and makes a container of them. Each is proven by the
    /// hash that the header has; where it has none, by the one that the other side says. What is
    /// there from an earlier attempt that was cut is not fetched again.
    ///
    /// # Errors
    /// See [`ClientError`]. `target` is then as it was.
    pub async fn pull_some(
        &self,
        src: &TensorFileRef,
        target: &Path,
        keep: &(dyn Fn(&str) -> bool + Sync),
        told: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<PullResult, ClientError> {
        let header = self.header(src).await?;
        let wanted = wanted(&header.meta, keep);
        if wanted.is_empty() {
            let what = "no tensor of that name there";
            return Err(ClientError::from_code(TensorErrorCode::NotFound, what));
        }
        let total = wanted.last().map_or(0, |last| last.range().end);
        let mut kept = PartialDownload::open(target, &name(&header, &wanted))?;
        let there = kept.len()?.min(total);
        let tell = |at| told(at, total);
        // Of those in front something is here, of the others nothing.
        let (begun, untouched) = wanted.split_at(wanted.partition_point(|one| one.at < there));
        let mut fetched = 0;
        for one in begun {
            let here = self.go_on(src, &header.meta, one, there, &mut kept, &tell);
            fetched += one.entry.byte_len() - here.await?;
        }
        if let Some(one) = untouched.first() {
            kept.cut(one.at)?;
        }
        let mut rest = untouched;
        while !rest.is_empty() {
            let (now, after) = rest.split_at(at_once(rest));
            self.new_ones(src, &header.meta, now, &mut kept, &tell)
                .await?;
            fetched += now.iter().map(|one| one.entry.byte_len()).sum::<u64>();
            rest = after;
        }
        let source = PartialContainer {
            header: &header.bytes,
            wanted: &wanted,
            kept: &kept,
            len: header.meta.file_len(),
        };
        let reader = ContainerReader::open(source, &self.limits).map_err(ClientError::Wrong)?;
        let file = AtomicFile::create(target).map_err(ClientError::Local)?;
        let (written, file) =
            select(&reader, file, RewriteOptions::default(), &keep).map_err(ClientError::Local)?;
        file.commit().map_err(ClientError::Local)?;
        drop(reader);
        // Only now: until the container is on the disk, what was fetched is not lost.
        kept.remove()?;
        Ok(PullResult {
            id: written.id,
            bytes: written.file_len,
            fetched,
        })
    }

    /// Fetches what is not here of an entry of which something is, and says how much was here.
    async fn go_on(
        &self,
        src: &TensorFileRef,
        meta: &Meta,
        one: &SelectedEntry<'_>,
        there: u64,
        kept: &mut PartialDownload,
        told: &(dyn Fn(u64) + Sync),
    ) -> Result<u64, ClientError> {
        let len = one.entry.byte_len();
        let root = match meta.entry_hash(one.entry.name()) {
            Some(hash) => hash,
            None => self.said_hash(src, one).await?,
        };
        let have = there.saturating_sub(one.at).min(len);
        if have == len {
            kept.expect(one.range(), &root)?;
            told(one.range().end);
            return Ok(len);
        }
        // Whole groups were proven before they were written.
        let from = have / GROUP_BYTES * GROUP_BYTES;
        kept.cut(one.at + from)?;
        self.to_disk(src, one, from, Some(root), kept, told).await?;
        kept.expect(one.range(), &root)?;
        Ok(from)
    }

    /// Fetches entries of which nothing is here: a single one, or short ones at once. They are
    /// written in their order, so that the file has no holes.
    async fn new_ones(
        &self,
        src: &TensorFileRef,
        meta: &Meta,
        wanted: &[SelectedEntry<'_>],
        kept: &mut PartialDownload,
        told: &(dyn Fn(u64) + Sync),
    ) -> Result<(), ClientError> {
        if let [one] = wanted {
            let known = meta.entry_hash(one.entry.name());
            return self.to_disk(src, one, 0, known, kept, told).await;
        }
        let mut coming = FuturesOrdered::new();
        for one in wanted {
            let known = meta.entry_hash(one.entry.name());
            coming.push_back(self.to_memory(src, one, known));
        }
        while let Some(come) = coming.next().await {
            let (place, bytes) = come?;
            let shown = kept.shown();
            let written = kept.file().write_all_at(&bytes, place.start);
            written.map_err(local(shown))?;
            told(place.end);
        }
        Ok(())
    }

    async fn to_disk(
        &self,
        src: &TensorFileRef,
        wanted: &SelectedEntry<'_>,
        from: u64,
        known: Option<Hash>,
        kept: &mut PartialDownload,
        told: &(dyn Fn(u64) + Sync),
    ) -> Result<(), ClientError> {
        let shown = kept.shown();
        let file = kept.file();
        let write = |at: u64, bytes: &[u8]| {
            file.write_all_at(bytes, wanted.at + at)
                .map_err(local(&shown))?;
            told(wanted.at + at + bytes.len() as u64);
            Ok(())
        };
        self.entry(src, wanted, from, known, write).await
    }

    async fn to_memory(
        &self,
        src: &TensorFileRef,
        wanted: &SelectedEntry<'_>,
        known: Option<Hash>,
    ) -> Result<(Range<u64>, Vec<u8>), ClientError> {
        let mut bytes = Vec::new();
        let write = |_: u64, group: &[u8]| {
            bytes.extend_from_slice(group);
            Ok(())
        };
        self.entry(src, wanted, 0, known, write).await?;
        Ok((wanted.range(), bytes))
    }

    /// Fetches an entry from a group on; where its hash is not known, by the one that is said.
    async fn entry(
        &self,
        src: &TensorFileRef,
        wanted: &SelectedEntry<'_>,
        from: u64,
        known: Option<Hash>,
        write: impl FnMut(u64, &[u8]) -> Result<(), ClientError>,
    ) -> Result<(), ClientError> {
        let len = wanted.entry.byte_len();
        let (head, recv) = self.fetch(src, wanted.want(from..len)).await?;
        expect_size(&head, len)?;
        let root = known.map_or_else(|| said_by(&head), Ok)?;
        proven(recv, &root, len, &(from..len), write).await
    }

    /// The hash of an entry whose header has none.
    async fn said_hash(
        &self,
        src: &TensorFileRef,
        wanted: &SelectedEntry<'_>,
    ) -> Result<Hash, ClientError> {
        let (head, mut recv) = self.fetch(src, wanted.want(0..0)).await?;
        recv.stop(StreamCode::Cancelled);
        said_by(&head)
    }
}

fn said_by(head: &TensorResponseHead) -> Result<Hash, ClientError> {
    let said = head.b3.as_deref();
    let said = said.and_then(|text| Hash::from_hex(text).ok());
    said.ok_or_else(|| ClientError::from_code(TensorErrorCode::Hash, "no hash to prove it by"))
}

/// The entries of these tensors, the offsets of items among them.
fn wanted<'m>(meta: &'m Meta, keep: &(dyn Fn(&str) -> bool + Sync)) -> Vec<SelectedEntry<'m>> {
    let mut wanted: Vec<SelectedEntry<'m>> = Vec::new();
    let mut at = 0;
    let mut add = |entry: HeaderEntry<'m>| {
        let len = entry.byte_len();
        wanted.push(SelectedEntry { entry, at });
        at += len;
    };
    for tensor in meta.tensors().filter(|tensor| keep(tensor.name())) {
        add(tensor.entry());
        if let TensorKind::Blob(blob) = tensor.kind() {
            add(blob.offsets());
        }
    }
    wanted
}

/// How many of the first of these are fetched at once: a long one alone, short ones together.
fn at_once(wanted: &[SelectedEntry<'_>]) -> usize {
    let mut bytes = 0;
    let fits = |one: &&SelectedEntry<'_>| {
        bytes += one.entry.byte_len();
        bytes <= AT_ONCE_BYTES
    };
    let short = wanted.iter().take(AT_ONCE).take_while(fits).count();
    short.max(1)
}

/// What these entries of this file are called together.
fn name(header: &FetchedHeader, wanted: &[SelectedEntry<'_>]) -> Hash {
    let mut hasher = Hasher::new();
    hasher.update(header.id.0.as_bytes());
    // Which entries are wanted says where each of them lies in the file: another choice is another file.
    for one in wanted {
        hasher.update(&one.entry.file_range().start.to_le_bytes());
    }
    hasher.finalize()
}

/// A file of which the header is here, and some entries, which lie elsewhere.
struct PartialContainer<'g, 'm> {
    header: &'g [u8],
    wanted: &'g [SelectedEntry<'m>],
    kept: &'g PartialDownload,
    len: u64,
}

impl ReadAt for PartialContainer<'_, '_> {
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
        let within = |one: &&SelectedEntry<'_>| {
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
