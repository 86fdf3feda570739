//! The node as a hub: the peers that it enrols, and the operations `hub/*`.

mod invite;
mod invoke;
mod peers;
mod tokens;

use std::sync::{Arc, OnceLock, Weak};

use alknet_call::{
    CallError, CallerDisclosure, Ctx, Dispatcher, ErrorCode, ImportOptions, RegistryBuilder,
};
use alknet_core::config::{HubDisclose, HubEnroll, HubSection, NodeConfig};
use alknet_core::{Clock, Identity, PeerId, PeerKey};
use alknet_hub::{
    EnrolError, EnrolHandler, EnrolMode, EnrolPolicy, EnrolRole, EnrolmentService, HubCard,
};

use super::facts::{self, NodeDescription, SharedFacts};
use super::identity_services::{IdentityServices, no_identity};
pub(crate) use tokens::StoredTokens;

/// Peers that may enrol where the document does not say: with enough memory, and without.
const PEERS_MAX: usize = 1000;
const PEERS_MAX_SMALL: usize = 100;
/// Memory below which a machine is a small one, in bytes.
const SMALL_BYTES: u64 = 512 << 20;

/// The dispatcher, once there is one; it does not live because of this.
pub(crate) type SharedDispatcher = Arc<OnceLock<Weak<Dispatcher>>>;

/// What the operations stand on. Clones share it.
#[derive(Clone)]
pub(crate) struct HubContext {
    enrolment: Arc<EnrolmentService>,
    clock: Arc<dyn Clock>,
    people: IdentityServices,
    about: Arc<NodeDescription>,
    facts: SharedFacts,
    dispatcher: SharedDispatcher,
}

impl HubContext {
    /// `None` where the node is no hub.
    pub(crate) fn new(
        config: &NodeConfig,
        people: &IdentityServices,
        about: &Arc<NodeDescription>,
        facts: &SharedFacts,
        clock: Arc<dyn Clock>,
    ) -> Option<Self> {
        if !config.hub.enabled {
            return None;
        }
        let card = HubCard {
            key: about.identity().parse().ok()?,
            names: names(config, &facts.load().hostname),
        };
        let identities = Arc::clone(&people.identities);
        let tokens = Arc::new(StoredTokens::new(people.store.clone()));
        let enrolment = EnrolmentService::new(tokens, identities, card, policy(&config.hub));
        Some(Self {
            enrolment: Arc::new(enrolment),
            clock,
            people: people.clone(),
            about: Arc::clone(about),
            facts: Arc::clone(facts),
            dispatcher: SharedDispatcher::default(),
        })
    }

    /// Adds the operations to a registry.
    pub(crate) fn register(&self, builder: &mut RegistryBuilder) {
        builder.add(invite::invite(self.clone()));
        builder.add(invoke::invoke(self.clone()));
        builder.add(invoke::subscribe(self.clone()));
        builder.add(peers::list(self.clone()));
        builder.add(peers::approve(self.clone()));
        builder.add(peers::label(self.clone()));
        builder.add(peers::remove(self.clone()));
        builder.add(peers::whoami(self.clone()));
    }

    /// Who decides about the peers that enrol.
    pub(crate) fn enrolment(&self) -> Arc<EnrolmentService> {
        Arc::clone(&self.enrolment)
    }

    /// What serves `alknet/enroll`.
    pub(crate) fn handler(&self) -> EnrolHandler {
        EnrolHandler::new(Arc::clone(&self.enrolment), Arc::clone(&self.clock))
    }

    /// Imports what peers serve, and passes calls on to them.
    pub(crate) fn routing(config: &HubSection, dispatcher: Dispatcher) -> Dispatcher {
        let disclose = match config.disclose {
            HubDisclose::Full => CallerDisclosure::Full,
            HubDisclose::Id => CallerDisclosure::Id,
            HubDisclose::None => CallerDisclosure::None,
        };
        let options = ImportOptions::default().with_disclose(disclose);
        dispatcher.with_imports(options).with_routing()
    }

    /// Whose peers `hub/peers` tells of.
    pub(crate) fn attach(&self, dispatcher: &Arc<Dispatcher>) {
        self.dispatcher.get_or_init(|| Arc::downgrade(dispatcher));
    }

    /// Another configuration is in force.
    pub(crate) fn tune(&self, config: &NodeConfig) {
        self.enrolment.set_policy(policy(&config.hub));
    }

    /// A role of the configuration. `worker`, which may do nothing, is always there.
    fn role(&self, name: &str) -> Result<EnrolRole, CallError> {
        let config = self.people.reloader.current();
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

    /// The same where `who` may give this role: an identity gives no scope that it does not hold.
    fn role_from(&self, name: &str, who: &Identity) -> Result<EnrolRole, CallError> {
        let role = self.role(name)?;
        // Else a peer that may invite could admit one with more rights, and act through it.
        if who.scopes.covers(&role.scopes) {
            return Ok(role);
        }
        let message = format!("the role '{name}' may do more than you, and you cannot give it");
        Err(CallError::new(ErrorCode::Forbidden, message))
    }

    /// A key by which the maker of an invitation is known again: the first one of a peer that is not being replaced.
    fn key_of_maker(&self, maker: &PeerId) -> Option<PeerKey> {
        self.people.identities.entries().lasting_key(maker, None)
    }

    fn key(&self) -> Result<[u8; 32], CallError> {
        match self.about.identity().parse() {
            Ok(PeerKey::Ed25519(key)) => Ok(key),
            _ => Err(CallError::internal("this node has no Ed25519 key")),
        }
    }
}

/// Who asks for something that gives or takes rights beyond the call. An operation that calls on behalf of its
/// caller is refused: its own authority let the call through, which may be more than it was granted for.
pub(super) fn asker(ctx: &Ctx) -> Result<&Identity, CallError> {
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
    let fits = match facts::memory_total_bytes() {
        bytes if bytes <= SMALL_BYTES => PEERS_MAX_SMALL,
        _ => PEERS_MAX,
    };
    let asked = config.max_peers.and_then(|max| usize::try_from(max).ok());
    EnrolPolicy {
        mode: match config.enroll {
            HubEnroll::Approve => EnrolMode::Approve,
            HubEnroll::Off => EnrolMode::Off,
            HubEnroll::Token => EnrolMode::Token,
        },
        peers_max: asked.unwrap_or(fits),
    }
}

/// What the enrolment service refuses, on the call wire.
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
