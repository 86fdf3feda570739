//! The choice of PCRs to seal to.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::TpmError;
use crate::limits::PCRS;

/// The firmware's variables of Secure Boot (UEFI, section 3.3): name and vendor.
const SECURE_BOOT: &str = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
const SETUP_MODE: &str = "SetupMode-8be4df61-93ca-11d2-aa0d-00e098032b8c";
/// Bytes of such a variable in Linux' file system: four of attributes, one of value.
const VARIABLE_BYTES: usize = 5;
/// How many values a TPM answers at once.
const PCRS_MAX: usize = 8;

/// How a status describes the protection by PCRs.
const ENFORCED: &str = "measured and enforced";
const MEASURED: &str = "measured, not enforced";
const UNCOVERED: &str = "measured without what comes from beside the image, not enforced";

/// The PCR for what systemd-stub measures that does not come from the image: a command line of the
/// firmware's boot entry or of a loader, strings of SMBIOS, add-ons and credentials from beside the
/// image.
pub(crate) const BESIDE_THE_IMAGE: u8 = 12;

/// PCRs of the SHA-256 bank, and the protection by them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PcrChoice {
    pcrs: Vec<u8>,
    enforced: bool,
}

impl PcrChoice {
    /// For a machine on which Secure Boot decides what may start: its keys (7), our program as its
    /// stub measured it (11), and that nothing from beside it changed its command line (12). The
    /// stub appends strings of SMBIOS under Secure Boot as well, and no key signs those.
    #[must_use]
    pub fn enforced() -> Self {
        Self {
            pcrs: vec![7, 11, BESIDE_THE_IMAGE],
            enforced: true,
        }
    }

    /// For a machine on which anything may start, and PCRs show what did: the programs themselves
    /// (4), ours in parts (11), and that nothing from beside it changed its command line (12).
    #[must_use]
    pub fn measured() -> Self {
        Self {
            pcrs: vec![4, 11, BESIDE_THE_IMAGE],
            enforced: false,
        }
    }

    /// Any other PCRs, 1 to 8, in rising order. The caller has to know the protection by them.
    ///
    /// # Errors
    /// `BadPcrs`.
    pub fn from_pcrs(pcrs: Vec<u8>) -> Result<Self, TpmError> {
        let rising = pcrs.windows(2).all(|two| two[0] < two[1]);
        let known = pcrs.iter().all(|pcr| *pcr < PCRS);
        if !(1..=PCRS_MAX).contains(&pcrs.len()) || !rising || !known {
            return Err(TpmError::BadPcrs("1 to 8 of 0 to 23 in rising order"));
        }
        // Numbers alone do not show that Secure Boot is on, so such a choice claims the weaker protection.
        let enforced = false;
        Ok(Self { pcrs, enforced })
    }

    /// The protection of a key that is bound to these PCRs, in the words of a status. A key that is
    /// bound to PCR 7 and 12, and sealed where [`choose`] said so, is released only while Secure
    /// Boot decides what starts. Any other key is released whenever the same programs were started,
    /// by an attacker as well.
    #[must_use]
    pub fn protection(pcrs: &[u8]) -> &'static str {
        // This comes before PCR 7: the stub appends strings of SMBIOS under Secure Boot as well.
        if Self::is_uncovered(pcrs) {
            UNCOVERED
        } else if pcrs.contains(&7) {
            ENFORCED
        } else {
            MEASURED
        }
    }

    /// Whether a slot that is bound to these PCRs was made before slots covered what comes from
    /// beside the image ([`crate::Tpm::cover_slots`]).
    #[must_use]
    pub fn is_uncovered(pcrs: &[u8]) -> bool {
        !pcrs.contains(&BESIDE_THE_IMAGE)
    }

    /// Their numbers in rising order.
    #[must_use]
    pub fn pcrs(&self) -> &[u8] {
        &self.pcrs
    }

    /// Whether Secure Boot decides what may start.
    #[must_use]
    pub fn is_enforced(&self) -> bool {
        self.enforced
    }
}

impl fmt::Display for PcrChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.enforced { ENFORCED } else { MEASURED })
    }
}

/// The choice for this machine, by the firmware's variables in `efi_vars`, which is
/// `/sys/firmware/efi/efivars`: Secure Boot on and out of setup mode, or anything else.
#[must_use]
pub fn choose(efi_vars: &Path) -> PcrChoice {
    let flag = |name: &str| flag(&efi_vars.join(name));
    // In setup mode every program that boots may enrol keys, so Secure Boot enforces nothing (UEFI,
    // "Firmware/OS Key Exchange").
    if flag(SECURE_BOOT) == Some(true) && flag(SETUP_MODE) == Some(false) {
        PcrChoice::enforced()
    } else {
        PcrChoice::measured()
    }
}

/// A variable that is 0 or 1. `None` for anything else.
fn flag(path: &Path) -> Option<bool> {
    let mut bytes = Vec::new();
    // One byte more shows that the variable is longer than a flag.
    let limit = VARIABLE_BYTES as u64 + 1;
    File::open(path)
        .ok()?
        .take(limit)
        .read_to_end(&mut bytes)
        .ok()?;
    match *bytes.as_slice() {
        [_, _, _, _, 0] => Some(false),
        [_, _, _, _, 1] => Some(true),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(secure_boot: Option<&[u8]>, setup_mode: Option<&[u8]>) -> PcrChoice {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for (name, content) in [(SECURE_BOOT, secure_boot), (SETUP_MODE, setup_mode)] {
            if let Some(content) = content {
                std::fs::write(dir.path().join(name), content).expect("a writable directory");
            }
        }
        choose(dir.path())
    }

    #[test]
    fn only_secure_boot_out_of_setup_mode_enforces() {
        let on: &[u8] = &[6, 0, 0, 0, 1];
        let off: &[u8] = &[6, 0, 0, 0, 0];
        let enforced = chosen(Some(on), Some(off));
        assert_eq!(
            (enforced.pcrs(), enforced.is_enforced()),
            ([7, 11, 12].as_slice(), true)
        );
        for (secure_boot, setup_mode) in [
            (Some(on), Some(on)),
            (Some(off), Some(off)),
            (Some(on), None),
            (None, Some(off)),
            (None, None),
            (Some(&on[..4]), Some(off)),
            (Some(&[6, 0, 0, 0, 1, 0]), Some(off)),
            (Some(&[6, 0, 0, 0, 2]), Some(off)),
        ] {
            let measured = chosen(secure_boot, setup_mode);
            assert_eq!(measured, PcrChoice::measured());
            assert_eq!(measured.to_string(), "measured, not enforced");
            assert_eq!(measured.pcrs(), [4, 11, 12]);
        }
        assert_eq!(choose(Path::new("/absent")), PcrChoice::measured());
        for choice in [PcrChoice::enforced(), PcrChoice::measured()] {
            assert_eq!(PcrChoice::protection(choice.pcrs()), choice.to_string());
        }
        for former in [[4, 11], [7, 11]] {
            assert!(PcrChoice::is_uncovered(&former));
            assert_eq!(PcrChoice::protection(&former), UNCOVERED);
        }
    }

    #[test]
    fn other_choices_are_bounded() {
        assert!(PcrChoice::from_pcrs(vec![0, 23]).is_ok());
        for bad in [vec![], vec![24], vec![3, 2], vec![2, 2], (0..9).collect()] {
            assert!(PcrChoice::from_pcrs(bad.clone()).is_err(), "{bad:?}");
        }
    }
}
