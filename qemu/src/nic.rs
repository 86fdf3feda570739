//! A machine's network cards.

use crate::error::Result;
use crate::lan::Lan;
use crate::tools;

/// The port that every node serves.
pub const NODE_PORT: u16 = 443;

/// The model of a network card.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NicModel {
    /// The card of QEMU and KVM.
    #[default]
    Virtio,
    /// Intel's 82540EM of 2002, which VirtualBox and old hosts emulate.
    E1000,
    /// Intel's 82574L.
    E1000e,
    /// Intel's 82576. In QEMU since 8.0.
    Igb,
    /// VMware's.
    Vmxnet3,
}

impl NicModel {
    /// QEMU's device. `None` for virtio, whose device depends on the kind of machine.
    pub(crate) fn device(self) -> Option<&'static str> {
        match self {
            Self::Virtio => None,
            Self::E1000 => Some("e1000"),
            Self::E1000e => Some("e1000e"),
            Self::Igb => Some("igb"),
            Self::Vmxnet3 => Some("vmxnet3"),
        }
    }

    /// Whether the installed QEMU emulates this card.
    ///
    /// # Errors
    /// QEMU cannot be started.
    pub fn is_emulated(self) -> Result<bool> {
        self.device().map_or(Ok(true), tools::has_device)
    }
}

/// A network card, virtio's unless it is of another [model](Self::model).
#[derive(Clone, Debug)]
pub struct Nic {
    pub(crate) wire: NicBackend,
    pub(crate) model: NicModel,
    pub(crate) link_up: bool,
    pub(crate) plugged: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum NicBackend {
    Lan(Lan),
    User {
        ipv4: bool,
        ipv6: bool,
        forwards: Vec<u16>,
    },
}

impl Nic {
    /// A card on QEMU's own network: DHCP, DNS and router advertisements by QEMU. The node's port
    /// is a free port of 127.0.0.1, UDP and TCP alike.
    pub fn user() -> Self {
        Self::with(NicBackend::User {
            ipv4: true,
            ipv6: true,
            forwards: vec![NODE_PORT],
        })
    }

    /// A card on a network of the harness, whose servers a test directs.
    pub fn lan(lan: &Lan) -> Self {
        Self::with(NicBackend::Lan(lan.clone()))
    }

    /// Makes it a card of another model than virtio's. Not on microvm.
    #[must_use]
    pub fn model(mut self, model: NicModel) -> Self {
        self.model = model;
        self
    }

    /// Forwards one more port of the guest, UDP and TCP. Only on QEMU's own network.
    #[must_use]
    pub fn forward(mut self, guest_port: u16) -> Self {
        if let NicBackend::User { forwards, .. } = &mut self.wire {
            forwards.push(guest_port);
        }
        self
    }

    /// Keeps the cable out until `Vm::set_link` puts it in.
    #[must_use]
    pub fn link_down(mut self) -> Self {
        self.link_up = false;
        self
    }

    /// Keeps the card out of the machine until `Vm::plug` puts it in. Virtio on q35 only.
    #[must_use]
    pub fn unplugged(mut self) -> Self {
        self.plugged = false;
        self
    }

    /// Ports forwarded to the guest.
    pub(crate) fn forwards(&self) -> &[u16] {
        match &self.wire {
            NicBackend::Lan(_) => &[],
            NicBackend::User { forwards, .. } => forwards,
        }
    }

    /// An address of QEMU's range, numbered by card.
    pub(crate) fn mac(&self, index: usize) -> String {
        format!("52:54:00:12:34:{:02x}", 0x56 + index)
    }

    fn with(wire: NicBackend) -> Self {
        Self {
            wire,
            model: NicModel::Virtio,
            link_up: true,
            plugged: true,
        }
    }
}
