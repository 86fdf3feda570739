//! The one port over real sockets on loopback.

mod acme;
mod authority;
mod budget;
mod closing;
mod dialer;
mod iroh;
mod life;
mod links;
mod matrix;
mod migrated;
mod nesting;
mod refusals;
mod relief;
mod remotes;
mod roles;
mod served;
mod stopped;
mod support;
mod third_party;
mod unread;
mod windows;
