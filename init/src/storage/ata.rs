//! SMART of a SATA disk: its own verdict, and its attributes. The commands are those of ATA/ATAPI Command Set 3 (ACS-3),
//! section 7.48, sent through the kernel's `SG_IO` as ATA PASS-THROUGH (16) of SCSI/ATA Translation 3 (SAT-3), section
//! 12.2.3.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;

use super::health::HealthReport;

/// Bytes of what *SMART READ DATA* returns.
pub(super) const DATA_BYTES: usize = 512;
/// Bytes of sense data: eight, and a descriptor of fourteen, with room.
const SENSE_BYTES: usize = 32;
/// How long a disk may take to answer, ms.
const TIMEOUT_MS: libc::c_uint = 10_000;
/// `SG_IO` of scsi/sg.h.
const SG_IO: libc::c_ulong = 0x2285;
const DXFER_NONE: libc::c_int = -1;
const DXFER_FROM_DEVICE: libc::c_int = -3;

/// Operation code of ATA PASS-THROUGH (16).
const PASS_THROUGH_16: u8 = 0x85;
/// Values of the field PROTOCOL, in its place.
const NON_DATA: u8 = 3 << 1;
const PIO_DATA_IN: u8 = 4 << 1;
/// `CK_COND`: the disk's registers come back in the sense data.
const CHECK_CONDITION: u8 = 0x20;
/// `T_DIR`, `BYT_BLOK` and `T_LENGTH`: blocks from the disk, as many as the field COUNT says.
const BLOCKS_FROM_DEVICE: u8 = 0x08 | 0x04 | 0x02;
/// The ATA command SMART, its features, and the key in the LBA that it demands.
const SMART: u8 = 0xb0;
const READ_DATA: u8 = 0xd0;
const RETURN_STATUS: u8 = 0xda;
const KEY: (u8, u8) = (0x4f, 0xc2);
/// What the LBA has if the disk predicts its failure.
const KEY_FAILING: (u8, u8) = (0xf4, 0x2c);

/// Additional sense code and its qualifier: *ATA pass through information available*.
const PASS_THROUGH_SENSE: (u8, u8) = (0x00, 0x1d);
/// Code of the descriptor with the registers (SAT-3, section 12.2.6).
const ATA_STATUS_DESCRIPTOR: u8 = 0x09;

/// Where the attributes begin, how many there are, and the bytes of each.
const ATTRIBUTES_AT: usize = 2;
const ATTRIBUTES: usize = 30;
const ATTRIBUTE_BYTES: usize = 12;
/// Numbers of attributes. No standard has them; the makers of disks agree on these.
const POWER_ON_HOURS: u8 = 9;
const REPORTED_UNCORRECTABLE: u8 = 187;
const OFFLINE_UNCORRECTABLE: u8 = 198;
const TEMPERATURES: [u8; 2] = [194, 190];
/// Attributes whose normalised value is the part of the life that is left, in percent: of Intel, Micron, SandForce and
/// Samsung.
const LIFE_LEFT: [u8; 4] = [231, 233, 202, 177];

/// Reads what the disk reports. The report is empty if the disk has no SMART or its SMART is switched off.
pub(super) fn read(disk: &File) -> HealthReport {
    let verdict = return_status(disk).ok().flatten();
    let data = read_data(disk).ok();
    report(verdict, data.as_ref())
}

fn report(verdict: Option<SmartVerdict>, data: Option<&[u8; DATA_BYTES]>) -> HealthReport {
    let mut report = data.map(parse_data).unwrap_or_default();
    report.is_answered = verdict.is_some();
    if verdict == Some(SmartVerdict::Failing) {
        report
            .failing
            .push("its SMART status predicts its failure".to_owned());
    }
    report
}

/// What a disk says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SmartVerdict {
    Passed,
    Failing,
}

fn return_status(disk: &File) -> io::Result<Option<SmartVerdict>> {
    let command = command(NON_DATA, CHECK_CONDITION, RETURN_STATUS, 0);
    let mut sense = [0; SENSE_BYTES];
    execute(disk, command, &mut [], &mut sense)?;
    Ok(parse_sense(&sense))
}

