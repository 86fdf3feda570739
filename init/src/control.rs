//! What PID 1 and the node tell each other.
//!
//! The node is a child of PID 1, made by re-executing the one binary. A stream socket pair
//! connects them; the node finds its end at [`NODE_FD`]. Each message is one line of JSON. Lines
//! are at most [`LINE_BYTES_MAX`] long; a longer or malformed line ends the node, which PID 1 then
//! restarts.

use std::collections::BTreeMap;
use std::net::IpAddr;

use alknet_core::EncryptedData;
use alknet_core::config::NodeConfig;
use serde::{Deserialize, Serialize};

/// File descriptor of the node's end of the socket pair.
pub const NODE_FD: i32 = 3;

/// File descriptor of the vault's memory, where there is one.
pub const VAULT_FD: i32 = 4;

/// Longest line on the control channel.
pub const LINE_BYTES_MAX: usize = 1 << 20;

/// Control group in which the node may make others, for its workers. Not there where the kernel has
/// no control groups.
pub const WORKERS_CGROUP: &str = "/sys/fs/cgroup/alknet/workers";

/// From PID 1 to the node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case")]
pub enum NodeMessage {
    /// Answer to [`InitMessage::KeepConfig`] of the same number: kept, or why not.
    ConfigKept { n: u64, error: Option<String> },
    /// Drain: finish what runs, refuse what is new, exit within `deadline_ms`.
    Drain {
        deadline_ms: u64,
        reason: String,
        /// The vault was locked: the node gives its clients that reason.
        locked: bool,
    },
    /// The machine changed: addresses, clock, disk, problems. Sent whole on every change.
    Facts { facts: Box<MachineFacts> },
    /// Are you well? Answer with the same number.
    Health { n: u64 },
    /// A log record of PID 1, or one kept from before the node's (re)start.
    Log { record: LogRecord },
    /// First message: everything the node needs to serve.
    Start {
        config: Box<NodeConfig>,
        state_dir: String,
        facts: Box<MachineFacts>,
        /// The vault's memory is at [`VAULT_FD`]; else the key is a file of the node's.
        vault: bool,
        /// Credentials that are kept for it, sealed, by their names.
        #[serde(default)]
        records: BTreeMap<String, EncryptedData>,
    },
    /// What happened to the vault, to be written to its log: records as the vault writes them. Said
    /// while the vault is open, and again to the next node unless [`InitMessage::VaultEventsWritten`] comes.
    VaultEvents { records: Vec<String> },
}

/// From the node to PID 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case")]
pub enum InitMessage {
    /// Answer to [`NodeMessage::Health`].
    Health { n: u64, ok: bool, detail: String },
    /// The node took this document: keep it for the next start. PID 1 alone writes the
    /// configuration, and checks it again.
    KeepConfig { n: u64, document: String },
    /// An administrator wants the machine off or rebooted.
    Power { action: PowerAction, by: String },
    /// The one port is served.
    Ready { status: NodeStatus },
    /// Served protocols, identity or enrolment changed.
    Status { status: NodeStatus },
    /// So many more of the records of [`NodeMessage::VaultEvents`], in their order, are in the log.
    VaultEventsWritten { count: u64 },
    /// The node locked the vault, for an administrator; hard: it ends, to forget what it derived.
    VaultLocked { hard: bool, by: String },
    /// Fault injection, accepted only when the hypervisor switched it on: PID 1 misbehaves.
    Fault { kind: String },
}

/// What an administrator asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PowerAction {
    /// Switches the machine off.
    Poweroff,
    /// Off and on again.
    Reboot,
}

/// What the console shows about the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// `ed25519:<64 hex>`.
    pub identity: String,
    /// What the enrolment QR code holds.
    pub enrolment_uri: String,
    /// The port served.
    pub port: u16,
    /// Protocols served, by ALPN.
    pub alpns: Vec<String>,
    /// Administrators configured.
    pub admins: u32,
    /// What is wrong that the node alone knows of: certificates, a refused document, its store.
    #[serde(default)]
    pub problems: Vec<MachineDiagnostic>,
}

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRecord {
    /// Milliseconds since the kernel started.
    pub boot_ms: u64,
    /// RFC 3339, UTC; absent while the clock is not sane.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// `error`, `warn`, `info`, `debug`.
    pub level: String,
    /// Which part speaks: `init`, `net`, `node`, a protocol.
    pub target: String,
    /// What happened.
    pub message: String,
}

