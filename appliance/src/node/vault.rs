//! The vault in the node: the memory that PID 1 opened it in, the log of its events, and the two
//! operations that the network may call.
//!
//! Nothing else of the vault is an operation. Handlers get what they may do with it when they are
//! made, and none of them has the vault.

use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use alknet_call::{CallBody, CallError, Ctx, HandlerKind, OperationSpec, Registration};
use alknet_core::CapabilityKind;
use alknet_core::config::VaultSection;
use alknet_init::control::{InitMessage, VAULT_FD, VaultFacts};
use alknet_tls::NodeKey;
use alknet_vault::audit::{AuditEvent, AuditLog, AuditRecord, BootId, UnwrittenEvents};
use alknet_vault::{
    ExportReason, KeyPurpose, KeyVersion, KeyVersions, Observer, SeedArea, Vault, VaultState,
};
use anyhow::Context;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::capability_store::CapabilityStore;
use super::facts::SharedFacts;

/// Folder of the vault's log, below the state directory.
const AUDIT_DIR: &str = "audit";
/// Scope of callers that may see the state of the vault, and lock it.
const SCOPE: &str = "admin";

/// The vault of this node.
#[derive(Clone)]
pub(crate) struct NodeVault {
    vault: Vault,
    audit: Arc<AuditWriter>,
}

/// The sending end of the audit log. A thread at the other end writes the events.
struct AuditWriter {
    arriving: Mutex<Sender<AuditMessage>>,
    boot: BootId,
}

/// A message to the writer of the audit log.
enum AuditMessage {
    /// An event of this process.
    Own(AuditRecord),
    /// Events that PID 1 sent: those that parse as records, and the number of all of them.
    Handed(Vec<AuditRecord>, u64),
}

impl NodeVault {
    /// Takes over the memory that PID 1 left at [`VAULT_FD`]. Call it once. PID 1 keeps the events
    /// that it sent until the node confirms through `to_init` that they are written.
    pub(crate) fn take_over(
        state_dir: &Path,
        config: &VaultSection,
        to_init: mpsc::Sender<InitMessage>,
    ) -> anyhow::Result<Self> {
        // SAFETY: by the contract of `alknet_init::control` the descriptor is open and this process
        // alone has it when PID 1 says that there is a vault, and this function is called once.
        let fd = unsafe { OwnedFd::from_raw_fd(VAULT_FD) };
        let area = SeedArea::from_fd(fd).context("cannot take over the vault's memory")?;
        let (sender, arriving) = channel();
        let audit = Arc::new(AuditWriter {
            arriving: Mutex::new(sender),
            boot: boot_id()?,
        });
        let vault = Vault::over(area, Some(Box::new(AuditListener(Arc::clone(&audit)))));
        vault.use_versions(versions(config))?;
        let (dir, writing) = (state_dir.join(AUDIT_DIR), vault.clone());
        thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || {
                write(&dir, &writing, &arriving, |count| {
                    // If PID 1 is gone, this process is about to end, too.
                    let _ = to_init.blocking_send(InitMessage::VaultEventsWritten { count });
                });
            })
            .context("cannot start the audit log")?;
        Ok(Self { vault, audit })
    }

    /// The key by which other nodes know this node.
    pub(crate) fn identity(&self) -> anyhow::Result<NodeKey> {
        let signer = self.vault.signer(KeyPurpose::NodeIdentity)?;
        let seed = signer.expose(ExportReason::TlsConfig)?;
        Ok(NodeKey::from_seed(seed.expose()))
    }

    /// Writes the events that PID 1 sent, and confirms them. An event that does not parse is a
    /// fault of this program, and is logged.
    pub(crate) fn record(&self, records: &[String]) {
        let read = records.iter().filter_map(|text| {
            let record = AuditRecord::from_json(text.as_bytes());
            record
                .inspect_err(|error| tracing::error!(%error, "an event of the vault is lost"))
                .ok()
        });
        // The count has the unreadable ones as well: PID 1 would otherwise send them again without
        // an end.
        let handed = AuditMessage::Handed(read.collect(), records.len() as u64);
        self.audit.send(handed);
    }

    /// The vault, for modules that seal data or make capabilities. No handler has it.
    pub(crate) fn vault(&self) -> &Vault {
        &self.vault
    }

    fn is_open(&self) -> bool {
        matches!(self.vault.state(), VaultState::Unlocked { .. })
    }
}

/// The configured key versions. The configuration's own check has found them valid.
fn versions(config: &VaultSection) -> KeyVersions {
    let version = |number| KeyVersion::new(number).unwrap_or(KeyVersion::FIRST);
    KeyVersions {
        current: version(config.key_version),
        oldest: version(config.min_version),
    }
}

struct AuditListener(Arc<AuditWriter>);

