//! `alknet image cosign`: one more signature for a root document or an update bundle.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use alknet_image::{RegularFileError, read_regular};
use alknet_update::limits::ROOT_BYTES_MAX;
use alknet_update::{
    CosignedBundle, CosignedRoot, MissingSignatures, ReleaseInfo, SigningError, cosign_bundle,
    cosign_root,
};
use clap::Args;
use data_encoding::HEXLOWER;
use serde_json::{Value, json};

use super::bundle::of_signing;
use super::named_output::{put, put_all};
use super::release::ReleaseKeyArgs;
use super::renew::BUNDLE_BYTES_MAX;
use super::root::root_version;
use super::{of_regular_file, read_bounded};
use crate::cli::{CommandError, CommandExit, output};

/// Most bytes of all bundles of one call. The command has them in memory, and the results beside them.
const BUNDLES_BYTES_MAX: u64 = BUNDLE_BYTES_MAX;
/// What to do when only some bundles were replaced: the next call refuses bundles of which only some have the new
/// signatures.
const IN_NEXT_CALL: &str = "Give all bundles as you got them in the next call";

/// Arguments of `alknet image cosign`.
#[derive(Debug, Args)]
pub(crate) struct ImageCosignArgs {
    /// A root document or a bundle that was made with --incomplete.
    file: PathBuf,
    /// The other bundles of the same release, all that 'image bundle --from' made. They have the same documents, so that
    /// each signature is for all of them: a file that the documents describe must be in one of the bundles.
    #[arg(value_name = "BUNDLE")]
    others: Vec<PathBuf>,
    #[command(flatten)]
    keys: ReleaseKeyArgs,
    /// For a root document of a later version: the one that it replaces, from your own files.
    #[arg(long, value_name = "FILE")]
    previous: Option<PathBuf>,
    /// For a bundle: the newest root document, from your own files. The bundle must have the same one.
    #[arg(long, value_name = "FILE")]
    root: Option<PathBuf>,
    /// The file for the result. Other bundles go into its folder, by their names [default: the same files]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Runs it.
pub(super) fn run(args: &ImageCosignArgs, json: bool) -> Result<CommandExit, CommandError> {
    let content = read_bounded(&args.file, BUNDLE_BYTES_MAX)?;
    match root_version(&content).is_ok() {
        true => args.sign_root(&content, json)?,
        false => args.sign_bundles(&content, json)?,
    }
    Ok(CommandExit::Ok)
}

impl ImageCosignArgs {
    fn sign_root(&self, document: &[u8], json: bool) -> Result<(), CommandError> {
        if self.root.is_some() {
            let text = "leave out --root: it is for bundles, and this file is a root document";
            return Err(CommandError::usage(text));
        }
        if !self.others.is_empty() {
            let text = "leave out the other files: the first one is a root document";
            return Err(CommandError::usage(text));
        }
        let previous = self.previous.as_ref();
        let previous = previous.map(|path| read_bounded(path, ROOT_BYTES_MAX));
        let previous = previous.transpose()?;
        let signed = self.keys.with_signers(|signers| {
            cosign_root(document, previous.as_deref(), signers).map_err(of_signing)
        })?;
        let out = self.out.as_ref().unwrap_or(&self.file);
        put(out, &signed.document)?;
        report_root(out, &signed, json)
    }

    fn sign_bundles(&self, bundle: &[u8], json: bool) -> Result<(), CommandError> {
        if self.previous.is_some() {
            let text = "leave out --previous: it is for root documents, and this file is a bundle";
            return Err(CommandError::usage(text));
        }
        let Some(root) = &self.root else {
            let text = "add --root with the newest root document, from your own files: this file is a bundle";
            return Err(CommandError::usage(text));
        };
        let outs = self.outs()?;
        let own_root = read_bounded(root, ROOT_BYTES_MAX)?;
        let left = BUNDLES_BYTES_MAX.saturating_sub(bundle.len() as u64);
        let others = read_bundles(&self.others, left)?;
        let others: Vec<&[u8]> = others.iter().map(Vec::as_slice).collect();
        let signed = self.keys.with_signers(|signers| {
            let signed = cosign_bundle(bundle, &others, &own_root, signers);
            signed.map_err(|error| self.of_bundles(error, root))
        })?;
        let contents = [&signed.bundle].into_iter().chain(&signed.others);
        let files = outs.iter().map(PathBuf::as_path);
        let files: Vec<_> = files.zip(contents.map(Vec::as_slice)).collect();
        put_all(&files, IN_NEXT_CALL)?;
        report_bundles(&outs, &signed, json)
    }

