//! Who is let in: the decisions of a hub about those who want to join, without sockets and clocks.

mod error;
mod maker;
mod names;
mod removal;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use alknet_core::{IdentityStore, IdentityStoreError, PeerEntry, PeerId, PeerKey, PeerPatch};
use arc_swap::ArcSwap;

use crate::id::new_peer_id;
use crate::names::{Alias, EnrolRole, LABELS_MAX, check_labels};
use crate::pending::{PendingKey, PendingKeys};
use crate::record::{REPEAT_TIME_S, TokenKind, TokenRecord, TokenUse, TokenValidity, USES_MAX};
use crate::store::TokenStore;
use crate::token::EnrolToken;
use crate::wire::{HubInfo, JoinAcceptance, JoinRequest};

pub use error::{ApproveError, EnrolError, InviteError};
pub use removal::{change_peer, has_invitation, shut_out};

use maker::may_change;
use names::NameRequest;

/// Longest life of a token, in seconds: 30 days.
const TTL_MAX_S: u64 = 30 * 24 * 3600;
/// Most tokens kept.
const TOKENS_MAX: usize = 1000;
/// The label that says what an enrolled peer became.
const ROLE_LABEL: &str = "role";

/// Who may join.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EnrolMode {
    /// Holders of a token; other keys may ask and wait for an administrator to let them in.
    Approve,
    /// No key: enrolment is off.
    Off,
    /// Holders of a token.
    #[default]
    Token,
}

/// What the configuration says about joining.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnrolPolicy {
    /// Who may.
    pub mode: EnrolMode,
    /// Peers the hub has at most, tombstones not counted.
    pub peers_max: usize,
}

/// What a new token is to be good for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invitation {
    /// What its user becomes.
    pub role: EnrolRole,
    /// How often it counts.
    pub kind: TokenKind,
    /// How long, in seconds, at most 30 days.
    pub ttl_s: u64,
    /// Who asks for it.
    pub made_by: String,
    /// A key of theirs, by which they are known again.
    pub made_by_key: Option<PeerKey>,
}

/// How a key that waits is let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approval {
    /// What its holder becomes.
    pub role: EnrolRole,
    /// What it is called; unless given, as it asked to be.
    pub name: Option<Alias>,
    /// Who lets it in.
    pub made_by: String,
    /// A key of theirs, by which they are known again.
    pub made_by_key: Option<PeerKey>,
}

/// Decides. One decision at a time.
pub struct EnrolmentService {
    tokens: Arc<dyn TokenStore>,
    peers: Arc<dyn IdentityStore>,
    hub_info: ArcSwap<HubInfo>,
    policy: ArcSwap<EnrolPolicy>,
    pending: Mutex<PendingKeys>,
    turn: tokio::sync::Mutex<()>,
}

/// A node that wants to join: the key TLS proved, and what came over the connection.
#[derive(Clone, Debug)]
pub struct Applicant<'a> {
    /// The key.
    pub key: PeerKey,
    /// What it says.
    pub request: &'a JoinRequest,
    /// Where it is.
    pub from: Option<SocketAddr>,
}

