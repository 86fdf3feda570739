//! PCRs of the SHA-256 bank: their numbers, their values, and the policies that name them.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use crate::choice::BESIDE_THE_IMAGE;
use crate::codes::{alg, cc};
use crate::crypto::{self, DIGEST};
use crate::limits::PCRS;
use crate::primary::LoadedStorageKey;
use crate::session::{TpmSession, TpmSessionKind, protect};
use crate::tpm::{Tpm, TpmCommandBody, TpmHandle};
use crate::wire::{TpmReader, TpmWriter};
use crate::{PcrChoice, TpmError};

/// An empty `TPML_PCR_SELECTION`.
pub(crate) const NO_SELECTION: &[u8] = &[0; 4];
/// Bytes of the bit mask of 24 PCRs.
const MASK: usize = 3;
/// How many values `TPM2_PCR_Read` answers at once (`TPML_DIGEST`, part 2, section 10.9.2).
const VALUES_AT_ONCE: usize = 8;

/// The value of a PCR that nothing was measured into.
pub(crate) const EMPTY: [u8; DIGEST] = [0; DIGEST];

/// A PCR that every slot is bound to.
const OF_ALL_SLOTS: u8 = 11;
/// What is measured into it when the TPM is to open nothing more.
const CLOSED: &[u8] = b"alknet: closed until the machine restarts";

/// Values of PCRs in the SHA-256 bank, by number.
pub type PcrValues = BTreeMap<u8, [u8; DIGEST]>;

/// The PCR values that the key is bound to.
#[derive(Clone, Copy, Debug)]
pub enum ExpectedPcrs<'a> {
    /// The present ones.
    Current,
    /// These, and the present ones for the chosen PCRs that are not among them.
    Predicted(&'a PcrValues),
}

/// A `TPML_PCR_SELECTION` in the SHA-256 bank.
pub(crate) fn selection(pcrs: &[u8]) -> TpmWriter {
    let mut mask = [0_u8; MASK];
    for pcr in pcrs {
        if let Some(byte) = mask.get_mut(usize::from(pcr / 8)) {
            *byte |= 1 << (pcr % 8);
        }
    }
    TpmWriter::new()
        .u32(1)
        .u16(alg::SHA256)
        .u8(MASK as u8)
        .bytes(&mask)
}

/// The digest of the policy: these values, and the authorisation value if there is a PIN (part 3,
/// sections 23.7 and 23.17).
pub(crate) fn policy(values: &PcrValues, pin: bool) -> [u8; DIGEST] {
    // In the order of the numbers, because the TPM hashes the values so, whatever the order of a request.
    let pcrs: Vec<u8> = values.keys().copied().collect();
    let of_values = crypto::sha256(
        &values
            .values()
            .map(<[u8; DIGEST]>::as_slice)
            .collect::<Vec<_>>(),
    );
    let by_pcrs = crypto::sha256(&[
        &[0; DIGEST],
        &cc::POLICY_PCR.to_be_bytes(),
        selection(&pcrs).as_slice(),
        &of_values,
    ]);
    if !pin {
        return by_pcrs;
    }
    crypto::sha256(&[&by_pcrs, &cc::POLICY_AUTH_VALUE.to_be_bytes()])
}

impl<T: Read + Write> Tpm<T> {
    /// The values of these PCRs, as the TPM with the storage key vouches for them.
    ///
    /// # Errors
    /// `BadPcrs`, `Unsupported` without a SHA-256 bank, and whatever ends a command.
    pub fn pcr_values(&mut self, pcrs: &[u8]) -> Result<PcrValues, TpmError> {
        let known = pcrs.iter().all(|pcr| *pcr < PCRS);
        if pcrs.is_empty() || pcrs.len() > VALUES_AT_ONCE || !known {
            return Err(TpmError::BadPcrs("1 to 8 of the numbers 0 to 23 are read"));
        }
        self.with_parent(None, |tpm, parent| tpm.pcr_values_by(parent, pcrs))
    }

    /// Extends PCR 11: until the machine restarts the TPM opens no slot that is bound to what was
    /// booted, for no program, whatever else that has.
    ///
    /// # Errors
    /// The errors of a command, and `Malformed` if the PCR is as before.
    pub fn close_slots(&mut self) -> Result<(), TpmError> {
        let before = self.pcr_values(&[OF_ALL_SLOTS])?;
        let target = u32::from(OF_ALL_SLOTS);
        let name = target.to_be_bytes();
        let command = TpmCommandBody {
            code: cc::PCR_EXTEND,
            targets: &[TpmHandle {
                handle: target,
                name: &name,
            }],
            parameters: TpmWriter::new()
                .u32(1)
                .u16(alg::SHA256)
                .bytes(&crypto::sha256(&[CLOSED])),
            makes: false,
        };
        self.run_open(&command)?;
        // Whatever stands between us and the TPM can answer anything without a session, so the
        // values are read in one.
        if self.pcr_values(&[OF_ALL_SLOTS])? == before {
            return Err(TpmError::Malformed("it extended a PCR, which is as before"));
        }
        Ok(())
    }

