//! The operations, asked over a connection, with real workers and the real driver.

mod ends;
mod hashes;
mod hostile;
mod node;
mod page;
mod products;
mod tensors;
mod without;
