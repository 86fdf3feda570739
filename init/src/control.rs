//! The messages between PID 1 and the node.
//!
//! The node is a child of PID 1, which re-executes the one binary. A stream socket pair connects
//! them, and the node has its end at [`NODE_FD`]. Each message is one line of JSON of at most
//! [`LINE_BYTES_MAX`] bytes. A longer or malformed line ends the node, and PID 1 restarts it.

mod refusal_code;
mod storage;

use std::collections::BTreeMap;
use std::net::IpAddr;

use alknet_core::EncryptedData;
use alknet_core::config::NodeConfig;
use alknet_update::AgreedFloor;
use serde::{Deserialize, Serialize};

use crate::stage::BootStageName;
use crate::text::cut_text;

pub use refusal_code::{RefusalCode, RefusalKind};
pub use storage::{DiskHealthFacts, SlotCheckFacts, StorageFacts};

/// File descriptor of the node's end of the socket pair.
pub const NODE_FD: i32 = 3;

/// File descriptor of the vault's memory, if the machine has a vault.
pub const VAULT_FD: i32 = 4;

/// File descriptor of the node's end of the stream on which it sends update bundles to PID 1, in frames
/// ([`UpdateRequest::Stage`]).
pub const UPDATE_FD: i32 = 5;

/// Most bytes of a frame on [`UPDATE_FD`].
pub const UPDATE_FRAME_BYTES_MAX: u32 = 64 << 10;

/// The length of the frame on [`UPDATE_FD`] by which the node gives a bundle up.
pub const UPDATE_FRAME_ABORT: u32 = u32::MAX;

/// Maximum length of a line on the control channel, in bytes.
pub const LINE_BYTES_MAX: usize = 1 << 20;

/// Control group in which the node may make groups for its workers. It does not exist if the kernel
/// has no control groups.
pub const WORKERS_CGROUP: &str = "/sys/fs/cgroup/alknet/workers";

/// Code of the problem that memory ran short, of a node or in the boot note of a trial.
pub const MEMORY_SHORT: &str = "memory-short";

/// What a rollback without a version to return to is refused with. The command line refuses it with the same text.
pub const NO_PREVIOUS: &str = "there is no earlier version to return to; stage an older version, which an administrator has to name";

/// The stages of a boot, in their order, as [`BootStage::name`] has them.
pub const BOOT_STAGES: [&str; 7] = BootStageName::NAMES;

/// From PID 1 to the node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case")]
pub enum NodeMessage {
    /// While the version that runs is on trial: the node calls itself over each carriage, unless it does so already,
    /// and sends the result as [`InitMessage::CalledItself`].
    CallItself,
    /// Answer to the [`InitMessage::KeepConfig`] of the same number: an error says why it was not
    /// stored.
    ConfigKept { n: u64, error: Option<String> },
    /// Drain: the node finishes running calls, refuses new ones, and exits within `deadline_ms`.
    Drain {
        deadline_ms: u64,
        reason: String,
        /// Whether the vault was locked. The node gives its clients that reason.
        locked: bool,
    },
    /// The machine changed: addresses, clock, disk, problems. Every message has all facts.
    Facts { facts: Box<MachineFacts> },
    /// A health question. The node answers with the same number.
    Health { n: u64 },
    /// A log record of PID 1, or one from before the node's start.
    Log { record: LogRecord },
    /// The first message, with everything that the node needs to serve.
    Start {
        config: Box<NodeConfig>,
        state_dir: String,
        facts: Box<MachineFacts>,
        /// Whether the vault's memory is at [`VAULT_FD`]. Otherwise the node's key is in a file.
        vault: bool,
        /// Credentials that PID 1 keeps for the node, sealed, by their names.
        #[serde(default)]
        records: BTreeMap<String, EncryptedData>,
        /// Whether the version that runs is on trial, or may be: the disk with its boot slot is not known. The node then
        /// migrates no stored data: the version before has to read them if the trial fails.
        #[serde(default)]
        trial: bool,
    },
    /// Answer to the [`InitMessage::CheckStorage`] of the same number, once the check is done.
    StorageChecked {
        n: u64,
        storage: Box<StorageFacts>,
        /// The problems of the machine's storage.
        problems: Vec<MachineDiagnostic>,
    },
    /// Answer to the [`InitMessage::Update`] of the same number.
    UpdateAnswer { n: u64, answer: UpdateAnswer },
    /// Events of the vault for its log, in the vault's own form. PID 1 sends them while the vault
    /// is open, and sends them to the next node again unless [`InitMessage::VaultEventsWritten`]
    /// arrives.
    VaultEvents { records: Vec<String> },
}

