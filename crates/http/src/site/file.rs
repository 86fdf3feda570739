//! The files of the folder. The node caches what it knows of them, and the content of small ones.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use alknet_gateway::{ApiError, MemoryLease};
use axum::body::Body;
use bytes::Bytes;
use futures_util::stream;
use http::HeaderValue;
use http_body_util::Full;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use sha2::{Digest, Sha256};

use super::PACKED;
use super::open_files::{OpenFilePermit, OpenFilePermits};
use crate::answer;
use crate::limits::{
    SITE_CACHE_BYTES, SITE_CHUNK, SITE_FILE_BYTES, SITE_LOOK_AGAIN, SITE_LOOKS, SITE_NAMES,
};

/// Differs whenever the content of a file may have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileVersion {
    device: u64,
    inode: u64,
    len: u64,
    modified_ns: i128,
    changed_ns: i128,
}

impl FileVersion {
    fn from_metadata(meta: &Metadata) -> Self {
        let ns = |s: i64, ns: i64| i128::from(s) * 1_000_000_000 + i128::from(ns);
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            len: meta.len(),
            modified_ns: ns(meta.mtime(), meta.mtime_nsec()),
            changed_ns: ns(meta.ctime(), meta.ctime_nsec()),
        }
    }

    /// The hash of the version, for an `ETag`.
    fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for part in [self.device, self.inode, self.len] {
            hash.update(part.to_le_bytes());
        }
        for part in [self.modified_ns, self.changed_ns] {
            hash.update(part.to_le_bytes());
        }
        hash.finalize().into()
    }
}

/// One file, as it was when the node read it.
#[derive(Clone)]
pub(super) struct CachedFile {
    name: PathBuf,
    version: FileVersion,
    etag: HeaderValue,
    /// The content of a small file.
    content: Option<Bytes>,
}

/// What a name refers to.
#[derive(Clone)]
pub(super) enum SiteEntry {
    Folder,
    File(Arc<FileEncodings>),
}

/// A file and the packed forms beside it.
pub(super) struct FileEncodings {
    plain: Option<CachedFile>,
    /// The packed forms by the name of their coding, the best first.
    packed: Vec<(&'static str, CachedFile)>,
}

impl FileEncodings {
    /// Whether the response depends on the codings that the client can unpack.
    pub(super) fn varies(&self) -> bool {
        !self.packed.is_empty()
    }

    /// The form for a client that can unpack these codings, and its coding.
    pub(super) fn choose(
        &self,
        accepts: impl Fn(&str) -> bool,
    ) -> Option<(&CachedFile, Option<&'static str>)> {
        let packed = self.packed.iter().find(|(coding, _)| accepts(coding));
        match packed {
            Some((coding, cached)) => Some((cached, Some(coding))),
            None => self.plain.as_ref().map(|cached| (cached, None)),
        }
    }

    fn bytes(&self) -> usize {
        let packed = self.packed.iter().map(|(_, cached)| cached);
        let all = packed.chain(&self.plain);
        all.filter_map(|cached| Some(cached.content.as_ref()?.len()))
            .sum()
    }

