//! Proposes, promotes and rejects bundles, and rolls versions back.

use std::sync::Arc;

use alknet_call::{Registry, RegistryError, is_operation_name};
use alknet_core::{Identity, IdentityProvider, PeerKey};
use alknet_runtime::ops::{ScriptTestReport, tells};
use serde_json::{Value, json};

use super::{ActivationTime, Promotion, install};
use crate::bundle::{Blake3Hash, FuelPercentiles, OperationCode, PromotionBundle};
use crate::check::{self, Finding};
use crate::error::PromotionError;
use crate::generation::PromotedOperationParts;
use crate::grants;
use crate::limits::{FINDINGS_MAX, SCOPE_BYTES_MAX, SCOPES_MAX};
use crate::operations::PROMOTE;
use crate::store::{
    AuditAct, AuthoritySnapshot, BundleFindings, NewProposal, PromotionTerms, Proposal,
    ProposalState, REPLACED, ReviewResult, ReviewVote, TallyCounts,
};
use crate::tally::{CallTally, TallyVerdict};
use crate::trial;

/// The name of the node itself in the record.
const NODE: &str = "node";

/// The terms that a reviewer agrees to. Each absent term has its default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReviewTerms {
    /// The path of the operation; the default is `js/<name>`.
    pub path: Option<String>,
    /// Whether peers may call the operation.
    pub external: bool,
    /// The scopes that peers need. The default is `call:` and the path with `:` for `/`.
    pub scopes: Option<Vec<String>>,
}

/// The result of scanning a bundle and running its tests.
struct BundleTrial {
    code: OperationCode,
    imports: Vec<String>,
    report: ScriptTestReport,
}

impl Promotion {
    /// Accepts a bundle for review, in the form that its author sends.
    ///
    /// # Errors
    /// The document is no valid bundle, the caller is not its author, its checks or its tests fail, or the store
    /// refuses it.
    pub async fn propose(&self, document: &[u8], who: &Identity) -> Result<Value, PromotionError> {
        let bundle = Arc::new(PromotionBundle::read(document)?);
        let content = bundle.content();
        // The operation will call others with the author's authority, so only the author may propose it.
        if content.author != who.id {
            let text = format!(
                "the bundle's author is '{}', and you are '{}'",
                content.author, who.id
            );
            return Err(PromotionError::Forbidden(text));
        }
        let Some(author) = self.author(content) else {
            let text = format!("{} is no key of '{}' on this node", content.key, who.id);
            return Err(PromotionError::Forbidden(text));
        };
        let judged = self.judge(&bundle).await?;
        let found = BundleFindings {
            // The caller may have proved less than the author's key, for example by a token with fewer rights.
            authority: AuthoritySnapshot::from_identity(who)
                .and(&AuthoritySnapshot::from_identity(&author)),
            imports: judged.imports,
            report: judged.report,
        };
        let grants = grants::resolve(&bundle, &found.authority, self.dispatcher()?.registry());
        let (kept, at_s, author) = (Arc::clone(&bundle), self.now(), author.id.clone());
        let proposal = self.stored(move |store| {
            let new = NewProposal {
                bundle: &kept,
                found: &found,
            };
            let act = AuditAct {
                who: author.as_str(),
                at_s,
                note: "",
            };
            store.propose(new, act)
        });
        let proposal = proposal.await?;
        Ok(json!({
            "id": proposal.id,
            "digest": proposal.digest,
            "state": proposal.state,
            "grants": grants,
            "report": proposal.found.report,
        }))
    }

