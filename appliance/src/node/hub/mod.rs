//! The node as a hub: the peers that it enrols, and the operations `hub/*`.

mod invite;
mod invoke;
mod peers;
mod tokens;
mod update;

use std::path::Path;
use std::sync::{Arc, OnceLock, Weak};

use alknet_call::{
    CallError, CallerDisclosure, Ctx, Dispatcher, ErrorCode, ImportOptions, RegistryBuilder,
};
use alknet_core::config::{HubDisclose, HubEnroll, HubSection, NodeConfig};
use alknet_core::{Clock, Identity, PeerId, PeerKey};
use alknet_hub::{
    EnrolError, EnrolHandler, EnrolMode, EnrolPolicy, EnrolRole, EnrolmentService, HubInfo,
};

use super::facts::{self, NodeDescription, SharedFacts};
use super::identity_services::{IdentityServices, no_identity};
pub(crate) use peers::invitation;
pub(crate) use tokens::StoredTokens;
use update::HubUpdates;

/// Default limits of enrolled peers: with enough memory, and on a small machine.
const PEERS_MAX: usize = 1000;
const PEERS_MAX_SMALL: usize = 100;
/// Memory up to which a machine counts as small, in bytes.
const SMALL_BYTES: u64 = 512 << 20;

/// The dispatcher, once it exists. The weak reference does not keep it alive.
pub(crate) type SharedDispatcher = Arc<OnceLock<Weak<Dispatcher>>>;

/// What the hub's operations use. Clones share it.
#[derive(Clone)]
pub(crate) struct HubContext {
    enrolment: Arc<EnrolmentService>,
    clock: Arc<dyn Clock>,
    identities: IdentityServices,
    description: Arc<NodeDescription>,
    facts: SharedFacts,
    dispatcher: SharedDispatcher,
    updates: HubUpdates,
}

impl HubContext {
    /// Returns `None` if the node is not a hub.
    pub(crate) fn new(
        config: &NodeConfig,
        identity_services: &IdentityServices,
        description: &Arc<NodeDescription>,
        facts: &SharedFacts,
        clock: Arc<dyn Clock>,
        state_dir: &Path,
    ) -> Option<Self> {
        if !config.hub.enabled {
            return None;
        }
        let hub_info = HubInfo {
            key: description.identity().parse().ok()?,
            names: names(config, &facts.load().hostname),
        };
        let identities = Arc::clone(&identity_services.identities);
        let tokens = Arc::new(StoredTokens::new(identity_services.store.clone()));
        let enrolment = EnrolmentService::new(tokens, identities, hub_info, policy(&config.hub));
        Some(Self {
            enrolment: Arc::new(enrolment),
            clock,
            identities: identity_services.clone(),
            description: Arc::clone(description),
            facts: Arc::clone(facts),
            dispatcher: SharedDispatcher::default(),
            updates: HubUpdates::open(state_dir),
        })
    }

    /// Adds the hub's operations to a registry.
    pub(crate) fn register(&self, builder: &mut RegistryBuilder) {
        builder.add(invite::invite(self.clone()));
        builder.add(invoke::invoke(self.clone()));
        builder.add(invoke::subscribe(self.clone()));
        builder.add(peers::list(self.clone()));
        builder.add(peers::approve(self.clone()));
        builder.add(peers::label(self.clone()));
        builder.add(peers::remove(self.clone()));
        builder.add(peers::whoami(self.clone()));
        builder.add(update::update(self.clone()));
        builder.add(update::status(self.clone()));
        builder.add(update::read(self.clone()));
    }

    /// The service that decides about peers that enrol.
    pub(crate) fn enrolment(&self) -> Arc<EnrolmentService> {
        Arc::clone(&self.enrolment)
    }

    /// The handler of `alknet/enroll`.
    pub(crate) fn handler(&self) -> EnrolHandler {
        EnrolHandler::new(Arc::clone(&self.enrolment), Arc::clone(&self.clock))
    }

    /// Makes a dispatcher import the operations of peers and pass calls on to them.
    pub(crate) fn routing(config: &HubSection, dispatcher: Dispatcher) -> Dispatcher {
        let disclose = match config.disclose {
            HubDisclose::Full => CallerDisclosure::Full,
            HubDisclose::Id => CallerDisclosure::Id,
            HubDisclose::None => CallerDisclosure::None,
        };
        let options = ImportOptions::default().with_disclose(disclose);
        dispatcher.with_imports(options).with_routing()
    }

    /// Attaches the dispatcher whose peers `hub/peers` lists.
    pub(crate) fn attach(&self, dispatcher: &Arc<Dispatcher>) {
        self.dispatcher.get_or_init(|| Arc::downgrade(dispatcher));
    }