impl Observer for AuditListener {
    fn happened(&self, event: &AuditEvent) {
        // PID 1 records the lock: a hard lock ends this process before it could write.
        if matches!(event, AuditEvent::Locked { .. }) {
            return;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let t_ms = now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
        let record = AuditRecord::new(t_ms, self.0.boot.clone(), event.clone());
        self.0.send(AuditMessage::Own(record));
    }
}

impl AuditWriter {
    fn send(&self, one: AuditMessage) {
        // A channel is whole after any panic. Its other end lives as long as the process, unless the thread that
        // writes has panicked.
        let sender = self.arriving.lock().unwrap_or_else(PoisonError::into_inner);
        if sender.send(one).is_err() {
            tracing::error!(
                "the vault's audit log has no writer any more: an event of the vault is lost"
            );
        }
    }
}

/// Appends events, and reports how many of PID 1's events are on the disk. While the vault is
/// locked, or the disk refuses, the events stay in memory.
fn write(dir: &Path, vault: &Vault, arriving: &Receiver<AuditMessage>, written: impl Fn(u64)) {
    let mut pending = UnwrittenEvents::default();
    let mut handed = 0;
    let mut log = None;
    while let Ok(first) = arriving.recv() {
        // All waiting events are taken, so that one write to the disk stores them together.
        for one in std::iter::once(first).chain(arriving.try_iter()) {
            match one {
                AuditMessage::Own(record) => pending.push(record),
                AuditMessage::Handed(records, count) => {
                    for record in records {
                        pending.push(record);
                    }
                    handed += count;
                }
            }
        }
        if log.is_none() {
            log = open(dir);
        }
        let Some(open) = &mut log else { continue };
        if !matches!(vault.state(), VaultState::Unlocked { .. }) {
            // The log is sealed with a key of the vault, so events wait in memory while it is
            // locked.
            continue;
        }
        if let Err(error) = pending.flush(open, vault) {
            tracing::error!(%error, kept = pending.len(), "the vault's log cannot be written");
        } else if handed > 0 {
            // Only events on the disk are confirmed: PID 1 then forgets them.
            written(std::mem::take(&mut handed));
        }
    }
}

fn open(dir: &Path) -> Option<AuditLog> {
    let opened = AuditLog::open(dir).or_else(|error| {
        tracing::error!(%error, "the vault's log is damaged; it is put aside and a new one begins");
        // The damaged log is evidence, and stays for an administrator.
        AuditLog::restart_chain(dir)
    });
    opened
        .inspect_err(|error| tracing::error!(%error, "the vault's log cannot be opened"))
        .ok()
}

fn boot_id() -> anyhow::Result<BootId> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(text.trim().parse()?)
}

/// `vault/status`
pub(crate) fn status(
    facts: SharedFacts,
    vault: Option<NodeVault>,
    capabilities: CapabilityStore,
) -> Registration {
    let text = json!({ "type": "string" });
    let spec = OperationSpec::query(
        "vault/status",
        "Returns the state of the vault, and what opens it.",
    )
    .with_input(json!({ "type": ["object", "null"], "additionalProperties": false }))
    .with_output(json!({
        "type": "object",
        "required": ["state", "sealed", "slots"],
        "properties": {
            "state": { "enum": ["absent", "locked", "unlocked"] },
            "sealed": { "type": "boolean",
                        "description": "Whether no key lies beside the vault" },
            "slots": { "type": "array", "items": text },
            "tpm2": { "type": "array", "description": "The PCRs that slots of type tpm2 are bound to",
                "items": { "type": "object", "properties": {
                    "slot": { "type": "integer", "minimum": 0 },
                    "pcrs": { "type": "array", "items": { "type": "integer" } },
                    "pin": { "type": "boolean" },
                    "protection": { "enum": ["measured and enforced", "measured, not enforced",
                        "measured without what comes from beside the image, not enforced"] },
                } } },
            "opened_by": { "type": ["string", "null"] },
            "device": { "type": "integer", "minimum": 0 },
            "key_version": { "type": ["integer", "null"] },
            "words_kept": { "type": "boolean",
                            "description": "Whether a person has confirmed that the words are written down" },
            "words_age": { "type": ["string", "null"],
                "description": "The words, encrypted to the recipients in the configuration" },
            "memory": text,
            "data_cipher": { "type": ["string", "null"] },
            "credentials": {
                "type": "array",
                "description": "Names, kinds and states of the credentials, without their secrets",
                "items": credential_schema(),
            },
        }
    }))
    .with_scope(SCOPE);
    let handler = HandlerKind::once(move |_input: CallBody, _ctx: Ctx| {
        let facts = facts.load();
        let cipher = facts.data.cipher.as_deref();
        let mut answer = answer(&facts.vault, cipher, vault.as_ref());
        answer["credentials"] = capabilities.summaries();
        std::future::ready(Ok::<_, CallError>(answer))
    });
    Registration::new(spec, handler)
}

