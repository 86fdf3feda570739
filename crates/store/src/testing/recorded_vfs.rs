//! The layer between SQLite and the system, with a look at each call that writes to a file below a followed folder.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use rusqlite::ffi;

use super::synced_folder::{DiskError, SyncedFolder};

type OpenFile = unsafe extern "C" fn(
    *mut ffi::sqlite3_vfs,
    ffi::sqlite3_filename,
    *mut ffi::sqlite3_file,
    c_int,
    *mut c_int,
) -> c_int;
type SyncFile = unsafe extern "C" fn(*mut ffi::sqlite3_file, c_int) -> c_int;
type TruncateFile = unsafe extern "C" fn(*mut ffi::sqlite3_file, i64) -> c_int;
type WriteFile = unsafe extern "C" fn(*mut ffi::sqlite3_file, *const c_void, c_int, i64) -> c_int;

/// The functions of the system's layer.
struct SystemLayer {
    /// Address of the layer, which SQLite has for ever.
    vfs: usize,
    open: OpenFile,
}

static SYSTEM: OnceLock<SystemLayer> = OnceLock::new();
static FOLDERS: Mutex<Vec<Weak<SyncedFolder>>> = Mutex::new(Vec::new());
/// The path of each open file, and how it is written, by the address of the file.
static FILES: Mutex<Option<HashMap<usize, RecordedFile>>> = Mutex::new(None);

#[derive(Clone)]
struct RecordedFile {
    path: PathBuf,
    sync: SyncFile,
    truncate: TruncateFile,
    write: WriteFile,
}

impl RecordedFile {
    fn find(file: *mut ffi::sqlite3_file) -> Option<Self> {
        let files = FILES.lock().expect("no panic");
        files.as_ref()?.get(&(file as usize)).cloned()
    }
}

/// Takes part in the writes and syncs of the database below a folder from here on.
pub(super) fn follow(folder: &Arc<SyncedFolder>) {
    SYSTEM.get_or_init(register);
    let mut folders = FOLDERS.lock().expect("no panic");
    folders.retain(|folder| folder.strong_count() > 0);
    folders.push(Arc::downgrade(folder));
}

fn folder_of(path: &Path) -> Option<Arc<SyncedFolder>> {
    let folders = FOLDERS.lock().expect("no panic");
    let mut open = folders.iter().filter_map(Weak::upgrade);
    open.find(|folder| folder.has(path))
}

fn register() -> SystemLayer {
    // SAFETY: a null name asks for the default layer, which SQLite keeps for the whole process.
    let system = unsafe { ffi::sqlite3_vfs_find(ptr::null()) };
    assert!(!system.is_null(), "SQLite has a layer");
    // SAFETY: it is a layer of SQLite, and nothing changes one that is registered but the list that it is in.
    let mut vfs = unsafe { *system };
    let open = vfs.xOpen.expect("it opens files");
    vfs.pNext = ptr::null_mut();
    vfs.zName = c"recorded".as_ptr();
    vfs.xOpen = Some(open_recorded);
    // SAFETY: the value lives for ever, as SQLite asks for.
    let registered = unsafe { ffi::sqlite3_vfs_register(Box::into_raw(Box::new(vfs)), 1) };
    assert_eq!(registered, ffi::SQLITE_OK);
    SystemLayer {
        vfs: system as usize,
        open,
    }
}

