//! `alknet image verify`: whether a file or a disk is what its build says.

use std::fs;
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use alknet_image::{Manifest, SIGNATURE_ENDING, open_regular};
use alknet_image_write::authenticode::EfiCertificate;
use alknet_image_write::minisign::{MinisignKey, MinisignSignature, TEXT_BYTES_MAX, comment_names};
use alknet_image_write::{ImageCheck, SignedPrograms, verify_disk, verify_file, verify_programs};
use clap::Args;
use serde_json::{Value, json};

use super::{
    IMAGE_DIFFERS, of_image, of_regular_file, of_signed_programs, of_verify, read_own_text,
    read_text,
};
use crate::cli::{CommandError, CommandExit, output};

/// Arguments of `alknet image verify`.
#[derive(Debug, Args)]
pub(crate) struct ImageVerifyArgs {
    /// The file or the disk. With --efi-cert alone, it may be the folder of an image.
    what: PathBuf,
    /// The manifest of the build. With --key its signature is checked, which lies beside it.
    #[arg(long, value_name = "FILE", required_unless_present_any = ["key", "efi_cert"])]
    manifest: Option<PathBuf>,
    /// The public key: a file of minisign, or its line that begins with RW. Without --manifest the signature of the file
    /// itself is checked, which lies beside it.
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// A certificate for Secure Boot, in PEM: each EFI program must have a signature by its key. This works for a disk, a
    /// file of the form raw, vhd or uki, and a folder with the form raw or uki. Of a disk the command checks the partition
    /// table, and each file of the EFI system partition that firmware may load: those that begin with MZ, PE or VZ.
    #[arg(long, value_name = "FILE")]
    efi_cert: Option<PathBuf>,
    /// The file is a written disk, or a copy of one.
    #[arg(long, requires = "manifest")]
    disk: bool,
}

/// What was compared with a manifest.
struct ManifestCheck {
    version: String,
    check: ImageCheck,
}

/// What the command found, all of it as it should be.
struct VerifyFindings<'a> {
    /// The signed comment of minisign.
    comment: Option<&'a str>,
    check: Option<&'a ManifestCheck>,
    programs: Option<&'a SignedPrograms>,
}

/// Runs it.
pub(super) fn run(args: &ImageVerifyArgs, json: bool) -> Result<CommandExit, CommandError> {
    let key = match &args.key {
        Some(text) => Some(public_key(text)?),
        None => None,
    };
    // The signature holds for these bytes. A second read may find other ones, if another person can write to the folder.
    let manifest = match &args.manifest {
        Some(path) => {
            let bytes = Manifest::read_bytes(path).map_err(|error| of_image(&error))?;
            Some((path, bytes))
        }
        None => None,
    };
    // The signature comes first: an unsigned manifest says nothing.
    let comment = match (&key, &manifest) {
        (Some(key), Some((path, bytes))) => Some(check_signature(path, &mut &bytes[..], key)?),
        (Some(key), None) => Some(check_file_signature(&args.what, key)?),
        (None, _) => None,
    };
    let check = match &manifest {
        Some((path, bytes)) => {
            let manifest = Manifest::parse(bytes, path).map_err(|error| of_image(&error))?;
            Some(check(args, manifest)?)
        }
        None => None,
    };
    let programs = match &args.efi_cert {
        Some(certificate) => Some(check_programs(&args.what, certificate)?),
        None => None,
    };
    let found = VerifyFindings {
        comment: comment.as_deref(),
        check: check.as_ref(),
        programs: programs.as_ref(),
    };
    show(args, &found, json)?;
    Ok(CommandExit::Ok)
}

fn check_programs(what: &Path, certificate: &Path) -> Result<SignedPrograms, CommandError> {
    let text = read_own_text(certificate, TEXT_BYTES_MAX)?;
    let certificate = EfiCertificate::from_pem(&text).map_err(CommandError::usage)?;
    verify_programs(what, &certificate).map_err(|error| of_signed_programs(&error))
}

fn check(args: &ImageVerifyArgs, manifest: Manifest) -> Result<ManifestCheck, CommandError> {
    let is_device = fs::metadata(&args.what).is_ok_and(|it| it.file_type().is_block_device());
    let checked = match args.disk || is_device {
        true => verify_disk(&args.what, &manifest),
        false => verify_file(&args.what, &manifest),
    };
    let check = checked.map_err(|error| of_verify(&error))?;
    Ok(ManifestCheck {
        version: manifest.version,
        check,
    })
}

