//! What reviewers and authors are shown.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Promotion, lock};
use crate::bundle::{Bundle, Hash};
use crate::difference;
use crate::error::PromotionError;
use crate::grants;
use crate::limits::PAGE_MAX;
use crate::store::{Filter, Proposal, State, StoreError, Version};

/// What is asked about proposals.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Show {
    /// Everything about this one.
    pub id: Option<Hash>,
    /// The versions of this operation; with `id`, what the proposal is compared with.
    pub path: Option<String>,
    /// With `id`: the bundle itself, too.
    pub bundle: bool,
    /// Only proposals of this state.
    pub state: Option<State>,
    /// `next` of the page before.
    pub cursor: Option<i64>,
    /// Proposals on one page, at most [`PAGE_MAX`].
    pub limit: Option<usize>,
}

/// Which of the three questions it is.
#[derive(Clone, Debug)]
pub enum Asked {
    /// Which proposals there are.
    List(Filter, usize),
    /// Everything about one.
    One(Hash, Option<String>, bool),
    /// Which versions an operation has.
    Versions(String),
}

impl Show {
    /// The question.
    ///
    /// # Errors
    /// It is none of the three.
    pub fn asked(self) -> Result<Asked, PromotionError> {
        let refuse = |text: &str| Err(PromotionError::Input(text.to_owned()));
        let listing = self.state.is_some() || self.cursor.is_some() || self.limit.is_some();
        match (self.id, self.path) {
            (Some(_), _) | (_, Some(_)) if listing => {
                refuse("state, cursor and limit go with neither id nor path")
            }
            (Some(id), path) => Ok(Asked::One(id, path, self.bundle)),
            (None, _) if self.bundle => refuse("bundle goes with id"),
            (None, Some(path)) => Ok(Asked::Versions(path)),
            (None, None) => {
                let most = self.limit.unwrap_or(PAGE_MAX);
                if !(1..=PAGE_MAX).contains(&most) {
                    return refuse(&format!("limit is 1 to {PAGE_MAX}"));
                }
                let filter = Filter {
                    state: self.state,
                    before: self.cursor,
                };
                Ok(Asked::List(filter, most))
            }
        }
    }
}

/// Everything that the store has about one proposal.
struct Whole {
    proposal: Proposal,
    bundle: Arc<Bundle>,
    reviews: Value,
    audit: Value,
    /// What it would take the place of.
    present: Option<(Version, Arc<Bundle>)>,
}

impl Promotion {
    /// Answers a question about proposals.
    ///
    /// # Errors
    /// There is no such proposal or operation, or the store cannot be read.
    pub async fn show(&self, asked: Asked) -> Result<Value, PromotionError> {
        match asked {
            Asked::List(filter, most) => self.list(filter, most).await,
            Asked::One(id, path, bundle) => self.one(id, path, bundle).await,
            Asked::Versions(path) => self.versions(path).await,
        }
    }

    async fn list(&self, filter: Filter, most: usize) -> Result<Value, PromotionError> {
        let found = self.stored(move |store| {
            let (generation, _) = store.heads()?;
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
        let asked = path.clone();
        let versions = self.stored(move |store| store.versions(&asked)).await?;
        if versions.is_empty() {
            let text = format!("'{path}' was never promoted");
            return Err(StoreError::Unknown(text).into());
        }
        let active = lock(&self.active).version_of(&path);
        let current = versions.iter().find(|it| it.current).map(|it| it.version);
        Ok(json!({
            "path": path, "versions": versions, "current": current, "active": active,
        }))
    }

    async fn one(
        &self,
        id: Hash,
        path: Option<String>,
        with_bundle: bool,
    ) -> Result<Value, PromotionError> {
        let whole = self.stored(move |store| {
            let (Some(proposal), Some(bundle)) = (store.proposal(id)?, store.bundle(id)?) else {
                return Err(StoreError::Unknown(format!("there is no proposal {id}")));
            };
            let path = path.unwrap_or_else(|| format!("js/{}", proposal.name));
            let versions = store.versions(&path)?;
            let present = versions.into_iter().find(|it| it.current && it.id != id);
            let present = match present {
                Some(version) => store.bundle(version.id)?.map(|bundle| (version, bundle)),
                None => None,
            };
            let reviews = store.reviews(id)?.into_iter();
            let reviews = reviews.map(|(who, terms)| json!({ "reviewer": who, "terms": terms }));
            Ok(Whole {
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
        let grants = grants::of(&whole.bundle, &found.authority, dispatcher.registry());
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
        let mut told = json!({
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
            let document = serde_json::from_str(whole.bundle.document());
            told["bundle"] = document.unwrap_or_default();
        }
        Ok(told)
    }
}