/// Opens a file as the system does, and takes the place of its writes and syncs if it is below a followed folder.
unsafe extern "C" fn open_recorded(
    _: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    flags_out: *mut c_int,
) -> c_int {
    let Some(system) = SYSTEM.get() else {
        return ffi::SQLITE_ERROR;
    };
    // SAFETY: SQLite's own arguments go to its own function, with the layer that the function is of.
    let opened = unsafe {
        (system.open)(
            system.vfs as *mut ffi::sqlite3_vfs,
            name,
            file,
            flags,
            flags_out,
        )
    };
    if opened != ffi::SQLITE_OK || name.is_null() {
        return opened;
    }
    // SAFETY: the name of a file is a C string that lives until the file is closed.
    let name = unsafe { CStr::from_ptr(name) };
    let path = PathBuf::from(OsStr::from_bytes(name.to_bytes()));
    if folder_of(&path).is_none() {
        return opened;
    }
    // SAFETY: a file that was opened has its methods, which live for ever.
    let mut methods = unsafe { *(*file).pMethods };
    let (Some(sync), Some(truncate), Some(write)) =
        (methods.xSync, methods.xTruncate, methods.xWrite)
    else {
        return opened;
    };
    methods.xSync = Some(sync_recorded);
    methods.xTruncate = Some(truncate_recorded);
    methods.xWrite = Some(write_recorded);
    let recorded = RecordedFile {
        path,
        sync,
        truncate,
        write,
    };
    let mut files = FILES.lock().expect("no panic");
    files
        .get_or_insert_default()
        .insert(file as usize, recorded);
    // SAFETY: the file is SQLite's until it is closed, and the methods are the same but for three.
    unsafe { (*file).pMethods = Box::leak(Box::new(methods)) };
    opened
}

/// The code by which SQLite knows an error of the system at one of its calls.
const fn code(error: DiskError, failed: c_int) -> c_int {
    match error {
        DiskError::Full => ffi::SQLITE_FULL,
        DiskError::Failed => failed,
    }
}

/// Syncs a file, unless the test lets that fail.
unsafe extern "C" fn sync_recorded(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    let Some(RecordedFile { path, sync, .. }) = RecordedFile::find(file) else {
        return ffi::SQLITE_IOERR_FSYNC;
    };
    let folder = folder_of(&path);
    let begun = folder
        .as_ref()
        .map_or(Ok(()), |folder| folder.begin_database_sync(&path));
    if begun.is_err() {
        return ffi::SQLITE_IOERR_FSYNC;
    }
    // SAFETY: it is the function that the file had when it was opened.
    let synced = unsafe { sync(file, flags) };
    if let Some(folder) = folder.filter(|_| synced == ffi::SQLITE_OK) {
        folder.end_database_sync(&path);
    }
    synced
}

/// Sets the length of a file, unless the test lets that fail.
unsafe extern "C" fn truncate_recorded(file: *mut ffi::sqlite3_file, size: i64) -> c_int {
    let Some(RecordedFile { path, truncate, .. }) = RecordedFile::find(file) else {
        return ffi::SQLITE_IOERR_TRUNCATE;
    };
    let begun = folder_of(&path).map_or(Ok(()), |folder| folder.begin_call());
    match begun {
        // SAFETY: it is the function that the file had when it was opened.
        Ok(()) => unsafe { truncate(file, size) },
        Err(error) => code(error, ffi::SQLITE_IOERR_TRUNCATE),
    }
}

/// Writes to a file. If the test lets that fail, the first half of the bytes is written.
unsafe extern "C" fn write_recorded(
    file: *mut ffi::sqlite3_file,
    bytes: *const c_void,
    len: c_int,
    at: i64,
) -> c_int {
    let Some(RecordedFile { path, write, .. }) = RecordedFile::find(file) else {
        return ffi::SQLITE_IOERR_WRITE;
    };
    let folder = folder_of(&path);
    let begun = folder.as_ref().map_or(Ok(()), |folder| folder.begin_call());
    let part = match begun {
        Ok(()) => len,
        Err(_) => len / 2,
    };
    // SAFETY: it is the function that the file had when it was opened, and it gets no more bytes than there are.
    let written = unsafe { write(file, bytes, part, at) };
    if let (Some(folder), Ok(at), Ok(part)) = (folder, u64::try_from(at), usize::try_from(part)) {
        folder.end_database_write(&path, at, part);
    }
    match begun {
        Ok(()) => written,
        Err(error) => code(error, ffi::SQLITE_IOERR_WRITE),
    }
}