    fn cached(&self, name: &Path, version: FileVersion) -> Option<&CachedFile> {
        let packed = self.packed.iter().map(|(_, cached)| cached);
        let mut all = packed.chain(&self.plain);
        all.find(|cached| cached.name == name && cached.version == version)
    }
}

struct CachedLookup {
    at: Instant,
    entry: SiteEntry,
}

/// The cached names, which are only those that exist.
#[derive(Default)]
struct SitePathCache {
    names: HashMap<PathBuf, CachedLookup>,
    bytes: usize,
}

/// The files of a folder.
pub(super) struct SiteFiles {
    folder: PathBuf,
    cache: Mutex<SitePathCache>,
    /// Limits the lookups on disk: one for each name, and a few names at once.
    turns: [tokio::sync::Mutex<()>; SITE_LOOKS],
    /// The hash differs in each process, so that no client knows which names wait for each other.
    hashes: RandomState,
    /// Limits the files that clients keep open.
    permits: OpenFilePermits,
}

/// Opens a file below a folder. Links that lead out of the folder fail (openat2(2)).
fn open_in(folder: &OwnedFd, name: &Path) -> io::Result<(File, Metadata)> {
    // The open does not block: for a FIFO in the folder, it would wait until another program writes to it (fifo(7)).
    let read = OFlags::RDONLY | OFlags::CLOEXEC;
    let flags = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let file: OwnedFd = openat2(folder, name, read | OFlags::NONBLOCK, Mode::empty(), flags)?;
    let file = File::from(file);
    let meta = file.metadata()?;
    Ok((file, meta))
}

/// The identity of a folder: its device and its inode.
fn number(folder: &OwnedFd) -> io::Result<(u64, u64)> {
    let found = fstat(folder)?;
    Ok((found.st_dev, found.st_ino))
}

/// An existing file in its current version.
pub(super) struct OpenSiteFile {
    cached: CachedFile,
    /// The open file, if the content is not in memory.
    file: Option<Arc<CountedFile>>,
}

/// An open file, which counts until it is closed.
struct CountedFile {
    // The fields are dropped in this order: the file is closed before another one may be opened for it.
    file: File,
    _permit: OpenFilePermit,
}

/// Why a file was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotOpened {
    /// As many files are open as may be.
    Busy,
    /// It is another one than when it was looked up, or it is gone.
    Changed,
}

impl SiteFiles {
    pub(super) fn new(folder: PathBuf, open_files_max: usize) -> Self {
        let files = Self {
            folder,
            cache: Mutex::default(),
            turns: Default::default(),
            hashes: RandomState::new(),
            permits: OpenFilePermits::new(open_files_max),
        };
        if let Err(error) = files.open_folder() {
            let folder = files.folder.display();
            tracing::warn!(%folder, %error, "the site has no pages until its folder can be opened");
        }
        files
    }

    /// What this name refers to. The result may be older by [`SITE_LOOK_AGAIN`] at most.
    pub(super) async fn find(self: &Arc<Self>, name: &Path) -> Option<SiteEntry> {
        let requested_at = Instant::now();
        let mut announced = None;
        if let Some(lookup) = self.cache().names.get_mut(name) {
            if lookup.at.elapsed() < SITE_LOOK_AGAIN {
                return Some(lookup.entry.clone());
            }
            // One request looks the name up again, and others that arrive meanwhile use the old entry.
            lookup.at = Instant::now();
            announced = Some(lookup.at);
        }
        let _turn = self.turn(name).await;
        // Another request may have looked the name up while this one waited.
        let lookup = self
            .cache()
            .names
            .get(name)
            .map(|lookup| (lookup.at, lookup.entry.clone()));
        match lookup {
            Some((at, entry)) if at > requested_at && announced != Some(at) => Some(entry),
            _ => self.read_entry(name).await,
        }
    }

