//! Signatures beside the files of a folder.

use std::path::Path;

use crate::error::ImageError;
use crate::form::OutputRole;
use crate::manifest::{MANIFEST_FILE, Manifest, ManifestOutput};
use crate::out::{OutDir, put};

/// What a signature's file name adds to that of its file.
pub const SIGNATURE_ENDING: &str = ".minisig";
/// The signature of the manifest. As the manifest cannot name it, it is in no list.
pub const MANIFEST_SIGNATURE_FILE: &str = "manifest.json.minisig";

/// Writes a signature beside every file of the manifest, adds these to the manifest, and signs the manifest last.
///
/// `sign` returns the content of the signature of the file at a path.
///
/// # Errors
/// The folder has no manifest or cannot be written, or `sign` fails.
pub fn sign_folder<E: From<ImageError>>(
    dir: &Path,
    sign: &mut dyn FnMut(&Path) -> Result<String, E>,
) -> Result<Manifest, E> {
    let manifest = Manifest::read(dir)?;
    let unsigned = |it: &ManifestOutput| it.role != OutputRole::Signature;
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
