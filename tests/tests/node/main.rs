//! A node as its users meet it: `alknet serve` on this host, and where it matters a booted appliance.

mod calling;
mod enrolment;
mod enrolment_machines;
mod escrow;
mod farm;
mod here;
mod hostile;
mod hostile_peers;
mod hostile_scripts;
mod identities;
mod iroh;
mod lying;
mod node_key;
mod promoted_callers;
mod promotion;
mod recording;
mod rotation;
mod services;
mod serving;
mod shaders;
mod stopping;
mod strangers;
mod tensors;
mod tokens;
mod unread;
mod vault;