fn read_data(disk: &File) -> io::Result<[u8; DATA_BYTES]> {
    let command = command(PIO_DATA_IN, BLOCKS_FROM_DEVICE, READ_DATA, 1);
    let mut data = [0; DATA_BYTES];
    let mut sense = [0; SENSE_BYTES];
    execute(disk, command, &mut data, &mut sense)?;
    Ok(data)
}

fn command(protocol: u8, transfer: u8, feature: u8, count: u8) -> [u8; 16] {
    let mut command = [0; 16];
    command[0] = PASS_THROUGH_16;
    command[1] = protocol;
    command[2] = transfer;
    command[4] = feature;
    command[6] = count;
    (command[10], command[12]) = KEY;
    command[14] = SMART;
    command
}

/// `struct sg_io_hdr` of the kernel.
#[repr(C)]
struct SgIoHeader {
    interface: libc::c_int,
    direction: libc::c_int,
    command_bytes: u8,
    sense_bytes_max: u8,
    vectors: u16,
    data_bytes: libc::c_uint,
    data: *mut libc::c_void,
    command: *mut u8,
    sense: *mut u8,
    timeout_ms: libc::c_uint,
    flags: libc::c_uint,
    pack_id: libc::c_int,
    user: *mut libc::c_void,
    status: u8,
    masked_status: u8,
    message_status: u8,
    sense_bytes: u8,
    host_status: u16,
    driver_status: u16,
    residual: libc::c_int,
    duration_ms: libc::c_uint,
    info: libc::c_uint,
}

// A host of 64 bits.
const _: () = assert!(size_of::<usize>() != 8 || size_of::<SgIoHeader>() == 88);

/// Sends a command that reads. The sense data stay zero if the disk sends none.
fn execute(
    disk: &File,
    mut command: [u8; 16],
    data: &mut [u8],
    sense: &mut [u8; SENSE_BYTES],
) -> io::Result<()> {
    let direction = match data.is_empty() {
        true => DXFER_NONE,
        false => DXFER_FROM_DEVICE,
    };
    let mut header = SgIoHeader {
        interface: 'S' as libc::c_int,
        direction,
        command_bytes: 16,
        sense_bytes_max: SENSE_BYTES as u8,
        vectors: 0,
        data_bytes: data.len() as libc::c_uint,
        data: data.as_mut_ptr().cast(),
        command: command.as_mut_ptr(),
        sense: sense.as_mut_ptr(),
        timeout_ms: TIMEOUT_MS,
        flags: 0,
        pack_id: 0,
        user: std::ptr::null_mut(),
        status: 0,
        masked_status: 0,
        message_status: 0,
        sense_bytes: 0,
        host_status: 0,
        driver_status: 0,
        residual: 0,
        duration_ms: 0,
        info: 0,
    };
    // SAFETY: the ioctl reads and writes the structure behind the pointer, reads 16 bytes at `command`, and writes at most
    // `data_bytes` bytes at `data` and `sense_bytes_max` bytes at `sense`; all outlive the call.
    let outcome = unsafe { libc::ioctl(disk.as_raw_fd(), SG_IO, &raw mut header) };
    Errno::result(outcome)?;
    // A command that returns registers ends with a check condition, also if it succeeded. Data come without one.
    let is_refused = !data.is_empty() && header.status != 0;
    match header.host_status == 0 && header.residual == 0 && !is_refused {
        true => Ok(()),
        false => Err(io::Error::other("the disk does not do this command")),
    }
}

