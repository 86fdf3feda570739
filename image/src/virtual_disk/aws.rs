//! The parameters of Amazon's `register-image`, as its command line reads them from a file.

use serde_json::json;

/// Where the identifier of the imported snapshot has to be put.
const SNAPSHOT: &str = "SNAPSHOT";

/// The parameters for a snapshot of the compressed disk.
pub(crate) fn registration(version: &str) -> String {
    let parameters = json!({
        "Name": format!("alknet-{version}"),
        "Description": "alknet appliance",
        "Architecture": "x86_64",
        "VirtualizationType": "hvm",
        // The disk also starts by a BIOS, but there is no TPM then: Amazon gives NitroTPM to machines of this mode only.
        "BootMode": "uefi",
        // The kernel has drivers for both.
        "EnaSupport": true,
        "TpmSupport": "v2.0",
        // The node asks for its document with a token only.
        "ImdsSupport": "v2.0",
        "RootDeviceName": "/dev/xvda",
        "BlockDeviceMappings": [{
            "DeviceName": "/dev/xvda",
            "Ebs": { "SnapshotId": SNAPSHOT, "VolumeType": "gp3", "DeleteOnTermination": true },
        }],
    });
    format!("{parameters:#}\n")
}