    async fn turn(&self, name: &Path) -> tokio::sync::MutexGuard<'_, ()> {
        self.turns[self.turn_of(name)].lock().await
    }

    fn turn_of(&self, name: &Path) -> usize {
        self.hashes.hash_one(name) as usize % self.turns.len()
    }

    /// What this name refers to now.
    pub(super) async fn find_current(self: &Arc<Self>, name: &Path) -> Option<SiteEntry> {
        let _turn = self.turn(name).await;
        self.read_entry(name).await
    }

    async fn read_entry(self: &Arc<Self>, name: &Path) -> Option<SiteEntry> {
        let files = Arc::clone(self);
        let name = name.to_owned();
        let entry = tokio::task::spawn_blocking(move || files.read_now(name));
        entry.await.ok()?
    }

    fn read_now(&self, name: PathBuf) -> Option<SiteEntry> {
        let known = match self.cache().names.get(&name) {
            Some(CachedLookup {
                entry: SiteEntry::File(forms),
                ..
            }) => Some(Arc::clone(forms)),
            _ => None,
        };
        let read = |name: PathBuf| self.read(name, known.as_deref()).ok();
        let entry = if self.is_folder(&name) {
            SiteEntry::Folder
        } else {
            let beside = |ending: &str| {
                let mut packed = name.as_os_str().to_owned();
                packed.push(ending);
                PathBuf::from(packed)
            };
            let packed = PACKED.iter();
            let forms = FileEncodings {
                plain: self
                    .read(name.clone(), known.as_deref())
                    .inspect_err(|error| complain(&name, error))
                    .ok(),
                packed: packed
                    .filter_map(|(coding, ending)| Some((*coding, read(beside(ending))?)))
                    .collect(),
            };
            // The cache has only names that exist; otherwise requests for other names could fill it.
            if forms.plain.is_none() && forms.packed.is_empty() {
                self.forget(&name);
                return None;
            }
            SiteEntry::File(Arc::new(forms))
        };
        self.cache_entry(name, entry.clone());
        Some(entry)
    }

    /// The file, unless it has changed since the node read it. A file whose content is not in memory stays open as long
    /// as the returned value or a body of it exists, and counts among those of unknown peers if `is_unknown`.
    pub(super) fn open(
        &self,
        cached: &CachedFile,
        is_unknown: bool,
    ) -> Result<OpenSiteFile, NotOpened> {
        let (meta, file) = if cached.content.is_some() {
            // A link that leads to another file by now has another inode.
            let meta = std::fs::metadata(self.folder.join(&cached.name));
            (meta.map_err(|_| NotOpened::Changed)?, None)
        } else {
            // The permit comes first, so that requests beyond the limit open nothing.
            let permit = self.permits.take(is_unknown).ok_or(NotOpened::Busy)?;
            let opened = self.open_below(&cached.name);
            let (file, meta) = opened.map_err(|_| NotOpened::Changed)?;
            let counted = CountedFile {
                file,
                _permit: permit,
            };
            (meta, Some(Arc::new(counted)))
        };
        if FileVersion::from_metadata(&meta) != cached.version {
            return Err(NotOpened::Changed);
        }
        Ok(OpenSiteFile {
            cached: cached.clone(),
            file,
        })
    }

    /// Opens a file below the folder.
    fn open_below(&self, name: &Path) -> io::Result<(File, Metadata)> {
        self.open_from(&self.open_folder()?, name)
    }

    /// Opens a file below the folder as it was when it was opened. If the folder's name is a link, it may lead to
    /// another folder by now, and the earlier folder may be gone. So no file of a site is missing while the site is
    /// replaced.
    fn open_from(&self, folder: &OwnedFd, name: &Path) -> io::Result<(File, Metadata)> {
        match open_in(folder, name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let now = self.open_folder()?;
                match number(&now)? == number(folder)? {
                    true => Err(error),
                    false => open_in(&now, name),
                }
            }
            opened => opened,
        }
    }

    fn open_folder(&self) -> io::Result<OwnedFd> {
        // The folder is only the start of lookups, so the node needs no permission to read it (open(2), O_PATH).
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let (mode, resolve) = (Mode::empty(), ResolveFlags::empty());
        Ok(openat2(CWD, &self.folder, flags, mode, resolve)?)
    }

    fn is_folder(&self, name: &Path) -> bool {
        let opened = self.open_below(name);
        opened.is_ok_and(|(_, meta)| meta.is_dir())
    }

    /// Checks a file, and reads it only if it has changed.
    fn read(&self, name: PathBuf, known: Option<&FileEncodings>) -> io::Result<CachedFile> {
        let (file, meta) = self.open_below(&name)?;
        if !meta.is_file() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let version = FileVersion::from_metadata(&meta);
        if let Some(cached) = known.and_then(|forms| forms.cached(&name, version)) {
            return Ok(cached.clone());
        }
        let small = version.len <= SITE_FILE_BYTES;
        let mut content = vec![0; if small { version.len as usize } else { 0 }];
        file.read_exact_at(&mut content, 0)?;
        // A large file is not read before it is sent, so its tag comes from its metadata.
        let hash = match small {
            true => Sha256::digest(&content).into(),
            false => version.digest(),
        };
        // 128 bits suffice to distinguish the versions of a file.
        let text: String = hash.iter().take(16).map(|b| format!("{b:02x}")).collect();
        Ok(CachedFile {
            name,
            version,
            etag: HeaderValue::from_str(&format!("\"{text}\"")).map_err(io::Error::other)?,
            content: small.then_some(content.into()),
        })
    }

    fn cache(&self) -> MutexGuard<'_, SitePathCache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cache_entry(&self, name: PathBuf, entry: SiteEntry) {
        let size = |entry: &SiteEntry| match entry {
            SiteEntry::Folder => 0,
            SiteEntry::File(forms) => forms.bytes(),
        };
        let mut cache = self.cache();
        let full = cache.bytes + size(&entry) > SITE_CACHE_BYTES || cache.names.len() >= SITE_NAMES;
        if full {
            // The cache fills again with the names that clients request.
            *cache = SitePathCache::default();
        }
        cache.bytes += size(&entry);
        let at = Instant::now();
        if let Some(before) = cache.names.insert(name, CachedLookup { at, entry }) {
            cache.bytes -= size(&before.entry);
        }
    }

    fn forget(&self, name: &Path) {
        let mut cache = self.cache();
        if let Some(CachedLookup {
            entry: SiteEntry::File(forms),
            ..
        }) = cache.names.remove(name)
        {
            cache.bytes -= forms.bytes();
        }
    }
}

