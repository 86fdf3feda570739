//! Documents of others: real ones, hostile ones, and calls of what they describe.

#[path = "../../../client/tests/client/certificate.rs"]
mod certificate;
mod common;
mod documents;
mod gateway;
mod hostile;
mod mock;
mod secured;
mod shares;
mod stand_in;
mod stripe;
