//! Objects as a program stores, reads and removes them.

mod content;
mod damage;
mod removal;
mod store;
mod writers;