impl EnrolmentService {
    /// Keeps tokens and peers in these stores.
    #[must_use]
    pub fn new(
        tokens: Arc<dyn TokenStore>,
        peers: Arc<dyn IdentityStore>,
        hub_info: HubInfo,
        policy: EnrolPolicy,
    ) -> Self {
        Self {
            tokens,
            peers,
            hub_info: ArcSwap::from_pointee(hub_info),
            policy: ArcSwap::from_pointee(policy),
            pending: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// Another policy from now on.
    pub fn set_policy(&self, policy: EnrolPolicy) {
        self.policy.store(Arc::new(policy));
    }

    /// Makes a token. The clock has to be sane: a token that never ends is not made.
    ///
    /// # Errors
    /// See [`InviteError`].
    pub async fn invite(
        &self,
        invitation: Invitation,
        now_s: Option<u64>,
    ) -> Result<(EnrolToken, TokenRecord), InviteError> {
        let now = now_s.ok_or(InviteError::Clock)?;
        if !(1..=TTL_MAX_S).contains(&invitation.ttl_s) {
            return Err(InviteError::Ttl);
        }
        if !(1..=USES_MAX).contains(&invitation.kind.uses()) {
            return Err(InviteError::Uses);
        }
        check_labels(&own_labels(&invitation.role))?;
        let _turn = self.turn.lock().await;
        // The inviter may have been removed since its call was let through. An invitation that it made after its
        // removal would be newer than that, and good again once it is let in again.
        let all = self.peers.list().await?;
        let maker_key = invitation.made_by_key.as_ref();
        self.giver(&invitation.made_by, maker_key, &invitation.role, &all)
            .ok_or(InviteError::Maker)?;
        self.forget_old_tokens(now).await?;
        let token = EnrolToken::generate()?;
        let record = TokenRecord {
            hash: token.hash(),
            kind: invitation.kind,
            expires: now.saturating_add(invitation.ttl_s),
            role: invitation.role,
            made_by: invitation.made_by,
            made_by_key: invitation.made_by_key,
            uses: Vec::new(),
            removals: Some(self.removals::<InviteError>().await?),
            closed: false,
            revision: 0,
        };
        self.tokens.put(record.clone()).await?;
        Ok((token, record))
    }

    /// Takes the applicant in, lets it wait, or refuses it.
    ///
    /// # Errors
    /// See [`EnrolError`].
    pub async fn enrol(
        &self,
        applicant: &Applicant<'_>,
        now_s: Option<u64>,
        now: Instant,
    ) -> Result<JoinAcceptance, EnrolError> {
        if !matches!(applicant.key, PeerKey::Ed25519(_)) {
            return Err(EnrolError::Key);
        }
        let requested = NameRequest::from_request(applicant.request)?;
        // Room, names and uses are read first and written later, with awaits in between.
        let _turn = self.turn.lock().await;
        match &applicant.request.token {
            Some(token) => self.by_token(applicant.key, token, requested, now_s).await,
            None => self.enqueue(applicant, requested, now).await,
        }
    }

    async fn by_token(
        &self,
        key: PeerKey,
        token: &str,
        requested: NameRequest,
        now_s: Option<u64>,
    ) -> Result<JoinAcceptance, EnrolError> {
        if self.policy.load().mode == EnrolMode::Off {
            return Err(EnrolError::Invalid);
        }
        let token: EnrolToken = token.parse().map_err(|_| EnrolError::Invalid)?;
        let record = self.tokens.get(token.name()).await?;
        let record = record.filter(|record| record.hash.matches(&token.hash()));
        let record = record.ok_or(EnrolError::Invalid)?;
        let all = self.peers.list().await?;
        // An invitation ends with its maker, and with the maker's right to give its role.
        let maker_key = record.made_by_key.as_ref();
        let maker = self.giver(&record.made_by, maker_key, &record.role, &all);
        let maker = maker.ok_or(EnrolError::Invalid)?;
        // A peer that an administrator put out comes back by an administrator, unless the maker could have put it out.
        let is_kept_out = |peer: &PeerEntry| !peer.enabled && !may_change(&maker, peer);
        let outlived = |peer: &PeerEntry| {
            let removed = peer.removal.is_some() || !peer.enabled;
            removed && !record.is_newer_than(peer)
        };
        // Also of a peer that came back by a newer invitation, or that lost scopes and stayed: what it was given before
        // is gone.
        if all
            .iter()
            .any(|peer| peer.keys.contains(&key) && (outlived(peer) || is_kept_out(peer)))
        {
            return Err(EnrolError::Invalid);
        }
        // The removal of a peer closes its invitations after it shut the peer out. Where the machine stopped in
        // between they are not closed.
        let is_over = record.closed
            || all
                .iter()
                .any(|peer| outlived(peer) && record.is_of(&peer.peer_id));
        let is_done = |at: usize| record.uses.get(at).is_some_and(|used| used.done);
        match record.judge(&key, now_s) {
            TokenValidity::Invalid => Err(EnrolError::Invalid),
            // To finish a use that was cut off takes in another key.
            TokenValidity::Repeat(at) if is_over && !is_done(at) => Err(EnrolError::Invalid),
            TokenValidity::Repeat(at) => self.again(record, at).await,
            TokenValidity::Fresh if is_over => Err(EnrolError::Invalid),
            TokenValidity::Fresh => {
                self.fresh(record, key, requested, now_s.unwrap_or_default())
                    .await
            }
        }
    }

    /// The answer may have been lost, or what it was about cut off in the middle.
    async fn again(
        &self,
        mut record: TokenRecord,
        at: usize,
    ) -> Result<JoinAcceptance, EnrolError> {
        let used = record.uses.get(at).cloned().ok_or(EnrolError::Invalid)?;
        let held = self.holder(&used.key).await?;
        if used.done {
            // A peer that was removed since is not taken in again by the old token.
            let still = held.filter(|peer| peer.enabled && peer.peer_id == used.peer);
            return still
                .map(|peer| self.taken(&peer))
                .ok_or(EnrolError::Invalid);
        }
        refuse_ended(held.as_ref(), &used.key)?;
        // The peer was made, and lost this key since: to finish the use would give it the key back.
        if held.is_none() && self.is_stored(&used.peer).await? {
            return Err(EnrolError::Invalid);
        }
        // A use of a peer without a name holds the peer's id in its place, which is no alias.
        let alias: Option<Alias> = used.name.parse().ok();
        let alias = alias.filter(|alias| alias.as_str() != used.peer.as_str());
        let entry = entry(
            held,
            used.peer,
            used.key,
            alias,
            &record.role,
            // The use did not keep what the applicant said about itself: the role's labels alone
            // come back.
            &NameRequest::default(),
        );
        self.peers.put(entry.clone()).await?;
        record.uses[at].done = true;
        self.tokens.replace(record).await?;
        Ok(self.taken(&entry))
    }

    /// Consumes a use first and makes the peer then, so that no use counts twice, whatever happens
    /// in between: the rest is done when the same key comes again.
    async fn fresh(
        &self,
        mut record: TokenRecord,
        key: PeerKey,
        requested: NameRequest,
        now_s: u64,
    ) -> Result<JoinAcceptance, EnrolError> {
        let held = self.holder(&key).await?;
        refuse_ended(held.as_ref(), &key)?;
        if held.is_none()
            && let Some(known) = self.peers.by_key(&key)
        {
            // An entry of the configuration, which wins.
            return Ok(self.answer(known.id.clone(), known.id.to_string()));
        }
        // A peer that is let in already takes no further place.
        let revived = held.as_ref().is_none_or(|peer| !peer.enabled);
        self.check_capacity(revived).await?;
        let id = match &held {
            Some(peer) => peer.peer_id.clone(),
            None => new_peer_id(now_s).map_err(|_| EnrolError::Randomness)?,
        };
        // Before the use is consumed: a name that is taken must not cost one.
        let alias = self
            .choose_name(&record.role, &requested, held.as_ref(), &id)
            .await?;
        let name = alias.as_ref().map_or(id.as_str(), Alias::as_str).to_owned();
        record.uses.push(TokenUse {
            key,
            peer: id.clone(),
            name,
            at: now_s,
            done: false,
        });
        if !self.tokens.replace(record.clone()).await? {
            // Another process, or another way to the same store, was faster.
            return Err(EnrolError::Overloaded("the token is being used; try again"));
        }
        // The store counted the revision up; the next `replace` has to name that one.
        record.revision += 1;
        let entry = entry(held, id, key, alias, &record.role, &requested);
        if let Err(error) = self.peers.put(entry.clone()).await {
            // No peer was made, so that the use does not count.
            record.uses.pop();
            self.tokens.replace(record).await?;
            return Err(match error {
                // The configuration holds the key, and does not let it in.
                IdentityStoreError::KeyTaken(..) | IdentityStoreError::ReadOnly(_) => {
                    EnrolError::Invalid
                }
                error => error.into(),
            });
        }
        if let Some(used) = record.uses.last_mut() {
            used.done = true;
        }
        self.tokens.replace(record).await?;
        Ok(self.taken(&entry))
    }

    async fn enqueue(
        &self,
        applicant: &Applicant<'_>,
        requested: NameRequest,
        now: Instant,
    ) -> Result<JoinAcceptance, EnrolError> {
        // An applicant that an administrator let in since its last request learns it here, whatever
        // the mode is by now.
        if let Some(known) = self.peers.by_key(&applicant.key) {
            let held = self.holder(&applicant.key).await?;
            let name = held.and_then(|peer| peer.display_name);
            let name = name.unwrap_or_else(|| known.id.to_string());
            return Ok(self.answer(known.id.clone(), name));
        }
        if self.policy.load().mode != EnrolMode::Approve {
            return Err(EnrolError::Invalid);
        }
        refuse_ended(self.holder(&applicant.key).await?.as_ref(), &applicant.key)?;
        let mut pending = self.pending();
        let added = pending.add(
            applicant.key,
            requested.name,
            requested.labels,
            applicant.from,
            now,
        );
        match added {
            Some(waiting) => Err(EnrolError::Pending(waiting.fingerprint.clone())),
            None => Err(EnrolError::Overloaded("too many wait already")),
        }
    }

    /// Lets in the applicant that waits under `which`, a key or a fingerprint.
    ///
    /// # Errors
    /// See [`ApproveError`].
    pub async fn approve(
        &self,
        which: &str,
        approval: Approval,
        now_s: Option<u64>,
        now: Instant,
    ) -> Result<JoinAcceptance, ApproveError> {
        let Approval {
            role,
            name,
            made_by,
            made_by_key,
        } = approval;
        let _turn = self.turn.lock().await;
        // The approver may have been removed, or have lost rights, since its call was let through.
        let all = self.peers.list().await.map_err(EnrolError::from)?;
        let approver = self.giver(&made_by, made_by_key.as_ref(), &role, &all);
        let approver = approver.ok_or(ApproveError::Approver)?;
        let found = self.pending().find(which, now);
        let PendingKey {
            key,
            labels,
            name: asked,
            ..
        } = found.ok_or(ApproveError::Unknown)?;
        let requested = NameRequest {
            name: name.or(asked),
            labels,
        };
        let held = self.holder(&key).await?;
        // The entry of a peer that an administrator added, or put out, is the administrator's to change.
        if held
            .as_ref()
            .is_some_and(|peer| !may_change(&approver, peer))
        {
            return Err(ApproveError::Peer);
        }
        refuse_ended(held.as_ref(), &key)?;
        self.check_capacity(true).await?;
        let id = match &held {
            Some(peer) => peer.peer_id.clone(),
            None => new_peer_id(now_s.unwrap_or_default()).map_err(|_| EnrolError::Randomness)?,
        };
        let alias = self
            .choose_name(&role, &requested, held.as_ref(), &id)
            .await?;
        let entry = entry(held, id, key, alias, &role, &requested);
        let put = self.peers.put(entry.clone()).await;
        put.map_err(EnrolError::from)?;
        // Only once the peer is stored: where that failed, the administrator can approve the key
        // again.
        self.pending().remove(&key);
        Ok(self.taken(&entry))
    }

    /// Those who wait.
    #[must_use]
    pub fn waiting(&self, now: Instant) -> Vec<PendingKey> {
        self.pending().list(now)
    }

    /// Calls a peer otherwise, or labels it otherwise.
    ///
    /// # Errors
    /// The name is taken, the labels break a rule, or there is no such peer in the store.
    pub async fn relabel(
        &self,
        peer: &PeerId,
        name: Option<Alias>,
        labels: impl FnOnce(&mut BTreeMap<String, String>),
    ) -> Result<PeerEntry, EnrolError> {
        let _turn = self.turn.lock().await;
        let all = self.peers.list().await?;
        let entry = all.into_iter().find(|entry| entry.peer_id == *peer);
        let entry = entry.ok_or_else(|| IdentityStoreError::Unknown(peer.clone()))?;
        let mut changed = entry.labels.clone();
        labels(&mut changed);
        check_labels(&changed)?;
        if let Some(name) = &name {
            self.check_free(name, peer).await?;
        }
        let patch = PeerPatch {
            labels: Some(changed),
            display_name: name.map(|name| Some(name.to_string())),
            ..PeerPatch::default()
        };
        self.peers.patch(peer.clone(), patch.clone()).await?;
        Ok(entry.patched(patch))
    }

    /// Every token that is kept.
    ///
    /// # Errors
    /// The store fails.
    pub async fn tokens(&self) -> Result<Vec<TokenRecord>, EnrolError> {
        Ok(self.tokens.list().await?)
    }

    /// Every peer of the store, tombstones too.
    ///
    /// # Errors
    /// The store fails.
    pub async fn peers(&self) -> Result<Vec<PeerEntry>, EnrolError> {
        Ok(self.peers.list().await?)
    }

    /// The peer called `name`, by id or by alias.
    #[must_use]
    pub fn peer_named(&self, name: &str) -> Option<PeerId> {
        self.peers.by_name(name)
    }

    /// The peer of the store that holds a key, let in or not.
    async fn holder(&self, key: &PeerKey) -> Result<Option<PeerEntry>, EnrolError> {
        let all = self.peers.list().await?;
        Ok(all.into_iter().find(|peer| peer.keys.contains(key)))
    }

    /// Whether the store has this peer, let in or not.
    async fn is_stored(&self, peer: &PeerId) -> Result<bool, EnrolError> {
        let all = self.peers.list().await?;
        Ok(all.iter().any(|entry| entry.peer_id == *peer))
    }

    /// Whether another peer fits in, where one more is `requested`.
    async fn check_capacity(&self, requested: bool) -> Result<(), EnrolError> {
        let all = self.peers.list().await?;
        let there = all.iter().filter(|peer| peer.enabled).count();
        if requested && there >= self.policy.load().peers_max {
            return Err(EnrolError::Overloaded(
                "the hub has as many peers as it may have",
            ));
        }
        Ok(())
    }

    /// Removes tokens that cannot be used any more, and whose last use is too long ago to be repeated.
    async fn forget_old_tokens(&self, now_s: u64) -> Result<(), InviteError> {
        let all = self.tokens.list().await?;
        let settled = |record: &TokenRecord| {
            let last = record.uses.iter().map(|used| used.at).max();
            // One that was never used has nothing to repeat; any time long ago does for it.
            let since = now_s.saturating_sub(last.unwrap_or_default());
            !record.is_open(now_s) && since >= REPEAT_TIME_S
        };
        let (old, kept): (Vec<_>, Vec<_>) = all.into_iter().partition(settled);
        for record in old {
            self.tokens.remove(record.hash.key_id).await?;
        }
        if kept.len() >= TOKENS_MAX {
            return Err(InviteError::TooMany);
        }
        Ok(())
    }

    fn taken(&self, peer: &PeerEntry) -> JoinAcceptance {
        let name = peer.display_name.clone();
        let name = name.unwrap_or_else(|| peer.peer_id.to_string());
        self.answer(peer.peer_id.clone(), name)
    }

    fn answer(&self, peer_id: PeerId, name: String) -> JoinAcceptance {
        JoinAcceptance {
            peer_id,
            name,
            hub: HubInfo::clone(&self.hub_info.load()),
        }
    }

    fn pending(&self) -> MutexGuard<'_, PendingKeys> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for EnrolmentService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EnrolmentService")
            .field("policy", &self.policy.load())
            .finish_non_exhaustive()
    }
}

/// Refuses a key that ended, or that a successor replaces, of a peer that is let in by others: who has it would change
/// what that peer is called and may do.
fn refuse_ended(held: Option<&PeerEntry>, key: &PeerKey) -> Result<(), EnrolError> {
    let has_ended = |peer: &PeerEntry| peer.enabled && peer.key_ends.contains_key(key);
    if held.is_some_and(has_ended) {
        return Err(EnrolError::Invalid);
    }
    Ok(())
}

/// The peer as it is from now on: by its role, and what the role leaves open by its own word.
fn entry(
    held: Option<PeerEntry>,
    id: PeerId,
    key: PeerKey,
    alias: Option<Alias>,
    role: &EnrolRole,
    requested: &NameRequest,
) -> PeerEntry {
    let has_labels = |peer: &PeerEntry| peer.enabled && !peer.labels.is_empty();
    let keeps_labels = held.as_ref().is_some_and(has_labels);
    let mut entry = held.unwrap_or_else(|| PeerEntry::new(id));
    if !entry.enabled {
        // Of a peer that was removed only the key comes back that was let in again: another may be why it was removed.
        // Those stay known, so that no older invitation lets them in.
        let others = entry.keys.iter().filter(|other| **other != key);
        entry.key_ends = others.map(|other| (*other, 0)).collect();
        entry.token_hashes.clear();
    }
    if !entry.keys.contains(&key) {
        entry.keys.push(key);
    }
    // A change, and not new fields: a peer that is let in loses what its new role lacks, so that its removal later counts
    // for that, too. For a peer that was removed it forgets what was lost: who lets it in again may give all of it.
    let mut entry = entry.patched(PeerPatch {
        scopes: Some(role.scopes.clone()),
        enabled: Some(true),
        ..PeerPatch::default()
    });
    entry.display_name = alias.map(String::from);
    let given = own_labels(role);
    if keeps_labels {
        // An administrator may have changed them since the invitation was made. Another role adds what the peer lacks.
        let before = entry.labels.get(ROLE_LABEL);
        if before.map(String::as_str) != Some(role.name.as_str()) {
            entry.labels.remove(ROLE_LABEL);
            let name = (ROLE_LABEL.to_owned(), role.name.to_string());
            add_labels(&mut entry.labels, &[name].into());
            add_labels(&mut entry.labels, &given);
        }
        return entry;
    }
    entry.labels = given;
    add_labels(&mut entry.labels, &requested.labels);
    entry
}

/// Adds labels that a peer lacks, as far as there is room. The role and the applicant may have as many each as a peer
/// may have; that is no reason to refuse the join.
fn add_labels(labels: &mut BTreeMap<String, String>, more: &BTreeMap<String, String>) {
    for (name, value) in more {
        if labels.len() < LABELS_MAX {
            let label = labels.entry(name.clone());
            label.or_insert_with(|| value.clone());
        }
    }
}

/// The labels that a role gives, its own name among them.
fn own_labels(role: &EnrolRole) -> BTreeMap<String, String> {
    let mut labels = role.labels.clone();
    labels.insert(ROLE_LABEL.to_owned(), role.name.to_string());
    labels
}
