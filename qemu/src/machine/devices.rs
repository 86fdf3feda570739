//! Arguments of QEMU for disks, cards and the watchdog.

use std::path::Path;

use super::{MachineKind, MachineResources, MachineSpec, QemuArguments, WatchdogAction, option};
use crate::controller::DiskController;
use crate::disk::{Backing, VirtioDisk};
use crate::nic::{Nic, NicBackend, NicModel};

/// The same as NoCloud's label, in FAT's letters.
const SEED_LABEL: &str = "CIDATA";
/// A layer of a disk that answers every read with `EIO`, 5.
const UNREADABLE: &str = "file.driver=blkdebug,file.inject-error.0.event=none,\
                          file.inject-error.0.iotype=read,file.inject-error.0.errno=5";

impl MachineSpec {
    /// Why this machine cannot have one of its disks or cards, if it cannot.
    pub(super) fn unfit_device(&self) -> Option<&'static str> {
        let is_virtio = |disk: &VirtioDisk| disk.controller == DiskController::VirtioBlk;
        let is_virtio_card = |nic: &Nic| nic.model == NicModel::Virtio;
        if self.kind == MachineKind::Microvm {
            let all = self.disks.iter().all(is_virtio) && self.nics.iter().all(is_virtio_card);
            return (!all)
                .then_some("microvm has no PCI, and so disks and cards of virtio only; use q35");
        }
        let mut later_disks = self.disks.iter().filter(|disk| !disk.plugged);
        let mut later_cards = self.nics.iter().filter(|nic| !nic.plugged);
        // The commands that plug a device in name virtio's.
        let all = later_disks.all(is_virtio) && later_cards.all(is_virtio_card);
        (!all).then_some("only disks and cards of virtio are plugged into a running machine")
    }

    pub(super) fn disk(&self, index: usize, disk: &VirtioDisk, args: &mut QemuArguments) {
        let format = disk.format.driver();
        let head = format!("if=none,id=disk{index},format={format},discard=unmap");
        let read_only = if disk.read_only { ",readonly=on" } else { "" };
        let drive = match &disk.backing {
            // The host's page cache survives QEMU, so syncing it gains nothing.
            Backing::File(path) => option(&format!("{head}{read_only},cache=unsafe,file="), path),
            Backing::Snapshot(path) => {
                option(&format!("{head},snapshot=on,cache=unsafe,file="), path)
            }
            // The guest's flushes must reach the recorder.
            Backing::Recorder(socket) => option(
                &format!(
                    "{head}{read_only},cache=writeback,file.driver=nbd,file.server.type=unix,file.server.path="
                ),
                socket,
            ),
            Backing::Unreadable(path) => option(
                &format!("{head}{read_only},cache=unsafe,{UNREADABLE},file.image.filename="),
                path,
            ),
        };
        args.pair("-drive", drive);
        if !disk.plugged {
            // Numbers of slots are the machine's, so they begin behind those of the cards.
            let slot = self.nics.len() + index + 1;
            args.pair(
                "-device",
                format!("pcie-root-port,id=diskslot{index},chassis={slot},slot={slot}"),
            );
            return;
        }
        if let Some(host) = disk.controller.host(index) {
            args.pair("-device", host);
        }
        let device = disk.controller.device(index);
        let device = device.unwrap_or_else(|| self.device("virtio-blk"));
        let mut device = format!("{device},drive=disk{index}");
        // QEMU makes no NVMe disk without a serial number.
        let needed = disk.controller == DiskController::Nvme;
        let serial = disk.serial.clone();
        let serial = serial.or_else(|| needed.then(|| format!("disk{index}")));
        if let Some(serial) = serial {
            device.push_str(&format!(",serial={serial}"));
        }
        // Firmware boots the first disk. A machine with a kernel of its own boots from none.
        if self.kind != MachineKind::Microvm && self.kernel.is_none() {
            let first = usize::from(self.cd.is_some());
            device.push_str(&format!(",bootindex={}", first + index));
        }
        args.pair("-device", device);
    }

    /// A FAT volume that QEMU makes from a folder.
    pub(super) fn seed(&self, folder: &Path, args: &mut QemuArguments) {
        let head =
            format!("if=none,id=seed,driver=vvfat,floppy=on,label={SEED_LABEL},read-only=on,dir=");
        args.pair("-drive", option(&head, folder));
        args.pair(
            "-device",
            format!("{},drive=seed", self.device("virtio-blk")),
        );
    }

    pub(super) fn cards(&self, layout: &MachineResources, args: &mut QemuArguments) {
        let (mut lan_fds, mut ports) = (layout.lan_fds.iter(), layout.ports.iter());
        for (index, nic) in self.nics.iter().enumerate() {
            args.pair("-netdev", netdev(index, nic, &mut lan_fds, &mut ports));
            if nic.plugged {
                args.pair("-device", self.card(index, nic));
            } else {
                let slot = index + 1;
                args.pair(
                    "-device",
                    format!("pcie-root-port,id=slot{index},chassis={slot},slot={slot}"),
                );
            }
        }
    }

    pub(super) fn card(&self, index: usize, nic: &Nic) -> String {
        // No network boot: the option ROM costs the firmware time, and QEMU may not have it.
        let rom = if self.kind == MachineKind::Microvm {
            ""
        } else {
            ",romfile="
        };
        let mac = nic.mac(index);
        let device = nic.model.device().map(str::to_owned);
        let device = device.unwrap_or_else(|| self.device("virtio-net"));
        format!("{device},id=nic{index},netdev=net{index},mac={mac}{rom}")
    }

    pub(super) fn watchdog(&self, args: &mut QemuArguments) {
        let Some(action) = self.watchdog else { return };
        args.pair("-device", "i6300esb");
        args.pair(
            "-action",
            match action {
                WatchdogAction::Poweroff => "watchdog=poweroff",
                WatchdogAction::Reset => "watchdog=reset",
            },
        );
    }

    pub(super) fn device(&self, base: &str) -> String {
        let transport = if self.kind == MachineKind::Microvm {
            "device"
        } else {
            "pci"
        };
        format!("{base}-{transport}")
    }
}

fn netdev<'a>(
    index: usize,
    nic: &Nic,
    lan_fds: &mut impl Iterator<Item = &'a i32>,
    ports: &mut impl Iterator<Item = &'a u16>,
) -> String {
    match &nic.wire {
        NicBackend::Lan(_) => {
            let fd = lan_fds.next().copied().unwrap_or(-1);
            format!("socket,id=net{index},fd={fd}")
        }
        NicBackend::User {
            ipv4,
            ipv6,
            forwards,
        } => {
            let on = |on: &bool| if *on { "on" } else { "off" };
            let mut text = format!("user,id=net{index},ipv4={},ipv6={}", on(ipv4), on(ipv6));
            for (guest, host) in forwards.iter().zip(ports) {
                for protocol in ["udp", "tcp"] {
                    text.push_str(&format!(",hostfwd={protocol}:127.0.0.1:{host}-:{guest}"));
                }
            }
            text
        }
    }
}
