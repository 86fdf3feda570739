//! Controllers of disks, and formats of their files.

/// The controller that a disk hangs on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DiskController {
    /// A virtio disk of its own, `/dev/vda`.
    #[default]
    VirtioBlk,
    /// A disk of a virtio SCSI host, `/dev/sda`.
    VirtioScsi,
    /// A SATA disk of an AHCI host, `/dev/sda`.
    Ahci,
    /// An NVMe namespace, `/dev/nvme0n1`.
    Nvme,
    /// A removable drive on a USB 3 host, `/dev/sda`.
    UsbStorage,
}

impl DiskController {
    /// QEMU's argument for the host of disk `index`. A virtio or NVMe disk is its own.
    pub(crate) fn host(self, index: usize) -> Option<String> {
        let driver = match self {
            Self::VirtioBlk | Self::Nvme => return None,
            Self::VirtioScsi => "virtio-scsi-pci",
            Self::Ahci => "ahci",
            Self::UsbStorage => "qemu-xhci",
        };
        Some(format!("{driver},id=diskhost{index}"))
    }

    /// The beginning of QEMU's argument for disk `index` itself. `None` for virtio, whose device
    /// depends on the kind of machine.
    pub(crate) fn device(self, index: usize) -> Option<String> {
        let driver = match self {
            Self::VirtioBlk => return None,
            Self::Nvme => return Some("nvme".to_owned()),
            Self::VirtioScsi => "scsi-hd",
            Self::Ahci => "ide-hd",
            Self::UsbStorage => "usb-storage,removable=on",
        };
        Some(format!("{driver},bus=diskhost{index}.0"))
    }
}

/// The format of a disk's file, in QEMU's words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DiskFormat {
    /// The bytes of the disk.
    #[default]
    Raw,
    /// QEMU's own, also with another file behind it.
    Qcow2,
    /// VMware's.
    Vmdk,
    /// Virtual PC's, which Azure takes.
    Vhd,
    /// Hyper-V's.
    Vhdx,
}

impl DiskFormat {
    /// The name of QEMU's driver, which `qemu-img` takes as well.
    #[must_use]
    pub const fn driver(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vhd => "vpc",
            Self::Vhdx => "vhdx",
        }
    }
}
