//! Tests of the synchronisation.

mod bounds;
mod crowd;
mod document;
mod entry;
mod hostile;
mod javascript;
mod lasting;
mod message;
mod model;
mod rounds;
mod scene;
mod sessions;
mod split;
mod unpack;
mod withdrawn;
