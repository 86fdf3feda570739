//! The answers for reviewers and authors.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Promotion, lock};
use crate::bundle::{Blake3Hash, PromotionBundle};
use crate::difference;
use crate::error::PromotionError;
use crate::grants;
use crate::limits::PAGE_MAX;
use crate::store::{
    OperationVersion, PromotionStoreError, Proposal, ProposalFilter, ProposalState,
};

/// A query about proposals.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProposalQuery {
    /// All details of this proposal.
    pub id: Option<Blake3Hash>,
    /// The versions of this operation; with `id`, the operation to compare the proposal with.
    pub path: Option<String>,
    /// Whether the answer to `id` contains the bundle itself.
    pub bundle: bool,
    /// Only proposals of this state.
    pub state: Option<ProposalState>,
    /// `next` of the previous page.
    pub cursor: Option<i64>,
    /// The number of proposals on one page, at most [`PAGE_MAX`].
    pub limit: Option<usize>,
}

/// The three kinds of queries.
#[derive(Clone, Debug)]
pub enum ProposalRequest {
    /// The list of proposals.
    List(ProposalFilter, usize),
    /// All details of one proposal.
    One(Blake3Hash, Option<String>, bool),
    /// The versions of an operation.
    Versions(String),
}

impl ProposalQuery {
    /// The kind of the query.
    ///
    /// # Errors
    /// The fields do not match one of the three kinds.
    pub fn into_request(self) -> Result<ProposalRequest, PromotionError> {
        let refuse = |text: &str| Err(PromotionError::Input(text.to_owned()));
        let listing = self.state.is_some() || self.cursor.is_some() || self.limit.is_some();
        match (self.id, self.path) {
            // A condition that the query ignores would suggest to the caller that it had an effect.
            (Some(_), _) | (_, Some(_)) if listing => {
                refuse("state, cursor and limit go with neither id nor path")
            }
            (Some(id), path) => Ok(ProposalRequest::One(id, path, self.bundle)),
            (None, _) if self.bundle => refuse("bundle goes with id"),
            (None, Some(path)) => Ok(ProposalRequest::Versions(path)),
            (None, None) => {
                let most = self.limit.unwrap_or(PAGE_MAX);
                if !(1..=PAGE_MAX).contains(&most) {
                    return refuse(&format!("limit is 1 to {PAGE_MAX}"));
                }
                let filter = ProposalFilter {
                    state: self.state,
                    before: self.cursor,
                };
                Ok(ProposalRequest::List(filter, most))
            }
        }
    }
}

/// All that the store has about one proposal.
struct ProposalDetails {
    proposal: Proposal,
    bundle: Arc<PromotionBundle>,
    reviews: Value,
    audit: Value,
    /// The version that it would replace.
    present: Option<(OperationVersion, Arc<PromotionBundle>)>,
}

impl Promotion {
    /// Answers a query about proposals.
    ///
    /// # Errors
    /// The proposal or operation does not exist, or the store cannot be read.
    pub async fn show(&self, asked: ProposalRequest) -> Result<Value, PromotionError> {
        match asked {
            ProposalRequest::List(filter, most) => self.list(filter, most).await,
            ProposalRequest::One(id, path, bundle) => self.one(id, path, bundle).await,
            ProposalRequest::Versions(path) => self.versions(path).await,
        }
    }

    async fn list(&self, filter: ProposalFilter, most: usize) -> Result<Value, PromotionError> {
        let found = self.stored(move |store| {
            let (generation, _) = store.heads()?;
            // One proposal more reveals whether there is another page.
            Ok((store.proposals(&filter, most + 1)?, generation))
        });
        let (mut proposals, stored) = found.await?;
        let more = proposals.len() > most;
        proposals.truncate(most);
        let next = proposals.last().filter(|_| more).map(|last| last.seq);
        let active = lock(&self.active);
        Ok(json!({
            "proposals": proposals,
            "next": next,
            "generation": stored,
            "active": active.number,
            "left_out": active.left_out,
        }))
    }

    async fn versions(&self, path: String) -> Result<Value, PromotionError> {
        let queried = path.clone();
        let versions = self.stored(move |store| store.versions(&queried)).await?;
        if versions.is_empty() {
            let text = format!("'{path}' was never promoted");
            return Err(PromotionStoreError::Unknown(text).into());
        }
        let active = lock(&self.active).version_of(&path);
        let current = versions.iter().find(|it| it.current).map(|it| it.version);
        Ok(json!({
            "path": path, "versions": versions, "current": current, "active": active,
        }))
    }

    async fn one(
        &self,
        id: Blake3Hash,
        path: Option<String>,
        with_bundle: bool,
    ) -> Result<Value, PromotionError> {
        let whole = self.stored(move |store| {
            let (Some(proposal), Some(bundle)) = (store.proposal(id)?, store.bundle(id)?) else {
                return Err(PromotionStoreError::Unknown(format!(
                    "there is no proposal {id}"
                )));
            };
            let path = path.unwrap_or_else(|| format!("js/{}", proposal.name));
            let versions = store.versions(&path)?;
            // A proposal is not compared with itself.
            let present = versions.into_iter().find(|it| it.current && it.id != id);
            let present = match present {
                Some(version) => store.bundle(version.id)?.map(|bundle| (version, bundle)),
                None => None,
            };
            let reviews = store.reviews(id)?.into_iter();
            let reviews =
                reviews.map(|vote| json!({ "reviewer": vote.reviewer, "terms": vote.terms }));
            Ok(ProposalDetails {
                reviews: reviews.collect(),
                audit: json!(store.audit(id)?),
                proposal,
                bundle,
                present,
            })
        });
        let whole = whole.await?;
        let dispatcher = self.dispatcher()?;
        let found = &whole.proposal.found;
        let grants = grants::resolve(&whole.bundle, &found.authority, dispatcher.registry());
        let (against, before) = match &whole.present {
            Some((version, bundle)) => (
                json!({
                    "path": version.path,
                    "version": version.version,
                    "author": bundle.content().author,
                }),
                Some(bundle.as_ref()),
            ),
            None => (Value::Null, None),
        };
        let mut answer = json!({
            "proposal": whole.proposal,
            "description": whole.bundle.content().spec.description,
            "grants": grants,
            "report": found.report,
            "against": against,
            "difference": difference::between(before, &whole.bundle),
            "reviews": whole.reviews,
            "needed": self.parts.config.reviews,
            "record": whole.audit,
        });
        if with_bundle {
            // The document of a bundle is canonical JSON, so it can always be parsed.
            let document = serde_json::from_str(whole.bundle.document());
            answer["bundle"] = document.unwrap_or_default();
        }
        Ok(answer)
    }
}