/// Reads the disk's verdict from the registers in the sense data, in one of their two forms (SPC-4, section 4.5). `None`
/// if the sense data have no registers of a command that succeeded.
pub(super) fn parse_sense(sense: &[u8; SENSE_BYTES]) -> Option<SmartVerdict> {
    /// Bits of the register STATUS by which a disk says that it did not do the command: device fault, and error.
    const FAILED: u8 = 0x20 | 0x01;
    let (status, middle, high) = match sense[0] & 0x7f {
        0x72 if (sense[2], sense[3]) == PASS_THROUGH_SENSE && sense[8] == ATA_STATUS_DESCRIPTOR => {
            (sense[21], sense[17], sense[19])
        }
        0x70 if (sense[12], sense[13]) == PASS_THROUGH_SENSE => (sense[4], sense[10], sense[11]),
        _ => return None,
    };
    match (middle, high) {
        _ if status & FAILED != 0 => None,
        KEY => Some(SmartVerdict::Passed),
        KEY_FAILING => Some(SmartVerdict::Failing),
        _ => None,
    }
}

/// Reads the attributes. A page with a wrong checksum says nothing.
pub(super) fn parse_data(data: &[u8; DATA_BYTES]) -> HealthReport {
    let sum = data.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    // A page of zeros has a correct sum, and is of a disk that has no attributes.
    if sum != 0 || data.iter().all(|byte| *byte == 0) {
        return HealthReport::default();
    }
    let list = &data[ATTRIBUTES_AT..ATTRIBUTES_AT + ATTRIBUTES * ATTRIBUTE_BYTES];
    let find = |id: u8| {
        let mut list = list.chunks_exact(ATTRIBUTE_BYTES);
        list.find(|attribute| attribute[0] == id)
    };
    let raw32 = |id| find(id).map(|it| u32::from_le_bytes([it[5], it[6], it[7], it[8]]).into());
    let life_left = LIFE_LEFT.into_iter().find_map(find);
    let temperature = TEMPERATURES.into_iter().find_map(find);
    HealthReport {
        wear_percent: life_left.map(|it| 100_u16.saturating_sub(it[3].into())),
        media_errors: raw32(REPORTED_UNCORRECTABLE).or_else(|| raw32(OFFLINE_UNCORRECTABLE)),
        // Some disks count milliseconds in the upper bytes.
        power_on_hours: raw32(POWER_ON_HOURS),
        // The lowest byte is the temperature; the others may have the lowest and the highest one.
        temperature_c: temperature.map(|it| i32::from(i8::from_le_bytes([it[5]]))),
        ..HealthReport::default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A page with these attributes: number, normalised value, raw value.
    fn page(attributes: &[(u8, u8, u64)]) -> [u8; DATA_BYTES] {
        let mut page = [0; DATA_BYTES];
        page[0] = 16;
        for (n, (id, current, raw)) in attributes.iter().enumerate() {
            let at = ATTRIBUTES_AT + n * ATTRIBUTE_BYTES;
            page[at] = *id;
            page[at + 1] = 0x32;
            (page[at + 3], page[at + 4]) = (*current, *current);
            page[at + 5..at + 11].copy_from_slice(&raw.to_le_bytes()[..6]);
        }
        let sum = page.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        page[DATA_BYTES - 1] = sum.wrapping_neg();
        page
    }

    /// Sense data with a descriptor, as Linux makes it of the registers.
    fn descriptor(status: u8, middle: u8, high: u8) -> [u8; SENSE_BYTES] {
        let mut sense = [0; SENSE_BYTES];
        sense[..4].copy_from_slice(&[0x72, 0x01, 0x00, 0x1d]);
        sense[7] = 14;
        sense[8..10].copy_from_slice(&[0x09, 12]);
        (sense[17], sense[19], sense[21]) = (middle, high, status);
        sense
    }

    /// Like `descriptor`, in the fixed format.
    fn fixed(status: u8, middle: u8, high: u8) -> [u8; SENSE_BYTES] {
        let mut sense = [0; SENSE_BYTES];
        sense[0] = 0xf0;
        sense[2] = 0x01;
        sense[4] = status;
        sense[7] = 10;
        (sense[10], sense[11]) = (middle, high);
        sense[13] = 0x1d;
        sense
    }

    #[test]
    fn the_verdict_is_in_the_registers_in_both_forms_of_sense_data() {
        for sense in [descriptor, fixed] {
            let verdict = |status, middle, high| parse_sense(&sense(status, middle, high));
            assert_eq!(verdict(0x50, 0x4f, 0xc2), Some(SmartVerdict::Passed));
            assert_eq!(verdict(0x50, 0xf4, 0x2c), Some(SmartVerdict::Failing));
            assert_eq!(verdict(0x50, 0, 0), None);
            // The disk did not do the command.
            assert_eq!(verdict(0x51, 0xf4, 0x2c), None);
        }
        assert_eq!(parse_sense(&[0; SENSE_BYTES]), None, "no sense data");
        let mut invalid = descriptor(0x50, 0xf4, 0x2c);
        // Invalid command operation code, of a disk without SMART.
        (invalid[1], invalid[2], invalid[3]) = (0x05, 0x20, 0x00);
        assert_eq!(parse_sense(&invalid), None);
    }

    #[test]
    fn a_predicted_failure_is_a_fact() {
        let predicted = report(Some(SmartVerdict::Failing), None);
        assert_eq!(predicted.failing, ["its SMART status predicts its failure"]);
        let passed = report(Some(SmartVerdict::Passed), None);
        assert!(passed.is_answered && passed.failing.is_empty());
        assert_eq!(report(None, None), HealthReport::default());
    }

    /// Attributes of an SSD and of a disk with platters, as smartmontools' database describes their makers' layouts.
    #[test]
    fn attributes_are_read() {
        let ssd = page(&[
            (5, 100, 0),
            // 4,660 h, and milliseconds above them.
            (9, 95, 0x00ab_0000_1234),
            (177, 97, 31),
            (187, 100, 2),
            // 33 °C, and the lowest and the highest one above.
            (190, 67, 0x002d_0014_0021),
        ]);
        let expected = HealthReport {
            wear_percent: Some(3),
            media_errors: Some(2),
            power_on_hours: Some(4_660),
            temperature_c: Some(33),
            ..HealthReport::default()
        };
        assert_eq!(parse_data(&ssd), expected);
        let platters = page(&[(9, 70, 26_280), (194, 111, 36), (198, 100, 8)]);
        let expected = HealthReport {
            media_errors: Some(8),
            power_on_hours: Some(26_280),
            temperature_c: Some(36),
            ..HealthReport::default()
        };
        assert_eq!(parse_data(&platters), expected);
    }

    #[test]
    fn a_page_with_a_wrong_sum_says_nothing() {
        let mut damaged = page(&[(9, 70, 26_280)]);
        damaged[100] ^= 1;
        assert_eq!(parse_data(&damaged), HealthReport::default());
        assert_eq!(parse_data(&[0; DATA_BYTES]), HealthReport::default());
    }

    /// The commands, byte for byte as `sg_raw` would send them (SAT-3, table 133).
    #[test]
    fn commands_have_the_bytes_of_the_standard() {
        let status = [
            0x85, 0x06, 0x20, 0, 0xda, 0, 0, 0, 0, 0, 0x4f, 0, 0xc2, 0, 0xb0, 0,
        ];
        assert_eq!(command(NON_DATA, CHECK_CONDITION, RETURN_STATUS, 0), status);
        let data = [
            0x85, 0x08, 0x0e, 0, 0xd0, 0, 1, 0, 0, 0, 0x4f, 0, 0xc2, 0, 0xb0, 0,
        ];
        assert_eq!(command(PIO_DATA_IN, BLOCKS_FROM_DEVICE, READ_DATA, 1), data);
    }

    #[test]
    fn a_file_that_is_no_disk_has_no_report() {
        let file = tempfile::tempfile().expect("a temporary file");
        assert_eq!(read(&file), HealthReport::default());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(
            bytes in prop::collection::vec(any::<u8>(), DATA_BYTES),
            sense in any::<[u8; SENSE_BYTES]>(),
        ) {
            let mut data: [u8; DATA_BYTES] = bytes.try_into().expect("as many");
            parse_data(&data);
            // With a correct sum the attributes are looked at.
            let sum = data.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
            data[511] = data[511].wrapping_sub(sum);
            let report = parse_data(&data);
            prop_assert!(report.wear_percent.is_none_or(|wear| wear <= 100));
            parse_sense(&sense);
        }
    }
}