    /// Records that a reviewer accepts a proposal. The node scans and tests the bundle again. Once enough reviewers
    /// have agreed to the same terms, the node promotes the bundle. If the proposal is already promoted, the vote is
    /// about who may call the operation. `read` is the digest of the document that the reviewer read, if it is known,
    /// and `shown` is the key that the reviewer proved.
    ///
    /// # Errors
    /// There is no such proposal, its digest is not `read`, it waits for no review, the reviewer is its author, its
    /// checks or its tests fail, or the terms are invalid.
    pub async fn accept(
        &self,
        id: Blake3Hash,
        read: Option<Blake3Hash>,
        wanted: ReviewTerms,
        (who, shown): (&Identity, Option<PeerKey>),
        note: &str,
    ) -> Result<Value, PromotionError> {
        let (proposal, bundle) = self.reviewed(id, read, who).await?;
        let state = proposal.state;
        if state != ProposalState::Promoted {
            check_waits(state)?;
        }
        // The author's key may have been removed from the node since the proposal.
        if self.author(bundle.content()).is_none() {
            let text = format!("'{}' has the bundle's key no more", proposal.author);
            return Err(PromotionError::Conflict(text));
        }
        let judged = self.judge(&bundle).await?;
        let terms = self.terms(wanted, &bundle, judged.code)?;
        let (needed, live) = (self.parts.config.reviews, self.is_live());
        let key = self.parts.identities.lasting_key(&who.id, shown);
        let (at_s, who, note) = (self.now(), who.id.clone(), note.to_owned());
        self.to_its_end(move |me| async move {
            let _one_at_a_time = me.deciding.lock().await;
            let identities = Arc::clone(&me.parts.identities);
            let reviewed = me.stored(move |store| {
                let act = AuditAct {
                    who: who.as_str(),
                    at_s,
                    note: &note,
                };
                let counts = |vote: &ReviewVote| is_reviewer(&*identities, vote);
                store.accept(&proposal, &terms, needed, counts, key, act)
            });
            let reviewed = reviewed.await?;
            me.keep_paths().await;
            let version = match reviewed {
                ReviewResult::Promoted(version) => version,
                ReviewResult::Waiting(agree) => {
                    return Ok(json!({
                        "id": id, "state": state, "reviews": agree, "needed": needed,
                    }));
                }
            };
            if live {
                me.install().await?;
            }
            Ok(json!({
                "id": id,
                "state": ProposalState::Promoted,
                "path": version.path,
                "version": version.version,
                "generation": version.generation,
                "active": live,
                "external": version.terms.external,
                "scopes": version.terms.scopes,
            }))
        })
        .await
    }

    /// Records that a reviewer rejects a proposal. `read` is as in [`accept`](Self::accept).
    ///
    /// # Errors
    /// There is no such proposal, its digest is not `read`, it waits for no review, or the reviewer is its author.
    pub async fn reject(
        &self,
        id: Blake3Hash,
        read: Option<Blake3Hash>,
        who: &Identity,
        note: &str,
    ) -> Result<Value, PromotionError> {
        let (proposal, _) = self.reviewed(id, read, who).await?;
        check_waits(proposal.state)?;
        let (at_s, who, note) = (self.now(), who.id.clone(), note.to_owned());
        self.stored(move |store| {
            let act = AuditAct {
                who: who.as_str(),
                at_s,
                note: &note,
            };
            store.reject(id, act)
        })
        .await?;
        let _one_at_a_time = self.deciding.lock().await;
        self.keep_paths().await;
        Ok(json!({ "id": id, "state": ProposalState::Rejected }))
    }

    /// Puts another version of an operation in place: the one named, or the one before.
    ///
    /// # Errors
    /// There is no such operation or version, or it is in place.
    pub async fn rollback(
        &self,
        path: &str,
        to: Option<u64>,
        who: &str,
        note: &str,
    ) -> Result<Value, PromotionError> {
        let (live, at_s) = (self.is_live(), self.now());
        let [path, who, note] = [path, who, note].map(str::to_owned);
        self.to_its_end(move |me| async move {
            let _one_at_a_time = me.deciding.lock().await;
            let back = path.clone();
            let taken = me.stored(move |store| {
                let act = AuditAct {
                    who: &who,
                    at_s,
                    note: &note,
                };
                store.rollback(&back, to, act)
            });
            let taken = taken.await?;
            if live {
                me.install().await?;
            }
            Ok(json!({
                "path": path,
                "version": taken.version,
                "replaced": taken.replaced,
                "generation": taken.generation,
                "active": live,
                "external": taken.terms.as_ref().map(|it| it.external),
                "scopes": taken.terms.as_ref().map(|it| &it.scopes),
            }))
        })
        .await
    }

