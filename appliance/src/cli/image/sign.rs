//! `alknet image sign`: signatures as minisign makes them, and those of EFI programs.

use std::io;
use std::path::{Path, PathBuf};

use alknet_image::{
    ImageError, MANIFEST_FILE, Manifest, SIGNATURE_ENDING, open_regular, sign_folder,
};
use alknet_image_write::authenticode::{EfiSigner, sign as sign_program};
use alknet_image_write::minisign::{
    EncryptedKey, MinisignError, MinisignKey, MinisignSecretKey, TEXT_BYTES_MAX, file_comment,
};
use alknet_vault::{Ed25519Signer, KeyPurpose};
use alknet_vault_cli::{SecretPrompt, TerminalPrompt, VaultOpenArgs, WordsArgs, with_signer};
use clap::Args;
use serde_json::json;
use zeroize::Zeroizing;

use super::named_output::put;
use super::{of_image, read_bounded, read_own_text};
use crate::cli::vault::of_local;
use crate::cli::{CommandError, CommandExit, output};

/// Longest EFI program that is signed, in bytes: far beyond a third of the EFI system partition.
const PROGRAM_BYTES_MAX: u64 = 1 << 30;
/// Permission bits of a signature: every user may check it.
const SIGNED_MODE: u32 = 0o644;

/// Arguments of `alknet image sign`.
#[derive(Debug, Args)]
pub(crate) struct ImageSignArgs {
    /// The folder of an image, of which the manifest and every file are signed; or a file.
    what: PathBuf,
    /// A secret key of minisign. Without this option the image key of a vault signs.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["dir", "mnemonic", "mnemonic_stdin"])]
    key: Option<PathBuf>,
    /// Sign an EFI program for Secure Boot, by this key in PEM: RSA of 2,048 bits or more, or ECDSA on P-256.
    #[arg(
        long,
        value_name = "FILE",
        requires_all = ["efi_cert", "out"],
        conflicts_with_all = ["key", "dir", "mnemonic", "mnemonic_stdin"]
    )]
    efi_key: Option<PathBuf>,
    /// The certificate of that key, in PEM.
    #[arg(long, value_name = "FILE", requires = "efi_key")]
    efi_cert: Option<PathBuf>,
    /// The file for the signed EFI program.
    #[arg(long, value_name = "FILE", requires = "efi_key")]
    out: Option<PathBuf>,
    #[command(flatten)]
    words: WordsArgs,
    #[command(flatten)]
    open: VaultOpenArgs,
}

/// What signs files.
enum FileSigner<'a> {
    Minisign(MinisignSecretKey),
    Vault(MinisignKey, &'a Ed25519Signer),
}

impl FileSigner<'_> {
    fn public(&self) -> MinisignKey {
        match self {
            Self::Minisign(key) => key.public(),
            Self::Vault(public, _) => *public,
        }
    }

    /// The content of the signature of a file.
    fn sign(&self, path: &Path) -> Result<String, CommandError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // The manifest of every release has the same name. Its version tells them apart.
        let manifest = match name == MANIFEST_FILE {
            true => {
                let bytes = Manifest::read_bytes(path).map_err(|error| of_image(&error))?;
                // A file of another program may have this name, too.
                Manifest::parse(&bytes, path).ok()
            }
            false => None,
        };
        let trusted = file_comment(&name, manifest.as_ref().map(|it| it.version.as_str()));
        // Another person may have put a pipe or a device there.
        let file = open_regular(path).map_err(io::Error::from);
        let signed = file.and_then(|mut file| match self {
            Self::Minisign(key) => key.sign(&mut file, &trusted),
            Self::Vault(public, signer) => {
                let sign = |message: &[u8]| signer.sign(message).map_err(io::Error::other);
                public.sign_with(&mut file, &trusted, &sign)
            }
        });
        signed.map_err(|error| {
            CommandError::local(format!("cannot sign {}: {error}", path.display()))
        })
    }
}

/// Runs it.
pub(super) fn run(args: &ImageSignArgs, json: bool) -> Result<CommandExit, CommandError> {
    if let (Some(key), Some(certificate), Some(out)) = (&args.efi_key, &args.efi_cert, &args.out) {
        return efi(&args.what, key, certificate, out, json);
    }
    let mut ask = TerminalPrompt::new();
    if let Some(path) = &args.key {
        let key = secret_key(path, args.open.reads_stdin(), &mut ask)?;
        return signed(&args.what, &FileSigner::Minisign(key), json);
    }
    let purpose = KeyPurpose::ImageSigning;
    let done = with_signer(purpose, &args.words, &args.open, &mut ask, |signer| {
        let public = MinisignKey::from_bytes(&signer.public()).map_err(CommandError::local)?;
        signed(&args.what, &FileSigner::Vault(public, signer), json)
    });
    done.map_err(|error| of_local(&error))?
}

