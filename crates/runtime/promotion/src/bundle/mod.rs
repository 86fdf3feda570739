//! What an author signs: an operation with all that a reviewer and a node need to judge and to run it.

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

/// The version of the document's form.
pub(crate) const FORMAT: u32 = 1;
/// The prefix of the signed text, so that the signature is valid for nothing else.
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

/// The content of a bundle, without its signature.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundleContent {
    /// The version of the form, 1.
    pub format: u32,
    /// The engine with which the author tested, [`alknet_runtime::ENGINE`]: it decides what a source means.
    pub engine: String,
    /// What the operation is. Its name is the one that a session registers, without `js/`.
    pub spec: ScriptRegistration,
    /// The module that runs first.
    pub entry: String,
    /// The function of that module that answers calls. Without it, the module registers `spec.name` when it is
    /// evaluated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub export: Option<String>,
    /// Whether the module stays loaded: one session answers all calls until other code replaces it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub service: bool,
    /// The sources, by specifier.
    pub modules: BTreeMap<String, String>,
    /// The test cases: what the operation must answer, and to which calls.
    pub tests: Vec<ScriptTestCase>,
    /// The most fuel that the tests may take.
    pub fuel: FuelPercentiles,
    /// The author, with whose authority the operation calls others.
    pub author: PeerId,
    /// The key of the author that signed the bundle.
    pub key: PeerKey,
}

/// The fuel of the cases of a test, in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FuelPercentiles {
    /// Half of the cases take at most this.
    pub p50: u64,
    /// 99 of 100 cases take at most this.
    pub p99: u64,
}

impl FuelPercentiles {
    /// The percentiles of these figures, one for each case.
    #[must_use]
    pub fn from_ticks(mut ticks: Vec<u64>) -> Self {
        ticks.sort_unstable();
        let at = |percent: usize| {
            // This is the nearest-rank percentile.
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

/// A complete bundle with a valid signature of its author's key.
#[derive(Clone, PartialEq)]
pub struct PromotionBundle {
    content: BundleContent,
    /// The canonical text, with the signature.
    document: String,
    id: Blake3Hash,
    digest: Blake3Hash,
}

impl PromotionBundle {
    /// Signs `content`; `sign` is Ed25519 (RFC 8032) with the key that the content names. It runs last, so that a key
    /// signs nothing that [`read`](Self::read) would refuse.
    ///
    /// # Errors
    /// The errors of [`read`](Self::read): this function makes no bundle that it refuses.
    pub fn sign(
        content: &BundleContent,
        sign: impl FnOnce(&[u8]) -> [u8; 64],
    ) -> Result<Self, BundleError> {
        let value = serde_json::to_value(content)
            .map_err(|error| BundleError::Json(format!("the content has no JSON form: {error}")))?;
        // The placeholder is as long as the signature.
        let unsigned = with_signature(value.clone(), &HEXLOWER.encode(&[0; 64]));
        UncheckedBundle::read(canonical(&unsigned).as_bytes())?;
        let signature = HEXLOWER.encode(&sign(&signed_text(&value)));
        Self::read(canonical(&with_signature(value, &signature)).as_bytes())
    }

    /// Reads a document in the form that an author sends.
    ///
    /// # Errors
    /// The fault of the document and its location: its size, its JSON (including a member that occurs twice), a
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

    /// The content of the bundle.
    #[must_use]
    pub fn content(&self) -> &BundleContent {
        &self.content
    }

    /// The canonical text: JSON without blanks, the members of each object in the order of their names.
    #[must_use]
    pub fn document(&self) -> &str {
        &self.document
    }

    /// The id of the specification, the source and the engine. Two bundles that do the same have the same id, even if
    /// their signers and tests differ.
    #[must_use]
    pub fn id(&self) -> Blake3Hash {
        self.id
    }

    /// The hash of the whole document.
    #[must_use]
    pub fn digest(&self) -> Blake3Hash {
        self.digest
    }

    /// The code, ready to run, with the promoted code that it imports. `imports` names that code, and `find` returns
    /// each with its own imports.
    ///
    /// # Errors
    /// A module cannot be found, or there are too many.
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

/// A document in the form of a bundle whose signature is not checked yet.
struct UncheckedBundle {
    content: BundleContent,
    /// The document without the signature.
    value: Value,
    signature: String,
    /// The canonical text, with the signature.
    document: String,
}

impl UncheckedBundle {
    /// Makes all checks of [`PromotionBundle::read`] except that of the signature.
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
        // The store keeps the canonical text, which may be longer than the text that the author sent.
        if document.len() > BUNDLE_BYTES_MAX {
            return Err(BundleError::TooLarge(document.len()));
        }
        // The signed text is the document without its signature.
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

/// The signed text: the purpose, then the document without its signature.
fn signed_text(value: &Value) -> Vec<u8> {
    [PURPOSE, canonical(value).as_bytes()].concat()
}

fn is_signed(key: &PeerKey, message: &[u8], signature: &str) -> bool {
    // Signatures of other keys are not supported.
    let PeerKey::Ed25519(public) = key else {
        return false;
    };
    let Ok(signature) = HEXLOWER.decode(signature.as_bytes()) else {
        return false;
    };
    let key = UnparsedPublicKey::new(&ED25519, public);
    key.verify(message, &signature).is_ok()
}

/// The BLAKE3 hash of the specification, a zero byte, the source and the engine, in the form of
/// [`alknet_runtime::ops::script_id`]. The specification is `spec` with the further members `entry`, `export` and, if
/// it is true, `service`. The source of one module is its text. The source of several modules is, for each in the
/// order of the specifiers, the specifier, a zero byte, the text and a zero byte. No source contains a zero byte, so
/// two different bundles never have the same hashed text.
fn id_of(value: &Value, content: &BundleContent) -> Blake3Hash {
    let mut spec = value.get("spec").cloned().unwrap_or_default();
    if let Value::Object(members) = &mut spec {
        // These members decide which function of the source answers, so they are a part of the id.
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

/// The fault of a bundle.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum BundleError {
    /// An object has a member twice.
    #[error("the bundle names the member '{0}' twice in one object")]
    Duplicate(String),
    /// The text is not JSON, or not the JSON of a bundle.
    #[error("the bundle cannot be read: {0}")]
    Json(String),
    /// The document nests too deeply.
    #[error("the bundle nests more than {NESTING_MAX} levels")]
    Nesting,
    /// A member has an invalid value.
    #[error("the bundle's {member}: {what}")]
    Shape {
        /// The member, as a path with dots.
        member: String,
        /// What the member must be.
        what: String,
    },
    /// The signature is not one of the key over this content.
    #[error("the signature is not that of the bundle's key over its content")]
    Signature,
    /// The document is too long.
    #[error("the bundle has {0} bytes; at most {BUNDLE_BYTES_MAX} are taken")]
    TooLarge(usize),
}

impl BundleError {
    pub(crate) fn shape(member: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Shape {
            member: member.into(),
            what: what.into(),
        }
    }
}

#[cfg(test)]
mod tests;
