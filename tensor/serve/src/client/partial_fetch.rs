//! Fetches some tensors of a file, each verified by its hash in the header, as a container of their own.
//!
//! The fetched entries lie end to end in one file beside the target, in the order in which the client requests them,
//! so its length says how far an attempt got. The client requests several short entries at a time, and keeps them in
//! memory until those before them are written.

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

/// Entries that the client requests at once.
const AT_ONCE: usize = 16;
/// Bytes of entries requested at once: a cut connection loses less than 64 KiB of them.
const AT_ONCE_BYTES: u64 = 48 << 10;

/// An entry that the caller selected, and its position in the partial download.
struct SelectedEntry<'m> {
    entry: HeaderEntry<'m>,
    at: u64,
}

impl SelectedEntry<'_> {
    fn range(&self) -> Range<u64> {
        self.at..self.at + self.entry.byte_len()
    }

    /// The request for a part of the entry.
    fn want(&self, part: Range<u64>) -> Value {
        json!({ "want": "range", "name": self.entry.name(), "range": [part.start, part.end],
                "encoding": "bao16" })
    }
}

impl TensorClient {
    /// Fetches the tensors for which `keep` returns true, and makes a container of them. Each is verified by its hash
    /// in the header, or, if the header has none, by the hash that the server states. Bytes of an earlier attempt are
    /// not fetched again.
    ///
    /// # Errors
    /// See [`ClientError`]. `target` is then unchanged.
    pub async fn pull_some(
        &self,
        src: &TensorFileRef,
        target: &Path,
        keep: &(dyn Fn(&str) -> bool + Sync),
        on_progress: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<PullResult, ClientError> {
        let header = self.header(src).await?;
        let wanted = wanted(&header.meta, keep);
        if wanted.is_empty() {
            let what = "no tensor of that name there";
            return Err(ClientError::from_code(TensorErrorCode::NotFound, what));
        }
        let total = wanted.last().map_or(0, |last| last.range().end);
        let mut partial = PartialDownload::open(target, &name(&header, &wanted))?;
        let there = partial.len()?.min(total);
        let tell = |at| on_progress(at, total);
        // Of the first entries some bytes are here, of the others none.
        let (begun, untouched) = wanted.split_at(wanted.partition_point(|one| one.at < there));
        let mut fetched = 0;
        for one in begun {
            let here = self.go_on(src, &header.meta, one, there, &mut partial, &tell);
            fetched += one.entry.byte_len() - here.await?;
        }
        if let Some(one) = untouched.first() {
            partial.cut(one.at)?;
        }
        let mut rest = untouched;
        while !rest.is_empty() {
            let (now, after) = rest.split_at(at_once(rest));
            self.new_ones(src, &header.meta, now, &mut partial, &tell)
                .await?;
            fetched += now.iter().map(|one| one.entry.byte_len()).sum::<u64>();
            rest = after;
        }
        let source = PartialContainer {
            header: &header.bytes,
            wanted: &wanted,
            partial: &partial,
            len: header.meta.file_len(),
        };
        let reader = ContainerReader::open(source, &self.limits).map_err(ClientError::Wrong)?;
        // The target appears only when the container is complete.
        let file = AtomicFile::create(target).map_err(ClientError::Local)?;
        let (written, file) =
            select(&reader, file, RewriteOptions::default(), &keep).map_err(ClientError::Local)?;
        file.commit().map_err(ClientError::Local)?;
        drop(reader);
        // Until the container is on the disk, the partial download is what a next attempt continues.
        partial.remove()?;
        Ok(PullResult {
            id: written.id,
            bytes: written.file_len,
            fetched,
        })
    }

    /// Fetches the rest of an entry that is partly here, and returns how many of its bytes were here.
    async fn go_on(
        &self,
        src: &TensorFileRef,
        meta: &Meta,
        one: &SelectedEntry<'_>,
        there: u64,
        partial: &mut PartialDownload,
        on_progress: &(dyn Fn(u64) + Sync),
    ) -> Result<u64, ClientError> {
        let len = one.entry.byte_len();
        let root = match meta.entry_hash(one.entry.name()) {
            Some(hash) => hash,
            None => self.stated_hash(src, one).await?,
        };
        let have = there.saturating_sub(one.at).min(len);
        if have == len {
            partial.expect(one.range(), &root)?;
            on_progress(one.range().end);
            return Ok(len);
        }
        // The earlier attempt verified each whole group before it wrote it; a part of a group is fetched again.
        let from = have / GROUP_BYTES * GROUP_BYTES;
        partial.cut(one.at + from)?;
        self.to_disk(src, one, from, Some(root), partial, on_progress)
            .await?;
        // The disk may have changed what an earlier attempt wrote, so the whole entry is hashed once more.
        partial.expect(one.range(), &root)?;
        Ok(from)
    }

    /// Fetches entries of which nothing is here: a single long one, or several short ones at once. They are written
    /// in order, so the file has no holes.
    async fn new_ones(
        &self,
        src: &TensorFileRef,
        meta: &Meta,
        wanted: &[SelectedEntry<'_>],
        partial: &mut PartialDownload,
        on_progress: &(dyn Fn(u64) + Sync),
    ) -> Result<(), ClientError> {
        if let [one] = wanted {
            let known = meta.entry_hash(one.entry.name());
            return self.to_disk(src, one, 0, known, partial, on_progress).await;
        }
        let mut coming = FuturesOrdered::new();
        for one in wanted {
            let known = meta.entry_hash(one.entry.name());
            coming.push_back(self.to_memory(src, one, known));
        }
        while let Some(come) = coming.next().await {
            let (place, bytes) = come?;
            let shown = partial.shown();
            let written = partial.file().write_all_at(&bytes, place.start);
            written.map_err(local(shown))?;
            on_progress(place.end);
        }
        Ok(())
    }

    async fn to_disk(
        &self,
        src: &TensorFileRef,
        wanted: &SelectedEntry<'_>,
        from: u64,
        known: Option<Hash>,
        partial: &mut PartialDownload,
        on_progress: &(dyn Fn(u64) + Sync),
    ) -> Result<(), ClientError> {
        let shown = partial.shown();
        let file = partial.file();
        let write = |at: u64, bytes: &[u8]| {
            file.write_all_at(bytes, wanted.at + at)
                .map_err(local(&shown))?;
            on_progress(wanted.at + at + bytes.len() as u64);
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

    /// Fetches an entry from a group on, verified by `known`, or by the hash that the server states if there is no
    /// known one.
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
        let root = known.map_or_else(|| hash_stated_by(&head), Ok)?;
        proven(recv, &root, len, &(from..len), write).await
    }

    /// The hash that the server states for an entry without one in the header.
    async fn stated_hash(
        &self,
        src: &TensorFileRef,
        wanted: &SelectedEntry<'_>,
    ) -> Result<Hash, ClientError> {
        let (head, mut recv) = self.fetch(src, wanted.want(0..0)).await?;
        // The head alone has the hash, so the server need not send content.
        recv.stop(StreamCode::Cancelled);
        hash_stated_by(&head)
    }
}

fn hash_stated_by(head: &TensorResponseHead) -> Result<Hash, ClientError> {
    let stated = head.b3.as_deref();
    let stated = stated.and_then(|text| Hash::from_hex(text).ok());
    stated.ok_or_else(|| ClientError::from_code(TensorErrorCode::Hash, "no hash to prove it by"))
}

/// The entries of the selected tensors, with the offsets of their items.
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

/// How many of the first entries the client requests at once: a long one alone, short ones together.
fn at_once(wanted: &[SelectedEntry<'_>]) -> usize {
    let mut bytes = 0;
    let is_short = |one: &&SelectedEntry<'_>| {
        bytes += one.entry.byte_len();
        bytes <= AT_ONCE_BYTES
    };
    let short = wanted.iter().take(AT_ONCE).take_while(is_short).count();
    short.max(1)
}

/// A hash that names this selection of entries of this file.
fn name(header: &FetchedHeader, wanted: &[SelectedEntry<'_>]) -> Hash {
    let mut hasher = Hasher::new();
    // The id makes a changed file on the server a new download.
    hasher.update(header.id.0.as_bytes());
    // The selection decides where each entry lies in the partial download, so another selection needs another file.
    for one in wanted {
        hasher.update(&one.entry.file_range().start.to_le_bytes());
    }
    hasher.finalize()
}

/// A container whose header is in memory and whose selected entries lie in the partial download.
struct PartialContainer<'g, 'm> {
    header: &'g [u8],
    wanted: &'g [SelectedEntry<'m>],
    partial: &'g PartialDownload,
    len: u64,
}

impl ReadAt for PartialContainer<'_, '_> {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.saturating_add(buffer.len() as u64);
        if end <= self.header.len() as u64 {
            // Both ends lie within the header in memory, so the casts keep their values.
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
        self.partial.read_at(buffer, at)
    }
}
