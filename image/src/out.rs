//! The output folder: files appear whole or not at all, each beside its checksum.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

use crate::disk_parts::ManifestDisk;
use crate::error::ImageError;
use crate::form::{ImageForm, OutputRole};
use crate::manifest::{MANIFEST_FILE, Manifest, ManifestOutput};
use crate::start::StartMethod;
use crate::travel::MANIFEST_SIGNATURE_FILE;

/// Bytes read at once when a finished file is hashed.
const READ_BYTES: usize = 1 << 20;

#[derive(Debug)]
pub(crate) struct OutDir<'a> {
    dir: &'a Path,
    outputs: Vec<ManifestOutput>,
}

impl<'a> OutDir<'a> {
    /// Opens the folder, and makes it if it is missing. An older manifest is removed first: from
    /// here on it would describe files that are being replaced.
    pub(crate) fn open(dir: &'a Path) -> Result<Self, ImageError> {
        fs::create_dir_all(dir).map_err(at(dir))?;
        let manifest = dir.join(MANIFEST_FILE);
        match fs::remove_file(&manifest) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(at(&manifest)(source)),
            _ => Ok(Self {
                dir,
                outputs: Vec::new(),
            }),
        }
    }

    /// Adds files to a finished folder. Its manifest, of which the outputs that `is_kept` are carried over, stays until
    /// [`finish`](Self::finish) replaces it.
    pub(crate) fn add_to(
        dir: &'a Path,
        manifest: &Manifest,
        is_kept: impl Fn(&ManifestOutput) -> bool,
    ) -> Self {
        let outputs = manifest.outputs.iter().filter(|it| is_kept(it)).cloned();
        Self {
            dir,
            outputs: outputs.collect(),
        }
    }

    /// The file of this name, if it was written.
    pub(crate) fn output(&self, name: &str) -> Option<&ManifestOutput> {
        self.outputs.iter().find(|output| output.file == name)
    }

    /// Writes bytes as `name`, unless an earlier form has already written the same file.
    pub(crate) fn bytes(
        &mut self,
        form: ImageForm,
        role: OutputRole,
        name: &str,
        bytes: &[u8],
    ) -> Result<(), ImageError> {
        if let Some(shared) = self.output(name) {
            let output = ManifestOutput {
                form,
                role,
                start: StartMethod::names(form, role),
                ..shared.clone()
            };
            self.outputs.push(output);
            return Ok(());
        }
        self.with(form, role, name, |path| {
            fs::write(path, bytes).map_err(at(path))
        })
    }

    /// Lets `write` make the file under a temporary name, then renames, hashes and records it.
    pub(crate) fn with(
        &mut self,
        form: ImageForm,
        role: OutputRole,
        name: &str,
        write: impl FnOnce(&Path) -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        let part = PartialFile(self.dir.join(format!(".{name}.part")));
        write(&part.0)?;
        let (bytes, sha256) = hash(&part.0).map_err(at(&part.0))?;
        let path = self.dir.join(name);
        fs::rename(&part.0, &path).map_err(at(&path))?;
        let sums = self.dir.join(format!("{name}.sha256"));
        // The format of sha256sum(1), which can check the file with it.
        fs::write(&sums, format!("{sha256}  {name}\n")).map_err(at(&sums))?;
        self.outputs.push(ManifestOutput {
            form,
            role,
            file: name.to_owned(),
            bytes,
            sha256,
            start: StartMethod::names(form, role),
        });
        Ok(())
    }

    /// Writes the manifest, which shows that everything that it names is complete.
    pub(crate) fn finish(self, mut manifest: Manifest) -> Result<Manifest, ImageError> {
        manifest.outputs = self.outputs;
        manifest.disk = ManifestDisk::among(self.dir, &manifest.outputs)?;
        // The signature of an earlier manifest does not hold for this one.
        let signature = self.dir.join(MANIFEST_SIGNATURE_FILE);
        match fs::remove_file(&signature) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(at(&signature)(source));
            }
            _ => {}
        }
        let part = PartialFile(self.dir.join(format!(".{MANIFEST_FILE}.part")));
        fs::write(&part.0, manifest.to_json()).map_err(at(&part.0))?;
        let path = self.dir.join(MANIFEST_FILE);
        fs::rename(&part.0, &path).map_err(at(&path))?;
        Ok(manifest)
    }
}

/// The error for a file that cannot be written.
pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> ImageError {
    let path = path.to_owned();
    move |source| ImageError::Output { path, source }
}

/// A file under its temporary name, which is removed after an error.
struct PartialFile(PathBuf);

impl Drop for PartialFile {
    fn drop(&mut self) {
        // After success it has another name, and there is nothing to remove.
        let _ = fs::remove_file(&self.0);
    }
}

/// Size and SHA-256 of a file.
pub(crate) fn hash(path: &Path) -> io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; READ_BYTES];
    let mut bytes = 0;
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok((bytes, HEXLOWER.encode(&hasher.finalize())));
        }
        hasher.update(&buffer[..read]);
        bytes += read as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_file_leaves_nothing_behind_and_takes_the_old_manifest_along() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        fs::write(dir.path().join(MANIFEST_FILE), "old").expect("writable");
        let mut out = OutDir::open(dir.path()).expect("opens");
        let failed = out.with(ImageForm::Uki, OutputRole::Uki, "x", |path| {
            fs::write(path, "half").map_err(at(path))?;
            Err(ImageError::ToolMissing {
                tool: "t",
                package: "p",
            })
        });
        assert_eq!(failed.expect_err("the writer's error").exit_code(), 4);
        assert_eq!(fs::read_dir(dir.path()).expect("readable").count(), 0);
    }

    #[test]
    fn an_output_folder_that_is_a_file_is_named() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let error = OutDir::open(file.path()).expect_err("not a folder");
        assert_eq!(error.exit_code(), 1);
        assert!(
            error.to_string().contains(&*file.path().to_string_lossy()),
            "{error}"
        );
    }
}
