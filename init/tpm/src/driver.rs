//! The kernel's driver of the TPM.
//!
//! The driver asks the TPM once, when the machine starts, and gives it up if an answer takes longer
//! than two seconds. The TPM of a virtual machine on a busy host may take longer. A machine that
//! has a TPM must not be taken for one without, so this code asks the firmware which it is, and
//! makes the driver begin again.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

/// Path of the firmware's table of its TPM 2.0, in `/sys` (TCG ACPI Specification, 7.3).
const TABLE: &str = "firmware/acpi/tables/TPM2";

/// The first TPM that the kernel has.
const DEVICE: &str = "class/tpm/tpm0";

/// The name of all TPMs 2.0 in ACPI's tables (TCG ACPI Specification, 8.1), and the buses on which
/// their drivers look.
const NAME: &[u8] = b"MSFT0101";
const BUSES: [&str; 2] = ["acpi", "platform"];

/// Whether the machine has a TPM 2.0, as the firmware says, or the kernel did before it gave the
/// TPM up. If the kernel then shares none, the TPM did not answer in time. `sys` is `/sys`.
pub(crate) fn has_one(sys: &Path) -> bool {
    let version = fs::read_to_string(sys.join(DEVICE).join("tpm_version_major"));
    sys.join(TABLE).exists() || version.is_ok_and(|version| version.trim() == "2")
}

/// Makes the driver ask the TPM again. This takes as long as the driver waits, a few seconds. The
/// device shows the result.
pub(crate) fn ask_again(sys: &Path) {
    // A device whose commands the driver does not know is not shared, and stays until it is
    // unbound.
    if let Ok(device) = fs::canonicalize(sys.join(DEVICE).join("device"))
        && let Some(name) = device.file_name()
    {
        tell(&device.join("driver/unbind"), name);
    }
    for bus in BUSES.map(|bus| sys.join("bus").join(bus)) {
        let devices = fs::read_dir(bus.join("devices")).into_iter().flatten();
        for device in devices.flatten() {
            let name = device.file_name();
            // The kernel appends a number to the name, such as `:00`.
            if name.as_encoded_bytes().starts_with(NAME) {
                tell(&bus.join("drivers_probe"), &name);
            }
        }
    }
}

/// Writes a device's name into a file of the kernel. The kernel refuses if the device has no
/// driver, or has one already, and the TPM shows the result.
fn tell(file: &Path, name: &OsStr) {
    let _ = fs::write(file, name.as_encoded_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(sys: &Path, file: &str, text: &str) {
        let file = sys.join(file);
        fs::create_dir_all(file.parent().expect("a folder")).expect("room");
        fs::write(file, text).expect("room");
    }

    #[test]
    fn firmware_or_the_kernel_say_that_there_is_one() {
        let sys = tempfile::tempdir().expect("a temporary directory");
        let sys = sys.path();
        assert!(!has_one(sys));
        put(sys, &format!("{DEVICE}/tpm_version_major"), "1\n");
        assert!(!has_one(sys));
        put(sys, &format!("{DEVICE}/tpm_version_major"), "2\n");
        assert!(has_one(sys));
        fs::remove_dir_all(sys.join("class")).expect("it is ours");
        assert!(!has_one(sys));
        put(sys, TABLE, "TPM2");
        assert!(has_one(sys));
    }

    #[test]
    fn its_driver_lets_go_of_it_and_looks_again() {
        let sys = tempfile::tempdir().expect("a temporary directory");
        let sys = sys.path();
        for file in [
            "bus/acpi/devices/MSFT0101:00/driver/unbind",
            "bus/acpi/devices/PNP0C0F:00/driver/unbind",
            "bus/acpi/drivers_probe",
            "bus/platform/devices/MSFT0101:00/driver/unbind",
            "bus/platform/drivers_probe",
        ] {
            put(sys, file, "");
        }
        let read = |file: &str| fs::read_to_string(sys.join(file)).expect("it is ours");
        ask_again(sys);
        for bus in BUSES {
            assert_eq!(read(&format!("bus/{bus}/drivers_probe")), "MSFT0101:00");
        }
        // No driver has it as a TPM.
        assert_eq!(read("bus/acpi/devices/MSFT0101:00/driver/unbind"), "");
        fs::create_dir_all(sys.join(DEVICE)).expect("room");
        let device = sys.join("bus/acpi/devices/MSFT0101:00");
        std::os::unix::fs::symlink(device, sys.join(DEVICE).join("device")).expect("room");
        ask_again(sys);
        assert_eq!(
            read("bus/acpi/devices/MSFT0101:00/driver/unbind"),
            "MSFT0101:00"
        );
        assert_eq!(read("bus/acpi/devices/PNP0C0F:00/driver/unbind"), "");
    }
}
