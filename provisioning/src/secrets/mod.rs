//! Recovery words, seed keys and credentials on provisioning media: finds, reads and erases them if
//! possible. They are never part of the stored document.

mod erase;
mod put;
pub(crate) mod split;

use std::fmt;
use std::path::PathBuf;

use alknet_core::config::{CONFIG_BYTES_MAX, is_credential_name};
use alknet_vault::slots::{SeedKey, VaultId};
use alknet_vault::{Entropy, MnemonicError, SecretStr};
use toml::de::{DeTable, DeValue};
use zeroize::Zeroizing;

use crate::install::split_install;
use crate::sources::SourceContents;
use crate::{ConfigOrigin, FileSystem, SourceDiagnostic, text};

pub use erase::erase;
pub use put::{PutSeedKeyError, put_seed_key};
use split::{SecretSpans, SecretsPart};

/// Longest file of words or of a seed key that is read.
pub const SECRET_BYTES_MAX: usize = 4096;

/// The part of a medium's document that is a configuration: with spaces in the place of its tables `[secrets]` and
/// `[install]`, so that errors in the rest have the right line numbers. What is wrong with `[install]` is beside it.
#[must_use]
pub fn configuration_part(document: &[u8]) -> (Vec<u8>, Vec<String>) {
    match std::str::from_utf8(document) {
        Ok(text) => split_install(&SecretSpans::parse(text).document(document)),
        // The reader of the configuration refuses it.
        Err(_) => (document.to_vec(), Vec::new()),
    }
}

/// The secrets that were found on the media.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct MediaSecrets {
    /// The words of the first source that has some.
    pub words: Option<RecoveryWords>,
    /// Different words of further sources. No vault is made while there are some.
    pub other_words: Vec<RecoveryWords>,
    /// Every seed key, in the order of the sources. Each is for one vault.
    pub seed_keys: Vec<MediaSeedKey>,
    /// Credentials of other services. Each is from the first source that has one with its name.
    pub credentials: Vec<MediaCredential>,
}

/// Recovery words from a medium.
#[non_exhaustive]
pub struct RecoveryWords {
    /// The entropy of the words.
    pub entropy: Entropy,
    /// The BIP39 passphrase. Empty for none.
    pub passphrase: SecretStr,
    /// The first source that has them.
    pub source: ConfigOrigin,
    /// Every place that has them, for [`erase`].
    pub locations: Vec<MediaLocation>,
}

impl fmt::Debug for RecoveryWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecoveryWords(of {}, ..)", self.source)
    }
}

/// A seed key from a medium.
#[derive(Debug)]
#[non_exhaustive]
pub struct MediaSeedKey {
    /// The key.
    pub key: SeedKey,
    /// Its source.
    pub source: ConfigOrigin,
}

/// A credential of another service, from a medium.
#[non_exhaustive]
pub struct MediaCredential {
    /// Its name in the configuration.
    pub name: String,
    /// The secret as it was written.
    pub secret: SecretStr,
    /// The first source that has it.
    pub source: ConfigOrigin,
    /// Every place that has it, for [`erase`].
    pub locations: Vec<MediaLocation>,
}

impl fmt::Debug for MediaCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MediaCredential({} of {}, ..)", self.name, self.source)
    }
}

impl MediaSecrets {
    /// The keys with this vault's name, in the order of the sources. The name is public, so a key
    /// belongs to the vault only if it opens a slot.
    pub fn seed_keys_of(&self, vault: VaultId) -> impl Iterator<Item = &MediaSeedKey> {
        let keys = self.seed_keys.iter();
        keys.filter(move |found| found.key.vault() == vault)
    }

    /// Every place that has these words, whether or not they were used. Compared in constant time.
    #[must_use]
    pub fn locations_of(&self, words: &Entropy) -> Vec<MediaLocation> {
        let all = self.words.iter().chain(&self.other_words);
        let same = all.filter(|found| found.entropy == *words);
        same.flat_map(|found| found.locations.iter().cloned())
            .collect()
    }

