//! The forms of an image, and the role of each file in its form.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::ImageError;

/// One way to give the same kernel and the same binary to a machine.
///
/// ```
/// use alknet_image::ImageForm;
///
/// assert_eq!(ImageForm::Uki.name(), "uki");
/// assert!(ImageForm::ALL.contains(&"raw".parse()?));
/// # Ok::<(), alknet_image::ImageError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ImageForm {
    /// Kernel and initramfs for a loader that takes both: QEMU `-kernel`, a PXE server.
    Direct,
    /// Kernel, and a read-only erofs drive as root: least memory, quickest start.
    Erofs,
    /// OCI layouts that `linuxkit cache import` accepts, and the file for `linuxkit build`.
    Linuxkit,
    /// A whole disk: GPT, EFI system partition, room for data. Boots under UEFI and under a BIOS.
    Raw,
    /// A medium that boots as a CD and as a disk, under UEFI and under a BIOS, without room for
    /// data.
    Iso,
    /// One EFI executable with kernel, command line and initramfs inside.
    Uki,
    /// The disk for QEMU, libvirt, Proxmox, OpenStack and most providers.
    Qcow2,
    /// The disk for VMware and VirtualBox.
    Vmdk,
    /// A virtual machine to import into VMware or VirtualBox: description, hashes and disk.
    Ova,
    /// The disk for Azure: fixed, in whole MiB.
    Vhd,
    /// The disk for Hyper-V.
    Vhdx,
    /// The archive that Google Compute Engine imports.
    Gce,
    /// The compressed disk that Amazon imports, and the parameters to register it.
    Aws,
    /// A container that runs the node, for Docker, Podman and Kubernetes.
    Oci,
    /// The disk in a container image, for virtual machines of KubeVirt.
    Containerdisk,
    /// Kernel and initramfs in a container image, for virtual machines of KubeVirt.
    Kernelboot,
    /// Kernel, initramfs and scripts for a server from which machines start over the network.
    Pxe,
}

impl ImageForm {
    /// Every form, in the order in which they are built.
    pub const ALL: [Self; 17] = [
        Self::Direct,
        Self::Erofs,
        Self::Uki,
        Self::Raw,
        Self::Iso,
        Self::Linuxkit,
        Self::Qcow2,
        Self::Vmdk,
        Self::Ova,
        Self::Vhd,
        Self::Vhdx,
        Self::Gce,
        Self::Aws,
        Self::Oci,
        Self::Containerdisk,
        Self::Kernelboot,
        Self::Pxe,
    ];

    /// Whether the form holds the EFI program, which has its command line inside.
    #[must_use]
    pub const fn holds_efi_program(self) -> bool {
        !matches!(
            self,
            Self::Direct | Self::Erofs | Self::Linuxkit | Self::Oci | Self::Kernelboot | Self::Pxe
        )
    }

    /// Whether the form has GRUB on it, for machines with a BIOS.
    #[must_use]
    pub const fn holds_grub(self) -> bool {
        self.holds_efi_program() && !matches!(self, Self::Uki)
    }

    /// Whether the form has a disk with two boot slots, which the loader for UEFI chooses from. The
    /// medium writes such a disk when it installs itself.
    #[must_use]
    pub const fn holds_loader(self) -> bool {
        self.holds_grub()
    }

    /// The name used on command lines and in the manifest.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Erofs => "erofs",
            Self::Linuxkit => "linuxkit",
            Self::Raw => "raw",
            Self::Iso => "iso",
            Self::Uki => "uki",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Ova => "ova",
            Self::Vhd => "vhd",
            Self::Vhdx => "vhdx",
            Self::Gce => "gce",
            Self::Aws => "aws",
            Self::Oci => "oci",
            Self::Containerdisk => "containerdisk",
            Self::Kernelboot => "kernelboot",
            Self::Pxe => "pxe",
        }
    }
}

impl fmt::Display for ImageForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for ImageForm {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self, ImageError> {
        Self::ALL
            .into_iter()
            .find(|form| form.name() == text)
            .ok_or_else(|| ImageError::Argument {
                what: "form",
                value: text.to_owned(),
                why: "the forms are direct, erofs, uki, raw, iso, linuxkit, qcow2, vmdk, ova, vhd, vhdx, gce, aws, oci, containerdisk, \
                      kernelboot and pxe",
            })
    }
}

/// The role of one output file in its form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum OutputRole {
    /// The bzImage.
    Kernel,
    /// The same kernel as an ELF file with a PVH entry, for machines without firmware.
    Vmlinux,
    /// The initramfs: cpio, compressed with LZ4.
    Initrd,
    /// The erofs root drive.
    Root,
    /// The EFI executable.
    Uki,
    /// The disk, or the medium.
    Disk,
    /// The licence of GRUB, and the offer of its source code.
    Notice,
    /// OCI layout of the kernel package.
    OciKernel,
    /// OCI layout of the appliance package.
    OciAppliance,
    /// The file that `linuxkit build` reads.
    LinuxkitYml,
    /// An archive with a description of a virtual machine and its disk.
    Archive,
    /// The parameters with which a cloud registers the disk.
    Registration,
    /// OCI layout of a container image.
    OciImage,
    /// The script for iPXE.
    IpxeScript,
    /// The configuration for PXELINUX.
    PxelinuxConfig,
    /// The software bill of materials, which all forms share.
    Sbom,
    /// The disk, compressed for a download.
    PackedDisk,
    /// The map of the disk for bmaptool.
    BlockMap,
    /// The list for Raspberry Pi Imager.
    RpiImager,
    /// The signature of a file, as minisign writes it.
    Signature,
    /// The description of a virtual machine for KubeVirt, libvirt or Terraform. A form may have several.
    Example,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_parses_back() {
        for form in ImageForm::ALL {
            assert_eq!(form.to_string().parse::<ImageForm>().ok(), Some(form));
        }
    }

    #[test]
    fn an_unknown_name_is_a_bad_argument_that_lists_the_forms() {
        let error = "floppy".parse::<ImageForm>().unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("linuxkit"), "{error}");
    }
}
