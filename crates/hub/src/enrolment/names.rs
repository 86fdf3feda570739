//! What a peer that joins will be called.

use std::collections::BTreeMap;

use alknet_core::{IdentityProvider, PeerEntry, PeerId};

use crate::names::{Alias, EnrolRole, check_labels};
use crate::wire::JoinRequest;

use super::{EnrolError, EnrolmentService};

/// What an applicant asks to be called, and says about itself.
#[derive(Debug, Default)]
pub(super) struct NameRequest {
    pub(super) name: Option<Alias>,
    pub(super) labels: BTreeMap<String, String>,
}

impl NameRequest {
    pub(super) fn from_request(request: &JoinRequest) -> Result<Self, EnrolError> {
        check_labels(&request.labels)?;
        let name = request.name.as_deref().map(str::parse::<Alias>);
        Ok(Self {
            name: name.transpose()?,
            labels: request.labels.clone(),
        })
    }
}

impl EnrolmentService {
    /// The role's names win; else the name that was asked for, or the one there was.
    pub(super) async fn choose_name(
        &self,
        role: &EnrolRole,
        requested: &NameRequest,
        held: Option<&PeerEntry>,
        id: &PeerId,
    ) -> Result<Option<Alias>, EnrolError> {
        let all = self.peers.list().await?;
        let taken = |name: &Alias| self.is_taken(name, id, &all);
        let had = held.and_then(|peer| peer.display_name.as_deref()?.parse().ok());
        let wanted = requested.name.clone().or(had);
        let Some(pattern) = &role.names else {
            return match wanted {
                Some(name) if taken(&name) => Err(EnrolError::NameTaken(name.to_string())),
                wanted => Ok(wanted),
            };
        };
        let wanted = wanted.filter(|name| pattern.covers(name) && !taken(name));
        let name = wanted.or_else(|| pattern.free(taken));
        name.map(Some)
            .ok_or_else(|| EnrolError::NameTaken("every name of the invitation".to_owned()))
    }

    pub(super) async fn check_free(&self, name: &Alias, id: &PeerId) -> Result<(), EnrolError> {
        let all = self.peers.list().await?;
        if self.is_taken(name, id, &all) {
            return Err(EnrolError::NameTaken(name.to_string()));
        }
        Ok(())
    }

    /// Whether a peer other than `id` is called so, by id or by alias, in the store or in the
    /// configuration.
    fn is_taken(&self, name: &Alias, id: &PeerId, all: &[PeerEntry]) -> bool {
        // The provider knows the configuration and who is let in; the list has the removed peers,
        // whose names stay theirs.
        let provider: &dyn IdentityProvider = &*self.peers;
        let elsewhere = provider.by_name(name.as_str());
        elsewhere.is_some_and(|holder| holder != *id)
            || all.iter().filter(|peer| peer.peer_id != *id).any(|peer| {
                peer.peer_id.as_str() == name.as_str()
                    || peer.display_name.as_deref() == Some(name.as_str())
            })
    }
}
