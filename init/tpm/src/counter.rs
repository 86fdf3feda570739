//! A number in the TPM that only rises.
//!
//! It shows that a whole disk was put back to an older state: data that note how far the counter
//! was when they were written, and note less than the counter has, are old. The number survives
//! everything but a new TPM: a counter that is removed and made again starts above every counter
//! that the TPM ever had (part 1, section 37.2.6.2).
//!
//! Every program on the machine that reaches the TPM can raise the counter, or remove it. It has no
//! secret, since a secret would have to be on the disk that is not trusted. Such a program can make
//! data look old, but never make old data look new.

use std::io::{Read, Write};

use crate::TpmError;
use crate::codes::{alg, cc, handle, nv, rc};
use crate::primary::{NAME, name, of_owner};
use crate::session::TpmSessionKind;
use crate::tpm::{Tpm, TpmCommandBody, TpmHandle};
use crate::wire::{TpmReader, TpmWriter};

/// Bytes of a counter.
const COUNT: u16 = 8;
const ATTRIBUTES: u32 = nv::AUTH_WRITE | nv::COUNTER | nv::AUTH_READ | nv::NO_DA;

/// `TPMS_NV_PUBLIC` of the counter.
fn public(attributes: u32) -> TpmWriter {
    TpmWriter::new()
        .u32(handle::COUNTER)
        .u16(alg::SHA256)
        .u32(attributes)
        .sized(&[])
        .u16(COUNT)
}

impl<T: Read + Write> Tpm<T> {
    /// The value of the counter. `None` if it does not exist.
    ///
    /// # Errors
    /// `CounterForeign`, and what ends a command.
    pub fn counter(&mut self) -> Result<Option<u64>, TpmError> {
        match self.counter_name()? {
            Some(NvCounterState {
                written: true,
                name,
            }) => self.read_counter(&name).map(Some),
            // The counter was made, but the power failed before it had its first value.
            Some(NvCounterState { written: false, .. }) => self.advance_counter().map(Some),
            None => Ok(None),
        }
    }

    /// Makes the counter if it does not exist, and returns its value.
    ///
    /// # Errors
    /// `OwnerPassword`, `CounterForeign`, and what ends a command.
    pub fn make_counter(&mut self) -> Result<u64, TpmError> {
        if let Some(value) = self.counter()? {
            return Ok(value);
        }
        let owner = handle::OWNER.to_be_bytes();
        let command = TpmCommandBody {
            code: cc::NV_DEFINE_SPACE,
            targets: &[TpmHandle {
                handle: handle::OWNER,
                name: &owner,
            }],
            parameters: TpmWriter::new()
                .sized(&[])
                .sized(public(ATTRIBUTES).as_slice()),
            makes: false,
        };
        match self.run_open(&command) {
            Ok(_) => {}
            // The power failed after it was defined, or another program was quicker: then it only
            // lacks its first value.
            Err(TpmError::Refused { code, .. }) if rc::base(code) == rc::NV_DEFINED => {}
            Err(error) => return Err(of_owner(error)),
        }
        self.advance_counter()
    }

    /// Adds one, and returns the new value.
    ///
    /// # Errors
    /// `CounterMissing`, `CounterForeign`, and what ends a command.
    pub fn advance_counter(&mut self) -> Result<u64, TpmError> {
        let state = self.counter_name()?.ok_or(TpmError::CounterMissing)?;
        self.with_parent(None, |tpm, parent| {
            tpm.with_session(parent, TpmSessionKind::Hmac, |tpm, session| {
                let command = TpmCommandBody {
                    code: cc::NV_INCREMENT,
                    // The index authorises its own increment (`AUTH_WRITE`), so its handle is there twice.
                    targets: &[target(&state.name), target(&state.name)],
                    parameters: TpmWriter::new(),
                    makes: false,
                };
                tpm.run_in(session, command, &[], 0).map(|_| ())
            })
        })?;
        // The value is read in a session, because the answer to an increment has no value.
        self.read_counter(&name(public(ATTRIBUTES | nv::WRITTEN).as_slice()))
    }

