//! `[vault]`: where the node's recovery words come from, and what opens them at a start.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::quote;
use super::kms::{self, VaultKms};
use super::read::{ConfigDiagnostics, ConfigTable, ConfigValue};
use super::recipient::AgeKey;
use super::values::ConfigDiagnostic;

/// Highest number of a device: the last hardened level of a derivation path (BIP 32).
const DEVICE_MAX: u32 = (1 << 31) - 1;
/// Versions of the key with which the vault seals secrets.
pub(super) const KEY_VERSIONS: std::ops::RangeInclusive<u32> = KEY_VERSION_MIN..=KEY_VERSION_MAX;
/// Version 1 belongs to another design.
const KEY_VERSION_MIN: u32 = 2;
/// The levels of a path count versions from 2.
const KEY_VERSION_MAX: u32 = DEVICE_MAX + 2;
/// Most recipients of the words: each adds a line to the message that they read.
const RECIPIENTS_MAX: usize = 8;

/// `[vault]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct VaultSection {
    /// Where the words of a node without a vault come from.
    pub init: VaultInit,
    /// What opens the vault at a start; made with it. Empty chooses by what the machine has.
    pub unlock: Vec<VaultUnlock>,
    /// Whether the TPM wants a PIN as well, which is typed at every start; for a slot of type `tpm2`.
    pub tpm_pin: bool,
    /// Which of the nodes of the same words this is.
    #[schemars(range(max = 2_147_483_647))]
    pub device: u32,
    /// Version of the key that new secrets are sealed with.
    #[schemars(range(min = 2, max = 2_147_483_649_u32))]
    pub key_version: u32,
    /// The oldest version that is still opened.
    #[schemars(range(min = 2, max = 2_147_483_649_u32))]
    pub min_version: u32,
    /// Recipients that the words this node makes are encrypted to: `age1…`, `ssh-ed25519 …`, `ssh-rsa …`.
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
            tpm_pin: false,
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
    /// An administrator types them at the console.
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
    /// An administrator types it at the console.
    Passphrase,
    /// `seed.key` of a provisioning medium.
    Provisioning,
    /// The machine's TPM.
    Tpm2,
}

impl VaultUnlock {
    /// Every way, in the order of their names.
    pub const ALL: [Self; 5] = [
        Self::Kms,
        Self::None,
        Self::Passphrase,
        Self::Provisioning,
        Self::Tpm2,
    ];

