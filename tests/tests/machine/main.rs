//! The booted appliance and its machine: disks, networks, power, and what breaks.

mod beside;
mod computing;
mod configuration;
mod console;
mod copies;
mod credentials;
mod disks;
mod escrow;
mod faults;
mod handover;
mod http;
mod imports;
mod media;
mod memory;
mod network;
mod power;
mod provision;
mod randomness;
mod reach;
mod rescue;
mod secure_boot;
mod sources;
mod stolen;
mod tpm;
mod vault;