    /// Raises the counter, if there is one, above whatever a disk noted until now. It rises by two:
    /// a note may be one ahead, since it is written before the counter rises.
    ///
    /// # Errors
    /// What ends a command. Something of other programs at the counter's handle stays.
    pub fn outrun_notes(&mut self) -> Result<(), TpmError> {
        match self.counter() {
            Ok(Some(_)) => {
                self.advance_counter()?;
                self.advance_counter().map(|_| ())
            }
            // A disk that was counted is old without a counter, too.
            Ok(None) | Err(TpmError::CounterForeign(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Removes the counter, if there is one, to reset the machine to its state of delivery.
    ///
    /// # Errors
    /// `OwnerPassword`, `CounterForeign`, and what ends a command.
    pub fn remove_counter(&mut self) -> Result<(), TpmError> {
        let Some(state) = self.counter_name()? else {
            return Ok(());
        };
        let owner = handle::OWNER.to_be_bytes();
        let command = TpmCommandBody {
            code: cc::NV_UNDEFINE_SPACE,
            targets: &[
                TpmHandle {
                    handle: handle::OWNER,
                    name: &owner,
                },
                target(&state.name),
            ],
            parameters: TpmWriter::new(),
            makes: false,
        };
        self.run_open(&command).map_err(of_owner).map(|_| ())
    }

    fn read_counter(&mut self, name: &[u8; NAME]) -> Result<u64, TpmError> {
        self.with_parent(None, |tpm, parent| {
            tpm.with_session(parent, TpmSessionKind::Hmac, |tpm, session| {
                let command = TpmCommandBody {
                    code: cc::NV_READ,
                    targets: &[target(name), target(name)],
                    parameters: TpmWriter::new().u16(COUNT).u16(0),
                    makes: false,
                };
                let done = tpm.run_in(session, command, &[], 0)?;
                let mut reader = done.reader();
                let value = reader.sized()?.try_into();
                reader.end()?;
                let value =
                    value.map_err(|_| TpmError::Malformed("a counter of another length"))?;
                Ok(u64::from_be_bytes(value))
            })
        })
    }

    fn counter_name(&mut self) -> Result<Option<NvCounterState>, TpmError> {
        let command = TpmCommandBody {
            code: cc::NV_READ_PUBLIC,
            targets: &[TpmHandle {
                handle: handle::COUNTER,
                name: &[],
            }],
            parameters: TpmWriter::new(),
            makes: false,
        };
        match self.run(&command) {
            Ok(done) => NvCounterState::read(done.reader()).map(Some),
            Err(TpmError::Refused { code, .. }) if rc::base(code) == rc::HANDLE => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn target(name: &[u8; NAME]) -> TpmHandle<'_> {
    TpmHandle {
        handle: handle::COUNTER,
        name,
    }
}

/// The counter as the TPM has it.
struct NvCounterState {
    written: bool,
    name: [u8; NAME],
}

impl NvCounterState {
    fn read(mut reader: TpmReader<'_>) -> Result<Self, TpmError> {
        let (area, stated) = (reader.sized()?, reader.sized()?);
        reader.end()?;
        let is = |attributes| area == public(attributes).as_slice();
        let written = is(ATTRIBUTES | nv::WRITTEN);
        // A program can make an index of another kind at this handle, whose value could fall.
        if !written && !is(ATTRIBUTES) {
            return Err(TpmError::CounterForeign(handle::COUNTER));
        }
        // The name is the digest of the public area (part 1, 16), so sessions authenticate that
        // very index.
        let name = name(area);
        if stated != name {
            return Err(TpmError::Malformed(
                "a name that is not the one of what it names",
            ));
        }
        Ok(Self { written, name })
    }
}