/// What PID 1 knows about the machine. On an ordinary host the node fills in what it can.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MachineFacts {
    /// Host name.
    pub hostname: String,
    /// Milliseconds after kernel start at which each stage of the boot was reached, in order.
    pub boot_stages: Vec<BootStage>,
    /// Where state lives and how well.
    pub data: DataState,
    /// The vault, as far as every caller may know.
    pub vault: VaultFacts,
    /// Network cards.
    pub links: Vec<LinkFacts>,
    /// Name servers in use.
    pub dns: Vec<IpAddr>,
    /// Clock: `unset`, `build-time`, `rtc`, `sntp`.
    pub clock: String,
    /// Where the configuration came from, or `default`.
    pub config_source: String,
    /// Everything that is wrong, most important first.
    pub problems: Vec<MachineDiagnostic>,
    /// How often the node was restarted since boot.
    pub node_restarts: u32,
    /// How the previous node ended: signal or status, and its last lines.
    pub last_words: Option<String>,
    /// Kind of watchdog that guards PID 1, if any.
    pub watchdog: Option<String>,
    /// The hypervisor switched fault injection on.
    pub fault_injection: bool,
}

/// One stage of the boot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootStage {
    /// `init`, `mounts`, `config`, `data`, `network`, `node-start`, `ready`.
    pub name: String,
    /// Milliseconds since the kernel started.
    pub at_ms: u64,
}

/// State of the data partition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DataState {
    /// `mounted`, `read-only`, `volatile`, `host`, `locked`.
    pub mode: String,
    /// Block device, or directory on an ordinary host.
    pub device: Option<String>,
    /// How it is encrypted, `aes-xts-plain64`; absent where it is not.
    pub cipher: Option<String>,
    /// Size of the file system.
    pub total_bytes: u64,
    /// Free for us.
    pub free_bytes: u64,
    /// The file system was clean when it was mounted.
    pub clean: Option<bool>,
    /// Why it is not simply `mounted`.
    pub detail: Option<String>,
}

/// The vault, without anything secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VaultFacts {
    /// `absent`, `locked`, `unlocked`.
    pub state: String,
    /// Types of its slots, in their order.
    pub slots: Vec<String>,
    /// What those of type `tpm2` are bound to.
    pub tpm2: Vec<Tpm2Facts>,
    /// Nothing that lies beside it opens it; false with a slot of type `none`.
    pub sealed: bool,
    /// Type of the slot that opened it.
    pub opened_by: Option<String>,
    /// Which node of its words this is.
    pub device: u32,
    /// The user proved that the words are written down, or they came from outside.
    pub words_kept: bool,
    /// The words, encrypted to the recipients in the configuration: a file of age.
    pub words_age: Option<String>,
    /// `memfd_secret`, memory that the kernel itself does not map, or `memfd`.
    pub memory: String,
}

/// What a slot of type `tpm2` is bound to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tpm2Facts {
    /// Its number.
    pub slot: u32,
    /// The PCRs whose values open it.
    pub pcrs: Vec<u8>,
    /// The user types a PIN besides.
    pub pin: bool,
    /// `measured and enforced`: Secure Boot decides what starts. `measured, not enforced`: anything may
    /// start, and only the same opens it. `measured without what comes from beside the image, not enforced`:
    /// the TPM opens it under any command line from there.
    pub protection: String,
}

/// One network card.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LinkFacts {
    /// `eth0`.
    pub name: String,
    /// `52:54:00:12:34:56`.
    pub mac: String,
    /// Whether a carrier is there.
    pub up: bool,
    /// Addresses with prefix length.
    pub addresses: Vec<String>,
    /// Default routers.
    pub gateways: Vec<IpAddr>,
    /// `dhcp4`, `slaac`, `dhcp6`, `static`: where the addresses came from.
    pub sources: Vec<String>,
}

/// Something that is wrong, and what to do about it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineDiagnostic {
    /// Stable name, `data-missing`, `config-refused`.
    pub code: String,
    /// What is wrong.
    pub text: String,
    /// What to do.
    pub hint: String,
}

/// Bytes of the text of a diagnostic, and of its hint. A server that is imported can have its own text in one: all of a
/// node's diagnostics must fit into one answer and into one line of the control channel ([`LINE_BYTES_MAX`]).
pub const DIAGNOSTIC_BYTES_MAX: usize = 2 << 10;

impl MachineDiagnostic {
    /// The same with no more than [`DIAGNOSTIC_BYTES_MAX`] bytes of text and of hint, each of which ends in `…` where it
    /// was cut.
    #[must_use]
    pub fn shortened(mut self) -> Self {
        for text in [&mut self.text, &mut self.hint] {
            if text.len() > DIAGNOSTIC_BYTES_MAX {
                text.truncate(text.floor_char_boundary(DIAGNOSTIC_BYTES_MAX - '…'.len_utf8()));
                text.push('…');
            }
        }
        self
    }
}