    /// One problem, `provisioning-conflict`, for each medium with words that are not `words`, the
    /// vault's own. At the first start an attacker's medium may have been the only one, and the
    /// owner's medium reveals that later.
    #[must_use]
    pub fn conflicts_with(&self, words: &Entropy) -> Vec<SourceDiagnostic> {
        let all = self.words.iter().chain(&self.other_words);
        let others = all.filter(|found| found.entropy != *words);
        let sources = others.flat_map(|found| found.locations.iter().map(|place| &place.source));
        // What was pasted is not on a medium.
        let media = sources.filter(|source| **source != ConfigOrigin::Console);
        let conflict = |source: &ConfigOrigin| {
            SourceDiagnostic::new(
                "provisioning-conflict",
                format!("{source}: words that are not those of this node's vault"),
                "if they are this node's, its vault was made of those of another medium: reset it and start it with this \
                 medium alone; else take the medium away",
            )
        };
        let mut problems: Vec<_> = media.map(conflict).collect();
        // A document and a file beside it would be reported twice.
        problems.dedup();
        problems
    }
}

/// A place with secrets that can be erased.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediaLocation {
    pub(crate) source: ConfigOrigin,
    /// What they are, as readable text.
    pub(crate) what: &'static str,
    /// `None` if the place cannot be written.
    pub(crate) file: Option<SecretFile>,
}

/// A file of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SecretFile {
    pub(crate) device: PathBuf,
    pub(crate) file_system: FileSystem,
    pub(crate) path: &'static str,
    /// The part of the file's secrets table that is meant. `None` for the whole file.
    pub(crate) within: Option<SecretsPart>,
}

/// A document from a source, separated from its secrets.
#[derive(Default)]
pub(crate) struct SplitDocument {
    /// Everything except the secrets.
    pub(crate) document: Vec<u8>,
    /// Reasons to refuse the document: what is wrong and what to do.
    pub(crate) mistakes: Vec<(String, String)>,
    /// Whether the document has a table of secrets.
    pub(crate) held_secrets: bool,
    secrets: SecretsTable,
    /// Why some of its secrets are not used.
    refused: Vec<(String, String)>,
}

/// The table `[secrets]`.
#[derive(Default)]
struct SecretsTable {
    words: Option<Zeroizing<String>>,
    passphrase: Option<Zeroizing<String>>,
    seed_key: Option<Zeroizing<String>>,
    credentials: Vec<(String, Zeroizing<String>)>,
}

/// Separates the secrets from a document.
pub(crate) fn part(bytes: &[u8]) -> SplitDocument {
    let Some(clean) = text::clean(bytes) else {
        let (what, fix) = text::UTF_16;
        return SplitDocument {
            mistakes: vec![(what.to_owned(), fix.to_owned())],
            ..SplitDocument::default()
        };
    };
    let whole = || SplitDocument {
        document: clean.to_vec(),
        ..SplitDocument::default()
    };
    // The parser of the rest refuses a document for its length or its bytes.
    let text = match std::str::from_utf8(clean) {
        Ok(text) if clean.len() <= CONFIG_BYTES_MAX => text,
        _ => return whole(),
    };
    let split = SecretSpans::parse(text);
    if split.is_empty() {
        return whole();
    }
    let mut parted = SplitDocument {
        document: split.document(clean),
        held_secrets: true,
        ..SplitDocument::default()
    };
    parted.read(&split.secrets(clean), split.has_credentials());
    parted
}

impl SplitDocument {
    /// `apart` is whether credentials can be erased without the rest.
    fn read(&mut self, secrets: &[u8], apart: bool) {
        let text = std::str::from_utf8(secrets).unwrap_or_default();
        let line = |at: usize| 1 + text[..at.min(text.len())].matches('\n').count();
        let (root, mistakes) = DeTable::parse_recoverable(text);
        for mistake in &mistakes {
            let at = line(mistake.span().unwrap_or_default().start);
            self.mistakes.push((
                format!("line {at}, secrets: this is no TOML"),
                "correct the TOML syntax here".to_owned(),
            ));
        }
        // A value that was parsed next to a mistake may be half of a secret.
        if !mistakes.is_empty() {
            return;
        }
        let Some(value) = root.get_ref().get(split::TABLE) else {
            return;
        };
        let Some(table) = value.get_ref().as_table() else {
            let what = format!(
                "line {}, secrets: expected a table",
                line(value.span().start)
            );
            let fix = "write [secrets] on a line of its own, and its keys below";
            self.refused.push((what, fix.to_owned()));
            return;
        };
        for (key, value) in table {
            let name: &str = key.get_ref();
            let at = line(key.span().start);
            let field = match name {
                "words" => &mut self.secrets.words,
                "words_passphrase" => &mut self.secrets.passphrase,
                split::SEED_KEY => &mut self.secrets.seed_key,
                split::CREDENTIALS => {
                    self.read_credentials(value.get_ref(), (at, apart), &line);
                    continue;
                }
                // Not quoted, because it may be a secret in the wrong position.
                _ => {
                    let what = format!("line {at}, secrets: unknown key");
                    let fix = "known here: words, words_passphrase, seed_key, credentials";
                    self.refused.push((what, fix.to_owned()));
                    continue;
                }
            };
            match value.get_ref().as_str() {
                Some(text) => *field = Some(Zeroizing::new(text.to_owned())),
                None => {
                    let what = format!("line {at}, secrets.{name}: expected a string in quotes");
                    self.refused
                        .push((what, "write a string in quotes".to_owned()));
                }
            }
        }
    }
}