/// From the node to PID 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case")]
pub enum InitMessage {
    /// Answer to [`NodeMessage::CallItself`].
    CalledItself { result: SelfCallResult },
    /// Checks the boot slots and the disks now. PID 1 answers with [`NodeMessage::StorageChecked`].
    CheckStorage {
        n: u64,
        /// The peer that asks, for the log.
        by: String,
    },
    /// Gives up the bundle of the [`UpdateRequest::Stage`] of this number. It comes beside [`UPDATE_FD`], because PID 1 may
    /// read no frame for minutes while it applies a delta. PID 1 answers that request, and the node still ends its frames.
    GiveUpBundle { n: u64 },
    /// Answer to [`NodeMessage::Health`].
    Health { n: u64, ok: bool, detail: String },
    /// The node applied this document and asks PID 1 to store it for the next start. Only PID 1
    /// writes the configuration, and it checks the document again.
    KeepConfig { n: u64, document: String },
    /// An administrator wants the machine switched off or rebooted.
    Power { action: PowerAction, by: String },
    /// The node serves its port.
    Ready { status: NodeStatus },
    /// The protocols, the identity or the enrolment URI changed.
    Status { status: NodeStatus },
    /// A request about updates. PID 1 answers it with [`NodeMessage::UpdateAnswer`].
    Update {
        n: u64,
        request: UpdateRequest,
        /// The peer that asks, for the log.
        by: String,
    },
    /// The log has this many more records of [`NodeMessage::VaultEvents`], in their order.
    VaultEventsWritten { count: u64 },
    /// The node locked the vault for an administrator. A hard lock ends the node, so that it
    /// forgets derived keys.
    VaultLocked { hard: bool, by: String },
    /// Fault injection, which PID 1 accepts only if the hypervisor switched it on: PID 1
    /// misbehaves.
    Fault { kind: String },
}

/// How a call of the node to its own port ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum SelfCallResult {
    /// The node answered, over each carriage at each of its addresses.
    Answered,
    /// The port, the handshake or the operation failed. No client can cause this.
    Failed { reason: String },
    /// There was no answer in time, or the node was too busy to give one. Clients can cause this.
    Unanswered { reason: String },
}

/// What the node asks of PID 1 about updates. PID 1 verifies everything itself: the node only carries bytes and requests of
/// administrators.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum UpdateRequest {
    /// Reads an update bundle of `bytes` bytes from [`UPDATE_FD`], verifies it, and writes its program to the boot slot
    /// that does not run.
    ///
    /// The bundle is a row of frames, each with its length before it as four bytes, big endian. A length of zero ends the
    /// bundle, and [`UPDATE_FRAME_ABORT`] gives it up. PID 1 reads to one of these also after it has refused the bundle.
    Stage {
        bytes: u64,
        /// The one older version that an administrator permits.
        downgrade: Option<String>,
        /// Verifies and plans, and changes nothing on the disk.
        dry_run: bool,
        /// No administrator asks for this version, but the machine itself or a hub: one that an administrator left, or
        /// that failed, is refused.
        #[serde(default)]
        unasked: bool,
        /// The bundle comes from another channel than that of the configuration, or from a caller that may not start
        /// versions: its documents are judged by those that the machine has seen, and do not count as seen themselves.
        #[serde(default)]
        other_source: bool,
        /// The caller may send versions, and not start them: the machine and hubs may replace what it stages.
        #[serde(default)]
        limited: bool,
    },
    /// Puts the staged version on trial and restarts the machine.
    Apply {
        /// SHA-256 of the program that has to be staged, in hex. `None`: whatever is staged.
        #[serde(default)]
        sha256: Option<String>,
        /// The floor to which the caller has agreed: PID 1 refuses a version that raises it further. `None`: any floor.
        #[serde(default)]
        agreed_floor: Option<AgreedFloor>,
        /// The caller is no administrator, and starts only so many versions in an hour.
        #[serde(default)]
        limited: bool,
        /// No administrator asks for this start, but the machine itself or a hub: a start that needs a person is refused.
        #[serde(default)]
        unasked: bool,
    },
    /// Makes the version on trial the good one without waiting for the health gate.
    Confirm,
    /// Puts the version before the last update on trial and restarts the machine, takes back a version that was not
    /// started yet, or gives up the trial.
    Rollback {
        /// As in [`Apply`](Self::Apply).
        #[serde(default)]
        limited: bool,
    },
    /// Reads the newest records of what updates did.
    Log,
    /// Adds to this log that a start, which a caller had planned, does not happen, because its program is not staged any
    /// more: the node alone knows of planned starts.
    Unscheduled {
        /// The version that was to start.
        version: String,
        /// When it was to start, who planned that, and what ended the plan.
        reason: String,
    },
}

