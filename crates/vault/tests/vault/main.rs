//! The vault from outside: what a program does with it from the first words to a new disk, and what
//! it must not be built on.

mod area;
mod dependencies;
mod lifecycle;
mod records;
mod secrets;
