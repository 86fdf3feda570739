//! The other end: fetches files and proves what it is sent.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use alknet_core::{Connection, RecvStream, SendStream, StreamCode, StreamError};
use alknet_tensor::tools::{Options, select};
use alknet_tensor::{
    AtomicFile, Code, Entry, FileId, Hash, Kind, Limits, Meta, PREFIX_BYTES, Reader, TensorError,
    header_len,
};
use blake3::Hasher;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use thiserror::Error;
use tokio::io::{AsyncReadExt, BufReader};

use crate::limits::{BLOCK_BYTES, GROUP_BYTES};
use crate::part::Head;
use crate::path::Src;
use crate::tree::{Expected, PAIR_BYTES, Step, Steps};
use crate::wire::{self, Unread};

/// Digits of the id in the name of a file that is not whole yet.
const PART_DIGITS: usize = 16;

/// Why something was not fetched or stored.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ClientError {
    /// A file of this computer.
    #[error("{}", .0.what())]
    Local(TensorError),
    /// The other side says so.
    #[error("{msg}")]
    Refused {
        /// Its code.
        code: String,
        /// What it says.
        msg: String,
    },
    /// The connection or the stream ended.
    #[error("the transfer was cut: {0}; run it again to go on")]
    Stream(std::io::Error),
    /// What came is not what had to come.
    #[error("{}", .0.what())]
    Wrong(TensorError),
}

impl ClientError {
    /// The stable code.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::Local(error) | Self::Wrong(error) => error.code().as_str(),
            Self::Refused { code, .. } => code,
            Self::Stream(_) => Code::Io.as_str(),
        }
    }

    fn wrong(code: Code, what: impl Into<String>) -> Self {
        Self::Wrong(TensorError::new(code, what))
    }
}

impl From<StreamError> for ClientError {
    fn from(error: StreamError) -> Self {
        Self::Stream(error.into())
    }
}

fn local(what: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> ClientError {
    let what = what.to_string();
    move |error| ClientError::Local(TensorError::io(what, error))
}

/// What was fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// The file that was written.
    pub id: FileId,
    /// Its bytes.
    pub bytes: u64,
    /// Bytes of content that travelled for it.
    pub fetched: u64,
}

/// Fetches over one connection. What is `told` hears how many bytes of how many are here.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
    limits: Limits,
}

/// A header that was fetched.
struct Header {
    bytes: Vec<u8>,
    meta: Meta,
    id: FileId,
}

#[derive(Deserialize)]
struct Answer {
    ok: bool,
    #[serde(default)]
    code: String,
    #[serde(default)]
    msg: String,
}

impl Client {
    /// Over a connection that speaks [`ALPN`](crate::ALPN).
    #[must_use]
    pub fn new(connection: Connection) -> Self {
        Self {
            connection,
            limits: Limits::NETWORK,
        }
    }