impl SplitDocument {
    fn read_credentials(
        &mut self,
        value: &DeValue<'_>,
        (at, apart): (usize, bool),
        line: &dyn Fn(usize) -> usize,
    ) {
        let mut refuse = |at: usize, what: &str, fix: &str| {
            let what = format!("line {at}, secrets.credentials: {what}");
            self.refused.push((what, fix.to_owned()));
        };
        let Some(table) = value.as_table().filter(|_| apart) else {
            let fix = "write [secrets.credentials] on a line of its own, and NAME = \"…\" below";
            refuse(at, "expected a table of its own", fix);
            return;
        };
        for (key, value) in table {
            let (name, at): (&str, _) = (key.get_ref(), line(key.span().start));
            // Neither is quoted, because either may be a secret in the wrong position.
            if !is_credential_name(name) {
                let fix = "use 1 to 32 of a-z, 0-9 and '-', a letter first";
                refuse(at, "this is no name of a credential", fix);
                continue;
            }
            match value.get_ref().as_str() {
                Some("") => refuse(at, "there is nothing in it", "write the secret"),
                Some(text) => {
                    let secret = Zeroizing::new(text.to_owned());
                    self.secrets.credentials.push((name.to_owned(), secret));
                }
                None => refuse(at, "expected a string", "write a string in quotes"),
            }
        }
    }
}

/// Collects the secrets of all sources, in their order.
#[derive(Default)]
pub(crate) struct SecretCollector {
    found: MediaSecrets,
    pub(crate) problems: Vec<SourceDiagnostic>,
}

impl SecretCollector {
    /// Takes the secrets of one source: those in its document, and those in the files beside it.
    pub(crate) fn take(&mut self, offer: &SourceContents, parted: &mut SplitDocument) {
        for (what, fix) in std::mem::take(&mut parted.refused) {
            self.refuse(&offer.source, &what, &fix);
        }
        let table = std::mem::take(&mut parted.secrets);
        let passphrase = table.passphrase.unwrap_or_default();
        if let Some(words) = table.words {
            let place = offer.location(
                offer.names.map(|names| names.document),
                Some(SecretsPart::Words),
            );
            self.words(offer, "secrets.words", &words, &passphrase, place);
        }
        let name = offer.names.map_or("words", |names| names.words);
        if let Some(words) = self.file(offer, name, offer.words.as_ref()) {
            let place = offer.location(offer.names.map(|names| names.words), None);
            self.words(offer, name, &words, &passphrase, place);
        }
        if let Some(key) = table.seed_key {
            self.seed_key(offer, "secrets.seed_key", &key);
        }
        let name = offer.names.map_or("seed.key", |names| names.seed_key);
        if let Some(key) = self.file(offer, name, offer.seed_key.as_ref()) {
            self.seed_key(offer, name, &key);
        }
        for (name, secret) in table.credentials {
            self.credential(offer, name, &secret);
        }
    }

    /// Everything that was found.
    pub(crate) fn finish(self) -> (MediaSecrets, Vec<SourceDiagnostic>) {
        (self.found, self.problems)
    }

