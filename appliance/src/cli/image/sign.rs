//! `alknet image sign`: signatures as minisign makes them, and those of EFI programs.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use alknet_image::{
    FileToSign, ImageError, MANIFEST_FILE, Manifest, SIGNATURE_ENDING, open_regular, sign_folder,
    sign_outputs,
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

    /// The content of the signature of a file of a folder.
    fn sign(&self, file: FileToSign<'_>) -> Result<String, CommandError> {
        self.sign_content(file.path, file.version, file.content)
    }

    /// The content of the signature of a file alone.
    fn sign_file(&self, path: &Path) -> Result<String, CommandError> {
        if path.file_name() != Some(OsStr::new(MANIFEST_FILE)) {
            // Another person may have put a pipe or a device there.
            let file = open_regular(path).map_err(io::Error::from);
            let mut file = file.map_err(|error| unsigned(path, &error))?;
            return self.sign_content(path, None, &mut file);
        }
        // The version in the signature is that of the signed bytes, so they are read once.
        let bytes = Manifest::read_bytes(path).map_err(|error| of_image(&error))?;
        // A file of another program may have this name, too.
        let manifest = Manifest::parse(&bytes, path).ok();
        let version = manifest.as_ref().map(|it| it.version.as_str());
        self.sign_content(path, version, &mut &bytes[..])
    }

    /// The manifest of every release has the same name. Its version tells them apart.
    fn sign_content(
        &self,
        path: &Path,
        version: Option<&str>,
        content: &mut dyn Read,
    ) -> Result<String, CommandError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let trusted = file_comment(&name, version);
        let signed = match self {
            Self::Minisign(key) => key.sign(content, &trusted),
            Self::Vault(public, signer) => {
                let sign = |message: &[u8]| signer.sign(message).map_err(io::Error::other);
                public.sign_with(content, &trusted, &sign)
            }
        };
        signed.map_err(|error| unsigned(path, &error))
    }
}

fn unsigned(path: &Path, error: &io::Error) -> CommandError {
    CommandError::local(format!("cannot sign {}: {error}", path.display()))
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
        let mut sign = |file: FileToSign<'_>| {
            files.push(signature_path(file.path));
            Ok::<_, SignFolderError>(signer.sign(file)?)
        };
        sign_folder(what, &mut sign).map_err(|error| error.0)?;
    } else {
        let path = signature_path(what);
        let text = signer.sign_file(what)?;
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
    built: Manifest,
    key: &Path,
    reads_stdin: bool,
) -> Result<Manifest, CommandError> {
    let key = secret_key(key, reads_stdin, &mut TerminalPrompt::new())?;
    let signer = FileSigner::Minisign(key);
    let mut sign = |file: FileToSign<'_>| Ok::<_, SignFolderError>(signer.sign(file)?);
    sign_outputs(folder, built, &mut sign).map_err(|error| error.0)
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
