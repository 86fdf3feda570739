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
        "BootMode": "uefi",
        // Both are in the kernel.
        "EnaSupport": true,
        "TpmSupport": "v2.0",
        // The node asks for credentials of the machine's role with a token, which other programs on it cannot forge.
        "ImdsSupport": "v2.0",
        "RootDeviceName": "/dev/xvda",
        "BlockDeviceMappings": [{
            "DeviceName": "/dev/xvda",
            "Ebs": { "SnapshotId": SNAPSHOT, "VolumeType": "gp3", "DeleteOnTermination": true },
        }],
    });
    format!("{parameters:#}\n")
}
