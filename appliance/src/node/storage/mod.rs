//! The care of what is stored: PID 1 checks the disks and the boot slots of its machine, and the node the files that it
//! keeps by their hash.

mod check_client;
mod stored;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use alknet_call::{CallError, HandlerKind, OperationSpec, Registration, RegistryBuilder};
use alknet_core::Metrics;
use alknet_init::control::{DiskHealthFacts, InitMessage, MachineDiagnostic, StorageFacts};
use alknet_tensor_serve::TensorStore;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::facts::SharedFacts;
use super::ops::{caller, empty_input};
use check_client::StorageCheckClient;
use stored::StoredFilesCheck;

/// Scope of callers that may have the storage checked.
const SCOPE: &str = "admin";

/// The storage of this node. Clones share it.
#[derive(Clone)]
pub(crate) struct NodeStorage(Arc<NodeStorageInner>);

struct NodeStorageInner {
    init: StorageCheckClient,
    facts: SharedFacts,
    stored: StoredFilesCheck,
}

impl NodeStorage {
    /// `to_init` is `None` on an ordinary host, and `store` if the store cannot be opened.
    pub(crate) fn new(
        to_init: Option<mpsc::Sender<InitMessage>>,
        facts: SharedFacts,
        store: Option<Arc<TensorStore>>,
    ) -> Self {
        Self(Arc::new(NodeStorageInner {
            init: StorageCheckClient::new(to_init),
            facts,
            stored: StoredFilesCheck::new(store),
        }))
    }

    /// Adds the operation to a registry.
    pub(crate) fn register(&self, builder: &mut RegistryBuilder) {
        builder.add(check(self.clone()));
    }

    /// Hands the answer of PID 1 to the request of this number.
    pub(crate) fn checked(&self, n: u64, storage: StorageFacts, problems: Vec<MachineDiagnostic>) {
        self.0.init.checked(n, (storage, problems));
    }

    /// Checks the stored files now and then, until the node ends.
    pub(crate) async fn keep_checked(self) {
        self.0.stored.keep_checked().await;
    }

    /// The problems of the stored files. PID 1 reports those of the disks and the slots.
    pub(crate) fn problems(&self) -> Vec<MachineDiagnostic> {
        self.0.stored.problem().into_iter().collect()
    }

    /// Adds what the disks say of themselves.
    pub(crate) fn collect(&self, into: &mut Metrics) {
        for disk in &self.0.facts.load().storage.disks {
            collect_disk(disk, into);
        }
    }

    async fn check_now(&self, by: &str) -> Result<Value, CallError> {
        // The files may take hours, so the answer does not wait for them.
        self.0.stored.check_now();
        let (storage, mut problems) = self.0.init.ask(by).await?;
        problems.extend(self.problems());
        Ok(json!({
            "disks": storage.disks,
            "slots": storage.slots,
            "stored": self.0.stored.shown(),
            "problems": problems,
        }))
    }
}

/// `node/check-storage`
fn check(storage: NodeStorage) -> Registration {
    let mut spec = OperationSpec::mutation(
        "node/check-storage",
        "Asks the disks for their health, reads the programs in the boot slots again, and begins to read the stored files.",
    )
    .with_input(empty_input())
    .with_output(json!({
        "type": "object",
        "required": ["disks", "slots", "stored", "problems"],
        "properties": {
            "disks": { "type": "array", "items": { "type": "object", "required": ["name", "kind", "health"] } },
            "slots": { "type": "array", "items": { "type": "object", "required": ["slot", "result"] } },
            "stored": { "type": "object", "required": ["running", "files", "bytes", "damaged"],
                "description": "The check of the stored files under way, else the last one" },
            "problems": { "type": "array", "items": { "type": "object",
                "required": ["code", "text", "hint"] } },
        }
    }))
    .with_scope(SCOPE);
    spec.default_timeout_ms = Some(check_client::ANSWER_TIMEOUT_MS);
    let handler = HandlerKind::once(move |_input, ctx: alknet_call::Ctx| {
        let storage = storage.clone();
        async move { storage.check_now(&caller(&ctx)).await }
    });
    Registration::new(spec, handler)
}

/// Adds the numbers of one disk, as far as it says them.
fn collect_disk(disk: &DiskHealthFacts, into: &mut Metrics) {
    let label = [("disk", disk.name.as_str())];
    into.gauge(
        "alknet_disk_failing",
        "Whether a disk of the machine says that it fails.",
        &label,
        f64::from(!disk.failing.is_empty()),
    );
    let numbers = [
        (
            "alknet_disk_wear_percent",
            "The used part of a disk's life; it may exceed 100.",
            disk.wear_percent.map(f64::from),
        ),
        (
            "alknet_disk_spare_percent",
            "The spare capacity that a disk has left.",
            disk.spare_percent.map(f64::from),
        ),
        (
            "alknet_disk_media_errors",
            "Errors of the medium that a disk could not correct.",
            disk.media_errors.map(|count| count as f64),
        ),
        (
            "alknet_disk_power_on_hours",
            "Hours for which a disk was switched on.",
            disk.power_on_hours.map(|count| count as f64),
        ),
        (
            "alknet_disk_temperature_celsius",
            "The temperature of a disk.",
            disk.temperature_c.map(f64::from),
        ),
        (
            "alknet_disk_kernel_errors",
            "Commands to a disk that ended with an error since the machine's start.",
            disk.kernel_errors.map(|count| count as f64),
        ),
        (
            "alknet_disk_filesystem_errors",
            "Errors that the kernel recorded in the file systems of a disk.",
            disk.filesystem_errors.map(|count| count as f64),
        ),
    ];
    for (name, help, value) in numbers {
        if let Some(value) = value {
            into.gauge(name, help, &label, value);
        }
    }
}
