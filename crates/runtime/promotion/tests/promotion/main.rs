//! Promotion on a node, with scripts in isolates on threads of their own.

mod authority;
mod documented;
mod faults;
mod first_format;
mod generations;
mod isolates;
mod killed;
mod proposals;
mod recorded;
mod review;
mod services;
mod support;
