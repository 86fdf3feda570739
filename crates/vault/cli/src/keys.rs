//! Keys in the formats of other programs.

use alknet_vault::audit::{AuditEvent, ExportedSecret};
use alknet_vault::slots::luks_phrase;
use alknet_vault::{
    Curve, DerivationPath, Ed25519Signer, ExportReason, KeyPurpose, SecretArr, SecretBytes,
    SecretStr, Vault,
};
use data_encoding::{BASE64, HEXLOWER};
use serde_json::json;
use zeroize::Zeroizing;

use crate::args::{
    CurveArg, DeriveArgs, ExportKeyArgs, KeyShowArgs, RecoveryKeyArgs, VaultOpenArgs, WordsArgs,
};
use crate::new::typed_words;
use crate::vault_dir::{OpenVaultDir, offline};
use crate::verbs::DerivedKeyVerb;
use crate::{SecretPrompt, VaultCli, VaultCliError};

/// The bytes before the key in a SubjectPublicKeyInfo: RFC 8410 for Ed25519, and RFC 5480 for an
/// uncompressed point of P-256.
const SPKI_ED25519: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];
const SPKI_P256: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// A public key.
enum PublicKeyOutput {
    Ed25519([u8; 32]),
    P256([u8; 65]),
}

impl PublicKeyOutput {
    fn derive(vault: &Vault, purpose: KeyPurpose) -> Result<Self, VaultCliError> {
        Ok(match purpose.curve() {
            Curve::NistP256 => Self::P256(vault.p256_signer(purpose)?.public()),
            _ => Self::Ed25519(vault.signer(purpose)?.public()),
        })
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Ed25519(key) => key,
            Self::P256(point) => point,
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Ed25519(_) => "ed25519",
            Self::P256(_) => "p256",
        }
    }

    fn pem(&self) -> String {
        let before: &[u8] = match self {
            Self::Ed25519(_) => &SPKI_ED25519,
            Self::P256(_) => &SPKI_P256,
        };
        let der = SecretBytes::from_vec([before, self.bytes()].concat());
        pem("PUBLIC KEY", &der).expose().to_owned()
    }

    /// The public key in the format of RFC 4253, section 6.6; RFC 8709 for Ed25519 and RFC 5656 for
    /// P-256.
    fn ssh(&self, comment: &str) -> String {
        let parts: &[&[u8]] = match self {
            Self::Ed25519(key) => &[b"ssh-ed25519", key],
            Self::P256(point) => &[b"ecdsa-sha2-nistp256", b"nistp256", point],
        };
        let wire: Vec<u8> = parts.iter().flat_map(|part| string(part)).collect();
        let name = String::from_utf8_lossy(parts[0]);
        format!("{name} {} {comment}", BASE64.encode(&wire))
    }
}

