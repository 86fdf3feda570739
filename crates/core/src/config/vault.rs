//! `[vault]`: where the node's recovery words come from, and what opens them at a start.

use data_encoding::BASE64;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::quote;
use super::kms::{self, VaultKms};
use super::read::{Notes, Section, Value};
use super::values::Complaint;

/// Highest number of a device: the last hardened level of a path.
const DEVICE_MAX: u32 = (1 << 31) - 1;
/// Version 1 was of another design.
const KEY_VERSION_MIN: u32 = 2;
/// Versions are counted from 2 on the levels of a path.
const KEY_VERSION_MAX: u32 = DEVICE_MAX + 2;
/// Most people the words are encrypted to: each is a line of the message that they read.
const RECIPIENTS_MAX: usize = 8;
/// Least and most bits of an RSA key: age's.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

/// `[vault]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct VaultSection {
    /// Where the words of a node without a vault come from.
    pub init: VaultInit,
    /// What opens the vault at a start; made with it. Empty chooses by what the machine has.
    pub unlock: Vec<VaultUnlock>,
    /// Which of the nodes of the same words this is.
    #[schemars(range(max = 2_147_483_647))]
    pub device: u32,
    /// Version of the key that new secrets are sealed with.
    #[schemars(range(min = 2, max = 2_147_483_649_u32))]
    pub key_version: u32,
    /// The oldest version that is still opened.
    #[schemars(range(min = 2, max = 2_147_483_649_u32))]
    pub min_version: u32,
    /// Whom the words that this node makes are encrypted to: `age1…`, `ssh-ed25519 …`, `ssh-rsa …`.
    #[schemars(
        length(max = 8),
        inner(regex(pattern = r"^(age1|ssh-ed25519 |ssh-rsa )"))
    )]
    pub words_to: Vec<String>,
    /// Which node keeps a share of the key, for `unlock = ["kms"]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "VaultKms")]
    pub kms: Option<VaultKms>,
}

impl Default for VaultSection {
    fn default() -> Self {
        Self {
            init: VaultInit::default(),
            unlock: Vec::new(),
            device: 0,
            key_version: KEY_VERSION_MIN,
            min_version: KEY_VERSION_MIN,
            words_to: Vec::new(),
            kms: None,
        }
    }
}

/// Where the words come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum VaultInit {
    /// The node makes them.
    #[default]
    Generate,
    /// There is no vault: the key is a file and the data partition is not sealed.
    Off,
    /// Somebody types them at the console.
    Prompt,
    /// A provisioning medium carries them.
    Provisioned,
}

/// What opens the vault.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum VaultUnlock {
    /// Another node of the owner releases its share of the key; `[vault.kms]` says which.
    Kms,
    /// Nothing is needed: the key lies beside it, and nothing is protected.
    None,
    /// Somebody types it at the console.
    Passphrase,
    /// `seed.key` of a provisioning medium.
    Provisioning,
    /// The machine's TPM.
    Tpm2,
}

impl VaultUnlock {
    /// Every one, in the order of their names.
    pub const ALL: [Self; 5] = [
        Self::Kms,
        Self::None,
        Self::Passphrase,
        Self::Provisioning,
        Self::Tpm2,
    ];

    /// As the document spells it, and `vault.alkv`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kms => "kms",
            Self::None => "none",
            Self::Passphrase => "passphrase",
            Self::Provisioning => "provisioning",
            Self::Tpm2 => "tpm2",
        }
    }
}