    /// Applies a new configuration.
    pub(crate) fn tune(&self, config: &NodeConfig) {
        self.enrolment.set_policy(policy(&config.hub));
    }

    /// The role of this name in the configuration. `worker` always exists, and has no scopes unless
    /// the configuration gives it some.
    fn role(&self, name: &str) -> Result<EnrolRole, CallError> {
        let config = self.identities.reloader.current();
        let roles = &config.config.hub.role;
        let known = roles.iter().find(|role| role.name == name);
        let unknown = || {
            let all: Vec<_> = roles.iter().map(|role| role.name.as_str()).collect();
            let known = if all.is_empty() {
                "worker".to_owned()
            } else {
                all.join(", ")
            };
            let message = format!("there is no role '{name}'; known here: {known}");
            CallError::invalid_input(message)
        };
        if known.is_none() && name != "worker" {
            return Err(unknown());
        }
        let mut role = EnrolRole::new(name.parse().map_err(|_| unknown())?);
        if let Some(known) = known {
            role.scopes = known.scopes.iter().collect();
            role.labels = known.labels.clone();
        }
        Ok(role)
    }

    /// Like `role`, if `who` may give this role: an identity gives no scope that it does not hold.
    fn role_from(&self, name: &str, who: &Identity) -> Result<EnrolRole, CallError> {
        let role = self.role(name)?;
        // Without this check, a peer that may invite could admit one with more rights, and act
        // through it.
        if who.scopes.covers(&role.scopes) {
            return Ok(role);
        }
        let message = format!("the role '{name}' may do more than you, and you cannot give it");
        Err(CallError::new(ErrorCode::Forbidden, message))
    }

    /// A key by which the maker of an invitation is known again: the one that it used now, unless another one replaces
    /// that. If an administrator takes that key from the peer, what its thief made ends with it.
    fn key_of_maker(&self, ctx: &Ctx, maker: &PeerId) -> Option<PeerKey> {
        let entries = self.identities.identities.entries();
        entries.lasting_key(maker, ctx.conn().key)
    }

    fn key(&self) -> Result<[u8; 32], CallError> {
        match self.description.identity().parse() {
            Ok(PeerKey::Ed25519(key)) => Ok(key),
            _ => Err(CallError::internal("this node has no Ed25519 key")),
        }
    }
}

/// Who asks for something that gives or takes rights beyond the call. An operation that calls on behalf of its
/// caller is refused: its own authority let the call through, which may be more than it was granted for.
pub(super) fn requester(ctx: &Ctx) -> Result<&Identity, CallError> {
    // On whose behalf an operation calls was not checked, and a peer outlives the call.
    if ctx.internal() {
        let message =
            "an operation may not admit or change a peer for its caller; call this directly";
        return Err(CallError::new(ErrorCode::Forbidden, message));
    }
    let who = ctx.identity().ok_or_else(no_identity)?;
    Ok(who)
}

fn names(config: &NodeConfig, hostname: &str) -> Vec<String> {
    let name = config.node.name.clone();
    let name = name.unwrap_or_else(|| hostname.to_owned());
    [Some(name), config.node.domain.clone()]
        .into_iter()
        .flatten()
        .filter(|name| !name.is_empty())
        .collect()
}

fn policy(config: &HubSection) -> EnrolPolicy {
    let default_max = match facts::memory_total_bytes() {
        bytes if bytes <= SMALL_BYTES => PEERS_MAX_SMALL,
        _ => PEERS_MAX,
    };
    let configured_max = config.max_peers.and_then(|max| usize::try_from(max).ok());
    EnrolPolicy {
        mode: match config.enroll {
            HubEnroll::Approve => EnrolMode::Approve,
            HubEnroll::Off => EnrolMode::Off,
            HubEnroll::Token => EnrolMode::Token,
        },
        peers_max: configured_max.unwrap_or(default_max),
    }
}

/// The call error for a refusal of the enrolment service.
fn enrolment_error(error: &EnrolError) -> CallError {
    match error {
        EnrolError::Name(_) => CallError::invalid_input(error.to_string()),
        EnrolError::NameTaken(_) => CallError::new(ErrorCode::Conflict, error.to_string()),
        EnrolError::Overloaded(_) => CallError::new(ErrorCode::Overloaded, error.to_string()),
        EnrolError::Store(alknet_core::IdentityStoreError::Unknown(_)) => {
            CallError::new(ErrorCode::NotFound, not_enrolled())
        }
        _ => CallError::internal(error.to_string()),
    }
}

fn not_enrolled() -> &'static str {
    "no such peer has enrolled here; peers of the configuration are changed there"
}
