//! 32 bytes that the TPM gives back only to the machine that they were sealed for.

use std::io::{Read, Write};

use alknet_vault::SecretStr;
use alknet_vault::slots::{Kek, Tpm2Params};

use crate::codes::{alg, cc, object, rc};
use crate::crypto::DIGEST;
use crate::limits::{PCR_RACES_MAX, PIN_BYTES_MAX};
use crate::pcr::{self, ExpectedPcrs, PcrValues};
use crate::primary::{LoadedStorageKey, NAME, name};
use crate::session::{TpmSession, TpmSessionKind, protect};
use crate::tpm::{Tpm, TpmCommandBody, TpmHandle};
use crate::wire::{TpmReader, TpmWriter};
use crate::{PcrChoice, TpmError};

/// A PIN that a person types as well. It is the object's authorisation value as it stands: the TPM
/// counts wrong ones, so it may be short.
#[derive(Debug)]
pub struct TpmPin(SecretStr);

impl TpmPin {
    /// A PIN of 1 to 32 printable ASCII characters.
    ///
    /// # Errors
    /// `BadPin`.
    pub fn new(pin: SecretStr) -> Result<Self, TpmError> {
        let text = pin.expose();
        let plain = text.bytes().all(|byte| (0x20..0x7f).contains(&byte));
        if (1..=PIN_BYTES_MAX).contains(&text.len()) && plain {
            return Ok(Self(pin));
        }
        Err(TpmError::BadPin)
    }

    fn bytes(&self) -> &[u8] {
        self.0.expose().as_bytes()
    }
}

/// The authorisation value, which is empty without a PIN.
fn auth(pin: Option<&TpmPin>) -> &[u8] {
    pin.map_or(&[], TpmPin::bytes)
}

/// `TPMT_PUBLIC` of a sealed object up to its `unique`. Only the policy opens it, also for changes.
/// With a PIN the TPM counts wrong attempts.
fn template(policy: &[u8; DIGEST], pin: bool) -> TpmWriter {
    let guarded = if pin { 0 } else { object::NO_DA };
    // Without `USER_WITH_AUTH`: the authorisation value alone, empty without a PIN, must not open the object.
    let attributes = object::FIXED_TPM | object::FIXED_PARENT | object::ADMIN_WITH_POLICY | guarded;
    TpmWriter::new()
        .u16(alg::KEYED_HASH)
        .u16(alg::SHA256)
        .u32(attributes)
        .sized(policy)
        .u16(alg::NULL)
}

impl<T: Read + Write> Tpm<T> {
    /// Seals a key to the values of PCRs, and to a PIN if there is one.
    ///
    /// # Errors
    /// `NotMeasured` for a PCR that holds nothing, `FromBeside`, `BadPcrs`, `OwnerPassword`,
    /// `Unsupported`, and what ends a command.
    pub fn seal(
        &mut self,
        secret: &Kek,
        choice: &PcrChoice,
        expected: ExpectedPcrs<'_>,
        pin: Option<&TpmPin>,
    ) -> Result<Tpm2Params, TpmError> {
        self.with_parent(None, |tpm, parent| {
            // These are read in a session of the storage key, so that an interposer cannot choose the values.
            let values = tpm.expected_values(parent, choice, expected)?;
            let policy = pcr::policy(&values, pin.is_some());
            let area = template(&policy, pin.is_some());
            let made = tpm.with_session(parent, TpmSessionKind::Hmac, |tpm, session| {
                tpm.create(session, parent, &area, secret, auth(pin))
            })?;
            let pcrs = values.keys().copied().collect();
            Tpm2Params::new(made.public, made.private, pcrs, policy, pin.is_some())
                .and_then(|params| params.with_values(values.into_values().collect()))
                .map_err(|_| TpmError::Malformed("a sealed object of a size it never has"))
        })
    }

    fn create(
        &mut self,
        session: &mut TpmSession,
        parent: &LoadedStorageKey,
        area: &TpmWriter,
        secret: &Kek,
        auth: &[u8],
    ) -> Result<CreatedObject, TpmError> {
        let sensitive = TpmWriter::new().sized(auth).sized(secret.expose());
        let public = area.clone().sized(&[]);
        let command = TpmCommandBody {
            code: cc::CREATE,
            targets: &[parent.target()],
            parameters: TpmWriter::new()
                .sized(sensitive.as_slice())
                .sized(public.as_slice())
                .sized(&[])
                .bytes(pcr::NO_SELECTION),
            makes: false,
        };
        // The command has the key and the PIN, which a chip that listens on the wires must not see.
        let both = protect::COMMAND | protect::ANSWER;
        let done = self.run_in(session, command, &[], both)?;
        let mut reader = done.reader();
        let (private, public) = (reader.sized()?, reader.sized()?);
        // Whatever stands in the TPM's place could seal under a policy that opens always.
        if !is_made_of(public, area) {
            return Err(TpmError::Malformed("it sealed under another policy"));
        }
        let sized = |bytes: &[u8]| TpmWriter::new().sized(bytes);
        Ok(CreatedObject {
            private: sized(private).as_slice().to_vec(),
            // The name of the storage key is added, to notice another TPM that answers later.
            public: sized(public).sized(&parent.name).as_slice().to_vec(),
        })
    }

