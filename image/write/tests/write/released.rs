//! A disk that is built and packed once for all tests of this program.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use alknet_image::{ImageForm, Manifest, OutputRole, PackOptions, pack};
use tempfile::TempDir;

use crate::support::InputFolder;

/// A folder with the forms `uki` and `raw`, and what `pack` made of them.
pub(crate) struct ReleaseFolder {
    dir: TempDir,
    pub(crate) manifest: Manifest,
}

impl ReleaseFolder {
    pub(crate) fn shared() -> &'static Self {
        static SHARED: LazyLock<ReleaseFolder> = LazyLock::new(|| {
            let dir = tempfile::tempdir().expect("a temporary folder");
            InputFolder::new().build(&[ImageForm::Uki, ImageForm::Raw], dir.path());
            let manifest = pack(dir.path(), &options(), &mut |_| {}).expect("a disk is there");
            ReleaseFolder { dir, manifest }
        });
        &SHARED
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
