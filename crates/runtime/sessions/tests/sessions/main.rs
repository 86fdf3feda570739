//! Sessions in real workers, called through a real registry, many of them hostile.

mod acting;
mod calls;
mod documented;
mod hostile;
mod idle_eviction;
mod leaving;
mod life;
mod limits;
mod memory;
mod operations;
mod recorded;
mod resting;
mod service;
mod spent;
mod support;
mod tensors;
