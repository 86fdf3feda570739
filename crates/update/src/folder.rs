//! A repository in a folder, as any server of files has it.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use crate::bundle::{METADATA_FOLDER, TARGETS_FOLDER};
use crate::error::UpdateError;
use crate::refresh::{MetadataRequest, MetadataSource, VerifiedTargets};

/// A folder with `metadata/` and `targets/`: an unpacked bundle.
#[derive(Clone, Debug)]
pub struct RepositoryFolder {
    path: PathBuf,
}

impl RepositoryFolder {
    /// The repository in this folder. Reads nothing yet.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// Opens a target. Check its bytes while you read them ([`crate::UpdateTarget::copy`]).
    ///
    /// # Errors
    /// No such target was signed, or its file is missing or cannot be read.
    pub fn open_target(&self, verified: &VerifiedTargets, name: &str) -> Result<File, UpdateError> {
        let target = verified.target(name)?;
        let file = target.file_name(verified.is_consistent());
        let path = self.path.join(TARGETS_FOLDER).join(file);
        File::open(&path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => UpdateError::Missing {
                file: path.display().to_string(),
            },
            _ => UpdateError::source(&path.display().to_string(), error),
        })
    }
}

impl MetadataSource for RepositoryFolder {
    fn metadata(&mut self, request: &MetadataRequest) -> Result<Option<Vec<u8>>, UpdateError> {
        let path = self.path.join(METADATA_FOLDER).join(&request.name);
        let name = path.display().to_string();
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(UpdateError::source(&name, error)),
        };
        let mut document = Vec::new();
        // The file may be endless, such as a device: one byte behind the limit is enough to refuse it.
        let read = file.take(request.bytes_max + 1).read_to_end(&mut document);
        read.map_err(|error| UpdateError::source(&name, error))?;
        if document.len() as u64 > request.bytes_max {
            return Err(UpdateError::TooLarge {
                file: request.name.clone(),
                max: request.bytes_max,
            });
        }
        Ok(Some(document))
    }
}
