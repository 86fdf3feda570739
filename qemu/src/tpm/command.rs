//! Commands of a TPM 2.0 and their outcomes, as they pass between a machine and its chip.
//!
//! Both have a header of ten bytes: a tag, the length of all of it, and the command's or the response's
//! code, the most significant byte first (TPM 2.0 Library, part 1, 18).

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use crate::error::{Error, Result};

/// Bytes of a header.
const HEADER_BYTES: usize = 10;

/// The longest command or response: the chip's buffer is 4,096 bytes.
const BYTES_MAX: usize = 8192;

/// Commands of firmware, which can be replayed to a chip that was just switched on: it answers as the first one
/// did. Sessions and keys would differ.
const OF_FIRMWARE: [u32; 9] = [
    0x121, // HierarchyControl
    0x129, // HierarchyChangeAuth
    0x13c, // PCR_Event
    0x142, // IncrementalSelfTest
    0x143, // SelfTest
    0x144, // Startup
    0x17a, // GetCapability
    0x17e, // PCR_Read
    0x182, // PCR_Extend
];

/// `TPM2_GetCapability`, and which of them asks for the banks of PCRs.
const GET_CAPABILITY: u32 = 0x17a;
const CAP_PCRS: u32 = 5;

/// `TPM2_PCR_Extend`, and the register of what firmware starts. Before anything of a disk goes there, it gets an
/// event that firmware begins to boot (TCG PC Client Platform Firmware Profile, 3.3.4.5: `Calling EFI Application from
/// Boot Option`).
const PCR_EXTEND: u32 = 0x182;
const PCR_OF_PROGRAMS: u32 = 4;

/// SHA-256, as a TPM writes algorithms.
const SHA256: [u8; 2] = [0, 0x0b];

/// A command, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TpmExchange {
    /// With its header.
    pub(super) command: Vec<u8>,
    /// The response's code; 0 is success.
    pub(super) code: u32,
}

/// Reads a command or a response with its header; `None` at the end of the stream.
pub(super) fn receive(stream: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut message = vec![0; HEADER_BYTES];
    match stream.read_exact(&mut message) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let length = usize::try_from(number(&message[2..])).unwrap_or(usize::MAX);
    if !(HEADER_BYTES..=BYTES_MAX).contains(&length) {
        return Err(io::Error::other(format!(
            "a TPM's message of {length} bytes"
        )));
    }
    message.resize(length, 0);
    stream.read_exact(&mut message[HEADER_BYTES..])?;
    Ok(Some(message))
}

/// The code in a header.
pub(super) fn code(message: &[u8]) -> u32 {
    number(&message[6..])
}

/// The first four bytes, as a TPM writes numbers.
pub(super) fn number(bytes: &[u8]) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[..4]);
    u32::from_be_bytes(number)
}

/// Whether firmware says by this command that it begins to boot, or, after the first such command, what it starts.
pub(super) fn is_ready_to_boot(command: &[u8]) -> bool {
    code(command) == PCR_EXTEND
        && command.len() >= HEADER_BYTES + 4
        && number(&command[HEADER_BYTES..]) == PCR_OF_PROGRAMS
}

/// What a chip with one bank of PCRs, that of SHA-256, responds in place of `response`.
///
/// Firmware computes the hash of every bank that a chip lists, whether it is in use or not. swtpm lists SHA-1,
/// SHA-256, SHA-384 and SHA-512, and under emulation the two long ones take most of a boot.
pub(super) fn with_one_bank(command: &[u8], response: Vec<u8>) -> Vec<u8> {
    let is_asked = code(command) == GET_CAPABILITY
        && command.len() >= HEADER_BYTES + 4
        && number(&command[HEADER_BYTES..]) == CAP_PCRS;
    if !is_asked || code(&response) != 0 {
        return response;
    }
    only_sha256(&response).unwrap_or(response)
}

/// Leaves the selections of other banks out of a `TPMS_CAPABILITY_DATA` with PCRs: after the header whether more
/// follows, the capability and the number of selections, then each with its algorithm, the number of its bytes and
/// these bytes (TPM 2.0 Library, part 2, 10.9 and 10.10.2). `None` if it is not whole.
fn only_sha256(response: &[u8]) -> Option<Vec<u8>> {
    const FIXED_BYTES: usize = HEADER_BYTES + 1 + 4;
    let (fixed, rest) = response.split_at_checked(FIXED_BYTES)?;
    let (count, mut rest) = rest.split_at_checked(4)?;
    let mut kept = Vec::new();
    let mut selections = 0_u32;
    for _ in 0..number(count) {
        let bytes = 3 + usize::from(*rest.get(2)?);
        let (selection, after) = rest.split_at_checked(bytes)?;
        if selection.starts_with(&SHA256) {
            kept.extend(selection);
            selections += 1;
        }
        rest = after;
    }
    let mut all = [fixed, &selections.to_be_bytes(), &kept, rest].concat();
    let length = u32::try_from(all.len()).ok()?;
    all[2..6].copy_from_slice(&length.to_be_bytes());
    Some(all)
}