/// Signs a folder or a file.
fn signed(what: &Path, signer: &FileSigner<'_>, json: bool) -> Result<CommandExit, CommandError> {
    let mut files = Vec::new();
    if what.is_dir() {
        let mut sign = |path: &Path| {
            let signature = signer.sign(path)?;
            files.push(signature_path(path));
            Ok::<_, SignFolderError>(signature)
        };
        sign_folder(what, &mut sign).map_err(|error| error.0)?;
    } else {
        let path = signature_path(what);
        let text = signer.sign(what)?;
        // It replaces a link that another person has put there.
        alknet_durable::replace(&path, text.as_bytes(), SIGNED_MODE).map_err(|error| {
            CommandError::local(format!("cannot write {}: {error}", path.display()))
        })?;
        files.push(path);
    }
    let public = signer.public();
    if json {
        let (id, key) = (public.id().to_string(), public.to_string());
        output::json_line(&json!({ "files": files, "key_id": id, "public_key": key }))?;
        return Ok(CommandExit::Ok);
    }
    for file in &files {
        output::line(&file.display().to_string())?;
    }
    output::note(&format!(
        "alknet: signed; to check: alknet image verify … --key {public}"
    ));
    Ok(CommandExit::Ok)
}

fn signature_path(path: &Path) -> PathBuf {
    let mut beside = path.as_os_str().to_owned();
    // The ending follows the whole name, because minisign looks for `FILE.minisig`.
    beside.push(SIGNATURE_ENDING);
    beside.into()
}

/// The error of a folder: that of a file, or that of the signer.
struct SignFolderError(CommandError);

impl From<CommandError> for SignFolderError {
    fn from(error: CommandError) -> Self {
        Self(error)
    }
}

impl From<ImageError> for SignFolderError {
    fn from(error: ImageError) -> Self {
        Self(of_image(&error))
    }
}

/// Signs every file of a folder that was built, by a secret key of minisign. Returns the manifest with the signatures.
pub(super) fn sign_built(
    folder: &Path,
    key: &Path,
    reads_stdin: bool,
) -> Result<Manifest, CommandError> {
    let key = secret_key(key, reads_stdin, &mut TerminalPrompt::new())?;
    let signer = FileSigner::Minisign(key);
    let mut sign = |path: &Path| Ok::<_, SignFolderError>(signer.sign(path)?);
    sign_folder(folder, &mut sign).map_err(|error| error.0)
}

/// Opens a secret key of minisign. Its password comes from the terminal or from standard input.
fn secret_key(
    path: &Path,
    reads_stdin: bool,
    ask: &mut dyn SecretPrompt,
) -> Result<MinisignSecretKey, CommandError> {
    let text = Zeroizing::new(read_own_text(path, TEXT_BYTES_MAX)?);
    let failed = |error: MinisignError| {
        let exit = match error {
            MinisignError::WrongPassword => CommandExit::WrongPassphrase,
            _ => CommandExit::Usage,
        };
        let code = match exit {
            CommandExit::WrongPassphrase => "WRONG_PASSPHRASE",
            _ => "USAGE",
        };
        CommandError::new(exit, code, format!("{}: {error}", path.display()))
    };
    let key: EncryptedKey = text.parse().map_err(failed)?;
    if !key.needs_password() {
        return key.open(None).map_err(failed);
    }
    if reads_stdin {
        ask.use_stdin();
    }
    let question = format!("password of {}", path.display());
    let password = ask.secret(&question).map_err(|error| of_local(&error))?;
    key.open(Some(password.expose().as_bytes())).map_err(failed)
}

/// Reads the key that signs EFI programs, and its certificate.
pub(super) fn efi_signer(key: &Path, certificate: &Path) -> Result<EfiSigner, CommandError> {
    let pem = Zeroizing::new(read_own_text(key, TEXT_BYTES_MAX)?);
    let signer = EfiSigner::from_pem(&pem, &read_own_text(certificate, TEXT_BYTES_MAX)?);
    signer.map_err(CommandError::usage)
}

/// Signs an EFI program.
fn efi(
    program: &Path,
    key: &Path,
    certificate: &Path,
    out: &Path,
    json: bool,
) -> Result<CommandExit, CommandError> {
    let signer = efi_signer(key, certificate)?;
    let bytes = read_bounded(program, PROGRAM_BYTES_MAX)?;
    let signed = sign_program(&bytes, &signer)
        .map_err(|error| CommandError::usage(format!("{}: {error}", program.display())))?;
    put(out, &signed)?;
    match json {
        true => output::json_line(&json!({ "files": [out] }))?,
        false => output::line(&out.display().to_string())?,
    }
    Ok(CommandExit::Ok)
}