    /// Gives the key back.
    ///
    /// # Errors
    /// `WrongPcrs`, `FromBeside`, `WrongPin`, `PinMissing`, `LockedOut`, `OtherTpm`, `Damaged`,
    /// `OwnerPassword`, `Forged`, and what ends a command.
    pub fn unseal(&mut self, params: &Tpm2Params, pin: Option<&TpmPin>) -> Result<Kek, TpmError> {
        let sealed = SealedObject::read(params)?;
        let pin = match (params.pin(), pin) {
            (true, None) => return Err(TpmError::PinMissing),
            (true, pin) => pin,
            // A PIN would add a step to the policy that this object was not sealed with.
            (false, _) => None,
        };
        self.with_parent(Some(&sealed.parent), |tpm, parent| {
            tpm.covered(parent, params)?;
            let loaded = tpm.load(parent, &sealed)?;
            let result = tpm.unseal_loaded(parent, loaded, &sealed, pin);
            tpm.flush(loaded);
            match result {
                Err(TpmError::WrongPcrs { .. }) => {
                    // If the PCRs cannot be read, the error names none.
                    let now = tpm.pcr_values_by(parent, params.pcrs());
                    Err(wrong_pcrs(params, &now.unwrap_or_default()))
                }
                result => result,
            }
        })
    }

    /// Whether the TPM would release the key here and now, given the right PIN if the slot needs
    /// one. The TPM counts no attempt, so a caller learns whether it makes sense to ask for the
    /// PIN.
    ///
    /// # Errors
    /// `WrongPcrs`, `FromBeside`, `LockedOut`, `OtherTpm`, `Damaged`, `OwnerPassword`, `Forged`,
    /// and what ends a command.
    pub fn check(&mut self, params: &Tpm2Params) -> Result<(), TpmError> {
        let sealed = SealedObject::read(params)?;
        self.with_parent(Some(&sealed.parent), |tpm, parent| {
            // Loading it shows whether the record is whole and this TPM's.
            let loaded = tpm.load(parent, &sealed)?;
            tpm.flush(loaded);
            tpm.covered(parent, params)?;
            let now = tpm.pcr_values_by(parent, params.pcrs())?;
            if pcr::policy(&now, params.pin()) != *params.policy() {
                return Err(wrong_pcrs(params, &now));
            }
            // A locked TPM refuses the right PIN as well, so the console need not ask for it.
            let state = tpm.lockout()?;
            if params.pin() && state.locked {
                return Err(TpmError::LockedOut(Some(state)));
            }
            Ok(())
        })
    }

    /// Uses a slot that does not cover what comes from beside the image only if nothing does.
    fn covered(&mut self, parent: &LoadedStorageKey, params: &Tpm2Params) -> Result<(), TpmError> {
        if PcrChoice::is_uncovered(params.pcrs()) {
            return self.nothing_from_beside(parent);
        }
        Ok(())
    }

    /// Loads the object. An answer that was altered on the way would only lead to a refusal later,
    /// so it need not be authentic.
    fn load(
        &mut self,
        parent: &LoadedStorageKey,
        sealed: &SealedObject<'_>,
    ) -> Result<u32, TpmError> {
        let command = TpmCommandBody {
            code: cc::LOAD,
            targets: &[parent.target()],
            parameters: TpmWriter::new().sized(sealed.private).sized(sealed.public),
            makes: true,
        };
        match self.run_open(&command) {
            Ok(done) => Ok(done.handle),
            Err(TpmError::Refused { command, code }) => Err(match rc::base(code) {
                // This crate's key has an empty password, and a program that kept one in the TPM may have set one.
                rc::BAD_AUTH | rc::AUTH_FAIL if parent.is_persistent() => TpmError::OwnerPassword,
                rc::INTEGRITY => TpmError::Damaged("the TPM does not know its private part"),
                _ => TpmError::Refused { command, code },
            }),
            Err(error) => Err(error),
        }
    }

    fn unseal_loaded(
        &mut self,
        parent: &LoadedStorageKey,
        loaded: u32,
        sealed: &SealedObject<'_>,
        pin: Option<&TpmPin>,
    ) -> Result<Kek, TpmError> {
        for _ in 0..PCR_RACES_MAX {
            let result = self.with_session(parent, TpmSessionKind::Policy, |tpm, session| {
                tpm.unseal_by(session, loaded, sealed, pin)
            });
            match result {
                // A PCR was extended between check and release, perhaps one that is not ours (part
                // 3, 12.7), so a new session tries again.
                Err(TpmError::Refused { code, .. }) if rc::base(code) == rc::PCR_CHANGED => {}
                Err(TpmError::Refused { command, code }) => {
                    return Err(self.explain(command, code, pin.is_some()));
                }
                result => return result,
            }
        }
        Err(NOT_WHAT_WAS_BOOTED)
    }

