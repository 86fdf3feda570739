//! Whole commands: header, handles, authorisation, parameters, and the same for answers.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use zeroize::Zeroizing;

use crate::channel::{self, HEADER_BYTES, TpmChannel, TpmResponseFrame};
use crate::codes::{alg, cc, handle, rc, tag};
use crate::crypto;
use crate::driver;
use crate::limits::MESSAGE_BYTES_MAX;
use crate::primary::{LoadedStorageKey, StorageKey};
use crate::session::{TpmSession, TpmSessionKind, protect};
use crate::wire::{TpmReader, TpmWriter};
use crate::{Lockout, TpmError};

/// A TPM 2.0 behind any connection that carries one command and one answer at a time.
#[derive(Debug)]
pub struct Tpm<T> {
    channel: TpmChannel<T>,
    /// If it is set, another storage key is not this machine's.
    pub(crate) required: Option<StorageKey>,
}

/// A handle and the name by which it is authenticated.
pub(crate) struct TpmHandle<'a> {
    pub(crate) handle: u32,
    pub(crate) name: &'a [u8],
}

/// A command without its authorisation.
pub(crate) struct TpmCommandBody<'a> {
    pub(crate) code: u32,
    pub(crate) targets: &'a [TpmHandle<'a>],
    pub(crate) parameters: TpmWriter,
    /// Whether the answer has a handle.
    pub(crate) makes: bool,
}

/// The answer to a command.
pub(crate) struct CommandResponse {
    /// 0 if the command makes none.
    pub(crate) handle: u32,
    pub(crate) parameters: Zeroizing<Vec<u8>>,
}

impl CommandResponse {
    pub(crate) fn reader(&self) -> TpmReader<'_> {
        TpmReader::new(&self.parameters)
    }
}

/// Lets only one thread at a time make the driver begin again.
static ASKING: Mutex<()> = Mutex::new(());

impl Tpm<File> {
    /// Opens the TPM of this machine. If the kernel gave it up when the machine started, the driver
    /// asks it again. That takes a few seconds if the TPM still does not answer, and only root can
    /// do it.
    ///
    /// # Errors
    /// `Absent`, `Unanswered`, `Unsupported` for a TPM 1.2, `Transport` if the device cannot be
    /// opened.
    pub fn open() -> Result<Self, TpmError> {
        let [dev, sys] = ["/dev", "/sys"].map(Path::new);
        let opened = channel::open(dev, sys).or_else(|error| {
            let TpmError::Unanswered = error else {
                return Err(error);
            };
            // A thread that waited for another one uses that one's result: a working driver must
            // not be unbound.
            let _one = ASKING.lock().unwrap_or_else(PoisonError::into_inner);
            match channel::open(dev, sys) {
                Err(TpmError::Unanswered) => {
                    driver::ask_again(sys);
                    channel::open(dev, sys)
                }
                opened => opened,
            }
        });
        opened.map(Self::new)
    }
}

impl<T: Read + Write> Tpm<T> {
    /// A TPM that was started (`TPM2_Startup`), which the firmware of a machine does.
    #[must_use]
    pub fn new(io: T) -> Self {
        Self {
            channel: TpmChannel(io),
            required: None,
        }
    }

    /// The connection.
    #[must_use]
    pub fn into_inner(self) -> T {
        self.channel.0
    }

    /// Runs a command that needs no authorisation.
    pub(crate) fn run(
        &mut self,
        command: &TpmCommandBody<'_>,
    ) -> Result<CommandResponse, TpmError> {
        let answer = self.send(command, tag::NO_SESSIONS, &[])?;
        expect_tag(&answer, tag::NO_SESSIONS)?;
        let mut reader = TpmReader::new(answer.body());
        let handle = if command.makes { reader.u32()? } else { 0 };
        Ok(CommandResponse {
            handle,
            parameters: Zeroizing::new(reader.rest().to_vec()),
        })
    }

    /// Runs a command that an empty password authorises.
    pub(crate) fn run_open(
        &mut self,
        command: &TpmCommandBody<'_>,
    ) -> Result<CommandResponse, TpmError> {
        let area = TpmWriter::new()
            .u32(handle::PASSWORD)
            .sized(&[])
            .u8(protect::CONTINUE)
            .sized(&[]);
        let answer = self.send(command, tag::SESSIONS, area.as_slice())?;
        // An empty password authenticates nothing, so everything that matters is checked in a
        // session.
        let (done, _) = split(command, &answer)?;
        Ok(done)
    }

    /// Runs a command in a session.
    pub(crate) fn run_in(
        &mut self,
        session: &mut TpmSession,
        mut command: TpmCommandBody<'_>,
        auth: &[u8],
        attributes: u8,
    ) -> Result<CommandResponse, TpmError> {
        let names: Vec<_> = command.targets.iter().map(|target| target.name).collect();
        // Without this attribute the TPM would end the session with its first command.
        let attributes = attributes | protect::CONTINUE;
        let code = command.code;
        let parameters = &mut command.parameters;
        let sent = session.authorise(code, &names, parameters, auth, attributes)?;
        let answer = self.send(&command, tag::SESSIONS, sent.area.as_slice())?;
        let (mut done, area) = split(&command, &answer)?;
        session.accept(&sent, code, &mut done.parameters, &area, auth)?;
        Ok(done)
    }

