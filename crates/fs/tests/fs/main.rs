//! The operations of the files as clients meet them.

mod blobs;
mod branches;
mod entries;
mod hidden;
mod memory;
mod mount;
mod mount_client;
mod mount_rights;
mod notify;
mod opening;
mod readers;
mod scene;
mod sessions;
mod timing;
mod tree;
mod tree_model;
mod watching;
mod withdrawn;
mod wrong_input;
