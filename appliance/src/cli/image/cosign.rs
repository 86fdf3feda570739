//! `alknet image cosign`: one more signature for a root document or an update bundle.

use std::path::{Path, PathBuf};

use alknet_update::limits::ROOT_BYTES_MAX;
use alknet_update::{
    CosignedBundle, CosignedRoot, MissingSignatures, ReleaseInfo, SigningError, UpdateTarget,
    cosign_bundle, cosign_root,
};
use clap::Args;
use data_encoding::HEXLOWER;
use serde_json::{Value, json};

use super::bundle::{of_signing, put};
use super::read_bounded;
use super::release::ReleaseKeyArgs;
use super::renew::BUNDLE_BYTES_MAX;
use super::root::root_version;
use crate::cli::{CommandError, CommandExit, output};

/// Arguments of `alknet image cosign`.
#[derive(Debug, Args)]
pub(crate) struct ImageCosignArgs {
    /// A root document or a bundle that was made with --incomplete.
    file: PathBuf,
    #[command(flatten)]
    keys: ReleaseKeyArgs,
    /// For a root document of a later version: the one that it replaces, from your own files.
    #[arg(long, value_name = "FILE")]
    previous: Option<PathBuf>,
    /// For a bundle: the newest root document, from your own files. The bundle must have the same one.
    #[arg(long, value_name = "FILE")]
    root: Option<PathBuf>,
    /// The file for the result [default: the same file]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Runs it.
pub(super) fn run(args: &ImageCosignArgs, json: bool) -> Result<CommandExit, CommandError> {
    let content = read_bounded(&args.file, BUNDLE_BYTES_MAX)?;
    let out = args.out.as_ref().unwrap_or(&args.file);
    if root_version(&content).is_ok() {
        if args.root.is_some() {
            let text = "leave out --root: it is for bundles, and this file is a root document";
            return Err(CommandError::usage(text));
        }
        let previous = args.previous.as_ref();
        let previous = previous.map(|path| read_bounded(path, ROOT_BYTES_MAX));
        let previous = previous.transpose()?;
        let signed = args.keys.with_signers(|signers| {
            cosign_root(&content, previous.as_deref(), signers).map_err(of_signing)
        })?;
        put(out, &signed.document)?;
        report_root(out, &signed, json)?;
    } else {
        if args.previous.is_some() {
            let text = "leave out --previous: it is for root documents, and this file is a bundle";
            return Err(CommandError::usage(text));
        }
        let Some(root) = &args.root else {
            let text = "add --root with the newest root document, from your own files: this file is a bundle";
            return Err(CommandError::usage(text));
        };
        let own_root = read_bounded(root, ROOT_BYTES_MAX)?;
        let signed = args.keys.with_signers(|signers| {
            let signed = cosign_bundle(&content, &own_root, signers);
            signed.map_err(|error| of_cosigning(error, &args.file, root))
        })?;
        put(out, &signed.bundle)?;
        report_bundle(out, &signed, json)?;
    }
    Ok(CommandExit::Ok)
}

/// Names the files that an error is about.
fn of_cosigning(error: SigningError, bundle: &Path, root: &Path) -> CommandError {
    let bundle = bundle.display();
    match error {
        SigningError::OtherRoot { .. } => CommandError::usage(format!(
            "{bundle} has another root document than {}: {error}",
            root.display()
        )),
        SigningError::Document(error) => CommandError::usage(format!("{bundle}: {error}")),
        error => of_signing(error),
    }
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

fn report_bundle(out: &Path, signed: &CosignedBundle, json: bool) -> Result<(), CommandError> {
    let is_present = |target: &UpdateTarget| signed.present.contains(&target.name);
    if json {
        let targets = signed.targets.iter().map(|target| {
            json!({
                "name": target.name,
                "bytes": target.bytes,
                "sha256": HEXLOWER.encode(&target.sha256),
                "version": target.release.as_ref().map(|release| &release.version),
                "floor": target.release.as_ref().and_then(|release| release.floor.as_ref()),
                "needs": target.release.as_ref().map(|release| &release.needs),
                "in_file": is_present(target),
            })
        });
        return output::json_line(&json!({
            "file": out,
            "bytes": signed.bundle.len(),
            "number": signed.number,
            "expires": signed.expires.to_string(),
            "timestamp_expires": signed.timestamp_expires.to_string(),
            "targets": targets.collect::<Vec<_>>(),
            "missing": missing_json(&signed.missing),
        }));
    }
    output::line(&out.display().to_string())?;
    output::note(&format!(
        "alknet: you signed release {}, valid until {}, its timestamp until {}",
        signed.number, signed.expires, signed.timestamp_expires
    ));
    for target in &signed.targets {
        let place = match is_present(target) {
            true => "",
            false => ", in another file",
        };
        let hash = HEXLOWER.encode(&target.sha256);
        output::note(&format!("  {}: SHA-256 {hash}{place}", target.name));
        if let Some(release) = &target.release {
            output::note(&format!("    {}", described(release)));
        }
    }
    note_missing_of_bundle(&signed.missing, out);
    Ok(())
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
    note_missing_with(missing, file, "--key KEY");
}

/// Like `note_missing`, of a bundle.
pub(super) fn note_missing_of_bundle(missing: &[MissingSignatures], file: &Path) {
    note_missing_with(missing, file, "--root ROOT --key KEY");
}

fn note_missing_with(missing: &[MissingSignatures], file: &Path, options: &str) {
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
        "alknet: add one where another of these keys is: alknet image cosign {} {options}",
        file.display()
    ));
}