    fn unseal_by(
        &mut self,
        session: &mut TpmSession,
        loaded: u32,
        sealed: &SealedObject<'_>,
        pin: Option<&TpmPin>,
    ) -> Result<Kek, TpmError> {
        self.policy_step(session, cc::POLICY_PCR, |to| {
            to.sized(&[]).bytes(sealed.selection.as_slice())
        })?;
        if pin.is_some() {
            self.policy_step(session, cc::POLICY_AUTH_VALUE, |to| to)?;
        }
        let command = TpmCommandBody {
            code: cc::UNSEAL,
            targets: &[TpmHandle {
                handle: loaded,
                name: &sealed.name,
            }],
            parameters: TpmWriter::new(),
            makes: false,
        };
        // The answer is the key, which crosses the wires encrypted.
        let done = self.run_in(session, command, auth(pin), protect::ANSWER)?;
        let mut reader = done.reader();
        let secret = reader.sized()?;
        reader.end()?;
        Kek::from_slice(secret).ok_or(TpmError::Damaged("it holds no key of 32 bytes"))
    }

    fn policy_step(
        &mut self,
        session: &TpmSession,
        code: u32,
        parameters: impl FnOnce(TpmWriter) -> TpmWriter,
    ) -> Result<(), TpmError> {
        let name = session.handle.to_be_bytes();
        let command = TpmCommandBody {
            code,
            targets: &[TpmHandle {
                handle: session.handle,
                name: &name,
            }],
            parameters: parameters(TpmWriter::new()),
            makes: false,
        };
        // This answer need not be authentic: when the TPM unseals, it compares the policy's digest itself.
        self.run(&command)?.reader().end()
    }

    /// The meaning of a refusal to unseal.
    fn explain(&mut self, command: &'static str, code: u32, pin: bool) -> TpmError {
        match rc::base(code) {
            rc::POLICY_FAIL => NOT_WHAT_WAS_BOOTED,
            rc::LOCKOUT => TpmError::LockedOut(self.lockout().ok()),
            rc::AUTH_FAIL | rc::BAD_AUTH if pin => {
                let tries_left = self.lockout().ok().map(|state| state.tries_left());
                TpmError::WrongPin { tries_left }
            }
            _ => TpmError::Refused { command, code },
        }
    }
}

/// A refusal of the TPM, which does not say more.
const NOT_WHAT_WAS_BOOTED: TpmError = TpmError::WrongPcrs {
    changed: Vec::new(),
};

/// The refusal of the TPM with the PCRs that differ `now`, if the slot notes their former values.
fn wrong_pcrs(params: &Tpm2Params, now: &PcrValues) -> TpmError {
    let noted = params.pcrs().iter().zip(params.values());
    let is_other =
        |(pcr, noted): &(&u8, &[u8; DIGEST])| now.get(*pcr).is_some_and(|now| now != *noted);
    let changed = noted.filter(is_other).map(|(pcr, _)| *pcr).collect();
    TpmError::WrongPcrs { changed }
}

/// The name of the storage key that a record was sealed under.
pub(crate) fn storage_key(params: &Tpm2Params) -> Result<[u8; NAME], TpmError> {
    Ok(SealedObject::read(params)?.parent)
}

/// The object that the TPM made of a secret.
struct CreatedObject {
    private: Vec<u8>,
    public: Vec<u8>,
}

/// A record that can be loaded.
struct SealedObject<'a> {
    private: &'a [u8],
    public: &'a [u8],
    name: [u8; NAME],
    parent: [u8; NAME],
    selection: TpmWriter,
}

impl<'a> SealedObject<'a> {
    /// Parses a record. An attacker who changes a record makes it useless and gains nothing,
    /// because the vault binds it to what it opens. The checks distinguish damage from a refusal of
    /// the TPM.
    fn read(params: &'a Tpm2Params) -> Result<Self, TpmError> {
        let cut = |_| TpmError::Damaged("it is cut short");
        let long = |_| TpmError::Damaged("it is longer than it says");
        let mut reader = TpmReader::new(params.private());
        let private = reader.sized().map_err(cut)?;
        reader.end().map_err(long)?;
        let mut reader = TpmReader::new(params.public());
        let (public, parent) = (reader.sized().map_err(cut)?, reader.sized().map_err(cut)?);
        reader.end().map_err(long)?;
        let no_name = |_| TpmError::Damaged("the name of its storage key is invalid");
        if !is_made_of(public, &template(params.policy(), params.pin())) {
            return Err(TpmError::Damaged("its parts do not fit each other"));
        }
        Ok(Self {
            private,
            public,
            name: name(public),
            parent: parent.try_into().map_err(no_name)?,
            selection: pcr::selection(params.pcrs()),
        })
    }
}

/// Whether a public area is of that template, with what a TPM fills in.
fn is_made_of(area: &[u8], template: &TpmWriter) -> bool {
    let unique = area.strip_prefix(template.as_slice());
    unique.is_some_and(|unique| {
        let mut reader = TpmReader::new(unique);
        reader.sized().is_ok_and(|digest| digest.len() == DIGEST) && reader.end().is_ok()
    })
}
