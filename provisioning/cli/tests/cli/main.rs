//! `alknet provision`, and what the node makes of what it wrote.

mod forms;
mod page;
mod person;
mod usage;
mod workstation;
