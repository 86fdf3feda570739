//! Sessions, which make an answer the TPM's own, and a parameter unreadable between it and us.
//!
//! A session's key comes from a salt that only the holder of the storage key can read. Each command
//! and each answer carries an HMAC under it over everything that matters, and the first parameter
//! of either can be encrypted (part 1, sections 19.6 and 21).

use alknet_vault::SecretArr;
use hmac::Mac;
use subtle::ConstantTimeEq;

use crate::TpmError;
use crate::crypto::{self, DIGEST, Direction};
use crate::limits::NONCE_BYTES;
use crate::wire::{TpmReader, TpmWriter, first_sized_mut};

/// Attributes of a session for one command (part 2, section 8.4).
pub(crate) mod protect {
    /// The session outlives the command.
    pub(crate) const CONTINUE: u8 = 1 << 0;
    /// The first parameter of the command is encrypted.
    pub(crate) const COMMAND: u8 = 1 << 5;
    /// The first parameter of the answer is encrypted.
    pub(crate) const ANSWER: u8 = 1 << 6;
    /// The session authorises nothing, and only authenticates the answer.
    pub(crate) const AUDIT: u8 = 1 << 7;
    /// In an answer to such a command: no other command came in between.
    pub(super) const EXCLUSIVE: u8 = 1 << 1;
}

/// The purpose of a session.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum TpmSessionKind {
    Hmac = 0,
    Policy = 1,
}

/// A started session.
pub(crate) struct TpmSession {
    pub(crate) handle: u32,
    key: SecretArr<DIGEST>,
    tpm_nonce: Vec<u8>,
}

/// One command under way.
pub(crate) struct AuthorisedCommand {
    /// Session, nonce, attributes and HMAC, as they go into the command.
    pub(crate) area: TpmWriter,
    nonce: [u8; DIGEST],
    attributes: u8,
}

impl TpmSession {
    /// The session after `TPM2_StartAuthSession`.
    pub(crate) fn new(
        handle: u32,
        salt: &SecretArr<DIGEST>,
        tpm_nonce: &[u8],
        nonce: &[u8],
    ) -> Result<Self, TpmError> {
        // Short nonces would repeat, and with them the keys of the encryption.
        if !NONCE_BYTES.contains(&tpm_nonce.len()) {
            return Err(TpmError::Malformed("a nonce of a length that none has"));
        }
        Ok(Self {
            handle,
            key: crypto::kdf_a([salt.expose(), &[]], b"ATH", tpm_nonce, nonce),
            tpm_nonce: tpm_nonce.to_vec(),
        })
    }

    /// Encrypts the parameter that is to be encrypted, and authenticates the command. `auth` is the
    /// authorisation value of the object.
    pub(crate) fn authorise(
        &self,
        code: u32,
        names: &[&[u8]],
        parameters: &mut TpmWriter,
        auth: &[u8],
        attributes: u8,
    ) -> Result<AuthorisedCommand, TpmError> {
        let nonce = crypto::random::<DIGEST>()?;
        let key = [self.key.expose().as_slice(), auth];
        // This precedes the HMAC, which covers the parameter as it is sent (part 1, 19 and 21).
        if attributes & protect::COMMAND != 0 {
            let first = first_sized_mut(parameters.as_mut_slice())?;
            crypto::cfb(key, &nonce, &self.tpm_nonce, Direction::ToTpm, first);
        }
        let code = code.to_be_bytes();
        // With the names in the HMAC, the TPM refuses a command whose handle was replaced on the wires.
        let digest = crypto::sha256(&[&code, &names.concat(), parameters.as_slice()]);
        let mut mac = crypto::mac(key);
        for part in [digest.as_slice(), &nonce, &self.tpm_nonce, &[attributes]] {
            mac.update(part);
        }
        let area = TpmWriter::new()
            .u32(self.handle)
            .sized(&nonce)
            .u8(attributes)
            .sized(&mac.finalize().into_bytes());
        Ok(AuthorisedCommand {
            area,
            nonce,
            attributes,
        })
    }

    /// Checks the answer, and decrypts its encrypted parameter in place.
    pub(crate) fn accept(
        &mut self,
        sent: &AuthorisedCommand,
        code: u32,
        parameters: &mut [u8],
        area: &[u8],
        auth: &[u8],
    ) -> Result<(), TpmError> {
        let mut reader = TpmReader::new(area);
        let tpm_nonce = reader.sized()?;
        let attributes = reader.u8()?;
        let hmac = reader.sized()?;
        reader.end()?;
        if !NONCE_BYTES.contains(&tpm_nonce.len()) {
            return Err(TpmError::Malformed("a nonce of a length that none has"));
        }
        let key = [self.key.expose().as_slice(), auth];
        // Only an answer of success has an HMAC, so its response code is 0.
        let codes = [[0; 4], code.to_be_bytes()].concat();
        let digest = crypto::sha256(&[&codes, parameters]);
        let mut mac = crypto::mac(key);
        for part in [digest.as_slice(), tpm_nonce, &sent.nonce, &[attributes]] {
            mac.update(part);
        }
        // The comparison takes constant time: otherwise an attacker in between could find an HMAC
        // byte by byte.
        let genuine: bool = mac.finalize().into_bytes().as_slice().ct_eq(hmac).into();
        if !genuine {
            return Err(TpmError::Forged);
        }
        // The attributes say whether the parameter is encrypted and are authenticated, so an answer
        // in the clear is refused.
        if attributes & !protect::EXCLUSIVE != sent.attributes {
            return Err(TpmError::Malformed(
                "it changed the attributes of the session",
            ));
        }
        // The nonce changes with each command, so that an old answer cannot be replayed.
        self.tpm_nonce = tpm_nonce.to_vec();
        if attributes & protect::ANSWER != 0 {
            let first = first_sized_mut(parameters)?;
            crypto::cfb(key, tpm_nonce, &sent.nonce, Direction::FromTpm, first);
        }
        Ok(())
    }
}