/// Writes what a chip was asked.
pub(super) fn write(file: &Path, exchanges: &[TpmExchange]) -> Result<()> {
    let codes = exchanges.iter().map(|one| code(&one.command));
    if let Some(other) = codes.into_iter().find(|it| !OF_FIRMWARE.contains(it)) {
        let why = format!("it is too late to save it: its TPM was asked 0x{other:x}");
        return Err(Error::TooLate(why));
    }
    let mut bytes = vec![];
    for TpmExchange { command, code } in exchanges {
        bytes.extend(code.to_be_bytes());
        bytes.extend(command);
    }
    fs::write(file, bytes).map_err(Error::io(format!("writing {}", file.display())))
}

/// Reads it again.
pub(super) fn read(file: &Path) -> Result<Vec<TpmExchange>> {
    let read = || {
        let bytes = fs::read(file)?;
        let mut rest = bytes.as_slice();
        let mut asked = vec![];
        while !rest.is_empty() {
            let mut code = [0; 4];
            rest.read_exact(&mut code)?;
            let command = receive(&mut rest)?.ok_or(io::ErrorKind::UnexpectedEof)?;
            asked.push(TpmExchange {
                command,
                code: u32::from_be_bytes(code),
            });
        }
        Ok(asked)
    };
    read().map_err(Error::io(format!("reading {}", file.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `TPM2_Startup` with this type.
    fn startup(kind: u8) -> Vec<u8> {
        vec![0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x44, 0, kind]
    }

    #[test]
    fn messages_are_divided_by_their_lengths() {
        let stream = [startup(0), startup(1)].concat();
        let mut rest = stream.as_slice();
        for kind in 0..2 {
            let message = receive(&mut rest).expect("it is whole").expect("there");
            assert_eq!(message, startup(kind));
            assert_eq!(code(&message), 0x144);
        }
        assert_eq!(receive(&mut rest).expect("the end"), None);
        let mut long = startup(0);
        long[3] = 1;
        assert!(receive(&mut long.as_slice()).is_err(), "it says 64 KiB");
        let mut short = &startup(0)[..11];
        assert!(receive(&mut short).is_err(), "its end is missing");
    }

    #[test]
    fn firmware_is_ready_to_boot_when_it_measures_that() {
        let extend = |register: u8| {
            let mut command = vec![0x80, 2, 0, 0, 0, 14, 0, 0, 1, 0x82, 0, 0, 0, register];
            command[5] = u8::try_from(command.len()).expect("short");
            command
        };
        assert!(is_ready_to_boot(&extend(4)));
        assert!(!is_ready_to_boot(&extend(7)), "its settings");
        assert!(!is_ready_to_boot(&extend(4)[..13]), "cut");
        assert!(!is_ready_to_boot(&startup(4)));
    }

    #[test]
    fn a_chip_has_the_bank_of_sha256_only() {
        let header = |length: u8, code: [u8; 4]| [&[0x80, 1, 0, 0, 0, length][..], &code].concat();
        let ask = |capability: u8| {
            let about = [0, 0, 0, capability, 0, 0, 0, 0, 0, 0, 0, 64];
            [header(22, [0, 0, 1, 0x7a]), about.to_vec()].concat()
        };
        let bank = |algorithm: u8| [0, algorithm, 3, 0xff, 0xff, 0xff];
        let told = |banks: &[u8]| {
            let length = u8::try_from(19 + 6 * banks.len()).expect("short");
            let count = u8::try_from(banks.len()).expect("few");
            let banks: Vec<u8> = banks.iter().flat_map(|it| bank(*it)).collect();
            let fixed = [0, 0, 0, 0, 5, 0, 0, 0, count];
            [header(length, [0; 4]), fixed.to_vec(), banks].concat()
        };
        let all = told(&[4, 0x0b, 0x0c, 0x0d]);
        assert_eq!(with_one_bank(&ask(5), all.clone()), told(&[0x0b]));
        assert_eq!(with_one_bank(&ask(6), all.clone()), all, "another question");
        assert_eq!(with_one_bank(&startup(0), all.clone()), all);
        let cut = all[..all.len() - 1].to_vec();
        assert_eq!(with_one_bank(&ask(5), cut.clone()), cut);
        let refused = header(10, [0, 0, 1, 1]);
        assert_eq!(with_one_bank(&ask(5), refused.clone()), refused);
    }

    #[test]
    fn what_firmware_asks_is_kept_and_nothing_else() {
        let folder = tempfile::tempdir().expect("the temporary directory is writable");
        let file = folder.path().join("tpm");
        let one = |command, code| TpmExchange { command, code };
        let asked = [one(startup(0), 0), one(startup(1), 0x101)];
        write(&file, &asked).expect("the folder is ours");
        assert_eq!(read(&file).expect("it was written"), asked);
        let mut create = startup(0);
        // CreatePrimary.
        create[8..10].copy_from_slice(&[1, 0x31]);
        let late = [asked[0].clone(), one(create, 0)];
        let error = write(&file, &late).expect_err("a key is made");
        assert!(error.to_string().contains("0x131"), "{error}");
        fs::write(&file, b"damage").expect("the folder is ours");
        assert!(matches!(read(&file), Err(Error::Io { .. })));
    }
}
