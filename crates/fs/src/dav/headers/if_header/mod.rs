//! The `If` header (RFC 4918 §10.4): conditions on the state of resources, and the tokens of locks that a request has.

mod evaluate;
mod parse;
#[cfg(test)]
mod tests;

pub use evaluate::IfResources;

use alknet_store::LockToken;

use super::EntityTag;

/// The value of an `If` header. It holds if one of its lists does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IfHeader {
    /// Its lists, in the order of the field; at least one.
    pub lists: Vec<IfList>,
}

/// Conditions on one resource. The list holds if all of them do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IfList {
    /// The URI reference of the resource; `None` for the one that the request is sent to. Either all lists of a header name
    /// their resource, or none does.
    pub resource: Option<String>,
    /// The conditions; at least one.
    pub conditions: Vec<IfCondition>,
}

/// A condition on the state of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IfCondition {
    /// Whether the condition holds where the state is another one.
    pub is_negated: bool,
    /// The state.
    pub state: IfState,
}

/// A state that a resource can be in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IfState {
    /// A lock with this token, which is any URI, covers the resource.
    Token(String),
    /// The resource has this version.
    Tag(EntityTag),
}

impl IfHeader {
    /// The tokens of locks of this server that the request has, each once. A token counts in whatever condition it stands
    /// (RFC 4918 §10.4.1).
    #[must_use]
    pub fn lock_tokens(&self) -> Vec<LockToken> {
        let mut tokens = Vec::new();
        for condition in self.lists.iter().flat_map(|list| &list.conditions) {
            if let IfState::Token(text) = &condition.state
                && let Ok(token) = text.parse()
                && !tokens.contains(&token)
            {
                tokens.push(token);
            }
        }
        tokens
    }

    /// Whether a condition is about a version.
    #[must_use]
    pub fn has_entity_tag(&self) -> bool {
        let mut conditions = self.lists.iter().flat_map(|list| &list.conditions);
        conditions.any(|it| matches!(it.state, IfState::Tag(_)))
    }
}