    /// Handles the verdict about a version's first calls.
    pub(super) async fn judged(&self, path: &str, version: u64, verdict: TallyVerdict) {
        let (TallyVerdict::Failing(tallied) | TallyVerdict::Over(tallied)) = verdict;
        let TallyCounts { calls, errors } = tallied;
        let kept = path.to_owned();
        if let Err(error) = self
            .stored(move |store| store.tally(&kept, version, tallied))
            .await
        {
            tracing::warn!(%error, path, "the errors of a promoted operation are not kept");
        }
        // Few enough of the first calls failed, so the version stays.
        if matches!(verdict, TallyVerdict::Over(_)) {
            return;
        }
        tracing::error!(
            path,
            version,
            calls,
            errors,
            "a promoted operation fails too often"
        );
        if !self.parts.config.rollback_on_errors {
            return;
        }
        // Another decision may have replaced the version meanwhile.
        if super::lock(&self.active).version_of(path) != Some(version) {
            return;
        }
        let note = format!("{errors} of the first {calls} calls of version {version} failed");
        match self.rollback(path, None, NODE, &note).await {
            Ok(now) => tracing::warn!(path, version, %now, "taken back"),
            Err(error) => tracing::error!(%error, path, version, "not taken back"),
        }
    }

    pub(super) fn is_live(&self) -> bool {
        self.parts.config.activate == ActivationTime::Live
    }

    /// Returns a proposal that this peer may review, and its bundle. If `read` is set, it must be its digest.
    async fn reviewed(
        &self,
        id: Blake3Hash,
        read: Option<Blake3Hash>,
        who: &Identity,
    ) -> Result<(Proposal, Arc<PromotionBundle>), PromotionError> {
        let found = self.stored(move |store| Ok((store.proposal(id)?, store.bundle(id)?)));
        let (Some(proposal), Some(bundle)) = found.await? else {
            let text = format!("there is no proposal {id}");
            return Err(crate::store::PromotionStoreError::Unknown(text).into());
        };
        // The review is a check by a second peer, so the author cannot make it.
        if proposal.author == who.id {
            let text = "a proposal is reviewed by another peer than its author".to_owned();
            return Err(PromotionError::Forbidden(text));
        }
        // Another proposal may also have replaced this one between the two queries of the store.
        let is_read = read.is_none_or(|read| read == proposal.digest);
        if !is_read || bundle.digest() != proposal.digest {
            return Err(PromotionError::Conflict(REPLACED.to_owned()));
        }
        Ok((proposal, bundle))
    }

    /// Scans a bundle and runs its tests.
    async fn judge(&self, bundle: &Arc<PromotionBundle>) -> Result<BundleTrial, PromotionError> {
        let content = bundle.content();
        // Another engine may give the same source another meaning, so the author's tests would not count.
        if content.engine != alknet_runtime::ENGINE {
            let text = format!(
                "the bundle was tested with {}, and this node has {}",
                content.engine,
                alknet_runtime::ENGINE
            );
            return Err(PromotionError::Conflict(text));
        }
        let runner = self.parts.runner.as_ref();
        let seen = trial::scan_sources(runner, bundle).await?;
        let imports = check::imports(&seen);
        let (of, names) = (Arc::clone(bundle), imports.clone());
        let code = self.stored(move |store| install::code(store, &of, &names));
        let code = code.await??;
        let mut findings = check::check(&seen, &code.modules);
        findings.extend(self.secrets(bundle)?);
        if !findings.is_empty() {
            findings.truncate(FINDINGS_MAX);
            return Err(PromotionError::Check(findings));
        }
        let report =
            trial::trial(runner, &code, (&content.author, content.tests.as_slice())).await?;
        if !report.passed {
            return Err(PromotionError::Tests(Box::new(report)));
        }
        let fuel = FuelPercentiles {
            p50: report.fuel.p50,
            p99: report.fuel.p99,
        };
        if !fuel.within(content.fuel) {
            let what = format!(
                "the tests take {} and {} ticks, more than the {} and {} that it says",
                fuel.p50, fuel.p99, content.fuel.p50, content.fuel.p99
            );
            return Err(PromotionError::Check(vec![Finding::new(
                "fuel", "fuel", 0, what,
            )]));
        }
        Ok(BundleTrial {
            code,
            imports,
            report,
        })
    }

    /// Finds recorded calls that contain what the called operation marks as secret.
    fn secrets(&self, bundle: &PromotionBundle) -> Result<Vec<Finding>, PromotionError> {
        let dispatcher = self.dispatcher()?;
        let registry = dispatcher.registry();
        let promoted = registry.generation();
        let mut found = Vec::new();
        for (n, case) in bundle.content().tests.iter().enumerate() {
            for (m, call) in case.calls.iter().enumerate() {
                let path = call.path.as_str();
                // An operation that this node does not have has no schema that could mark a secret.
                let Some(spec) = registry.spec(path).or_else(|| promoted.spec(path)) else {
                    continue;
                };
                let given = tells(&spec.input_schema, &call.input);
                let answered = call.output.as_ref();
                let answered = answered.is_some_and(|it| tells(&spec.output_schema, it));
                if given || answered {
                    let place = format!("tests.{n}.calls.{m}");
                    let what = format!("'{path}' marks a part of this as secret; redact it");
                    found.push(Finding::new("secret", &place, 0, what));
                }
            }
        }
        Ok(found)
    }

