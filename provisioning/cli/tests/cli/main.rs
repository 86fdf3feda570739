//! `alknet provision`, and how the node reads its output.

mod forms;
mod page;
mod person;
mod usage;
mod workstation;