    /// Fetches a whole file. What of it is there from an earlier attempt that was cut is not
    /// fetched again; what is not proven by the id is not written.
    ///
    /// Where the file is asked for by a path, the other side says which id that is.
    ///
    /// # Errors
    /// See [`ClientError`]. `target` is then as it was.
    pub async fn pull(
        &self,
        src: &Src,
        target: &Path,
        told: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<Pulled, ClientError> {
        let header = self.header(src).await?;
        let (id, len) = (header.id, header.meta.file_len());
        let path = part_path(target, &id);
        let mut part = open_part(&path)?;
        let there = part.metadata().map_err(local(path.display()))?.len();
        // Whole groups were proven before they were written.
        let from = there.min(len) / GROUP_BYTES * GROUP_BYTES;
        part.set_len(from).map_err(local(path.display()))?;
        part.seek(SeekFrom::End(0)).map_err(local(path.display()))?;
        let want = json!({ "want": "range", "range": [from, len], "encoding": "bao16" });
        if from < len || len == 0 {
            let (head, recv) = self.fetch(src, want).await?;
            expect_size(&head, len)?;
            let write = |at: u64, bytes: &[u8]| {
                part.write_all(bytes).map_err(local(path.display()))?;
                told(at + bytes.len() as u64, len);
                Ok(())
            };
            proven(recv, &id.0, len, &(from..len), write).await?;
        }
        finish(&mut part, &path, target, id)?;
        Ok(Pulled {
            id,
            bytes: len,
            fetched: len - from,
        })
    }

    /// Fetches the tensors that `keep` wants, and makes a container of them. Each is proven by the
    /// hash that the header has; where it has none, by the one that the other side says.
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
        let meta = &header.meta;
        let mut entries = Vec::new();
        for tensor in meta.tensors().filter(|tensor| keep(tensor.name())) {
            entries.push(tensor.entry());
            if let Kind::Blob(blob) = tensor.kind() {
                entries.push(blob.offsets());
            }
        }
        if entries.is_empty() {
            return Err(ClientError::wrong(
                Code::NotFound,
                "no tensor of that name there",
            ));
        }
        let total = entries.iter().map(Entry::byte_len).sum();
        let folder = folder(target);
        let hole = tempfile::tempfile_in(folder).map_err(local(folder.display()))?;
        hole.set_len(meta.file_len()).map_err(local("make room"))?;
        hole.write_all_at(&header.bytes, 0)
            .map_err(local("write a header"))?;
        let mut fetched = 0;
        for entry in &entries {
            let before = fetched;
            self.entry(src, meta, entry, &hole, &|at| told(before + at, total))
                .await?;
            fetched += entry.byte_len();
        }
        let reader = Reader::open(hole, &self.limits).map_err(ClientError::Wrong)?;
        let file = AtomicFile::create(target).map_err(ClientError::Local)?;
        let (written, file) =
            select(&reader, file, Options::default(), &keep).map_err(ClientError::Local)?;
        file.commit().map_err(ClientError::Local)?;
        Ok(Pulled {
            id: written.id,
            bytes: written.file_len,
            fetched,
        })
    }

    /// Stores a file there, and has the path lead to it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn put(
        &self,
        mut source: impl Read,
        path: Option<&str>,
        told: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<FileId, ClientError> {
        let mut header = vec![0; PREFIX_BYTES as usize];
        source
            .read_exact(&mut header)
            .map_err(local("read a header"))?;
        let len = header_len(&header, u64::MAX, &self.limits).map_err(ClientError::Local)?;
        let read = source.by_ref().take(len).read_to_end(&mut header);
        read.map_err(local("read a header"))?;
        let text = header.get(PREFIX_BYTES as usize..).unwrap_or_default();
        let meta = Meta::of_header(text, &self.limits).map_err(ClientError::Local)?;
        let total = meta.file_len();
        let mut request = json!({ "v": 1, "want": "put" });
        if let Some(path) = path {
            request["path"] = path.into();
        }
        let (mut send, mut recv) = self.connection.open_bi().await?;
        wire::write(&mut send, &request).await?;
        // A refusal may come before all of it has gone.
        let mut done = header.len() as u64;
        let began = send.write_chunk(Bytes::from(header)).await;
        answer(&mut recv).await?;
        began?;
        let mut piece = vec![0; BLOCK_BYTES];
        loop {
            let read = source.read(&mut piece).map_err(local("read a file"))?;
            if read == 0 {
                break;
            }
            if send
                .write_chunk(Bytes::copy_from_slice(&piece[..read]))
                .await
                .is_err()
            {
                break;
            }
            done += read as u64;
            told(done, total);
        }
        // Where the stream was stopped, the answer says why.
        let _ = send.finish();
        let head = answer(&mut recv).await?;
        id_of(&head)
    }

