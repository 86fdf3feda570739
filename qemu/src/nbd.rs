//! The part of an NBD server, fixed newstyle, that one disk for one QEMU needs.

use std::io::{self, Read, Write};

/// The storage behind the server.
pub(crate) trait NbdBackend {
    /// Size in bytes.
    fn size(&self) -> u64;
    /// Reads `buffer.len()` bytes at `offset`.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// Writes `data` at `offset`. With `fua` it is durable before the answer.
    fn write(&self, offset: u64, data: Vec<u8>, fua: bool) -> io::Result<()>;
    /// Makes `length` bytes at `offset` read as zero.
    fn zero(&self, offset: u64, length: u64, fua: bool) -> io::Result<()>;
    /// Makes everything durable that was answered so far.
    fn flush(&self) -> io::Result<()>;
}

/// Serves one client until it leaves.
pub(crate) fn serve(stream: &mut (impl Read + Write), store: &impl NbdBackend) -> io::Result<()> {
    if !negotiate(stream, store)? {
        return Ok(());
    }
    while let Some(request) = NbdRequest::read(stream)? {
        if !answer(stream, store, &request)? {
            break;
        }
    }
    Ok(())
}

const MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

/// Handshake flags, the same for both sides: fixed newstyle, no padding of zeros.
const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;

/// Transmission flags: flags are there, and the server understands FLUSH, FUA, TRIM and
/// WRITE_ZEROES.
const TRANSMISSION: u16 = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6;

/// Option data beyond this are an attack or a fault. The server itself sends a name and a list of
/// numbers.
const OPTION_BYTES_MAX: u32 = 4096;

/// Largest read or write: the protocol's recommendation, and QEMU's limit.
const PAYLOAD_BYTES_MAX: u32 = 32 << 20;

mod option {
    pub(super) const EXPORT_NAME: u32 = 1;
    pub(super) const ABORT: u32 = 2;
    pub(super) const INFO: u32 = 6;
    pub(super) const GO: u32 = 7;
}

mod reply {
    pub(super) const ACK: u32 = 1;
    pub(super) const INFO: u32 = 3;
    pub(super) const UNSUPPORTED: u32 = 1 << 31 | 1;
    pub(super) const TOO_BIG: u32 = 1 << 31 | 9;
}

mod command {
    pub(super) const READ: u16 = 0;
    pub(super) const WRITE: u16 = 1;
    pub(super) const DISCONNECT: u16 = 2;
    pub(super) const FLUSH: u16 = 3;
    pub(super) const TRIM: u16 = 4;
    pub(super) const WRITE_ZEROES: u16 = 6;
    pub(super) const FLAG_FUA: u16 = 1;
}

mod errno {
    pub(super) const EIO: u32 = 5;
    pub(super) const EINVAL: u32 = 22;
}

