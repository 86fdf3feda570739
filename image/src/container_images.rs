//! Images for container registries: the node as a container, and the machine as KubeVirt takes it.

use serde_json::{Value, json};

use crate::oci::{OciPackage, layout};

/// The user of the node in a container: the number that images without a shell commonly have for a user without rights.
const SERVICE_USER: u32 = 65_532;
/// The user of QEMU in KubeVirt's pods.
const QEMU_USER: u32 = 107;
/// Permissions of a file that no user writes.
const READ_ONLY: u32 = 0o444;
/// The label in which LinuxKit looks for how an image runs as a service. Its members are those of an entry of
/// `services:`, which has precedence.
const LINUXKIT_LABEL: &str = "org.mobyproject.config";
/// The folder of a machine of LinuxKit that is the volume of the node.
const LINUXKIT_STATE: &str = "/var/lib/alknet";

/// OCI layout of a container that runs `alknet serve` as a user without rights, with its state below `/data`.
pub(crate) fn service(version: &str, binary: &[u8]) -> Vec<u8> {
    layout(&OciPackage {
        reference: &format!("docker.io/alknet/alknet:{version}"),
        // A volume that is made for a folder of the image has the folder's owner.
        folders: &[("data/", 0o700), ("tmp/", 0o1777)],
        files: &[("alknet", 0o755, binary)],
        owner: SERVICE_USER,
        config: json!({
            "User": format!("{SERVICE_USER}:{SERVICE_USER}"),
            "ExposedPorts": { "443/tcp": {}, "443/udp": {} },
            // The state directory lies in the folder that this variable names.
            "Env": ["XDG_STATE_HOME=/data"],
            "Entrypoint": ["/alknet"],
            "Cmd": ["serve"],
            "Volumes": { "/data": {} },
            "WorkingDir": "/data",
            // `alknet serve` ends calls in order at this signal.
            "StopSignal": "SIGTERM",
            "Labels": {
                "org.opencontainers.image.title": "alknet",
                "org.opencontainers.image.version": version,
                LINUXKIT_LABEL: linuxkit_service().to_string(),
            },
        }),
    })
}

/// How LinuxKit runs the container. LinuxKit takes the command and the environment from the image itself, and neither
/// the user nor the volume. A container without a user would run as root, who can write to `/proc/sys` of the machine.
fn linuxkit_service() -> Value {
    json!({
        "uid": SERVICE_USER,
        "gid": SERVICE_USER,
        // Of root's rights only the one to serve port 443.
        "capabilities": ["CAP_NET_BIND_SERVICE"],
        "ambient": ["CAP_NET_BIND_SERVICE"],
        "noNewPrivileges": true,
        "readonly": true,
        "net": "host",
        "binds": [
            format!("{LINUXKIT_STATE}:/data"),
            // The name servers, which a service of the machine's network finds.
            "/etc/resolv.conf:/etc/resolv.conf",
        ],
        "runtime": { "mkdir": [LINUXKIT_STATE] },
    })
}

/// OCI layout with the disk as KubeVirt's `containerDisk` wants it: one file in `/disk/`.
pub(crate) fn container_disk(version: &str, qcow2: &[u8]) -> Vec<u8> {
    layout(&OciPackage {
        reference: &format!("docker.io/alknet/disk:{version}"),
        folders: &[("disk/", 0o555)],
        files: &[("disk/alknet.qcow2", READ_ONLY, qcow2)],
        owner: QEMU_USER,
        config: json!({}),
    })
}

/// OCI layout with kernel and initramfs for KubeVirt's `kernelBoot`.
pub(crate) fn kernel_boot(version: &str, kernel: &[u8], initrd: &[u8]) -> Vec<u8> {
    layout(&OciPackage {
        reference: &format!("docker.io/alknet/boot:{version}"),
        folders: &[("boot/", 0o555)],
        files: &[
            ("boot/bzImage", READ_ONLY, kernel),
            ("boot/initrd.cpio.lz4", READ_ONLY, initrd),
        ],
        owner: QEMU_USER,
        config: json!({}),
    })
}