/// The answer of PID 1 to an [`UpdateRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum UpdateAnswer {
    /// Done; or the machine restarts now.
    Done,
    /// The version was staged, or with `dry_run` could be.
    Planned { plan: UpdatePlan },
    /// The records, the oldest first.
    Log { records: Vec<UpdateRecord> },
    /// Nothing was changed.
    Refused {
        /// Stable name, such as `signature` or `below-floor`, from docs/update.md.
        code: String,
        /// What was wrong, and what to do.
        text: String,
    },
}

/// What an update does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UpdatePlan {
    /// The version that runs.
    pub from: String,
    /// The version of the bundle.
    pub to: String,
    /// `upgrade`, `same` or `downgrade`.
    pub step: String,
    /// Bytes of the program.
    pub bytes: u64,
    /// Bytes of the delta in the bundle that makes the program from the one that runs.
    pub delta_bytes: Option<u64>,
    /// SHA-256 of the program, in hex.
    pub sha256: String,
    /// What the release says about its changes.
    pub changes: String,
    /// The floor after the confirmation, if the release raises it.
    pub floor: Option<String>,
    /// The same by the documents of this bundle alone. `floor` is higher if the machine has noted a higher floor of the
    /// same program before.
    pub bundle_floor: Option<String>,
    /// What a person has to do at the next start: `pin`, `passphrase` or `medium`. `None` if the vault opens by itself.
    pub needs_person: Option<String>,
    /// Whether the machine knew the time when it verified the bundle.
    pub time_known: bool,
}

/// One event of updates.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UpdateRecord {
    /// RFC 3339, UTC. `None` while the clock is not set.
    pub time: Option<String>,
    /// `staged`, `noted`, `refused`, `applied`, `confirmed`, `failed`, `rolled-back`, `unscheduled`.
    pub event: String,
    /// The version that it is about.
    pub version: String,
    /// Who asked, or `the machine`.
    pub by: String,
    /// The reason of a refusal, of a failure, or why a planned start does not happen; of `noted`, the floor after the
    /// confirmation; else empty.
    pub reason: String,
    /// Of `staged` and `noted`: the caller may not start versions. The machine and hubs may replace a version whose last
    /// record `staged` says so.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub limited: bool,
}

/// The power state that an administrator asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PowerAction {
    /// Switches the machine off.
    Poweroff,
    /// Restarts the machine.
    Reboot,
}

/// What the console shows about the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// `ed25519:<64 hex>`.
    pub identity: String,
    /// Content of the enrolment QR code.
    pub enrolment_uri: String,
    /// The port served.
    pub port: u16,
    /// Protocols of the port, by ALPN.
    pub alpns: Vec<String>,
    /// Number of configured administrators.
    pub admins: u32,
    /// Problems that only the node knows: certificates, a refused document, its store.
    #[serde(default)]
    pub problems: Vec<MachineDiagnostic>,
}

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRecord {
    /// Milliseconds since the kernel started.
    pub boot_ms: u64,
    /// RFC 3339, UTC. `None` while the clock is not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// `error`, `warn`, `info`, `debug`.
    pub level: String,
    /// The part that wrote it: `init`, `net`, `node`, a protocol.
    pub target: String,
    /// What happened.
    pub message: String,
}

