//! Installs versions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use alknet_call::{Generation, Registration};
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::timeout;

use super::decide::is_reviewer;
use super::{Promotion, lock};
use crate::bundle::{Imported, OperationCode, PromotionBundle};
use crate::error::PromotionError;
use crate::generation::{InstalledService, PromotedOperationParts, composition};
use crate::store::{
    AuthoritySnapshot, BundleFindings, OperationVersion, PromotionStore, PromotionStoreError,
    TallyCounts,
};
use crate::tally::CallTally;

/// The installed generation.
#[derive(Debug, Default)]
pub(super) struct ActiveGeneration {
    pub(super) number: u64,
    versions: Vec<LoadedVersion>,
    pub(super) left_out: Vec<OmittedVersion>,
}

/// A promoted operation that is not installed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OmittedVersion {
    /// The path of the operation.
    pub path: String,
    /// The version of the operation.
    pub version: u64,
    /// The reason why it is not installed.
    pub reason: String,
}

/// A version with all parts that are needed to run it.
#[derive(Clone, Debug)]
struct LoadedVersion {
    version: OperationVersion,
    bundle: Arc<PromotionBundle>,
    found: BundleFindings,
    code: Arc<OperationCode>,
    tally: Arc<CallTally>,
    /// The authority that it has at present.
    authority: AuthoritySnapshot,
}

impl ActiveGeneration {
    /// The installed version of an operation.
    pub(super) fn version_of(&self, path: &str) -> Option<u64> {
        let found = self.versions.iter().find(|it| it.version.path == path);
        found.map(|it| it.version.version)
    }
}

impl Promotion {
    /// Installs what the store says. The caller holds `deciding`, so that no other decision is made meanwhile.
    pub(super) async fn install(&self) -> Result<Arc<Generation>, PromotionError> {
        let dispatcher = self.dispatcher()?;
        let before = lock(&self.active).versions.clone();
        let loaded = self.stored(move |store| {
            // The counts are stored before the versions are read, because they are part of the versions.
            for known in &before {
                let OperationVersion { path, version, .. } = &known.version;
                store.tally(path, *version, known.tally.tallied())?;
            }
            let (number, heads) = store.heads()?;
            let loaded: Vec<_> = heads
                .into_iter()
                .map(|version| load(store, version, &before))
                .collect();
            Ok((number, loaded))
        });
        let (number, loaded) = loaded.await?;
        let mut active = ActiveGeneration {
            number,
            ..ActiveGeneration::default()
        };
        let mut registrations = Vec::new();
        for loaded in loaded {
            match loaded {
                Ok(mut loaded) => {
                    loaded.authority = self.authority(&loaded);
                    registrations.push(self.registration(&loaded));
                    active.versions.push(loaded);
                }
                // One version that cannot be loaded must not keep the others from being installed.
                Err(left_out) => active.left_out.push(left_out),
            }
        }
        self.parts.invoker.in_place(services(&active.versions));
        let generation = dispatcher
            .promote(number, registrations)
            .map_err(|error| PromotionError::Conflict(error.to_string()))?;
        // A promotion checks beforehand that the registry accepts it, but a newer program may use the name since
        // then.
        for LoadedVersion { version, .. } in &active.versions {
            if generation.spec(&version.path).is_none() {
                active.left_out.push(OmittedVersion {
                    path: version.path.clone(),
                    version: version.version,
                    reason: "this program has an operation of the name, or reserves it".to_owned(),
                });
            }
        }
        for out in &active.left_out {
            let (path, version, reason) = (&out.path, out.version, &out.reason);
            tracing::warn!(path, version, reason, "a promoted operation is left out");
        }
        let count = active.versions.len();
        tracing::info!(
            generation = number,
            operations = count,
            "promoted operations are in place"
        );
        *lock(&self.active) = active;
        Ok(generation)
    }

    /// Keeps the paths of operations for this node: those that were promoted once, also after a rollback, and those that
    /// a reviewer has voted for whose vote counts now, for a proposal that waits. A peer that serves such a name would
    /// get the inputs meant for the operation. The caller holds `deciding`.
    pub(super) async fn keep_paths(&self) {
        let kept = async {
            let identities = Arc::clone(&self.parts.identities);
            let paths =
                self.stored(move |store| store.paths(|vote| is_reviewer(&*identities, vote)));
            let paths = paths.await?;
            let names = paths.into_iter().map(String::into_boxed_str).collect();
            self.dispatcher()?.registry().keep_names(names);
            Ok::<_, PromotionError>(())
        };
        // The decision is stored, and its caller has to learn that.
        if let Err(error) = kept.await {
            tracing::warn!(%error, "the names that are kept for promoted operations stay as they were");
        }
    }

    /// Gives the installed versions the authority that their authors have now, and keeps the paths for which votes
    /// count now.
    async fn authorise(&self) -> Result<(), PromotionError> {
        let _one_at_a_time = self.deciding.lock().await;
        // The votes of a reviewer that was removed keep no name, and count again if it comes back.
        self.keep_paths().await;
        let dispatcher = self.dispatcher()?;
        let mut changed = false;
        let mut versions = lock(&self.active).versions.clone();
        for loaded in &mut versions {
            let now = self.authority(loaded);
            changed |= now != loaded.authority;
            loaded.authority = now;
        }
        // Promoting again would end the sessions of all services.
        if !changed {
            return Ok(());
        }
        let registrations = versions.iter().map(|it| self.registration(it)).collect();
        let mut active = lock(&self.active);
        self.parts.invoker.in_place(services(&versions));
        dispatcher
            .promote(active.number, registrations)
            .map_err(|error| PromotionError::Conflict(error.to_string()))?;
        active.versions = versions;
        Ok(())
    }