impl OpenSiteFile {
    pub(super) fn etag(&self) -> &HeaderValue {
        &self.cached.etag
    }

    pub(super) fn len(&self) -> u64 {
        self.cached.version.len
    }

    /// These bytes of the file as a body. The memory counts against `lease` until the client has received it. That
    /// includes cached content, because the cache may drop it meanwhile and read it again for the next request.
    ///
    /// # Errors
    /// Memory is short.
    pub(super) fn body(self, range: Range<u64>, lease: MemoryLease) -> Result<Body, ApiError> {
        if let Some(content) = &self.cached.content {
            let part = range.start as usize..range.end as usize;
            lease.more(part.len())?;
            return Ok(answer::lease_body(Full::new(content.slice(part)), lease));
        }
        // `open` returns either the content or the open file.
        let Some(file) = self.file else {
            return Ok(Body::empty());
        };
        // The body has one chunk in memory at a time.
        lease.more(SITE_CHUNK)?;
        Ok(Body::from_stream(stream::try_unfold(
            (file, range, lease),
            |(file, range, lease)| async move {
                if range.is_empty() {
                    return Ok::<_, io::Error>(None);
                }
                let (chunk, file) = read_chunk(file, range.clone()).await?;
                let next = range.start + chunk.len() as u64;
                Ok(Some((chunk, (file, next..range.end, lease))))
            },
        )))
    }
}

/// The client gets a 404. If the reason is not that the file is missing, the log informs the site's administrator.
fn complain(name: &Path, error: &io::Error) {
    if let Some(
        Errno::ACCESS | Errno::PERM | Errno::IO | Errno::MFILE | Errno::NFILE | Errno::NOMEM,
    ) = Errno::from_io_error(error)
    {
        tracing::warn!(?name, %error, "a file of the site cannot be read");
    }
}

