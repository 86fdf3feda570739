//! Volumes between this crate and dosfstools and mtools: each reads what the other writes.

mod damage;
mod exchange;
mod support;