    /// The name in the document and in `vault.alkv`.
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

pub(super) fn section(
    mut section: ConfigTable<'_, '_>,
    notes: &mut ConfigDiagnostics<'_>,
) -> VaultSection {
    let standard = VaultSection::default();
    let init = section.key("init");
    let unlock = section.key("unlock");
    let tpm_pin = section.key("tpm_pin");
    let device = section.key("device");
    let key_version = section.key("key_version");
    let min_version = section.key("min_version");
    let words_to = section.key("words_to");
    let kms = section.key("kms");
    section.finish(notes);
    let number = |value: &Option<ConfigValue<'_, '_>>, notes: &mut ConfigDiagnostics<'_>| {
        // An absent version counts as its default, so that the other one is compared with it.
        let read = |value: &ConfigValue<'_, '_>| value.number(KEY_VERSIONS, notes);
        value.as_ref().map_or(Some(KEY_VERSION_MIN), read)
    };
    let (newest, oldest) = (number(&key_version, notes), number(&min_version, notes));
    if let (Some(newest), Some(oldest), Some(value)) = (newest, oldest, &min_version)
        && oldest > newest
    {
        let what = format!("{oldest} is above vault.key_version, {newest}");
        value.report(notes, what, "raise key_version first, or lower this");
    }
    let config = VaultSection {
        init: init
            .and_then(|value| value.parsed(notes, source))
            .unwrap_or_default(),
        unlock: unlock
            .as_ref()
            .map(|value| slots(value, notes))
            .unwrap_or_default(),
        tpm_pin: tpm_pin
            .as_ref()
            .and_then(|value| value.bool(notes))
            .unwrap_or(standard.tpm_pin),
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
    if let (true, Some(value)) = (config.tpm_pin, &tpm_pin)
        && !config.unlock.contains(&VaultUnlock::Tpm2)
    {
        // On a machine without a TPM the vault must not end up with less protection than the document asks for.
        let what = "a PIN is for a slot of type 'tpm2', and vault.unlock lists none";
        value.report(
            notes,
            what,
            "write unlock = [\"tpm2\"], or leave this key out",
        );
    }
    let uses_kms = config.unlock.contains(&VaultUnlock::Kms);
    match (&kms, &unlock) {
        (None, Some(value)) if uses_kms => {
            let what = "nothing says which node keeps the share of 'kms'";
            value.report(notes, what, "add [vault.kms] with code = \"alkjoin1_…\"");
        }
        (Some(value), _) if !uses_kms => {
            let what = "nothing asks that node for its share";
            value.report(
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
                value.report(notes, what, "leave this key out, or init");
            }
        }
    }
    config
}

fn source(text: &str) -> Result<VaultInit, ConfigDiagnostic> {
    match text {
        "generate" => Ok(VaultInit::Generate),
        "off" => Ok(VaultInit::Off),
        "prompt" => Ok(VaultInit::Prompt),
        "provisioned" => Ok(VaultInit::Provisioned),
        _ => Err(ConfigDiagnostic::new(
            format!("{} is no source of words", quote(text)),
            "write \"generate\", \"prompt\", \"provisioned\" or \"off\"".to_owned(),
        )),
    }
}

fn slots(list: &ConfigValue<'_, '_>, notes: &mut ConfigDiagnostics<'_>) -> Vec<VaultUnlock> {
    let mut slots = Vec::new();
    for entry in list.list(notes) {
        let Some(slot) = entry.parsed(notes, slot) else {
            continue;
        };
        if slots.contains(&slot) {
            let what = format!("'{}' is listed twice", slot.name());
            entry.report(notes, what, "keep one of the two");
            continue;
        }
        slots.push(slot);
    }
    if slots.contains(&VaultUnlock::None) && slots.len() > 1 {
        let what = "'none' leaves the key beside the vault, whatever else opens it";
        list.report(notes, what, "list \"none\" alone, or leave it out");
    }
    slots
}

fn slot(text: &str) -> Result<VaultUnlock, ConfigDiagnostic> {
    let found = VaultUnlock::ALL.into_iter().find(|it| it.name() == text);
    found.ok_or_else(|| {
        ConfigDiagnostic::new(
            format!("{} opens no vault", quote(text)),
            "write \"tpm2\", \"provisioning\", \"passphrase\", \"kms\" or \"none\"".to_owned(),
        )
    })
}

fn recipients(list: &ConfigValue<'_, '_>, notes: &mut ConfigDiagnostics<'_>) -> Vec<String> {
    let entries = list.list(notes);
    if let Some(beyond) = entries.get(RECIPIENTS_MAX) {
        let what = format!("there are more than {RECIPIENTS_MAX} recipients");
        beyond.report(notes, what, "leave some out");
    }
    let mut recipients: Vec<String> = Vec::new();
    for entry in &entries {
        let Some(recipient) = entry.parsed(notes, recipient) else {
            continue;
        };
        if recipients.contains(&recipient) {
            entry.report(
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

/// A public key to which age encrypts. A text that is no key is not quoted: it may be a private key.
fn recipient(text: &str) -> Result<String, ConfigDiagnostic> {
    let example = "write the public key, \"age1…\" as age-keygen prints it, or the line of a file \
                   like ~/.ssh/id_ed25519.pub";
    // The text is not quoted: it is a secret.
    if text.starts_with("AGE-SECRET-KEY") || text.contains("PRIVATE KEY") {
        let what = "this is a private key, which must stay with its owner";
        return Err(ConfigDiagnostic::new(what.to_owned(), example.to_owned()));
    }
    if AgeKey::parse(text).is_some() {
        return Ok(text.to_owned());
    }
    Err(ConfigDiagnostic::new(
        "this is not a public key to encrypt to".to_owned(),
        example.to_owned(),
    ))
}
