//! The log page *SMART / Health Information* of an NVMe device (NVMe Base Specification 2.0, section 5.16.1.3).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;

use super::health::HealthReport;

/// Bytes of the log page.
pub(super) const LOG_BYTES: usize = 512;
/// Opcode of the admin command *Get Log Page*.
const GET_LOG_PAGE: u8 = 0x02;
/// Identifier of the log page.
const SMART_LOG: u32 = 0x02;
/// The namespace that stands for the whole controller.
const ALL_NAMESPACES: u32 = u32::MAX;
/// How long a device may take to answer, ms.
const TIMEOUT_MS: u32 = 10_000;
/// `NVME_IOCTL_ADMIN_CMD` of linux/nvme_ioctl.h: `_IOWR('N', 0x41, struct nvme_passthru_cmd)`.
const ADMIN_COMMAND: libc::c_ulong = 0xc048_4e41;
/// 0 °C in kelvin, as the log page counts.
const ZERO_CELSIUS_K: i32 = 273;

/// The bit of *Critical Warning* that says that the temperature is outside of its thresholds. It is about the air around
/// the disk: the disk takes the bit back when it is cool again.
const TEMPERATURE: u8 = 0x02;
/// The other bits of the byte, by which the disk says that it fails.
const WARNINGS: [(u8, &str); 5] = [
    (0x01, "the spare capacity is below its threshold"),
    (
        0x04,
        "the disk became unreliable because of media or internal errors",
    ),
    (0x08, "the disk takes no more writes"),
    (0x10, "the backup of the disk's volatile memory failed"),
    (
        0x20,
        "the persistent memory region of the disk takes no more writes",
    ),
];

/// `struct nvme_passthru_cmd` of the kernel.
#[repr(C)]
struct NvmeCommand {
    opcode: u8,
    flags: u8,
    reserved: u16,
    nsid: u32,
    cdw2: u32,
    cdw3: u32,
    metadata: u64,
    address: u64,
    metadata_bytes: u32,
    data_bytes: u32,
    cdw10: u32,
    cdw11: u32,
    cdw12: u32,
    cdw13: u32,
    cdw14: u32,
    cdw15: u32,
    timeout_ms: u32,
    result: u32,
}

const _: () = assert!(size_of::<NvmeCommand>() == 72);

/// Reads the log page of the controller.
pub(super) fn read_log(device: &File) -> io::Result<[u8; LOG_BYTES]> {
    let mut log = [0_u8; LOG_BYTES];
    let mut command = NvmeCommand {
        opcode: GET_LOG_PAGE,
        flags: 0,
        reserved: 0,
        nsid: ALL_NAMESPACES,
        cdw2: 0,
        cdw3: 0,
        metadata: 0,
        address: log.as_mut_ptr() as u64,
        metadata_bytes: 0,
        data_bytes: LOG_BYTES as u32,
        // The number of double words less one is in the upper half.
        cdw10: SMART_LOG | ((LOG_BYTES as u32 / 4 - 1) << 16),
        cdw11: 0,
        cdw12: 0,
        cdw13: 0,
        cdw14: 0,
        cdw15: 0,
        timeout_ms: TIMEOUT_MS,
        result: 0,
    };
    // SAFETY: the ioctl reads and writes the structure behind the pointer, and writes at most `data_bytes` bytes at
    // `address`; both outlive the call.
    let outcome = unsafe { libc::ioctl(device.as_raw_fd(), ADMIN_COMMAND, &raw mut command) };
    match Errno::result(outcome)? {
        0 => Ok(log),
        status => Err(io::Error::other(format!("NVMe status {status:#x}"))),
    }
}

