//! `alknet image bundle`: an update bundle of an image's EFI program.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use alknet_image::{ImageError, ImageForm, MANIFEST_FILE, Manifest, ManifestOutput, OutputRole};
use alknet_image_write::minisign::MinisignKey;
use alknet_tpm::predict::{PredictError, authenticode, measured_sections};
use alknet_update::limits::{CHANGES_BYTES_MAX, ROOT_BYTES_MAX, TARGET_BYTES_MAX};
use alknet_update::{
    MissingSignatures, ReleaseInfo, ReleasePlan, ReleaseVersion, SignedRelease, SigningError,
    UpdateTarget, begin_release, sign_release, write_bundle,
};
use clap::Args;
use data_encoding::HEXLOWER;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::cosign::{missing_json, note_missing_of_bundles};
use super::delta::{self, ProgramDelta};
use super::named_output::put_all;
use super::release::{ExpiryTime, ReleaseKeyArgs};
use super::root::root_version;
use super::verify::{check_signature, public_key};
use super::{of_image, read_bounded, read_own_text};
use crate::cli::{CommandError, CommandExit, output};

/// Arguments of `alknet image bundle`.
#[derive(Debug, Args)]
pub(crate) struct ImageBundleArgs {
    /// The folder of an image with the form uki, or its EFI program. For the channel beta its version needs a pre-release
    /// part, such as 1.4.0-beta.1: the same keys sign both channels, and machines tell them apart by it.
    what: PathBuf,
    #[command(flatten)]
    keys: ReleaseKeyArgs,
    /// The public key that verifies what is released: a file of minisign, or its line that begins with RW. Each folder,
    /// also those of --from, needs a signature of its manifest by this key; each EFI program needs one beside it. Without
    /// this option you have to be the only user who can write to them.
    #[arg(long, value_name = "KEY")]
    manifest_key: Option<String>,
    /// The root document; repeated, every version of it from the first one on.
    #[arg(long = "root", value_name = "FILE", required = true)]
    roots: Vec<PathBuf>,
    /// The number of the release: higher than that of any release before, in either channel. Machines refuse a lower one.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    number: u64,
    /// When the release expires: a day, or a time in UTC.
    #[arg(long, value_name = "TIME")]
    expires: ExpiryTime,
    /// When machines stop to believe that this is the newest release.
    #[arg(long, value_name = "TIME")]
    timestamp_expires: ExpiryTime,
    /// What changed, for administrators: plain text of at most 4 KiB.
    #[arg(long, value_name = "FILE")]
    changes: Option<PathBuf>,
    /// The oldest version that may run after this one was confirmed.
    #[arg(long, value_name = "VERSION")]
    floor: Option<ReleaseVersion>,
    /// A name of what a machine must have for this version; may be repeated. A machine that does not know the name refuses
    /// the bundle.
    #[arg(long, value_name = "NAME")]
    needs: Vec<String>,
    /// A program of before, or the folder of its image; may be repeated. For each of them a bundle with only the differences
    /// is made in the folder of --out, for machines that run that program.
    #[arg(long, value_name = "OLD")]
    from: Vec<PathBuf>,
    /// Make the bundle also with fewer signatures than have to be on it. Others add theirs by 'alknet image cosign'.
    #[arg(long)]
    incomplete: bool,
    /// The file for the bundle.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Runs it.
pub(super) fn run(args: &ImageBundleArgs, json: bool) -> Result<CommandExit, CommandError> {
    let key = args.manifest_key.as_deref();
    let key = key.map(public_key).transpose()?;
    let roots = roots(&args.roots)?;
    let newest = roots.last().map(Vec::as_slice).unwrap_or_default();
    let named = NamedProgram::read(&args.what, key.as_ref())?;
    let (path, program) = (&named.path, &*named.content);
    let refused = |why: &dyn std::fmt::Display| {
        CommandError::usage(format!("{} cannot be released: {why}", path.display()))
    };
    let mut release = described(program).map_err(|why| refused(&why))?;
    release.floor.clone_from(&args.floor);
    release.needs.clone_from(&args.needs);
    if let Some(changes) = &args.changes {
        release.changes = read_own_text(changes, CHANGES_BYTES_MAX as u64)?;
    }
    let version = release.version.clone();
    let name = format!("alknet_{version}.efi");
    let target = UpdateTarget::describe(&name, Some(release), &mut &*named.content);
    let target = target.map_err(|why| refused(&why))?;
    let deltas = delta::deltas(&args.from, &name, program, key.as_ref())?;
    if !json {
        note_programs(&named, &version, &deltas);
    }
    let of_deltas = deltas.iter().map(|delta| delta.target.clone());
    let plan = ReleasePlan {
        version: args.number,
        expires: args.expires.0,
        timestamp_expires: args.timestamp_expires.0,
        // All bundles of a release have the same documents: a machine that has seen one of them takes each.
        targets: [target.clone()].into_iter().chain(of_deltas).collect(),
    };
    let (signed, missing) = args.keys.with_signers(|signers| {
        let signed = match args.incomplete {
            true => begin_release(newest, &plan, signers),
            false => sign_release(newest, &plan, signers).map(|signed| (signed, Vec::new())),
        };
        signed.map_err(of_signing)
    })?;
    let bundle = bundle_of(&roots, &signed, &target, program)?;
    let mut files = vec![(args.out.clone(), bundle)];
    for delta in &deltas {
        let bundle = bundle_of(&roots, &signed, &delta.target, &delta.bytes)?;
        files.push((delta.path(&args.out), bundle));
    }
    put_together(&files)?;
    let bundle = files.first().map(|(_, bundle)| bundle.as_slice());
    let released = (&version, bundle.unwrap_or_default());
    report(args, &named, released, &deltas, &missing, json)
}

/// Prints what the keys are about to sign, before they are opened.
fn note_programs(named: &NamedProgram, version: &ReleaseVersion, deltas: &[ProgramDelta]) {
    let note = |text: String| output::note(&output::one_line(&text));
    let path = named.path.display();
    note(format!(
        "alknet: to be signed: version {version} from {path}, SHA-256 of the program {}",
        named.sha256
    ));
    for delta in deltas {
        let base = &delta.base;
        note(format!(
            "alknet: to be signed: a delta from the program with SHA-256 {base}"
        ));
    }
    note(match &named.comment {
        Some(comment) => format!("alknet: the signature holds: {comment}"),
        None => "alknet: no signature was checked; compare the SHA-256 with that of your build, or give --manifest-key"
            .to_owned(),
    });
}

/// Prints the files that were made. The third argument is the version of the program, and its bundle.
fn report(
    args: &ImageBundleArgs,
    named: &NamedProgram,
    (version, bundle): (&ReleaseVersion, &[u8]),
    deltas: &[ProgramDelta],
    missing: &[MissingSignatures],
    json: bool,
) -> Result<CommandExit, CommandError> {
    if json {
        let deltas = deltas.iter().map(|delta| {
            let (file, bytes) = (delta.path(&args.out), delta.bytes.len());
            json!({ "file": file, "delta_bytes": bytes, "base": delta.base })
        });
        output::json_line(&json!({
            "file": args.out,
            "bytes": bundle.len(),
            "sha256": HEXLOWER.encode(&Sha256::digest(bundle)),
            "version": version,
            "program_sha256": named.sha256,
            "signature": named.comment.is_some(),
            "trusted_comment": named.comment,
            "number": args.number,
            "deltas": deltas.collect::<Vec<_>>(),
            "missing": missing_json(missing),
        }))?;
        return Ok(CommandExit::Ok);
    }
    let of_deltas = deltas.iter().map(|delta| delta.path(&args.out));
    let files: Vec<_> = [args.out.clone()].into_iter().chain(of_deltas).collect();
    for file in &files {
        output::line(&file.display().to_string())?;
    }
    output::note(&format!(
        "alknet: release {} with version {version}",
        args.number
    ));
    note_missing_of_bundles(missing, &files);
    Ok(CommandExit::Ok)
}

/// A bundle with one of the files of a release.
fn bundle_of(
    roots: &[Vec<u8>],
    signed: &SignedRelease,
    target: &UpdateTarget,
    content: &[u8],
) -> Result<Vec<u8>, CommandError> {
    let mut bundle = Vec::new();
    let files = std::slice::from_ref(target);
    write_bundle(&mut bundle, roots, signed, files, |_| Ok(content)).map_err(of_signing)?;
    Ok(bundle)
}

/// Writes the bundles of a release, and replaces none before all of them are written: a set with bundles of two releases
/// is no release.
fn put_together(bundles: &[(PathBuf, Vec<u8>)]) -> Result<(), CommandError> {
    let files = bundles.iter();
    let files: Vec<_> = files
        .map(|(path, bundle)| (path.as_path(), bundle.as_slice()))
        .collect();
    let remedy = "Remove the cause and run the command again: it writes all bundles";
    put_all(&files, remedy)
}

pub(super) fn of_signing(error: SigningError) -> CommandError {
    match error {
        SigningError::Write(_) => CommandError::local(error),
        _ => CommandError::usage(error),
    }
}

/// The root documents in the order of their versions, of which none is missing.
fn roots(paths: &[PathBuf]) -> Result<Vec<Vec<u8>>, CommandError> {
    let mut roots = BTreeMap::new();
    for path in paths {
        let document = read_bounded(path, ROOT_BYTES_MAX)?;
        let version = root_version(&document).map_err(|error| {
            CommandError::usage(format!("{}: {}", path.display(), error.message))
        })?;
        if roots.insert(version, document).is_some() {
            let text = format!(
                "{}: another --root has version {version}, too",
                path.display()
            );
            return Err(CommandError::usage(text));
        }
    }
    let missing = (1..)
        .zip(roots.keys())
        .find(|(expected, version)| expected != *version);
    match missing {
        // A machine goes from each root to the next one.
        Some((expected, _)) => Err(CommandError::usage(format!(
            "no --root has version {expected}: name every version from 1 on"
        ))),
        None => Ok(roots.into_values().collect()),
    }
}

/// A program that the command line names: the file, or the folder of its image.
pub(super) struct NamedProgram {
    pub(super) path: PathBuf,
    pub(super) content: Vec<u8>,
    /// SHA-256 of the content in hex.
    pub(super) sha256: String,
    /// The trusted comment of the signature that was checked. `None` without a key.
    comment: Option<String>,
}

impl NamedProgram {
    /// Reads the program once. That of a folder has to be the one of the manifest. With a key, the manifest or the file
    /// has to have a signature by it.
    pub(super) fn read(what: &Path, key: Option<&MinisignKey>) -> Result<Self, CommandError> {
        if what.is_dir() {
            return Self::read_folder(what, key);
        }
        let content = read_bounded(what, TARGET_BYTES_MAX)?;
        let comment = verified_comment(what, &content, key)?;
        Ok(Self {
            path: what.to_owned(),
            sha256: HEXLOWER.encode(&Sha256::digest(&content)),
            content,
            comment,
        })
    }