pub(super) fn section(mut section: Section<'_, '_>, notes: &mut Notes<'_>) -> VaultSection {
    let standard = VaultSection::default();
    let init = section.key("init");
    let unlock = section.key("unlock");
    let device = section.key("device");
    let key_version = section.key("key_version");
    let min_version = section.key("min_version");
    let words_to = section.key("words_to");
    let kms = section.key("kms");
    section.finish(notes);
    let versions = KEY_VERSION_MIN..=KEY_VERSION_MAX;
    let number = |value: &Option<Value<'_, '_>>, notes: &mut Notes<'_>| {
        let read = |value: &Value<'_, '_>| value.number(versions.clone(), notes);
        value.as_ref().map_or(Some(KEY_VERSION_MIN), read)
    };
    let (newest, oldest) = (number(&key_version, notes), number(&min_version, notes));
    if let (Some(newest), Some(oldest), Some(value)) = (newest, oldest, &min_version)
        && oldest > newest
    {
        let what = format!("{oldest} is above vault.key_version, {newest}");
        value.wrong(notes, what, "raise key_version first, or lower this");
    }
    let config = VaultSection {
        init: init
            .and_then(|value| value.parsed(notes, source))
            .unwrap_or_default(),
        unlock: unlock
            .as_ref()
            .map(|value| slots(value, notes))
            .unwrap_or_default(),
        device: device
            .and_then(|value| value.number(0..=DEVICE_MAX, notes))
            .unwrap_or_default(),
        key_version: newest.unwrap_or(standard.key_version),
        min_version: oldest.unwrap_or(standard.min_version),
        words_to: words_to
            .as_ref()
            .map(|value| recipients(value, notes))
            .unwrap_or_default(),
        kms: kms.as_ref().and_then(|value| kms::section(value, notes)),
    };
    let asked = config.unlock.contains(&VaultUnlock::Kms);
    match (&kms, &unlock) {
        (None, Some(value)) if asked => {
            let what = "nothing says which node keeps the share of 'kms'";
            value.wrong(notes, what, "add [vault.kms] with code = \"alkjoin1_…\"");
        }
        (Some(value), _) if !asked => {
            let what = "nothing asks that node for its share";
            value.wrong(
                notes,
                what,
                "list \"kms\" in vault.unlock, or leave this out",
            );
        }
        _ => {}
    }
    if config.init == VaultInit::Off {
        let unused = [
            (unlock, config.unlock.is_empty()),
            (words_to, config.words_to.is_empty()),
        ];
        for (value, is_empty) in unused {
            if let Some(value) = value.filter(|_| !is_empty) {
                let what = "with vault.init = \"off\" there is no vault";
                value.wrong(notes, what, "leave this key out, or init");
            }
        }
    }
    config
}

fn source(text: &str) -> Result<VaultInit, Complaint> {
    match text {
        "generate" => Ok(VaultInit::Generate),
        "off" => Ok(VaultInit::Off),
        "prompt" => Ok(VaultInit::Prompt),
        "provisioned" => Ok(VaultInit::Provisioned),
        _ => Err((
            format!("{} is no source of words", quote(text)),
            "write \"generate\", \"prompt\", \"provisioned\" or \"off\"".to_owned(),
        )),
    }
}

fn slots(list: &Value<'_, '_>, notes: &mut Notes<'_>) -> Vec<VaultUnlock> {
    let mut slots = Vec::new();
    for entry in list.list(notes) {
        let Some(slot) = entry.parsed(notes, slot) else {
            continue;
        };
        if slots.contains(&slot) {
            let what = format!("'{}' is listed twice", slot.name());
            entry.wrong(notes, what, "keep one of the two");
            continue;
        }
        slots.push(slot);
    }
    if slots.contains(&VaultUnlock::None) && slots.len() > 1 {
        let what = "'none' leaves the key beside the vault, whatever else opens it";
        list.wrong(notes, what, "list \"none\" alone, or leave it out");
    }
    slots
}

fn slot(text: &str) -> Result<VaultUnlock, Complaint> {
    let found = VaultUnlock::ALL.into_iter().find(|it| it.name() == text);
    found.ok_or_else(|| {
        (
            format!("{} opens no vault", quote(text)),
            "write \"tpm2\", \"provisioning\", \"passphrase\", \"kms\" or \"none\"".to_owned(),
        )
    })
}

fn recipients(list: &Value<'_, '_>, notes: &mut Notes<'_>) -> Vec<String> {
    let entries = list.list(notes);
    if let Some(beyond) = entries.get(RECIPIENTS_MAX) {
        let what = format!("there are more than {RECIPIENTS_MAX} recipients");
        beyond.wrong(notes, what, "leave some out");
    }
    let mut recipients: Vec<String> = Vec::new();
    for entry in &entries {
        let Some(recipient) = entry.parsed(notes, recipient) else {
            continue;
        };
        if recipients.contains(&recipient) {
            entry.wrong(
                notes,
                "this recipient is listed twice",
                "keep one of the two",
            );
            continue;
        }
        recipients.push(recipient);
    }
    recipients
}

