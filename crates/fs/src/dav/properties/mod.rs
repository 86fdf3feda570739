//! Properties of entries (RFC 4918 §4): live ones, which the server computes, and dead ones, which clients set.

mod answer;
mod dead;
mod element;
mod live;
mod locks;

pub use answer::find_properties;
pub use dead::{DeadProperties, DeadProperty, DeadPropertyError};
pub use element::PropertyElement;
pub use live::{LiveProperty, PropertySource, QuotaUse};
pub use locks::active_lock;

pub(super) use locks::lock_discovery;
