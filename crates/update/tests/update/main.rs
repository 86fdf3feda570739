//! Bundles from outside: what a publisher signs, what a machine accepts and refuses, and what the reference
//! implementation of TUF says about both. The tests of other implementations judge the same library.

mod attacks;
mod bundles;
mod cosigned;
mod deltas;
mod foreign;
mod owners;
mod reference;
mod refusals;
mod support;
mod trusted;
