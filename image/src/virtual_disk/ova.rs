//! An OVA: the description of a virtual machine (DMTF DSP0243, OVF 1.1), the hashes of its files, and its disk.

use crate::manifest::hex_sha256;
use crate::tar::Tar;

/// One processor, 512 MiB, a SATA disk, a network card, and UEFI by an extension of VMware that others ignore.
const DESCRIPTION: &str = include_str!("alknet.ovf");

/// The archive around `vmdk`, a compressed disk of `disk_bytes`.
pub(crate) fn archive(version: &str, vmdk: &[u8], disk_bytes: u64) -> Vec<u8> {
    let base = format!("alknet_{version}");
    let disk = format!("{base}.vmdk");
    let description = DESCRIPTION
        .replace("@DISK@", &disk)
        .replace("@FILE_BYTES@", &vmdk.len().to_string())
        .replace("@DISK_BYTES@", &disk_bytes.to_string())
        .replace("@VERSION@", version);
    let hashes = format!(
        "SHA256({base}.ovf)= {}\nSHA256({disk})= {}\n",
        hex_sha256(description.as_bytes()),
        hex_sha256(vmdk)
    );
    let mut tar = Tar::default();
    // The order that DSP0243 demands of a stream: description, hashes, files.
    tar.file(&format!("{base}.ovf"), 0o644, description.as_bytes());
    tar.file(&format!("{base}.mf"), 0o644, hashes.as_bytes());
    tar.file(&disk, 0o644, vmdk);
    tar.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_comes_first_with_every_field_filled() {
        let archive = archive("0.1.0", b"disk", 272 << 20);
        let text = String::from_utf8_lossy(&archive[512..]).into_owned();
        assert!(archive.starts_with(b"alknet_0.1.0.ovf\0"));
        assert!(text.contains("ovf:capacity=\"285212672\"") && text.contains("ovf:size=\"4\""));
        assert!(!text.contains('@'), "{text}");
    }
}
