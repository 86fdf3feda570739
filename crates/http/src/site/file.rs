//! Files of the folder, small ones from memory.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use sha2::{Digest, Sha256};

use crate::limits::{SITE_CACHE_BYTES, SITE_CHUNK, SITE_FILE_BYTES};

/// Changes whenever the content of a file may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    device: u64,
    inode: u64,
    len: u64,
    modified_ns: i128,
    changed_ns: i128,
}

impl Version {
    fn of(meta: &std::fs::Metadata) -> Self {
        let ns = |s: i64, ns: i64| i128::from(s) * 1_000_000_000 + i128::from(ns);
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            len: meta.len(),
            modified_ns: ns(meta.mtime(), meta.mtime_nsec()),
            changed_ns: ns(meta.ctime(), meta.ctime_nsec()),
        }
    }
}

#[derive(Clone)]
struct Kept {
    version: Version,
    etag: Arc<str>,
    /// Of small files.
    content: Option<Bytes>,
}

/// What is known of files by their names.
#[derive(Default)]
struct Cache {
    kept: HashMap<PathBuf, Kept>,
    bytes: usize,
}

/// Most files that something is known of.
const KEPT_MAX: usize = 4096;

/// A folder's files.
pub(super) struct Files {
    folder: PathBuf,
    cache: Mutex<Cache>,
}

/// A file that is there.
pub(super) struct Found {
    kept: Kept,
    /// Open where the content is not in memory.
    file: Option<Arc<File>>,
}

impl Files {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            cache: Mutex::default(),
        }
    }

    /// Opens a file below the folder; links that lead out of it lead nowhere (openat2(2)).
    fn open(&self, name: &Path) -> io::Result<(File, std::fs::Metadata)> {
        let read = OFlags::RDONLY | OFlags::CLOEXEC;
        let folder = openat2(
            CWD,
            &self.folder,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::empty(),
        )?;
        let flags = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let file: OwnedFd = openat2(&folder, name, read | OFlags::NONBLOCK, Mode::empty(), flags)?;
        let file = File::from(file);
        let meta = file.metadata()?;
        Ok((file, meta))
    }

    pub(super) async fn is_folder(self: &Arc<Self>, name: &Path) -> bool {
        if name.as_os_str().is_empty() {
            return true;
        }
        let opened = self.open(name);
        opened.is_ok_and(|(_, meta)| meta.is_dir())
    }

    pub(super) async fn has_packed(&self, name: &Path, forms: &[(&str, &str)]) -> bool {
        forms.iter().any(|(_, ending)| {
            let mut packed = OsString::from(name);
            packed.push(ending);
            self.open(Path::new(&packed)).is_ok()
        })
    }

    /// The file of this name. Opening and looking at it is quick; only what has changed is read.
    pub(super) async fn find(self: &Arc<Self>, name: &Path) -> Option<Found> {
        let (file, meta) = self.open(name).ok()?;
        if !meta.is_file() {
            return None;
        }
        let version = Version::of(&meta);
        let known = {
            let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            cache
                .kept
                .get(name)
                .filter(|kept| kept.version == version)
                .cloned()
        };
        if let Some(kept) = known {
            let file = kept.content.is_none().then(|| Arc::new(file));
            return Some(Found { kept, file });
        }
        let files = Arc::clone(self);
        let name = name.to_owned();
        let read = tokio::task::spawn_blocking(move || files.read(name, file, version));
        // A file that cannot be read is not there.
        read.await.ok()?.ok()
    }

    fn read(&self, name: PathBuf, file: File, version: Version) -> io::Result<Found> {
        let mut hash = Sha256::new();
        let mut content = Vec::new();
        let small = version.len <= SITE_FILE_BYTES;
        let mut chunk = vec![0; SITE_CHUNK];
        let mut at = 0;
        while at < version.len {
            let read = file.read_at(&mut chunk, at)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            hash.update(&chunk[..read]);
            if small {
                content.extend_from_slice(&chunk[..read]);
            }
            at += read as u64;
        }
        let hash = hash.finalize();
        let text: String = hash.iter().take(16).map(|b| format!("{b:02x}")).collect();
        let kept = Kept {
            version,
            etag: format!("\"{text}\"").into(),
            content: small.then(|| content.into()),
        };
        self.keep(name, kept.clone());
        let file = (!small).then(|| Arc::new(file));
        Ok(Found { kept, file })
    }

    fn keep(&self, name: PathBuf, kept: Kept) {
        let size = |kept: &Kept| kept.content.as_ref().map_or(0, Bytes::len);
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let full = cache.bytes + size(&kept) > SITE_CACHE_BYTES || cache.kept.len() >= KEPT_MAX;
        if full {
            // It fills again with what is asked for.
            *cache = Cache::default();
        }
        cache.bytes += size(&kept);
        if let Some(before) = cache.kept.insert(name, kept) {
            cache.bytes -= size(&before);
        }
    }
}

impl Found {
    pub(super) fn etag(&self) -> &str {
        &self.kept.etag
    }

    pub(super) fn len(&self) -> u64 {
        self.kept.version.len
    }

    /// These bytes of it.
    pub(super) fn body(self, range: Range<u64>) -> Body {
        if let Some(content) = &self.kept.content {
            let part = range.start as usize..range.end as usize;
            return Body::from(content.slice(part));
        }
        let Some(file) = self.file else {
            return Body::empty();
        };
        Body::from_stream(stream::try_unfold(
            (file, range),
            |(file, range)| async move {
                if range.is_empty() {
                    return Ok::<_, io::Error>(None);
                }
                let (chunk, file) = read_chunk(file, range.clone()).await?;
                let next = range.start + chunk.len() as u64;
                Ok(Some((chunk, (file, next..range.end))))
            },
        ))
    }
}

async fn read_chunk(file: Arc<File>, range: Range<u64>) -> io::Result<(Bytes, Arc<File>)> {
    let read = tokio::task::spawn_blocking(move || {
        let len = (range.end - range.start).min(SITE_CHUNK as u64) as usize;
        let mut chunk = vec![0; len];
        let read = file.read_at(&mut chunk, range.start)?;
        if read == 0 {
            // It was cut short since; an answer that ends too early says so by itself.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        chunk.truncate(read);
        Ok((chunk.into(), file))
    });
    read.await.map_err(io::Error::other)?
}