/// What PID 1 knows about the machine. On an ordinary host, the node fills in what it can.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MachineFacts {
    /// Host name.
    pub hostname: String,
    /// Milliseconds after kernel start at which each stage of the boot was reached, in order.
    pub boot_stages: Vec<BootStage>,
    /// Where the state is stored, and its condition.
    pub data: DataState,
    /// The vault, without anything secret.
    pub vault: VaultFacts,
    /// Network cards.
    pub links: Vec<LinkFacts>,
    /// Name servers in use.
    pub dns: Vec<IpAddr>,
    /// Clock: `unset`, `build-time`, `rtc`, `sntp`.
    pub clock: String,
    /// Source of the configuration, or `default`.
    pub config_source: String,
    /// All problems, the most important first.
    pub problems: Vec<MachineDiagnostic>,
    /// Number of restarts of the node since boot.
    pub node_restarts: u32,
    /// How the previous node ended: a signal or a status, and its last lines.
    pub last_words: Option<String>,
    /// Kind of the watchdog that guards PID 1, if there is one.
    pub watchdog: Option<String>,
    /// Whether the hypervisor switched fault injection on.
    pub fault_injection: bool,
    /// The boot slots, and the update under way.
    pub update: UpdateFacts,
    /// The health of the disks and of what lies on them.
    pub storage: StorageFacts,
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
    /// Block device, or folder on an ordinary host.
    pub device: Option<String>,
    /// Cipher of the data, such as `aes-xts-plain64`. `None` if they are not encrypted.
    pub cipher: Option<String>,
    /// Size of the file system.
    pub total_bytes: u64,
    /// Free space for the node.
    pub free_bytes: u64,
    /// Whether the file system was clean when it was mounted.
    pub clean: Option<bool>,
    /// Why the mode is not `mounted`.
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
    /// The bindings of the slots of type `tpm2`.
    pub tpm2: Vec<Tpm2Facts>,
    /// Whether no key lies beside the vault. `false` with a slot of type `none`.
    pub sealed: bool,
    /// Type of the slot that opened it.
    pub opened_by: Option<String>,
    /// Number of this node among the nodes with the same words.
    pub device: u32,
    /// Whether the user proved that the words are written down, or the words came from outside.
    pub words_kept: bool,
    /// The words, encrypted to the recipients in the configuration: an age file.
    pub words_age: Option<String>,
    /// `memfd_secret`, which is memory that the kernel itself does not map, or `memfd`.
    pub memory: String,
}

/// The binding of a slot of type `tpm2`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tpm2Facts {
    /// Number of the slot.
    pub slot: u32,
    /// The PCRs whose values open the slot.
    pub pcrs: Vec<u8>,
    /// Whether the user types a PIN as well.
    pub pin: bool,
    /// `measured and enforced`: Secure Boot decides which programs start. `measured, not enforced`:
    /// any program may start, and only the same programs open the slot. `measured without what
    /// comes from beside the image, not enforced`: the TPM opens the slot under any command line
    /// from beside the image.
    pub protection: String,
}

