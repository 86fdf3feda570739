//! The layer between SQLite and the system, with a look at each sync of a file below a followed folder.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr, c_int};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use rusqlite::ffi;

use super::synced_folder::SyncedFolder;

type OpenFile = unsafe extern "C" fn(
    *mut ffi::sqlite3_vfs,
    ffi::sqlite3_filename,
    *mut ffi::sqlite3_file,
    c_int,
    *mut c_int,
) -> c_int;
type SyncFile = unsafe extern "C" fn(*mut ffi::sqlite3_file, c_int) -> c_int;

/// The functions of the system's layer.
struct SystemLayer {
    /// Address of the layer, which SQLite has for ever.
    vfs: usize,
    open: OpenFile,
}

static SYSTEM: OnceLock<SystemLayer> = OnceLock::new();
static FOLDERS: Mutex<Vec<Weak<SyncedFolder>>> = Mutex::new(Vec::new());
/// The path of each open file, and how it is synced, by the address of the file.
static FILES: Mutex<Option<HashMap<usize, RecordedFile>>> = Mutex::new(None);

#[derive(Clone)]
struct RecordedFile {
    path: PathBuf,
    sync: SyncFile,
}

/// Takes part in the syncs of the database below a folder from here on.
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

/// Opens a file as the system does, and takes the place of its sync if it is below a followed folder.
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
    let Some(sync) = methods.xSync else {
        return opened;
    };
    methods.xSync = Some(sync_recorded);
    let recorded = RecordedFile { path, sync };
    let mut files = FILES.lock().expect("no panic");
    files
        .get_or_insert_default()
        .insert(file as usize, recorded);
    // SAFETY: the file is SQLite's until it is closed, and the methods are the same but for one.
    unsafe { (*file).pMethods = Box::leak(Box::new(methods)) };
    opened
}

/// Syncs a file, unless the test lets that fail.
unsafe extern "C" fn sync_recorded(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    let files = FILES.lock().expect("no panic");
    let recorded = files.as_ref().and_then(|files| files.get(&(file as usize)));
    let recorded = recorded.cloned();
    drop(files);
    let Some(RecordedFile { path, sync }) = recorded else {
        return ffi::SQLITE_IOERR_FSYNC;
    };
    let folder = folder_of(&path);
    if folder
        .as_ref()
        .is_some_and(|folder| !folder.begin_database_sync(&path))
    {
        return ffi::SQLITE_IOERR_FSYNC;
    }
    // SAFETY: it is the function that the file had when it was opened.
    let synced = unsafe { sync(file, flags) };
    if let Some(folder) = folder.filter(|_| synced == ffi::SQLITE_OK) {
        folder.end_database_sync(&path);
    }
    synced
}
