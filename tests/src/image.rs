//! The image and the binary under test, built by `cargo xtask test`.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use alknet_image::{ImageForm, Manifest, OutputRole};

/// Folder of the image. Its `manifest.json` names everything in it.
const IMAGE_VARIABLE: &str = "ALKNET_TEST_IMAGE_DIR";

/// The binary.
const BINARY_VARIABLE: &str = "ALKNET_TEST_BIN";

/// A built image.
#[derive(Debug)]
pub struct BuiltImageFolder {
    folder: PathBuf,
    manifest: Manifest,
}

impl BuiltImageFolder {
    /// The image under test.
    ///
    /// # Panics
    /// The variable that names the image is not set, or the image's manifest cannot be read.
    pub fn get() -> &'static Self {
        static IMAGE: OnceLock<BuiltImageFolder> = OnceLock::new();
        IMAGE.get_or_init(|| {
            let folder = PathBuf::from(variable(IMAGE_VARIABLE));
            let manifest = Manifest::read(&folder).unwrap_or_else(|error| panic!("{error}"));
            Self { folder, manifest }
        })
    }

    /// The file with `role` in `form`.
    ///
    /// # Panics
    /// It was not built.
    pub fn file(&self, form: ImageForm, role: OutputRole) -> PathBuf {
        let path = self.manifest.path(&self.folder, form, role);
        path.unwrap_or_else(|| panic!("the {form} image has no {role:?}; run `cargo xtask test`"))
    }

    /// The description of a machine in `form` whose file name ends with `ending`.
    ///
    /// # Panics
    /// It was not built.
    pub fn example(&self, form: ImageForm, ending: &str) -> PathBuf {
        let mut examples = self
            .manifest
            .outputs
            .iter()
            .filter(|output| output.form == form && output.role == OutputRole::Example);
        let found = examples.find(|output| output.file.ends_with(ending));
        let found = found.unwrap_or_else(|| panic!("the {form} image has no example *{ending}"));
        self.folder.join(&found.file)
    }

    /// The kernel command line of `form`.
    pub fn command_line(&self, form: ImageForm) -> &str {
        self.manifest.cmdline(form).unwrap_or_default()
    }

    /// Digests of the files of `form`.
    pub(crate) fn digests(&self, form: ImageForm) -> String {
        let files = self.manifest.outputs.iter();
        let files = files.filter(|file| file.form == form);
        files.map(|file| format!("{}\n", file.sha256)).collect()
    }

    /// The manifest of the build.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

/// The binary under test.
///
/// # Panics
/// The variable that names the binary is not set.
#[must_use]
pub fn binary() -> PathBuf {
    variable(BINARY_VARIABLE).into()
}

fn variable(name: &str) -> std::ffi::OsString {
    std::env::var_os(name)
        .unwrap_or_else(|| panic!("{name} is not set; run these tests with `cargo xtask test`"))
}