    /// The text of a file, if the file has some. Erased words are spaces.
    fn file(
        &mut self,
        offer: &SourceContents,
        name: &str,
        bytes: Option<&Zeroizing<Vec<u8>>>,
    ) -> Option<Zeroizing<String>> {
        let bytes = bytes?;
        let refusal = if bytes.len() > SECRET_BYTES_MAX {
            let what = format!("{name}: the file is longer than {SECRET_BYTES_MAX} bytes");
            (what, "write what belongs into it, and nothing else")
        } else if let Some(clean) = text::clean(bytes) {
            match std::str::from_utf8(clean) {
                // An erased file is blank, because the node blanks it in place after the first
                // start.
                Ok(text) if text.trim().is_empty() => return None,
                Ok(text) => return Some(Zeroizing::new(text.to_owned())),
                Err(_) => (format!("{name}: the file is no text"), "save it as UTF-8"),
            }
        } else {
            (format!("{name}: {}", text::UTF_16.0), text::UTF_16.1)
        };
        self.refuse(&offer.source, &refusal.0, refusal.1);
        None
    }

    fn words(
        &mut self,
        offer: &SourceContents,
        name: &str,
        text: &str,
        passphrase: &str,
        place: MediaLocation,
    ) {
        let entropy = match Entropy::parse(text) {
            Ok(entropy) => entropy,
            Err(error) => {
                // The nearest word would reveal too much to every reader of the console.
                let what = match error {
                    MnemonicError::UnknownWord { position, .. } => {
                        format!("{name}: word {position} is not in the list")
                    }
                    error => format!("{name}: {error}"),
                };
                self.refuse(&offer.source, &what, "compare the words with the paper");
                return;
            }
        };
        let Some(first) = &mut self.found.words else {
            self.found.words = Some(RecoveryWords {
                entropy,
                passphrase: SecretStr::from(passphrase),
                source: offer.source.clone(),
                locations: vec![place],
            });
            return;
        };
        // The same words with another passphrase make different keys.
        if first.entropy == entropy && first.passphrase.expose() == passphrase {
            first.locations.push(place);
        } else {
            // The first source counts. Later ones are kept, to be compared with the vault.
            let (taken, left) = (first.source.clone(), &offer.source);
            self.found.other_words.push(RecoveryWords {
                entropy,
                passphrase: SecretStr::from(passphrase),
                source: offer.source.clone(),
                locations: vec![place],
            });
            let what = format!("{left}: {name}: other words than those of {taken}");
            self.problems.push(SourceDiagnostic::new(
                "provisioning-conflict",
                what,
                "take one of the two away",
            ));
        }
    }

    fn credential(&mut self, offer: &SourceContents, name: String, secret: &str) {
        let document = offer.names.map(|names| names.document);
        let place = offer.location(document, Some(SecretsPart::Credentials));
        let mut known = self.found.credentials.iter_mut();
        match known.find(|known| known.name == name) {
            None => self.found.credentials.push(MediaCredential {
                name,
                secret: SecretStr::from(secret),
                source: offer.source.clone(),
                locations: vec![place],
            }),
            // Every place is recorded, because each must be erased.
            Some(first) if first.secret.expose() == secret => first.locations.push(place),
            Some(first) => {
                let (taken, left) = (&first.source, &offer.source);
                let what = format!(
                    "{left}: secrets.credentials.{name}: another secret than that of {taken}, which \
                     is used"
                );
                self.problems.push(SourceDiagnostic::new(
                    "provisioning-conflict",
                    what,
                    "take one of the two away",
                ));
            }
        }
    }

    fn seed_key(&mut self, offer: &SourceContents, name: &str, text: &str) {
        if matches!(offer.source, ConfigOrigin::Metadata { .. }) {
            // The vault would be made with a slot that opens at no later start.
            let what = format!("{name}: a closed vault asks no metadata service for its key");
            let fix = "remove it; let a TPM, a passphrase or another node open the vault";
            return self.refuse(&offer.source, &what, fix);
        }
        match SeedKey::parse(text) {
            Ok(key) => self.found.seed_keys.push(MediaSeedKey {
                key,
                source: offer.source.clone(),
            }),
            Err(error) => self.refuse(
                &offer.source,
                &format!("{name}: {error}"),
                "write the line as it was made",
            ),
        }
    }

    fn refuse(&mut self, source: &ConfigOrigin, what: &str, fix: &str) {
        let text = format!("{source}: {what}");
        self.problems
            .push(SourceDiagnostic::new("secrets-refused", text, fix));
    }
}
