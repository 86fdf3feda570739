//! Signatures beside the files of a folder.

use std::collections::HashSet;
use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::HashedFile;
use crate::error::ImageError;
use crate::form::OutputRole;
use crate::manifest::{MANIFEST_FILE, Manifest, ManifestOutput};
use crate::out::{OutDir, hash, put};
use crate::regular_file::open_regular;

/// What a signature's file name adds to that of its file.
pub const SIGNATURE_ENDING: &str = ".minisig";
/// The signature of the manifest. As the manifest cannot name it, it is in no list.
pub const MANIFEST_SIGNATURE_FILE: &str = "manifest.json.minisig";

/// A file of a folder that gets a signature.
#[non_exhaustive]
pub struct FileToSign<'a> {
    /// Its path. Another person may have put another file there by now.
    pub path: &'a Path,
    /// The version of the image, if the file is its manifest.
    pub version: Option<&'a str>,
    /// Its content. The signer has to read it to the end.
    pub content: &'a mut dyn Read,
}

impl fmt::Debug for FileToSign<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileToSign")
            .field("path", &self.path)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// What returns the content of the signature of a file.
type SignFile<'a, E> = &'a mut dyn FnMut(FileToSign<'_>) -> Result<String, E>;

/// Writes a signature beside every file of the manifest, adds these to the manifest, and signs the manifest last. Every
/// file is compared with the manifest before the first signature, so that nothing is signed in a folder with a changed
/// file. Each signature is of bytes that have the hash of the manifest, also if another person exchanges files of the
/// folder meanwhile, and the last one is of the manifest that this function makes.
///
/// `sign` returns the content of the signature of a file.
///
/// # Errors
/// The folder has no manifest, a file is missing or differs from the manifest, the folder cannot be written, or `sign`
/// fails.
pub fn sign_folder<E: From<ImageError>>(dir: &Path, sign: SignFile<'_, E>) -> Result<Manifest, E> {
    sign_outputs(dir, Manifest::read(dir)?, sign)
}

/// Does the same with a manifest that the caller has made or read: another person who can write to the folder may have
/// put another one there.
///
/// # Errors
/// The errors of [`sign_folder`], but for those of reading a manifest.
pub fn sign_outputs<E: From<ImageError>>(
    dir: &Path,
    manifest: Manifest,
    sign: SignFile<'_, E>,
) -> Result<Manifest, E> {
    let unsigned = |it: &ManifestOutput| it.role != OutputRole::Signature;
    compare(dir, manifest.outputs.iter().filter(|it| unsigned(it)))?;
    let mut out = OutDir::add_to(dir, &manifest, unsigned);
    for output in manifest.outputs.iter().filter(|it| unsigned(it)) {
        let name = format!("{}{SIGNATURE_ENDING}", output.file);
        // Forms share files, and one signature does for all.
        let signature = match out.output(&name) {
            Some(_) => String::new(),
            None => signature(dir, output, sign)?,
        };
        out.bytes(
            output.form,
            OutputRole::Signature,
            &name,
            signature.as_bytes(),
        )?;
    }
    let manifest = out.finish(manifest)?;
    let signature = sign(FileToSign {
        path: &dir.join(MANIFEST_FILE),
        version: Some(&manifest.version),
        // Not what the folder has by now.
        content: &mut &manifest.to_json()[..],
    })?;
    put(dir, MANIFEST_SIGNATURE_FILE, signature.as_bytes())?;
    Ok(manifest)
}

/// The signature of a file, if the bytes that were signed have the hash of the manifest.
fn signature<E: From<ImageError>>(
    dir: &Path,
    output: &ManifestOutput,
    sign: SignFile<'_, E>,
) -> Result<String, E> {
    let path = dir.join(&output.file);
    let opened = open_regular(&path).map_err(|error| unreadable(path.clone(), error.into()))?;
    let mut content = HashedFile::new(&opened);
    let signature = sign(FileToSign {
        path: &path,
        version: None,
        content: &mut content,
    })?;
    check_content(path, output, content.sha256())?;
    Ok(signature)
}

/// Compares files with their entries in the manifest.
fn compare<'m>(
    dir: &Path,
    outputs: impl Iterator<Item = &'m ManifestOutput>,
) -> Result<(), ImageError> {
    let mut seen = HashSet::new();
    for output in outputs {
        // Forms share files, and a disk takes a second to read.
        if !seen.insert((&output.file, &output.sha256)) {
            continue;
        }
        let path = dir.join(&output.file);
        let opened = open_regular(&path).map_err(io::Error::from);
        let (_, actual) = match opened.and_then(|file| hash(&file)) {
            Ok(hashed) => hashed,
            Err(source) => return Err(unreadable(path, source)),
        };
        check_content(path, output, actual)?;
    }
    Ok(())
}

fn unreadable(path: PathBuf, source: io::Error) -> ImageError {
    ImageError::InputUnreadable {
        what: "file of the manifest",
        path,
        source,
    }
}

/// Compares the hash of a file with its entry in the manifest.
pub(super) fn check_content(
    path: PathBuf,
    output: &ManifestOutput,
    actual: String,
) -> Result<(), ImageError> {
    match actual == output.sha256 {
        true => Ok(()),
        false => Err(ImageError::OtherContent {
            path,
            actual,
            expected: output.sha256.clone(),
        }),
    }
}