impl VaultCli<'_> {
    pub(crate) fn key(&mut self, verb: DerivedKeyVerb) -> Result<(), VaultCliError> {
        match verb {
            DerivedKeyVerb::Derive(args) => self.derive(&args),
            DerivedKeyVerb::Export(args) => self.export_key(&args),
            DerivedKeyVerb::Show(args) => self.public(&args),
        }
    }

    fn public(&mut self, args: &KeyShowArgs) -> Result<(), VaultCliError> {
        let purpose = args.purpose;
        let public = self.with_vault(&args.words, &args.open, |vault| {
            PublicKeyOutput::derive(vault, purpose)
        })?;
        let hex = HEXLOWER.encode(public.bytes());
        let ssh = public.ssh(&purpose.to_string());
        let value = json!({
            "purpose": purpose.to_string(),
            "type": public.kind(),
            "hex": &hex,
            "ssh": &ssh,
            "pem": public.pem(),
        });
        let text = match (args.ssh, args.pem) {
            (true, _) => ssh,
            (_, true) => public.pem().trim_end().to_owned(),
            _ => hex,
        };
        self.print(&value, &text)
    }

    fn export_key(&mut self, args: &ExportKeyArgs) -> Result<(), VaultCliError> {
        let pem = if args.words.is_given() {
            private(&offline(&args.words, self.ask)?, args)?
        } else {
            let opened = OpenVaultDir::open_typed(&args.open, None, self.ask)?;
            let pem = private(&opened.vault, args)?;
            // The log is written first, so that no key leaves the vault without an entry.
            opened.finish()?;
            pem
        };
        let form = match args.openssh {
            true => "openssh",
            false => "pkcs8",
        };
        let mut value = json!(null);
        if self.json {
            value = json!({ "purpose": args.purpose.to_string() });
            value[form] = pem.expose().into();
        }
        self.print(&value, pem.expose().trim_end())
    }

    pub(crate) fn export_phrase(&mut self, open: &VaultOpenArgs) -> Result<(), VaultCliError> {
        let opened = OpenVaultDir::open_typed(open, None, self.ask)?;
        opened.record(AuditEvent::Exported {
            what: ExportedSecret::Phrase,
            reason: ExportReason::Console,
        });
        let phrase = opened.alkv.entropy().phrase();
        let passphrase = !opened.alkv.passphrase().is_empty();
        opened.finish()?;
        let value = match self.json {
            // In text mode the words are not copied into a JSON value, which would not be zeroized.
            true => json!({ "words": phrase.expose(), "bip39_passphrase": passphrase }),
            false => json!(null),
        };
        if passphrase && !self.json {
            self.ask
                .tell("these words have a passphrase of BIP39, which is not shown");
        }
        self.print(&value, phrase.expose())
    }

    pub(crate) fn recovery_key(&mut self, args: &RecoveryKeyArgs) -> Result<(), VaultCliError> {
        let secret =
            self.with_vault(
                &args.words,
                &args.open,
                |vault| Ok(vault.recovery_secret()?),
            )?;
        let phrase = luks_phrase(&secret);
        if self.json {
            return self.print(&json!({ "recovery_key": phrase.expose() }), "");
        }
        // The output has no newline, because cryptsetup uses every byte of a key file.
        write!(self.out, "{}", phrase.expose())?;
        self.out.flush()?;
        Ok(())
    }

    fn derive(&mut self, args: &DeriveArgs) -> Result<(), VaultCliError> {
        let curve = match args.curve {
            CurveArg::Ed25519 => Curve::Ed25519,
            CurveArg::P256 => Curve::NistP256,
        };
        let path = DerivationPath::parse(&args.path, curve);
        let path = path.map_err(alknet_vault::VaultError::from)?;
        if args.mnemonic_stdin {
            // With words on standard input, the passphrase follows on the next line.
            self.ask.use_stdin();
        }
        let words = typed_words(self.ask)?;
        let passphrase = match args.bip39_passphrase {
            true => self.ask.secret("passphrase of the words")?,
            false => SecretStr::empty(),
        };
        let key = words.key_at(&passphrase, &path)?;
        let public = HEXLOWER.encode(&alknet_vault::public_key(&key, curve)?);
        let private = Zeroizing::new(HEXLOWER.encode(key.expose()));
        let text = Zeroizing::new(format!(
            "path    {path}\nprivate {}\npublic  {public}",
            private.as_str()
        ));
        let value = match self.json {
            true => json!({"path": path.to_string(), "private": *private, "public": public}),
            false => json!(null),
        };
        self.print(&value, &text)
    }

    /// Reads from the vault of the typed words, or from the vault of the directory.
    fn with_vault<T>(
        &mut self,
        words: &WordsArgs,
        open: &VaultOpenArgs,
        get: impl FnOnce(&Vault) -> Result<T, VaultCliError>,
    ) -> Result<T, VaultCliError> {
        if words.is_given() {
            return get(&offline(words, self.ask)?);
        }
        let opened = OpenVaultDir::open(open, self.ask)?;
        // The log is written even if `get` fails, so that the attempt is recorded.
        let got = get(&opened.vault);
        opened.finish()?;
        got
    }
}