    fn send(
        &mut self,
        command: &TpmCommandBody<'_>,
        tag: u16,
        area: &[u8],
    ) -> Result<TpmResponseFrame, TpmError> {
        let sessions = if area.is_empty() { 0 } else { 4 + area.len() };
        let size = HEADER_BYTES + 4 * command.targets.len() + sessions + command.parameters.len();
        // Only the parts of a slot's record can be so long, so it is the record that is damaged.
        if size > MESSAGE_BYTES_MAX {
            return Err(TpmError::Damaged("it is longer than a command may be"));
        }
        let narrow =
            |size: usize| u32::try_from(size).expect("checked against the longest command");
        let mut bytes = TpmWriter::new()
            .u16(tag)
            .u32(narrow(size))
            .u32(command.code);
        for target in command.targets {
            bytes = bytes.u32(target.handle);
        }
        if !area.is_empty() {
            bytes = bytes.u32(narrow(area.len())).bytes(area);
        }
        let bytes = bytes.bytes(command.parameters.as_slice());
        let answer = self.channel.exchange(bytes.as_slice())?;
        if answer.code == rc::SUCCESS {
            return Ok(answer);
        }
        if rc::base(answer.code) == rc::COMMAND_CODE {
            return Err(TpmError::Unsupported("it lacks a command that is needed"));
        }
        Err(TpmError::Refused {
            command: cc::name(command.code),
            code: answer.code,
        })
    }

    /// Starts a session whose key only the holder of the parent's private key knows.
    pub(crate) fn start(
        &mut self,
        parent: &LoadedStorageKey,
        kind: TpmSessionKind,
    ) -> Result<TpmSession, TpmError> {
        let (salt, point) = parent.point.salt()?;
        let nonce = crypto::random::<{ crypto::DIGEST }>()?;
        let parameters = TpmWriter::new()
            .sized(&nonce)
            .sized(point.as_slice())
            .u8(kind as u8)
            .u16(alg::AES)
            .u16(128)
            .u16(alg::CFB)
            .u16(alg::SHA256);
        let command = TpmCommandBody {
            code: cc::START_AUTH_SESSION,
            targets: &[
                parent.target(),
                TpmHandle {
                    handle: handle::NULL,
                    name: &[],
                },
            ],
            parameters,
            makes: true,
        };
        let done = self.run(&command)?;
        let mut reader = done.reader();
        let session = TpmSession::new(done.handle, &salt, reader.sized()?, &nonce);
        let session = session.and_then(|session| reader.end().map(|()| session));
        // The TPM keeps the session whose answer was refused, and has room for few.
        if session.is_err() {
            self.flush(done.handle);
        }
        session
    }

    /// Runs `work` in a session and ends the session, whatever the result.
    pub(crate) fn with_session<R>(
        &mut self,
        parent: &LoadedStorageKey,
        kind: TpmSessionKind,
        work: impl FnOnce(&mut Self, &mut TpmSession) -> Result<R, TpmError>,
    ) -> Result<R, TpmError> {
        let mut session = self.start(parent, kind)?;
        let result = work(self, &mut session);
        // A TPM has room for few sessions, and errors must not use it up.
        self.flush(session.handle);
        result
    }

    /// Flushes a session or a loaded object. If this fails, the kernel does it when we close the
    /// device.
    pub(crate) fn flush(&mut self, handle: u32) {
        let command = TpmCommandBody {
            code: cc::FLUSH_CONTEXT,
            targets: &[],
            parameters: TpmWriter::new().u32(handle),
            makes: false,
        };
        let _ = self.run(&command);
    }

    /// The counters against guessing.
    ///
    /// # Errors
    /// `Transport`, `Malformed`, `Refused`.
    pub fn lockout(&mut self) -> Result<Lockout, TpmError> {
        use crate::codes::property;
        Ok(Lockout {
            locked: self.property(property::PERMANENT)? & property::IN_LOCKOUT != 0,
            failed: self.property(property::LOCKOUT_COUNTER)?,
            failed_max: self.property(property::MAX_AUTH_FAIL)?,
            interval_s: self.property(property::LOCKOUT_INTERVAL)?,
            recovery_s: self.property(property::LOCKOUT_RECOVERY)?,
        })
    }

    fn property(&mut self, property: u32) -> Result<u32, TpmError> {
        use crate::codes::property::TPM_PROPERTIES;
        let command = TpmCommandBody {
            code: cc::GET_CAPABILITY,
            targets: &[],
            parameters: TpmWriter::new().u32(TPM_PROPERTIES).u32(property).u32(1),
            makes: false,
        };
        let done = self.run(&command)?;
        let mut reader = done.reader();
        // The TPM has further properties behind the one that was asked for.
        let _more = reader.u8()?;
        let (kind, count) = (reader.u32()?, reader.u32()?);
        if (kind, count) != (TPM_PROPERTIES, 1) || reader.u32()? != property {
            return Err(TpmError::Malformed("it names another property"));
        }
        let value = reader.u32()?;
        reader.end()?;
        Ok(value)
    }
}

fn expect_tag(answer: &TpmResponseFrame, tag: u16) -> Result<(), TpmError> {
    if answer.tag == tag {
        return Ok(());
    }
    Err(TpmError::Malformed("its tag does not fit the command"))
}

/// Handle, parameters and authorisation of an answer in a session.
fn split(
    command: &TpmCommandBody<'_>,
    answer: &TpmResponseFrame,
) -> Result<(CommandResponse, Vec<u8>), TpmError> {
    expect_tag(answer, tag::SESSIONS)?;
    let mut reader = TpmReader::new(answer.body());
    let handle = if command.makes { reader.u32()? } else { 0 };
    let length = reader.u32()?;
    let parameters = reader.take(length as usize)?;
    let done = CommandResponse {
        handle,
        parameters: Zeroizing::new(parameters.to_vec()),
    };
    Ok((done, reader.rest().to_vec()))
}
