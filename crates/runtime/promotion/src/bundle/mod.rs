//! What an author signs: an operation with everything that it takes to judge and to run it.

mod code;
mod json;
mod shape;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use alknet_core::{PeerId, PeerKey};
use alknet_runtime::ops::ScriptTestCase;
use alknet_runtime::{ModuleSet, ScriptFailure, ScriptRegistration};
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

use crate::limits::{BUNDLE_BYTES_MAX, NESTING_MAX};

pub(crate) use code::Imported;
pub use code::OperationCode;
pub use json::{canonical, read as read_json};

/// The form of the document.
pub(crate) const FORMAT: u32 = 1;
/// What a signature begins with, so that it stands for nothing else.
const PURPOSE: &[u8] = b"alknet bundle 1\n";

/// A BLAKE3 hash, written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Blake3Hash(pub [u8; 32]);

impl fmt::Display for Blake3Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for Blake3Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Blake3Hash {
    type Err = BundleError;

    fn from_str(text: &str) -> Result<Self, BundleError> {
        let bytes = HEXLOWER.decode(text.as_bytes()).ok();
        bytes
            .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok())
            .map(Self)
            .ok_or_else(|| BundleError::shape("id", "64 lower-case hexadecimal digits"))
    }
}

impl TryFrom<String> for Blake3Hash {
    type Error = BundleError;

    fn try_from(text: String) -> Result<Self, BundleError> {
        text.parse()
    }
}

impl From<Blake3Hash> for String {
    fn from(hash: Blake3Hash) -> Self {
        hash.to_string()
    }
}

/// What is in a bundle, beside its signature.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundleContent {
    /// Version of the format, 1.
    pub format: u32,
    /// The engine that the author tested with, [`alknet_runtime::ENGINE`]: it decides what a source
    /// means.
    pub engine: String,
    /// What the operation is; its name is the one that a session registers, without `js/`.
    pub spec: ScriptRegistration,
    /// The module to begin with.
    pub entry: String,
    /// The function of that module which answers; without it, the module registers `spec.name` as it
    /// is evaluated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub export: Option<String>,
    /// Whether the module stays: one session answers every call, until other code takes its place.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub service: bool,
    /// Sources by specifier.
    pub modules: BTreeMap<String, String>,
    /// What it has to answer, and to which calls.
    pub tests: Vec<ScriptTestCase>,
    /// The most that its tests take.
    pub fuel: FuelPercentiles,
    /// Who wrote it, and whose authority it calls others by.
    pub author: PeerId,
    /// The key that signed it, one of the author's.
    pub key: PeerKey,
}

/// Fuel of the cases of a test, in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FuelPercentiles {
    /// Half of them take at most this.
    pub p50: u64,
    /// 99 of 100 take at most this.
    pub p99: u64,
}

impl FuelPercentiles {
    /// Of these figures, one for each case.
    #[must_use]
    pub fn from_ticks(mut ticks: Vec<u64>) -> Self {
        ticks.sort_unstable();
        let at = |percent: usize| {
            let index = (ticks.len() * percent).div_ceil(100).saturating_sub(1);
            ticks.get(index).copied().unwrap_or(0)
        };
        Self {
            p50: at(50),
            p99: at(99),
        }
    }

    /// Whether both figures are at most those of `other`.
    #[must_use]
    pub fn within(self, other: Self) -> bool {
        self.p50 <= other.p50 && self.p99 <= other.p99
    }
}

/// A bundle that was read whole and whose signature is its author's key's.
#[derive(Clone, PartialEq)]
pub struct PromotionBundle {
    content: BundleContent,
    /// Its canonical text, with the signature.
    document: String,
    id: Blake3Hash,
    digest: Blake3Hash,
}

impl PromotionBundle {
    /// Signs `content`; `sign` is Ed25519 (RFC 8032) with the key that the content names. It is called last: a key signs
    /// nothing that [`read`](Self::read) would refuse.
    ///
    /// # Errors
    /// As [`read`](Self::read): a bundle that it refuses is not made.
    pub fn sign(
        content: &BundleContent,
        sign: impl FnOnce(&[u8]) -> [u8; 64],
    ) -> Result<Self, BundleError> {
        let value = serde_json::to_value(content)
            .map_err(|error| BundleError::Json(format!("the content has no JSON form: {error}")))?;
        // As long as the signature will be.
        let unsigned = with_signature(value.clone(), &HEXLOWER.encode(&[0; 64]));
        UncheckedBundle::read(canonical(&unsigned).as_bytes())?;
        let signature = HEXLOWER.encode(&sign(&signed_text(&value)));
        Self::read(canonical(&with_signature(value, &signature)).as_bytes())
    }

    /// Reads a document as an author sends it.
    ///
    /// # Errors
    /// What is wrong with it, at which place: its size, its JSON (a member named twice included), a
    /// member that is missing, unknown or out of its bounds, or its signature.
    pub fn read(document: &[u8]) -> Result<Self, BundleError> {
        let read = UncheckedBundle::read(document)?;
        if !is_signed(
            &read.content.key,
            &signed_text(&read.value),
            &read.signature,
        ) {
            return Err(BundleError::Signature);
        }
        Ok(Self {
            digest: Blake3Hash(*blake3::hash(read.document.as_bytes()).as_bytes()),
            id: id_of(&read.value, &read.content),
            content: read.content,
            document: read.document,
        })
    }

    /// What is in it.
    #[must_use]
    pub fn content(&self) -> &BundleContent {
        &self.content
    }

    /// Its canonical text: JSON without blanks, the members of every object in order of their names.
    #[must_use]
    pub fn document(&self) -> &str {
        &self.document
    }

