//! The folder of the stored files.
//!
//! ```text
//! certificate/NAME, document/NAME, root/NAME   one file each, mode 0600
//! site/NAME       a link to the folder of its content
//! content/N       the folder of a site; what no link leads to is removed at the next start
//! uploads/N       what is on its way in; emptied at each start
//! ```
//!
//! A site comes into place by the rename of a link, and every other file by the rename of a file: a power cut at any
//! moment leaves the one before or the new one, whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use alknet_core::config::{StoredFileKind, StoredFileName};
use alknet_openapi::count_operations;
use alknet_tls::{CertificatePair, authorities_from_pem};
use nix::sys::statvfs::statvfs;
use nix::unistd::syncfs;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::error::FileStoreError;
use super::quota::{StoreQuota, StoreReservation, bytes_on_disk};
use super::site::{self, SITE_BYTES_MAX};
use crate::node::identity_services::moment;

/// Folder of the contents of sites.
const CONTENT: &str = "content";
/// Folder of uploads under way.
const UPLOADS: &str = "uploads";

/// Maximum bytes of a certificate with its key and its issuers: a chain of ten certificates has 20
/// KiB.
const CERTIFICATE_BYTES_MAX: u64 = 256 << 10;
/// Maximum bytes of a file of authorities: all that browsers trust have 200 KiB.
const ROOT_BYTES_MAX: u64 = 1 << 20;
/// Maximum bytes of an OpenAPI document, which is also that of an import.
const DOCUMENT_BYTES_MAX: u64 = 16 << 20;
/// Maximum number of stored files of one kind.
const FILES_PER_KIND_MAX: usize = 64;
/// Maximum bytes that all stored files and uploads take on a large disk. On a small one they take
/// at most one part in [`DISK_PART`].
const STORE_BYTES_MAX: u64 = 1 << 30;
const DISK_PART: u64 = 4;

/// One stored file, for lists.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct StoredFileRow {
    pub(super) name: StoredFileName,
    /// Number of files: for a site, those below it, and otherwise one.
    pub(super) files: u64,
    pub(super) bytes: u64,
    /// When it was stored, RFC 3339.
    pub(super) stored: Option<String>,
    /// Facts of the file's kind: names and end of a certificate, number of operations of a
    /// document.
    pub(super) facts: Map<String, Value>,
    /// Findings that are allowed and probably not meant.
    pub(super) warnings: Vec<String>,
}

/// An upload under way. Its file is removed on drop.
#[derive(Debug)]
pub(super) struct FileUpload {
    name: StoredFileName,
    path: PathBuf,
    file: File,
    have: u64,
    most: u64,
    claim: StoreReservation,
}

impl FileUpload {
    /// Number of bytes that arrived so far.
    pub(super) const fn have(&self) -> u64 {
        self.have
    }

    /// Adds the next bytes.
    ///
    /// # Errors
    /// There are more bytes than the kind allows or than there is room for, or they cannot be
    /// written.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), FileStoreError> {
        let end = self.have + bytes.len() as u64;
        if end > self.most {
            return Err(FileStoreError::Quota(format!(
                "{} may have {} bytes: make it smaller",
                self.name, self.most
            )));
        }
        // Concurrent uploads share the quota: each has what the others leave.
        self.claim.grow_to(bytes_on_disk(end))?;
        let written = self.file.write_all_at(bytes, self.have);
        written.map_err(|error| FileStoreError::io("cannot keep what was sent", error))?;
        self.have = end;
        Ok(())
    }
}

impl Drop for FileUpload {
    fn drop(&mut self) {
        // If the removal fails, the next start removes the file.
        fs::remove_file(&self.path).ok();
    }
}

/// The stored files of a node.
#[derive(Debug)]
pub(super) struct FileStore {
    folder: PathBuf,
    quota: Arc<StoreQuota>,
    /// Held while a file is put in place or removed: of two such changes, the second sees the
    /// result of the first.
    turn: Mutex<()>,
}

impl FileStore {
    /// Opens the store in this folder, makes the folder if it is missing, and removes what a power
    /// cut left there.
    ///
    /// # Errors
    /// The folder cannot be made, read or written.
    pub(super) fn open(folder: PathBuf) -> io::Result<Self> {
        crate::node::make_private_dir(&folder)?;
        let below = StoredFileKind::ALL.map(StoredFileKind::name);
        for name in below.into_iter().chain([CONTENT, UPLOADS]) {
            crate::node::make_private_dir(&folder.join(name))?;
        }
        let mut bytes_max = STORE_BYTES_MAX;
        if let Ok(system) = statvfs(&folder) {
            let all = system.blocks().saturating_mul(system.fragment_size());
            bytes_max = bytes_max.min(all / DISK_PART);
        }
        let store = Self {
            folder,
            quota: StoreQuota::new(bytes_max),
            turn: Mutex::default(),
        };
        store.sweep()?;
        store.quota.set_stored(store.measured()?);
        Ok(store)
    }

