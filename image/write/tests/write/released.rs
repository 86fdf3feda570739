//! A disk that is built and packed for all tests that run at the same time.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use alknet_image::{ImageForm, Manifest, OutputRole, PackOptions, pack};
use tempfile::TempDir;

use crate::support::InputFolder;

/// A folder with the forms `uki` and `raw`, and what `pack` made of them.
pub(crate) struct ReleaseFolder {
    dir: TempDir,
    pub(crate) manifest: Manifest,
}

impl ReleaseFolder {
    /// The folder that tests share. It goes away with the last of them: a static would leave it behind.
    pub(crate) fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<ReleaseFolder>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(release) = shared.upgrade() {
            return release;
        }
        let dir = tempfile::tempdir().expect("a temporary folder");
        InputFolder::new().build(&[ImageForm::Uki, ImageForm::Raw], dir.path());
        let manifest = pack(dir.path(), &options(), &mut |_| {}).expect("a disk is there");
        let release = Arc::new(Self { dir, manifest });
        *shared = Arc::downgrade(&release);
        release
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn file(&self, role: OutputRole) -> PathBuf {
        let found = self.manifest.path(self.path(), ImageForm::Raw, role);
        found.unwrap_or_else(|| panic!("{role:?} of {:?}", self.manifest.outputs))
    }

    pub(crate) fn raw(&self) -> PathBuf {
        self.file(OutputRole::Disk)
    }
}

pub(crate) fn options() -> PackOptions {
    PackOptions {
        url: Some("https://example.org/images/".into()),
        release_date: Some("2027-01-31".into()),
    }
}