    /// The terms of a promotion, if they are valid.
    fn terms(
        &self,
        wanted: ReviewTerms,
        bundle: &PromotionBundle,
        code: OperationCode,
    ) -> Result<PromotionTerms, PromotionError> {
        let name = &bundle.content().spec.name;
        let path = wanted.path.unwrap_or_else(|| format!("js/{name}"));
        if !is_operation_name(&path) {
            let text = format!("'{path}' is no operation's name; say another path");
            return Err(PromotionError::Input(text));
        }
        let scopes = match (wanted.external, wanted.scopes) {
            (false, None) => Vec::new(),
            (false, Some(scopes)) if scopes.is_empty() => scopes,
            (false, Some(_)) => {
                let text = "scopes are asked of peers, who call external operations only";
                return Err(PromotionError::Input(text.to_owned()));
            }
            (true, scopes) => scopes.unwrap_or_else(|| vec![call_scope(&path)]),
        };
        if scopes.len() > SCOPES_MAX || !scopes.iter().all(|scope| is_scope(scope)) {
            let text =
                format!("scopes are at most {SCOPES_MAX} of a-z, 0-9, ':', '_', '.' and '-'");
            return Err(PromotionError::Input(text));
        }
        let terms = PromotionTerms {
            path,
            external: wanted.external,
            scopes,
        };
        self.probe(&terms, bundle, code)?;
        Ok(terms)
    }

    /// Checks whether the registry would accept the operation.
    fn probe(
        &self,
        terms: &PromotionTerms,
        bundle: &PromotionBundle,
        code: OperationCode,
    ) -> Result<(), PromotionError> {
        let dispatcher = self.dispatcher()?;
        // The registry below has only this operation, so it cannot find a conflict with the program's own names.
        if dispatcher.registry().spec(&terms.path).is_some() {
            let text = format!(
                "'{}' is an operation of this program; say another path",
                terms.path
            );
            return Err(PromotionError::Conflict(text));
        }
        let making = PromotedOperationParts {
            code: Arc::new(code),
            terms: terms.clone(),
            version: 1,
            author: bundle.content().author.to_string(),
            authority: AuthoritySnapshot::default(),
            tally: Arc::new(CallTally::new(
                TallyCounts::default(),
                TallyCounts::default(),
            )),
            crashes: Arc::clone(&self.crashes),
            callers: Arc::clone(&self.callers),
            capabilities: alknet_core::Capabilities::default(),
            invoker: Arc::clone(&self.parts.invoker),
            judge: Arc::new(self.me.clone()),
        };
        // A registry with only this operation shows its faults without touching the node's own registry.
        let mut alone = Registry::builder();
        alone.promote(making.registration());
        let refused = |error: &RegistryError| PromotionError::Input(error.to_string());
        let alone = alone.build_lazily().map_err(|error| refused(&error))?;
        match alone.generation().rejected().first() {
            Some(error) => Err(refused(error)),
            None => Ok(()),
        }
    }
}

/// Whether an earlier vote counts now: the reviewer that gave it still has its key, its name and the right to review.
/// Another one may have got its name since.
pub(super) fn is_reviewer(identities: &dyn IdentityProvider, vote: &ReviewVote) -> bool {
    let known = vote.key.and_then(|key| identities.by_key(&key));
    known.is_some_and(|known| known.id == vote.reviewer && known.scopes.allows(PROMOTE))
}

/// Checks that a proposal waits for its review.
fn check_waits(state: ProposalState) -> Result<(), PromotionError> {
    match state {
        ProposalState::Proposed => Ok(()),
        state => {
            let text = format!("the proposal is {}, it waits for no review", state.as_str());
            Err(PromotionError::Conflict(text))
        }
    }
}

/// The scope that peers need for an operation if the reviewer names none.
fn call_scope(path: &str) -> String {
    format!("call:{}", path.replace('/', ":").to_ascii_lowercase())
}

fn is_scope(scope: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b":_.-".contains(&b);
    (1..=SCOPE_BYTES_MAX).contains(&scope.len()) && scope.bytes().all(plain)
}
