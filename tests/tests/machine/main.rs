//! The booted appliance and its machine: disks, networks, power, and what breaks.

mod computing;
mod configuration;
mod console;
mod credentials;
mod disks;
mod escrow;
mod faults;
mod network;
mod power;
mod tpm;
mod vault;