    /// Follows changes of the authors' authority, as long as the promotion exists.
    pub(super) fn follow(&self) {
        let mut changes = self.parts.identities.watch();
        let me = self.me.clone();
        let recheck = self.parts.recheck;
        let task = tokio::spawn(async move {
            while changed_or_due(&mut changes, recheck).await {
                // The task must not keep the promotion alive.
                let Some(me) = me.upgrade() else { return };
                if let Err(error) = me.authorise().await {
                    tracing::warn!(%error, "promoted operations keep the rights they had");
                }
            }
        });
        // It is called once, when the promotion is made, so the cell is empty.
        let _ = self.following.set(task.abort_handle());
    }

    /// The authority that the author had when the bundle was proposed and still has. It is empty once the bundle's
    /// key is not the author's any more.
    fn authority(&self, loaded: &LoadedVersion) -> AuthoritySnapshot {
        let author = self.author(loaded.bundle.content());
        let now = author
            .map(|now| AuthoritySnapshot::from_identity(&now))
            .unwrap_or_default();
        loaded.found.authority.and(&now)
    }

    fn registration(&self, loaded: &LoadedVersion) -> Registration {
        let making = PromotedOperationParts {
            code: Arc::clone(&loaded.code),
            terms: loaded.version.terms.clone(),
            version: loaded.version.version,
            author: loaded.bundle.content().author.to_string(),
            authority: loaded.authority.clone(),
            tally: Arc::clone(&loaded.tally),
            crashes: Arc::clone(&self.crashes),
            callers: Arc::clone(&self.callers),
            capabilities: {
                let given = self.parts.capabilities.get(&loaded.version.terms.path);
                given.cloned().unwrap_or_default()
            },
            invoker: Arc::clone(&self.parts.invoker),
            judge: Arc::new(self.me.clone()),
        };
        making.registration()
    }
}

/// The services among the versions.
fn services(versions: &[LoadedVersion]) -> BTreeMap<String, InstalledService> {
    let services = versions.iter().filter(|it| it.code.service().is_some());
    let services = services.map(|it| {
        let author = it.bundle.content().author.to_string();
        let service = InstalledService {
            code: it.code.id,
            authority: composition(&author, &it.authority),
        };
        (it.version.terms.path.clone(), service)
    });
    services.collect()
}

/// Waits for a change, at most for `recheck`. False once there are no more changes.
async fn changed_or_due(changes: &mut watch::Receiver<u64>, recheck: Duration) -> bool {
    match timeout(recheck, changes.changed()).await {
        Ok(changed) => changed.is_ok(),
        Err(_) => true,
    }
}

fn load(
    store: &PromotionStore,
    version: OperationVersion,
    before: &[LoadedVersion],
) -> Result<LoadedVersion, OmittedVersion> {
    let known = before
        .iter()
        .find(|it| (&it.version.path, it.version.version) == (&version.path, version.version));
    // A version never changes, so its loaded code is used again and its tally continues.
    if let Some(known) = known {
        return Ok(LoadedVersion {
            version,
            ..known.clone()
        });
    }
    let out = |reason: String| OmittedVersion {
        path: version.path.clone(),
        version: version.version,
        reason,
    };
    let damaged = |error: PromotionStoreError| out(error.to_string());
    let gone = || out("its bundle is gone".to_owned());
    let bundle = store
        .bundle(version.id)
        .map_err(damaged)?
        .ok_or_else(gone)?;
    // The tests say nothing about another engine, which may give the source another meaning.
    if bundle.content().engine != alknet_runtime::ENGINE {
        let reason = format!("it was tested with {}", bundle.content().engine);
        return Err(out(reason));
    }
    let proposal = store
        .proposal(version.id)
        .map_err(damaged)?
        .ok_or_else(gone)?;
    let code = code(store, &bundle, &proposal.found.imports).map_err(damaged)?;
    let code = code.map_err(|failure| out(failure.to_string()))?;
    let earlier = version.replaced.map(|it| store.version(&version.path, it));
    let earlier = earlier.transpose().map_err(damaged)?.flatten();
    let tallied = |it: &OperationVersion| TallyCounts {
        calls: it.calls,
        errors: it.errors,
    };
    let baseline = earlier.as_ref().map(tallied).unwrap_or_default();
    Ok(LoadedVersion {
        tally: Arc::new(CallTally::new(baseline, tallied(&version))),
        version,
        bundle,
        found: proposal.found,
        code: Arc::new(code),
        authority: AuthoritySnapshot::default(),
    })
}

/// The code of a bundle with the promoted code that it imports. An imported version never changes, so the result
/// never changes either. Code that the store cannot read is an error of the store; code that was never promoted is a
/// failure of the script.
pub(super) fn code(
    store: &PromotionStore,
    bundle: &PromotionBundle,
    imports: &[String],
) -> Result<Result<OperationCode, alknet_runtime::ScriptFailure>, PromotionStoreError> {
    let mut unread = None;
    let mut find = |path: &str, version: u64| -> Option<Imported> {
        let found = imported(store, path, version);
        found.unwrap_or_else(|error| {
            unread = Some(error);
            None
        })
    };
    let code = bundle.code(imports, &mut find);
    unread.map_or(Ok(code), Err)
}

fn imported(
    store: &PromotionStore,
    path: &str,
    version: u64,
) -> Result<Option<Imported>, PromotionStoreError> {
    let Some(version) = store.version(path, version)? else {
        return Ok(None);
    };
    let found = store.proposal(version.id)?.zip(store.bundle(version.id)?);
    Ok(found.map(|(proposal, bundle)| (bundle, proposal.found.imports)))
}