    /// The files for the results, in the order of the bundles.
    fn outs(&self) -> Result<Vec<PathBuf>, CommandError> {
        let other_out = |other: &PathBuf| match &self.out {
            Some(out) => out.with_file_name(other.file_name().unwrap_or_default()),
            None => other.clone(),
        };
        let first = self.out.as_ref().unwrap_or(&self.file).clone();
        let others = self.others.iter().map(other_out);
        let outs: Vec<_> = [first].into_iter().chain(others).collect();
        let distinct: BTreeSet<_> = outs.iter().collect();
        if distinct.len() < outs.len() {
            let text = "two results would have the same file: give each bundle once, and another name in --out";
            return Err(CommandError::usage(text));
        }
        Ok(outs)
    }

    /// Names the files that an error is about.
    fn of_bundles(&self, error: SigningError, root: &Path) -> CommandError {
        let first = self.file.display();
        let other = |at: usize| self.others.get(at).unwrap_or(&self.file).display();
        match error {
            SigningError::Document(error) => CommandError::usage(format!("{first}: {error}")),
            SigningError::OtherBundle { at, why } => {
                CommandError::usage(format!("{}: {why}", other(at)))
            }
            SigningError::OtherDocuments { at } => {
                CommandError::usage(format!("{}: {error}", other(at)))
            }
            SigningError::OtherRoot { .. } => CommandError::usage(format!(
                "{first} has another root document than {}: {error}",
                root.display()
            )),
            error => of_signing(error),
        }
    }
}

/// Reads bundles that have at most `left` bytes together.
fn read_bundles(paths: &[PathBuf], mut left: u64) -> Result<Vec<Vec<u8>>, CommandError> {
    let mut bundles = Vec::new();
    for path in paths {
        let bundle = read_regular(path, left).map_err(|error| match error {
            RegularFileError::TooLong { .. } => CommandError::usage(format!(
                "{} is too long: the bundles of a call have at most {BUNDLES_BYTES_MAX} bytes together",
                path.display()
            )),
            error => of_regular_file(path, &error),
        })?;
        left = left.saturating_sub(bundle.len() as u64);
        bundles.push(bundle);
    }
    Ok(bundles)
}

fn report_root(out: &Path, signed: &CosignedRoot, json: bool) -> Result<(), CommandError> {
    let roles = signed.roles.iter().map(|(role, keys)| {
        let names: Vec<_> = keys.keys().map(|key| key.to_string()).collect();
        (role.name(), keys.threshold(), names)
    });
    if json {
        let roles = roles.map(|(role, threshold, keys)| {
            let of_role = json!({ "keys": keys, "threshold": threshold });
            (role.to_owned(), of_role)
        });
        return output::json_line(&json!({
            "file": out,
            "version": signed.version,
            "expires": signed.expires.to_string(),
            "roles": roles.collect::<serde_json::Map<_, _>>(),
            "missing": missing_json(&signed.missing),
        }));
    }
    output::line(&out.display().to_string())?;
    output::note(&format!(
        "alknet: you signed root document {}, valid until {}",
        signed.version, signed.expires
    ));
    for (role, threshold, keys) in roles {
        output::note(&format!("  {role}: {threshold} of {}", keys.join(" ")));
    }
    note_missing(&signed.missing, out);
    Ok(())
}

fn report_bundles(
    outs: &[PathBuf],
    signed: &CosignedBundle,
    json: bool,
) -> Result<(), CommandError> {
    if json {
        return output::json_line(&bundles_json(outs, signed));
    }
    for out in outs {
        output::line(&out.display().to_string())?;
    }
    output::note(&format!(
        "alknet: you signed release {}, valid until {}, its timestamp until {}",
        signed.number, signed.expires, signed.timestamp_expires
    ));
    for target in &signed.targets {
        let hash = HEXLOWER.encode(&target.sha256);
        output::note(&format!("  {}: SHA-256 {hash}", target.name));
        if let Some(release) = &target.release {
            output::note(&format!("    {}", described(release)));
        }
    }
    note_missing_of_bundles(&signed.missing, outs);
    Ok(())
}

/// What was signed, for programs.
fn bundles_json(outs: &[PathBuf], signed: &CosignedBundle) -> Value {
    let targets = signed.targets.iter().map(|target| {
        json!({
            "name": target.name,
            "bytes": target.bytes,
            "sha256": HEXLOWER.encode(&target.sha256),
            "version": target.release.as_ref().map(|release| &release.version),
            "floor": target.release.as_ref().and_then(|release| release.floor.as_ref()),
            "needs": target.release.as_ref().map(|release| &release.needs),
        })
    });
    let others = outs.iter().skip(1).zip(&signed.others);
    let others = others.map(|(out, bundle)| json!({ "file": out, "bytes": bundle.len() }));
    json!({
        "file": outs.first(),
        "bytes": signed.bundle.len(),
        "others": others.collect::<Vec<_>>(),
        "number": signed.number,
        "expires": signed.expires.to_string(),
        "timestamp_expires": signed.timestamp_expires.to_string(),
        "targets": targets.collect::<Vec<_>>(),
        "missing": missing_json(&signed.missing),
    })
}

/// What a machine decides by, for a person who signs it.
fn described(release: &ReleaseInfo) -> String {
    let floor = match &release.floor {
        Some(floor) => format!("floor {floor}"),
        None => "no floor".to_owned(),
    };
    let needs = match release.needs.is_empty() {
        true => "no needs".to_owned(),
        false => format!("needs {}", release.needs.join(" and ")),
    };
    format!("version {}, {floor}, {needs}", release.version)
}

/// The signatures that are missing, for programs.
pub(super) fn missing_json(missing: &[MissingSignatures]) -> Vec<Value> {
    let missing = missing.iter().map(|it| {
        let keys: Vec<_> = it.keys.iter().map(ToString::to_string).collect();
        json!({
            "role": it.role,
            "named_by": it.by.to_string(),
            "valid": it.valid,
            "threshold": it.threshold,
            "keys": keys,
        })
    });
    missing.collect()
}

/// Says how many signatures a root document lacks, and how to add them.
pub(super) fn note_missing(missing: &[MissingSignatures], file: &Path) {
    note_missing_with(missing, &file.display().to_string(), "--key KEY");
}

/// Like `note_missing`, of the bundles of a release.
pub(super) fn note_missing_of_bundles(missing: &[MissingSignatures], files: &[PathBuf]) {
    let files = files.iter().map(|file| file.display().to_string());
    let files = files.collect::<Vec<_>>().join(" ");
    note_missing_with(missing, &files, "--root ROOT --key KEY");
}

fn note_missing_with(missing: &[MissingSignatures], files: &str, options: &str) {
    if missing.is_empty() {
        return;
    }
    output::note("alknet: machines refuse this file, because signatures are missing:");
    for of_document in missing {
        output::note(&format!("  {of_document}"));
        for key in &of_document.keys {
            output::note(&format!("    {key} may sign"));
        }
    }
    output::note(&format!(
        "alknet: add one where another of these keys is: alknet image cosign {files} {options}"
    ));
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn bundles_count_together() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let paths = ["one.tar", "two.tar"].map(|name| folder.path().join(name));
        for path in &paths {
            fs::write(path, "1234").expect("the folder is ours");
        }
        let read = read_bundles(&paths, 8).expect("both fit");
        assert_eq!(read, [b"1234", b"1234"]);
        let refused = read_bundles(&paths, 7).expect_err("each fits, and both do not");
        assert!(refused.message.contains("two.tar is too long"), "{refused}");
    }
}
