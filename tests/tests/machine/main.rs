//! The booted appliance and its machine: disks, networks, power, and what breaks.

mod computing;
mod configuration;
mod disks;
mod faults;
mod media;
mod memory;
mod network;
mod power;
mod randomness;
mod reach;
mod vault;
