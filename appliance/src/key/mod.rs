//! Key rotation: its files, and the notice from which other nodes learn the new key. The command
//! line replaces its own key with it, and a node replaces the key that it serves with.

mod files;
mod notice;

pub(crate) use files::{KeyFiles, RotationKeys, RotationRecord, RotationStage, RotationTarget};
pub(crate) use notice::{RotationNoticeError, RotationResponse, tell};