    fn read_folder(folder: &Path, key: Option<&MinisignKey>) -> Result<Self, CommandError> {
        let (output, comment) = read_uki_entry(folder, key)?;
        let path = folder.join(&output.file);
        let content = read_bounded(&path, TARGET_BYTES_MAX)?;
        let sha256 = HEXLOWER.encode(&Sha256::digest(&content));
        // Another person may have put another program there since the build.
        if output.sha256 != sha256 {
            return Err(of_image(&ImageError::OtherContent {
                path,
                actual: sha256,
                expected: output.sha256,
            }));
        }
        Ok(Self {
            path,
            content,
            sha256,
            comment,
        })
    }
}

/// Checks the signature beside a file with this content, and returns its trusted comment. Without a key it checks
/// nothing.
fn verified_comment(
    path: &Path,
    content: &[u8],
    key: Option<&MinisignKey>,
) -> Result<Option<String>, CommandError> {
    let Some(key) = key else {
        return Ok(None);
    };
    let mut unread = content;
    let checked = check_signature(path, &mut unread, key);
    checked.map(Some).map_err(|mut error| {
        let path = path.display();
        error.further.push(format!(
            "No bundle was written: --manifest-key asks for a signature of {path} by the key {key}. If the file is as \
             your build wrote it, make the signature by 'alknet image sign'; if another person can have changed it, \
             build the image again"
        ));
        error
    })
}

/// The EFI program of the form `uki` in the manifest of a folder, and the trusted comment of the manifest's signature.
fn read_uki_entry(
    folder: &Path,
    key: Option<&MinisignKey>,
) -> Result<(ManifestOutput, Option<String>), CommandError> {
    let path = folder.join(MANIFEST_FILE);
    // The signature holds for these bytes. A second read may find other ones, if another person can write to the folder.
    let bytes = Manifest::read_bytes(&path).map_err(|error| of_image(&error))?;
    let comment = verified_comment(&path, &bytes, key)?;
    let manifest = Manifest::parse(&bytes, &path).map_err(|error| of_image(&error))?;
    let is_uki = |it: &ManifestOutput| it.form == ImageForm::Uki && it.role == OutputRole::Uki;
    let output = manifest.outputs.into_iter().find(is_uki).ok_or_else(|| {
        let text = format!(
            "{} has no form uki: build it with --form uki",
            folder.display()
        );
        CommandError::usage(text)
    })?;
    Ok((output, comment))
}

/// The description of a program, all of which is in the program.
fn described(program: &[u8]) -> Result<ReleaseInfo, String> {
    let form = |error: PredictError| error.to_string();
    let sections = measured_sections(program).map_err(form)?;
    let text = |name: &str| {
        let found = sections.iter().find(|(it, _)| *it == name);
        let found = found.ok_or_else(|| format!("it has no section {name}"))?;
        str::from_utf8(found.1).map_err(|_| format!("its section {name} is no text"))
    };
    let release = text(".osrel")?;
    let mut lines = release.lines();
    let version = lines.find_map(|line| line.strip_prefix("VERSION_ID="));
    let version = version.ok_or("its section .osrel has no VERSION_ID")?;
    let sections = sections.iter().map(|(name, content)| {
        let hash = HEXLOWER.encode(&Sha256::digest(content));
        ((*name).to_owned(), hash)
    });
    Ok(ReleaseInfo {
        version: version.parse().map_err(|error| format!("{error}"))?,
        // The stub of other processors measures other sections.
        arch: "x86_64".to_owned(),
        board: "generic".to_owned(),
        form: "raw".to_owned(),
        floor: None,
        needs: Vec::new(),
        kernel: text(".uname")?.trim_end_matches('\0').to_owned(),
        changes: String::new(),
        formats: BTreeMap::new(),
        sections: sections.collect(),
        authenticode: Some(HEXLOWER.encode(&authenticode(program).map_err(form)?)),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// The attack: a folder has the name under which the command would write its last bundle.
    #[test]
    fn bundles_of_which_one_cannot_be_written_leave_all_files_as_they_were() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = |name: &str| folder.path().join(name);
        let [program, delta] = ["1.bundle", "from-1"].map(at);
        for path in [&program, &delta] {
            fs::write(path, "old").expect("the folder is ours");
        }
        fs::create_dir(at(".from-1.new")).expect("the folder is ours");
        let bundles = [&program, &delta].map(|path| (path.clone(), b"new".to_vec()));
        let refused = put_together(&bundles).expect_err("a folder is in the way");
        assert!(
            refused.message.ends_with("none of the files was replaced"),
            "{refused}"
        );
        let contents = || [&program, &delta].map(|path| fs::read(path).expect("it was written"));
        assert_eq!(contents(), [b"old", b"old"]);
        fs::remove_dir(at(".from-1.new")).expect("the folder is ours");
        put_together(&bundles).expect("nothing is in the way");
        assert_eq!(contents(), [b"new", b"new"]);
        fs::remove_file(&delta).expect("the folder is ours");
        fs::create_dir(&delta).expect("the folder is ours");
        let refused = put_together(&[
            (program.clone(), b"newer".to_vec()),
            (delta, b"newer".to_vec()),
        ]);
        let refused = refused.expect_err("a folder is in the way");
        assert!(refused.message.contains("no regular file"), "{refused}");
        assert_eq!(fs::read(&program).expect("it was written"), b"new");
    }
}
