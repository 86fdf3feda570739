//! The booted appliance and its machine: disks, networks, power, and what breaks.

mod computing;
mod configuration;
mod console;
mod credentials;
mod disks;
mod escrow;
mod faults;
mod http;
mod imports;
mod media;
mod memory;
mod network;
mod power;
mod randomness;
mod reach;
mod secure_boot;
mod tpm;
mod vault;
