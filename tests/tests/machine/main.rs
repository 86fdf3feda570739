//! The booted appliance and its machine: disks, networks, power, and what breaks.

mod computing;
mod configuration;
mod credentials;
mod disks;
mod faults;
mod network;
mod power;
mod vault;
