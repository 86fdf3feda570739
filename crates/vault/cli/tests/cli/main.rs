//! The verbs of `alknet vault` as a person at a terminal and a script use them, beside the programs
//! that read the same keys.

mod damage;
mod earlier;
mod lifecycle;
mod page;
mod shell;
mod third_party;
mod typed;