/// Reads bytes that the system has in memory on this thread, and all others on a blocking thread.
async fn read_chunk(
    counted: Arc<CountedFile>,
    range: Range<u64>,
) -> io::Result<(Bytes, Arc<CountedFile>)> {
    let len = (range.end - range.start).min(SITE_CHUNK as u64) as usize;
    let mut chunk = vec![0; len];
    let here = preadv2(
        &counted.file,
        &mut [IoSliceMut::new(&mut chunk)],
        range.start,
        ReadWriteFlags::NOWAIT,
    );
    // If no bytes are in memory, the call fails with EAGAIN (preadv2(2), RWF_NOWAIT). Any failure leads to the
    // blocking read.
    if let Ok(read) = here
        && read > 0
    {
        chunk.truncate(read);
        return Ok((chunk.into(), counted));
    }
    let read = tokio::task::spawn_blocking(move || {
        let read = counted.file.read_at(&mut chunk, range.start)?;
        if read == 0 {
            // The file was truncated meanwhile. The response ends early, which tells the client that it is
            // incomplete.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        chunk.truncate(read);
        Ok((chunk.into(), counted))
    });
    read.await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A packed form changes nothing about the file that it was made of.
    #[tokio::test]
    async fn a_known_name_is_looked_at_again_after_a_while() {
        let folder = tempfile::tempdir().expect("room");
        let (name, packed) = (Path::new("page.html"), folder.path().join("page.html.br"));
        std::fs::write(folder.path().join(name), "page").expect("room");
        let files = Arc::new(SiteFiles::new(folder.path().to_owned(), 1));
        let forms = async || match files.find(name).await {
            Some(SiteEntry::File(forms)) => forms.packed.len(),
            _ => panic!("there is a file"),
        };
        assert_eq!(forms().await, 0);
        std::fs::write(packed, "packed").expect("room");
        tokio::time::sleep(SITE_LOOK_AGAIN).await;
        assert_eq!(forms().await, 1);
    }

    /// The folder was opened, then the link led to another one, and then the first one was removed.
    #[test]
    fn a_file_is_found_while_its_folder_is_replaced() {
        let dir = tempfile::tempdir().expect("room");
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        let (site, new) = (dir.path().join("site"), dir.path().join("new"));
        for (folder, text) in [(&one, "one"), (&two, "two")] {
            std::fs::create_dir(folder).expect("room");
            std::fs::write(folder.join("index.html"), text).expect("room");
        }
        std::os::unix::fs::symlink(&one, &site).expect("room");
        let files = SiteFiles::new(site.clone(), 1);
        let before = files.open_folder().expect("it is there");
        std::os::unix::fs::symlink(&two, &new).expect("room");
        std::fs::rename(&new, &site).expect("room");
        std::fs::remove_dir_all(&one).expect("room");
        let (file, _) = files
            .open_from(&before, Path::new("index.html"))
            .expect("the new one has it");
        assert_eq!(io::read_to_string(file).expect("text"), "two");
        let absent = files.open_from(&before, Path::new("absent"));
        assert_eq!(absent.expect_err("absent").kind(), io::ErrorKind::NotFound);
    }

    /// By whatever a client can compute beside the node: the turns of another process are as good as it gets.
    #[test]
    fn names_cannot_be_aimed_at_the_turn_of_another() {
        let folder = tempfile::tempdir().expect("room");
        let files = || SiteFiles::new(folder.path().to_owned(), 1);
        let (known, node) = (files(), files());
        let page = Path::new("index.html");
        let aimed: Vec<_> = (0..100 * SITE_LOOKS)
            .map(|n| PathBuf::from(format!("missing-{n}")))
            .filter(|name| known.turn_of(name) == known.turn_of(page))
            .collect();
        assert!(aimed.len() > SITE_LOOKS, "{}", aimed.len());
        let hits = aimed
            .iter()
            .filter(|name| node.turn_of(name) == node.turn_of(page));
        assert!(hits.count() < aimed.len() / 2);
    }
}