    /// A store with a quota of this many bytes.
    #[cfg(test)]
    pub(super) fn with_quota(mut self, bytes_max: u64) -> Self {
        self.quota = StoreQuota::new(bytes_max);
        self.count().expect("a readable folder");
        self
    }

    /// Path of a file, for the parts of the node that open it.
    pub(super) fn path(&self, name: &StoredFileName) -> PathBuf {
        self.below(name.kind().name()).join(name.name())
    }

    /// Whether a file of this name is stored.
    pub(super) fn has(&self, name: &StoredFileName) -> bool {
        self.path(name).exists()
    }

    /// Maximum bytes of the disk that all files may take.
    pub(super) fn bytes_max(&self) -> u64 {
        self.quota.bytes_max()
    }

    /// Bytes of the disk that all files and uploads take.
    pub(super) fn used(&self) -> u64 {
        self.quota.used()
    }

    /// Measures the stored files, and so the rest of the quota. The caller holds the turn.
    fn count(&self) -> Result<(), FileStoreError> {
        let bytes = self.measured();
        let bytes =
            bytes.map_err(|error| FileStoreError::io("cannot look at what is stored", error))?;
        self.quota.set_stored(bytes);
        Ok(())
    }

    /// Bytes of the disk that stored files take. Uploads count by their claims.
    fn measured(&self) -> io::Result<u64> {
        let below = StoredFileKind::ALL.map(StoredFileKind::name);
        let mut bytes = 0_u64;
        for name in below.into_iter().chain([CONTENT]) {
            bytes = bytes.saturating_add(site::measure_on_disk(&self.below(name))?);
        }
        Ok(bytes)
    }

