//! How a machine, or another program, starts each file of each form.

use crate::form::{ImageForm, OutputRole};

/// One way to start a file. The manifest lists all of them for each file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum StartMethod {
    /// A BIOS starts the first sector of the disk, which loads GRUB; or the boot record of the CD.
    Bios,
    /// A container runtime runs the image's command.
    Container,
    /// iPXE runs the script, which loads kernel and initramfs.
    Ipxe,
    /// A loader takes the kernel and the files beside it by the Linux boot protocol.
    Linux,
    /// `linuxkit build` makes a machine of it.
    Linuxkit,
    /// A hypervisor starts the kernel at its PVH entry, without firmware.
    Pvh,
    /// PXELINUX reads the file, and loads kernel and initramfs.
    Pxelinux,
    /// UEFI firmware starts the EFI program, or the one on the disk.
    Uefi,
}

impl StartMethod {
    /// The ways to start a file with this role in this form, in the order of their names. Empty for a file that only
    /// describes others.
    #[must_use]
    pub const fn methods(form: ImageForm, role: OutputRole) -> &'static [Self] {
        const DISK: &[StartMethod] = &[StartMethod::Bios, StartMethod::Uefi];
        const KERNEL: &[StartMethod] = &[StartMethod::Linux, StartMethod::Pvh];
        const LOADED: &[StartMethod] = &[StartMethod::Linux];
        match (role, form) {
            (OutputRole::Archive | OutputRole::Disk | OutputRole::PackedDisk, _)
            | (OutputRole::OciImage, ImageForm::Containerdisk) => DISK,
            (OutputRole::Initrd, ImageForm::Direct) | (OutputRole::Root, _) => KERNEL,
            (OutputRole::Kernel | OutputRole::Initrd, _)
            | (OutputRole::OciImage, ImageForm::Kernelboot) => LOADED,
            (OutputRole::Vmlinux, _) => &[Self::Pvh],
            (OutputRole::Uki, _) => &[Self::Uefi],
            (OutputRole::OciImage, _) => &[Self::Container],
            (OutputRole::OciKernel | OutputRole::OciAppliance | OutputRole::LinuxkitYml, _) => {
                &[Self::Linuxkit]
            }
            (OutputRole::IpxeScript, _) => &[Self::Ipxe],
            (OutputRole::PxelinuxConfig, _) => &[Self::Pxelinux],
            (
                OutputRole::Notice
                | OutputRole::Registration
                | OutputRole::Sbom
                | OutputRole::BlockMap
                | OutputRole::RpiImager
                | OutputRole::Signature
                | OutputRole::Example,
                _,
            ) => &[],
        }
    }

    /// The name that the manifest has.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bios => "bios",
            Self::Container => "container",
            Self::Ipxe => "ipxe",
            Self::Linux => "linux",
            Self::Linuxkit => "linuxkit",
            Self::Pvh => "pvh",
            Self::Pxelinux => "pxelinux",
            Self::Uefi => "uefi",
        }
    }

    /// The names of [`methods`](Self::methods).
    pub(crate) fn names(form: ImageForm, role: OutputRole) -> Vec<String> {
        let methods = Self::methods(form, role).iter();
        methods.map(|method| method.name().to_owned()).collect()
    }
}