    /// Fetches a part as it is, at most `most` bytes.
    ///
    /// # Errors
    /// See [`ClientError`]; `E_LIMIT` where it is longer.
    pub async fn raw(&self, src: &Src, want: Value, most: u64) -> Result<Vec<u8>, ClientError> {
        let (head, mut recv) = self.fetch(src, want).await?;
        if head.len > most {
            let what = format!("{} bytes, {most} are taken", head.len);
            return Err(ClientError::wrong(Code::Limit, what));
        }
        let mut bytes = Vec::new();
        let read = (&mut recv).take(head.len).read_to_end(&mut bytes).await;
        read.map_err(ClientError::Stream)?;
        if (bytes.len() as u64) < head.len {
            let ended = std::io::ErrorKind::UnexpectedEof;
            return Err(ClientError::Stream(ended.into()));
        }
        Ok(bytes)
    }

    async fn header(&self, src: &Src) -> Result<Header, ClientError> {
        let most = self.limits.header_bytes + PREFIX_BYTES;
        let (head, mut recv) = self.fetch(src, json!({ "want": "header" })).await?;
        if head.len > most {
            let what = format!("a header of {} bytes", head.len);
            return Err(ClientError::wrong(Code::Limit, what));
        }
        let mut bytes = Vec::new();
        let read = (&mut recv).take(head.len).read_to_end(&mut bytes).await;
        read.map_err(ClientError::Stream)?;
        let len = header_len(&bytes, bytes.len() as u64, &self.limits);
        let len = len.map_err(ClientError::Wrong)?;
        let text = bytes.get(PREFIX_BYTES as usize..).unwrap_or_default();
        if text.len() as u64 != len {
            return Err(ClientError::wrong(Code::Header, "the header is not whole"));
        }
        let meta = Meta::of_header(text, &self.limits).map_err(ClientError::Wrong)?;
        let id = match src {
            Src::Id(id) => *id,
            Src::Path(_) => id_of(&head)?,
        };
        Ok(Header { bytes, meta, id })
    }

    /// Fetches an entry into its place in a file.
    async fn entry(
        &self,
        src: &Src,
        meta: &Meta,
        entry: &Entry<'_>,
        file: &File,
        told: &(dyn Fn(u64) + Sync),
    ) -> Result<(), ClientError> {
        let want = json!({ "want": "tensor", "name": entry.name(), "encoding": "bao16" });
        let (head, recv) = self.fetch(src, want).await?;
        let len = entry.byte_len();
        expect_size(&head, len)?;
        let root = match meta.entry_hash(entry.name()) {
            Some(hash) => hash,
            None => {
                let said = head
                    .b3
                    .as_deref()
                    .and_then(|text| Hash::from_hex(text).ok());
                said.ok_or_else(|| ClientError::wrong(Code::Hash, "no hash to prove it by"))?
            }
        };
        let start = entry.file_range().start;
        let write = |at: u64, bytes: &[u8]| {
            file.write_all_at(bytes, start + at)
                .map_err(local("write a tensor"))?;
            told(at + bytes.len() as u64);
            Ok(())
        };
        proven(recv, &root, len, &(0..len), write).await
    }

    async fn fetch(&self, src: &Src, mut want: Value) -> Result<(Head, RecvStream), ClientError> {
        want["v"] = 1.into();
        want["src"] = match src {
            Src::Id(id) => json!({ "id": id.to_string() }),
            Src::Path(path) => json!({ "path": path.as_str() }),
        };
        let (mut send, mut recv) = self.connection.open_bi().await?;
        ask(&mut send, &want).await?;
        let head = answer(&mut recv).await?;
        Ok((head, recv))
    }
}

async fn ask(send: &mut SendStream, request: &Value) -> Result<(), ClientError> {
    wire::write(send, request).await?;
    Ok(send.finish()?)
}

/// Reads what the other side says of a request.
async fn answer(recv: &mut RecvStream) -> Result<Head, ClientError> {
    let text = wire::read(recv).await.map_err(|unread| match unread {
        Unread::Long(len) => ClientError::wrong(Code::Limit, format!("an answer of {len} bytes")),
        Unread::Gone(error) => ClientError::Stream(error),
    })?;
    let odd = |error: serde_json::Error| ClientError::wrong(Code::Json, format!("answer: {error}"));
    let said: Answer = serde_json::from_slice(&text).map_err(odd)?;
    if !said.ok {
        let (code, msg) = (said.code, said.msg);
        return Err(ClientError::Refused { code, msg });
    }
    // Puts are answered without a length.
    serde_json::from_slice(&text).map_err(odd)
}