    /// Begins an upload.
    ///
    /// # Errors
    /// There is no room, or the file cannot be made.
    pub(super) fn begin(&self, name: StoredFileName) -> Result<FileUpload, FileStoreError> {
        if !self.has(&name) && self.names(name.kind())?.len() >= FILES_PER_KIND_MAX {
            let text = format!(
                "{FILES_PER_KIND_MAX} files of the kind {} are stored",
                name.kind()
            );
            return Err(FileStoreError::Quota(text));
        }
        let bytes_max = match name.kind() {
            StoredFileKind::Certificate => CERTIFICATE_BYTES_MAX,
            StoredFileKind::Root => ROOT_BYTES_MAX,
            StoredFileKind::Site => SITE_BYTES_MAX,
            // An import does not read a longer document.
            _ => DOCUMENT_BYTES_MAX,
        };
        let mut claim = StoreReservation::new(&self.quota);
        claim.grow_to(bytes_on_disk(0))?;
        let uploads = self.below(UPLOADS);
        let made = unused(&uploads, |path| {
            let mut options = OpenOptions::new();
            options
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path)
        });
        let (path, file) =
            made.map_err(|error| FileStoreError::io("cannot begin an upload", error))?;
        Ok(FileUpload {
            name,
            path,
            file,
            have: 0,
            most: bytes_max,
            claim,
        })
    }

    /// Checks an upload, and puts it in place of the stored file.
    ///
    /// # Errors
    /// The content does not fit its kind, there is no room, or it cannot be written. The stored
    /// file stays.
    pub(super) fn commit(&self, upload: FileUpload) -> Result<StoredFileRow, FileStoreError> {
        let _turn = self.turn();
        let name = upload.name.clone();
        if name.kind() == StoredFileKind::Site {
            let content = self.stage(&upload)?;
            drop(upload);
            let swapped = self.swap(&name, &content);
            // If only the sync of the links' folder failed, the name already leads to the new
            // content, which then stays.
            if swapped.is_err() && self.content_of(&name).as_ref() != Some(&content) {
                discard(&content);
            }
            let counted = self.count();
            swapped.and(counted)?;
            return self.row(&name);
        }
        let content = read(&upload)?;
        // The content is checked before it replaces a file that may be in use.
        let (facts, warnings) = describe(name.kind(), &content).map_err(FileStoreError::Content)?;
        // The stored file, the upload and the new file are on the disk at the same time.
        let mut claim = StoreReservation::new(&self.quota);
        claim.grow_to(bytes_on_disk(upload.have))?;
        let put = alknet_durable::replace(&self.path(&name), &content, 0o600);
        let counted = self.count();
        put.map_err(|error| FileStoreError::io(format!("cannot write {name}"), error))?;
        counted?;
        Ok(StoredFileRow {
            facts,
            warnings,
            ..self.row(&name)?
        })
    }

    /// Removes a file.
    ///
    /// # Errors
    /// The file does not exist, or cannot be removed.
    pub(super) fn remove(&self, name: &StoredFileName) -> Result<(), FileStoreError> {
        let _turn = self.turn();
        let path = self.path(name);
        let content = self.content_of(name);
        let removed = fs::remove_file(&path);
        removed.map_err(|error| match error.kind() {
            ErrorKind::NotFound => FileStoreError::Missing(name.clone()),
            _ => FileStoreError::io(format!("cannot remove {name}"), error),
        })?;
        let synced = alknet_durable::sync_folder(&self.below(name.kind().name()));
        synced.map_err(|error| FileStoreError::io(format!("cannot remove {name}"), error))?;
        if let Some(content) = content {
            // The content goes after the link is durably gone: a link without its folder would be
            // served as an empty site.
            discard(&content);
        }
        self.count()
    }

    /// Lists every stored file.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub(super) fn rows(&self) -> Result<Vec<StoredFileRow>, FileStoreError> {
        let mut rows = Vec::new();
        for kind in StoredFileKind::ALL {
            for name in self.names(kind)? {
                match self.row(&name) {
                    // The file was removed after the names were read.
                    Err(FileStoreError::Missing(_)) => {}
                    row => rows.push(row?),
                }
            }
        }
        Ok(rows)
    }

    /// Describes one stored file.
    ///
    /// # Errors
    /// The file does not exist, or cannot be read.
    pub(super) fn row(&self, name: &StoredFileName) -> Result<StoredFileRow, FileStoreError> {
        let path = self.path(name);
        let failed = |error: io::Error| match error.kind() {
            ErrorKind::NotFound => FileStoreError::Missing(name.clone()),
            _ => FileStoreError::io(format!("cannot read {name}"), error),
        };
        let about = fs::metadata(&path).map_err(failed)?;
        let mut row = StoredFileRow {
            name: name.clone(),
            files: 1,
            bytes: about.len(),
            stored: about.modified().ok().and_then(rfc3339),
            facts: Map::new(),
            warnings: Vec::new(),
        };
        if name.kind() == StoredFileKind::Site {
            let size = site::measure(&path).map_err(failed)?;
            (row.files, row.bytes) = (size.files, size.bytes);
            if !path.join("index.html").is_file() {
                let text = "it has no index.html, so that '/' shows nothing";
                row.warnings.push(text.to_owned());
            }
            return Ok(row);
        }
        if name.kind() == StoredFileKind::Document {
            // Parsing a document takes seconds, and it was checked when it was stored.
            return Ok(row);
        }
        let content = Zeroizing::new(fs::read(&path).map_err(failed)?);
        match describe(name.kind(), &content) {
            Ok((facts, warnings)) => (row.facts, row.warnings) = (facts, warnings),
            Err(error) => row.warnings.push(error),
        }
        Ok(row)
    }

    /// The files of a site with their lengths. Empty for every other kind.
    ///
    /// # Errors
    /// The file does not exist, or cannot be read.
    pub(super) fn files(
        &self,
        name: &StoredFileName,
    ) -> Result<Vec<(String, u64)>, FileStoreError> {
        match self.content_of(name) {
            None => Ok(Vec::new()),
            Some(content) => site::files(&content)
                .map_err(|error| FileStoreError::io(format!("cannot read {name}"), error)),
        }
    }

    /// Unpacks a site durably, beside the one that is served.
    pub(super) fn stage(&self, upload: &FileUpload) -> Result<PathBuf, FileStoreError> {
        let mut claim = StoreReservation::new(&self.quota);
        let made = unused(&self.below(CONTENT), |path| {
            fs::DirBuilder::new().mode(0o700).create(path)
        });
        let (content, ()) =
            made.map_err(|error| FileStoreError::io("cannot make a folder", error))?;
        let unpacked = site::unpack(ArchiveFile::new(&upload.file), &content, &mut claim);
        let unpacked = unpacked.and_then(|_| {
            // One call syncs thousands of files: each is on the disk before the link leads to it
            // (syncfs(2)).
            let synced = File::open(&content).and_then(|folder| Ok(syncfs(&folder)?));
            synced.map_err(|error| FileStoreError::io("cannot write the site", error))?;
            // The content is measured before the claim ends, so that its bytes always count.
            self.count()
        });
        if let Err(error) = unpacked {
            discard(&content);
            return Err(error);
        }
        Ok(content)
    }

    /// Points the name of a site to this content, and removes the content before it.
    fn swap(&self, name: &StoredFileName, content: &Path) -> Result<(), FileStoreError> {
        let failed = |error| FileStoreError::io(format!("cannot write {name}"), error);
        let before = self.content_of(name);
        let sites = self.below(StoredFileKind::Site.name());
        let new = sites.join(format!(".{}.new", name.name()));
        match fs::remove_file(&new) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let number = content.file_name().unwrap_or_default();
        symlink(Path::new("..").join(CONTENT).join(number), &new).map_err(failed)?;
        // `rename` replaces the link atomically: a request finds either the whole old site or the
        // whole new one.
        fs::rename(&new, self.path(name)).map_err(failed)?;
        alknet_durable::sync_folder(&sites).map_err(failed)?;
        if let Some(before) = before {
            discard(&before);
        }
        Ok(())
    }

    /// The folder that the name of a site leads to.
    fn content_of(&self, name: &StoredFileName) -> Option<PathBuf> {
        let target = fs::read_link(self.path(name)).ok()?;
        Some(self.below(CONTENT).join(target.file_name()?))
    }

    /// Names of one kind, sorted.
    fn names(&self, kind: StoredFileKind) -> Result<Vec<StoredFileName>, FileStoreError> {
        let failed = |error| FileStoreError::io("cannot look at what is stored", error);
        let mut names = Vec::new();
        for entry in fs::read_dir(self.below(kind.name())).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            // Files that a power cut left have names that do not parse, and are skipped.
            let name = format!("{kind}/{}", name.to_string_lossy());
            names.extend(name.parse::<StoredFileName>());
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Removes all uploads, and contents that no link leads to.
    fn sweep(&self) -> io::Result<()> {
        for upload in fs::read_dir(self.below(UPLOADS))? {
            fs::remove_file(upload?.path())?;
        }
        let sites = fs::read_dir(self.below(StoredFileKind::Site.name()))?;
        let mut used = Vec::new();
        for site in sites {
            let site = site?;
            // A power cut left this link before its rename.
            if site.file_name().to_string_lossy().starts_with('.') {
                fs::remove_file(site.path())?;
            } else if let Ok(target) = fs::read_link(site.path()) {
                used.extend(target.file_name().map(ToOwned::to_owned));
            }
        }
        for content in fs::read_dir(self.below(CONTENT))? {
            let content = content?;
            if !used.contains(&content.file_name()) {
                fs::remove_dir_all(content.path())?;
            }
        }
        Ok(())
    }

    fn below(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        // A panic in the middle leaves at most a folder that no link leads to.
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads a file from its beginning, independent of the file's own position.
struct ArchiveFile<'a> {
    file: &'a File,
    at: u64,
}

impl<'a> ArchiveFile<'a> {
    const fn new(file: &'a File) -> Self {
        Self { file, at: 0 }
    }
}

impl Read for ArchiveFile<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// Reads a whole upload into memory, for its check.
fn read(upload: &FileUpload) -> Result<Zeroizing<Vec<u8>>, FileStoreError> {
    let mut content = Zeroizing::new(Vec::new());
    let read = ArchiveFile::new(&upload.file).read_to_end(&mut content);
    read.map_err(|error| FileStoreError::io("cannot read what was sent", error))?;
    Ok(content)
}

/// Makes an entry whose name is the first unused number.
fn unused<T>(folder: &Path, make: impl Fn(&Path) -> io::Result<T>) -> io::Result<(PathBuf, T)> {
    for number in 1_u64.. {
        let path = folder.join(number.to_string());
        match make(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            made => return made.map(|made| (path, made)),
        }
    }
    Err(io::Error::from(ErrorKind::QuotaExceeded))
}

/// Removes the content of a site. If that fails, the next start does it.
fn discard(content: &Path) {
    if let Err(error) = fs::remove_dir_all(content) {
        let folder = content.display();
        tracing::warn!(%folder, %error, "a site that is not used any more stays until the next start");
    }
}

fn rfc3339(at: SystemTime) -> Option<String> {
    moment(at.duration_since(UNIX_EPOCH).ok()?.as_secs())
}

/// Checks the content for its kind. Returns facts about it, and warnings.
fn describe(
    kind: StoredFileKind,
    content: &[u8],
) -> Result<(Map<String, Value>, Vec<String>), String> {
    let mut warnings = Vec::new();
    let facts = match kind {
        StoredFileKind::Certificate => {
            let pair = CertificatePair::from_pem(content, content);
            let pair = pair.map_err(|error| error.to_string())?;
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            let now = now.map_or(0, |since| since.as_secs());
            warnings.extend(pair.validate(&[], now).err().map(|error| error.to_string()));
            json!({ "names": pair.names(), "expires": moment(pair.not_after()) })
        }
        StoredFileKind::Root => {
            let found = authorities_from_pem(content).map_err(|error| error.to_string())?;
            json!({ "certificates": found.certificates, "expires": moment(found.not_after) })
        }
        StoredFileKind::Document => {
            let operations = count_operations(content).map_err(|error| error.to_string())?;
            json!({ "operations": operations })
        }
        _ => Value::Null,
    };
    match facts {
        Value::Object(facts) => Ok((facts, warnings)),
        _ => Ok((Map::new(), warnings)),
    }
}