/// Reads what the log page says.
pub(super) fn parse(log: &[u8; LOG_BYTES]) -> HealthReport {
    let warning = log[0];
    let mut failing: Vec<String> = WARNINGS
        .iter()
        .filter(|(bit, _)| warning & bit != 0)
        .map(|(_, what)| (*what).to_owned())
        .collect();
    let (spare, threshold, used) = (log[3], log[4], log[5]);
    if spare < threshold && warning & WARNINGS[0].0 == 0 {
        failing.push(format!(
            "{spare} % of the spare capacity are left, and the threshold is {threshold} %"
        ));
    }
    let kelvin = i32::from(u16::from_le_bytes([log[1], log[2]]));
    HealthReport {
        is_answered: true,
        failing,
        temperature_warning: warning & TEMPERATURE != 0,
        wear_percent: Some(used.into()),
        spare_percent: Some(spare),
        media_errors: Some(counter(log, 160)),
        power_on_hours: Some(counter(log, 128)),
        // Zero kelvin is of a device that does not measure.
        temperature_c: (kelvin > 0).then_some(kelvin - ZERO_CELSIUS_K),
    }
}

/// A counter of 16 bytes, little endian. One that does not fit is the largest that does.
fn counter(log: &[u8; LOG_BYTES], at: usize) -> u64 {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&log[at..at + 16]);
    u64::try_from(u128::from_le_bytes(bytes)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The log page of a disk, laid out by the figure of the specification. The values are those that
    /// `nvme smart-log` prints of an ordinary disk.
    fn healthy() -> [u8; LOG_BYTES] {
        let mut log = [0; LOG_BYTES];
        log[1..3].copy_from_slice(&311_u16.to_le_bytes());
        (log[3], log[4], log[5]) = (100, 10, 3);
        log[32..48].copy_from_slice(&12_345_678_u128.to_le_bytes());
        log[112..128].copy_from_slice(&77_u128.to_le_bytes());
        log[128..144].copy_from_slice(&9_876_u128.to_le_bytes());
        log[144..160].copy_from_slice(&21_u128.to_le_bytes());
        log[160..176].copy_from_slice(&2_u128.to_le_bytes());
        log[176..192].copy_from_slice(&40_u128.to_le_bytes());
        log
    }

    #[test]
    fn an_ordinary_log_page_is_read() {
        let report = parse(&healthy());
        let expected = HealthReport {
            is_answered: true,
            failing: Vec::new(),
            temperature_warning: false,
            wear_percent: Some(3),
            spare_percent: Some(100),
            media_errors: Some(2),
            power_on_hours: Some(9_876),
            temperature_c: Some(38),
        };
        assert_eq!(report, expected);
    }

    #[test]
    fn each_warning_names_its_fact() {
        for (bit, what) in WARNINGS {
            let mut log = healthy();
            log[0] = bit;
            let report = parse(&log);
            assert_eq!(report.failing, [what]);
            assert!(!report.temperature_warning);
        }
        let mut log = healthy();
        log[0] = 0xc0;
        assert_eq!(parse(&log).failing, [""; 0], "reserved bits");
    }

    /// A hot room is no reason to throw a disk away.
    #[test]
    fn a_disk_outside_of_its_temperature_does_not_fail() {
        let mut log = healthy();
        log[0] = TEMPERATURE;
        let report = parse(&log);
        assert!(report.temperature_warning);
        assert_eq!(report.failing, [""; 0]);
    }

    #[test]
    fn spare_capacity_counts_below_its_threshold_and_once() {
        let mut log = healthy();
        log[3] = 10;
        assert_eq!(parse(&log).failing, [""; 0]);
        log[3] = 9;
        let expected = "9 % of the spare capacity are left, and the threshold is 10 %";
        assert_eq!(parse(&log).failing, [expected]);
        log[0] = 1;
        assert_eq!(parse(&log).failing, [WARNINGS[0].1]);
    }

    #[test]
    fn a_counter_that_does_not_fit_is_the_largest_that_does() {
        let mut log = healthy();
        log[160..176].fill(0xff);
        assert_eq!(parse(&log).media_errors, Some(u64::MAX));
        log[1..3].fill(0);
        assert_eq!(parse(&log).temperature_c, None);
    }

    #[test]
    fn a_file_that_is_no_such_device_is_refused() {
        let file = tempfile::tempfile().expect("a temporary file");
        assert!(read_log(&file).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), LOG_BYTES)) {
            let log: [u8; LOG_BYTES] = bytes.try_into().expect("as many");
            let report = parse(&log);
            prop_assert!(report.is_answered && report.failing.len() <= WARNINGS.len());
        }
    }
}
