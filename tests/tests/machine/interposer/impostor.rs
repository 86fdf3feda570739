//! The chip between machine and TPM: it forwards commands, and where it impersonates the TPM, it
//! answers with its own key.

use std::io::{self, Read, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use alknet_qemu::Interposer;
use alknet_tpm::{Tpm, TpmPin};
use alknet_vault::SecretStr;
use alknet_vault::slots::Tpm2Params;
use hmac::{Hmac, KeyInit, Mac};
use p256::elliptic_curve::point::AffineCoordinates;
use p256::elliptic_curve::sec1::ToSec1Point;
use p256::{PublicKey, SecretKey};
use sha2::{Digest, Sha256};

/// Commands of PID 1, and of the kernel, which swaps sessions in and out.
const CREATE_PRIMARY: u32 = 0x131;
const UNSEAL: u32 = 0x15e;
const CONTEXT_LOAD: u32 = 0x161;
const CONTEXT_SAVE: u32 = 0x162;
const FLUSH_CONTEXT: u32 = 0x165;
const POLICY_AUTH_VALUE: u32 = 0x16b;
const READ_PUBLIC: u32 = 0x173;
const START_AUTH_SESSION: u32 = 0x176;
const PCR_READ: u32 = 0x17e;
const POLICY_PCR: u32 = 0x17f;
/// The usual handle of a storage key. PID 1 first checks whether there is one, while nothing is
/// loaded.
const STORAGE_ROOT: u32 = 0x8100_0001;
/// `TPM_RC_AUTH_FAIL` of the first session.
const AUTH_FAIL: u32 = 0x98e;
/// `TPM_RC_VALUE`, as of a TPM without keys of the machine's kind.
const VALUE: u32 = 0x084;
const NO_SESSIONS: u16 = 0x8001;
const SESSIONS: u16 = 0x8002;
/// Offset of the point in the response to `TPM2_CreatePrimary`: header, handle, two sizes, the
/// template.
const POINT_AT: usize = 10 + 4 + 4 + 2 + 22;
const COORDINATE: usize = 32;
/// The kernel's saved context of a session that this chip invented.
const CONTEXT: &[u8; 4] = b"FAKE";
/// The lowest number of such a session. A TPM's begin at 0.
const FIRST_SESSION: u32 = 0x100;

#[derive(Debug)]
pub(crate) struct TpmImpostor {
    key: SecretKey,
    /// The slot's, as it was sealed.
    record: Tpm2Params,
    /// Whether it answers instead of the TPM. Otherwise it only sends its own commands.
    poses: bool,
    /// Whether it sends none of its own, and answers as a TPM that the machine cannot use once the TPM gave the key.
    denies: bool,
    state: Mutex<ImpostorState>,
}

#[derive(Debug, Default)]
struct ImpostorState {
    is_prompted: bool,
    sessions: Vec<ImpostorSession>,
    pin: Option<String>,
    kek: Option<[u8; 32]>,
    /// Whether it tried once without a PIN.
    tried: bool,
    /// Why the TPM did not give it the key.
    refusal: Option<String>,
    /// Whether the TPM gave the machine a key.
    gave: bool,
    /// Whether the machine got another answer than that of the TPM since.
    denied: bool,
}

#[derive(Debug)]
struct ImpostorSession {
    handle: u32,
    key: Vec<u8>,
    nonce: [u8; 32],
}

impl TpmImpostor {
    /// Asks the TPM for the key of that slot when the machine begins to use it.
    pub(super) fn silent(record: Tpm2Params) -> Self {
        Self {
            // Any number below the order of the curve.
            key: SecretKey::from_slice(&[7; 32]).expect("a scalar"),
            record,
            poses: false,
            denies: false,
            state: Mutex::default(),
        }
    }

    /// Impersonates the TPM, with its own storage key.
    pub(super) fn posing(record: Tpm2Params) -> Self {
        Self {
            poses: true,
            ..Self::silent(record)
        }
    }

    /// Lets the TPM give the key, and answers from then on as a TPM that the machine cannot use.
    pub(super) fn denying(record: Tpm2Params) -> Self {
        Self {
            denies: true,
            ..Self::silent(record)
        }
    }

    /// Whether it answered so.
    pub(super) fn has_denied(&self) -> bool {
        self.state().denied
    }

    /// The name of its storage key.
    pub(super) fn name(&self) -> [u8; 34] {
        // The template of every storage key (TCG's provisioning guidance).
        let template = b"\x00\x23\x00\x0b\x00\x03\x04\x72\x00\x00\x00\x06\x00\x80\x00\x43\
                         \x00\x10\x00\x03\x00\x10";
        let (x, y) = self.point();
        let sized = |bytes: &[u8; 32]| [&[0, 32], bytes.as_slice()].concat();
        let area = [template.as_slice(), &sized(&x), &sized(&y)].concat();
        let mut name = [0; 34];
        name[..2].copy_from_slice(&[0, 0x0b]);
        name[2..].copy_from_slice(&Sha256::digest(&area));
        name
    }

    pub(super) fn pin(&self) -> Option<String> {
        self.state().pin.clone()
    }

    pub(crate) fn kek(&self) -> Option<[u8; 32]> {
        self.state().kek
    }

    /// Why the TPM did not give it the key. `None` until it has asked.
    pub(super) fn refusal(&self) -> Option<String> {
        self.state().refusal.clone()
    }

    /// Whether the machine used a storage key through it.
    pub(super) fn was_asked(&self) -> bool {
        self.state().is_prompted
    }

    /// How many sessions were started with its own key.
    pub(super) fn sessions(&self) -> usize {
        self.state().sessions.len()
    }

    fn state(&self) -> MutexGuard<'_, ImpostorState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn point(&self) -> ([u8; 32], [u8; 32]) {
        let point = self.key.public_key().to_sec1_point(false);
        let part = |bytes: Option<&[u8]>| bytes.and_then(|it| it.try_into().ok());
        let x = part(point.x().map(|it| it.as_slice()));
        let y = part(point.y().map(|it| it.as_slice()));
        (x.expect("an affine point"), y.expect("an affine point"))
    }

    /// Sends the TPM a command while the machine has nothing loaded there.
    fn ask(&self, chip: &mut dyn FnMut(&[u8]) -> io::Result<Vec<u8>>) {
        let mut state = self.state();
        if state.kek.is_some() || (state.pin.is_none() && state.tried) {
            return;
        }
        state.tried = true;
        let pin = state.pin.as_deref().map(SecretStr::from);
        let pin = pin.map(|pin| TpmPin::new(pin).expect("four digits"));
        let mut tpm = Tpm::new(ImpostorTransport {
            chip,
            response: Vec::new(),
        });
        match tpm.unseal(&self.record, pin.as_ref()) {
            Ok(kek) => state.kek = Some(*kek.expose()),
            Err(error) => state.refusal = Some(error.to_string()),
        }
    }

    fn deny(
        &self,
        command: &[u8],
        chip: &mut dyn FnMut(&[u8]) -> io::Result<Vec<u8>>,
    ) -> io::Result<Vec<u8>> {
        let code = number(&command[6..10]);
        if code == CREATE_PRIMARY && self.state().gave {
            self.state().denied = true;
            return Ok(message(NO_SESSIONS, VALUE, &[]));
        }
        let response = chip(command)?;
        if code == UNSEAL && number(&response[6..10]) == 0 {
            self.state().gave = true;
        }
        Ok(response)
    }

    fn pose(
        &self,
        command: &[u8],
        chip: &mut dyn FnMut(&[u8]) -> io::Result<Vec<u8>>,
    ) -> io::Result<Vec<u8>> {
        let first = command.get(10..14).map(number);
        let session = |state: &ImpostorState, handle| {
            state.sessions.iter().position(|it| it.handle == handle)
        };
        let own = first.and_then(|handle| session(&self.state(), handle));
        match (number(&command[6..10]), own) {
            (CREATE_PRIMARY, _) => {
                let mut response = chip(command)?;
                self.state().is_prompted = true;
                if number(&response[6..10]) == 0 {
                    let (x, y) = self.point();
                    let at = POINT_AT + 2;
                    response[at..at + COORDINATE].copy_from_slice(&x);
                    let at = at + COORDINATE + 2;
                    response[at..at + COORDINATE].copy_from_slice(&y);
                }
                Ok(response)
            }
            (START_AUTH_SESSION, _) => Ok(self.start_session(command)),
            (POLICY_PCR | POLICY_AUTH_VALUE | FLUSH_CONTEXT, Some(_)) => {
                Ok(message(NO_SESSIONS, 0, &[]))
            }
            (CONTEXT_SAVE, Some(_)) => {
                let context = [CONTEXT.as_slice(), &command[10..14]].concat();
                Ok(message(NO_SESSIONS, 0, &context))
            }
            (CONTEXT_LOAD, _) if command[10..].starts_with(CONTEXT) => {
                Ok(message(NO_SESSIONS, 0, &command[14..18]))
            }
            (PCR_READ, _) if number16(command) == SESSIONS => self.read_pcrs(command, chip),
            (UNSEAL, _) => {
                self.try_pins(command);
                Ok(message(NO_SESSIONS, AUTH_FAIL, &[]))
            }
            _ => chip(command),
        }
    }

    /// A session salted to its own key, which it can compute.
    fn start_session(&self, command: &[u8]) -> Vec<u8> {
        let mut rest = &command[18..];
        let nonce = sized(&mut rest);
        let mut salt = sized(&mut rest);
        let (x, y) = (sized(&mut salt), sized(&mut salt));
        let point = [[4].as_slice(), x, y].concat();
        let point = PublicKey::from_sec1_bytes(&point).expect("a point");
        let shared = point.to_projective() * *self.key.to_nonzero_scalar();
        let z = shared.to_affine().x();
        let (own_x, _) = self.point();
        let counter = 1_u32.to_be_bytes();
        let salt = [counter.as_slice(), &z, b"SECRET\0", x, &own_x].concat();
        let salt = Sha256::digest(&salt);
        let own_nonce = [9; 32];
        let bits = 256_u32.to_be_bytes();
        let key = mac(&salt, &[&counter, b"ATH\0", &own_nonce, nonce, &bits]);
        let is_policy = rest[0] == 1;
        let mut state = self.state();
        let number = FIRST_SESSION + u32::try_from(state.sessions.len()).expect("few");
        let handle = number | if is_policy { 0x0300_0000 } else { 0x0200_0000 };
        state.sessions.push(ImpostorSession {
            handle,
            key,
            nonce: own_nonce,
        });
        let body = [handle.to_be_bytes().as_slice(), &[0, 32], &own_nonce].concat();
        message(NO_SESSIONS, 0, &body)
    }

    /// The TPM's own values, authenticated by the session that it knows.
    fn read_pcrs(
        &self,
        command: &[u8],
        chip: &mut dyn FnMut(&[u8]) -> io::Result<Vec<u8>>,
    ) -> io::Result<Vec<u8>> {
        let auth = authorisation(&command[10..]);
        let parameters = &command[10 + 4 + auth.bytes..];
        let response = chip(&message(NO_SESSIONS, PCR_READ, parameters))?;
        let values = &response[10..];
        let mut state = self.state();
        let mut sessions = state.sessions.iter_mut();
        let session = sessions.find(|session| session.handle == auth.handle);
        let session = session.expect("it made the session");
        let codes = [[0; 4], PCR_READ.to_be_bytes()].concat();
        let digest = Sha256::digest([codes.as_slice(), values].concat());
        session.nonce = [11; 32];
        let parts: [&[u8]; 4] = [&digest, &session.nonce, auth.nonce, &[auth.attributes]];
        let code = mac(&session.key, &parts);
        let length = u32::try_from(values.len()).expect("short").to_be_bytes();
        let body = [
            length.as_slice(),
            values,
            &[0, 32],
            &session.nonce,
            &[auth.attributes, 0, 32],
            &code,
        ];
        Ok(message(SESSIONS, 0, &body.concat()))
    }

    /// The four-digit PIN that gives this command's authentication code.
    fn try_pins(&self, command: &[u8]) {
        let auth = authorisation(&command[14..]);
        let mut state = self.state();
        let mut sessions = state.sessions.iter();
        let Some(session) = sessions.find(|session| session.handle == auth.handle) else {
            return;
        };
        let mut public = self.record.public();
        let name = [[0, 0x0b].as_slice(), &Sha256::digest(sized(&mut public))].concat();
        let digest = Sha256::digest([UNSEAL.to_be_bytes().as_slice(), &name].concat());
        let parts: [&[u8]; 4] = [&digest, auth.nonce, &session.nonce, &[auth.attributes]];
        let found = (0..10_000).map(|pin| format!("{pin:04}")).find(|pin| {
            let key = [session.key.as_slice(), pin.as_bytes()].concat();
            mac(&key, &parts) == auth.code
        });
        state.pin = found;
    }
}

