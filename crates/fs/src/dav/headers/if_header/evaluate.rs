//! Whether an `If` header holds (RFC 4918 §10.4.3 and §10.4.4).

use crate::dav::target::{DavTarget, RequestOrigin};

use super::{EntityTag, IfHeader, IfList, IfState};

/// What evaluation has to know of resources.
pub trait IfResources {
    /// The version of a resource; `None` for a collection, and where nothing is.
    fn entity_tag(&self, resource: &DavTarget) -> Option<EntityTag>;

    /// Whether a lock with this token covers the resource: one on itself, or one of infinite depth on a collection above
    /// it.
    fn is_locked_by(&self, resource: &DavTarget, token: &str) -> bool;
}

impl IfHeader {
    /// Whether one of the lists holds. `target` is what the request is sent to.
    pub fn holds(
        &self,
        target: &DavTarget,
        origin: &RequestOrigin,
        resources: &impl IfResources,
    ) -> bool {
        let mut lists = self.lists.iter();
        lists.any(|list| list.holds(target, origin, resources))
    }

    /// The resources of the lists, so that their state can be read before the evaluation. References that lead to no
    /// resource of the mount are left out.
    #[must_use]
    pub fn resources(&self, target: &DavTarget, origin: &RequestOrigin) -> Vec<DavTarget> {
        let mut resources = Vec::new();
        for list in &self.lists {
            if let Some(resource) = list.resolve(target, origin)
                && !resources.contains(&resource)
            {
                resources.push(resource);
            }
        }
        resources
    }
}

impl IfList {
    fn resolve(&self, target: &DavTarget, origin: &RequestOrigin) -> Option<DavTarget> {
        match &self.resource {
            None => Some(target.clone()),
            Some(reference) => origin.resolve(reference, "if").ok(),
        }
    }

    fn holds(
        &self,
        target: &DavTarget,
        origin: &RequestOrigin,
        resources: &impl IfResources,
    ) -> bool {
        let resource = self.resolve(target, origin);
        let mut conditions = self.conditions.iter();
        conditions.all(|condition| {
            // A resource that does not exist, or is on another server, is in no state (RFC 4918 §10.4.3).
            let is_in_state = resource
                .as_ref()
                .is_some_and(|resource| match &condition.state {
                    IfState::Token(token) => resources.is_locked_by(resource, token),
                    IfState::Tag(tag) => resources
                        .entity_tag(resource)
                        .is_some_and(|it| it.is_strongly_equal(tag)),
                });
            is_in_state != condition.is_negated
        })
    }
}
