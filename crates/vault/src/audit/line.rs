//! A line of the log: writing it, and parsing it without trust.

use std::str::FromStr;

use data_encoding::HEXLOWER;
use serde_json::{Value, json};
use subtle::ConstantTimeEq;

use crate::audit::{AuditError, AuditEvent, ChainBreak};
use crate::crypto;
use crate::derive::MacPurpose;
use crate::json;
use crate::limits::{MAX_AUDIT_LINE_BYTES, MAX_AUDIT_RECORD_BYTES};
use crate::vault::Vault;

/// Bytes of a boot id.
pub(super) const MAX_BOOT_BYTES: usize = 64;

/// The `prev` of the very first line.
pub(super) const NOTHING: [u8; 32] = [0; 32];

/// The boot of the machine: the kernel's boot id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootId(Box<str>);

impl FromStr for BootId {
    type Err = AuditError;

    fn from_str(text: &str) -> Result<Self, AuditError> {
        let plain = text.bytes().all(|byte| byte.is_ascii_graphic());
        if text.is_empty() || text.len() > MAX_BOOT_BYTES || !plain {
            return Err(AuditError::BadBoot);
        }
        Ok(Self(text.into()))
    }
}

/// An event with its time, before it becomes a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRecord {
    /// Milliseconds since 1970, by the node's clock.
    pub t_ms: u64,
    /// The boot in which it happened.
    pub boot: BootId,
    /// What happened.
    pub event: AuditEvent,
}

impl AuditRecord {
    /// An event at a time in a boot.
    #[must_use]
    pub fn new(t_ms: u64, boot: BootId, event: AuditEvent) -> Self {
        Self { t_ms, boot, event }
    }

    /// The form in which another process sends it to the writer: canonical
    /// `{"boot","detail","ev","t"}`, at most [`MAX_AUDIT_RECORD_BYTES`].
    pub fn to_json(&self) -> Result<String, AuditError> {
        let record = json!({
            "boot": &*self.boot.0,
            "detail": self.event.detail(),
            "ev": self.event.name(),
            "t": self.t_ms,
        });
        let text = json::canonical(&record).ok_or(AuditError::TooLong)?;
        if text.len() > MAX_AUDIT_RECORD_BYTES {
            return Err(AuditError::TooLong);
        }
        Ok(text)
    }

    /// Parses a record of another process, which must be exactly what [`AuditRecord::to_json`]
    /// writes.
    pub fn from_json(text: &[u8]) -> Result<Self, AuditError> {
        if text.len() > MAX_AUDIT_RECORD_BYTES {
            return Err(AuditError::TooLong);
        }
        let value = json::parse_canonical(text).ok_or(AuditError::BadRecord)?;
        // Counting the fields refuses further ones, which the record would lose.
        let fields = value.as_object().map_or(0, serde_json::Map::len);
        let read = || {
            let name = value["ev"].as_str()?;
            let event = AuditEvent::from_parts(name, &value["detail"])?;
            Some((value["t"].as_u64()?, value["boot"].as_str()?, event))
        };
        let (t_ms, boot, event) = read()
            .filter(|_| fields == 4)
            .ok_or(AuditError::BadRecord)?;
        let boot = boot.parse()?;
        Ok(Self { t_ms, boot, event })
    }

    /// The line with its newline.
    pub(super) fn line(
        &self,
        vault: &Vault,
        seq: u64,
        prev: &[u8; 32],
    ) -> Result<String, AuditError> {
        let mut line = json!({
            "boot": &*self.boot.0,
            "detail": self.event.detail(),
            "ev": self.event.name(),
            "prev": HEXLOWER.encode(prev),
            "seq": seq,
            "t": self.t_ms,
        });
        let text = json::canonical(&line).ok_or(AuditError::TooLong)?;
        // The code covers the canonical text without the code itself, which a verifier can compute
        // again.
        let mac = vault.mac(MacPurpose::Audit, text.as_bytes())?;
        line["mac"] = HEXLOWER.encode(&mac).into();
        let mut text = json::canonical(&line).ok_or(AuditError::TooLong)?;
        text.push('\n');
        if text.len() > MAX_AUDIT_LINE_BYTES {
            return Err(AuditError::TooLong);
        }
        Ok(text)
    }
}

/// A line's position in the chain.
pub(super) struct ChainPosition {
    pub(super) seq: u64,
    pub(super) prev: [u8; 32],
    pub(super) hash: [u8; 32],
    /// The authentication code, and the text that it covers.
    mac: [u8; 32],
    covered: String,
}

impl ChainPosition {
    /// Parses a line without its newline.
    pub(super) fn parse(line: &[u8]) -> Result<Self, ChainBreak> {
        let mut value = json::parse_canonical(line).ok_or(ChainBreak::Form)?;
        let fields = value.as_object_mut().ok_or(ChainBreak::Form)?;
        let mac = fields.remove("mac").ok_or(ChainBreak::Form)?;
        Ok(Self {
            seq: value["seq"].as_u64().ok_or(ChainBreak::Form)?,
            prev: hash_of(&value["prev"])?,
            hash: crypto::sha256(line),
            mac: hash_of(&mac)?,
            covered: json::canonical(&value).ok_or(ChainBreak::Form)?,
        })
    }

    /// Whether a vault with the same words wrote the line.
    pub(super) fn is_genuine(&self, vault: &Vault) -> Result<bool, AuditError> {
        let mac = vault.mac(MacPurpose::Audit, self.covered.as_bytes())?;
        // In constant time, so that an attacker cannot find the code byte by byte.
        Ok(mac.ct_eq(&self.mac).into())
    }
}

fn hash_of(value: &Value) -> Result<[u8; 32], ChainBreak> {
    let bytes = HEXLOWER.decode(value.as_str().ok_or(ChainBreak::Form)?.as_bytes());
    bytes
        .ok()
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(ChainBreak::Form)
}
