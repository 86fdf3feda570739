//! Objects as a program stores, reads and removes them.

mod content;
mod damage;
mod disk;
mod foreign;
mod removal;
mod store;
mod writers;