    /// The id of its specification, source and engine. Two bundles that do the same have the same id, also where their
    /// signers and their tests differ.
    #[must_use]
    pub fn id(&self) -> Blake3Hash {
        self.id
    }

    /// The hash of the whole document.
    #[must_use]
    pub fn digest(&self) -> Blake3Hash {
        self.digest
    }

    /// The code, ready to be run, with the promoted code that it imports: `imports` are the names of
    /// that, and `find` has each with the imports of its own.
    ///
    /// # Errors
    /// A module is not to be had, or there are too many.
    pub(crate) fn code(
        &self,
        imports: &[String],
        find: &mut dyn FnMut(&str, u64) -> Option<Imported>,
    ) -> Result<OperationCode, ScriptFailure> {
        let mut modules = ModuleSet::new();
        code::fill(&mut modules, self, imports, find)?;
        Ok(OperationCode::new(self, modules, !imports.is_empty()))
    }
}

impl fmt::Debug for PromotionBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PromotionBundle")
            .field("id", &self.id)
            .field("name", &self.content.spec.name)
            .field("author", &self.content.author)
            .finish_non_exhaustive()
    }
}

/// A document that has the form of a bundle, whose signature was not checked.
struct UncheckedBundle {
    content: BundleContent,
    /// Without the signature.
    value: Value,
    signature: String,
    /// Its canonical text, with the signature.
    document: String,
}

impl UncheckedBundle {
    /// Everything that [`PromotionBundle::read`] checks but the signature.
    fn read(document: &[u8]) -> Result<Self, BundleError> {
        let mut value = read_json(document)?;
        shape::check(&value)?;
        let signature = value
            .as_object_mut()
            .and_then(|members| members.remove("signature"));
        let content: BundleContent = serde_json::from_value(value.clone())
            .map_err(|error| BundleError::Json(error.to_string()))?;
        shape::check_content(&content)?;
        let signature = signature.as_ref().and_then(Value::as_str);
        let signature = signature.unwrap_or_default().to_owned();
        let mut value = with_signature(value, &signature);
        let document = canonical(&value);
        // What is kept is the canonical text, which may be longer than what was sent.
        if document.len() > BUNDLE_BYTES_MAX {
            return Err(BundleError::TooLarge(document.len()));
        }
        if let Value::Object(members) = &mut value {
            members.remove("signature");
        }
        Ok(Self {
            content,
            value,
            signature,
            document,
        })
    }
}

/// The document with this signature.
fn with_signature(mut value: Value, signature: &str) -> Value {
    if let Value::Object(members) = &mut value {
        members.insert("signature".to_owned(), signature.into());
    }
    value
}

/// What is signed: the purpose, then the document without its signature.
fn signed_text(value: &Value) -> Vec<u8> {
    [PURPOSE, canonical(value).as_bytes()].concat()
}

fn is_signed(key: &PeerKey, message: &[u8], signature: &str) -> bool {
    let PeerKey::Ed25519(public) = key else {
        return false;
    };
    let Ok(signature) = HEXLOWER.decode(signature.as_bytes()) else {
        return false;
    };
    let key = UnparsedPublicKey::new(&ED25519, public);
    key.verify(message, &signature).is_ok()
}

/// BLAKE3 of the specification, a zero byte, the source and the engine, as
/// [`alknet_runtime::ops::script_id`] has it. The specification is `spec` with `entry`, `export` and,
/// where it is true, `service` as further members. The source of one module is its text; that of several is, for each in order
/// of its specifier, the specifier, a zero byte, the text and a zero byte. No source has a zero byte,
/// so that no two bundles share a text.
fn id_of(value: &Value, content: &BundleContent) -> Blake3Hash {
    let mut spec = value.get("spec").cloned().unwrap_or_default();
    if let Value::Object(members) = &mut spec {
        for name in ["entry", "export"] {
            if let Some(member) = value.get(name) {
                members.insert(name.to_owned(), member.clone());
            }
        }
        if content.service {
            members.insert("service".to_owned(), Value::Bool(true));
        }
    }
    let mut hash = blake3::Hasher::new();
    hash.update(canonical(&spec).as_bytes());
    hash.update(&[0]);
    match content.modules.len() {
        1 => content.modules.values().for_each(|text| {
            hash.update(text.as_bytes());
        }),
        _ => content.modules.iter().for_each(|(name, text)| {
            for part in [name, text] {
                hash.update(part.as_bytes());
                hash.update(&[0]);
            }
        }),
    }
    hash.update(content.engine.as_bytes());
    Blake3Hash(*hash.finalize().as_bytes())
}

/// What is wrong with a bundle.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum BundleError {
    /// An object names a member twice.
    #[error("the bundle names the member '{0}' twice in one object")]
    Duplicate(String),
    /// It is not JSON, or not what a bundle is.
    #[error("the bundle cannot be read: {0}")]
    Json(String),
    /// It nests too deeply.
    #[error("the bundle nests more than {NESTING_MAX} levels")]
    Nesting,
    /// A member is not what it has to be.
    #[error("the bundle's {place}: {what}")]
    Shape {
        /// Which one, as a path with dots.
        place: String,
        /// What it has to be.
        what: String,
    },
    /// The signature is not that of the key over this content.
    #[error("the signature is not that of the bundle's key over its content")]
    Signature,
    /// It is too long.
    #[error("the bundle has {0} bytes; at most {BUNDLE_BYTES_MAX} are taken")]
    TooLarge(usize),
}

impl BundleError {
    pub(crate) fn shape(place: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Shape {
            place: place.into(),
            what: what.into(),
        }
    }
}

#[cfg(test)]
mod tests;