/// The boot slots of the machine, and the update under way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UpdateFacts {
    /// `idle`, `staged`, `pending`, `trial`, `good`, `failed`: the state of the slot that is not the good one. `absent`
    /// on a machine without boot slots, `unreadable` if the disk does not say.
    pub state: String,
    /// Whether a slot may have changed since PID 1 read it for the state and for what it says of that slot.
    pub outdated: bool,
    /// Why the state is `absent` or `unreadable`.
    pub detail: Option<String>,
    /// The version that runs.
    pub version: String,
    /// The boot slot that runs: `a` or `b`.
    pub slot: Option<String>,
    /// The boot slot of the version that was confirmed last.
    pub good: Option<String>,
    /// The version in the slot that does not run.
    pub other_version: Option<String>,
    /// SHA-256 of the program that the machine verified in that slot, in hex.
    pub other_sha256: Option<String>,
    /// The floor after the confirmation of the program in that slot, if its noted release raises the floor.
    pub other_floor: Option<String>,
    /// The version that is staged, as PID 1 has written it: the program may have been damaged since, and the slot then names
    /// another version, or none. `None` in any other state, and if it is not known.
    pub staged_version: Option<String>,
    /// The caller whose bundle that was. `None` like `staged_version`.
    pub stager: Option<UpdateStager>,
    /// SHA-256 of the program that runs, in hex, as it was verified or noted: a delta starts from it.
    pub running_sha256: Option<String>,
    /// Versions that the machine does not install by itself: an administrator left them, or they failed.
    pub left: Vec<String>,
    /// How many more times a loader starts the version on trial.
    pub tries: u8,
    /// The oldest version that may run.
    pub floor: Option<String>,
    /// What else is on the boot partition. `None` where PID 1 has not read the partition.
    pub foreign_files: Option<ForeignFiles>,
    /// Whose signatures count: `owner`, `release` or `none`.
    pub keys: String,
    /// Bytes of the bundle under way that PID 1 has read, and the bytes that it was announced with.
    pub staging: Option<(u64, u64)>,
    /// Bytes of its program that PID 1 has written to the boot slot, and all that the program has. `None` until the first.
    pub writing: Option<(u64, u64)>,
    /// What the health gate still waits for while the version that runs is on trial.
    pub gate: Vec<String>,
    /// How the last update ended.
    pub last: Option<UpdateOutcome>,
}

/// The caller that staged a version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateStager {
    /// The caller, as the node names it.
    pub by: String,
    /// Whether the caller may not start versions.
    #[serde(default)]
    pub limited: bool,
}

/// Files on the boot partition that are neither the loader nor the program of a boot slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignFiles {
    /// Number of files.
    pub files: u32,
    /// Bytes of all of them.
    pub bytes: u64,
}

/// What ended a trial, as the version before judges it by the boot note.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrialCause {
    /// It was not confirmed in time.
    Gate,
    /// Its memory ran short.
    Memory,
    /// Its node ended.
    Node,
    /// It left no note that can be read.
    Note,
    /// A part of PID 1 panicked.
    Panic,
    /// PID 1 restarted or switched off the machine for another reason.
    Restart,
    /// An administrator gave it up.
    Rollback,
    /// It stopped or restarted without a word.
    Silence,
    /// Its program or its kernel did not start.
    Start,
}

impl TrialCause {
    /// The word for it in facts and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gate => "gate",
            Self::Memory => "memory",
            Self::Node => "node",
            Self::Note => "note",
            Self::Panic => "panic",
            Self::Restart => "restart",
            Self::Rollback => "rollback",
            Self::Silence => "silence",
            Self::Start => "start",
        }
    }
}

/// How an update ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UpdateOutcome {
    /// The version.
    pub version: String,
    /// `confirmed`, `failed` or `rolled-back`.
    pub outcome: String,
    /// The stage of the boot that the version reached last, as in [`BootStage`]. Empty if it reached none.
    pub stage: String,
    /// Why it failed. Empty if it did not.
    pub reason: String,
    /// The kind of the reason. `None` if it did not fail, or if only the log of updates says how it ended.
    pub cause: Option<TrialCause>,
    /// Codes of the problems that it had.
    pub problems: Vec<String>,
}

/// One network card.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LinkFacts {
    /// `eth0`.
    pub name: String,
    /// `52:54:00:12:34:56`.
    pub mac: String,
    /// Whether the card has a carrier.
    pub up: bool,
    /// Addresses with prefix length.
    pub addresses: Vec<String>,
    /// Default routers.
    pub gateways: Vec<IpAddr>,
    /// Sources of the addresses: `dhcp4`, `slaac`, `dhcp6`, `static`.
    pub sources: Vec<String>,
}

/// A problem, and what to do about it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineDiagnostic {
    /// Stable name, such as `data-missing` or `config-refused`.
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
    /// This diagnostic with no more than [`DIAGNOSTIC_BYTES_MAX`] bytes of text and of hint, each of which ends in `…`
    /// where it was cut.
    #[must_use]
    pub fn shortened(mut self) -> Self {
        for text in [&mut self.text, &mut self.hint] {
            cut_text(text, DIAGNOSTIC_BYTES_MAX);
        }
        self
    }
}
