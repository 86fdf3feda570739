//! The operations, asked over a connection, with real workers and the real driver.

mod clock;
mod ends;
mod hashes;
mod heavy;
mod hostile;
mod lent;
mod node;
mod page;
mod products;
mod referenced;
mod refused;
mod tensors;
mod without;
