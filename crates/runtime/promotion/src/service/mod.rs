//! Promotion for one node: its decisions and the installed versions.

mod decide;
mod install;
mod show;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use alknet_call::{Dispatcher, Generation, Registration};
use alknet_core::{Capabilities, Clock, Identity, IdentityProvider};
use serde::{Deserialize, Serialize};
use tokio::task::AbortHandle;

use crate::callers::PromotedCalls;
use crate::error::PromotionError;
use crate::generation::{Invoker, VerdictSink};
use crate::limits::REVIEWS_MAX;
use crate::operations;
use crate::store::{PromotionStore, PromotionStoreError};
use crate::tally::{CrashHistory, TallyVerdict};
use crate::trial::TestRunner;

pub use decide::ReviewTerms;
pub use install::OmittedVersion;
pub use show::{ProposalQuery, ProposalRequest};

/// When a decision takes effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ActivationTime {
    /// When the node starts next; nothing changes while it runs.
    #[default]
    Boot,
    /// At the promotion, while the node runs.
    Live,
}

/// The administrator's settings for promotion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PromotionConfig {
    /// When promotions take effect.
    pub activate: ActivationTime,
    /// The number of reviewers that must agree.
    pub reviews: u32,
    /// Whether the node itself rolls back a version whose first calls fail too often.
    pub rollback_on_errors: bool,
}

impl Default for PromotionConfig {
    fn default() -> Self {
        Self {
            activate: ActivationTime::Boot,
            reviews: 1,
            rollback_on_errors: false,
        }
    }
}

/// The parts of the node that promotion needs.
#[derive(Clone)]
pub struct PromotionParts {
    /// Stores proposals and versions.
    pub store: PromotionStore,
    /// Runs tests.
    pub runner: Arc<dyn TestRunner>,
    /// Runs promoted code.
    pub invoker: Arc<dyn Invoker>,
    /// Knows the owners of keys, and their authority.
    pub identities: Arc<dyn IdentityProvider>,
    /// The time of day.
    pub clock: Arc<dyn Clock>,
    /// The capabilities of operations, by path.
    pub capabilities: BTreeMap<String, Capabilities>,
    /// The administrator's settings.
    pub config: PromotionConfig,
    /// How often rights are looked at that no change announces; usually [`RECHECK_PERIOD`].
    pub recheck: Duration,
}

/// How often the node looks at the rights of authors and reviewers when nothing announced a change: an identity that
/// ends by its date changes no table.
pub const RECHECK_PERIOD: Duration = Duration::from_secs(60);

impl fmt::Debug for PromotionParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PromotionParts")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// Promotion for one node.
pub struct Promotion {
    parts: PromotionParts,
    /// Only one decision is made at a time, so the last stored version is also the last installed one.
    deciding: tokio::sync::Mutex<()>,
    dispatcher: OnceLock<Weak<Dispatcher>>,
    active: Mutex<install::ActiveGeneration>,
    crashes: Arc<CrashHistory>,
    callers: Arc<PromotedCalls>,
    following: OnceLock<AbortHandle>,
    me: Weak<Self>,
}

impl Promotion {
    /// Makes the promotion of these parts. It installs nothing before [`attach`](Self::attach).
    ///
    /// # Errors
    /// The configuration requires no review, or more than [`REVIEWS_MAX`].
    pub fn new(parts: PromotionParts) -> Result<Arc<Self>, PromotionError> {
        if !(1..=REVIEWS_MAX).contains(&parts.config.reviews) {
            let text = format!("promotion.reviews is 1 to {REVIEWS_MAX}");
            return Err(PromotionError::Input(text));
        }
        Ok(Arc::new_cyclic(|me| Self {
            parts,
            deciding: tokio::sync::Mutex::default(),
            dispatcher: OnceLock::new(),
            active: Mutex::default(),
            crashes: Arc::default(),
            callers: Arc::default(),
            following: OnceLock::new(),
            me: Weak::clone(me),
        }))
    }

