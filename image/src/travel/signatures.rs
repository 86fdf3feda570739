//! Signatures beside the files of a folder.

use std::collections::HashSet;
use std::io;
use std::path::Path;

use crate::error::ImageError;
use crate::form::OutputRole;
use crate::manifest::{MANIFEST_FILE, Manifest, ManifestOutput};
use crate::out::{OutDir, hash, put};
use crate::regular_file::open_regular;

/// What a signature's file name adds to that of its file.
pub const SIGNATURE_ENDING: &str = ".minisig";
/// The signature of the manifest. As the manifest cannot name it, it is in no list.
pub const MANIFEST_SIGNATURE_FILE: &str = "manifest.json.minisig";

/// Writes a signature beside every file of the manifest, adds these to the manifest, and signs the manifest last. Every
/// file is compared with the manifest before the first signature, so that nothing is signed in a folder with a changed
/// file.
///
/// `sign` returns the content of the signature of the file at a path.
///
/// # Errors
/// The folder has no manifest, a file is missing or differs from the manifest, the folder cannot be written, or `sign`
/// fails.
pub fn sign_folder<E: From<ImageError>>(
    dir: &Path,
    sign: &mut dyn FnMut(&Path) -> Result<String, E>,
) -> Result<Manifest, E> {
    let manifest = Manifest::read(dir)?;
    let unsigned = |it: &ManifestOutput| it.role != OutputRole::Signature;
    compare(dir, manifest.outputs.iter().filter(|it| unsigned(it)))?;
    let mut out = OutDir::add_to(dir, &manifest, unsigned);
    for output in manifest.outputs.iter().filter(|it| unsigned(it)) {
        let name = format!("{}{SIGNATURE_ENDING}", output.file);
        // Forms share files, and one signature does for all.
        let signature = match out.output(&name) {
            Some(_) => String::new(),
            None => sign(&dir.join(&output.file))?,
        };
        out.bytes(
            output.form,
            OutputRole::Signature,
            &name,
            signature.as_bytes(),
        )?;
    }
    let manifest = out.finish(manifest)?;
    let signature = sign(&dir.join(MANIFEST_FILE))?;
    put(dir, MANIFEST_SIGNATURE_FILE, signature.as_bytes())?;
    Ok(manifest)
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
            Err(source) => {
                return Err(ImageError::InputUnreadable {
                    what: "file of the manifest",
                    path,
                    source,
                });
            }
        };
        if actual != output.sha256 {
            return Err(ImageError::OtherContent {
                path,
                actual,
                expected: output.sha256.clone(),
            });
        }
    }
    Ok(())
}