fn credential_schema() -> Value {
    json!({
        "type": "object",
        "required": ["name", "kind", "state", "operations"],
        "properties": {
            "name": { "type": "string" },
            "kind": { "enum": CapabilityKind::ALL },
            "origin": { "enum": ["configuration", "node", "vault", null] },
            "key_version": { "type": ["integer", "null"] },
            "state": { "type": "string", "description": "'ready', or the reason why the credential is not usable" },
            "operations": { "type": "array", "items": { "type": "string" } },
        }
    })
}

fn answer(facts: &VaultFacts, cipher: Option<&str>, vault: Option<&NodeVault>) -> Value {
    let state = match vault {
        None => "absent",
        Some(vault) if vault.is_open() => "unlocked",
        Some(_) => "locked",
    };
    json!({
        "state": state,
        "sealed": facts.sealed,
        "slots": facts.slots,
        "tpm2": facts.tpm2,
        "opened_by": facts.opened_by,
        "device": facts.device,
        "key_version": vault.map(|one| one.vault.versions().current.number()),
        "words_kept": facts.words_kept,
        "words_age": facts.words_age,
        "memory": facts.memory,
        "data_cipher": cipher,
    })
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct LockInput {
    hard: bool,
}

/// `vault/lock`
pub(crate) fn lock(
    vault: NodeVault,
    to_init: mpsc::Sender<InitMessage>,
    capabilities: CapabilityStore,
) -> Registration {
    let spec = OperationSpec::mutation(
        "vault/lock",
        "Locks the vault: the node forgets the seed. Only a person at the console opens the vault again.",
    )
    .with_input(json!({
        "type": ["object", "null"],
        "additionalProperties": false,
        "properties": { "hard": { "type": "boolean", "default": false,
            "description": "Also end the node, so that its memory keeps no derived key" } }
    }))
    .with_output(json!({
        "type": "object",
        "required": ["state"],
        "properties": { "state": { "const": "locked" } }
    }))
    .with_scope(SCOPE);
    let handler = HandlerKind::once(move |input: CallBody, ctx: Ctx| {
        let (vault, to_init, capabilities) = (vault.clone(), to_init.clone(), capabilities.clone());
        async move {
            let input: LockInput = match input.try_value()? {
                Value::Null => LockInput::default(),
                _ => input.parse()?,
            };
            let by = super::ops::caller(&ctx);
            if input.hard {
                vault.vault.lock_hard();
            } else {
                vault.vault.lock();
            }
            // The capabilities are emptied at once, and not at the next tick: no operation uses a
            // credential after the answer.
            capabilities.refresh();
            let notice = InitMessage::VaultLocked {
                hard: input.hard,
                by,
            };
            let sent = to_init.send(notice).await;
            sent.map_err(|_| CallError::unavailable("PID 1 does not listen"))?;
            Ok(json!({ "state": "locked" }))
        }
    });
    Registration::new(spec, handler)
}

#[cfg(test)]
mod tests {
    use alknet_vault::audit::verify;
    use alknet_vault::{Entropy, SecretStr};

    use super::*;

    fn record(event: AuditEvent) -> AuditRecord {
        AuditRecord::new(0, "a-boot".parse().expect("plain"), event)
    }

    /// PID 1 keeps the events that it sends while the vault is locked, until they are written.
    #[test]
    fn what_was_handed_over_is_said_to_be_written_once_it_is() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let vault = Vault::locked();
        let words = Entropy::from_bytes(&[7; 32]).expect("32 bytes");
        let (sender, arriving) = channel();
        let (said, written) = channel();
        let (at, writing) = (dir.path().to_owned(), vault.clone());
        let thread = thread::spawn(move || {
            write(&at, &writing, &arriving, |count| {
                said.send(count).expect("a listener");
            });
        });
        let send = |one| sender.send(one).expect("the thread runs");
        let locked = record(AuditEvent::Locked { hard: true });
        // One of the two events did not parse.
        send(AuditMessage::Handed(vec![locked], 2));
        vault.unlock(&words, &SecretStr::empty()).expect("locked");
        send(AuditMessage::Own(record(AuditEvent::Created)));
        send(AuditMessage::Handed(Vec::new(), 1));
        let mut count = 0;
        while count < 3 {
            count += written.recv().expect("the thread runs");
        }
        assert_eq!(count, 3);
        vault.lock();
        send(AuditMessage::Handed(vec![record(AuditEvent::Rekeyed)], 1));
        drop(sender);
        thread.join().expect("it ends with the last sender");
        assert!(written.try_recv().is_err(), "it was not written");
        vault.unlock(&words, &SecretStr::empty()).expect("locked");
        assert_eq!(verify(dir.path(), &vault).expect("whole").last, 2);
    }
}