    /// The operations `ops/*`, for the registry of the dispatcher.
    #[must_use]
    pub fn operations(self: &Arc<Self>) -> Vec<Registration> {
        operations::registrations(self)
    }

    /// Installs the promoted versions, and follows changes of the authors' authority from then on. The node calls
    /// this once within the runtime, after it has made the dispatcher and before the dispatcher serves.
    ///
    /// # Errors
    /// The store cannot be read; nothing is installed.
    pub async fn attach(
        &self,
        dispatcher: &Arc<Dispatcher>,
    ) -> Result<Arc<Generation>, PromotionError> {
        let _one_at_a_time = self.deciding.lock().await;
        // A second dispatcher would serve the generation of the first.
        if self.dispatcher.set(Arc::downgrade(dispatcher)).is_err() {
            let text = "promotion is attached already".to_owned();
            return Err(PromotionError::Conflict(text));
        }
        self.keep_paths().await;
        let generation = self.install().await?;
        self.follow();
        Ok(generation)
    }

    /// The promoted versions that could not be installed, and why.
    #[must_use]
    pub fn left_out(&self) -> Vec<OmittedVersion> {
        lock(&self.active).left_out.clone()
    }

    /// Like [`PromotionStore::unemptied_log`].
    #[must_use]
    pub fn unemptied_log(&self) -> Option<String> {
        self.parts.store.unemptied_log()
    }

    fn dispatcher(&self) -> Result<Arc<Dispatcher>, PromotionError> {
        let dispatcher = self.dispatcher.get().and_then(Weak::upgrade);
        dispatcher.ok_or_else(|| PromotionError::Unavailable("the node starts or stops".to_owned()))
    }

    fn now(&self) -> Option<u64> {
        self.parts.clock.now_s()
    }

    /// Runs the work on a thread of its own, because it waits for a disk.
    async fn stored<T: Send + 'static>(
        &self,
        work: impl FnOnce(&PromotionStore) -> Result<T, PromotionStoreError> + Send + 'static,
    ) -> Result<T, PromotionError> {
        let store = self.parts.store.clone();
        let done = tokio::task::spawn_blocking(move || work(&store)).await;
        let done = done.map_err(|error| PromotionError::Unavailable(error.to_string()))?;
        Ok(done?)
    }

    /// Runs `work` to its end, even if the caller has gone: a stored decision must also be installed.
    async fn to_its_end<T: Send + 'static, F>(
        &self,
        work: impl FnOnce(Arc<Self>) -> F,
    ) -> Result<T, PromotionError>
    where
        F: Future<Output = Result<T, PromotionError>> + Send + 'static,
    {
        let me = self.me.upgrade();
        let me = me.ok_or_else(|| PromotionError::Unavailable("the node stops".to_owned()))?;
        // A task of its own goes on when the caller's future is dropped.
        let done = tokio::spawn(work(me)).await;
        done.map_err(|error| PromotionError::Unavailable(error.to_string()))?
    }

    /// The identity that the node has for the bundle's key, if it is the author that the bundle names.
    fn author(&self, content: &crate::bundle::BundleContent) -> Option<Arc<Identity>> {
        let known = self.parts.identities.by_key(&content.key);
        known.filter(|known| known.id == content.author)
    }
}

impl VerdictSink for Weak<Promotion> {
    fn take_verdict(&self, path: &str, version: u64, verdict: TallyVerdict) {
        // A node that stops has no use for the verdict.
        let Some(promotion) = self.upgrade() else {
            return;
        };
        let path = path.to_owned();
        tokio::spawn(async move { promotion.judged(&path, version, verdict).await });
    }
}

impl Drop for Promotion {
    fn drop(&mut self) {
        if let Some(following) = self.following.get() {
            following.abort();
        }
    }
}

impl fmt::Debug for Promotion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Promotion")
            .field("parts", &self.parts)
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