/// Returns whether the client goes on to transmission.
fn negotiate(stream: &mut (impl Read + Write), store: &impl NbdBackend) -> io::Result<bool> {
    let mut greeting = Vec::with_capacity(18);
    greeting.extend(MAGIC.to_be_bytes());
    greeting.extend(OPTION_MAGIC.to_be_bytes());
    greeting.extend((FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
    stream.write_all(&greeting)?;
    let padded = u32::from_be_bytes(take(stream)?) & u32::from(NO_ZEROES) == 0;
    loop {
        if u64::from_be_bytes(take(stream)?) != OPTION_MAGIC {
            return Err(malformed("an option without its magic number"));
        }
        let option = u32::from_be_bytes(take(stream)?);
        let length = u32::from_be_bytes(take(stream)?);
        if length > OPTION_BYTES_MAX {
            reply_option(stream, option, reply::TOO_BIG, &[])?;
            return Err(malformed("an option that is too long"));
        }
        let mut data = vec![0; length as usize];
        stream.read_exact(&mut data)?;
        match option {
            option::EXPORT_NAME => {
                // NBD protocol: 124 zeros follow unless the client sent the flag for none.
                let mut export = export(store).to_vec();
                export.resize(export.len() + if padded { 124 } else { 0 }, 0);
                stream.write_all(&export)?;
                return Ok(true);
            }
            option::ABORT => {
                reply_option(stream, option, reply::ACK, &[])?;
                return Ok(false);
            }
            option::GO | option::INFO => {
                let info = [&[0, 0], export(store).as_slice()].concat();
                reply_option(stream, option, reply::INFO, &info)?;
                reply_option(stream, option, reply::ACK, &[])?;
                // After INFO the client may still choose another option.
                if option == option::GO {
                    return Ok(true);
                }
            }
            _ => reply_option(stream, option, reply::UNSUPPORTED, &[])?,
        }
    }
}

/// Size and transmission flags, in the form of two messages.
fn export(store: &impl NbdBackend) -> [u8; 10] {
    let mut bytes = [0; 10];
    bytes[..8].copy_from_slice(&store.size().to_be_bytes());
    bytes[8..].copy_from_slice(&TRANSMISSION.to_be_bytes());
    bytes
}

fn reply_option(stream: &mut impl Write, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    let mut message = Vec::with_capacity(20 + data.len());
    message.extend(OPTION_REPLY_MAGIC.to_be_bytes());
    message.extend(option.to_be_bytes());
    message.extend(kind.to_be_bytes());
    let length = u32::try_from(data.len()).map_err(|_| malformed("an answer that is too long"))?;
    message.extend(length.to_be_bytes());
    message.extend(data);
    stream.write_all(&message)
}

#[derive(Debug)]
struct NbdRequest {
    fua: bool,
    command: u16,
    handle: [u8; 8],
    offset: u64,
    length: u32,
}

impl NbdRequest {
    /// The next request. `None` if the client hung up between two.
    fn read(stream: &mut impl Read) -> io::Result<Option<Self>> {
        let magic = match take(stream) {
            Ok(bytes) => u32::from_be_bytes(bytes),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        };
        if magic != REQUEST_MAGIC {
            return Err(malformed("a request without its magic number"));
        }
        let flags = u16::from_be_bytes(take(stream)?);
        Ok(Some(Self {
            fua: flags & command::FLAG_FUA != 0,
            command: u16::from_be_bytes(take(stream)?),
            handle: take(stream)?,
            offset: u64::from_be_bytes(take(stream)?),
            length: u32::from_be_bytes(take(stream)?),
        }))
    }

    fn inside(&self, size: u64) -> bool {
        self.offset
            .checked_add(self.length.into())
            .is_some_and(|end| end <= size)
    }
}

/// Answers a request. Returns whether more requests may come.
fn answer(
    stream: &mut (impl Read + Write),
    store: &impl NbdBackend,
    request: &NbdRequest,
) -> io::Result<bool> {
    let carries = matches!(request.command, command::READ | command::WRITE);
    // The server ends the connection, because it could not skip the payload safely.
    if carries && request.length > PAYLOAD_BYTES_MAX {
        return Err(malformed("a request that is too long"));
    }
    let mut payload = vec![0; if carries { request.length as usize } else { 0 }];
    if request.command == command::WRITE {
        stream.read_exact(&mut payload)?;
    }
    let done = match request.command {
        command::DISCONNECT => return Ok(false),
        command::FLUSH => store.flush(),
        // The disk has no such bytes. Writing past the end would enlarge the file.
        _ if !request.inside(store.size()) => Err(io::ErrorKind::InvalidInput.into()),
        command::READ => store.read(request.offset, &mut payload),
        command::WRITE => store.write(request.offset, std::mem::take(&mut payload), request.fua),
        command::TRIM | command::WRITE_ZEROES => {
            store.zero(request.offset, request.length.into(), request.fua)
        }
        _ => Err(io::ErrorKind::InvalidInput.into()),
    };
    reply_request(stream, request, done.map(|()| payload))?;
    Ok(true)
}

fn reply_request(
    stream: &mut impl Write,
    request: &NbdRequest,
    done: io::Result<Vec<u8>>,
) -> io::Result<()> {
    let (error, payload) = match done {
        Ok(payload) => (0, payload),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => (errno::EINVAL, vec![]),
        Err(_) => (errno::EIO, vec![]),
    };
    let mut message = Vec::with_capacity(16 + payload.len());
    message.extend(REPLY_MAGIC.to_be_bytes());
    message.extend(error.to_be_bytes());
    message.extend(request.handle);
    message.extend(payload);
    stream.write_all(&message)
}

fn take<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the NBD client sent {what}"),
    )
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    /// A disk of 1 KiB that refuses to be written.
    struct ReadOnlyBackend;

    impl NbdBackend for ReadOnlyBackend {
        fn size(&self) -> u64 {
            1024
        }
        fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
            buffer.fill(u8::try_from(offset % 251).unwrap_or_default());
            Ok(())
        }
        fn write(&self, _: u64, _: Vec<u8>, _: bool) -> io::Result<()> {
            Err(io::Error::other("read-only"))
        }
        fn zero(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
            Err(io::Error::other("read-only"))
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The client's script, and the server's answers.
    struct ScriptedClient {
        input: Cursor<Vec<u8>>,
        output: Vec<u8>,
    }

    impl Read for ScriptedClient {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.input.read(buffer)
        }
    }

    impl Write for ScriptedClient {
        fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
            self.output.write(buffer)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Handshake with NO_ZEROES, then EXPORT_NAME. The server's part is 18 + 10 bytes.
    const HANDSHAKE: &[u8] = b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\0";
    const HANDSHAKE_ANSWER: usize = 28;

    fn run(input: &[u8]) -> (io::Result<()>, Vec<u8>) {
        let mut script = ScriptedClient {
            input: Cursor::new(input.to_vec()),
            output: vec![],
        };
        let result = serve(&mut script, &ReadOnlyBackend);
        (result, script.output)
    }

    fn request(command: u16, offset: u64, length: u32) -> Vec<u8> {
        let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
        bytes.extend([0, 0]);
        bytes.extend(command.to_be_bytes());
        bytes.extend(b"handle!!");
        bytes.extend(offset.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes
    }

    fn error_of(request: &[u8]) -> u32 {
        let (_, output) = run(&[HANDSHAKE, request].concat());
        let reply = &output[HANDSHAKE_ANSWER..];
        u32::from_be_bytes(reply[4..8].try_into().expect("a reply has 16 bytes"))
    }

    #[test]
    fn reads_are_answered_with_their_handle() {
        let (result, output) = run(&[HANDSHAKE, &request(command::READ, 7, 3)].concat());
        result.expect("the client left in order");
        assert_eq!(&output[HANDSHAKE_ANSWER + 8..], b"handle!!\x07\x07\x07");
    }

    #[test]
    fn what_cannot_be_done_is_an_errno() {
        assert_eq!(
            error_of(&request(command::READ, 1000, 25)),
            errno::EINVAL,
            "beyond the end"
        );
        assert_eq!(
            error_of(&request(command::READ, u64::MAX, 2)),
            errno::EINVAL,
            "overflow"
        );
        assert_eq!(
            error_of(&request(77, 0, 1)),
            errno::EINVAL,
            "unknown command"
        );
        let write = [request(command::WRITE, 0, 1), vec![1]].concat();
        assert_eq!(error_of(&write), errno::EIO, "the store refused");
    }

    #[test]
    fn an_unknown_option_is_refused_and_the_next_one_served() {
        let unknown = b"\0\0\0\x03IHAVEOPT\0\0\0\x63\0\0\0\x02ab";
        let (_, output) = run(&[unknown, &HANDSHAKE[4..]].concat());
        assert_eq!(output[30..34], reply::UNSUPPORTED.to_be_bytes());
        assert_eq!(output.len(), 18 + 20 + 10);
    }

    #[test]
    fn nonsense_ends_the_connection() {
        for bytes in [
            &b"\0\0\0\x03GARBAGE!\0\0\0\0\0\0\0\0"[..],
            b"\0\0\0\x03IHAVEOPT\0\0\0\x07\xff\xff\xff\xff",
            &[HANDSHAKE, b"garbagegarbage"].concat(),
            &[
                HANDSHAKE,
                &request(command::WRITE, 0, PAYLOAD_BYTES_MAX + 1),
            ]
            .concat(),
        ] {
            let error = run(bytes).0.expect_err("this is not NBD");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        }
    }
}