/// Reads an encoded part; nothing is handed on before it is proven.
async fn proven(
    recv: RecvStream,
    root: &Hash,
    len: u64,
    part: &Range<u64>,
    mut write: impl FnMut(u64, &[u8]) -> Result<(), ClientError>,
) -> Result<(), ClientError> {
    // Pairs are short, and taken one by one.
    let mut recv = BufReader::with_capacity(BLOCK_BYTES, recv);
    let mut expected = Expected::root(root);
    let mut bytes = vec![0; GROUP_BYTES as usize];
    for step in Steps::new(len, part) {
        let good = match step {
            Step::Pair {
                root, left, right, ..
            } => {
                let mut pair = [0; PAIR_BYTES];
                recv.read_exact(&mut pair)
                    .await
                    .map_err(ClientError::Stream)?;
                expected.pair(&pair, (root, left, right))
            }
            Step::Group { start, len, root } => {
                let group = &mut bytes[..len];
                recv.read_exact(group).await.map_err(ClientError::Stream)?;
                let good = expected.group(start, group, root);
                if good {
                    write(start, group)?;
                }
                good
            }
        };
        if !good {
            recv.get_mut().stop(StreamCode::Protocol);
            let what = "bytes came that the hash does not vouch for";
            return Err(ClientError::wrong(Code::Hash, what));
        }
    }
    Ok(())
}

fn expect_size(head: &Head, len: u64) -> Result<(), ClientError> {
    match head.size {
        Some(size) if size == len => Ok(()),
        size => {
            let what = format!("{size:?} bytes are offered, the header says {len}");
            Err(ClientError::wrong(Code::Shape, what))
        }
    }
}

fn id_of(head: &Head) -> Result<FileId, ClientError> {
    let id = head.id.as_deref().unwrap_or_default();
    id.parse().map_err(ClientError::Wrong)
}

fn folder(target: &Path) -> &Path {
    match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Where a file lies that is not whole yet: beside its place, with its content in its name.
fn part_path(target: &Path, id: &FileId) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let id = id.to_string();
    let digits = id.get(..PART_DIGITS).unwrap_or_default();
    folder(target).join(format!(".{name}.{digits}.part"))
}

/// Opens it for this process alone.
fn open_part(path: &Path) -> Result<File, ClientError> {
    let mut options = OpenOptions::new();
    let opened = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path);
    let part = opened.map_err(local(path.display()))?;
    part.try_lock().map_err(|error| {
        let what = format!("{}: {error}; is it being fetched already?", path.display());
        ClientError::Local(TensorError::new(Code::Io, what))
    })?;
    Ok(part)
}

/// Gives a file its name once all of it is what its id says, which a disk may have changed.
fn finish(part: &mut File, path: &Path, target: &Path, id: FileId) -> Result<(), ClientError> {
    let mut hasher = Hasher::new();
    let mut piece = vec![0; BLOCK_BYTES];
    part.rewind().map_err(local(path.display()))?;
    loop {
        match part.read(&mut piece).map_err(local(path.display()))? {
            0 => break,
            len => {
                hasher.update(&piece[..len]);
            }
        }
    }
    if hasher.finalize() != id.0 {
        std::fs::remove_file(path).map_err(local(path.display()))?;
        let what = format!("{} is not what was fetched; run it again", path.display());
        return Err(ClientError::Local(TensorError::new(Code::Hash, what)));
    }
    part.sync_all().map_err(local(path.display()))?;
    std::fs::rename(path, target).map_err(local(target.display()))?;
    let folder = folder(target);
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(local(folder.display()))
}