    pub(crate) fn pcr_values_by(
        &mut self,
        parent: &LoadedStorageKey,
        pcrs: &[u8],
    ) -> Result<PcrValues, TpmError> {
        self.with_session(parent, TpmSessionKind::Hmac, |tpm, session| {
            tpm.read_pcrs(session, pcrs)
        })
    }

    fn read_pcrs(&mut self, session: &mut TpmSession, pcrs: &[u8]) -> Result<PcrValues, TpmError> {
        let requested = selection(pcrs);
        let command = TpmCommandBody {
            code: cc::PCR_READ,
            targets: &[],
            parameters: requested.clone(),
            makes: false,
        };
        // The command needs no authorisation. The session authenticates the answer, against an interposer.
        let done = self.run_in(session, command, &[], protect::AUDIT)?;
        let mut reader = done.reader();
        let _changes = reader.u32()?;
        // A TPM without the bank answers an empty selection instead of an error.
        if reader.take(requested.len()).ok() != Some(requested.as_slice()) {
            return Err(TpmError::Unsupported(
                "its SHA-256 bank of PCRs is switched off",
            ));
        }
        digests(reader, pcrs)
    }

    /// The values that a key is to be bound to.
    pub(crate) fn expected_values(
        &mut self,
        parent: &LoadedStorageKey,
        choice: &PcrChoice,
        expected: ExpectedPcrs<'_>,
    ) -> Result<PcrValues, TpmError> {
        let mut values = match expected {
            ExpectedPcrs::Current => PcrValues::new(),
            ExpectedPcrs::Predicted(values) => values.clone(),
        };
        // The slot would be bound to such a PCR all the same, and stay closed when it changes.
        if values.keys().any(|pcr| !choice.pcrs().contains(pcr)) {
            return Err(TpmError::BadPcrs(
                "a value is predicted for one that is not chosen",
            ));
        }
        let is_open = |pcr: &u8| !values.contains_key(pcr);
        let open: Vec<u8> = choice.pcrs().iter().copied().filter(is_open).collect();
        if !open.is_empty() {
            values.extend(self.pcr_values_by(parent, &open)?);
        }
        // Otherwise each slot would take such a command line for the image's own from then on.
        if values
            .get(&BESIDE_THE_IMAGE)
            .is_some_and(|value| *value != EMPTY)
        {
            return Err(TpmError::FromBeside);
        }
        // The stub that measured the image would have measured something from beside it as well.
        // After a start with PCR 11, an empty PCR 12 is a value like any other.
        let may_be_empty = |pcr: u8| pcr == BESIDE_THE_IMAGE && values.contains_key(&11);
        let unmeasured = values
            .iter()
            .find(|(pcr, value)| **value == EMPTY && !may_be_empty(**pcr));
        match unmeasured {
            Some((pcr, _)) => Err(TpmError::NotMeasured(*pcr)),
            None => Ok(values),
        }
    }

    /// Refuses a machine whose command line did not come from the image alone.
    pub(crate) fn nothing_from_beside(
        &mut self,
        parent: &LoadedStorageKey,
    ) -> Result<(), TpmError> {
        let values = self.pcr_values_by(parent, &[BESIDE_THE_IMAGE])?;
        match values.get(&BESIDE_THE_IMAGE) {
            Some(&EMPTY) => Ok(()),
            _ => Err(TpmError::FromBeside),
        }
    }
}

/// A `TPML_DIGEST` with the values of these PCRs in rising order.
fn digests(mut reader: TpmReader<'_>, pcrs: &[u8]) -> Result<PcrValues, TpmError> {
    let mut rising = pcrs.to_vec();
    // The TPM answers in the order of the bit mask, whatever the order of the request.
    rising.sort_unstable();
    rising.dedup();
    if reader.u32()? as usize != rising.len() {
        return Err(TpmError::Malformed("another number of PCRs than asked for"));
    }
    let mut values = PcrValues::new();
    for pcr in rising {
        let value = reader.sized()?.try_into();
        let value = value.map_err(|_| TpmError::Malformed("a PCR of another length"))?;
        values.insert(pcr, value);
    }
    reader.end()?;
    Ok(values)
}
