//! Errors between a TPM and us, sorted by what the administrator can do about them.

use std::io;

use alknet_vault::slots::KekError;
use thiserror::Error;

/// Why the TPM did not do what it was asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TpmError {
    /// The machine has no TPM.
    #[error("this machine has no TPM")]
    Absent,
    /// Nothing can be sealed to these PCRs.
    #[error("PCRs: {0}")]
    BadPcrs(&'static str),
    /// The PIN cannot be used.
    #[error("the PIN must be 1 to 32 printable ASCII characters")]
    BadPin,
    /// The text is no name of a storage key.
    #[error("the name of a storage key is 64 hex digits, lower case")]
    BadStorageKey,
    /// [`crate::Tpm::close_slots`] was called.
    #[error("the TPM opens nothing until the machine restarts, since the vault was locked hard")]
    Closed,
    /// The NV index of the counter belongs to something else.
    #[error("NV index {0:#010x} of the TPM holds something that is not our counter")]
    CounterForeign(u32),
    /// There is no counter.
    #[error("the TPM holds no counter of ours")]
    CounterMissing,
    /// The record of the slot is not one that sealing made.
    #[error("the sealed object is damaged: {0}")]
    Damaged(&'static str),
    /// PCR 12 is not empty.
    #[error(
        "something from beside the image was started with it: a command line of the firmware's boot \
         entry, of a loader or of SMBIOS, or an add-on (PCR 12); start the image alone"
    )]
    FromBeside,
    /// The machine is to have another TPM, or something stands in between.
    #[error(
        "the TPM, or what stands in its place, has another storage key than this machine is to have"
    )]
    ForeignStorageKey,
    /// The answer does not carry the code that only the TPM with our key can make.
    #[error("an answer of the TPM was forged or altered on the way")]
    Forged,
    /// There were too many wrong PINs.
    #[error(
        "the TPM is locked after too many wrong PINs{}",
        wait(.0.as_ref().map(|state| state.interval_s))
    )]
    LockedOut(Option<Lockout>),
    /// No TPM gives such an answer.
    #[error("the TPM's answer makes no sense: {0}")]
    Malformed(&'static str),
    /// The kernel's generator failed.
    #[error("the system gives no random numbers")]
    NoRandomness,
    /// A PCR has the value of a machine that measured nothing.
    #[error("PCR {0} is empty: nothing was measured into it, so sealing to it protects nothing")]
    NotMeasured(u8),
    /// Another TPM sealed it, or this one before it was cleared.
    #[error("the key was sealed by another TPM, or before this one was cleared")]
    OtherTpm,
    /// The owner hierarchy has a password, which was not set here.
    #[error("the owner hierarchy of the TPM has a password; clear it in the firmware's setup")]
    OwnerPassword,
    /// The slot needs a PIN.
    #[error("the slot wants a PIN")]
    PinMissing,
    /// Any other refusal.
    #[error("{command} failed with TPM code {code:#x}")]
    Refused {
        /// Name of the TPM command.
        command: &'static str,
        /// The number by TPM 2.0 part 2, section 6.6.
        code: u32,
    },
    /// The connection to the TPM broke.
    #[error("the TPM cannot be talked to ({0})")]
    Transport(#[source] io::Error),
    /// The firmware says that there is a TPM, and the kernel has none.
    #[error(
        "the kernel gave up this machine's TPM, which answered too late when it was first asked"
    )]
    Unanswered,
    /// The TPM cannot do what is needed.
    #[error("the TPM is not usable: {0}")]
    Unsupported(&'static str),
    /// The running software is not what the key is bound to.
    #[error("what was booted is not what the key is bound to{}", others(.changed))]
    WrongPcrs {
        /// The PCRs that hold something else, if the slot notes what they held.
        changed: Vec<u8>,
    },
    /// The PIN is not that of the slot.
    #[error("wrong PIN{}", tries(.tries_left))]
    WrongPin {
        /// How many more may be wrong before the TPM locks, if the TPM said so.
        tries_left: Option<u32>,
    },
}

/// The changed PCRs, and the meaning of each on a machine that boots our image.
fn others(changed: &[u8]) -> String {
    let named = |pcr: &u8| match pcr {
        4 => "PCR 4 (the programs that were started)".to_owned(),
        7 => "PCR 7 (Secure Boot or its keys)".to_owned(),
        11 => "PCR 11 (the image or its command line)".to_owned(),
        12 => "PCR 12 (a command line or add-on from beside the image)".to_owned(),
        other => format!("PCR {other}"),
    };
    let named: Vec<_> = changed.iter().map(named).collect();
    match named.as_slice() {
        [] => String::new(),
        [one] => format!(": {one} has another value"),
        [most @ .., last] => format!(": {} and {last} have other values", most.join(", ")),
    }
}

fn wait(interval_s: Option<u32>) -> String {
    match interval_s {
        Some(0) | None => String::new(),
        Some(seconds) => format!("; one more attempt after {seconds} s of power"),
    }
}

fn tries(left: &Option<u32>) -> String {
    left.map_or_else(String::new, |left| {
        format!(", {left} more before the TPM locks")
    })
}

/// The TPM's counters against guessing, which are the same for everything that it protects in this
/// way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lockout {
    /// Whether it is locked.
    pub locked: bool,
    /// Wrong PINs that count.
    pub failed: u32,
    /// How many lock it.
    pub failed_max: u32,
    /// Seconds with power after which the TPM forgets one wrong PIN. 0: it counts nothing.
    pub interval_s: u32,
    /// Seconds after which the owner may try to unlock the TPM again if that failed.
    pub recovery_s: u32,
}

impl Lockout {
    /// How many more may be wrong.
    #[must_use]
    pub fn tries_left(&self) -> u32 {
        self.failed_max.saturating_sub(self.failed)
    }
}

impl From<&TpmError> for KekError {
    fn from(error: &TpmError) -> Self {
        match error {
            TpmError::Absent => Self::Absent,
            TpmError::LockedOut(_) => Self::LockedOut,
            TpmError::Closed | TpmError::FromBeside | TpmError::WrongPcrs { .. } => Self::Refused,
            TpmError::WrongPin { .. } => Self::WrongPin,
            other => Self::Failed(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_is_named_as_far_as_it_is_known() {
        let text = |changed: &[u8]| {
            let changed = changed.to_vec();
            TpmError::WrongPcrs { changed }.to_string()
        };
        assert_eq!(text(&[]), "what was booted is not what the key is bound to");
        assert!(text(&[7]).ends_with("to: PCR 7 (Secure Boot or its keys) has another value"));
        let all = text(&[3, 4, 11]);
        assert!(
            all.contains(": PCR 3, PCR 4 (the programs that were started) and PCR 11"),
            "{all}"
        );
    }
}