/// A key that is written out, or a file with it.
pub(super) fn public_key(text: &str) -> Result<MinisignKey, CommandError> {
    if let Ok(key) = text.parse() {
        return Ok(key);
    }
    let path = Path::new(text);
    let content = read_own_text(path, TEXT_BYTES_MAX)?;
    content
        .parse()
        .map_err(|error| CommandError::usage(format!("{}: {error}", path.display())))
}

/// Checks the signature beside a file, and returns its trusted comment.
fn check_file_signature(path: &Path, key: &MinisignKey) -> Result<String, CommandError> {
    let mut file = open_regular(path).map_err(|error| of_regular_file(path, &error))?;
    check_signature(path, &mut file, key)
}

/// Does the same for the content that was read from the file at `path`.
pub(super) fn check_signature(
    path: &Path,
    content: &mut dyn Read,
    key: &MinisignKey,
) -> Result<String, CommandError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(SIGNATURE_ENDING);
    let beside = PathBuf::from(beside);
    let text = read_text(&beside, TEXT_BYTES_MAX)?;
    let differs = |error: &dyn std::fmt::Display| {
        let text = format!("{}: {error}", beside.display());
        CommandError::new(CommandExit::Failed, IMAGE_DIFFERS, text)
    };
    let signature: MinisignSignature = text.parse().map_err(|error| differs(&error))?;
    signature
        .verify(key, content)
        .map_err(|error| differs(&error))?;
    let comment = signature.trusted_comment();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // The same key signs every release, so a signature that holds may be that of an older file under a new name.
    match comment_names(comment, &name) {
        Some(false) => Err(differs(&format!(
            "it is not a signature of {name}: it says '{comment}'"
        ))),
        Some(true) | None => Ok(comment.to_owned()),
    }
}

fn show(
    args: &ImageVerifyArgs,
    found: &VerifyFindings<'_>,
    json: bool,
) -> Result<(), CommandError> {
    if json {
        return output::json_line(&as_json(args, found));
    }
    if let Some(check) = found.check {
        show_check(args, check)?;
    }
    if let Some(programs) = found.programs {
        output::line("signed by the key of the certificate:")?;
        for program in &programs.checked {
            output::line(&format!("  checked   {}", output::one_line(program)))?;
        }
        for file in &programs.left_out {
            let file = output::one_line(file);
            output::line(&format!(
                "  left out  {file}: no EFI program of it was checked"
            ))?;
        }
        show_bytes_behind(programs.bytes_behind)?;
    }
    match found.comment {
        Some(comment) => output::line(&format!("the signature holds: {comment}")),
        None => {
            if found.check.is_some() {
                output::note(
                    "alknet: no signature was checked; give --key to check that of the manifest",
                );
            }
            Ok(())
        }
    }
}

fn as_json(args: &ImageVerifyArgs, found: &VerifyFindings<'_>) -> Value {
    let manifest = found.check.map(|ManifestCheck { version, check }| {
        let parts = check.checked.iter();
        let parts = parts.map(|part| json!({ "name": part.name, "bytes": part.bytes }));
        let left_out = check.left_out.iter();
        let left_out = left_out.map(|(part, why)| json!({ "name": part, "why": why }));
        json!({
            "version": version,
            "checked": parts.collect::<Vec<_>>(),
            "left_out": left_out.collect::<Vec<_>>(),
            "others": check.others,
            "bytes_behind": check.bytes_behind,
        })
    });
    let programs = found.programs.map(|programs| {
        json!({
            "checked": programs.checked,
            "left_out": programs.left_out,
            "bytes_behind": programs.bytes_behind,
        })
    });
    json!({
        "file": args.what,
        "signature": found.comment.is_some(),
        "trusted_comment": found.comment,
        "manifest": manifest,
        "efi_programs": programs,
    })
}

fn show_check(args: &ImageVerifyArgs, checked: &ManifestCheck) -> Result<(), CommandError> {
    let ManifestCheck { version, check } = checked;
    let name = args.what.display();
    let version = output::one_line(version);
    output::line(&format!(
        "{name} is what the manifest of version {version} says:"
    ))?;
    for part in &check.checked {
        output::line(&format!("  checked   {}", part.name))?;
    }
    for (part, why) in &check.left_out {
        output::line(&format!("  left out  {part}: {why}"))?;
    }
    show_bytes_behind(check.bytes_behind)?;
    for file in &check.others {
        output::line(&format!("  other     {file} on the EFI system partition"))?;
    }
    Ok(())
}

fn show_bytes_behind(bytes: u64) -> Result<(), CommandError> {
    match bytes {
        0 => Ok(()),
        bytes => output::line(&format!("  left out  {bytes} bytes behind the image")),
    }
}