/// A public key that age encrypts to. What is no key is not quoted: it may be a private one.
fn recipient(text: &str) -> Result<String, Complaint> {
    let example = "write the public key, \"age1…\" as age-keygen prints it, or the line of a file \
                   like ~/.ssh/id_ed25519.pub";
    if text.starts_with("AGE-SECRET-KEY") || text.contains("PRIVATE KEY") {
        let what = "this is a private key, and nobody else may have it";
        return Err((what.to_owned(), example.to_owned()));
    }
    let is_one = match text.split(' ').collect::<Vec<_>>()[..] {
        [kind @ ("ssh-ed25519" | "ssh-rsa"), key, ..] => is_ssh_key(kind, key),
        [key] => is_age_key(key),
        _ => false,
    };
    if is_one && !text.contains(char::is_control) {
        return Ok(text.to_owned());
    }
    Err((
        "this is nobody to encrypt to".to_owned(),
        example.to_owned(),
    ))
}

/// An X25519 recipient of age: Bech32 (BIP 173) of 32 bytes under `age`.
fn is_age_key(text: &str) -> bool {
    const CHARACTERS: &[u8; 32] = b"qpzry9x8gf2tvdw0s3jn54khce6mua7l";
    /// The prefix, spread as the checksum wants it: high bits, 0, low bits.
    const PREFIX: [u8; 7] = [3, 3, 3, 0, b'a' & 31, b'g' & 31, b'e' & 31];
    /// 256 bits in symbols of 5, and the 6 of the checksum.
    const SYMBOLS: usize = 256_usize.div_ceil(5) + 6;
    let Some(data) = text.strip_prefix("age1") else {
        return false;
    };
    let place = |b: u8| CHARACTERS.iter().position(|known| *known == b);
    let symbols: Option<Vec<u8>> = data.bytes().map(|b| place(b).map(|it| it as u8)).collect();
    let Some(symbols) = symbols.filter(|it| it.len() == SYMBOLS) else {
        return false;
    };
    PREFIX.into_iter().chain(symbols).fold(1, bech32_step) == 1
}

/// One step of Bech32's checksum.
fn bech32_step(sum: u32, symbol: u8) -> u32 {
    const GENERATORS: [u32; 5] = [
        0x3b6a_57b2,
        0x2650_8e6d,
        0x1ea1_19fa,
        0x3d42_33dd,
        0x2a14_62b3,
    ];
    let next = (sum & 0x01ff_ffff) << 5 ^ u32::from(symbol);
    let taken = GENERATORS.iter().enumerate();
    taken.fold(next, |next, (bit, generator)| {
        if sum >> 25 >> bit & 1 == 1 {
            next ^ generator
        } else {
            next
        }
    })
}

/// The second word of a public key's line: RFC 4253 (6.6) and RFC 8709 (4).
fn is_ssh_key(kind: &str, text: &str) -> bool {
    let Ok(bytes) = BASE64.decode(text.as_bytes()) else {
        return false;
    };
    let mut fields = Fields(&bytes);
    let named = fields.next() == Some(kind.as_bytes());
    let first = fields.next();
    let fits = match kind {
        "ssh-ed25519" => first.is_some_and(|key| key.len() == 32),
        _ => {
            first.is_some_and(|exponent| !exponent.is_empty()) && {
                let modulus = fields.next().unwrap_or_default();
                let modulus = modulus.strip_prefix(&[0]).unwrap_or(modulus);
                let high = modulus.first().map_or(0, |byte| byte.leading_zeros());
                let bits = (modulus.len() * 8).saturating_sub(high as usize);
                RSA_BITS.contains(&bits)
            }
        }
    };
    named && fits && fields.0.is_empty()
}

/// Byte strings, each behind its length.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        let (field, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some(field)
    }
}
