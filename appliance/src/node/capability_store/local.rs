//! Secrets of a node without a vault. The node reads them from the folder of `alknet credential`,
//! at its start and whenever they change there.

use std::sync::Arc;

use alknet_core::config::CredentialConfig;
use alknet_core::{CapabilityBackend, CapabilityError};
use alknet_init::control::MachineDiagnostic;
use tokio::sync::watch;

use crate::credentials::{CredentialFolder, LocalCredentials};
use crate::node::config_watch::DirectoryWatch;

use super::{CapabilityStore, CredentialRefusal, StoredCredential, secret};

/// Code of the problem that a credential was not set.
const CREDENTIAL_MISSING: &str = "credential-missing";
/// Code of the problem that a credential is set and cannot be used.
const CREDENTIAL_UNUSABLE: &str = "credential-unusable";

/// Checks that a secret has the form of its kind.
///
/// # Errors
/// Why it does not. The message repeats nothing of the secret.
pub(crate) fn check_secret(config: &CredentialConfig, secret: &[u8]) -> Result<(), &'static str> {
    secret::power(config, secret).map(drop)
}

impl CapabilityStore {
    /// A receiver that changes whenever the node has read the folder again.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.0.reads.subscribe()
    }

    /// Has each use of a local secret read the folder first if it changed: a command that has set a value can rely on
    /// the next call having it, and need not wait for the watch of the folder.
    pub(super) fn refresh_before_uses(&self) {
        if self.0.folder.is_none() {
            return;
        }
        for one in self.0.held.iter().filter(|one| one.config.needs_secret()) {
            let store = Arc::downgrade(&self.0);
            one.filler.before_use(move || {
                if let Some(store) = store.upgrade() {
                    Self(store).read_change();
                }
            });
        }
    }

    /// Reads the folder if its file is another one than was read last.
    pub(super) fn read_change(&self) {
        let Some(folder) = &self.0.folder else {
            return;
        };
        if !self.0.held.is_empty() && self.seen().read != folder.version() {
            self.read_folder(folder);
        }
    }

    /// Reads the folder, and fills or empties every capability from it. If the folder cannot be
    /// read, every credential becomes empty, as it would be after a restart.
    pub(super) fn read_folder(&self, folder: &CredentialFolder) {
        if self.0.held.is_empty() {
            return;
        }
        let mut seen = self.seen();
        // Before the file is read: one that takes its place meanwhile is read by the next use.
        seen.read = folder.version();
        let mut problems = Vec::new();
        let found = folder
            .read()
            .inspect_err(|error| problems.push(unusable(error.message.clone())))
            .ok();
        for one in &self.0.held {
            match one.local_backend(found.as_ref()) {
                Ok(backend) => one.filler.fill(backend),
                Err(refused) => {
                    one.filler.empty(refused.why);
                    // A folder that cannot be read is one problem, and not a problem of each
                    // credential.
                    if found.is_some() {
                        problems.push(one.problem(&refused, folder));
                    }
                }
            }
        }
        let entries = found.iter().flat_map(LocalCredentials::entries);
        seen.local = entries.map(|(name, _)| name.to_owned()).collect();
        for problem in problems.iter().filter(|one| !seen.problems.contains(one)) {
            tracing::warn!("{}: {}; {}", problem.code, problem.text, problem.hint);
        }
        seen.problems = problems;
        drop(seen);
        self.0.reads.send_modify(|reads| *reads += 1);
    }

    /// Reads the folder again whenever something changes in it. Returns when the watch fails.
    pub(super) async fn follow_folder(self, folder: CredentialFolder) {
        let watch = folder
            .make()
            .and_then(|()| DirectoryWatch::start(&folder.file()));
        let error = match watch {
            Ok(watch) => loop {
                // The first pass reads changes that were made before the watch began.
                let (store, folder) = (self.clone(), folder.clone());
                // Reading files and opening values would hold up the other tasks of this thread.
                let read = tokio::task::spawn_blocking(move || store.read_folder(&folder));
                if read.await.is_err() {
                    tracing::error!("reading the credentials panicked");
                }
                if let Err(error) = watch.changed().await {
                    break error;
                }
            },
            Err(error) => error,
        };
        tracing::warn!(
            "changes of {} are noticed when a credential is used, and not before ({error}): an import that waits for \
             one tries again after SIGHUP",
            folder.file().display()
        );
    }
}

impl StoredCredential {
    /// Opens what a capability needs. `found` is `None` if the folder could not be read.
    fn local_backend(
        &self,
        found: Option<&LocalCredentials>,
    ) -> Result<CapabilityBackend, CredentialRefusal> {
        if !self.config.needs_secret() {
            let text = "its key comes from a vault, and this node has none";
            return Err(CredentialRefusal {
                why: CapabilityError::NoVault,
                text: text.to_owned(),
            });
        }
        let found = found.ok_or_else(|| CredentialRefusal::unusable("it cannot be read"))?;
        let Some(opened) = found.open(&self.config.name) else {
            return Err(CredentialRefusal {
                why: CapabilityError::Missing,
                text: match self.record {
                    None => "it is not set".to_owned(),
                    Some(_) => "it is not set, and its record in the configuration is sealed by a vault, which this \
                                node does not have"
                        .to_owned(),
                },
            });
        };
        let opened = opened.map_err(CredentialRefusal::unusable)?;
        secret::power(&self.config, opened.expose()).map_err(CredentialRefusal::unusable)
    }

    fn problem(&self, refused: &CredentialRefusal, folder: &CredentialFolder) -> MachineDiagnostic {
        let name = &self.config.name;
        let used = match self.uses.as_slice() {
            [] => "nothing uses it".to_owned(),
            uses => format!("{} uses it", uses.join(", ")),
        };
        let text = format!("credential {name}: {}; {used}", refused.text);
        match refused.why {
            CapabilityError::Missing => MachineDiagnostic {
                code: CREDENTIAL_MISSING.to_owned(),
                text,
                hint: set_hint(name, folder),
            },
            CapabilityError::NoVault => MachineDiagnostic {
                hint: "only an appliance has a vault: leave it out of [[credentials]]; everything else works"
                    .to_owned(),
                ..unusable(text)
            },
            _ => MachineDiagnostic {
                hint: set_hint(name, folder),
                ..unusable(text)
            },
        }
    }
}

/// The command that repairs the problem.
fn set_hint(name: &str, folder: &CredentialFolder) -> String {
    let dir = folder.state_dir().display();
    format!(
        "'alknet credential set {name} --state {dir}' takes it from standard input; the node uses it at once"
    )
}

fn unusable(text: String) -> MachineDiagnostic {
    MachineDiagnostic {
        code: CREDENTIAL_UNUSABLE.to_owned(),
        text,
        hint: "no credential of the node works until then; everything else does".to_owned(),
    }
}