impl Interposer for TpmImpostor {
    fn exchange(
        &self,
        command: &[u8],
        chip: &mut dyn FnMut(&[u8]) -> io::Result<Vec<u8>>,
    ) -> io::Result<Vec<u8>> {
        if self.denies {
            return self.deny(command, chip);
        }
        let is_begun = number(&command[6..10]) == READ_PUBLIC
            && command.get(10..14).map(number) == Some(STORAGE_ROOT);
        if is_begun {
            self.ask(chip);
        }
        if self.poses {
            self.pose(command, chip)
        } else {
            chip(command)
        }
    }
}

/// An authorisation area with one session, after its length.
struct Authorisation<'a> {
    handle: u32,
    nonce: &'a [u8],
    attributes: u8,
    code: &'a [u8],
    bytes: usize,
}

fn authorisation(area: &[u8]) -> Authorisation<'_> {
    let bytes = number(&area[..4]) as usize;
    let mut rest = &area[8..];
    let nonce = sized(&mut rest);
    let attributes = rest[0];
    rest = &rest[1..];
    Authorisation {
        handle: number(&area[4..8]),
        nonce,
        attributes,
        code: sized(&mut rest),
        bytes,
    }
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().expect("four bytes"))
}

fn number16(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[0], bytes[1]])
}

/// The bytes after their two-byte length.
fn sized<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let length = usize::from(number16(rest));
    let (part, after) = rest[2..].split_at(length);
    *rest = after;
    part
}

fn message(tag: u16, code: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(10 + body.len()).expect("short");
    [
        tag.to_be_bytes().as_slice(),
        &length.to_be_bytes(),
        &code.to_be_bytes(),
        body,
    ]
    .concat()
}

fn mac(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key of any length");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().to_vec()
}

/// The TPM, for the library.
struct ImpostorTransport<'a> {
    chip: &'a mut dyn FnMut(&[u8]) -> io::Result<Vec<u8>>,
    response: Vec<u8>,
}

impl Write for ImpostorTransport<'_> {
    fn write(&mut self, command: &[u8]) -> io::Result<usize> {
        self.response = (self.chip)(command)?;
        Ok(command.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for ImpostorTransport<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.response.len().min(into.len());
        into[..count].copy_from_slice(&self.response[..count]);
        self.response.drain(..count);
        Ok(count)
    }
}