/// Opens the vault of a directory, or that of typed words, and lets `act` sign with its key for `purpose`.
///
/// # Errors
/// The vault cannot be opened, or has no such key.
pub fn with_signer<T>(
    purpose: KeyPurpose,
    words: &WordsArgs,
    open: &VaultOpenArgs,
    ask: &mut dyn SecretPrompt,
    act: impl FnOnce(&Ed25519Signer) -> T,
) -> Result<T, VaultCliError> {
    let out = &mut std::io::sink();
    let json = false;
    let mut cli = VaultCli { json, out, ask };
    cli.with_vault(words, open, |vault| Ok(act(&vault.signer(purpose)?)))
}

/// A private key in the format of the arguments.
fn private(vault: &Vault, args: &ExportKeyArgs) -> Result<SecretStr, VaultCliError> {
    let purpose = args.purpose;
    Ok(match (purpose.curve(), args.openssh) {
        (Curve::NistP256, false) => {
            let der = vault.p256_signer(purpose)?.pkcs8(ExportReason::Console)?;
            pem("PRIVATE KEY", &der)
        }
        (Curve::NistP256, true) => {
            // OpenSSH's format of a P-256 key differs, and no version of OpenSSH needs it.
            let text = "OpenSSH reads PKCS #8 of this key; its own form is for Ed25519";
            return Err(VaultCliError::Usage(text.to_owned()));
        }
        (_, false) => pem(
            "PRIVATE KEY",
            &vault.signer(purpose)?.pkcs8(ExportReason::Console)?,
        ),
        (_, true) => {
            let signer = vault.signer(purpose)?;
            let seed = signer.expose(ExportReason::Console)?;
            pem(
                "OPENSSH PRIVATE KEY",
                &openssh(&seed, &signer.public(), &purpose.to_string()),
            )
        }
    })
}

/// OpenSSH's own format of an Ed25519 key, without encryption (PROTOCOL.key in its source).
fn openssh(seed: &SecretArr<32>, public: &[u8; 32], comment: &str) -> SecretBytes {
    const BLOCK: usize = 8;
    // The buffers are allocated once, because growing would leave a copy of the key behind.
    let mut out = Vec::with_capacity(1024);
    let mut inner = Zeroizing::new(Vec::with_capacity(512));
    let wire = [string(b"ssh-ed25519"), string(public)].concat();
    // Two equal numbers, by which a reader detects a wrong passphrase; this key has no passphrase.
    inner.extend_from_slice(&[0; 8]);
    inner.extend_from_slice(&wire);
    // OpenSSH stores the seed and then the public key as one string of 64 bytes.
    inner.extend_from_slice(&64_u32.to_be_bytes());
    inner.extend_from_slice(seed.expose());
    inner.extend_from_slice(public);
    inner.extend_from_slice(&string(comment.as_bytes()));
    // PROTOCOL.key pads with 1, 2, 3 …, which a reader checks after decryption.
    let mut pad = 1;
    while inner.len() % BLOCK != 0 {
        inner.push(pad);
        pad += 1;
    }
    out.extend_from_slice(b"openssh-key-v1\0");
    for part in [b"none".as_slice(), b"none", b""] {
        out.extend_from_slice(&string(part));
    }
    out.extend_from_slice(&1_u32.to_be_bytes());
    out.extend_from_slice(&string(&wire));
    out.extend_from_slice(&u32::try_from(inner.len()).unwrap_or(0).to_be_bytes());
    out.extend_from_slice(&inner);
    SecretBytes::from_vec(out)
}

/// A string of RFC 4251, section 5: its length in four bytes, and its bytes.
fn string(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap_or(0);
    [&length.to_be_bytes(), bytes].concat()
}

/// The PEM encoding of RFC 7468.
fn pem(what: &str, der: &SecretBytes) -> SecretStr {
    let encoded = Zeroizing::new(BASE64.encode(der.expose()));
    let mut text = String::with_capacity(encoded.len() * 2 + 128);
    text.push_str(&format!("-----BEGIN {what}-----\n"));
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        // RFC 7468 section 2 requires lines of 64 characters.
        let (line, more) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = more;
    }
    text.push_str(&format!("-----END {what}-----\n"));
    SecretStr::from_string(text)
}
