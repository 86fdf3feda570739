//! One line: how it is written, and how it is read again without believing it.

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

/// Bytes of the name of a boot.
pub(super) const MAX_BOOT_BYTES: usize = 64;

/// What `prev` of the very first line is.
pub(super) const NOTHING: [u8; 32] = [0; 32];

/// Which start of the machine it was: the kernel's boot id.
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

/// An event with its time, not yet a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRecord {
    /// Milliseconds since 1970, by the clock of the node.
    pub t_ms: u64,
    /// In which boot.
    pub boot: BootId,
    /// What happened.
    pub event: AuditEvent,
}

impl AuditRecord {
    /// An event at a time of a boot.
    #[must_use]
    pub fn new(t_ms: u64, boot: BootId, event: AuditEvent) -> Self {
        Self { t_ms, boot, event }
    }

    /// As another process hands it to the writer: `{"boot","detail","ev","t"}`, canonical, at most
    /// [`MAX_AUDIT_RECORD_BYTES`].
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

    /// Reads what another process handed over: exactly what [`AuditRecord::to_json`] writes.
    pub fn from_json(text: &[u8]) -> Result<Self, AuditError> {
        if text.len() > MAX_AUDIT_RECORD_BYTES {
            return Err(AuditError::TooLong);
        }
        let value = json::parse_canonical(text).ok_or(AuditError::BadRecord)?;
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

    /// The line with its end.
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
        // Over the canonical text without itself, which is what a verifier can compute again.
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

/// Where a line stands in the chain.
pub(super) struct ChainPosition {
    pub(super) seq: u64,
    pub(super) prev: [u8; 32],
    pub(super) hash: [u8; 32],
    /// The MAC, and what it is of.
    mac: [u8; 32],
    covered: String,
}

impl ChainPosition {
    /// Reads a line without its end.
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

    /// Whether a vault with the same words wrote it.
    pub(super) fn is_genuine(&self, vault: &Vault) -> Result<bool, AuditError> {
        let mac = vault.mac(MacPurpose::Audit, self.covered.as_bytes())?;
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
